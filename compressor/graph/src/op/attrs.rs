//! Reading a node's attributes so that none goes unnoticed.

use std::cell::{Cell, RefCell};

use crate::{AttributeValue, Node};

/// Hands out attributes by name, and remembers which were asked for and what was wrong with them.
pub(super) struct Attrs<'a> {
    node: &'a Node,
    read: Vec<Cell<bool>>,
    wrong: RefCell<Option<String>>,
}

impl<'a> Attrs<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        let read = node.attributes.iter().map(|_| Cell::new(false)).collect();
        Self { node, read, wrong: RefCell::new(None) }
    }

    /// The reason why the node is not understood, if any attribute was left unread or had another type.
    pub(super) fn finish(self) -> Result<(), String> {
        if let Some(wrong) = self.wrong.into_inner() {
            return Err(wrong);
        }
        let unread = self.read.iter().position(|read| !read.get());
        match unread {
            Some(index) => {
                Err(format!("attribute `{}` is not understood", self.node.attributes[index].name))
            }
            None => Ok(()),
        }
    }

    /// Accepts an attribute whatever it holds: a hint, or read elsewhere.
    pub(super) fn ignore(&self, names: &[&str]) {
        for name in names {
            self.find(name);
        }
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        match self.find(name) {
            None => default,
            Some(AttributeValue::Int(v)) => *v,
            Some(_) => self.complain(name, "an integer", default),
        }
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name, i64::from(default)) != 0
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        match self.find(name) {
            None => default,
            Some(AttributeValue::Float(v)) if !v.is_nan() => *v,
            Some(_) => self.complain(name, "a float", default),
        }
    }

    pub(super) fn string(&self, name: &str, default: &str) -> String {
        match self.find(name) {
            None => default.to_owned(),
            Some(AttributeValue::String(v)) if std::str::from_utf8(v).is_ok() => {
                String::from_utf8_lossy(v).into_owned()
            }
            Some(_) => self.complain(name, "a string", default.to_owned()),
        }
    }

    pub(super) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.find(name)? {
            AttributeValue::Ints(v) => Some(v.clone()),
            _ => self.complain(name, "integers", None),
        }
    }

    /// Sizes: integers that are not negative. Empty where absent.
    pub(super) fn sizes(&self, name: &str) -> Vec<usize> {
        let sizes = self.ints(name).unwrap_or_default();
        let sizes: Option<Vec<usize>> = sizes.iter().map(|&v| usize::try_from(v).ok()).collect();
        sizes.unwrap_or_else(|| self.complain(name, "integers of at least 0", Vec::new()))
    }

    /// An integer that must have this one value.
    pub(super) fn only_int(&self, name: &str, default: i64, understood: i64) {
        let found = self.int(name, default);
        if found != understood {
            self.refuse(format!("attribute `{name}` is {found}; only {understood} is understood"));
        }
    }

    pub(super) fn refuse(&self, reason: String) {
        self.wrong.borrow_mut().get_or_insert(reason);
    }

    fn complain<T>(&self, name: &str, wanted: &str, fallback: T) -> T {
        self.refuse(format!("attribute `{name}` is not {wanted}"));
        fallback
    }

    fn find(&self, name: &str) -> Option<&'a AttributeValue> {
        let index = self.node.attributes.iter().position(|attribute| attribute.name == name)?;
        self.read[index].set(true);
        Some(&self.node.attributes[index].value)
    }
}
