//! The shim of one pod: started by the daemon with the listening socket as descriptor 0.

use std::path::PathBuf;
use std::process::ExitCode;

use runtime::shim::{Options, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(sandbox_id), Some(directory)) = (arguments.next(), arguments.next()) else {
        return fail(
            "usage: berth-shim SANDBOX-ID DIRECTORY [CGROUP-DIRECTORY...] (started by berth serve)",
        );
    };
    let options = Options {
        sandbox_id,
        directory: directory.into(),
        cgroups: arguments.map(PathBuf::from).collect(),
    };
    match runtime::shim::take_listener().and_then(|listener| run(options, listener)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            fail(&format!("{error}{cause}"))
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the daemon keeps stderr in a file beside the sandbox's record"
)]
fn fail(message: &str) -> ExitCode {
    eprintln!("berth-shim: {message}");
    ExitCode::FAILURE
}
