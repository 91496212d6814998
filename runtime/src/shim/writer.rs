//! The shim's side of the log writer: started at the first byte that a container writes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use super::protocol::{self, Received};
use super::{Answer, Answered, Shim, Source, done, failed, failure, log, no_container};
use crate::spec::{
    Attach, Attached, FailureKind, LogAnswer, LogAttach, LogClose, LogCommand, LogDrain, LogOpen,
    LogReopen, log_command::Command, reply,
};
use crate::sys::clone::{Cloned, NewNamespaces};

/// A log writer that runs.
#[derive(Debug)]
pub(super) struct Writer {
    socket: OwnedFd,
    token: u64,
    pid: Pid,
    next_id: u64,
    waiting: BTreeMap<u64, Waiting>,
}

/// Who waits for an answer of the writer.
#[derive(Debug)]
enum Waiting {
    /// The end of a container.
    Drain(String),
    /// A call of the daemon, with what it answers.
    Call(u64, Box<(reply::Result, Vec<OwnedFd>)>),
}

impl Shim {
    /// A container has written something: from now on a writer reads it.
    pub(super) fn first_output(&mut self, id: &str) {
        if self.hand_over(id).is_err() {
            // Nobody can be told, and the container must not hang on it: it is tried again.
            self.unheard.push(id.into());
        }
    }

    /// Tries again what [`Shim::first_output`] could not do, for want of processes or memory.
    pub(super) fn retry_outputs(&mut self) {
        for id in std::mem::take(&mut self.unheard) {
            self.first_output(&id);
        }
    }

    /// Gives a container's output to the writer, which is started if need be.
    pub(super) fn hand_over(&mut self, id: &str) -> Result<(), crate::spec::Failure> {
        self.stop_watching_output(id);
        self.ensure_writer()?;
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        container.written = true;
        let open = LogOpen {
            container_id: id.into(),
            terminal: container.terminal.is_some(),
            has_file: container.log.is_some(),
            has_directory: container.log_directory.is_some(),
            rotate_size: container.stdio.rotate_size,
            rotate_files: container.stdio.rotate_files,
            log_name: container.stdio.log_name.clone(),
        };
        let sinks = std::mem::take(&mut container.sinks);
        let container = &self.containers[id];
        let files = [&container.log, &container.log_directory];
        let fds: Vec<_> = container
            .outputs()
            .into_iter()
            .chain(files.into_iter().flatten().map(AsFd::as_fd))
            .collect();
        let writer = self.writer.as_mut().expect("it was just made sure of");
        // First, for from the next command on the writer reads what they must not miss.
        for (attach, fds) in sinks {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            writer
                .command(Command::Attach(attach), &fds, None)
                .map_err(|error| failed(&error, "hand an attach to the log writer"))?;
        }
        writer
            .command(Command::Open(open), &fds, None)
            .map_err(|error| failed(&error, "hand output to the log writer"))
    }

