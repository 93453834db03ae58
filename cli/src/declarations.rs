//! Files of `WsBusiness` declarations, YAML or JSON: found, read as kubectl reads them, and checked by the cluster's
//! rules. Every problem has its file and line.

mod caught;
pub(crate) mod classes;
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
    class::{self, WsBusinessClass},
    compile,
    edge_config::BusinessConfig,
    validate,
};

use classes::ClassArgs;
use documents::{Object, Parts};
use lines::{Lines, YamlNote};

/// Extensions of the files that are read from a folder, like kubectl.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Largest file that is read: a declaration must fit into one object of the cluster, at most 1.5 MiB.
const MAX_BYTES: u64 = 8 << 20;

/// A problem with its position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// As named on the command line, or inside a folder named there.
    pub file: PathBuf,
    /// Counted from 1.
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

/// A remedy as a sentence: capitalised, unless it begins with a name.
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
    /// As in the file.
    pub value: Value,
    /// As the API server would store it.
    pub business: WsBusiness,
    lines: Lines,
}

impl Declaration {
    pub(crate) fn finding(&self, problem: Problem) -> Finding {
        Finding { file: self.file.clone(), line: self.lines.of(&problem.field), problem }
    }

    fn location(&self) -> String {
        format!("{}:{}", self.file.display(), self.lines.of("metadata.name"))
    }
}

/// The contents of a file.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Declarations without problems.
    pub valid: Vec<Declaration>,
    /// Classes without problems.
    pub classes: Vec<WsBusinessClass>,
    /// Problems of the file and of its other declarations.
    pub findings: Vec<Finding>,
    /// What the cluster accepts, but reads differently than it looks.
    pub notes: Vec<Finding>,
}

/// The result of loading files.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The files that were read; never empty.
    pub files: Vec<PathBuf>,
    /// Businesses that would run.
    pub accepted: Vec<Compiled>,
    /// Problems of the others.
    pub findings: Vec<Finding>,
    /// What the cluster accepts, but reads differently than it looks.
    pub notes: Vec<Finding>,
}

/// Reads, checks and compiles the files that `paths` name, with their classes.
///
/// # Errors
/// Something can't be read, or there is nothing to read.
pub(crate) fn load(paths: &[PathBuf], classes: &ClassArgs) -> anyhow::Result<Loaded> {
    let files = some_files(paths)?;
    let Contents { valid, classes: _, mut findings, mut notes } = contents(&files)?;
    let (permitted, forbidden) = classes.read()?.permit(valid);
    findings.extend(forbidden);
    notes.extend(unknown_senders(&permitted));
    let (accepted, between) = compile_all(permitted);
    findings.extend(between);
    Ok(Loaded { files, accepted, findings, notes })
}

/// Businesses whose messages are accepted and that these files do not declare: they may be in others.
fn unknown_senders(declarations: &[Declaration]) -> Vec<Finding> {
    let declared = |name: &str| declarations.iter().any(|other| other.business.business_type() == name);
    let of = |declaration: &Declaration| {
        let accepted = declaration.business.spec.accept_from.iter().enumerate();
        let unknown = accepted.filter(|(_, accepted)| !declared(&accepted.business_type)).map(|(i, accepted)| {
            declaration.finding(Problem::at(
                format!("spec.acceptFrom[{i}].businessType"),
                format!("these files declare no business {}", accepted.business_type),
                "check its spelling; it works once that business exists",
            ))
        });
        unknown.collect::<Vec<_>>()
    };
    declarations.iter().flat_map(of).collect()
}

fn some_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let files = find(paths)?;
    anyhow::ensure!(!files.is_empty(), "no *.yaml, *.yml or *.json in these folders; name a file");
    Ok(files)
}

/// The contents of the files that `paths` name.
///
/// # Errors
/// Something can't be read, or there is nothing to read.
pub(crate) fn contents_of(paths: &[PathBuf]) -> anyhow::Result<Contents> {
    contents(&some_files(paths)?)
}

