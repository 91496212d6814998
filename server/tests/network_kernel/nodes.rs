//! Network namespaces to play node, pods and world in, and sockets to try the ways between them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use server::network::{Attachment, Bridge, Config, PortMapping, Protocol, pod_sysctls};

/// How long a packet may take that arrives.
const ARRIVES: Duration = Duration::from_secs(5);
/// How long we wait for one that must not.
const NEVER: Duration = Duration::from_millis(400);

/// A network namespace. It ends with this and the sockets in it.
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    pub(crate) fn new() -> Namespace {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Namespace(File::open("/proc/thread-self/ns/net").unwrap().into())
        };
        let namespace = thread::scope(|scope| scope.spawn(make).join().unwrap());
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs a closure on a thread in the namespace. Sockets it opens stay there.
    #[track_caller]
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        let done = thread::scope(|scope| scope.spawn(enter).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs shell commands, and returns what they printed.
    #[track_caller]
    pub(crate) fn sh(&self, commands: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", commands]).output().unwrap());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{commands}: {text}{error}");
        text
    }

    /// The namespace as `ip link ... netns` takes it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A setting below /proc/sys.
    pub(crate) fn setting(&self, name: &str) -> String {
        self.run(|| std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap())
            .trim()
            .to_owned()
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        self.run(|| std::fs::write(Path::new("/proc/sys").join(name), value).unwrap());
    }

    pub(crate) fn tcp_listener(&self, address: &str) -> TcpListener {
        self.run(|| TcpListener::bind(address).unwrap())
    }

    pub(crate) fn udp_socket(&self, address: &str) -> UdpSocket {
        self.run(|| UdpSocket::bind(address).unwrap())
    }
}

/// A node with two addresses on a wire to the world, and berth's bridge.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) world: Namespace,
    pub(crate) config: Config,
    _directory: tempfile::TempDir,
}

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(crate) const NODE_TOO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

impl Node {
    pub(crate) fn new() -> Node {
        let (namespace, world) = (Namespace::new(), Namespace::new());
        let peer = world.path();
        // A new namespace has it as the first one has it.
        namespace.set("net/ipv4/ip_forward", "0");
        namespace.sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {peer}
             ip address add {NODE}/24 dev eth0
             ip address add {NODE_TOO}/24 dev eth0
             ip link set eth0 up"
        ));
        world.sh(&format!("ip address add {WORLD}/24 dev eth0; ip link set eth0 up"));
        namespace.sh(&format!("ip route add default via {WORLD}"));
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            instance: "0a1b2c3d".to_owned(),
            directory: directory.path().join("network"),
            subnet: Some("10.64.0.0/20".to_owned()),
        };
        Node { namespace, world, config, _directory: directory }
    }

    pub(crate) fn open(&self, records: &[Attachment]) -> Bridge {
        self.namespace.run(|| Bridge::open(&self.config, records)).unwrap()
    }

    /// A pod on the bridge.
    #[track_caller]
    pub(crate) fn pod(&self, bridge: &Bridge, sandbox: &str, ports: &[PortMapping]) -> Pod {
        let pod = Pod::prepare();
        let attachment = self.namespace.run(|| bridge.plan(sandbox, ports)).unwrap();
        self.attach(bridge, &pod, &attachment).unwrap();
        Pod { address: attachment.address, attachment: Some(attachment), ..pod }
    }

    pub(crate) fn attach(
        &self,
        bridge: &Bridge,
        pod: &Pod,
        attachment: &Attachment,
    ) -> server::network::Result<()> {
        let (netns, route) = pod.descriptors();
        self.namespace.run(|| bridge.attach(attachment, netns, route))
    }

    pub(crate) fn detach(&self, bridge: &Bridge, attachment: &Attachment) {
        self.namespace.run(|| bridge.detach(attachment)).unwrap();
    }

    /// All links, IPv4 addresses, routes and rules of the node and who forwards, without what
    /// comes and goes by itself, such as a carrier.
    pub(crate) fn census(&self) -> Census {
        let text = self.namespace.sh("ip -o link | sed 's/^[0-9]*: //; s/[@:].*//' | sort
             ip -o -4 address | sed 's/^[0-9]*: //; s/ *valid_lft.*//' | sort
             ip -4 route show table all | sed 's/ linkdown//' | sort
             nft list ruleset
             cat /proc/sys/net/ipv4/ip_forward");
        Census(text)
    }
}

