//! Files of `WsBusiness` declarations, YAML or JSON: found, read as kubectl reads them, judged by the rules of the cluster, every problem
//! with its file and line.

mod documents;
mod lines;
mod yaml;

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;
use wirepost_core::{
    Compiled, Problem, WsBusiness,
    business::{API_VERSION, GROUP, KIND},
    compile, validate,
};

use documents::{Object, Parts};
use lines::{Lines, Surprise};

/// Names of the files that are taken from a folder, as kubectl takes them.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Largest file that is read: a declaration fits into one object of the cluster, which holds 1.5 MiB.
const MAX_BYTES: u64 = 8 << 20;

/// One problem and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// As it was named on the command line, or below a folder named there.
    pub file: PathBuf,
    /// From 1 on.
    pub line: usize,
    /// What is wrong and what to do.
    #[serde(flatten)]
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { field, message, remedy, .. } = &self.problem;
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        write!(f, "{message}. {}", sentence(remedy))
    }
}

/// A remedy as a sentence: begins with a capital, unless it begins with a name.
fn sentence(text: &str) -> String {
    let word = text.split(' ').next().unwrap_or_default();
    if word.chars().all(|c| c.is_ascii_lowercase()) && !word.is_empty() {
        text[..1].to_ascii_uppercase() + &text[1..]
    } else {
        text.to_owned()
    }
}

/// One `WsBusiness` of a file.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    /// Its file.
    pub file: PathBuf,
    /// As written.
    pub value: Value,
    /// As the API server would store it.
    pub business: WsBusiness,
    lines: Lines,
}

impl Declaration {
    fn finding(&self, problem: Problem) -> Finding {
        Finding { file: self.file.clone(), line: self.lines.of(&problem.field), problem }
    }

    fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.lines.of("metadata.name"))
    }
}

/// What a file says.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Those without a problem of their own.
    pub good: Vec<Declaration>,
    /// What is wrong with the file and with its other declarations.
    pub findings: Vec<Finding>,
    /// What the cluster takes, but reads in another way than it looks.
    pub notes: Vec<Finding>,
}

/// What files come to.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The files that were read; never empty.
    pub files: Vec<PathBuf>,
    /// What runs.
    pub accepted: Vec<Compiled>,
    /// What is wrong with the rest.
    pub findings: Vec<Finding>,
    /// What the cluster takes, but reads in another way than it looks.
    pub notes: Vec<Finding>,
}

/// Reads, judges and compiles what `paths` name.
///
/// # Errors
/// Something can't be read, or there is nothing to read.
pub(crate) fn load(paths: &[PathBuf]) -> anyhow::Result<Loaded> {
    let files = find(paths)?;
    anyhow::ensure!(!files.is_empty(), "no *.yaml, *.yml or *.json in the folders named; name a file");
    let (mut good, mut findings, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for file in &files {
        let text = read(file).map_err(|error| anyhow::anyhow!("cannot read {}: {error}", file.display()))?;
        let contents = judge(file, &text, |_| None);
        good.extend(contents.good);
        findings.extend(contents.findings);
        notes.extend(contents.notes);
    }
    let (accepted, between) = compile_all(good);
    findings.extend(between);
    Ok(Loaded { files, accepted, findings, notes })
}

/// The files that `paths` name: each file as it is, of each folder those ending in .yaml, .yml or .json, sorted.
///
/// # Errors
/// A path can't be read; the message names it and says what to do.
pub(crate) fn find(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let unreadable = |error: io::Error| {
            let remedy = if error.kind() == io::ErrorKind::NotFound {
                "name a YAML or JSON file, or a folder that holds some"
            } else {
                "check its permissions"
            };
            anyhow::anyhow!("cannot read {}: {error}; {remedy}", path.display())
        };
        if path.metadata().map_err(unreadable)?.is_dir() {
            let mut inside = Vec::new();
            for entry in path.read_dir().map_err(unreadable)? {
                let entry = entry.map_err(unreadable)?.path();
                if entry.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known)) && entry.is_file() {
                    inside.push(entry);
                }
            }
            inside.sort();
            files.extend(inside);
        } else {
            files.push(path.clone());
        }
    }
    let mut seen = std::collections::HashSet::new();
    files.retain(|file| seen.insert(file.clone()));
    Ok(files)
}

