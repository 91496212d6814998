//! `berth image export`: an image becomes an OCI archive.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use proto::control::ExportImageRequest;

use crate::cli::connect::{Client, Socket, connect};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::table::written;

/// The flags of `berth image export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// The image, by name, id or beginning of an id
    #[arg(value_name = "NAME")]
    image: String,
    /// Where to write it; - is standard output
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
}

pub(super) async fn run(args: Args) -> Outcome {
    if args.file == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(Failure::new(
                "an archive is nothing for a terminal; send standard output elsewhere, or name a file",
            ));
        }
        let client = connect(&args.socket).await?;
        let mut stdout = io::stdout().lock();
        receive(client, args.image, |data| written(stdout.write_all(data))).await?;
        written(stdout.flush())?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = connect(&args.socket).await?;
    let target = Target::create(&args.file)
        .map_err(|error| Failure::step(format!("create {}", args.file.display()), &error))?;
    let failed = |error: io::Error| Failure::step(format!("write {}", args.file.display()), &error);
    receive(client, args.image, |data| (&target.file).write_all(data).map_err(failed)).await?;
    target.keep().map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

async fn receive(
    mut client: Client,
    image: String,
    mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut answers = client.export_image(ExportImageRequest { image }).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        write(&answer.data)?;
    }
    Ok(())
}

/// A file that has its name only once it is whole; what is no regular file is written as it is.
#[derive(Debug)]
struct Target {
    file: File,
    /// The temporary and the final name.
    names: Option<(PathBuf, PathBuf)>,
}

impl Target {
    fn create(path: &Path) -> io::Result<Target> {
        // A link is followed: what it names is what is replaced.
        let path = match path.canonicalize() {
            Ok(path) if !path.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                return Ok(Target { file, names: None });
            }
            Ok(path) => path,
            Err(_) => path.to_owned(),
        };
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        Ok(Target { file, names: Some((temporary, path)) })
    }

    fn keep(mut self) -> io::Result<()> {
        match self.names.take() {
            Some((temporary, path)) => std::fs::rename(temporary, path),
            None => Ok(()),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.names {
            // What cannot be removed stays, under a name that says what it is.
            std::fs::remove_file(temporary).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        std::fs::write(&path, "old").unwrap();
        let target = Target::create(&path).unwrap();
        (&target.file).write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        target.keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["image.tar"]);
    }

    #[test]
    fn an_export_that_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        drop(Target::create(&directory.path().join("image.tar")).unwrap());
        assert!(names(directory.path()).is_empty());
        assert!(Target::create(&directory.path().join("none/image.tar")).is_err());
        assert!(Target::create(directory.path()).is_err());
    }

    #[test]
    fn a_device_is_written_as_it_is() {
        let target = Target::create(Path::new("/dev/null")).unwrap();
        (&target.file).write_all(b"x").unwrap();
        target.keep().unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
