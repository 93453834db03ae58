//! Where each field of a file stands, and what of it is read in a way that few expect.

use std::{collections::HashMap, sync::Arc};

/// The lines of one object of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    places: Arc<Places>,
    /// The object's path within its document, such as `items[0]` in a list.
    base: String,
}

/// The lines of one document.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Line of the document, from 1 on.
    pub start: usize,
    /// Path, such as `spec.routes[0].queue`, to the line of its key or item.
    pub of: HashMap<String, usize>,
    /// What the cluster takes, and reads in another way than it looks.
    pub surprises: Vec<Surprise>,
}

/// Something that is read in another way than it looks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Surprise {
    /// Where, as in [`Places::of`].
    pub path: String,
    /// From 1 on.
    pub line: usize,
    /// How it is read.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl Lines {
    pub(super) fn new(places: Places) -> Self {
        Self { places: Arc::new(places), base: String::new() }
    }

    /// Those of an object inside this one.
    pub(super) fn within(&self, path: &str) -> Self {
        Self { places: Arc::clone(&self.places), base: self.absolute(path) }
    }

    /// The line of a field, or of the innermost object around it that is written; that of the document where there is none.
    pub(super) fn of(&self, field: &str) -> usize {
        let absolute = self.absolute(field);
        let mut path = absolute.as_str();
        loop {
            if let Some(line) = self.places.of.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.places.start.max(1),
            }
        }
    }

    /// The surprises within this object, each with its field.
    pub(super) fn surprises(&self) -> impl Iterator<Item = (&str, &Surprise)> {
        self.places.surprises.iter().filter_map(|surprise| Some((self.relative(&surprise.path)?, surprise)))
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
