//! What can go wrong in the daemon; each variant is a different act for the caller.

use std::fmt;
use std::io;
use std::time::Duration;

/// Any other error, as a source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of most functions of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the daemon. The chain of sources says more; no text repeats its source.
/// `rpc/status.rs` gives each variant its gRPC code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object is not there, and the call needs it.
    #[error("{what} does not exist")]
    NotFound {
        /// Such as "container 3f2a..".
        what: String,
    },
    /// Another object has the name, or another process has the resource.
    #[error("{what} is taken: {problem}")]
    Exists {
        /// Such as "the name web_default_1".
        what: String,
        /// Who has it, and what to do.
        problem: String,
    },
    /// The request or a file cannot be right; asking again changes nothing.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field as the interface calls it, such as `linux.resources.cpu_period`.
        field: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The object is there, but not in a state in which this can be done.
    #[error("{what} is {state}: {problem}")]
    WrongState {
        /// Such as "container 3f2a..".
        what: String,
        /// Such as "exited".
        state: String,
        /// What cannot be done, and what to do instead.
        problem: String,
    },
    /// Not now; the same call may succeed later.
    #[error("{what}: {problem}")]
    Unavailable {
        /// The part that cannot serve.
        what: String,
        /// Why, and for how long.
        problem: String,
    },
    /// Too many at once; the same call succeeds when there are fewer.
    #[error("{what}: {problem}")]
    Exhausted {
        /// The part that has a bound.
        what: String,
        /// Of what there is too much.
        problem: String,
    },
    /// A deadline passed.
    #[error("{doing}: not done after {after:?}")]
    Timeout {
        /// What was under way.
        doing: String,
        /// The deadline.
        after: Duration,
    },
    /// The interface has it, this version of berth has not.
    #[error("{what} is not served by this version of berth")]
    Unimplemented {
        /// The call, or the field with its value.
        what: String,
    },
    /// A failure that the kubelet knows by name.
    #[error("{reason}")]
    Known {
        /// The name.
        reason: Reason,
        /// What happened.
        source: BoxError,
    },
    /// The disk or another call of the system failed.
    #[error("{doing}")]
    Io {
        /// Such as "write /var/lib/berth/images/3f2a..".
        doing: String,
        /// The error of the call.
        source: io::Error,
    },
    /// An image cannot be had, or not kept.
    #[error(transparent)]
    Image(Box<images::Error>),
    /// A step failed, for a reason that another part of berth has.
    #[error("{doing}")]
    Failed {
        /// The step and its object.
        doing: String,
        /// The reason.
        source: BoxError,
    },
}

/// The failures that clients find by their name in the text of an error: the kubelet
/// (k8s.io/cri-api, `pkg/errors`) and berth's own command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A pull could not reach the registry.
    RegistryUnavailable,
    /// A pulled image has no good signature.
    SignatureValidationFailed,
    /// Recursive read-only mounts were asked for and are not to be had.
    RroUnsupported,
    /// An image could not be mounted as a volume.
    ImageVolumeMountFailed,
    /// The program to run is not in the container: exit code 127 of `berth run` and `exec`.
    CommandNotFound,
    /// The program is there and cannot be executed: exit code 126.
    CommandNotExecutable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::RegistryUnavailable => "RegistryUnavailable",
            Reason::SignatureValidationFailed => "SignatureValidationFailed",
            Reason::RroUnsupported => "RROUnsupported",
            Reason::ImageVolumeMountFailed => "ImageVolumeMountFailed",
            Reason::CommandNotFound => "CommandNotFound",
            Reason::CommandNotExecutable => "CommandNotExecutable",
        })
    }
}

impl Error {
    /// An [`Error::NotFound`], such as `not_found("container", id)`.
    pub fn not_found(kind: &str, name: impl fmt::Display) -> Error {
        Error::NotFound { what: format!("{kind} {name}") }
    }

    /// Whoever waits for a daemon that ends is told so.
    pub fn ending() -> Error {
        Error::Unavailable { what: "the daemon".to_owned(), problem: "it is ending".to_owned() }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Invalid { field: field.into(), problem: problem.into() }
    }
}

impl From<runtime::Error> for Error {
    fn from(error: runtime::Error) -> Error {
        match error {
            runtime::Error::Sys { doing, source } => Error::Io { doing, source },
            runtime::Error::Invalid(problem) => Error::invalid("container", problem),
            runtime::Error::NotFound(what) => Error::NotFound { what },
            runtime::Error::Timeout(doing) => {
                Error::Failed { doing, source: "it did not end in time".into() }
            }
        }
    }
}

impl From<images::Error> for Error {
    /// Keeps what the caller can act on; all else is a failed step.
    fn from(error: images::Error) -> Error {
        let mut inner = &error;
        while let images::Error::Shared(shared) = inner {
            inner = shared;
        }
        match inner {
            images::Error::Invalid { what, problem } => Error::invalid(what, problem),
            images::Error::NotFound { what } => Error::NotFound { what: what.clone() },
            images::Error::Unavailable { .. } => {
                Error::Known { reason: Reason::RegistryUnavailable, source: Box::new(error) }
            }
            images::Error::Denied { .. }
            | images::Error::Limit { .. }
            | images::Error::Io { .. }
            | images::Error::Shared(_) => Error::Image(Box::new(error)),
        }
    }
}

/// Tells what failed when an error passes by.
pub trait Doing<T> {
    /// Wraps an error of the system in [`Error::Io`].
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Io { doing: doing().into(), source: source.into() })
    }
}

/// The error and all its sources in one line. A source that the text before it already
/// ends with is left out: not every library leaves it to the chain.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !part.is_empty() && !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_chain(error: &Error, expected: &str) {
        assert_eq!(chain(error), expected);
    }

    fn refused() -> io::Error {
        io::Error::from_raw_os_error(libc::ECONNREFUSED)
    }

    #[test]
    fn a_chain_names_every_step_once() {
        let io = Error::Io { doing: "connect to 10.0.0.1:5000".into(), source: refused() };
        let step = Error::Failed { doing: "pull image web".into(), source: Box::new(io) };
        check_chain(
            &step,
            "pull image web: connect to 10.0.0.1:5000: Connection refused (os error 111)",
        );
        let repeats = Error::Io {
            doing: "dial: Connection refused (os error 111)".into(),
            source: refused(),
        };
        check_chain(&repeats, "dial: Connection refused (os error 111)");
    }

    #[test]
    fn an_error_of_images_keeps_what_the_caller_can_act_on() {
        let unavailable = || images::Error::Unavailable {
            what: "get manifest web:1".into(),
            problem: "no connection".into(),
            source: Some(Box::new(refused())),
        };
        let known = "RegistryUnavailable: get manifest web:1: no connection: Connection refused (os error 111)";
        check_chain(&unavailable().into(), known);
        check_chain(&images::Error::Shared(std::sync::Arc::new(unavailable())).into(), known);
        let missing: Error = images::Error::NotFound { what: "image web:2".into() }.into();
        assert!(matches!(missing, Error::NotFound { .. }));
        check_chain(&missing, "image web:2 does not exist");
        let invalid: Error =
            images::Error::invalid("image reference \"A\"", "use lower case").into();
        assert!(matches!(invalid, Error::Invalid { .. }));
    }
}
