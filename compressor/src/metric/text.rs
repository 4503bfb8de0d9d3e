//! Texts: greedy decoding of per-step class scores, and edit distance.

use crate::quality::argmax;

/// How the rows of an answer are read as text: connectionist temporal classification (A. Graves et al.,
/// 2006), decoded greedily: the largest class of each row, repeats joined, blanks dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ctc {
    dictionary: Vec<String>,
    blank: usize,
}

impl Ctc {
    /// Texts of the classes in order, where class `blank` says "nothing" and is not in the dictionary:
    /// classes are `dictionary` with the blank put in at its index.
    pub fn new(mut dictionary: Vec<String>, blank: usize) -> Self {
        let blank = blank.min(dictionary.len());
        dictionary.insert(blank, String::new());
        Self { dictionary, blank }
    }

    /// Number of classes, the blank included.
    pub fn classes(&self) -> usize {
        self.dictionary.len()
    }

    /// The text of an answer: rows of [`Self::classes`] scores.
    pub fn decode(&self, answer: &[f32]) -> String {
        let mut text = String::new();
        let mut previous = self.blank;
        for row in answer.chunks_exact(self.classes()) {
            let class = argmax(row).unwrap_or(self.blank);
            if class != previous && class != self.blank {
                text.push_str(&self.dictionary[class]);
            }
            previous = class;
        }
        text
    }
}

/// Edits between the characters (Unicode scalar values) of two texts, and the reference's length.
pub fn character_edits(reference: &str, read: &str) -> (usize, usize) {
    let reference: Vec<char> = reference.chars().collect();
    let read: Vec<char> = read.chars().collect();
    (edits(&reference, &read), reference.len())
}

/// Edits between the words, parted by white space, of two texts, and the reference's length.
pub fn word_edits(reference: &str, read: &str) -> (usize, usize) {
    let reference: Vec<&str> = reference.split_whitespace().collect();
    let read: Vec<&str> = read.split_whitespace().collect();
    (edits(&reference, &read), reference.len())
}

/// Levenshtein distance: the fewest insertions, deletions and substitutions; two rows of memory.
pub fn edits<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
