//! `berth logs`: what a container wrote, each stream to its descriptor.

use std::process::ExitCode;

use proto::control::LogsRequest;

use super::attach::Output;
use super::connect::{Socket, connect};
use super::failure::{Failure, Outcome};
use super::parse;

/// The flags of `berth logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on until the container has ended
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = Tail::parse)]
    tail: Tail,
    /// Only what was written since: 10m ago, or a time such as 2026-11-24T16:27:26Z
    #[arg(long, value_name = "TIME", value_parser = parse::since)]
    since: Option<i64>,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    #[command(flatten)]
    socket: Socket,
    /// The container, by id, beginning of an id, or name
    container: String,
}

/// Lines from the end; None is all. A type of its own, for clap takes an Option for a flag that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail(Option<u64>);

impl Tail {
    fn parse(text: &str) -> Result<Tail, String> {
        parse::tail(text).map(Tail)
    }
}

impl Args {
    fn request(&self) -> LogsRequest {
        LogsRequest {
            container: self.container.clone(),
            follow: self.follow,
            tail: self.tail.0,
            since: self.since.unwrap_or(0),
            timestamps: self.timestamps,
        }
    }
}

pub(super) async fn run(args: Args) -> Outcome {
    let mut client = connect(&args.socket).await?;
    let mut answers = client.logs(args.request()).await?.into_inner();
    let output = Output::standard()?;
    while let Some(answer) = answers.message().await? {
        if !answer.stdout.is_empty() {
            output.stdout(answer.stdout).await.map_err(not_written)?;
        }
        if !answer.stderr.is_empty() {
            output.stderr(answer.stderr).await.map_err(not_written)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn not_written(error: std::io::Error) -> Failure {
    // Whoever wanted to read has read enough.
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Failure::silent(0);
    }
    Failure::step("write output", &error)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, Verb};

    #[track_caller]
    fn check(line: &str, expected: LogsRequest) {
        let words = ["berth", "logs"].into_iter().chain(line.split_whitespace());
        let Command::Client(Verb::Logs(args)) = Cli::try_parse_from(words).unwrap().command else {
            panic!("{line}");
        };
        assert_eq!(args.request(), expected, "{line}");
    }

    #[test]
    fn flags_become_the_request() {
        let plain = || LogsRequest { container: "web".into(), ..Default::default() };
        check("web", plain());
        check("-f web", LogsRequest { follow: true, ..plain() });
        check(
            "-ft --tail 5 web",
            LogsRequest { follow: true, timestamps: true, tail: Some(5), ..plain() },
        );
        check("--tail all web", plain());
        check("-n 0 web", LogsRequest { tail: Some(0), ..plain() });
        check("web --since 1970-01-01T00:00:01Z", LogsRequest { since: 1_000_000_000, ..plain() });
    }
}
