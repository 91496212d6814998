//! The line between the shim and a process that it has cloned and that is not yet
//! its program: a socket pair that closes by execve, and a shared page.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use crate::error::Error;
use crate::socket::{receive, retry, send};
use crate::spec::{Failure, FailureKind, Reply, reply};
use crate::sys::page::SharedPage;

/// The steps of a set-up, for those who ask how far it is, and for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// Nothing yet.
    Begin,
    /// Entering the cgroup, OOM score, labels.
    Cgroup,
    /// Taking mount sources on the host.
    Sources,
    /// Entering namespaces.
    Namespaces,
    /// The root and user look-up.
    Root,
    /// Mounts, devices, masks.
    Mounts,
    /// Making the root the root.
    Pivot,
    /// Terminal, working directory, limits, user.
    Process,
    /// All is ready; waiting for the start.
    Wait,
    /// seccomp, capabilities, execve.
    Execute,
}

impl Step {
    const ALL: [Step; 10] = [
        Step::Begin,
        Step::Cgroup,
        Step::Sources,
        Step::Namespaces,
        Step::Root,
        Step::Mounts,
        Step::Pivot,
        Step::Process,
        Step::Wait,
        Step::Execute,
    ];

    /// As it is told to people.
    pub fn name(self) -> &'static str {
        match self {
            Step::Begin => "begin",
            Step::Cgroup => "cgroup",
            Step::Sources => "mount sources",
            Step::Namespaces => "namespaces",
            Step::Root => "root file system",
            Step::Mounts => "mounts",
            Step::Pivot => "change of root",
            Step::Process => "process",
            Step::Wait => "wait",
            Step::Execute => "execute",
        }
    }

    /// The step that a page says.
    pub fn of(page: &SharedPage) -> Step {
        let index = usize::try_from(page.step()).unwrap_or(usize::MAX);
        Step::ALL.get(index).copied().unwrap_or(Step::Begin)
    }
}

/// The child's end of the line.
#[derive(Debug)]
pub struct Line<'a> {
    socket: OwnedFd,
    page: &'a SharedPage,
}

impl Line<'_> {
    /// Says that a step begins.
    pub fn at(&self, step: Step) {
        self.page.set_step(step as u32);
    }

    /// The descriptor that must stay open until execve.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Tells the shim; a shim that has gone is told nothing.
    pub fn report(&self, result: reply::Result, fds: &[BorrowedFd<'_>]) {
        let reply = Reply { id: 0, result: Some(result) }.encode_to_vec();
        let _gone = send(self.socket.as_fd(), &reply, fds, SendFlags::empty());
    }

    /// Waits for the word to go on.
    ///
    /// # Errors
    /// The shim has gone, and with it whoever would start the program.
    pub fn wait(&self) -> std::io::Result<()> {
        let mut byte = [0];
        match retry(|| rustix::io::read(&self.socket, &mut byte))? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reports an error of the set-up and ends the process.
    pub fn fail(&self, error: &Error) -> ! {
        self.report(reply::Result::Failure(failure(error, Step::of(self.page))), &[]);
        crate::sys::clone::exit_now(1)
    }

    /// Leaves the error of execve on the page, for a filter may deny writing, and ends the process.
    pub fn fail_execute(&self, error: &std::io::Error) -> ! {
        self.page.set_errno(error.raw_os_error().unwrap_or(libc::EIO));
        crate::sys::clone::exit_now(127)
    }
}

/// A failure as it travels.
pub fn failure(error: &Error, step: Step) -> Failure {
    let kind =
        if matches!(error, Error::Invalid(_)) { FailureKind::Invalid } else { FailureKind::Other };
    Failure {
        doing: error.to_string(),
        errno: error.errno().unwrap_or(0),
        step: step.name().into(),
        kind: kind.into(),
    }
}

/// A failure of execve, from the page.
pub fn execute_failure(command: &[u8], errno: i32) -> Failure {
    let kind = match errno {
        libc::ENOENT | libc::ENOTDIR => FailureKind::CommandNotFound,
        libc::EACCES | libc::EPERM | libc::ENOEXEC | libc::EISDIR | libc::ELIBBAD => {
            FailureKind::CommandNotExecutable
        }
        _ => FailureKind::Other,
    };
    Failure {
        doing: format!("run {:?}", String::from_utf8_lossy(command)),
        errno,
        step: Step::Execute.name().into(),
        kind: kind.into(),
    }
}

/// The shim's end: what it reads until the end says how the set-up went.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
    /// How far the child is.
    pub page: SharedPage,
}

/// What came over the line.
#[derive(Debug)]
pub enum Heard {
    /// A report, with its descriptors.
    Report(reply::Result, Vec<OwnedFd>),
    /// The line is closed: by execve, or by the end of the child.
    End,
    /// Nothing yet.
    Nothing,
}

/// Makes a line. Both ends are of this process until the clone.
///
/// # Errors
/// Those of socketpair(2) and mmap(2).
pub fn line() -> std::io::Result<(Watch, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((Watch { socket: ours, page: SharedPage::new()? }, theirs))
}

impl Watch {
    /// The child's end, in the child.
    pub fn into_line(page: &SharedPage, socket: OwnedFd) -> Line<'_> {
        Line { socket, page }
    }

    /// To wait for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Lets the child go on.
    ///
    /// # Errors
    /// The child has gone.
    pub fn release(&self) -> std::io::Result<()> {
        retry(|| rustix::net::send(&self.socket, b"s", SendFlags::NOSIGNAL)).map(drop)
    }

    /// Takes what has come, without waiting.
    pub fn hear(&self) -> Heard {
        match receive(self.socket.as_fd(), RecvFlags::DONTWAIT) {
            Ok((bytes, _)) if bytes.is_empty() => Heard::End,
            Ok((bytes, fds)) => match Reply::decode(bytes.as_slice()).map(|reply| reply.result) {
                Ok(Some(result)) => Heard::Report(result, fds),
                Ok(None) | Err(_) => Heard::End,
            },
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Heard::Nothing,
            Err(_) => Heard::End,
        }
    }
}