/// The contents of these files, together.
fn contents(files: &[PathBuf]) -> anyhow::Result<Contents> {
    let mut all = Contents::default();
    for file in files {
        let text = read(file).map_err(|error| anyhow::anyhow!("cannot read {}: {error}", file.display()))?;
        let Contents { valid, classes, findings, notes } = check(file, &text, |_| None);
        all.valid.extend(valid);
        all.classes.extend(classes);
        all.findings.extend(findings);
        all.notes.extend(notes);
    }
    Ok(all)
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
                "name a YAML or JSON file, or a folder with such files"
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
/// It does not exist, is not readable, or is too large.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let bytes = path.metadata()?.len();
    if bytes > MAX_BYTES {
        return Err(io::Error::other(format!("it has {bytes} bytes, more than any declaration")));
    }
    std::fs::read(path).map(|bytes| documents::text(&bytes))
}

/// The objects that a program wrote, such as kubectl: JSON or YAML, lists and their items.
///
/// # Errors
/// The text is neither.
pub(crate) fn objects(bytes: &[u8]) -> anyhow::Result<Vec<Value>> {
    let text = documents::text(bytes);
    // A large list is read much faster without the lines of its values.
    if let Ok(mut value) = serde_json::from_str::<Value>(&text) {
        return Ok(match value["items"].take() {
            Value::Array(items) => items,
            _ => vec![value],
        });
    }
    let Parts { objects, lists: _, error } = documents::parts(&text);
    match error {
        Some((line, message)) => anyhow::bail!("line {line} {message}"),
        None => Ok(objects.into_iter().map(|object| object.value).collect()),
    }
}

/// Checks a file. `stored` returns the running declaration of an owner (`namespace/name`), for fields that may not
/// change.
pub(crate) fn check<'a>(path: &Path, text: &str, stored: impl Fn(&str) -> Option<&'a Value>) -> Contents {
    let mut contents = Contents::default();
    let at = |line: usize, problem: Problem| Finding { file: path.to_owned(), line, problem };
    let Parts { objects, lists, error } = documents::parts(text);
    let mut ours = 0;
    for Object { value, lines } in objects {
        if !is_ours(&value) {
            continue;
        }
        ours += 1;
        let is_class = value["kind"] == class::KIND;
        let class = is_class.then(|| validate::class::parse(&value));
        let parsed = (!is_class).then(|| validate::parse(&value, stored(&owner(&value))));
        let wrong = class.as_ref().and_then(|class| class.as_ref().err());
        let wrong = wrong.or_else(|| parsed.as_ref().and_then(|parsed| parsed.as_ref().err()));
        let mut problems = wrong.cloned().unwrap_or_default();
        for (field, note) in lines.notes() {
            let YamlNote { line, message, remedy, .. } = note;
            match problems.iter_mut().find(|problem| problem.field == field) {
                // A note that explains a problem is part of it.
                Some(problem) => problem.message = format!("{}: {message}", problem.message),
                None => contents.notes.push(at(*line, Problem::at(field, message, remedy))),
            }
        }
        let mut findings: Vec<Finding> =
            problems.into_iter().map(|problem| at(lines.of(&problem.field), problem)).collect();
        findings.sort_by_key(|finding| finding.line);
        contents.findings.extend(findings);
        contents.classes.extend(class.and_then(Result::ok));
        if let Some(Ok(business)) = parsed {
            contents.valid.push(Declaration { file: path.to_owned(), value, business, lines });
        }
    }
    contents.findings.extend(lists.into_iter().map(|(line, problem)| at(line, problem)));
    if let Some((line, message)) = error {
        ours += 1;
        let remedy = "correct it; nothing after this line was read";
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

/// What a file declares, and the lines of its problems and notes.
pub(crate) fn declared(file: &[u8]) -> (Vec<BusinessConfig>, Vec<usize>) {
    let Contents { valid, findings, notes, .. } = check(Path::new("file"), &documents::text(file), |_| None);
    let (compiled, more) = compile_all(valid);
    let lines = [findings, notes, more].concat().iter().map(|finding| finding.line).collect();
    (compiled.into_iter().map(|compiled| compiled.config).collect(), lines)
}

/// Compiles valid declarations together, and finds conflicts between them.
pub(crate) fn compile_all(declarations: Vec<Declaration>) -> (Vec<Compiled>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut of_owner: HashMap<String, Declaration> = HashMap::new();
    let mut businesses = Vec::new();
    for declaration in declarations {
        let owner = declaration.business.owner();
        if let Some(first) = of_owner.get(&owner) {
            findings.push(declaration.finding(Problem::at(
                "metadata.name",
                format!("{owner} is already declared at {}; the later one would replace it", first.location()),
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

/// Whether a document is ours. Files may contain other objects too; a misspelt kind or group of ours is ours.
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
