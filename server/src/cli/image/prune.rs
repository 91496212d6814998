//! `berth image prune`: images that no container and no name needs.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use proto::control::{PruneImagesRequest, PruneImagesResponse};
use serde_json::json;

use crate::cli::connect::{Socket, connect};
use crate::cli::failure::Outcome;
use crate::cli::human::size;
use crate::cli::table::{print, print_json};

/// The flags of `berth image prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those with a name too, where no container needs them
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

pub(super) async fn run(args: Args) -> Outcome {
    let mut client = connect(&args.socket).await?;
    let asks = !args.force && io::stdin().is_terminal() && io::stderr().is_terminal();
    if asks && !is_agreed(args.all) {
        return Ok(ExitCode::SUCCESS);
    }
    let answer = client.prune_images(PruneImagesRequest { all: args.all }).await?.into_inner();
    if args.json {
        print_json(&json!({ "deleted": answer.deleted, "reclaimedBytes": answer.reclaimed }))?;
    } else {
        print(&told(&answer))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks on standard error, so that standard output is what was done.
fn is_agreed(all: bool) -> bool {
    let which = if all { "no container needs" } else { "have no name and no container needs" };
    write!(io::stderr(), "This removes all images that {which}. Go on? [y/N] ").ok();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && is_yes(&answer)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn told(answer: &PruneImagesResponse) -> String {
    let deleted: String = answer.deleted.iter().map(|id| format!("deleted: {id}\n")).collect();
    format!("{deleted}reclaimed: {}\n", size(answer.reclaimed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (answer, expected) in [
            ("y\n", true),
            ("Yes\n", true),
            ("\n", false),
            ("", false),
            ("n\n", false),
            ("yesss\n", false),
        ] {
            assert_eq!(is_yes(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn what_went_is_told_with_its_size() {
        let answer =
            PruneImagesResponse { deleted: vec!["sha256:0a".into()], reclaimed: 142_000_000 };
        assert_eq!(told(&answer), "deleted: sha256:0a\nreclaimed: 142MB\n");
        assert_eq!(told(&PruneImagesResponse::default()), "reclaimed: 0B\n");
    }
}
