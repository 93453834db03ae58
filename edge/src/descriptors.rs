//! Open files for the sockets that this edge offers. A container often begins with a soft limit of 1,024, though it may have more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Beyond the sockets: connections to the broker, files, those that are being refused.
const SPARE: u64 = 100;

/// Raises this process's soft limit of open files to the hard one. A sentence, if that is too few for so many sockets: without it a person
/// learns of it under load.
pub fn raise(max_connections: usize) -> Option<String> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    shortage(current, max_connections)
}

/// `may`: files, `None` without a limit.
fn shortage(may: Option<u64>, max_connections: usize) -> Option<String> {
    let sockets = u64::try_from(max_connections).unwrap_or(u64::MAX);
    let needed = sockets.saturating_add(sockets / 10).saturating_add(SPARE);
    let may = may.filter(|may| *may < needed)?;
    Some(format!(
        "this process may open {may} files, and {max_connections} sockets need {needed}: clients beyond that will hang; raise the hard limit of open files, or lower --max-connections"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_told_of_and_no_other() {
        let text = shortage(Some(1024), 20_000).unwrap();
        assert!(text.contains("1024") && text.contains("22100"), "{text}");
        assert_eq!(shortage(Some(22_100), 20_000), None);
        assert_eq!(shortage(None, 20_000), None);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        assert!(raise(0).is_none());
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (before.maximum, before.maximum));
    }
}
