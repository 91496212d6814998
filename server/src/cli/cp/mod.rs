//! `berth cp`: files between a container and here. The program `tar` of the container packs and unpacks at its end, with
//! the container's own rights; here it is our packer, and the extractor that trusts no archive.

mod pack;
mod tar;

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use images::Copy;
use tokio::sync::mpsc;

use self::pack::{Style, base};
use self::tar::{Pieces, Program, Sender, Tar};
use super::connect::{Client, Socket, connect};
use super::failure::{Failure, Outcome, tell};
use crate::blocking;
use crate::error::{Doing as _, Error, Result as Done, chain};

/// The flags of `berth cp`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "berth cp [OPTIONS] CONTAINER:PATH LOCAL|-\n       berth cp [OPTIONS] LOCAL|- CONTAINER:PATH",
    after_help = "The container has to run and to have the program tar. With - a tar is read or written."
)]
pub struct Args {
    /// Keep owners
    #[arg(short, long)]
    archive: bool,
    /// Follow links of what is copied
    #[arg(short = 'L', long)]
    follow_link: bool,
    #[command(flatten)]
    socket: Socket,
    /// What is copied
    #[arg(hide = true)]
    from: String,
    /// Where it goes
    #[arg(hide = true)]
    to: String,
}

/// One of the two ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Inside { container: String, path: String },
    Local(PathBuf),
    Stdio,
}

impl End {
    /// As docker reads it: what begins with `/` or `.` is of here, whatever colons it has.
    fn parse(text: &str) -> End {
        match text.split_once(':') {
            _ if text == "-" => End::Stdio,
            Some((container, path)) if !container.is_empty() && !text.starts_with(['/', '.']) => {
                End::Inside { container: container.to_owned(), path: path.to_owned() }
            }
            _ => End::Local(text.into()),
        }
    }
}

/// Copies.
pub(super) async fn run(args: Args) -> Outcome {
    let style = Style { follow: args.follow_link, owners: args.archive };
    match (End::parse(&args.from), End::parse(&args.to)) {
        (End::Inside { container, path }, End::Local(to)) => {
            let program = Program { client: connect(&args.socket).await?, container };
            fetch(program, Inside::of(&path)?, &to, style).await
        }
        (End::Inside { container, path }, End::Stdio) => {
            let program = Program { client: connect(&args.socket).await?, container };
            show(program, Inside::of(&path)?, style).await
        }
        (End::Local(from), End::Inside { container, path }) => {
            let program = Program { client: connect(&args.socket).await?, container };
            send(program, &from, &path, style).await
        }
        (End::Stdio, End::Inside { container, path }) => {
            let program = Program { client: connect(&args.socket).await?, container };
            pour(program, &path).await
        }
        (End::Inside { .. }, End::Inside { .. }) => {
            Err(Failure::new("one end has to be here; copy to a directory of this machine first"))
        }
        (End::Local(_) | End::Stdio, End::Local(_) | End::Stdio) => {
            Err(Failure::new("one end has to be in a container, as CONTAINER:PATH"))
        }
    }
}

/// A path in a container, as tar is told of it.
#[derive(Debug, PartialEq, Eq)]
struct Inside {
    directory: String,
    /// None for the content of the directory.
    name: Option<String>,
}

impl Inside {
    fn of(path: &str) -> Result<Inside, Failure> {
        let path = format!("/{}", path.trim_start_matches('/'));
        if let Some(directory) = path.strip_suffix("/.") {
            return Ok(Inside {
                directory: format!("/{}", directory.trim_start_matches('/')),
                name: None,
            });
        }
        let trimmed = path.trim_end_matches('/');
        match trimmed.rsplit_once('/') {
            None => Ok(Inside { directory: "/".into(), name: None }),
            Some((_, "..")) => {
                Err(Failure::new(format!("{path}: a path in a container has to end with a name")))
            }
            Some((directory, name)) => {
                let directory = if directory.is_empty() { "/" } else { directory };
                Ok(Inside { directory: directory.to_owned(), name: Some(name.to_owned()) })
            }
        }
    }

    /// The command that packs it. No name can be taken for a flag.
    fn pack(&self, style: Style) -> Vec<String> {
        let flags = if style.follow { "-chf" } else { "-cf" };
        let name = self.name.as_ref().map_or_else(|| ".".to_owned(), |name| format!("./{name}"));
        ["tar", flags, "-", "-C", &self.directory, &name].map(str::to_owned).to_vec()
    }
}

fn unpack(directory: &str) -> Vec<String> {
    ["tar", "-xpf", "-", "-C", directory].map(str::to_owned).to_vec()
}

