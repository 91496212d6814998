//! How messages cross the socket between daemon and shim.
//!
//! A packet is one byte that says where the message is, and the message: 0 for right
//! here, 1 for in a sealed memfd that is the first of the descriptors, for messages
//! over 64 KiB. Sockets are SOCK_SEQPACKET, so a packet is whole or it is an error.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{RecvFlags, SendFlags};

use crate::socket;

/// Version of the protocol: counts what was added.
pub const VERSION: u32 = 1;
/// Messages up to this size travel in the packet.
const MAX_INLINE: usize = 64 << 10;
/// Larger messages are refused: a spec with 5,000 mounts has about one megabyte.
const MAX_MESSAGE: u64 = 16 << 20;

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// Sends a message with descriptors.
///
/// # Errors
/// Those of sendmsg(2): EAGAIN without waiting where `flags` say so and the peer does not read.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Message,
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut packet = Vec::with_capacity(message.encoded_len() + 1);
    packet.push(INLINE);
    message.encode(&mut packet).map_err(io::Error::other)?;
    if packet.len() <= MAX_INLINE {
        return socket::send(socket, &packet, fds, flags);
    }
    let memory = sealed(c"berth-message", &packet[1..])?;
    let mut all = vec![memory.as_fd()];
    all.extend(fds);
    socket::send(socket, &[IN_MEMFD], &all, flags)
}

/// Bytes in memory that nobody can change any more, to be passed on.
///
/// # Errors
/// Those of memfd_create(2) and writing.
pub fn sealed(name: &std::ffi::CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file.into())
}

/// What came out of a socket.
#[derive(Debug)]
pub enum Received<M> {
    /// A message with its descriptors.
    Message(M, Vec<OwnedFd>),
    /// The peer has closed.
    End,
}

/// Receives a message.
///
/// # Errors
/// Those of recvmsg(2): WouldBlock where `flags` say not to wait; `InvalidData` for what is no message.
pub fn receive<M: Message + Default>(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> io::Result<Received<M>> {
    let (packet, mut fds) = socket::receive(socket, flags)?;
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let decode = |bytes: &[u8]| {
        M::decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    match packet.split_first() {
        None => Ok(Received::End),
        Some((&INLINE, bytes)) => Ok(Received::Message(decode(bytes)?, fds)),
        Some((&IN_MEMFD, _)) if !fds.is_empty() => {
            let seals = rustix::fs::fcntl_get_seals(&fds[0])?;
            if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
                return Err(damaged("a message in memory that is not sealed"));
            }
            let file = File::from(fds.remove(0));
            let mut bytes = Vec::new();
            // The sender's offset is at the end of what it wrote.
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
            file.take(MAX_MESSAGE + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MAX_MESSAGE {
                return Err(damaged("a message over 16 MiB"));
            }
            Ok(Received::Message(decode(&bytes)?, fds))
        }
        Some(_) => Err(damaged("a packet of an unknown kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{HolderFile, MakeNamespaces, Request, request};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn request(size: usize) -> Request {
        let files = vec![HolderFile { name: "hosts".into(), content: vec![7; size] }];
        let make = MakeNamespaces { files, ..Default::default() };
        Request { id: 9, call: Some(request::Call::MakeNamespaces(make)) }
    }

    #[track_caller]
    fn check_round_trip(size: usize) {
        let (a, b) = pair();
        send(a.as_fd(), &request(size), &[a.as_fd(), b.as_fd()], SendFlags::empty()).unwrap();
        match receive::<Request>(b.as_fd(), RecvFlags::empty()).unwrap() {
            Received::Message(message, fds) => {
                assert_eq!(message, request(size));
                assert_eq!(fds.len(), 2);
            }
            Received::End => panic!("the end"),
        }
    }

    #[test]
    fn messages_of_every_size_arrive_with_their_descriptors() {
        for size in [0, 100, 65_000, 65_536, 1 << 20] {
            check_round_trip(size);
        }
    }

    #[test]
    fn the_end_is_told_from_nothing_yet() {
        let (a, b) = pair();
        let error = receive::<Request>(b.as_fd(), RecvFlags::DONTWAIT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(matches!(
            receive::<Request>(b.as_fd(), RecvFlags::DONTWAIT).unwrap(),
            Received::End
        ));
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for packet in [&[0, 0xff][..], &[1], &[2, 0]] {
            let (a, b) = pair();
            socket::send(a.as_fd(), packet, &[], SendFlags::empty()).unwrap();
            assert_eq!(
                receive::<Request>(b.as_fd(), RecvFlags::empty()).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }

    #[test]
    fn memory_that_could_still_change_is_refused() {
        let (a, b) = pair();
        let memory =
            rustix::fs::memfd_create("m", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        socket::send(a.as_fd(), &[IN_MEMFD], &[memory.as_fd()], SendFlags::empty()).unwrap();
        assert!(receive::<Request>(b.as_fd(), RecvFlags::empty()).is_err());
    }
}
