//! Log files: opened here, below the sandbox's log directory and nowhere else, and passed to the shim.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::shim::{ReopenLog, request};
use runtime::root::Root;
use rustix::fs::{FileType, OFlags};

use super::{Container, Record, State};
use crate::app::App;
use crate::blocking;
use crate::error::{Doing, Error, Result};
use crate::sandbox;
use crate::shim::CALL_DEADLINE;

/// A log's disk may be slow; longer than this it is not waited for.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// The log of a container: its file, and the directory where berth rotates it.
#[derive(Debug, Default)]
pub struct Log {
    /// Opened for appending.
    pub file: Option<OwnedFd>,
    /// For rotation.
    pub directory: Option<OwnedFd>,
}

impl Log {
    /// In the order in which the shim takes them.
    pub fn descriptors(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        [&self.file, &self.directory].into_iter().flatten().map(AsFd::as_fd).collect()
    }
}

/// The absolute path of a container's log; None without one.
pub fn path(app: &App, container: &Container) -> Option<PathBuf> {
    let sandbox = app.sandbox_of(container).ok()?;
    path_in(&sandbox.record(), &container.record())
}

/// As [`path`], by the records.
pub fn path_in(sandbox: &sandbox::Record, record: &Record) -> Option<PathBuf> {
    let directory = sandbox.spec.log_directory.as_ref()?;
    (!record.spec.log_path.is_empty()).then(|| directory.join(&record.spec.log_path))
}

/// Opens the log of a container, made where it is missing.
///
/// # Errors
/// A part of the path below the log directory is a link, or the file is no regular one.
pub async fn open(app: &Arc<App>, container: &Arc<Container>) -> Result<Log> {
    let (directory, name, rotates) = {
        let directory = app.sandbox_of(container)?.record().spec.log_directory.clone();
        let record = container.record();
        (directory, record.spec.log_path.clone(), record.spec.local.is_some())
    };
    let Some(directory) = directory.filter(|_| !name.is_empty()) else { return Ok(Log::default()) };
    blocking::within(OPEN_DEADLINE, "open the container's log", move || {
        open_in(&directory, &name, rotates)
    })
    .await
}

fn open_in(directory: &Path, name: &str, rotates: bool) -> Result<Log> {
    let doing = || format!("open the log {}", directory.join(name).display());
    // The directory itself may be below links of the administrator's, but is none.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, rustix::fs::Mode::empty());
    let opened = opened
        .doing(|| format!("open log_directory {}, which its client makes", directory.display()))?;
    let root = Root::from_fd(opened);
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    let file = root.resolve_beneath(Path::new(name), flags, 0o640)?;
    let stat = rustix::fs::fstat(&file).doing(doing)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::invalid(
            "log_path",
            format!("{} is not a regular file", directory.join(name).display()),
        ));
    }
    let directory = rotates.then(|| {
        rustix::fs::open(
            directory,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
    });
    Ok(Log { file: Some(file), directory: directory.transpose().doing(doing)? })
}

/// ReopenContainerLog: what is written from the answer on is in the new file, and nothing more in the old one.
///
/// # Errors
/// The container does not run, or the new file cannot be opened: then the old one is kept.
pub async fn reopen(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    if container.record().state != State::Running {
        return Err(Error::WrongState {
            what: format!("container {}", container.id),
            state: "not running".into(),
            problem: "it writes no log".into(),
        });
    }
    let log = open(app, container).await?;
    let Some(file) = &log.file else { return Ok(()) };
    let call = request::Call::ReopenLog(ReopenLog { container_id: container.id.to_string() });
    app.shim_of(container)?.call(call, &[file.as_fd()], CALL_DEADLINE).await.map(drop)
}
