//! How a verb fails: one line for a person, an exit code for a script.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use tonic::{Code, Status};

use super::human::printable;
use crate::error::{Reason, chain};

/// The exit code of a verb that failed.
pub(super) const FAILED: u8 = 1;
/// `run`, as docker has it: the daemon or the call failed.
pub(super) const CALL_FAILED: u8 = 125;
/// `run` and `exec`: the command is there and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// `run` and `exec`: the command is not there.
const NOT_FOUND: u8 = 127;
/// What a shell adds to the number of the signal that ended a program.
pub(super) const SIGNALLED: u8 = 128;

/// Why a verb ends without having done what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// What to tell, without the name of the program; empty where all is told.
    pub(super) text: String,
    /// The exit code.
    pub(super) code: u8,
}

/// What a verb comes to.
pub(super) type Outcome = Result<ExitCode, Failure>;

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code: FAILED }
    }

    /// Ends with a code and without a word.
    pub(super) fn silent(code: u8) -> Failure {
        Failure { text: String::new(), code }
    }

    /// A failed step with its reason.
    pub(super) fn step(doing: impl Display, error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::new(format!("{doing}: {}", chain(error)))
    }

    /// The code that docker's `run` has for this.
    pub(super) fn of_run(self) -> Failure {
        self.of_command(CALL_FAILED)
    }

    /// The code that docker's `exec` has for this.
    pub(super) fn of_exec(self) -> Failure {
        self.of_command(FAILED)
    }

    fn of_command(mut self, otherwise: u8) -> Failure {
        let says = |reason: Reason| self.text.contains(&format!("{reason}:"));
        if self.code == FAILED {
            self.code = if says(Reason::CommandNotFound) {
                NOT_FOUND
            } else if says(Reason::CommandNotExecutable) {
                NOT_EXECUTABLE
            } else {
                otherwise
            };
        }
        self
    }

    /// Names what was being done in front.
    pub(super) fn about(mut self, doing: impl Display) -> Failure {
        self.text = format!("{doing}: {}", self.text);
        self
    }

    /// Tells it on standard error, on one line.
    pub(super) fn tell(&self) {
        if !self.text.is_empty() {
            tell(&self.text);
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl From<Status> for Failure {
    /// The daemon's own text. A connection that broke has the reason in its sources.
    fn from(status: Status) -> Failure {
        let text = match std::error::Error::source(&status) {
            Some(source) => format!(
                "the connection to the daemon broke, it may have been stopped: {}",
                chain(source)
            ),
            None if status.message().is_empty() => {
                format!("the daemon answered {} without a text", status.code().description())
            }
            None if status.code() == Code::Unimplemented => {
                format!("{}; is the daemon older than this program?", status.message())
            }
            None => status.message().to_owned(),
        };
        Failure { text, code: FAILED }
    }
}

/// One line on standard error. If that is gone, there is nobody to tell.
pub(super) fn tell(text: &str) {
    writeln!(io::stderr(), "berth: {}", printable(text)).ok();
}

/// Waits for work that takes a moment, unless the daemon is stuck.
pub(super) async fn within<T>(
    deadline: std::time::Duration,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(deadline, work).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            Err(Failure::new(format!("the daemon did not answer within {} s", deadline.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_code(text: &str, expected: u8) {
        assert_eq!(Failure::new(text).of_run().code, expected, "{text}");
    }

    #[test]
    fn run_and_exec_have_dockers_codes() {
        check_code("CommandNotFound: execute nope: no such file", 127);
        check_code("start container 3f: CommandNotFound: nope is not there", 127);
        check_code("start container 3f: CommandNotExecutable: /etc/passwd", 126);
        check_code("image nope does not exist", 125);
        check_code("--env: CommandNotFound is no value", 125);
        assert_eq!(Failure::silent(137).of_run().code, 137);
        assert_eq!(Failure::new("container web does not exist").of_exec().code, 1);
        assert_eq!(Failure::new("CommandNotFound: execute nope").of_exec().code, 127);
    }

    #[test]
    fn the_daemons_text_is_the_text() {
        let failure = Failure::from(Status::not_found("image web does not exist"));
        assert_eq!((failure.text.as_str(), failure.code), ("image web does not exist", 1));
        let failure = Failure::from(Status::unimplemented("Doctor is not served"));
        assert_eq!(failure.text, "Doctor is not served; is the daemon older than this program?");
        let failure = Failure::from(Status::internal(""));
        assert!(failure.text.contains("without a text"), "{}", failure.text);
    }

    #[test]
    fn a_broken_connection_is_told_with_its_reason() {
        let broken = io::Error::from_raw_os_error(libc::EPIPE);
        let failure = Failure::from(Status::from_error(Box::new(broken)));
        assert!(failure.text.contains("Broken pipe"), "{}", failure.text);
        assert!(failure.text.starts_with("the connection to the daemon broke"));
    }
}
