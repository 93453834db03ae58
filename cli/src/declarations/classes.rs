//! `--class`: checks declarations by the platform team's policy.

use std::path::PathBuf;

use wirepost_core::{
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
    /// Namespace of declarations that name none, for the classes' rules.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
}

impl ClassArgs {
    /// The declarations that the classes allow, with the classes' defaults filled in, and the problems of the others.
    ///
    /// # Errors
    /// A class can't be read.
    pub(super) fn permit(&self, declarations: Vec<Declaration>) -> anyhow::Result<(Vec<Declaration>, Vec<Finding>)> {
        if self.classes.is_empty() {
            return Ok((declarations, Vec::new()));
        }
        let read = contents(&find(&self.classes)?)?;
        if let Some(finding) = read.findings.first() {
            anyhow::bail!("{finding}");
        }
        anyhow::ensure!(!read.classes.is_empty(), "--class names no file with a WsBusinessClass");
        Ok(self.permit_by(declarations, &read.classes))
    }

    fn permit_by(
        &self,
        declarations: Vec<Declaration>,
        classes: &[WsBusinessClass],
    ) -> (Vec<Declaration>, Vec<Finding>) {
        let (mut permitted, mut findings) = (Vec::new(), Vec::new());
        for mut declaration in declarations {
            let business = &mut declaration.business;
            let named = business.spec.class_name.clone();
            let class = class_of(named.as_deref(), classes, |class| (&class.metadata, class.spec.default));
            let problems = match class {
                Ok(None) => Vec::new(),
                Ok(Some(class)) => {
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
