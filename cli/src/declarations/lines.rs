//! The line of each field of a file, and notes about values that are read unexpectedly.

use std::{collections::HashMap, sync::Arc};

/// The lines of one object of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    line_map: Arc<LineMap>,
    /// The object's path within its document, such as `items[0]` in a list.
    base: String,
}

/// The lines of one document.
#[derive(Debug, Default)]
pub(super) struct LineMap {
    /// Line of the document, counted from 1.
    pub start: usize,
    /// Path, such as `spec.routes[0].queue`, to the line of its key or item.
    pub of: HashMap<String, usize>,
    /// What the cluster accepts, but reads differently than it looks.
    pub notes: Vec<YamlNote>,
}

/// Something that is read differently than it looks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct YamlNote {
    /// Its path, as in [`LineMap::of`].
    pub path: String,
    /// Counted from 1.
    pub line: usize,
    /// How it is read.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl Lines {
    pub(super) fn new(line_map: LineMap) -> Self {
        Self { line_map: Arc::new(line_map), base: String::new() }
    }

    /// The lines of an object inside this one.
    pub(super) fn within(&self, path: &str) -> Self {
        Self { line_map: Arc::clone(&self.line_map), base: self.absolute(path) }
    }

    /// The line of a field, or of the innermost enclosing object that exists, else of the document.
    pub(super) fn of(&self, field: &str) -> usize {
        let absolute = self.absolute(field);
        let mut path = absolute.as_str();
        loop {
            if let Some(line) = self.line_map.of.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.line_map.start.max(1),
            }
        }
    }

    /// The notes on this object, each with its field.
    pub(super) fn notes(&self) -> impl Iterator<Item = (&str, &YamlNote)> {
        self.line_map.notes.iter().filter_map(|note| Some((self.relative(&note.path)?, note)))
    }

    fn absolute(&self, field: &str) -> String {
        if self.base.is_empty() || field.is_empty() {
            format!("{}{field}", self.base)
        } else {
            format!("{}.{field}", self.base)
        }
    }

    fn relative<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(self.base.as_str())?;
        if self.base.is_empty() || rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
    }
}

/// The path of a field of the object at `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