/// Compares as a whole, and shows itself line by line.
#[derive(PartialEq, Eq)]
pub(crate) struct Census(String);

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\n{}", self.0)
    }
}

/// A pod as the shim prepares it.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    route: OwnedFd,
    pub(crate) address: Ipv4Addr,
    attachment: Option<Attachment>,
}

impl Pod {
    pub(crate) fn prepare() -> Pod {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for (name, value) in pod_sysctls() {
                std::fs::write(Path::new("/proc/sys").join(name), value).unwrap();
            }
            let flags = SocketFlags::CLOEXEC;
            let route = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).unwrap();
            bind(&route, &SocketAddrNetlink::new(0, 0)).unwrap();
            let file = File::open("/proc/thread-self/ns/net").unwrap();
            (Namespace(file.into()), route)
        };
        let (namespace, route) = thread::scope(|scope| scope.spawn(make).join().unwrap());
        Pod { namespace, route, address: Ipv4Addr::UNSPECIFIED, attachment: None }
    }

    /// Its network namespace, and the route socket in there.
    pub(crate) fn descriptors(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.namespace.0.as_fd(), self.route.as_fd())
    }

    pub(crate) fn attachment(&self) -> &Attachment {
        self.attachment.as_ref().unwrap()
    }
}

pub(crate) fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip: None }
}

pub(crate) fn udp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Udp, ..tcp(host_port, container_port) }
}

pub(crate) fn at(address: Ipv4Addr, mapping: PortMapping) -> PortMapping {
    PortMapping { host_ip: Some(IpAddr::V4(address)), ..mapping }
}

/// Connects, and exchanges a word each way. Returns whom the listener saw.
pub(crate) fn tcp_source(
    from: &Namespace,
    to: (Ipv4Addr, u16),
    listener: &TcpListener,
) -> io::Result<IpAddr> {
    let connect = || TcpStream::connect_timeout(&SocketAddr::from(to), ARRIVES);
    talk(from.run(connect)?, listener)
}

fn talk(mut client: TcpStream, listener: &TcpListener) -> io::Result<IpAddr> {
    let (mut server, peer) = listener.accept()?;
    let mut word = [0; 4];
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(ARRIVES))?;
    }
    client.write_all(b"ping")?;
    server.read_exact(&mut word)?;
    server.write_all(b"pong")?;
    client.read_exact(&mut word)?;
    assert_eq!(&word, b"pong");
    Ok(peer.ip())
}

/// Sends a datagram and gets one back, from where it was sent to. Returns whom the server saw.
pub(crate) fn udp_source(
    from: &Namespace,
    to: (Ipv4Addr, u16),
    server: &UdpSocket,
) -> io::Result<IpAddr> {
    let client = from.udp_socket("0.0.0.0:0");
    exchange(&client, to, server, ARRIVES)
}

/// As [`udp_source`], from a socket that may have talked before.
pub(crate) fn exchange(
    client: &UdpSocket,
    to: (Ipv4Addr, u16),
    server: &UdpSocket,
    patience: Duration,
) -> io::Result<IpAddr> {
    server.set_read_timeout(Some(patience))?;
    client.set_read_timeout(Some(ARRIVES))?;
    client.send_to(b"ping", to)?;
    let mut word = [0; 4];
    let (_, peer) = server.recv_from(&mut word)?;
    server.send_to(b"pong", peer)?;
    let (_, answered) = client.recv_from(&mut word)?;
    assert_eq!(answered, SocketAddr::from(to), "the answer comes from where we sent to");
    Ok(peer.ip())
}

/// Nothing gets there: no connection within a time in which others are made.
#[track_caller]
pub(crate) fn check_unreachable(from: &Namespace, to: (Ipv4Addr, u16)) {
    let connect = || TcpStream::connect_timeout(&SocketAddr::from(to), NEVER);
    let result = from.run(connect).map(|stream| stream.peer_addr());
    assert!(result.is_err(), "{to:?} is reachable: {result:?}");
}
