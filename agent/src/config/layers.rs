//! Text from files, the environment and flags, merged into one tree that remembers its origins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{DEFAULT_FILE, Problem, Sources, pieces};

/// What an environment variable of ours begins with.
const PREFIX: &str = "ESPALIER__";
/// The largest configuration file read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub value: Value,
    pub origin: String,
    /// Whether it was given as bare text, which may stand for a number.
    pub text: bool,
}

/// Every value by its path. The path's parts are kept apart, for a model's name may hold a dot.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    pub leaves: BTreeMap<Vec<String>, Leaf>,
    /// What a missing key is blamed on.
    pub main: String,
    /// Where systemd put the files that it guards for the service.
    pub credentials: Option<PathBuf>,
}

impl Layers {
    pub(super) fn collect(sources: &Sources) -> (Self, Vec<Problem>) {
        let mut layers = Self {
            main: "configuration".to_owned(),
            credentials: super::secure::folder(&sources.environment),
            ..Self::default()
        };
        let mut problems = Vec::new();
        for file in files(sources, &mut problems) {
            if layers.main == "configuration" {
                layers.main = file.display().to_string();
            }
            match read(&file) {
                Ok(table) => layers.put_table(&file.display().to_string(), &table, &[]),
                Err(what) => problems.push(problem(&file.display().to_string(), "", what)),
            }
        }
        layers.put_environment(&sources.environment);
        for pair in &sources.overrides {
            layers.put_override(pair, &mut problems);
        }
        (layers, problems)
    }

    fn put_table(&mut self, origin: &str, table: &Table, path: &[String]) {
        for (key, value) in table {
            let mut path = path.to_vec();
            path.push(key.clone());
            match value {
                Value::Table(inner) => self.put_table(origin, inner, &path),
                value => self.put(path, value.clone(), origin, false),
            }
        }
    }

    fn put_environment(&mut self, environment: &[(String, String)]) {
        let mut own: Vec<_> =
            environment.iter().filter(|(key, _)| key.starts_with(PREFIX)).collect();
        own.sort();
        for (key, value) in own {
            let parts: Vec<&str> = key[PREFIX.len()..].split("__").collect();
            let named = parts.first().is_some_and(|p| p.eq_ignore_ascii_case("budgets"));
            let lower = |(i, part): (usize, &&str)| match i {
                1 if named => (*part).to_owned(),
                _ => part.to_ascii_lowercase(),
            };
            let path = parts.iter().enumerate().map(lower).collect();
            self.put(path, text_value(value), key, true);
        }
    }

    fn put_override(&mut self, pair: &str, problems: &mut Vec<Problem>) {
        let Some((key, value)) = pair.split_once('=') else {
            problems.push(problem("--set", pair, "wanted KEY=VALUE".to_owned()));
            return;
        };
        let path = key.trim().split('.').map(str::to_owned).collect();
        self.put(path, text_value(value.trim()), "--set", true);
    }

    fn put(&mut self, path: Vec<String>, value: Value, origin: &str, text: bool) {
        let origin = origin.to_owned();
        let leaf = Leaf { value, origin, text };
        self.leaves.insert(path, leaf);
    }
}

/// A list is written as in TOML; everything else is text.
fn text_value(text: &str) -> Value {
    let list = || {
        let table: Table = format!("v = {text}").parse().ok()?;
        table.get("v").cloned()
    };
    let value = if text.starts_with('[') { list() } else { None };
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn files(sources: &Sources, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let default = Path::new(DEFAULT_FILE);
    let main = match &sources.file {
        Some(file) => file.clone(),
        None if default.exists() => default.to_owned(),
        None => return Vec::new(),
    };
    let folder = pieces(&main);
    let mut files = vec![main];
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            let toml = |path: &PathBuf| path.extension().is_some_and(|e| e == "toml");
            let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
            let mut pieces: Vec<PathBuf> = entries.filter(toml).collect();
            pieces.sort();
            files.extend(pieces);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            problems.push(problem(&folder.display().to_string(), "", error.to_string()));
        }
    }
    files
}

fn read(file: &Path) -> Result<Table, String> {
    let size = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{size} bytes are over the limit of {MAX_FILE_BYTES}"));
    }
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    text.parse::<Table>().map_err(|e| e.to_string().trim_end().to_owned())
}

pub(super) fn problem(origin: &str, key: &str, what: String) -> Problem {
    Problem { origin: origin.to_owned(), key: key.to_owned(), what }
}
