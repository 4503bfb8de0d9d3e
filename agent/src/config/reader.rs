//! Takes typed values out of the layers, and remembers what is wrong and what was never asked for.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::Value;

use super::Problem;
use super::layers::{Layers, Leaf, problem};

pub(super) struct Reader<'a> {
    layers: &'a Layers,
    asked: BTreeSet<Vec<String>>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self { layers, asked: BTreeSet::new(), problems: Vec::new() }
    }

    /// Everything wrong, unknown keys included.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (path, leaf) in &self.layers.leaves {
            if !self.asked.contains(path) {
                let what = "there is no such key".to_owned();
                self.problems.push(problem(&leaf.origin, &path.join("."), what));
            }
        }
        self.problems
    }

    /// The value of a check, or a problem with the key.
    pub(super) fn check<T, E: Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.complain(key, error.to_string());
                None
            }
        }
    }

    pub(super) fn required(&mut self, key: &str) -> Option<String> {
        let value = self.string(key);
        if value.is_none() && self.leaf(key).is_none() {
            let what = "is required".to_owned();
            self.problems.push(problem(&self.layers.main, key, what));
        }
        value
    }

    pub(super) fn string(&mut self, key: &str) -> Option<String> {
        let leaf = self.leaf(key)?;
        match &leaf.value {
            Value::String(text) => Some(text.clone()),
            other => self.wrong(key, "a string", other),
        }
    }

    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.string(key).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    pub(super) fn strings(&mut self, key: &str) -> Option<Vec<String>> {
        let leaf = self.leaf(key)?;
        let list = leaf.value.as_array().and_then(|values| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            values.iter().map(text).collect::<Option<Vec<_>>>()
        });
        match list {
            Some(list) => Some(list),
            None => self.wrong(key, "a list of strings", &leaf.value),
        }
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(leaf) = self.leaf(key) else {
            return default;
        };
        match leaf.value.as_bool().or_else(|| parsed(leaf)) {
            Some(flag) => flag,
            None => self.wrong(key, "true or false", &leaf.value).unwrap_or(default),
        }
    }

    pub(super) fn integer(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.optional_integer(key, range).unwrap_or(default)
    }

    pub(super) fn optional_integer(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let leaf = self.leaf(key)?;
        let integer = leaf.value.as_integer().and_then(|n| u64::try_from(n).ok());
        match integer.or_else(|| parsed(leaf)) {
            Some(n) if range.contains(&n) => Some(n),
            Some(n) => {
                let (low, high) = range.into_inner();
                self.complain(key, format!("{n} is not between {low} and {high}"));
                None
            }
            None => self.wrong(key, "a whole number of 0 or more", &leaf.value),
        }
    }

    pub(super) fn millis(
        &mut self,
        key: &str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Duration {
        Duration::from_millis(self.integer(key, default, range))
    }

    pub(super) fn number(&mut self, key: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        match self.optional_number(key) {
            Some(n) if range.contains(&n) => n,
            Some(n) => {
                let (low, high) = range.into_inner();
                self.complain(key, format!("{n} is not between {low} and {high}"));
                default
            }
            None => default,
        }
    }

    #[allow(clippy::cast_precision_loss)]
    pub(super) fn optional_number(&mut self, key: &str) -> Option<f64> {
        let leaf = self.leaf(key)?;
        let number = match &leaf.value {
            Value::Float(number) => Some(*number),
            Value::Integer(number) => Some(*number as f64),
            _ => parsed(leaf),
        };
        match number {
            Some(number) => Some(number),
            None => self.wrong(key, "a number", &leaf.value),
        }
    }

    /// The names of the tables below a table.
    pub(super) fn names(&mut self, table: &str) -> Vec<String> {
        let below = self.layers.leaves.keys().filter(|path| path[0] == table && path.len() > 2);
        let names: BTreeSet<String> = below.map(|path| path[1..path.len() - 1].join(".")).collect();
        names.into_iter().collect()
    }

    /// Where systemd put the files that it guards for the service.
    pub(super) fn credentials(&self) -> Option<&'a Path> {
        self.layers.credentials.as_deref()
    }

    /// Where a key was set; the main file where it was not.
    pub(super) fn origin(&self, key: &str) -> String {
        let own = find(self.layers, key).map(|(_, leaf)| leaf.origin.clone());
        own.unwrap_or_else(|| self.layers.main.clone())
    }

    fn leaf(&mut self, key: &str) -> Option<&'a Leaf> {
        let (path, leaf) = find(self.layers, key)?;
        self.asked.insert(path.clone());
        Some(leaf)
    }

    fn complain(&mut self, key: &str, what: String) {
        let own = find(self.layers, key).map(|(_, leaf)| leaf.origin.clone());
        let below = || {
            let prefix = format!("{key}.");
            let mut leaves = self.layers.leaves.iter();
            leaves
                .find(|(path, _)| path.join(".").starts_with(&prefix))
                .map(|(_, leaf)| leaf.origin.clone())
        };
        let origin = own.or_else(below).unwrap_or_else(|| self.layers.main.clone());
        self.problems.push(problem(&origin, key, what));
    }

    fn wrong<T>(&mut self, key: &str, wanted: &str, got: &Value) -> Option<T> {
        self.complain(key, format!("wanted {wanted}, got {got}"));
        None
    }
}

/// The value of a dotted key. A table's name may itself hold dots, as a model's does.
fn find<'a>(layers: &'a Layers, key: &str) -> Option<(&'a Vec<String>, &'a Leaf)> {
    layers.leaves.iter().find(|(path, _)| path.join(".") == key)
}

/// A value that was given as bare text.
fn parsed<T: FromStr>(leaf: &Leaf) -> Option<T> {
    let text = leaf.value.as_str().filter(|_| leaf.text)?;
    text.parse().ok()
}
