//! `berth completion`: a script that makes a shell complete our commands.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, finish};

/// The flags of `berth completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "For bash: berth completion bash > /etc/bash_completion.d/berth")]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn print(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "berth", &mut script);
    finish(io::Write::write_all(&mut io::stdout(), &script))
}
