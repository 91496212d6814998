//! Tells systemd how the daemon is (sd_notify(3)). The protocol is one datagram of lines,
//! so it is spoken here rather than by another crate.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// A manager that is busy is waited for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A way to the manager, where there is one: without NOTIFY_SOCKET nothing is said.
#[derive(Debug)]
pub struct Notify {
    to: Option<(OwnedFd, SocketAddrUnix)>,
}

impl Notify {
    /// Finds the manager. One that cannot be reached is logged and done without.
    pub fn from_env() -> Notify {
        Notify::to(std::env::var_os("NOTIFY_SOCKET"))
    }

    fn to(socket: Option<OsString>) -> Notify {
        let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
            return Notify { to: None };
        };
        match connect(&socket) {
            Ok(to) => Notify { to: Some(to) },
            Err(error) => {
                tracing::warn!(%error, ?socket, "cannot reach the service manager");
                Notify { to: None }
            }
        }
    }

    /// The daemon serves.
    pub fn ready(&self, status: &str) {
        let pid = rustix::process::getpid().as_raw_nonzero();
        self.send(&format!("READY=1\nMAINPID={pid}\nSTATUS={status}"));
    }

    /// The daemon stops.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    fn send(&self, text: &str) {
        let Some((socket, address)) = &self.to else { return };
        if let Err(error) =
            rustix::net::sendto(socket, text.as_bytes(), SendFlags::NOSIGNAL, address)
        {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}

fn connect(socket: &OsStr) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&fd, Timeout::Send, Some(PATIENCE))?;
    Ok((fd, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[track_caller]
    fn check_datagrams(manager: &UnixDatagram, socket: OsString) {
        let notify = Notify::to(Some(socket));
        let mut buffer = [0; 1000];
        let mut next = || {
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        notify.ready("listening");
        assert_eq!(next(), format!("READY=1\nMAINPID={}\nSTATUS=listening", std::process::id()));
        notify.status("2 pods");
        assert_eq!(next(), "STATUS=2 pods");
        notify.stopping("draining");
        assert_eq!(next(), "STOPPING=1\nSTATUS=draining");
    }

    #[test]
    fn a_manager_with_a_path_hears_each_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        check_datagrams(&UnixDatagram::bind(&path).unwrap(), path.into());
    }

    #[test]
    fn a_manager_with_an_abstract_name_hears_each_state() {
        let name = format!("berth-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        check_datagrams(&UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}").into());
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        for socket in [
            None,
            Some(OsString::new()),
            Some("/does/not/exist".into()),
            Some("x".repeat(200).into()),
        ] {
            Notify::to(socket).ready("listening");
        }
    }
}
