//! What can go wrong with images; each variant is a different act for the caller.

use std::io;

/// An error of this crate. The chain of sources says more; no text repeats its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name, digest, document or archive that cannot be right.
    #[error("{what}: {problem}")]
    Invalid {
        /// The thing, as the user knows it: `image reference "a b"`, "layer sha256:ab..".
        what: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The registry, or the store, has no such image or blob.
    #[error("{what} does not exist")]
    NotFound {
        /// The image or blob.
        what: String,
    },
    /// The registry refuses: no credentials, wrong ones, or no right to the repository.
    #[error("{what}: access denied: {problem}")]
    Denied {
        /// The image and the registry.
        what: String,
        /// What the registry said, and which credentials were sent, without them.
        problem: String,
    },
    /// The registry cannot be reached or does not answer properly; trying later may help.
    #[error("{what}: {problem}")]
    Unavailable {
        /// The request.
        what: String,
        /// What happened.
        problem: String,
        /// The connection's own error, where there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A limit on what is taken from outside was passed.
    #[error("{what} is over the limit of {limit}")]
    Limit {
        /// What was read.
        what: String,
        /// The limit with its unit, and the setting that holds it.
        limit: String,
    },
    /// The disk or another call of the system failed.
    #[error("{doing}")]
    Io {
        /// Such as "unpack layer sha256:ab..: write usr/bin/x".
        doing: String,
        /// The error of the call.
        source: io::Error,
    },
    /// The same work failed for another caller who shared it.
    #[error(transparent)]
    Shared(#[from] std::sync::Arc<Error>),
}

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), problem: problem.into() }
    }
}

/// The result of most functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Tells what a failed call of the system was for.
pub(crate) trait Doing<T> {
    /// Wraps the error in [`Error::Io`] with the text of `doing`.
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Io { doing: doing().into(), source: source.into() })
    }
}

/// Text from outside, made fit for an error: control characters escaped, cut after `most` characters.
pub(crate) fn shown(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for (position, c) in text.chars().enumerate() {
        if position == most {
            shown.push_str("...");
            break;
        }
        // Bidirectional marks and other format characters would let a registry rewrite how the line reads.
        if c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Text from outside in quotes, made fit for an error: escaped, cut after `most` characters.
pub(crate) fn quoted(text: &str, most: usize) -> String {
    let cut: String = text.chars().take(most).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}
