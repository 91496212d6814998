//! One daemon's hold on its directories: who it is, that they are its own, and that no
//! other daemon has them.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::error::{Doing, Error, Result};

/// Only root may enter the root directory: images hold set-user-id programs of strangers.
const ROOT_MODE: Mode = Mode::from_raw_mode(0o700);

/// Anyone may pass through the state directory, to the socket, and list nothing.
const STATE_MODE: Mode = Mode::from_raw_mode(0o711);

/// The file in each directory that a daemon keeps locked.
const LOCK: &str = "lock";

/// How long a lock is waited for: a daemon that was killed a moment ago may still be ending.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Eight hexadecimal digits that tell the kernel resources of one daemon from another's:
/// the beginning of the SHA-256 of the state directory's path, all links resolved.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InstanceId([u8; 4]);

impl InstanceId {
    /// The id that belongs to a state directory. The path must be canonical.
    pub fn of(state: &Path) -> InstanceId {
        let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
        let mut id = [0; 4];
        id.copy_from_slice(&digest[..4]);
        InstanceId(id)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

/// The directories of this daemon, locked for as long as the value lives.
#[derive(Debug)]
pub struct Instance {
    /// In the name of every kernel resource of this daemon.
    pub id: InstanceId,
    /// The root directory, all links resolved.
    pub root: PathBuf,
    /// The state directory, all links resolved.
    pub state: PathBuf,
    /// Closing these gives the directories free.
    _locks: [File; 2],
}

/// Makes the directories where they are missing and takes hold of them.
///
/// # Errors
///
/// [`Error::Exists`] when another daemon has one of them, [`Error::Invalid`] when one
/// cannot be berth's: it belongs to another user, is open to others and holds files that
/// are not berth's, or lies in the other.
pub fn prepare(config: &Config) -> Result<Instance> {
    let (root_fd, root) = own_directory("root", &config.root, ROOT_MODE)?;
    let (state_fd, state) = own_directory("state", &config.state, STATE_MODE)?;
    if root.starts_with(&state) || state.starts_with(&root) {
        let (root, state) = (root.display(), state.display());
        let problem = format!(
            "{state} lies in or around root {root}, links resolved; name directories side by side"
        );
        return Err(Error::invalid("state", problem));
    }
    let locks = [lock("root", &root_fd, &root)?, lock("state", &state_fd, &state)?];
    Ok(Instance { id: InstanceId::of(&state), root, state, _locks: locks })
}

/// Opens a directory of ours, making it and its parents where they are missing.
fn own_directory(key: &'static str, path: &Path, mode: Mode) -> Result<(OwnedFd, PathBuf)> {
    let doing = |what: &str| format!("{what} the {key} directory {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).doing(|| doing("make the parents of"))?;
    }
    match rustix::fs::mkdir(path, mode) {
        Ok(()) | Err(Errno::EXIST) => (),
        Err(errno) => return Err(errno).doing(|| doing("make")),
    }
    let path = std::fs::canonicalize(path).doing(|| doing("resolve"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, flags, Mode::empty()).doing(|| doing("open"))?;
    let stat = rustix::fs::fstat(&fd).doing(|| doing("look at"))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        let problem =
            format!("{} belongs to user {}; chown it or name another", path.display(), stat.st_uid);
        return Err(Error::invalid(key, problem));
    }
    let found = Mode::from_raw_mode(stat.st_mode);
    if found != mode {
        settle_mode(key, &fd, &path, found, mode)?;
    }
    Ok((fd, path))
}

/// Gives a directory its mode, but never one that may be somebody else's: `--state /tmp`
/// must not take /tmp away from everybody.
fn settle_mode(
    key: &'static str,
    fd: &OwnedFd,
    path: &Path,
    found: Mode,
    mode: Mode,
) -> Result<()> {
    let doing = |what: &str| format!("{what} the {key} directory {}", path.display());
    let ours =
        rustix::fs::accessat(fd, LOCK, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
            .is_ok();
    if ours || is_empty(fd).doing(|| doing("read"))? {
        return rustix::fs::fchmod(fd, mode).doing(|| doing("set the mode of"));
    }
    if found.difference(mode).is_empty() {
        return Ok(());
    }
    let problem = format!(
        "{} holds files that are not berth's and is open to others, mode {:04o}; name an empty directory, or chmod it {:04o}",
        path.display(),
        found.as_raw_mode(),
        mode.as_raw_mode()
    );
    Err(Error::invalid(key, problem))
}

/// Tells whether nobody keeps anything here; a new file system has lost+found.
fn is_empty(fd: &OwnedFd) -> std::io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(fd)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b".." | b"lost+found") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Locks a directory. The lock is the kernel's and ends with the process, however it ends;
/// the pid in the file is for the error message only.
fn lock(key: &'static str, directory: impl AsFd, path: &Path) -> Result<File> {
    let doing = |what: &str| format!("{what} {}/{LOCK}", path.display());
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, LOCK, flags, Mode::from_raw_mode(0o600))
        .doing(|| doing("open"))?;
    let stat = rustix::fs::fstat(&fd).doing(|| doing("look at"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::invalid(
            key,
            format!("{}/{LOCK} is not a file; remove it", path.display()),
        ));
    }
    let mut file = File::from(fd);
    if !lock_patiently(&file, LOCK_PATIENCE).doing(|| doing("lock"))? {
        return Err(taken(key, &mut file, path));
    }
    let pid = rustix::process::getpid().as_raw_nonzero();
    file.set_len(0).and_then(|()| writeln!(file, "{pid}")).doing(|| doing("write"))?;
    Ok(file)
}

/// Takes a lock, or returns false when another process has it for longer than `patience`.
pub(crate) fn lock_patiently(
    file: impl AsFd,
    patience: Duration,
) -> std::result::Result<bool, Errno> {
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
}

fn taken(key: &'static str, file: &mut File, path: &Path) -> Error {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    let holder = match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("berth with pid {pid}"),
        _ => "another process".to_owned(),
    };
    Error::Exists {
        what: format!("the lock of the {key} directory {}", path.display()),
        problem: format!(
            "{holder} has it; stop that one, or name other directories with --root and --state"
        ),
    }
}

#[cfg(test)]
mod tests;
