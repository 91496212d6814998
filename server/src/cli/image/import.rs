//! `berth image import`: an OCI layout, a docker archive or a root file system becomes images.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;

use proto::control::import_image_request::Message;
use proto::control::{ImportImageRequest, ImportSpec};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::layout;
use crate::blocking;
use crate::cli::connect::{Socket, connect};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::images;
use crate::cli::table::{print, print_json};
use crate::error::{Doing, Error, Result, chain};

/// Bytes in one message.
const CHUNK: usize = 256 << 10;
/// Messages that are read ahead of the daemon.
const AHEAD: usize = 4;

/// The flags of `berth image import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ids alone
    #[arg(short, long)]
    quiet: bool,
    /// One JSON document
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    #[command(flatten)]
    socket: Socket,
    /// An OCI archive, a docker archive, a tar of a root file system, or the directory of an OCI layout; - is standard input
    #[arg(value_name = "FILE|DIR", value_hint = clap::ValueHint::AnyPath)]
    source: PathBuf,
    /// Name for the image [default: the one in the archive]
    #[arg(default_value = "", hide_default_value = true)]
    name: String,
}

pub(super) async fn run(args: Args) -> Outcome {
    let source = open(&args.source)?;
    let mut client = connect(&args.socket).await?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let spec = Message::Spec(ImportSpec { name: args.name.clone() });
    // Its capacity is larger than one.
    sender.try_send(ImportImageRequest { message: Some(spec) }).ok();
    let mut sending = tokio::spawn(blocking::run("read the image", move || {
        // The sender comes back with the result: its end tells the daemon that all was sent.
        Ok((send(source, &sender), sender))
    }));
    let source = args.source.display();
    let refused = |status: tonic::Status| Failure::from(status).about(format!("import {source}"));
    let mut answer = pin!(client.import_image(ReceiverStream::new(receiver)));
    let answer = tokio::select! {
        // A daemon that has seen enough: whoever reads is left behind.
        answer = &mut answer => answer.map_err(refused)?,
        sent = &mut sending => {
            let sent = sent.map_err(|error| Failure::step("read the image", &error))?;
            let (result, sender) = sent.map_err(|error| Failure::new(chain(&error)))?;
            result.map_err(|error| Failure::new(chain(&error)))?;
            drop(sender);
            answer.await.map_err(refused)?
        }
    };
    let images = answer.into_inner().images;
    if args.json {
        let images: Vec<Value> = images.iter().map(images::json).collect();
        print_json(&json!({ "images": images }))?;
    } else {
        let line = |image: &proto::control::ImageSummary| match image.tags.as_slice() {
            names if args.quiet || names.is_empty() => format!("{}\n", image.id),
            names => format!("{} {}\n", image.id, names.join(" ")),
        };
        print(&images.iter().map(line).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open(source: &Path) -> std::result::Result<Box<dyn Read + Send>, Failure> {
    if source == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let opened = || -> Result<Box<dyn Read + Send>> {
        if source.is_dir() {
            return Ok(Box::new(layout::archive(source)?));
        }
        let doing = || format!("open {}", source.display());
        Ok(Box::new(File::open(source).doing(doing)?))
    };
    opened().map_err(|error| Failure::new(chain(&error)))
}

/// Sends all there is. A daemon that listens no more has an answer that says why.
fn send(mut source: Box<dyn Read + Send>, sender: &mpsc::Sender<ImportImageRequest>) -> Result<()> {
    loop {
        let mut data = Vec::with_capacity(CHUNK);
        (&mut source)
            .take(CHUNK as u64)
            .read_to_end(&mut data)
            .map_err(|source| Error::Io { doing: "read the image".to_owned(), source })?;
        if data.is_empty() {
            return Ok(());
        }
        let request = ImportImageRequest { message: Some(Message::Data(data)) };
        if sender.blocking_send(request).is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(source: impl Read + Send + 'static) -> (Result<()>, Vec<usize>) {
        let (sender, mut receiver) = mpsc::channel(100);
        let result = send(Box::new(source), &sender);
        drop(sender);
        let mut lengths = Vec::new();
        while let Some(request) = receiver.blocking_recv() {
            match request.message {
                Some(Message::Data(data)) => lengths.push(data.len()),
                other => panic!("{other:?}"),
            }
        }
        (result, lengths)
    }

    #[test]
    fn a_file_is_sent_in_pieces() {
        let (result, lengths) = sent(io::repeat(0).take(2 * CHUNK as u64 + 1));
        result.unwrap();
        assert_eq!(lengths, [CHUNK, CHUNK, 1]);
        let (result, lengths) = sent(io::empty());
        result.unwrap();
        assert!(lengths.is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (result, _) = sent(File::open(directory.path()).unwrap());
        assert!(chain(&result.unwrap_err()).starts_with("read the image: Is a directory"));
        let missing = open(Path::new("/nonexistent/image.tar")).err().unwrap();
        assert!(missing.text.starts_with("open /nonexistent/image.tar: No such file"));
    }

    #[test]
    fn a_daemon_that_listens_no_more_ends_the_sending() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        send(Box::new(io::repeat(0)), &sender).unwrap();
    }
}
