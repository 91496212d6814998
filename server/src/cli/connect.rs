//! The way to the daemon: which socket, and what to say when nobody answers there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::control::control_client::ControlClient;
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::failure::Failure;

/// The environment variable that names the socket.
const VARIABLE: &str = "BERTH_SOCKET";
const DEFAULT: &str = "/run/berth/berth.sock";
/// A daemon that runs takes a connection at once; one that is stuck has a full queue.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// What the daemon may send ahead of our reading: output that nobody reads stays where it is made.
const WINDOW: u32 = 1 << 20;
/// Messages with output are of 64 KiB and a little: one frame each, not five.
const FRAME: u32 = 128 << 10;
/// A list of tens of thousands of containers is some tens of megabytes.
const LONGEST_MESSAGE: usize = 256 << 20;

/// The flag that names the daemon's socket.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Socket {
    /// The daemon's socket [env: BERTH_SOCKET] [default: /run/berth/berth.sock]
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    socket: Option<PathBuf>,
}

impl Socket {
    /// The flag, else the variable, else the default.
    pub(super) fn path(&self) -> PathBuf {
        choose(self.socket.clone(), std::env::var_os(VARIABLE).map(PathBuf::from))
    }
}

fn choose(flag: Option<PathBuf>, variable: Option<PathBuf>) -> PathBuf {
    let set = |path: &PathBuf| !path.as_os_str().is_empty();
    flag.or(variable.filter(set)).unwrap_or_else(|| DEFAULT.into())
}

/// The daemon.
pub(super) type Client = ControlClient<Channel>;

/// Connects to the daemon. The connection is there when this returns; nothing is sent yet.
///
/// # Errors
/// With the path, the reason and what to do.
pub(super) async fn connect(socket: &Socket) -> Result<Client, Failure> {
    let path = socket.path();
    let stream = open(&path).map_err(|error| explain(&path, &error))?;
    over(stream).await.map_err(|error| Failure::step("speak to the daemon", &error))
}

/// The daemon at the other end of a connected socket.
pub(super) async fn over(stream: OwnedFd) -> Result<Client, tonic::transport::Error> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        // There is one connection: whoever loses it has lost the daemon's state, too.
        let stream = stream.take();
        async move {
            let stream = stream.ok_or(io::ErrorKind::ConnectionAborted)?;
            UnixStream::from_std(stream.into()).map(TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://berth")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_frame_size(FRAME)
        .connect_with_connector(connector)
        .await?;
    Ok(ControlClient::new(channel).max_decoding_message_size(LONGEST_MESSAGE))
}

/// A connected socket that does not block. A path may be longer than an address: then it is
/// reached through its directory's descriptor.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // unix(7): a connect that waits for room in the queue of the listener ends with this timeout.
    set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_DEADLINE))?;
    match SocketAddrUnix::new(path) {
        Ok(address) => rustix::net::connect(&socket, &address)?,
        Err(_) => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(parent, flags, Mode::empty())?;
            let near =
                Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
            rustix::net::connect(&socket, &SocketAddrUnix::new(&near)?)?;
        }
    }
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

fn explain(path: &Path, error: &io::Error) -> Failure {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let group = if denied { group_of(path) } else { None };
    Failure::new(explanation(path, error, group.as_deref()))
}

/// The group that may use the socket, where it is not root's alone.
fn group_of(path: &Path) -> Option<String> {
    let gid = std::fs::metadata(path).ok()?.gid();
    if gid == 0 {
        return None;
    }
    let known = nix::unistd::Group::from_gid(gid.into()).ok().flatten();
    Some(known.map_or_else(|| gid.to_string(), |group| group.name))
}

fn explanation(path: &Path, error: &io::Error, group: Option<&str>) -> String {
    let path = path.display();
    let start = "start the daemon (berth serve), or name its socket with --socket or BERTH_SOCKET";
    match (error.kind(), group) {
        (io::ErrorKind::NotFound, _) => {
            format!("no daemon at {path}: there is no such socket; {start}")
        }
        (io::ErrorKind::ConnectionRefused, _) => {
            format!("no daemon at {path}: nobody listens there any more; {start}")
        }
        (io::ErrorKind::PermissionDenied, Some(group)) => format!(
            "no permission to use {path}: be root, or a member of group {group} \
             (usermod -aG {group} USER, then log in again)"
        ),
        (io::ErrorKind::PermissionDenied, None) => format!(
            "no permission to use {path}: be root; others may once there is a group berth \
             (groupadd --system berth, then start the daemon anew)"
        ),
        (io::ErrorKind::WouldBlock, _) => format!(
            "the daemon at {path} took no connection for {} s: it hangs or is overloaded; see its log",
            CONNECT_DEADLINE.as_secs()
        ),
        _ => format!("connect to {path}: {error}; is that the daemon's socket?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_then_the_variable() {
        let check = |flag: Option<&str>, variable: Option<&str>, expected: &str| {
            let chosen = choose(flag.map(PathBuf::from), variable.map(PathBuf::from));
            assert_eq!(chosen, Path::new(expected));
        };
        check(Some("/a"), Some("/b"), "/a");
        check(None, Some("/b"), "/b");
        check(None, Some(""), "/run/berth/berth.sock");
        check(None, None, "/run/berth/berth.sock");
    }

    #[track_caller]
    fn check(errno: i32, group: Option<&str>, expected: &[&str]) {
        let error = io::Error::from_raw_os_error(errno);
        let text = explanation(Path::new("/run/x.sock"), &error, group);
        for part in expected {
            assert!(text.contains(part), "{text} does not say {part:?}");
        }
        assert!(text.contains("/run/x.sock"), "{text}");
    }

    #[test]
    fn what_keeps_us_out_is_told_with_what_to_do() {
        check(libc::ENOENT, None, &["no such socket", "berth serve", "--socket"]);
        check(libc::ECONNREFUSED, None, &["nobody listens", "berth serve", "--socket"]);
        check(libc::EACCES, Some("wheel"), &["member of group wheel", "usermod -aG wheel"]);
        check(libc::EACCES, None, &["be root", "groupadd"]);
        check(libc::EAGAIN, None, &["hangs", "5 s"]);
        check(libc::ENOTSOCK, None, &["is that the daemon's socket?"]);
    }

    #[test]
    fn a_missing_socket_is_no_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let check = |path: &Path, kind: io::ErrorKind| {
            assert_eq!(open(path).unwrap_err().kind(), kind, "{}", path.display());
        };
        check(&directory.path().join("none"), io::ErrorKind::NotFound);
        let left = directory.path().join("left");
        drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
        check(&left, io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_long_path_is_reached_through_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let handle = std::fs::File::open(&deep).unwrap();
        let near = format!("/proc/self/fd/{}/s", handle.as_raw_fd());
        let listener = std::os::unix::net::UnixListener::bind(near).unwrap();
        open(&deep.join("s")).unwrap();
        listener.accept().unwrap();
    }
}
