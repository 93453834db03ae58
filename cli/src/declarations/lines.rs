//! Where each field of a YAML file stands. serde_yaml says where syntax is wrong, but not where a value came from.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use wirepost_core::Problem;

/// Words that are true or false to Kubernetes, which reads YAML 1.1 (yaml.org/type/bool.html), and text to YAML 1.2.
const BOOLEANS: [&str; 16] =
    ["y", "Y", "yes", "Yes", "YES", "n", "N", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"];

/// The lines of one document.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    start: usize,
    /// Path, such as `spec.routes[0].queue`, to the line of its key or item.
    of: HashMap<String, usize>,
    booleans: Vec<(String, usize, String)>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { start: 1, of: HashMap::new(), booleans: Vec::new() }
    }
}

impl Lines {
    /// The line of a field, or of the innermost object around it that is written; that of the document for an empty path.
    pub(super) fn of(&self, field: &str) -> usize {
        let mut path = field;
        loop {
            if let Some(line) = self.of.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.start,
            }
        }
    }

    /// Unquoted words that the cluster would read as true or false.
    pub(super) fn booleans(&self) -> impl Iterator<Item = (usize, Problem)> {
        self.booleans.iter().map(|(path, line, word)| {
            let message = format!("the cluster reads {word} as true or false, because it takes YAML 1.1");
            (*line, Problem::at(path.clone(), message, format!("write \"{word}\" in quotes, or true or false")))
        })
    }
}

/// A collection that is being read.
enum Open {
    Mapping { path: String, key: Option<(String, usize)>, is_key: bool },
    Sequence { path: String, next: usize, is_key: bool },
}

/// The documents of a file in order; as far as the text can be read.
pub(super) fn documents(text: &str) -> Vec<Lines> {
    let mut documents: Vec<Lines> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut parser = Parser::new_from_str(text);
    while let Some(Ok((event, span))) = parser.next_event() {
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) => {
                open.clear();
                documents.push(Lines { start: line, ..Lines::default() });
            }
            Event::Scalar(value, style, _, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let path = place(&mut documents, &mut open, line, Some(&value));
                if plain
                    && BOOLEANS.contains(&&*value)
                    && let Some(document) = documents.last_mut()
                {
                    document.booleans.push((path.0, line, value.into_owned()));
                }
            }
            Event::Alias(_) => {
                place(&mut documents, &mut open, line, None);
            }
            Event::MappingStart(..) => {
                let (path, is_key) = place(&mut documents, &mut open, line, None);
                open.push(Open::Mapping { path, key: None, is_key });
            }
            Event::SequenceStart(..) => {
                let (path, is_key) = place(&mut documents, &mut open, line, None);
                open.push(Open::Sequence { path, next: 0, is_key });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    documents
}

/// The path of the node that begins here, remembered with its line, and whether the node is a key.
fn place(documents: &mut [Lines], open: &mut [Open], line: usize, scalar: Option<&str>) -> (String, bool) {
    let (path, line) = match open.last_mut() {
        None => (String::new(), line),
        // Within a key that is a collection: no field of ours.
        Some(Open::Mapping { path, is_key: true, .. } | Open::Sequence { path, is_key: true, .. }) => {
            return (path.clone(), true);
        }
        Some(Open::Mapping { path, key, .. }) => match key.take() {
            None => {
                let name = scalar.unwrap_or("?");
                let path = join(path, name);
                *key = Some((name.to_owned(), line));
                return (path, true);
            }
            Some((name, line)) => (join(path, &name), line),
        },
        Some(Open::Sequence { path, next, .. }) => {
            *next += 1;
            (format!("{path}[{}]", *next - 1), line)
        }
    };
    if let Some(document) = documents.last_mut() {
        if path.is_empty() {
            document.start = line;
        }
        document.of.insert(path.clone(), line);
    }
    (path, false)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_the_line_of_its_key_and_a_missing_one_that_of_its_parent() {
        let text = "# comment\na:\n  b: [1, {c: 2,\n    d: 3}]\n  - no\n";
        let lines =
            &documents("# comment\na:\n  b: [1, {c: 2,\n    d: 3}]\n  e:\n  - x\n  - f: |\n      text\n    g: 1\n")[0];
        for (field, line) in [
            ("", 2),
            ("a", 2),
            ("a.b", 3),
            ("a.b[1].c", 3),
            ("a.b[1].d", 4),
            ("a.b[1].missing.deeper", 3),
            ("a.e[0]", 6),
            ("a.e[1].g", 9),
            ("a.e[2]", 5),
            ("z", 2),
        ] {
            assert_eq!(lines.of(field), line, "{field}");
        }
        assert!(!documents(text).is_empty(), "what comes before an error is known");
    }

    #[test]
    fn documents_are_counted_by_the_whole_file() {
        let all = documents("a: 1\n---\n---\nb:\n  c: 2\n");
        assert_eq!((all.len(), all[0].of("a"), all[2].of("b.c")), (3, 1, 5));
    }

    #[test]
    fn unquoted_words_of_yaml_1_1_are_found() {
        let lines = &documents(
            "name: on\nquoted: \"on\"\nlist: [yes, 'no', maybe]\nprops: {y: {type: number}}\n? [off]\n: 1\n",
        )[0];
        let found: Vec<_> = lines.booleans().map(|(line, problem)| (line, problem.field)).collect();
        assert_eq!(found, [(1, "name".to_owned()), (3, "list[0]".into()), (4, "props.y".into()), (5, "?".into())]);
    }
}
