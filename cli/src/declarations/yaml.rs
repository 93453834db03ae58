//! One YAML document, read as kubectl reads it: libyaml's syntax, of which kubectl's reader is a port, and the meanings of [`scalar`].
//! Later keys replace earlier ones, merge keys (`<<`) where they stand. One difference of the syntax is left: `{a:}` is an error here, and a
//! field called `a:` to kubectl, which drops it without a word.

pub(super) mod scalar;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::Chars,
};

use libyaml_safer::{Encoding, EventData, Mark, Parser, ScalarStyle};
use serde_json::{Map, Value};

use super::lines::{Places, Surprise, join};
use scalar::{Scalar, resolve, surprises};

/// Deepest nesting that is read; the rules allow far less.
const MAX_DEPTH: usize = 500;
/// Longest path of a field that has a line of its own, and all of them together, in bytes. What is beyond has the line of what holds it.
const MAX_PATH: usize = 4 << 10;
const MAX_PATHS: usize = 64 << 20;
/// Bytes by which aliases may multiply the text of a document.
const MAX_COPIED: usize = 64 << 20;
/// kubectl's guard against aliases that multiply: the part of what is read that may come from aliases falls from 99 % for few nodes to
/// 10 % for many.
const FEW_NODES: f64 = 400_000.0;
const MANY_NODES: f64 = 4_000_000.0;

/// Why a document can't be read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bad {
    /// Within the document, from 0 on; `None` where it is not known.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl Bad {
    fn at(line: usize, message: impl fmt::Display) -> Self {
        Self { line: Some(line), message: message.to_string() }
    }
}

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// As kubectl reads YAML.
    Yaml,
    /// Known to be JSON, whose escape `\/` YAML 1.1 does not have.
    Json,
}

/// Reads the first document of a text, whose first line is line `first` (from 1 on) of its file. `None`: there is none.
///
/// # Errors
/// It is not YAML, or JSON can't say it.
pub(super) fn read(text: &str, syntax: Syntax, first: usize) -> Result<Option<(Value, Places)>, Bad> {
    let Some(Tree { nodes, root, behind }) = tree(text, syntax)? else {
        return Ok(None);
    };
    let places = Places { start: first + nodes[root].line, ..Places::default() };
    let left = (MAX_PATHS, text.len() + MAX_COPIED);
    let mut reading = Reading { nodes: &nodes, places, first, open: Vec::new(), depth: 0, read: 0, by_alias: 0, left };
    let value = reading.value(root, "")?;
    let mut places = reading.places;
    if let Some(line) = behind {
        places.surprises.push(Surprise {
            path: String::new(),
            line: first + line,
            message: "kubectl does not read what stands behind the end of a document (...)".to_owned(),
            remedy: "divide documents by a line with --- alone".to_owned(),
        });
    }
    Ok(Some((value, places)))
}

struct Node {
    line: usize,
    content: Content,
}

enum Content {
    Scalar {
        text: String,
        tag: Option<String>,
        plain: bool,
    },
    Sequence(Vec<usize>),
    /// Keys and values in turn.
    Mapping(Vec<usize>),
    Alias(usize),
}

struct Tree {
    nodes: Vec<Node>,
    root: usize,
    /// The line of a second document.
    behind: Option<usize>,
}

