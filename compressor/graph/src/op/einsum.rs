//! The equation of an `Einsum`: a letter for each axis.

/// Letters of every input and of the output, without repetitions inside of one term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EinsumEquation {
    /// Letters of each input's axes.
    pub inputs: Vec<Vec<char>>,
    /// Letters of the output's axes; the others are summed over.
    pub output: Vec<char>,
}

impl EinsumEquation {
    /// Reads `ij,jk->ik`. Without an arrow, the output has the letters that occur once, in alphabetic order.
    ///
    /// # Errors
    /// An ellipsis, a letter twice in one term, an output letter that no input has, or what is no letter.
    pub fn parse(equation: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("equation `{equation}`: {why}");
        let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        if text.contains('.') {
            return Err(wrong("an ellipsis is not understood"));
        }
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let inputs: Vec<Vec<char>> = left.split(',').map(|term| term.chars().collect()).collect();
        let occurrences = |letter: char| inputs.iter().flatten().filter(|&&l| l == letter).count();
        let output = right.map_or_else(
            || {
                let once = inputs.iter().flatten().copied().filter(|&l| occurrences(l) == 1);
                let mut letters: Vec<char> = once.collect();
                letters.sort_unstable();
                letters
            },
            |right| right.chars().collect(),
        );
        for term in inputs.iter().chain([&output]) {
            if let Some(other) = term.iter().find(|letter| !letter.is_ascii_alphabetic()) {
                return Err(wrong(&format!("`{other}` is no letter")));
            }
            if term.iter().enumerate().any(|(at, letter)| term[..at].contains(letter)) {
                return Err(wrong("a letter twice in one term is not understood"));
            }
        }
        if output.iter().any(|&letter| occurrences(letter) == 0) {
            return Err(wrong("the output has a letter that no input has"));
        }
        Ok(Self { inputs, output })
    }

    /// Every letter, in the order of the output and then of the inputs.
    #[must_use]
    pub fn letters(&self) -> Vec<char> {
        let mut letters = self.output.clone();
        for &letter in self.inputs.iter().flatten() {
            if !letters.contains(&letter) {
                letters.push(letter);
            }
        }
        letters
    }

    /// The axes of the inputs with that letter: slot and axis.
    pub fn axes(&self, letter: char) -> impl Iterator<Item = (usize, usize)> {
        let inputs = self.inputs.iter().enumerate();
        inputs.filter_map(move |(slot, term)| Some((slot, term.iter().position(|&l| l == letter)?)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_implicit_output_has_the_letters_that_occur_once() {
        let explicit = EinsumEquation::parse("bij, bjk -> bik").unwrap();
        assert_eq!(explicit.letters(), ['b', 'i', 'k', 'j']);
        assert_eq!(explicit.axes('j').collect::<Vec<_>>(), [(0, 2), (1, 1)]);
        let implicit = EinsumEquation::parse("kj,ji").unwrap();
        assert_eq!(implicit.output, ['i', 'k']);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_equation() {
        for (equation, why) in [
            ("...ij->...i", "ellipsis"),
            ("ii->i", "twice"),
            ("ij->ik", "no input has"),
            ("i1->i", "no letter"),
        ] {
            let error = EinsumEquation::parse(equation).unwrap_err();
            assert!(error.contains(why) && error.contains(equation), "{error}");
        }
    }
}
