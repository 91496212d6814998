//! The limit of open files: the daemon takes all that it may have, what it starts gets the
//! old limit back, for old programs loop over every descriptor that they may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimit {
    /// What the daemon was started with, and shims and containers are to be.
    pub before: Rlimit,
    /// How many descriptors the daemon may have now.
    pub now: u64,
}

/// Raises the daemon's own limit to the hard one.
pub fn raise() -> FileLimit {
    let before = getrlimit(Resource::Nofile);
    let most = Rlimit { current: before.maximum, maximum: before.maximum };
    let limit = match setrlimit(Resource::Nofile, most) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            before
        }
    };
    FileLimit { before, now: limit.current.unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, limit.before.maximum);
        assert_eq!(limit.now, after.current.unwrap_or(u64::MAX));
    }
}
