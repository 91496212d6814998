//! `berth pause` and `berth resume`: all programs of a container stand still, and go on.

use proto::control::{PauseRequest, ResumeRequest};

use super::connect::{Socket, connect};
use super::failure::Outcome;
use super::many::each;

/// The flags of `berth pause` and `berth resume`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Containers, by id, beginning of an id, or name
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn pause(args: Args) -> Outcome {
    let client = connect(&args.socket).await?;
    each(args.containers, |container| {
        let mut client = client.clone();
        async move { client.pause(PauseRequest { container }).await.map(drop) }
    })
    .await
}

pub(super) async fn resume(args: Args) -> Outcome {
    let client = connect(&args.socket).await?;
    each(args.containers, |container| {
        let mut client = client.clone();
        async move { client.resume(ResumeRequest { container }).await.map(drop) }
    })
    .await
}
