//! One call for each of several names: all under way at once, told in order.

use std::process::ExitCode;

use tonic::Status;

use super::failure::{FAILED, Failure, Outcome};
use super::table::print_line;

/// Calls for every name, and prints each that it worked for, as it was given. What went wrong
/// with one is told and keeps no other from its turn; the exit code says that something did.
pub(super) async fn each<F>(names: Vec<String>, call: impl Fn(String) -> F) -> Outcome
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let calls: Vec<_> =
        names.into_iter().map(|name| (name.clone(), tokio::spawn(call(name)))).collect();
    let mut code = ExitCode::SUCCESS;
    for (name, call) in calls {
        let answer = match call.await {
            Ok(answer) => answer.map_err(Failure::from),
            Err(panic) => Err(Failure::step("call the daemon", &panic)),
        };
        match answer {
            Ok(()) => print_line(&name)?,
            Err(failure) => {
                failure.tell();
                code = ExitCode::from(FAILED);
            }
        }
    }
    Ok(code)
}
