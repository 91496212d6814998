//! The only place where an error becomes a gRPC status.
//!
//! The kubelet acts on three codes: NotFound, Unimplemented and DeadlineExceeded. Of a
//! failed pull it looks at the beginning of the text, and only when the code is Unknown,
//! so Unknown is the code of everything without a meaning of its own.

use std::error::Error as _;
use std::sync::Arc;

use tonic::{Code, Status};

use crate::error::{Error, Reason, chain};

/// The longest text of a status. It travels in a header, percent-encoded, and gRPC's C
/// library refuses headers of more than 8 KiB in all.
const LONGEST_TEXT: usize = 2048;

impl From<Error> for Status {
    /// The text is the whole chain; the error itself stays the status's source, for the log.
    fn from(error: Error) -> Status {
        let mut status = Status::new(code(&error), text(&error));
        status.set_source(Arc::new(error));
        status
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotFound { .. } => Code::NotFound,
        Error::Exists { .. } => Code::AlreadyExists,
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::WrongState { .. } => Code::FailedPrecondition,
        Error::Unavailable { .. } => Code::Unavailable,
        Error::Exhausted { .. } => Code::ResourceExhausted,
        Error::Timeout { .. } => Code::DeadlineExceeded,
        Error::Unimplemented { .. } => Code::Unimplemented,
        Error::Known { .. } | Error::Image(_) | Error::Io { .. } | Error::Failed { .. } => {
            Code::Unknown
        }
    }
}

/// The chain, with the reason in front that the kubelet looks for there.
fn text(error: &Error) -> String {
    let chain = chain(error);
    let text = match pull_reason(error) {
        Some(reason) if !chain.starts_with(&reason.to_string()) => format!("{reason}: {chain}"),
        Some(_) | None => chain,
    };
    shorten(text)
}

/// The reason of a failed pull, wherever in the chain it is. The other two reasons are
/// found anywhere in the text.
fn pull_reason(error: &Error) -> Option<Reason> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        match error.downcast_ref() {
            Some(Error::Known {
                reason: reason @ (Reason::RegistryUnavailable | Reason::SignatureValidationFailed),
                ..
            }) => return Some(*reason),
            _ => next = error.source(),
        }
    }
    None
}

fn shorten(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let left_out = text.len() - end;
        text.truncate(end);
        text.push_str(&format!(".. ({left_out} bytes more in the daemon's log)"));
    }
    text
}

/// The text of a failed call for the log: never shortened. Sources that are not ours are
/// of the transport, and say in other words what the message says.
pub(super) fn whole_text(status: &Status) -> String {
    match our_error(status) {
        Some(error) => chain(error),
        None => status.message().to_owned(),
    }
}

fn our_error(status: &Status) -> Option<&Error> {
    status.source()?.downcast_ref()
}

/// Whether somebody must act: a part of the node or of berth itself is broken.
pub(super) fn is_grave(status: &Status) -> bool {
    matches!(our_error(status), Some(Error::Io { .. }))
        || matches!(status.code(), Code::Internal | Code::DataLoss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[track_caller]
    fn check(error: Error, code: Code, text: &str) {
        let status = Status::from(error);
        assert_eq!((status.code(), status.message()), (code, text));
    }

    fn known(reason: Reason) -> Error {
        Error::Known { reason, source: "dial tcp 10.0.0.1:5000: refused".into() }
    }

    #[test]
    fn each_error_has_its_code_and_its_chain() {
        check(Error::not_found("container", "abc"), Code::NotFound, "container abc does not exist");
        check(
            Error::invalid("linux.resources.cpu_period", "7 is below 1000; use 1000 to 1000000"),
            Code::InvalidArgument,
            "linux.resources.cpu_period: 7 is below 1000; use 1000 to 1000000",
        );
        let exists =
            Error::Exists { what: "the name a_b_0".into(), problem: "sandbox 1234 has it".into() };
        check(exists, Code::AlreadyExists, "the name a_b_0 is taken: sandbox 1234 has it");
        let state = Error::WrongState {
            what: "container c".into(),
            state: "exited".into(),
            problem: "make it anew".into(),
        };
        check(state, Code::FailedPrecondition, "container c is exited: make it anew");
        let unavailable =
            Error::Unavailable { what: "berth".into(), problem: "it is stopping".into() };
        check(unavailable, Code::Unavailable, "berth: it is stopping");
        let late = Error::Timeout { doing: "exec in c".into(), after: Duration::from_secs(3) };
        check(late, Code::DeadlineExceeded, "exec in c: not done after 3s");
        check(
            Error::Unimplemented { what: "CheckpointPod".into() },
            Code::Unimplemented,
            "CheckpointPod is not served by this version of berth",
        );
        let io =
            Error::Io { doing: "write /x".into(), source: std::io::Error::from_raw_os_error(28) };
        check(io, Code::Unknown, "write /x: No space left on device (os error 28)");
    }

    #[test]
    fn the_kubelet_finds_its_reason_in_front_of_a_failed_pull() {
        let expected = "RegistryUnavailable: dial tcp 10.0.0.1:5000: refused";
        check(known(Reason::RegistryUnavailable), Code::Unknown, expected);
        let wrapped = Error::Failed {
            doing: "pull web:1".into(),
            source: Box::new(known(Reason::SignatureValidationFailed)),
        };
        check(
            wrapped,
            Code::Unknown,
            "SignatureValidationFailed: pull web:1: SignatureValidationFailed: dial tcp 10.0.0.1:5000: refused",
        );
        let mount = Error::Failed {
            doing: "create c".into(),
            source: Box::new(known(Reason::ImageVolumeMountFailed)),
        };
        check(
            mount,
            Code::Unknown,
            "create c: ImageVolumeMountFailed: dial tcp 10.0.0.1:5000: refused",
        );
    }

    #[test]
    fn a_long_text_is_cut_for_the_client_and_whole_for_the_log() {
        let status = Status::from(Error::not_found("image", "ä".repeat(3000)));
        assert!(
            status.message().ends_with(".. (3973 bytes more in the daemon's log)"),
            "{}",
            status.message()
        );
        assert!(status.message().len() < LONGEST_TEXT + 100);
        assert_eq!(whole_text(&status).len(), "image  does not exist".len() + 6000);
    }
}
