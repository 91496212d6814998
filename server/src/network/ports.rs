//! Host ports: who has which, and the sockets that keep them from everybody else.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_reuseaddr};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, getsockname, ipproto, listen, shutdown,
    socket_with,
};

use super::{Error, PortMapping, Protocol, Result};

/// A host port that nobody else on the node can have while the socket is open.
#[derive(Debug)]
pub struct Reservation {
    /// The mapping, with the port that was chosen where 0 was asked for.
    pub mapping: PortMapping,
    /// Bound, and never read or listened on. `None` for SCTP on a kernel without it, where no
    /// other program could have the port either.
    pub socket: Option<OwnedFd>,
}

/// Reserves a host port by binding it in the network namespace of the calling thread.
///
/// The socket never sees a packet while our rules are there, since they send what comes to the
/// port elsewhere before sockets are looked up, on 127.0.0.1 too. If somebody flushes the rules,
/// TCP connections are refused, and UDP datagrams vanish into a buffer of the least size there is
/// (about two of them) until the rules are back: the sender gets no "port unreachable".
///
/// # Errors
///
/// [`Error::PortTaken`] names port, protocol and address; [`Error::Invalid`] where the address is
/// not the node's or is IPv6.
pub fn reserve(mapping: &PortMapping) -> Result<Reservation> {
    let address = host_address(mapping)?.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let wanted = SocketAddrV4::new(address, mapping.host_port);
    let bound = match bind_exclusively(mapping.protocol, wanted) {
        // Connections of a server that has just ended keep its port for a minute.
        Err(Errno::ADDRINUSE) if mapping.protocol == Protocol::Tcp => bind_over_the_dead(wanted),
        other => other,
    };
    let socket = match bound {
        Ok(socket) => socket,
        Err(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT)
            if mapping.protocol == Protocol::Sctp && mapping.host_port != 0 =>
        {
            return Ok(Reservation { mapping: mapping.clone(), socket: None });
        }
        Err(errno) => return Err(refused(mapping, errno)),
    };
    let name = getsockname(&socket).map_err(|errno| refused(mapping, errno))?;
    let host_port = match SocketAddr::try_from(name) {
        Ok(name) => name.port(),
        Err(errno) => return Err(refused(mapping, errno)),
    };
    Ok(Reservation { mapping: PortMapping { host_port, ..mapping.clone() }, socket: Some(socket) })
}

fn refused(mapping: &PortMapping, errno: Errno) -> Error {
    let what = describe(mapping);
    match errno {
        Errno::ADDRINUSE => Error::PortTaken(what),
        Errno::ADDRNOTAVAIL => {
            Error::Invalid(format!("host port {what}: this node does not have that address"))
        }
        errno => Error::kernel(format!("reserve host port {what}"), errno),
    }
}

fn bind_exclusively(protocol: Protocol, address: SocketAddrV4) -> Result<OwnedFd, Errno> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, Some(number))?;
    if protocol == Protocol::Udp {
        set_socket_recv_buffer_size(&socket, 0)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

/// Binds a TCP port whose only other users are connections that have ended (TIME_WAIT).
///
/// SO_REUSEADDR lets us in beside them, but beside any other bound socket with the option too;
/// listening is what the kernel grants to one alone. So we listen for a moment, and stay bound.
fn bind_over_the_dead(address: SocketAddrV4) -> Result<OwnedFd, Errno> {
    let kind = SocketType::STREAM;
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, 0)?;
    shutdown(&socket, Shutdown::Read)?;
    set_socket_reuseaddr(&socket, false)?;
    Ok(socket)
}

/// The address of the node that a mapping is for, `None` for all of them.
///
/// # Errors
///
/// [`Error::Invalid`] for IPv6.
pub(crate) fn host_address(mapping: &PortMapping) -> Result<Option<Ipv4Addr>> {
    match mapping.host_ip {
        None => Ok(None),
        Some(IpAddr::V4(address)) if address.is_unspecified() => Ok(None),
        Some(IpAddr::V4(address)) => Ok(Some(address)),
        Some(IpAddr::V6(_)) => Err(Error::Invalid(format!(
            "host port {}: the built-in network has no IPv6; give an IPv4 address or none",
            describe(mapping)
        ))),
    }
}

/// As in "host port 127.0.0.1:8080/tcp is taken".
pub(crate) fn describe(mapping: &PortMapping) -> String {
    let (port, protocol) = (mapping.host_port, mapping.protocol.name());
    match mapping.host_ip {
        None => format!("{port}/{protocol}"),
        Some(address) => format!("{}/{protocol}", SocketAddr::new(address, port)),
    }
}

/// Which sandbox has which host port. SCTP has only this on a kernel without SCTP sockets.
#[derive(Debug, Default)]
pub(crate) struct PortTable(HashMap<(Protocol, u16), Vec<Holder>>);

#[derive(Debug)]
struct Holder {
    address: Option<Ipv4Addr>,
    sandbox: String,
}

impl PortTable {
    /// Takes all the ports for the sandbox, or none.
    ///
    /// # Errors
    ///
    /// [`Error::PortTaken`] where another sandbox, or another mapping of the same, has one of
    /// them; [`Error::Invalid`] for a port 0 or an IPv6 address.
    pub(crate) fn take(&mut self, sandbox: &str, mappings: &[PortMapping]) -> Result<()> {
        for (index, mapping) in mappings.iter().enumerate() {
            if let Err(error) = self.take_one(sandbox, mapping) {
                self.release(sandbox, &mappings[..index]);
                return Err(error);
            }
        }
        Ok(())
    }

    fn take_one(&mut self, sandbox: &str, mapping: &PortMapping) -> Result<()> {
        let address = host_address(mapping)?;
        if mapping.host_port == 0 || mapping.container_port == 0 {
            return Err(Error::Invalid(format!(
                "port mapping {} to {}: neither port can be 0 here",
                describe(mapping),
                mapping.container_port
            )));
        }
        let holders = self.0.entry((mapping.protocol, mapping.host_port)).or_default();
        let clash =
            |held: &Holder| held.address.is_none() || address.is_none() || held.address == address;
        if holders.iter().any(clash) {
            return Err(Error::PortTaken(describe(mapping)));
        }
        holders.push(Holder { address, sandbox: sandbox.to_owned() });
        Ok(())
    }

    /// Gives back what the sandbox has of these.
    pub(crate) fn release(&mut self, sandbox: &str, mappings: &[PortMapping]) {
        for mapping in mappings {
            let key = (mapping.protocol, mapping.host_port);
            let Ok(address) = host_address(mapping) else { continue };
            if let Some(holders) = self.0.get_mut(&key) {
                holders.retain(|held| held.sandbox != sandbox || held.address != address);
                if holders.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
    }
}
