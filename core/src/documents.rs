//! Declarations as people write them: YAML text with one or more documents. Every problem comes with its line.

mod locate;

use serde_json::Value;

use crate::{
    business::{GROUP, WsBusiness},
    problem::Problem,
    validate,
};

/// One `WsBusiness` of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// First line with content, counted from 1.
    pub line: usize,
    /// The resource's name, if it has one.
    pub name: Option<String>,
    /// The resource, or everything that is wrong with it.
    pub result: Result<Box<WsBusiness>, Vec<Located>>,
}

/// A problem and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The line of the field, or of the closest part that is there; counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// Reads and checks every `WsBusiness` in a YAML text. Other resources (a file may hold a Deployment too) and empty documents are passed
/// over.
pub fn parse_documents(text: &str) -> Vec<Document> {
    split(text).into_iter().filter_map(|(first, lines)| document(first, &lines)).collect()
}

/// Documents with the number of their first line, counted from 0. A `---` at the start of a line always divides, also within a block of
/// text (YAML 1.2, section 9.1.2).
fn split(text: &str) -> Vec<(usize, Vec<&str>)> {
    let mut documents = vec![(0, Vec::new())];
    for (number, line) in text.lines().enumerate() {
        let marker = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if let Some(rest) = marker {
            // What follows the marker on its line belongs to the new document.
            documents.push((number, vec![rest.trim_start()]));
        } else if let Some((_, lines)) = documents.last_mut() {
            lines.push(line);
        }
    }
    documents
}

fn document(first: usize, lines: &[&str]) -> Option<Document> {
    let content = lines.iter().position(|line| locate::has_content(line))?;
    let text = lines.join("\n");
    let line = first + content + 1;
    let value = match parse(&text) {
        Ok(value) => value,
        Err((within, message)) => {
            return Some(Document {
                line,
                name: None,
                result: Err(vec![Located {
                    line: within.map_or(line, |within| first + within),
                    problem: Problem::at("", message, "correct the YAML"),
                }]),
            });
        }
    };
    let api = value["apiVersion"].as_str();
    if api.is_some_and(|api| api.split('/').next() != Some(GROUP)) {
        return None;
    }
    let result = validate::parse(&value, None).map(Box::new).map_err(|problems| {
        problems
            .into_iter()
            .map(|problem| Located {
                line: first + locate::locate(lines, &problem.field).unwrap_or(content) + 1,
                problem,
            })
            .collect()
    });
    Some(Document { line, name: value["metadata"]["name"].as_str().map(str::to_owned), result })
}

/// The document as JSON, or the line within it (counted from 1) and what is wrong. Goes through a YAML value, which refuses a key that
/// occurs twice.
fn parse(text: &str) -> Result<Value, (Option<usize>, String)> {
    let yaml: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| {
        let sentence = error.to_string();
        let sentence = sentence.split(" at line ").next().unwrap_or_default();
        (error.location().map(|place| place.line()), format!("is not YAML: {sentence}"))
    })?;
    serde_json::to_value(yaml).map_err(|error| (None, format!("is not a resource: {error}")))
}

#[cfg(test)]
mod tests;