/// A file's text.
///
/// # Errors
/// Not there, not readable, or too large.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let bytes = path.metadata()?.len();
    if bytes > MAX_BYTES {
        return Err(io::Error::other(format!("it has {bytes} bytes, more than any declaration")));
    }
    std::fs::read(path).map(|bytes| documents::text(&bytes))
}

/// Judges a file. `stored` is the declaration of that owner (`namespace/name`) that runs already, for what may not change.
pub(crate) fn judge<'a>(path: &Path, text: &str, stored: impl Fn(&str) -> Option<&'a Value>) -> Contents {
    let mut contents = Contents::default();
    let at = |line: usize, problem: Problem| Finding { file: path.to_owned(), line, problem };
    let Parts { objects, lists, bad } = documents::parts(text);
    let mut ours = 0;
    for Object { value, lines } in objects {
        if !is_ours(&value) {
            continue;
        }
        ours += 1;
        let judged = validate::parse(&value, stored(&owner(&value)));
        let mut problems = judged.as_ref().err().cloned().unwrap_or_default();
        for (field, surprise) in lines.surprises() {
            let Surprise { line, message, remedy, .. } = surprise;
            match problems.iter_mut().find(|problem| problem.field == field) {
                // What explains a problem is told with it.
                Some(problem) => problem.message = format!("{}: {message}", problem.message),
                None => contents.notes.push(at(*line, Problem::at(field, message, remedy))),
            }
        }
        let mut findings: Vec<Finding> =
            problems.into_iter().map(|problem| at(lines.of(&problem.field), problem)).collect();
        findings.sort_by_key(|finding| finding.line);
        contents.findings.extend(findings);
        if let Ok(business) = judged {
            contents.good.push(Declaration { file: path.to_owned(), value, business, lines });
        }
    }
    contents.findings.extend(lists.into_iter().map(|(line, problem)| at(line, problem)));
    if let Some((line, message)) = bad {
        ours += 1;
        let remedy = "correct it; nothing behind this place was looked at";
        contents.findings.push(at(line, Problem::at("", message, remedy)));
    }
    if ours == 0 {
        let problem = Problem::at(
            "",
            format!("declares no {KIND}"),
            format!("begin with apiVersion: {API_VERSION} and kind: {KIND}"),
        );
        contents.findings.push(at(1, problem));
    }
    contents
}

/// Compiles good declarations together, with what is wrong between them.
pub(crate) fn compile_all(declarations: Vec<Declaration>) -> (Vec<Compiled>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut of_owner: HashMap<String, Declaration> = HashMap::new();
    let mut businesses = Vec::new();
    for declaration in declarations {
        let owner = declaration.business.owner();
        if let Some(first) = of_owner.get(&owner) {
            findings.push(declaration.finding(Problem::at(
                "metadata.name",
                format!("{owner} is declared at {} already, the later one would replace it", first.place()),
                "give it another name, or remove one of them",
            )));
            continue;
        }
        businesses.push(declaration.business.clone());
        of_owner.insert(owner, declaration);
    }
    let compilation = compile(&businesses);
    for rejection in compilation.rejected {
        if let Some(declaration) = of_owner.get(&rejection.owner) {
            findings.extend(rejection.problems.into_iter().map(|problem| declaration.finding(problem)));
        }
    }
    (compilation.accepted, findings)
}

/// Whether a document is for us. Files may hold other objects as well; a misspelt kind or group of ours is ours.
fn is_ours(value: &Value) -> bool {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let (group, kind) = (text("apiVersion"), text("kind"));
    group.starts_with(GROUP) || kind.eq_ignore_ascii_case(KIND) || group.is_empty() || kind.is_empty()
}

fn owner(value: &Value) -> String {
    let metadata = |field: &str| value["metadata"][field].as_str();
    format!("{}/{}", metadata("namespace").unwrap_or("default"), metadata("name").unwrap_or_default())
}

#[cfg(test)]
mod tests;
