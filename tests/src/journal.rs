//! The agent's journal, read from outside.

use std::fs;

use edge_sim::live::Stack;
use serde_json::Value;

/// The states that an install has gone through, the newest last, by the sequence of its offer.
#[must_use]
pub fn states_of(stack: &Stack, sequence: u64) -> Vec<String> {
    let mut install = None;
    let mut states = Vec::new();
    for record in records(stack) {
        match record["kind"].as_str() {
            Some("offered") if record["offer"]["sequence"] == sequence => {
                install = Some(record["install"].clone());
                states.push("offered".to_owned());
            }
            Some("install" | "resumed") if Some(&record["install"]) == install.as_ref() => {
                states.extend(record["state"].as_str().map(str::to_owned));
            }
            _ => {}
        }
    }
    states
}

/// Every whole record.
fn records(stack: &Stack) -> Vec<Value> {
    let text = fs::read(stack.journal_path()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(record).collect()
}

/// A line is an object with a checksum and an entry; a torn one is not a record.
fn record(line: &str) -> Option<Value> {
    let line: Value = serde_json::from_str(line).ok()?;
    line.pointer("/entry/record").cloned()
}
