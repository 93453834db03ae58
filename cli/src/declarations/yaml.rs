//! One YAML document, read like kubectl: libyaml's syntax, of which kubectl's reader is a port, and the meanings of
//! [`scalar`]. Later keys replace earlier ones; merge keys (`<<`) apply at their position. One difference in syntax
//! remains: `{a:}` is an error here, and a field named `a:` to kubectl, which drops it silently.

pub(super) mod scalar;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::Chars,
};

use libyaml_safer::{Encoding, EventData, Mark, Parser, ScalarStyle};
use serde_json::{Map, Value};

use super::{
    caught::caught,
    lines::{LineMap, YamlNote, join},
};
use scalar::{Scalar, reads_unexpectedly, resolve};

/// Maximum nesting that is read; the rules allow far less.
const MAX_DEPTH: usize = 500;
/// Longest path of a field with its own line, and the sum of all paths, in bytes. Fields above this get the line of
/// their parent.
const MAX_PATH: usize = 4 << 10;
const MAX_PATHS: usize = 64 << 20;
/// Bytes that aliases may add to the text of a document.
const MAX_COPIED: usize = 64 << 20;
/// kubectl's guard against multiplying aliases: the share of nodes that may come from aliases falls from 99 % for few
/// nodes to 10 % for many.
const FEW_NODES: f64 = 400_000.0;
const MANY_NODES: f64 = 4_000_000.0;

/// Why a document can't be read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct YamlError {
    /// Within the document, counted from 0; `None` if unknown.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl YamlError {
    fn at(line: usize, message: impl fmt::Display) -> Self {
        Self { line: Some(line), message: message.to_string() }
    }
}

/// The syntax of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// As kubectl reads YAML.
    Yaml,
    /// JSON, whose escape `\/` YAML 1.1 does not have.
    Json,
}

/// Reads the first document of a text, whose first line is line `first` (counted from 1) of its file. `None` if there
/// is none.
///
/// # Errors
/// It is not YAML, or JSON can't represent it.
pub(super) fn read(text: &str, syntax: Syntax, first: usize) -> Result<Option<(Value, LineMap)>, YamlError> {
    let Some(Tree { nodes, root, trailing }) = tree(text, syntax)? else {
        return Ok(None);
    };
    let line_map = LineMap { start: first + nodes[root].line, ..LineMap::default() };
    let left = (MAX_PATHS, text.len() + MAX_COPIED);
    let mut reading =
        ValueReader { nodes: &nodes, line_map, first, open: Vec::new(), depth: 0, read: 0, by_alias: 0, left };
    let value = reading.value(root, "")?;
    let mut line_map = reading.line_map;
    if let Some(line) = trailing {
        line_map.notes.push(YamlNote {
            path: String::new(),
            line: first + line,
            message: "kubectl does not read anything after the end of a document (...)".to_owned(),
            remedy: "separate documents by a line with --- only".to_owned(),
        });
    }
    Ok(Some((value, line_map)))
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
    trailing: Option<usize>,
}

fn tree(text: &str, syntax: Syntax) -> Result<Option<Tree>, YamlError> {
    let mut escapes = (syntax == Syntax::Yaml && text.contains("\\/")).then(|| Escapes { rest: text.chars(), at: 0 });
    let mut input = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_encoding(Encoding::Utf8);
    parser.set_input_string(&mut input);
    let mut nodes: Vec<Node> = Vec::new();
    let mut anchors: HashMap<String, usize> = HashMap::new();
    let mut open: Vec<usize> = Vec::new();
    let mut before = 0;
    loop {
        let Some(parsed) = caught(|| parser.parse()) else {
            return Err(YamlError::at(before, "what follows can't be read; a text that begins with ! needs quotes"));
        };
        let event = parsed.map_err(|error| {
            let line = error.problem_mark().map(|mark| mark.line as usize);
            let context = error.context().map(|context| format!(" {context}")).unwrap_or_default();
            YamlError { line, message: format!("{}{context}", error.problem()) }
        })?;
        let line = event.start_mark.line as usize;
        before = line;
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
                    return Err(YamlError::at(
                        line,
                        "the escape \\/ is valid in JSON only, and kubectl accepts it in JSON files only",
                    ));
                }
                // A lone `!` does not change a scalar.
                let plain = plain_implicit || tag.as_deref() == Some("!");
                (Content::Scalar { text: value, tag: tag.filter(|tag| tag != "!"), plain }, anchor)
            }
            EventData::SequenceStart { anchor, .. } => (Content::Sequence(Vec::new()), anchor),
            EventData::MappingStart { anchor, .. } => (Content::Mapping(Vec::new()), anchor),
            EventData::Alias { anchor } => match anchors.get(&anchor) {
                Some(node) => (Content::Alias(*node), None),
                None => return Err(YamlError::at(line, format!("there is no anchor &{anchor} before *{anchor}"))),
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
            return Err(YamlError::at(line, format!("is nested deeper than {MAX_DEPTH} levels")));
        }
    }
    let trailing = match parser.parse() {
        Ok(event) => (event.data != EventData::StreamEnd).then_some(event.start_mark.line as usize),
        Err(error) => error.problem_mark().map(|mark| mark.line as usize),
    };
    Ok(Some(Tree { nodes, root: 0, trailing }))
}

/// Scans quoted scalars in the order of the text, once. Marks count characters.
struct Escapes<'a> {
    rest: Chars<'a>,
    at: u64,
}

