//! The shim: parent of every process of one pod. One thread, one epoll loop.
//!
//! It clones containers and execs, holds the pod's namespaces and the ends of pipes and
//! terminals, and writes down exits before it reports them. It outlives the daemon: a
//! new one connects to the same socket and asks with `Hello` what there is. Whoever
//! connects last is the daemon.
//!
//! - `mod.rs`: the loop and the calls. `pod.rs`: namespaces and the pod's init.
//! - `container.rs`: from clone to exit record. `exec.rs`: further processes.
//! - `writer.rs`: the shim's side of the log writer, whose process is `log.rs`.
//! - `protocol.rs`: packets. `record.rs`: CRI log records. `poll.rs`: epoll.
//!
//! Invariants: nothing here waits for a child, the disk of a log or the daemon; only
//! this process and its clones write to the sandbox's directory after its start.

mod container;
mod exec;
mod log;
mod pod;
mod poll;
pub mod protocol;
pub mod record;
mod writer;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::thread::LinkNameSpaceType;

use crate::error::{Doing, Result};
use crate::process::Grantable;
use crate::spec::{
    Done, Event, Exit, Failure, FailureKind, HelloReply, Message, Reply, Request, event, message,
    reply, request,
};
use crate::sys::clone::{Cloned, NewNamespaces, SingleThread};
use container::Container;
use exec::Exec;
use pod::Pod;
use poll::Poll;
use protocol::Received;
use writer::Writer;

/// How the shim is started.
#[derive(Debug)]
pub struct Options {
    /// Whose shim it is.
    pub sandbox_id: String,
    /// The sandbox's directory in the state directory.
    pub directory: PathBuf,
    /// Directories of the shim's own cgroup, which exists.
    pub cgroups: Vec<PathBuf>,
}

/// What a call answers: now, or later by itself.
enum Answer {
    Now(reply::Result, Vec<OwnedFd>),
    Later,
}

type Answered = std::result::Result<Answer, Failure>;

/// What became ready.
#[derive(Debug, Clone)]
enum Source {
    Listener,
    Daemon,
    Signals,
    Pod,
    Container(String),
    Output(String),
    Exec(String),
    Writer,
}

struct Shim {
    proof: SingleThread,
    poll: Poll,
    sources: BTreeMap<u64, Source>,
    next_token: u64,
    options: Options,
    directory: OwnedFd,
    listener: OwnedFd,
    signals: SignalFd,
    /// The shim's own PID namespace, to come back to.
    home: OwnedFd,
    grantable: Grantable,
    daemon: Option<OwnedFd>,
    pod: Pod,
    containers: BTreeMap<String, Container>,
    /// By exec id, which is unique among all containers.
    execs: BTreeMap<String, Exec>,
    writer: Option<Writer>,
    /// Containers whose output no writer reads yet.
    unheard: Vec<String>,
    held: Vec<OwnedFd>,
    ending: bool,
}

/// Runs the shim until the daemon shuts it down.
///
/// # Errors
/// What fails at the start; later nothing ends it.
pub fn run(options: Options, listener: OwnedFd) -> Result<()> {
    let mut shim = Shim::start(options, listener)?;
    while !shim.ending {
        let timeout = shim.next_deadline();
        let ready = shim.poll.wait(timeout).doing(|| "wait for events")?;
        for token in ready {
            if let Some(source) = shim.sources.get(&token).cloned() {
                shim.serve(&source);
            }
        }
        shim.retry_outputs();
        shim.end_overdue_drains();
    }
    shim.pod.end();
    Ok(())
}

