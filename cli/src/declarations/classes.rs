//! `--class`: checks declarations by the platform team's policy.

use std::path::PathBuf;

use serde_json::{Value, json};
use wirepost_core::{
    Problem, WsBusiness,
    business::API_VERSION,
    class::{KIND, WsBusinessClass, class_of},
    validate,
};

use super::{Declaration, Finding, contents, find};

/// The policy by which declarations are checked.
#[derive(clap::Args, Debug)]
pub(crate) struct ClassArgs {
    /// File or folder with the `WsBusinessClass` resources of the cluster: what they forbid is a problem, and what they
    /// give by default is filled in. `kubectl get wsbusinessclasses -o yaml` writes one. May be repeated.
    #[arg(long = "class", value_name = "FILE")]
    classes: Vec<PathBuf>,
    /// Namespace of declarations that name none. Default: `default`, or with --cluster that of kubectl.
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
}

impl ClassArgs {
    /// The namespace that was given.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether classes were given.
    pub(crate) fn names_files(&self) -> bool {
        !self.classes.is_empty()
    }

    /// The classes that were given.
    ///
    /// # Errors
    /// A class can't be read.
    pub(crate) fn read(&self) -> anyhow::Result<Classes> {
        let namespace = self.namespace.clone().unwrap_or_else(|| "default".to_owned());
        if self.classes.is_empty() {
            return Ok(Classes { known: None, namespace });
        }
        let read = contents(&find(&self.classes)?)?;
        if let Some(finding) = read.findings.first() {
            anyhow::bail!("{finding}");
        }
        anyhow::ensure!(!read.classes.is_empty(), "--class names no file with a WsBusinessClass");
        Ok(Classes { known: Some(read.classes.into_iter().map(Known::from).collect()), namespace })
    }
}

/// The classes of a cluster, as far as they are known.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    /// `None`: nothing is known, so nothing is forbidden.
    known: Option<Vec<Known>>,
    /// Of declarations that name none.
    namespace: String,
}

#[derive(Clone, Debug)]
struct Known {
    /// Of one that can't be read its name, its age, and whether it is the default.
    class: WsBusinessClass,
    /// Why it can't be read: nothing new is accepted under it.
    unreadable: Option<String>,
}

impl From<WsBusinessClass> for Known {
    fn from(class: WsBusinessClass) -> Self {
        Self { class, unreadable: None }
    }
}

impl Known {
    /// As it is stored; `None`: it is no resource.
    fn read(value: &Value) -> Option<Self> {
        let problems = match validate::class::parse(value) {
            Ok(class) => return Some(Self::from(class)),
            Err(problems) => problems,
        };
        let spec = json!({"default": value["spec"]["default"] == true});
        let class = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": value["metadata"], "spec": spec});
        let why = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ");
        Some(Self { class: serde_json::from_value(class).ok()?, unreadable: Some(why) })
    }

    fn name(&self) -> &str {
        self.class.metadata.name.as_deref().unwrap_or_default()
    }

    fn readable(&self) -> Result<&WsBusinessClass, Box<Problem>> {
        match &self.unreadable {
            None => Ok(&self.class),
            Some(why) => Err(Box::new(validate::class::unreadable(self.name(), why))),
        }
    }
}

impl Classes {
    /// All classes of a cluster, as they are stored.
    pub(crate) fn of<'a>(all: impl IntoIterator<Item = &'a Value>) -> Self {
        Self { known: Some(all.into_iter().filter_map(Known::read).collect()), namespace: "default".to_owned() }
    }

    /// The same with these classes applied.
    pub(crate) fn with(&self, applied: &[WsBusinessClass]) -> Self {
        let mut all = self.known.clone().unwrap_or_default();
        for class in applied {
            let mut new = Known::from(class.clone());
            let same = all.iter().position(|known| known.name() == new.name());
            // The age of a stored class decides between several defaults; a new one is the youngest.
            if let Some(at) = same {
                new.class.metadata = all.remove(at).class.metadata;
            }
            all.push(new);
        }
        Self { known: self.known.is_some().then_some(all), namespace: self.namespace.clone() }
    }

    /// Whether anything is known.
    pub(crate) fn are_known(&self) -> bool {
        self.known.is_some()
    }

    /// The class of this name, as it is stored.
    pub(crate) fn named(&self, name: &str) -> Option<&WsBusinessClass> {
        self.known.iter().flatten().find(|known| known.name() == name)?.readable().ok()
    }

    /// The name of the class that a business has.
    pub(crate) fn name_of(&self, business: &WsBusiness) -> Option<&str> {
        self.known_of(business).ok().flatten().map(Known::name)
    }

    /// The class of a business.
    ///
    /// # Errors
    /// It does not exist, or can't be read.
    pub(crate) fn class_of(&self, business: &WsBusiness) -> Result<Option<&WsBusinessClass>, Box<Problem>> {
        let found = self.known_of(business).map_err(|name| Box::new(validate::class::not_found(name)))?;
        found.map(Known::readable).transpose()
    }

    fn known_of<'a>(&self, business: &'a WsBusiness) -> Result<Option<&Known>, &'a str> {
        let known = self.known.as_deref().unwrap_or_default();
        let named = business.spec.class_name.as_deref().filter(|_| self.known.is_some());
        class_of(named, known, |known| (&known.class.metadata, known.class.spec.default))
    }

    /// Fills in what its class gives a business.
    pub(crate) fn fill(&self, business: &mut WsBusiness) {
        if let Ok(Some(class)) = self.class_of(business) {
            validate::class::fill(&class.spec, business);
        }
    }

    /// What the class of a business forbids in it, once it is filled in.
    pub(crate) fn forbidden(&self, business: &mut WsBusiness) -> Vec<Problem> {
        let class = match self.class_of(business) {
            Ok(None) => return Vec::new(),
            Ok(Some(class)) => class,
            Err(problem) => return vec![*problem],
        };
        validate::class::fill(&class.spec, business);
        let mut placed = business.clone();
        placed.metadata.namespace.get_or_insert_with(|| self.namespace.clone());
        validate::class::check(class, &placed)
    }

    /// The declarations that the classes allow, filled in with what these give, and what they forbid of the others.
    pub(crate) fn permit(&self, declarations: Vec<Declaration>) -> (Vec<Declaration>, Vec<Finding>) {
        let (mut permitted, mut findings) = (Vec::new(), Vec::new());
        for mut declaration in declarations {
            let problems = self.forbidden(&mut declaration.business);
            if problems.is_empty() {
                permitted.push(declaration);
            } else {
                findings.extend(problems.into_iter().map(|problem| declaration.finding(problem)));
            }
        }
        (permitted, findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_that_cannot_be_read_allows_nothing_and_is_named() {
        let class = json!({
            "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "new"},
            "spec": {"default": true, "limits": {"colours": 3}},
        });
        let mut business: WsBusiness = serde_json::from_value(json!({
            "apiVersion": API_VERSION, "kind": "WsBusiness", "metadata": {"name": "pay"},
            "spec": {"clientTypes": ["app"], "routes": []},
        }))
        .unwrap();
        let classes = Classes::of([&class]);
        let problems = classes.forbidden(&mut business);
        assert!(problems.len() == 1 && problems[0].to_string().contains("class new can't be read"), "{problems:?}");
        assert!(problems[0].to_string().contains("colours"), "{problems:?}");
        assert_eq!(classes.name_of(&business), Some("new"));
    }
}