    fn ensure_writer(&mut self) -> Result<(), crate::spec::Failure> {
        if self.writer.is_some() {
            return Ok(());
        }
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| failed(&errno.into(), "make a socket pair"))?;
        match self.clone_into(None, NewNamespaces::default(), None) {
            Ok(Cloned::Child) => {
                if crate::sys::fds::close_all_but(&[theirs.as_fd()]).is_err() {
                    crate::sys::clone::exit_now(1);
                }
                log::run(theirs)
            }
            Ok(Cloned::Parent(pid, _)) => {
                let token = self
                    .watch(ours.as_fd(), Source::Writer)
                    .map_err(|error| failed(&error, "wait for the log writer"))?;
                self.writer =
                    Some(Writer { socket: ours, token, pid, next_id: 0, waiting: BTreeMap::new() });
                Ok(())
            }
            Err(error) => Err(failed(&error, "clone the log writer")),
        }
    }

    pub(super) fn hear_writer(&mut self) {
        while let Some(writer) = &mut self.writer {
            match protocol::receive::<LogAnswer>(writer.socket.as_fd(), RecvFlags::DONTWAIT) {
                Ok(Received::Message(answer, _)) => {
                    if let Some(waiting) = writer.waiting.remove(&answer.id) {
                        self.answered(waiting, answer.errno);
                    }
                }
                Ok(Received::End) | Err(_) => return,
            }
        }
    }

    fn answered(&mut self, waiting: Waiting, errno: i32) {
        match waiting {
            Waiting::Drain(id) => self.drained(&id),
            Waiting::Call(request, answer) if errno == 0 => {
                self.reply(request, answer.0, &answer.1)
            }
            Waiting::Call(request, _) => {
                let error = std::io::Error::from_raw_os_error(errno);
                let failure = failed(&error, "tell the log writer");
                self.reply(request, reply::Result::Failure(failure), &[]);
            }
        }
    }

    /// Whether the process was the log writer. The shim holds the pipes too, so a new one goes on where it was.
    pub(super) fn writer_ended(&mut self, pid: Pid) -> bool {
        if self.writer.as_ref().is_none_or(|writer| writer.pid != pid) {
            return false;
        }
        self.hear_writer();
        if let Some(writer) = self.writer.take() {
            self.forget(writer.socket.as_fd(), writer.token);
            for waiting in writer.waiting.into_values() {
                self.answered(waiting, libc::ECONNRESET);
            }
        }
        let open: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, container)| container.written)
            .map(|(id, _)| id.clone())
            .collect();
        for id in open {
            self.first_output(&id);
        }
        true
    }

    /// Asks the writer to write what the container has left. False where it has none.
    pub(super) fn drain(&mut self, id: &str) -> bool {
        let waiting = Waiting::Drain(id.into());
        let command = Command::Drain(LogDrain { container_id: id.into() });
        self.writer
            .as_mut()
            .is_some_and(|writer| writer.command(command, &[], Some(waiting)).is_ok())
    }

    pub(super) fn close_log(&mut self, id: &str) {
        let command = Command::Close(LogClose { container_id: id.into() });
        if let Some(writer) = &mut self.writer {
            // A writer that has gone has closed everything.
            let _gone = writer.command(command, &[], None);
        }
    }

    pub(super) fn reopen_log(&mut self, request: u64, id: &str, mut fds: Vec<OwnedFd>) -> Answered {
        let container = self.containers.get_mut(id).ok_or_else(|| no_container(id))?;
        if fds.len() != 1 {
            return Err(failure(FailureKind::Invalid, "reopening a log needs one descriptor"));
        }
        let file = fds.remove(0);
        let written = container.written;
        container.log = Some(file);
        if !written {
            return Ok(done());
        }
        let file = container.log.as_ref().map(AsFd::as_fd);
        let command = Command::Reopen(LogReopen { container_id: id.into() });
        let waiting =
            Waiting::Call(request, Box::new((reply::Result::Done(Default::default()), Vec::new())));
        let fds: Vec<_> = file.into_iter().collect();
        let Some(writer) = &mut self.writer else { return Ok(done()) };
        writer
            .command(command, &fds, Some(waiting))
            .map_err(|error| failed(&error, "tell the log writer"))?;
        Ok(Answer::Later)
    }

    pub(super) fn attach(&mut self, request: u64, attach: &Attach, fds: Vec<OwnedFd>) -> Answered {
        let id = &attach.container_id;
        let container = self.containers.get_mut(id).ok_or_else(|| no_container(id))?;
        let duplicate = |fd: &OwnedFd| {
            rustix::io::fcntl_dupfd_cloexec(fd, 3)
                .map_err(|errno| failed(&errno.into(), "duplicate stdin"))
        };
        if container.has_ended() {
            return Err(failure(FailureKind::WrongState, format!("container {id} has ended")));
        }
        let mut back = Vec::new();
        if attach.stdin {
            let input = container.terminal.as_ref().or(container.stdin.as_ref());
            let input = input.ok_or_else(|| {
                failure(FailureKind::WrongState, format!("container {id} has no open stdin"))
            })?;
            back.push(duplicate(input)?);
        }
        let answer = reply::Result::Attached(Attached { terminal: container.terminal.is_some() });
        let wanted =
            LogAttach { container_id: id.clone(), stdout: attach.stdout, stderr: attach.stderr };
        if !container.written {
            // Whoever has gone meanwhile would be kept until the first output, which may never come.
            container.sinks.retain(|(_, fds)| fds.iter().any(|pipe| is_read(pipe.as_fd())));
            container.sinks.push((wanted, fds));
            return Ok(Answer::Now(answer, back));
        }
        let Some(writer) = &mut self.writer else {
            return Err(failure(FailureKind::Other, "the log writer has ended"));
        };
        let waiting = Waiting::Call(request, Box::new((answer, back)));
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        writer
            .command(Command::Attach(wanted), &fds, Some(waiting))
            .map_err(|error| failed(&error, "tell the log writer"))?;
        Ok(Answer::Later)
    }
}

/// Whether a pipe still has a reader.
fn is_read(pipe: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().contains(PollFlags::ERR))
}

impl Writer {
    fn command(
        &mut self,
        command: Command,
        fds: &[BorrowedFd<'_>],
        waiting: Option<Waiting>,
    ) -> std::io::Result<()> {
        self.next_id += 1;
        let id = self.next_id;
        let command = LogCommand { id, command: Some(command) };
        // A writer on a frozen disk reads nothing; the shim must not wait for it.
        protocol::send(self.socket.as_fd(), &command, fds, SendFlags::DONTWAIT)?;
        if let Some(waiting) = waiting {
            self.waiting.insert(id, waiting);
        }
        Ok(())
    }
}