impl Shim {
    fn start(options: Options, listener: OwnedFd) -> Result<Shim> {
        let proof = SingleThread::prove().doing(|| "start")?;
        for directory in &options.cgroups {
            join(directory)?;
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .doing(|| "become subreaper")?;
        rustix::process::umask(Mode::empty());
        // It was executed through a descriptor, whose number the kernel takes for its name.
        rustix::thread::set_name(c"berth-shim").doing(|| "take a name")?;
        // Last to be taken when memory runs out, as far as we may say so; containers get a score of their own.
        crate::process::set_oom_score(-999, &mut Vec::new())?;
        let mut mask = nix::sys::signal::SigSet::empty();
        for signal in [
            nix::sys::signal::SIGCHLD,
            nix::sys::signal::SIGTERM,
            nix::sys::signal::SIGINT,
            nix::sys::signal::SIGHUP,
        ] {
            mask.add(signal);
        }
        mask.thread_block().doing(|| "block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags).doing(|| "make a signal descriptor")?;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let home = rustix::fs::open("/proc/self/ns/pid", read, Mode::empty())
            .doing(|| "open the PID namespace")?;
        let directory =
            rustix::fs::open(&options.directory, read | OFlags::DIRECTORY, Mode::empty())
                .doing(|| format!("open {}", options.directory.display()))?;
        let poll = Poll::new().doing(|| "make an epoll descriptor")?;
        let mut shim = Shim {
            proof,
            poll,
            sources: BTreeMap::new(),
            next_token: 0,
            options,
            directory,
            listener,
            signals,
            home,
            grantable: Grantable::read(),
            daemon: None,
            pod: Pod::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            writer: None,
            unheard: Vec::new(),
            held: Vec::new(),
            ending: false,
        };
        let (listening, signalled) = (shim.token(Source::Listener), shim.token(Source::Signals));
        shim.poll.add_reader(&shim.listener, listening).doing(|| "wait for the daemon")?;
        shim.poll.add_reader(&shim.signals, signalled).doing(|| "wait for signals")?;
        Ok(shim)
    }

    fn token(&mut self, source: Source) -> u64 {
        self.next_token += 1;
        self.sources.insert(self.next_token, source);
        self.next_token
    }

    /// Waits for a descriptor until [`Shim::forget`].
    fn watch(&mut self, fd: BorrowedFd<'_>, source: Source) -> std::io::Result<u64> {
        let token = self.token(source);
        self.poll.add_reader(fd, token)?;
        Ok(token)
    }

    fn forget(&mut self, fd: BorrowedFd<'_>, token: u64) {
        self.poll.remove(fd);
        self.sources.remove(&token);
    }

    fn serve(&mut self, source: &Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Daemon => self.take_requests(),
            Source::Signals => self.reap(),
            Source::Pod => self.hear_pod(),
            Source::Container(id) => self.hear_container(id),
            Source::Output(id) => self.first_output(id),
            Source::Exec(id) => self.hear_exec(id),
            Source::Writer => self.hear_writer(),
        }
    }

    /// The newest connection is the daemon's: a daemon that was killed has left an older one behind.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else { return };
        let trusted =
            rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid.is_root());
        if !trusted {
            return;
        }
        self.disconnect();
        if self.watch(socket.as_fd(), Source::Daemon).is_ok() {
            self.daemon = Some(socket);
        }
    }

    fn disconnect(&mut self) {
        self.sources.retain(|_, source| !matches!(source, Source::Daemon));
        if let Some(socket) = self.daemon.take() {
            self.poll.remove(socket.as_fd());
        }
    }

    fn take_requests(&mut self) {
        while let Some(socket) = &self.daemon {
            match protocol::receive::<Request>(socket.as_fd(), RecvFlags::DONTWAIT) {
                Ok(Received::Message(request, fds)) => self.call(request, fds),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(Received::End) | Err(_) => self.disconnect(),
            }
        }
    }

    fn call(&mut self, request: Request, fds: Vec<OwnedFd>) {
        use request::Call;
        let id = request.id;
        let answered = match request.call {
            Some(Call::Hello(_)) => Ok(self.hello()),
            Some(Call::MakeNamespaces(make)) => self.make_namespaces(id, make),
            Some(Call::CreateContainer(create)) => self.create_container(id, create, fds),
            Some(Call::StartContainer(start)) => self.start_container(id, &start, fds),
            Some(Call::Signal(signal)) => self.signal(&signal),
            Some(Call::Exec(exec)) => self.exec(id, exec, fds),
            Some(Call::ReopenLog(reopen)) => self.reopen_log(id, &reopen.container_id, fds),
            Some(Call::Attach(attach)) => self.attach(id, &attach, fds),
            Some(Call::Resize(resize)) => self.resize(&resize),
            Some(Call::CloseStdin(close)) => self.close_stdin(&close.container_id),
            Some(Call::RemoveContainer(remove)) => self.remove_container(&remove.container_id),
            Some(Call::Hold(_)) => {
                self.held.extend(fds);
                Ok(done())
            }
            Some(Call::Shutdown(_)) => {
                self.ending = true;
                Ok(done())
            }
            None => Err(failure(FailureKind::Other, "a call that this shim does not know")),
        };
        match answered {
            Ok(Answer::Now(result, fds)) => self.reply(id, result, &fds),
            Ok(Answer::Later) => {}
            Err(failure) => self.reply(id, reply::Result::Failure(failure), &[]),
        }
    }

    fn hello(&self) -> Answer {
        let reply = HelloReply {
            version: protocol::VERSION,
            sandbox_id: self.options.sandbox_id.clone(),
            shim_pid: rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
            init_pid: self.pod.init_pid(),
            containers: self
                .containers
                .iter()
                .map(|(id, container)| container.report(id))
                .collect(),
            namespaces_made: self.pod.is_made(),
        };
        Answer::Now(reply::Result::Hello(reply), Vec::new())
    }

    fn reply(&mut self, id: u64, result: reply::Result, fds: &[OwnedFd]) {
        let reply = Reply { id, result: Some(result) };
        self.send(message::Body::Reply(reply), fds);
    }

    fn event(&mut self, event: event::Event) {
        self.send(message::Body::Event(Event { event: Some(event) }), &[]);
    }

    /// A daemon that does not read is no daemon: it may connect again and ask.
    fn send(&mut self, body: message::Body, fds: &[OwnedFd]) {
        let Some(socket) = &self.daemon else { return };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let message = Message { body: Some(body) };
        if protocol::send(socket.as_fd(), &message, &fds, SendFlags::DONTWAIT).is_err() {
            self.disconnect();
        }
    }

    /// Collects every child that has ended, and strangers that were left to us.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let exit = exit_of(status);
            if self.pod_child_ended(pid, &exit) || self.writer_ended(pid) {
                continue;
            }
            if let Some(id) = self
                .containers
                .iter()
                .find(|(_, container)| container.pid == pid)
                .map(|(id, _)| id.clone())
            {
                self.container_ended(&id, exit);
            } else if let Some(id) =
                self.execs.iter().find(|(_, exec)| exec.pid == pid).map(|(id, _)| id.clone())
            {
                self.exec_ended(&id, exit);
            }
        }
    }

    /// Clones this process into a PID namespace: that of a process, or a new one, or ours.
    fn clone_into(
        &self,
        target: Option<BorrowedFd<'_>>,
        new: NewNamespaces,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> std::io::Result<Cloned> {
        use rustix::thread::{
            ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
        };
        if let Some(target) = target {
            move_into_thread_name_spaces(target, ThreadNameSpaceType::PROCESS_ID)?;
        }
        let cloned = crate::sys::clone::clone(self.proof, new, cgroup);
        if target.is_some() && !matches!(cloned, Ok(Cloned::Child)) {
            move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
        }
        cloned
    }
}