impl Escapes<'_> {
    /// Whether a quoted scalar contains the escape `\/`, which libyaml accepts and kubectl's reader does not.
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

struct ValueReader<'a> {
    nodes: &'a [Node],
    line_map: LineMap,
    /// Line of the document's first line in its file.
    first: usize,
    /// Aliases that are being followed.
    open: Vec<usize>,
    depth: usize,
    /// Nodes read so far, and how many of them through an alias.
    read: u32,
    by_alias: u32,
    /// Bytes left for paths and for text.
    left: (usize, usize),
}

impl ValueReader<'_> {
    fn value(&mut self, node: usize, path: &str) -> Result<Value, YamlError> {
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
                meaning.into_json().ok_or_else(|| YamlError::at(line, "is not a number that JSON can represent"))?
            }
            Content::Sequence(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    let path = self.record_line(path, format!("{path}[{i}]"), nodes[*item].line);
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
    fn fill(&mut self, mapping: usize, path: &str, map: &mut Map<String, Value>) -> Result<(), YamlError> {
        let nodes = self.nodes;
        let Content::Mapping(entries) = &nodes[mapping].content else {
            return Err(YamlError::at(nodes[mapping].line, "a merge key (<<) accepts mappings only"));
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
            let path = self.record_line(path, join(path, &name), line);
            let value = self.value(value, &path)?;
            if !own.insert(name.clone()) {
                self.line_map.notes.push(YamlNote {
                    path,
                    line: self.first + line,
                    message: format!("{name} is a duplicate and replaces the earlier one"),
                    remedy: "keep one of them".to_owned(),
                });
            }
            map.insert(name, value);
        }
        Ok(())
    }

    fn merge(&mut self, node: usize, path: &str, map: &mut Map<String, Value>) -> Result<(), YamlError> {
        let nodes = self.nodes;
        match &nodes[node].content {
            // Earlier items of the list win.
            Content::Sequence(items) => items.iter().rev().try_for_each(|item| self.merge_one(*item, path, map)),
            _ => self.merge_one(node, path, map),
        }
    }

    fn merge_one(&mut self, node: usize, path: &str, map: &mut Map<String, Value>) -> Result<(), YamlError> {
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

    fn key(&mut self, node: usize, path: &str) -> Result<String, YamlError> {
        self.enter(node)?;
        self.depth -= 1;
        let target = match self.nodes[node].content {
            Content::Alias(target) => target,
            _ => node,
        };
        let line = self.nodes[node].line;
        if !matches!(self.nodes[target].content, Content::Scalar { .. }) {
            return Err(YamlError::at(line, "a key is not text"));
        }
        let before = self.line_map.notes.len();
        let key =
            self.scalar(target, path)?.into_key().ok_or_else(|| YamlError::at(line, "a key is empty, or not text"))?;
        if let Some(note) = self.line_map.notes.get_mut(before) {
            note.path = join(path, &key);
        }
        Ok(key)
    }

    fn scalar(&mut self, node: usize, path: &str) -> Result<Scalar, YamlError> {
        let Node { line, content } = &self.nodes[node];
        let Content::Scalar { text, tag, plain } = content else {
            return Ok(Scalar::Null);
        };
        let (_, copied) = &mut self.left;
        *copied = copied.checked_sub(text.len()).ok_or_else(|| {
            YamlError::at(*line, format!("its aliases multiply to more than {} MiB", MAX_COPIED >> 20))
        })?;
        let meaning = resolve(text, tag.as_deref(), *plain).map_err(|message| YamlError::at(*line, message))?;
        if *plain
            && tag.is_none()
            && reads_unexpectedly(text, &meaning)
            && let Some(json) = meaning.clone().into_json()
        {
            self.line_map.notes.push(YamlNote {
                path: path.to_owned(),
                line: self.first + line,
                message: format!("the cluster reads {text} as {json}, because it takes YAML 1.1"),
                remedy: format!("write \"{text}\" in quotes, or {json}"),
            });
        }
        Ok(meaning)
    }

    /// Records the line of a path; returns the path to continue with.
    fn record_line(&mut self, parent: &str, path: String, line: usize) -> String {
        let (paths, _) = &mut self.left;
        if path.len() > MAX_PATH || path.len() > *paths {
            return parent.to_owned();
        }
        *paths -= path.len();
        self.line_map.of.insert(path.clone(), self.first + line);
        path
    }

    /// Counts a node. The caller decrements `depth` afterwards.
    fn enter(&mut self, node: usize) -> Result<(), YamlError> {
        let line = self.nodes[node].line;
        self.depth += 1;
        self.read += 1;
        self.by_alias += u32::from(!self.open.is_empty());
        if self.depth > 2 * MAX_DEPTH {
            return Err(YamlError::at(line, "is nested too deeply"));
        }
        let read = f64::from(self.read);
        let over = ((read - FEW_NODES) / (MANY_NODES - FEW_NODES)).clamp(0.0, 1.0);
        if self.by_alias > 100 && self.read > 1000 && f64::from(self.by_alias) / read > 0.99 - 0.89 * over {
            return Err(YamlError::at(line, "its aliases multiply to too many values"));
        }
        Ok(())
    }

    fn open_alias(&mut self, node: usize) -> Result<(), YamlError> {
        if self.open.contains(&node) {
            return Err(YamlError::at(self.nodes[node].line, "an anchor contains itself"));
        }
        self.open.push(node);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
