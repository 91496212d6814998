//! What can go wrong in this crate, and how a failed call gets its story.

use std::io;

/// An error of the runtime. Each variant is a different act for the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed; `doing` says at what, to what.
    #[error("{doing}")]
    Sys {
        /// Such as "mount /data from /srv/data".
        doing: String,
        /// The error of the call.
        source: io::Error,
    },
    /// What was asked for cannot be right, whatever the state of the machine.
    #[error("{0}")]
    Invalid(String),
    /// The object does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The work did not end in time.
    #[error("{0} did not end in time")]
    Timeout(String),
}

impl Error {
    /// The error number of the system call behind this error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Sys { source, .. } => source.raw_os_error(),
            Error::NotFound(_) => Some(libc::ENOENT),
            Error::Invalid(_) | Error::Timeout(_) => None,
        }
    }
}

/// The result of most functions of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Tells what a failed system call was for.
pub trait Doing<T> {
    /// Wraps the error in [`Error::Sys`] with the text of `doing`.
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Sys { doing: doing().into(), source: source.into() })
    }
}
