//! Networks of sandboxes. So far: what a pod knows of names.

mod files;
pub mod resolv;

use std::io;

/// What can go wrong with a network. Each variant is a different act for the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{doing}{detail}")]
    Kernel {
        /// What was asked of it, to what: "make link b0a1b2c3d000002".
        doing: String,
        /// What it said besides the error number, in parentheses; may be empty.
        detail: String,
        /// The error number.
        source: io::Error,
    },
    /// What was asked for cannot be right, whatever the state of the machine.
    #[error("{0}")]
    Invalid(String),
}

/// The result of most functions of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn kernel(doing: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Kernel { doing: doing.into(), detail: String::new(), source: source.into() }
    }
}
