//! Port forwarding: connections to what listens inside a sandbox's network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::{Sandbox, State};
use crate::app::App;
use crate::error::{Doing, Error, Result};

/// A loopback connection is there at once, or the program's queue is full.
const DEADLINE: Duration = Duration::from_secs(10);

/// Connects to a port of a sandbox: at 127.0.0.1, else at ::1, as its own programs would. In a sandbox of the node's
/// network these are the node's.
///
/// # Errors
/// The sandbox is not ready, or nobody listens there.
pub async fn connect(app: &App, sandbox: &Arc<Sandbox>, port: u16) -> Result<TcpStream> {
    let netns = {
        let record = sandbox.record();
        if record.state != State::Ready {
            return Err(Error::WrongState {
                what: format!("sandbox {}", sandbox.id),
                state: "not ready".into(),
                problem: "only ports of a sandbox that is ready can be forwarded".into(),
            });
        }
        record.spec.has_network_namespace().then(|| app.netns_path(&sandbox.id))
    };
    let doing = || format!("connect to port {port} of sandbox {}", sandbox.id);
    let connecting = async {
        let [v4, v6] = sockets(netns).await?;
        let refused = match connect_one(v4, IpAddr::V4(Ipv4Addr::LOCALHOST), port).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match connect_one(v6, IpAddr::V6(Ipv6Addr::LOCALHOST), port).await {
            Ok(stream) => Ok(stream),
            // What the first address says is what people know.
            Err(_) => Err(refused).doing(doing),
        }
    };
    match tokio::time::timeout(DEADLINE, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(Error::Timeout { doing: doing(), after: DEADLINE }),
    }
}

/// A socket for each family: it stays in the namespace in which it is made. On a thread of its own, which then ends:
/// one that has been elsewhere must not serve others.
async fn sockets(netns: Option<PathBuf>) -> Result<[std::io::Result<OwnedFd>; 2]> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        let entered = netns.as_deref().map_or(Ok(()), enter);
        let made = entered.map(|()| [AddressFamily::INET, AddressFamily::INET6].map(socket));
        // Whoever asked may have given up.
        let _gone = sender.send(made);
    };
    std::thread::Builder::new()
        .name("port-forward".into())
        .spawn(work)
        .doing(|| "start a thread")?;
    receiver.await.map_err(|error| Error::Failed {
        doing: "make sockets in a network namespace".into(),
        source: Box::new(error),
    })?
}

fn enter(netns: &Path) -> Result<()> {
    let doing = || format!("enter the network namespace {}", netns.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(netns, flags, Mode::empty()).doing(doing)?;
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(LinkNameSpaceType::Network),
    )
    .doing(doing)
}

fn socket(family: AddressFamily) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

async fn connect_one(
    socket: std::io::Result<OwnedFd>,
    address: IpAddr,
    port: u16,
) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket?.into());
    let stream = socket.connect(SocketAddr::new(address, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
