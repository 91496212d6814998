//! `berth inspect`: all that is known of containers, pods and images, as one JSON array.

use std::process::ExitCode;

use proto::control::InspectRequest;
use serde_json::Value;

use super::connect::{Socket, connect};
use super::failure::{FAILED, Failure, Outcome, within};
use super::ps::LIST_DEADLINE;
use super::table::print_json;

/// The flags of `berth inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Always so; for those who are used to write it
    #[arg(long, hide = true)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
    /// Containers, pods or images, by id, beginning of an id, or name
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) async fn run(args: Args) -> Outcome {
    let mut client = connect(&args.socket).await?;
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    // A call for each: one that is missing keeps none of the others from being shown.
    for name in args.names {
        let request = InspectRequest { names: vec![name] };
        match within(LIST_DEADLINE, client.inspect(request)).await {
            Ok(answer) => {
                for object in &answer.get_ref().objects {
                    found.push(read(object)?);
                }
            }
            Err(failure) => {
                failure.tell();
                code = ExitCode::from(FAILED);
            }
        }
    }
    print_json(&Value::Array(found))?;
    Ok(code)
}

fn read(object: &str) -> Result<Value, Failure> {
    serde_json::from_str(object)
        .map_err(|error| Failure::step("read the daemon's answer as JSON", &error))
}
