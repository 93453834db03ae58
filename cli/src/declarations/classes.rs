//! `--class`: checks declarations by the platform team's policy.

use std::path::PathBuf;

use wirepost_core::{
    WsBusiness,
    class::{WsBusinessClass, class_of},
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
        Ok(Classes { known: Some(read.classes), namespace })
    }
}

/// The classes of a cluster, as far as they are known.
#[derive(Debug)]
pub(crate) struct Classes {
    /// `None`: nothing is known, so nothing is forbidden.
    known: Option<Vec<WsBusinessClass>>,
    /// Of declarations that name none.
    namespace: String,
}

impl Classes {
    /// All classes of a cluster.
    pub(crate) fn of(all: impl IntoIterator<Item = WsBusinessClass>) -> Self {
        Self { known: Some(all.into_iter().collect()), namespace: "default".to_owned() }
    }

    /// The class of a business.
    ///
    /// # Errors
    /// The name of a class that does not exist.
    fn class_of<'a>(&self, business: &'a WsBusiness) -> Result<Option<&WsBusinessClass>, &'a str> {
        let known = self.known.as_deref().unwrap_or_default();
        let named = business.spec.class_name.as_deref().filter(|_| self.known.is_some());
        class_of(named, known, |class| (&class.metadata, class.spec.default))
    }

    /// Fills in what its class gives a business.
    pub(crate) fn fill(&self, business: &mut WsBusiness) {
        if let Ok(Some(class)) = self.class_of(&business.clone()) {
            validate::class::fill(&class.spec, business);
        }
    }

    /// The declarations that the classes allow, filled in with what these give, and what they forbid of the others.
    pub(crate) fn permit(&self, declarations: Vec<Declaration>) -> (Vec<Declaration>, Vec<Finding>) {
        let (mut permitted, mut findings) = (Vec::new(), Vec::new());
        for mut declaration in declarations {
            let named = declaration.business.clone();
            let problems = match self.class_of(&named) {
                Ok(None) => Vec::new(),
                Ok(Some(class)) => {
                    let business = &mut declaration.business;
                    validate::class::fill(&class.spec, business);
                    let mut placed = business.clone();
                    placed.metadata.namespace.get_or_insert_with(|| self.namespace.clone());
                    validate::class::check(class, &placed)
                }
                Err(name) => vec![validate::class::not_found(name)],
            };
            if problems.is_empty() {
                permitted.push(declaration);
            } else {
                findings.extend(problems.into_iter().map(|problem| declaration.finding(problem)));
            }
        }
        (permitted, findings)
    }
}
