//! Makes the daemon's unix socket.
//!
//! It is bound under another name, gets its mode and group while nobody can connect yet,
//! and only then takes its place by a rename: there is no moment with wrong permissions,
//! whatever the umask, and none without a socket when a stale one is replaced. Names are
//! given through a descriptor of the directory, so the path may be longer than the 108
//! bytes of a socket address.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Doing, Error, Result};
use crate::instance::lock_patiently;

/// Root and the group.
const MODE: Mode = Mode::from_raw_mode(0o660);

/// Clients that may wait to be accepted.
const QUEUE: i32 = 512;

/// The longest file name that, behind `/proc/self/fd/N/`, fits into a socket address.
const LONGEST_NAME: usize = 80;

/// How long another daemon is waited for that is binding in the same directory.
const PATIENCE: Duration = Duration::from_secs(1);

/// A listening socket; its file goes when this is dropped, unless another has its place.
#[derive(Debug)]
pub struct Socket {
    /// Blocks nobody, is closed in programs that are started.
    pub listener: std::os::unix::net::UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    directory: OwnedFd,
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Listens at `path`, reachable by root and by the members of `group` where it exists. The
/// directory is made where it is missing.
///
/// # Errors
///
/// [`Error::Exists`] when another daemon answers there, [`Error::Invalid`] when something
/// that is no socket is there.
pub fn bind(path: &Path, group: &str) -> Result<Socket> {
    let doing = |what: &str| format!("{what} the socket {}", path.display());
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid("socket", format!("{} names no file", path.display())))?;
    if name.len() > LONGEST_NAME {
        let problem = format!(
            "{} has a file name of more than {LONGEST_NAME} bytes; shorten it",
            path.display()
        );
        return Err(Error::invalid("socket", problem));
    }
    let directory = open_directory(path)?;
    if !lock_patiently(&directory, PATIENCE).doing(|| doing("lock the directory of"))? {
        let what = "a lock on the socket's directory".to_owned();
        return Err(Error::Exists {
            what,
            problem: "another process holds it; stop that one".to_owned(),
        });
    }
    refuse_if_answered(&directory, name, path)?;

