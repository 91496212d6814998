//! `berth exec`: a command in a running container.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use proto::control::exec_request::Message as Say;
use proto::control::exec_response::Message;
use proto::control::{ExecRequest, ExecResponse, ExecSpec};
use tokio_stream::StreamExt;

use super::attach::{
    Ask, Output, Told, Until, Wanted, follow, requests, require_terminal, window_size,
};
use super::connect::{Socket, connect};
use super::failure::{Failure, Outcome};
use super::parse::{self, Variable};
use super::run::environment;
use super::signals::Signals;

/// The flags of `berth exec`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "berth exec [OPTIONS] CONTAINER COMMAND [ARG]...")]
pub struct Args {
    /// Do not wait for the command
    #[arg(short, long)]
    detach: bool,
    /// Set a variable: NAME=value, or NAME to pass one on
    #[arg(short, long, value_name = "VARIABLE", value_parser = OsStringValueParser::new().try_map(parse::variable))]
    env: Vec<Variable>,
    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    env_file: Vec<PathBuf>,
    /// User, or user:group, by name or number
    #[arg(short, long, default_value = "", hide_default_value = true)]
    user: String,
    /// Working directory in the container
    #[arg(short, long, value_name = "PATH", default_value = "", hide_default_value = true)]
    workdir: String,
    /// All capabilities, no filter
    #[arg(long)]
    privileged: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    socket: Socket,
    /// The container, and the command
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_name = "CONTAINER", hide = true)]
    words: Vec<String>,
}

impl Args {
    /// The request, but for the environment.
    fn spec(&self) -> ExecSpec {
        let (container, args) = self.words.split_first().expect("clap wants two words at least");
        ExecSpec {
            container: container.clone(),
            args: args.to_vec(),
            user: self.user.clone(),
            working_directory: self.workdir.clone(),
            privileged: self.privileged,
            detach: self.detach,
            terminal: self.tty,
            interactive: self.interactive,
            ..ExecSpec::default()
        }
    }
}

/// Runs a command.
pub(super) async fn run(args: Args) -> Outcome {
    exec(args).await.map_err(Failure::of_exec)
}

async fn exec(args: Args) -> Outcome {
    require_terminal(args.interactive && !args.detach, args.tty)?;
    let mut spec = args.spec();
    spec.terminal_size = window_size().filter(|_| args.tty);
    spec.env = environment(&args.env_file, &args.env)?;
    let mut client = connect(&args.socket).await?;
    let signals = Signals::catch()?;
    let message = |message| ExecRequest { message: Some(message) };
    let (asked, ask) = requests(message(Say::Spec(spec)), move |ask| {
        message(match ask {
            Ask::Signal(number) => Say::Signal(number),
            Ask::Stdin(bytes) => Say::Stdin(bytes),
            Ask::StdinClosed => Say::StdinClosed(true),
            Ask::Resize(size) => Say::Resize(size),
        })
    });
    let answers = client.exec(asked).await?.into_inner();
    let messages = answers.map(|answer| answer.map(told));
    let until = if args.detach { Until::Start } else { Until::Exit };
    // A command's terminal goes with us, so there is no way to leave it but to end it.
    let wanted = Wanted { until, proxy: true, keys: None };
    follow(messages, signals, ask, &Output::standard()?, wanted).await
}

fn told(answer: ExecResponse) -> Told {
    match answer.message {
        Some(Message::Started(started)) => Told::Started(started),
        Some(Message::Stdout(bytes)) => Told::Stdout(bytes),
        Some(Message::Stderr(bytes)) => Told::Stderr(bytes),
        Some(Message::StdinTaken(count)) => Told::StdinTaken(count),
        Some(Message::Exited(exited)) => Told::Exited(exited),
        None => Told::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, Verb};

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = ["berth", "exec"].into_iter().chain(line.split_whitespace());
        let Command::Client(Verb::Exec(args)) = Cli::try_parse_from(words)?.command else {
            panic!("{line}");
        };
        Ok(*args)
    }

    #[track_caller]
    fn check(line: &str, expected: ExecSpec) {
        assert_eq!(parse(line).unwrap().spec(), expected, "{line}");
    }

    fn plain(args: &[&str]) -> ExecSpec {
        ExecSpec {
            container: "web".into(),
            args: args.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecSpec::default()
        }
    }

    #[test]
    fn what_follows_the_container_is_the_command() {
        check("web true", plain(&["true"]));
        check("web ls -l -d --", plain(&["ls", "-l", "-d", "--"]));
        check("-it web sh", ExecSpec { interactive: true, terminal: true, ..plain(&["sh"]) });
        check("-d web sh -c -e", ExecSpec { detach: true, ..plain(&["sh", "-c", "-e"]) });
        check(
            "-u www -w /srv --privileged web id",
            ExecSpec {
                user: "www".into(),
                working_directory: "/srv".into(),
                privileged: true,
                ..plain(&["id"])
            },
        );
    }

    #[test]
    fn a_command_is_needed() {
        for line in ["", "web"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