fn tree(text: &str, syntax: Syntax) -> Result<Option<Tree>, Bad> {
    let mut escapes = (syntax == Syntax::Yaml && text.contains("\\/")).then(|| Escapes { rest: text.chars(), at: 0 });
    let mut input = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_encoding(Encoding::Utf8);
    parser.set_input_string(&mut input);
    let mut nodes: Vec<Node> = Vec::new();
    let mut anchors: HashMap<String, usize> = HashMap::new();
    let mut open: Vec<usize> = Vec::new();
    loop {
        let event = parser.parse().map_err(|error| {
            let line = error.problem_mark().map(|mark| mark.line as usize);
            let context = error.context().map(|context| format!(" {context}")).unwrap_or_default();
            Bad { line, message: format!("{}{context}", error.problem()) }
        })?;
        let line = event.start_mark.line as usize;
        let (content, anchor) = match event.data {
            EventData::StreamEnd => return Ok(None),
            EventData::DocumentEnd { .. } => break,
            EventData::MappingEnd | EventData::SequenceEnd => {
                open.pop();
                continue;
            }
            EventData::Scalar { anchor, tag, value, plain_implicit, style, .. } => {
                if style == ScalarStyle::DoubleQuoted
                    && let Some(escapes) = &mut escapes
                    && escapes.slash(&event.start_mark, &event.end_mark)
                {
                    return Err(Bad::at(line, "the escape \\/ is JSON's, kubectl takes it in JSON files alone"));
                }
                // A lone `!` leaves a scalar to its text.
                let plain = plain_implicit || tag.as_deref() == Some("!");
                (Content::Scalar { text: value, tag: tag.filter(|tag| tag != "!"), plain }, anchor)
            }
            EventData::SequenceStart { anchor, .. } => (Content::Sequence(Vec::new()), anchor),
            EventData::MappingStart { anchor, .. } => (Content::Mapping(Vec::new()), anchor),
            EventData::Alias { anchor } => match anchors.get(&anchor) {
                Some(node) => (Content::Alias(*node), None),
                None => return Err(Bad::at(line, format!("there is no anchor &{anchor} before *{anchor}"))),
            },
            EventData::StreamStart { .. } | EventData::DocumentStart { .. } => continue,
        };
        let id = nodes.len();
        if let Some(parent) = open.last()
            && let Content::Sequence(children) | Content::Mapping(children) = &mut nodes[*parent].content
        {
            children.push(id);
        }
        if matches!(content, Content::Sequence(_) | Content::Mapping(_)) {
            open.push(id);
        }
        if let Some(anchor) = anchor {
            anchors.insert(anchor, id);
        }
        nodes.push(Node { line, content });
        if open.len() > MAX_DEPTH {
            return Err(Bad::at(line, format!("is nested deeper than {MAX_DEPTH} levels")));
        }
    }
    let behind = match parser.parse() {
        Ok(event) => (event.data != EventData::StreamEnd).then_some(event.start_mark.line as usize),
        Err(error) => error.problem_mark().map(|mark| mark.line as usize),
    };
    Ok(Some(Tree { nodes, root: 0, behind }))
}

/// Looks through quoted scalars in the order of the text, once. Marks count characters.
struct Escapes<'a> {
    rest: Chars<'a>,
    at: u64,
}

impl Escapes<'_> {
    /// Whether a quoted scalar holds the escape `\/`, which libyaml takes and kubectl's reader does not.
    fn slash(&mut self, start: &Mark, end: &Mark) -> bool {
        let skipped = start.index.saturating_sub(self.at) as usize;
        let length = end.index.saturating_sub(start.index) as usize;
        self.at = end.index;
        let mut escaped = false;
        self.rest.by_ref().skip(skipped).take(length).any(|c| {
            let found = escaped && c == '/';
            escaped = !escaped && c == '\\';
            found
        })
    }
}

struct Reading<'a> {
    nodes: &'a [Node],
    places: Places,
    /// Line of the document's first line in its file.
    first: usize,
    /// Aliases that are being followed.
    open: Vec<usize>,
    depth: usize,
    /// Nodes read so far, and those of them behind an alias.
    read: u32,
    by_alias: u32,
    /// Bytes of paths and of text that may still be kept.
    left: (usize, usize),
}

