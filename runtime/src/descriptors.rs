//! The limit of open files. A container often begins with a soft limit of 1,024, though it may have more. A few file descriptors are
//! reserved for the admin port: the soft limit stays that much below the hard one, and is lifted only while that port accepts.

use std::io;

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// File descriptors that only the admin port uses.
pub const RESERVED: u64 = 16;

/// Raises the soft limit of open files to the hard one, less what is [reserved](RESERVED). Returns the number of files that this process
/// may open now; `None` = no limit.
pub fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let Some(hard) = limit.maximum else { return limit.current };
    let wanted = hard.saturating_sub(reserved(hard));
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_ok() { Some(wanted) } else { limit.current }
}

/// At most a quarter of a small limit.
fn reserved(hard: u64) -> u64 {
    RESERVED.min(hard / 4)
}

/// Runs something that needs a file descriptor, with the reserved ones. It must not wait: others may take them meanwhile.
pub fn with_reserved<T>(work: impl FnOnce() -> T) -> T {
    let limit = getrlimit(Resource::Nofile);
    let lifted = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_ok();
    let done = work();
    if lifted {
        // The old value, which is always allowed.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    done
}

/// Whether an error means that the file descriptors of the process or of the machine have run out.
pub fn have_run_out(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, as the limit is the whole process's.
    #[test]
    fn the_soft_limit_rises_and_the_reserve_is_lent_for_a_moment() {
        let before = getrlimit(Resource::Nofile);
        let may = raise();
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (may, before.maximum));
        if let Some(hard) = before.maximum {
            assert_eq!(may, Some(hard - reserved(hard)));
        }
        with_reserved(|| assert_eq!(getrlimit(Resource::Nofile).current, before.maximum));
        assert_eq!(getrlimit(Resource::Nofile).current, after.current);
        assert_eq!((reserved(20), reserved(1 << 20)), (5, RESERVED));
    }

    #[test]
    fn running_out_is_known_by_its_number() {
        assert!(have_run_out(&Errno::MFILE.into()) && have_run_out(&Errno::NFILE.into()));
        assert!(!have_run_out(&Errno::CONNABORTED.into()) && !have_run_out(&io::Error::other("x")));
    }
}