    let new = format!(".berth-{}", rustix::process::getpid().as_raw_nonzero());
    match rustix::fs::unlinkat(&directory, &new, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => (),
        Err(errno) => return Err(errno).doing(|| doing("clear the way of")),
    }
    let socket = new_socket().doing(|| doing("make"))?;
    let address = address(&directory, OsStr::new(&new)).doing(|| doing("name"))?;
    rustix::net::bind(&socket, &address).doing(|| doing("bind"))?;
    rustix::fs::chmodat(&directory, &new, MODE, AtFlags::empty())
        .doing(|| doing("set the mode of"))?;
    if let Some(gid) = group_id(group) {
        rustix::fs::chownat(&directory, &new, None, Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .doing(|| doing("set the group of"))?;
    } else {
        tracing::debug!(group, "there is no such group, so only root may use the socket");
    }
    rustix::net::listen(&socket, QUEUE).doing(|| doing("listen at"))?;
    let stat = rustix::fs::statat(&directory, &new, AtFlags::SYMLINK_NOFOLLOW)
        .doing(|| doing("look at"))?;
    rustix::fs::renameat(&directory, &new, &directory, name).doing(|| doing("put in place"))?;
    unlock(&directory).doing(|| doing("unlock the directory of"))?;
    let file =
        SocketFile { directory, path: path.to_owned(), device: stat.st_dev, inode: stat.st_ino };
    Ok(Socket { listener: socket.into(), file })
}

impl Socket {
    /// The listener for the runtime that is entered, and the guard of its file.
    pub fn into_tokio(self) -> Result<(tokio::net::UnixListener, impl Drop + Send)> {
        let listener = tokio::net::UnixListener::from_std(self.listener)
            .doing(|| format!("watch the socket {}", self.file.path.display()))?;
        Ok((listener, self.file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(name) = self.path.file_name() else { return };
        let Ok(stat) = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        if (stat.st_dev, stat.st_ino) != (self.device, self.inode) {
            return;
        }
        if let Err(error) = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let doing = |what: &str| format!("{what} the socket's directory {}", directory.display());
    std::fs::create_dir_all(directory).doing(|| doing("make"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).doing(|| doing("open"))
}

/// Looks at what is at the place of the socket: nothing and a dead socket are fine.
fn refuse_if_answered(directory: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    let doing = |what: &str| format!("{what} {}", path.display());
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno).doing(|| doing("look at")),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        let problem = format!(
            "{} is there and is no socket; remove it, or name another place",
            path.display()
        );
        return Err(Error::invalid("socket", problem));
    }
    let probe = new_socket().doing(|| doing("make a socket to try"))?;
    let address = address(directory, name).doing(|| doing("name"))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // A full queue is a daemon, too.
        Ok(()) | Err(Errno::AGAIN) => {
            let holder = match rustix::net::sockopt::socket_peercred(&probe) {
                Ok(peer) => format!("pid {}", peer.pid.as_raw_nonzero()),
                Err(_) => "another process".to_owned(),
            };
            let problem = format!(
                "{holder} answers there; stop it, or name another with --socket or --state"
            );
            Err(Error::Exists { what: format!("the socket {}", path.display()), problem })
        }
        Err(errno) => Err(errno).doing(|| doing("see whether a daemon answers at")),
    }
}

fn new_socket() -> std::result::Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn address(directory: &OwnedFd, name: &OsStr) -> std::result::Result<SocketAddrUnix, Errno> {
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    SocketAddrUnix::new(&path)
}

fn unlock(directory: impl AsFd) -> std::result::Result<(), Errno> {
    rustix::fs::flock(directory, rustix::fs::FlockOperation::Unlock)
}

/// Finds a group in /etc/group. The name services are not asked: some of them wait for a
/// network that is not there yet when a node starts.
fn group_id(name: &str) -> Option<Gid> {
    let mut text = String::new();
    std::fs::File::open("/etc/group").ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
    find_group(&text, name)
}

fn find_group(text: &str, name: &str) -> Option<Gid> {
    let group = |line: &str| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let id = fields.nth(1)?.parse().ok()?;
        found.then(|| Gid::from_raw(id))
    };
    text.lines().find_map(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
    use std::os::unix::net::UnixStream;

    #[track_caller]
    fn check_refused(path: &Path, expected: &str) {
        let error = bind(path, "berth").expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn the_socket_is_root_and_groups_alone_and_goes_with_its_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/berth.sock");
        let socket = bind(&path, "no-such-group").unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(
            (meta.mode() & 0o7777, meta.gid()),
            (0o660, rustix::process::getegid().as_raw())
        );
        UnixStream::connect(&path).unwrap();
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no other name is left"
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_may_be_longer_than_a_socket_address() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120)).join("e".repeat(120)).join("berth.sock");
        let socket = bind(&deep, "berth").unwrap();
        check_refused(&deep, &format!("pid {} answers there", std::process::id()));
        drop(socket);
        check_refused(&folder.path().join("n".repeat(81)), "a file name of more than 80 bytes");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("berth.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = bind(&path, "berth").unwrap();
        check_refused(&path, &format!("pid {} answers there", std::process::id()));
        drop(socket);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        check_refused(&file, "is there and is no socket");
        let link = folder.path().join("link");
        symlink("/nowhere", &link).unwrap();
        check_refused(&link, "is there and is no socket");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn the_file_of_another_daemon_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("berth.sock");
        let socket = bind(&path, "berth").unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = bind(&path, "berth").unwrap();
        drop(socket);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nberthing:x:7:\nberth:x:998:alice,bob\nbad\n:x:1:\n";
        let check = |name: &str, expected: Option<u32>| {
            assert_eq!(find_group(text, name).map(|gid| gid.as_raw()), expected)
        };
        check("berth", Some(998));
        check("root", Some(0));
        check("bert", None);
        check("bad", None);
    }
}
