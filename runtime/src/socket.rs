//! Packets with descriptors on unix sockets.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The largest packet that is taken.
const MAX_PACKET: usize = 512 << 10;
/// Descriptors that may come with a packet. The kernel takes up to 253 (SCM_MAX_FD).
pub(crate) const MAX_FDS: usize = 64;

/// Calls again what a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Sends one packet with descriptors.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "too many descriptors in one message",
        ));
    }
    retry(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL))
        .map(drop)
}

/// Receives one packet with its descriptors; empty at the end. A packet that does not fit is an error.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // The size of the next packet, without taking it: most are small.
    let size = retry(|| {
        rustix::net::recv(socket, &mut [0u8; 0][..], flags | RecvFlags::PEEK | RecvFlags::TRUNC)
    })?
    .1;
    let mut bytes = vec![0; size.clamp(1, MAX_PACKET)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received =
        retry(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags))?;
    if received.flags.intersects(rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC)
    {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a message was cut"));
    }
    bytes.truncate(received.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((bytes, fds))
}
