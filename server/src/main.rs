//! The program `berth`: from its arguments to a command.

use std::process::ExitCode;

use clap::Parser;
use server::cli::{self, Cli, Command, completion, fail, serve};

/// Threads of the daemon that never block: more than four gain nothing for what it does,
/// and each costs memory.
const MOST_THREADS: usize = 4;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::misused(&error, std::env::args_os()),
    };
    match cli.command {
        Command::Client(verb) => client(cli::run(verb)),
        Command::Completion(args) => completion::print(&args),
        Command::Serve(flags) => match serve::configure(&flags) {
            Ok(config) => daemon(serve::serve(config)),
            Err(code) => code,
        },
    }
}

/// Runs a client: one thread, for whoever starts a process for one call does not want to start more.
fn client(verb: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(verb);
            // A reader that reads no more may hold up what is being written.
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(&error),
    }
}

/// Runs the daemon. What blocks at its end is left behind: the process ends anyway.
fn daemon(serve: impl Future<Output = ExitCode>) -> ExitCode {
    runtime::sys::memory::keep_heap_small();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(serve);
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(&error),
    }
}