fn join(directory: &std::path::Path) -> Result<()> {
    // v1 can move one thread without stopping the world; v2 has no such file in a domain.
    let tasks = directory.join("tasks");
    let file = if tasks.exists() { tasks } else { directory.join("cgroup.procs") };
    std::fs::write(&file, "0").doing(|| format!("join cgroup {}", directory.display()))
}

fn done() -> Answer {
    Answer::Now(reply::Result::Done(Done {}), Vec::new())
}

fn failure(kind: FailureKind, doing: impl Into<String>) -> Failure {
    Failure { doing: doing.into(), errno: 0, step: String::new(), kind: kind.into() }
}

fn failed(error: &std::io::Error, doing: impl Into<String>) -> Failure {
    Failure { errno: error.raw_os_error().unwrap_or(0), ..failure(FailureKind::Other, doing) }
}

fn no_container(id: &str) -> Failure {
    failure(FailureKind::NotFound, format!("container {id} is not in this sandbox"))
}

fn exit_of(status: WaitStatus) -> Exit {
    let signal = status.terminating_signal().map_or(0, i32::unsigned_abs);
    let code = status.exit_status().map_or(128 + signal, i32::unsigned_abs);
    Exit { code, signal, finished_at: now(), oom_killed: false }
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// A process id as the protocol has it.
fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Takes the listening socket, which is descriptor 0, and puts the null device in its place.
///
/// # Errors
/// Those of the calls.
pub fn take_listener() -> Result<OwnedFd> {
    let inherited = crate::sys::fds::take_inherited(0).doing(|| "take the listening socket")?;
    let listener =
        rustix::io::fcntl_dupfd_cloexec(&inherited, 3).doing(|| "keep the listening socket")?;
    drop(inherited);
    let null =
        rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).doing(|| "open /dev/null")?;
    // The lowest free number is 0: the descriptor is left there for good.
    std::mem::forget(null);
    Ok(listener)
}