impl Reading<'_> {
    fn value(&mut self, node: usize, path: &str) -> Result<Value, Bad> {
        self.enter(node)?;
        let nodes = self.nodes;
        let line = nodes[node].line;
        let value = match &nodes[node].content {
            Content::Alias(target) => {
                self.open_alias(node)?;
                let value = self.value(*target, path)?;
                self.open.pop();
                value
            }
            Content::Scalar { .. } => {
                let meaning = self.scalar(node, path)?;
                meaning.into_json().ok_or_else(|| Bad::at(line, "is no number that JSON can write"))?
            }
            Content::Sequence(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    let path = self.place(path, format!("{path}[{i}]"), nodes[*item].line);
                    list.push(self.value(*item, &path)?);
                }
                Value::Array(list)
            }
            Content::Mapping(_) => {
                let mut map = Map::new();
                self.fill(node, path, &mut map)?;
                Value::Object(map)
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    /// Adds the entries of a mapping to `map`.
    fn fill(&mut self, mapping: usize, path: &str, map: &mut Map<String, Value>) -> Result<(), Bad> {
        let nodes = self.nodes;
        let Content::Mapping(entries) = &nodes[mapping].content else {
            return Err(Bad::at(nodes[mapping].line, "a merge key (<<) takes mappings only"));
        };
        let mut own = HashSet::new();
        for entry in entries.chunks_exact(2) {
            let (key, value) = (entry[0], entry[1]);
            if self.is_merge(key) {
                self.merge(value, path, map)?;
                continue;
            }
            let line = nodes[key].line;
            let name = self.key(key, path)?;
            let path = self.place(path, join(path, &name), line);
            let value = self.value(value, &path)?;
            if !own.insert(name.clone()) {
                self.places.surprises.push(Surprise {
                    path,
                    line: self.first + line,
                    message: format!("{name} is a duplicate, and replaces what stands before it"),
                    remedy: "keep one of them".to_owned(),
                });
            }
            map.insert(name, value);
        }
        Ok(())
    }

    fn merge(&mut self, node: usize, path: &str, map: &mut Map<String, Value>) -> Result<(), Bad> {
        let nodes = self.nodes;
        match &nodes[node].content {
            // What stands earlier in the list wins.
            Content::Sequence(items) => items.iter().rev().try_for_each(|item| self.merge_one(*item, path, map)),
            _ => self.merge_one(node, path, map),
        }
    }

    fn merge_one(&mut self, node: usize, path: &str, map: &mut Map<String, Value>) -> Result<(), Bad> {
        self.enter(node)?;
        if let Content::Alias(target) = self.nodes[node].content {
            self.open_alias(node)?;
            self.fill(target, path, map)?;
            self.open.pop();
        } else {
            self.fill(node, path, map)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn is_merge(&self, key: usize) -> bool {
        matches!(&self.nodes[key].content, Content::Scalar { text, tag, plain }
            if text == "<<" && (*plain || tag.as_deref() == Some("tag:yaml.org,2002:merge")))
    }

    fn key(&mut self, node: usize, path: &str) -> Result<String, Bad> {
        self.enter(node)?;
        self.depth -= 1;
        let target = match self.nodes[node].content {
            Content::Alias(target) => target,
            _ => node,
        };
        let line = self.nodes[node].line;
        if !matches!(self.nodes[target].content, Content::Scalar { .. }) {
            return Err(Bad::at(line, "a key is not text"));
        }
        let before = self.places.surprises.len();
        let key = self.scalar(target, path)?.into_key().ok_or_else(|| Bad::at(line, "a key is empty, or not text"))?;
        if let Some(surprise) = self.places.surprises.get_mut(before) {
            surprise.path = join(path, &key);
        }
        Ok(key)
    }

    fn scalar(&mut self, node: usize, path: &str) -> Result<Scalar, Bad> {
        let Node { line, content } = &self.nodes[node];
        let Content::Scalar { text, tag, plain } = content else {
            return Ok(Scalar::Null);
        };
        let (_, copied) = &mut self.left;
        *copied = copied
            .checked_sub(text.len())
            .ok_or_else(|| Bad::at(*line, format!("its aliases multiply to more than {} MiB", MAX_COPIED >> 20)))?;
        let meaning = resolve(text, tag.as_deref(), *plain).map_err(|message| Bad::at(*line, message))?;
        if *plain
            && tag.is_none()
            && surprises(text, &meaning)
            && let Some(json) = meaning.clone().into_json()
        {
            self.places.surprises.push(Surprise {
                path: path.to_owned(),
                line: self.first + line,
                message: format!("the cluster reads {text} as {json}, because it takes YAML 1.1"),
                remedy: format!("write \"{text}\" in quotes, or {json}"),
            });
        }
        Ok(meaning)
    }

    /// Remembers the line of a path; gives the path to go on with.
    fn place(&mut self, parent: &str, path: String, line: usize) -> String {
        let (paths, _) = &mut self.left;
        if path.len() > MAX_PATH || path.len() > *paths {
            return parent.to_owned();
        }
        *paths -= path.len();
        self.places.of.insert(path.clone(), self.first + line);
        path
    }

    /// Counts a node. The caller lowers `depth` when it is done with it.
    fn enter(&mut self, node: usize) -> Result<(), Bad> {
        let line = self.nodes[node].line;
        self.depth += 1;
        self.read += 1;
        self.by_alias += u32::from(!self.open.is_empty());
        if self.depth > 2 * MAX_DEPTH {
            return Err(Bad::at(line, "is nested too deeply"));
        }
        let read = f64::from(self.read);
        let over = ((read - FEW_NODES) / (MANY_NODES - FEW_NODES)).clamp(0.0, 1.0);
        if self.by_alias > 100 && self.read > 1000 && f64::from(self.by_alias) / read > 0.99 - 0.89 * over {
            return Err(Bad::at(line, "its aliases multiply to too many values"));
        }
        Ok(())
    }

    fn open_alias(&mut self, node: usize) -> Result<(), Bad> {
        if self.open.contains(&node) {
            return Err(Bad::at(self.nodes[node].line, "an anchor contains itself"));
        }
        self.open.push(node);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