/// From a container to here.
async fn fetch(mut program: Program, from: Inside, to: &Path, style: Style) -> Outcome {
    let container = program.container.clone();
    let (sender, pieces) = tar::channel();
    let target = Target::choose(to, from.name.as_deref())?;
    let made = target.made.clone();
    let command = from.pack(style);
    let unpacking = tokio::spawn(blocking::run("unpack", move || target.take(pieces, style)));
    let tar = Tar { command, input: None, output: Some(sender) };
    let ended = program.run(tar).await;
    let unpacked = unpacking.await.map_err(|panic| Failure::step("unpack", &panic))?;
    if let (Some(made), true) = (&made, ended.is_err() || unpacked.is_err()) {
        // Only what is empty goes.
        std::fs::remove_dir(made).ok();
    }
    // Where tar was ended by us, it was for what is wrong with its archive.
    let copied = match (unpacked, ended) {
        (_, Err(failure)) => return Err(failure),
        (Err(error), Ok(_)) => return Err(Failure::new(chain(&error))),
        (Ok(copied), Ok(end)) => {
            end.check(&container)?;
            copied
        }
    };
    if copied.skipped > 0 {
        tell(&format!("{} devices and pipes were left out", copied.skipped));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where it goes here.
struct Target {
    into: File,
    copy: Copy,
    /// A directory that was made for it.
    made: Option<PathBuf>,
}

impl Target {
    /// Docker's rules: into a directory that is there; else as the last name of the path.
    fn choose(to: &Path, name: Option<&str>) -> Result<Target, Failure> {
        let opened = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            let failed = |error: io::Error| Failure::step(path.display(), &error);
            let file = File::open(path).map_err(failed)?;
            match file.metadata().map_err(failed)?.is_dir() {
                true => Ok(file),
                false => Err(Failure::new(format!("{} is no directory", path.display()))),
            }
        };
        let name = name.map(|name| name.as_bytes().to_vec());
        if to.is_dir() {
            let copy = Copy { name, ..Copy::default() };
            return Ok(Target { into: opened(to)?, copy, made: None });
        }
        let is_there = to.symlink_metadata().is_ok();
        let Some(name) = name else {
            if is_there {
                return Err(Failure::new(format!("{} is there and is no directory", to.display())));
            }
            std::fs::create_dir(to).map_err(|error| Failure::step(to.display(), &error))?;
            let (into, made) = (opened(to)?, Some(to.to_owned()));
            return Ok(Target { into, copy: Copy::default(), made });
        };
        let last = to.file_name().ok_or_else(|| {
            Failure::new(format!("{} has to end with a name, or be a directory", to.display()))
        })?;
        let wants_directory = to.as_os_str().as_bytes().ends_with(b"/");
        let directory = match (is_there, wants_directory) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        };
        let rename = Some(last.as_bytes().to_vec());
        let copy = Copy { name: Some(name), rename, directory, owners: false };
        Ok(Target { into: opened(to.parent().unwrap_or(Path::new("/")))?, copy, made: None })
    }

    fn take(self, mut pieces: Pieces, style: Style) -> Done<images::Copied> {
        let copy = Copy { owners: style.owners, ..self.copy };
        let copied =
            copy.unpack(&mut pieces, self.into.into(), "the archive from the container")?;
        // What tar says at its end is waited for.
        io::copy(&mut pieces, &mut io::sink()).doing(|| "read the archive")?;
        Ok(copied)
    }
}

/// A tar from a container to standard output.
async fn show(mut program: Program, from: Inside, style: Style) -> Outcome {
    let container = program.container.clone();
    let (sender, mut pieces) = tar::channel();
    let writing = tokio::spawn(blocking::run("write the archive", move || {
        let mut out = io::stdout().lock();
        io::copy(&mut pieces, &mut out).and_then(|_| out.flush()).doing(|| "write the archive")
    }));
    let ended = program.run(Tar { command: from.pack(style), input: None, output: Some(sender) });
    let ended = ended.await?;
    let written = writing.await.map_err(|panic| Failure::step("write the archive", &panic))?;
    written.map_err(|error| Failure::new(chain(&error)))?;
    ended.check(&container)?;
    Ok(ExitCode::SUCCESS)
}

