//! `berth stop`: the stop signal, and force where it is not heeded in time.

use proto::control::StopRequest;

use super::connect::{Socket, connect};
use super::failure::Outcome;
use super::many::each;

/// The flags of `berth stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds to wait before the container is killed [default: the daemon's, 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS")]
    time: Option<u32>,
    #[command(flatten)]
    socket: Socket,
    /// Containers, by id, beginning of an id, or name
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn run(args: Args) -> Outcome {
    let client = connect(&args.socket).await?;
    each(args.containers, |container| {
        let mut client = client.clone();
        async move { client.stop(StopRequest { container, timeout: args.time }).await.map(drop) }
    })
    .await
}
