//! `berth image`: files to images and back, and what nobody needs any more.

mod export;
mod import;
mod layout;
mod prune;

use super::failure::Outcome;
use super::{images, pull, rmi};

/// What can be done with images.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Take images from a file or a directory
    Import(import::Args),
    /// Write an image to a file, as an OCI archive
    Export(export::Args),
    /// Remove images that nobody needs
    Prune(prune::Args),
    /// List images, as `berth images` does
    Ls(images::Args),
    /// Pull an image, as `berth pull` does
    Pull(pull::Args),
    /// Remove images, as `berth rmi` does
    Rm(rmi::Args),
}

pub(super) async fn run(command: Command) -> Outcome {
    match command {
        Command::Import(args) => import::run(args).await,
        Command::Export(args) => export::run(args).await,
        Command::Prune(args) => prune::run(args).await,
        Command::Ls(args) => images::run(args).await,
        Command::Pull(args) => pull::run(args).await,
        Command::Rm(args) => rmi::run(args).await,
    }
}
