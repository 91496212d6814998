//! `berth rm`: containers, with the pods that `berth run` made for them.

use proto::control::RemoveRequest;

use super::connect::{Socket, connect};
use super::failure::Outcome;
use super::many::each;

/// The flags of `berth rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stop those that run, and do not wait for it
    #[arg(short, long)]
    force: bool,
    /// Remove volumes without a name too
    #[arg(short, long)]
    volumes: bool,
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
        let request = RemoveRequest { container, force: args.force, volumes: args.volumes };
        async move { client.remove(request).await.map(drop) }
    })
    .await
}
