//! `berth kill`: a signal to the first program of a container.

use proto::control::KillRequest;

use super::connect::{Socket, connect};
use super::failure::Outcome;
use super::many::each;

/// The flags of `berth kill`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    #[command(flatten)]
    socket: Socket,
    /// Containers, by id, beginning of an id, or name
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn run(args: Args) -> Outcome {
    let client = connect(&args.socket).await?;
    each(args.containers, |container| {
        let (mut client, signal) = (client.clone(), args.signal.clone());
        async move { client.kill(KillRequest { container, signal }).await.map(drop) }
    })
    .await
}
