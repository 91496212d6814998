//! The command line: one file for each verb. All but `serve` and `completion` are clients of
//! the daemon's socket.
//!
//! `connect` finds the daemon, `parse` reads the values of flags, `failure` is how a verb ends
//! badly, `table` and `human` are what people see, `attach`, `signals` and `progress` what
//! `run`, `exec`, `attach` (which is `join.rs`) and `pull` have in common.

mod attach;
pub mod completion;
mod connect;
mod cp;
mod credentials;
mod doctor;
mod exec;
mod failure;
mod human;
mod image;
mod images;
mod inspect;
mod join;
mod kill;
mod logs;
mod many;
mod parse;
mod pause;
mod pods;
mod port_forward;
mod progress;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
pub mod serve;
mod signals;
mod stats;
mod stop;
mod table;
mod version;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::Flags;
use crate::error::chain;

/// The command line is not one of ours.
const USAGE: u8 = 2;

/// Runs containers: a container runtime for Kubernetes nodes and for people
#[derive(Debug, clap::Parser)]
#[command(name = "berth", version, propagate_version = false)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can be.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// A client of the daemon.
    #[command(flatten)]
    Client(Verb),
    /// Run the daemon
    Serve(Flags),
    /// Print a script that completes commands in a shell
    Completion(completion::Args),
}

/// What a client can ask for.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Run a container
    Run(Box<run::Args>),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(ps::Args),
    /// List pods, those of Kubernetes too
    Pods(pods::Args),
    /// Run a command in a container
    Exec(Box<exec::Args>),
    /// Join the input and output of a container
    Attach(join::Args),
    /// Copy files between a container and here
    Cp(cp::Args),
    /// Make ports of this machine lead into a pod
    PortForward(port_forward::Args),
    /// Show what a container wrote
    Logs(logs::Args),
    /// Stop containers
    Stop(stop::Args),
    /// Send a signal to containers
    Kill(kill::Args),
    /// Remove containers
    Rm(rm::Args),
    /// Pause all programs of containers
    Pause(pause::Args),
    /// Let paused containers go on
    #[command(visible_alias = "unpause")]
    Resume(pause::Args),
    /// Tell all that is known of containers, pods or images, as JSON
    Inspect(inspect::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// Pull an image
    Pull(pull::Args),
    /// List images
    Images(images::Args),
    /// Remove images
    Rmi(rmi::Args),
    /// Import, export and prune images
    #[command(subcommand)]
    Image(image::Command),
    /// Check this machine, and say what to do about each gap
    Doctor(doctor::Args),
    /// Tell the versions of this program and of the daemon
    Version(version::Args),
}

/// Does what a verb says, to its exit code; what went wrong is told on standard error. Must be
/// called in a runtime, which the caller ends without waiting for what is still in it.
pub async fn run(verb: Verb) -> ExitCode {
    let outcome = match verb {
        Verb::Run(args) => run::run(*args).await,
        Verb::Ps(args) => ps::run(args).await,
        Verb::Pods(args) => pods::run(args).await,
        Verb::Exec(args) => exec::run(*args).await,
        Verb::Attach(args) => join::run(args).await,
        Verb::Cp(args) => cp::run(args).await,
        Verb::PortForward(args) => port_forward::run(args).await,
        Verb::Logs(args) => logs::run(args).await,
        Verb::Stop(args) => stop::run(args).await,
        Verb::Kill(args) => kill::run(args).await,
        Verb::Rm(args) => rm::run(args).await,
        Verb::Pause(args) => pause::pause(args).await,
        Verb::Resume(args) => pause::resume(args).await,
        Verb::Inspect(args) => inspect::run(args).await,
        Verb::Stats(args) => stats::run(args).await,
        Verb::Pull(args) => pull::run(args).await,
        Verb::Images(args) => images::run(args).await,
        Verb::Rmi(args) => rmi::run(args).await,
        Verb::Image(command) => image::run(command).await,
        Verb::Doctor(args) => doctor::run(args).await,
        Verb::Version(args) => version::run(args).await,
    };
    outcome.unwrap_or_else(|failure| {
        failure.tell();
        failure.exit_code()
    })
}

/// Tells what is wrong with a command line, or prints the help that it asked for. The code is clap's 2, but for `run`
/// docker's 125: whatever else it ends with may be the program's own.
pub fn misused(error: &clap::Error, mut args: impl Iterator<Item = OsString>) -> ExitCode {
    // If there is no reader, there is nobody to tell.
    error.print().ok();
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if args.nth(1).is_some_and(|verb| verb == "run") => ExitCode::from(failure::CALL_FAILED),
        _ => ExitCode::from(USAGE),
    }
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_but_those_without_a_daemon_takes_the_socket() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                command.get_subcommands().for_each(|verb| check(verb, &path));
            } else if !path.ends_with(" completion") {
                let has = command.get_arguments().any(|flag| flag.get_long() == Some("socket"));
                assert!(has, "{path} has no --socket");
            }
        }
        check(&Cli::command(), "");
    }
}