/// From here to a container.
async fn send(mut program: Program, from: &Path, to: &str, style: Style) -> Outcome {
    let metadata = if style.follow { from.metadata() } else { from.symlink_metadata() };
    let is_directory = metadata.map_err(|error| Failure::step(from.display(), &error))?.is_dir();
    let to = format!("/{}", to.trim_start_matches('/'));
    let (directory, name) = if program.has_directory(&to).await? {
        let name = base(from).map_or_else(|| b".".to_vec(), |name| name.as_bytes().to_vec());
        (to, name)
    } else if to.ends_with('/') && !is_directory {
        let container = &program.container;
        return Err(Failure::new(format!(
            "container {container} has no directory {to}; make it first"
        )));
    } else {
        let Inside { directory, name } = Inside::of(&to)?;
        (directory, name.unwrap_or_else(|| ".".to_owned()).into_bytes())
    };
    let from = from.to_owned();
    feed(&mut program, &directory, move |out| pack::pack(&from, &name, style, out)).await
}

/// A tar from standard input to a container.
async fn pour(mut program: Program, to: &str) -> Outcome {
    let to = format!("/{}", to.trim_start_matches('/'));
    feed(&mut program, &to, |out| io::copy(&mut io::stdin().lock(), out).map(drop)).await
}

/// Unpacks in a container what a function writes.
async fn feed(
    program: &mut Program,
    directory: &str,
    write: impl FnOnce(&mut BufWriter<Sender>) -> io::Result<()> + Send + 'static,
) -> Outcome {
    let (sender, receiver) = mpsc::channel(tar::AHEAD);
    let writing = tokio::spawn(blocking::run("pack", move || {
        let mut out = BufWriter::with_capacity(tar::CHUNK, Sender(sender));
        write(&mut out)
            .and_then(|()| out.flush())
            .map_err(|source| Error::Io { doing: "pack".into(), source })
    }));
    let tar = Tar { command: unpack(directory), input: Some(receiver), output: None };
    let ended = program.run(tar).await?;
    // Where tar has ended before its input did, it says why.
    ended.check(&program.container)?;
    let written = writing.await.map_err(|panic| Failure::step("pack", &panic))?;
    written.map_err(|error| Failure::new(chain(&error)))?;
    Ok(ExitCode::SUCCESS)
}

impl Program {
    /// Whether a path of the container is a directory: an empty archive can be unpacked there.
    async fn has_directory(&mut self, path: &str) -> Result<bool, Failure> {
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(vec![0; 1024]).ok();
        drop(sender);
        let tar = Tar { command: unpack(path), input: Some(receiver), output: None };
        Ok(self.run(tar).await?.code == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_read_as_docker_reads_them() {
        let inside = |container: &str, path: &str| End::Inside {
            container: container.into(),
            path: path.into(),
        };
        assert_eq!(End::parse("web:/etc"), inside("web", "/etc"));
        assert_eq!(End::parse("web:a:b"), inside("web", "a:b"));
        assert_eq!(End::parse("./a:b"), End::Local("./a:b".into()));
        assert_eq!(End::parse("/a:b"), End::Local("/a:b".into()));
        assert_eq!(End::parse(":x"), End::Local(":x".into()));
        assert_eq!(End::parse("-"), End::Stdio);
    }

    #[test]
    fn a_path_inside_is_a_directory_and_a_name() {
        let check = |path: &str, directory: &str, name: Option<&str>| {
            let found = Inside::of(path).unwrap();
            assert_eq!(
                (found.directory.as_str(), found.name.as_deref()),
                (directory, name),
                "{path}"
            );
        };
        check("/etc/passwd", "/etc", Some("passwd"));
        check("etc", "/", Some("etc"));
        check("/var/log/", "/var", Some("log"));
        check("/var/log/.", "/var/log", None);
        check("/", "/", None);
        check("", "/", None);
        check("/-rf", "/", Some("-rf"));
        assert!(Inside::of("/a/..").is_err());
        let style = Style { follow: true, owners: false };
        assert_eq!(
            Inside::of("/-rf").unwrap().pack(style),
            ["tar", "-chf", "-", "-C", "/", "./-rf"]
        );
    }

    #[test]
    fn the_target_follows_dockers_rules() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        std::fs::create_dir(at("dir")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let choose = |path: &str, name: Option<&str>| Target::choose(&at(path), name);
        let copy = |path: &str| {
            let copy = choose(path, Some("a")).unwrap().copy;
            (copy.rename.map(|name| String::from_utf8(name).unwrap()), copy.directory)
        };
        assert_eq!(copy("dir"), (None, None));
        assert_eq!(copy("file"), (Some("file".into()), Some(false)));
        assert_eq!(copy("new"), (Some("new".into()), None));
        assert_eq!(copy("new/"), (Some("new".into()), Some(true)));
        assert!(choose("none/new", Some("a")).is_err());
        assert!(choose("file", None).is_err());
        assert_eq!(choose("made", None).unwrap().made, Some(at("made")));
        assert!(at("made").is_dir());
    }
}
