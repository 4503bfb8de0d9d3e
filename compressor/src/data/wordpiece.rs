//! BERT's tokenizer (J. Devlin et al., 2018): text is cleaned and parted at white space, punctuation and
//! CJK characters, and each word is split into the longest pieces of a vocabulary, from the left.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization;

/// The longest vocabulary file.
pub const MAX_VOCABULARY_BYTES: u64 = 64 << 20;
/// A longer word is unknown as a whole, as in BERT's own code.
pub const MAX_WORD_CHARACTERS: usize = 100;

/// The pieces, by their line in the vocabulary file.
#[derive(Debug, Clone)]
pub struct WordPiece {
    pieces: HashMap<String, i64>,
    lowercase: bool,
    unknown: i64,
    begin: i64,
    end: i64,
    pad: i64,
}

/// A text as a model takes it, each of the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Pieces, between `[CLS]` and `[SEP]`, then `[PAD]`.
    pub ids: Vec<i64>,
    /// 1 for a piece, 0 for padding.
    pub mask: Vec<i64>,
}

impl WordPiece {
    /// Reads a vocabulary: one piece a line, pieces inside words begin with `##`.
    ///
    /// # Errors
    /// The file cannot be read, is too long, is no text, repeats a piece, or lacks one of the special
    /// pieces.
    pub fn read(path: &Path, lowercase: bool) -> Result<Self, String> {
        let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
        let file = File::open(path).map_err(unreadable)?;
        let mut text = String::new();
        file.take(MAX_VOCABULARY_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_VOCABULARY_BYTES {
            return Err(format!("is longer than MAX_VOCABULARY_BYTES = {MAX_VOCABULARY_BYTES}"));
        }
        Self::new(text.lines(), lowercase)
    }

    /// Of pieces in the order of their indices.
    ///
    /// # Errors
    /// A piece is repeated, or a special one is missing.
    pub fn new<'a>(lines: impl Iterator<Item = &'a str>, lowercase: bool) -> Result<Self, String> {
        let mut pieces = HashMap::new();
        for (index, line) in (0i64..).zip(lines) {
            if let Some(first) = pieces.insert(line.to_owned(), index) {
                let (first, second) = (first + 1, index + 1);
                return Err(format!("has \"{line}\" in line {first} and again in line {second}"));
            }
        }
        let special = |piece: &str| {
            pieces.get(piece).copied().ok_or_else(|| format!("has no line \"{piece}\""))
        };
        let (unknown, begin) = (special("[UNK]")?, special("[CLS]")?);
        let (end, pad) = (special("[SEP]")?, special("[PAD]")?);
        Ok(Self { pieces, lowercase, unknown, begin, end, pad })
    }

    /// A text as `length` pieces, at least 2; what is longer loses its end.
    pub fn encode(&self, text: &str, length: usize) -> Encoded {
        let room = length.saturating_sub(2);
        let mut ids = vec![self.begin];
        for word in self.words(text) {
            if ids.len() > room {
                break;
            }
            self.split(&word, &mut ids);
        }
        ids.truncate(room + 1);
        ids.push(self.end);
        let mut mask = vec![1; ids.len()];
        ids.resize(length, self.pad);
        mask.resize(length, 0);
        Encoded { ids, mask }
    }

    fn words(&self, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        for word in cleaned(text).split_whitespace() {
            let word: String = if self.lowercase {
                word.to_lowercase().nfd().filter(|c| !is_accent(*c)).collect()
            } else {
                word.to_owned()
            };
            part_at_punctuation(&word, &mut words);
        }
        words
    }

    /// Appends the longest known beginning of `word`, then of the rest, or the unknown piece for all.
    fn split(&self, word: &str, ids: &mut Vec<i64>) {
        if word.chars().count() > MAX_WORD_CHARACTERS {
            ids.push(self.unknown);
            return;
        }
        let before = ids.len();
        let mut rest = word;
        while !rest.is_empty() {
            let prefix = if rest.len() == word.len() { "" } else { "##" };
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8());
            let ends: Vec<usize> = ends.collect();
            let found = ends.iter().rev().find_map(|end| {
                self.pieces.get(&format!("{prefix}{}", &rest[..*end])).map(|id| (*id, *end))
            });
            let Some((id, end)) = found else {
                ids.truncate(before);
                ids.push(self.unknown);
                return;
            };
            ids.push(id);
            rest = &rest[end..];
        }
    }
}

