//! The command line: one file for each verb.

pub mod serve;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::Flags;
use crate::error::chain;

/// Runs containers: a container runtime for Kubernetes nodes and for people
#[derive(Debug, clap::Parser)]
#[command(name = "berth", version, propagate_version = false)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(Flags),
    /// Tell the version of this program
    Version,
}

/// Prints the version of this program.
pub fn version() -> ExitCode {
    finish(writeln!(io::stdout(), "berth {}", env!("CARGO_PKG_VERSION")))
}

/// Prints what went wrong with the whole chain, for a person.
pub fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    // If standard error is gone, there is nobody to tell.
    writeln!(io::stderr(), "berth: {}", chain(error)).ok();
    ExitCode::FAILURE
}

/// The exit code after writing to standard output; a reader that went away is no failure.
pub(crate) fn finish(written: io::Result<()>) -> ExitCode {
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}