/// Without control characters, white space as blanks, and blanks around CJK characters.
fn cleaned(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' | '\n' | '\r' => clean.push(' '),
            '\0' | '\u{fffd}' => {}
            c if is_control(c) => {}
            c if c.is_whitespace() => clean.push(' '),
            c if is_cjk(c) => clean.extend([' ', c, ' ']),
            c => clean.push(c),
        }
    }
    clean
}

fn part_at_punctuation(word: &str, words: &mut Vec<String>) {
    let mut joined = false;
    for c in word.chars() {
        if is_punctuation(c) {
            words.push(c.to_string());
            joined = false;
        } else if let (true, Some(last)) = (joined, words.last_mut()) {
            last.push(c);
        } else {
            words.push(c.to_string());
            joined = true;
        }
    }
}

fn is_accent(c: char) -> bool {
    get_general_category(c) == GeneralCategory::NonspacingMark
}

fn is_control(c: char) -> bool {
    use GeneralCategory::{Control, Format, PrivateUse, Surrogate, Unassigned};
    matches!(get_general_category(c), Control | Format | PrivateUse | Surrogate | Unassigned)
}

/// ASCII that is neither letter, digit nor blank, and Unicode's punctuation.
fn is_punctuation(c: char) -> bool {
    use GeneralCategory::{
        ClosePunctuation, ConnectorPunctuation, DashPunctuation, FinalPunctuation,
        InitialPunctuation, OpenPunctuation, OtherPunctuation,
    };
    c.is_ascii_punctuation()
        || matches!(
            get_general_category(c),
            ClosePunctuation
                | ConnectorPunctuation
                | DashPunctuation
                | FinalPunctuation
                | InitialPunctuation
                | OpenPunctuation
                | OtherPunctuation
        )
}

/// The blocks of CJK ideographs that BERT parts character by character.
fn is_cjk(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x20000..=0x2A6DF
            | 0x2A700..=0x2B73F
            | 0x2B740..=0x2B81F
            | 0x2B820..=0x2CEAF
            | 0xF900..=0xFAFF
            | 0x2F800..=0x2FA1F
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINES: [&str; 15] = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "run", "##ning", ",", "cafe",
        "中", "a", "##b", "!",
    ];

    fn pieces(lowercase: bool) -> WordPiece {
        WordPiece::new(LINES.into_iter(), lowercase).unwrap()
    }

    /// The example of the paper's own code: "unaffable" is un, ##aff, ##able.
    #[test]
    fn words_are_split_into_the_longest_pieces() {
        let got = pieces(true).encode("UNaffable, running", 10);
        assert_eq!(got.ids, [2, 4, 5, 6, 9, 7, 8, 3, 0, 0]);
        assert_eq!(got.mask, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn accents_cjk_and_controls_are_taken_as_bert_does() {
        assert_eq!(pieces(true).encode("Café中中!", 7).ids, [2, 10, 11, 11, 14, 3, 0]);
        assert_eq!(pieces(true).encode("a\u{200b}\tb\0", 5).ids, [2, 12, 1, 3, 0]);
        assert_eq!(pieces(false).encode("Café a", 5).ids, [2, 1, 12, 3, 0]);
    }

    #[test]
    fn what_is_unknown_is_one_piece_and_what_is_long_is_cut() {
        assert_eq!(pieces(true).encode("abc", 4).ids, [2, 1, 3, 0]);
        assert_eq!(pieces(true).encode("ab ab ab", 4).ids, [2, 12, 13, 3]);
        let long = "a".repeat(MAX_WORD_CHARACTERS + 1);
        assert_eq!(pieces(true).encode(&long, 4).ids, [2, 1, 3, 0]);
    }

    #[test]
    fn a_vocabulary_without_its_special_pieces_is_refused() {
        let error = WordPiece::new(["[PAD]", "[UNK]", "[CLS]"].into_iter(), true).unwrap_err();
        assert!(error.contains("[SEP]"), "{error}");
        let error = WordPiece::new(["a", "b", "a"].into_iter(), true).unwrap_err();
        assert!(error.contains("line 1") && error.contains("line 3"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_gives_the_length_asked_for(text in ".{0,60}", length in 2usize..40) {
            let got = pieces(true).encode(&text, length);
            prop_assert_eq!((got.ids.len(), got.mask.len()), (length, length));
            let used = got.mask.iter().filter(|m| **m == 1).count();
            prop_assert_eq!(got.ids[used - 1], 3);
        }
    }
}
