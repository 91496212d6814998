//! A container in the shim: cloned, created, started, ended.
//!
//! ```text
//!  Creating --report--> Created --start--> Starting --execve--> Running --end--> Draining --> Exited
//!      |                   |                  |                                  (logs)
//!      +-------------------+------------------+--- end or failure ---------------------------> Exited
//! ```

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use rustix::termios::Winsize;

use super::{Answer, Answered, Shim, Source, done, failed, failure, no_container, now, raw};
use crate::cgroup;
use crate::child::{Heard, Step, Watch, execute_failure};
use crate::init::{self, Init, Streams};
use crate::spec::{
    self, ContainerExited, ContainerReport, ContainerSpec, ContainerState, CreateContainer, Exit,
    Failure, FailureKind, LogAttach, NamespaceMode, Resize, StartContainer, Started, Stdin, Stdio,
    event, reply,
};
use crate::sys::clone::{Cloned, NewNamespaces};

/// How long the end of a container waits for its last output to be written.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How soon a log writer is tried again that could not be started.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    state: State,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    line: Option<(Watch, u64)>,
    pub(super) cgroup: spec::Cgroup,
    /// Its PID namespace ends with its init, and takes all processes along.
    own_pid_namespace: bool,
    exit_record: String,
    command: Vec<u8>,
    pub(super) stdio: Stdio,
    /// Write side of the program's input.
    pub(super) stdin: Option<OwnedFd>,
    /// Read sides of its output.
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Master side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) log: Option<OwnedFd>,
    pub(super) log_directory: Option<OwnedFd>,
    /// The writer has its output.
    pub(super) written: bool,
    /// Who attached before there was a writer.
    pub(super) sinks: Vec<(LogAttach, Vec<OwnedFd>)>,
    output_tokens: Vec<u64>,
    started_at: i64,
}

#[derive(Debug)]
enum State {
    /// The call to answer, and what went wrong so far.
    Creating(u64, Option<Failure>),
    Created,
    Starting(u64),
    Running,
    Draining(Exit, Instant),
    Exited(Exit),
}

impl Container {
    pub(super) fn report(&self, id: &str) -> ContainerReport {
        let (state, exit) = match &self.state {
            State::Creating(..) => (ContainerState::Creating, None),
            State::Created => (ContainerState::Created, None),
            State::Starting(_) | State::Running | State::Draining(..) => {
                (ContainerState::Running, None)
            }
            State::Exited(exit) => (ContainerState::Exited, Some(*exit)),
        };
        ContainerReport {
            container_id: id.into(),
            state: state.into(),
            pid: raw(self.pid),
            exit,
            started_at: self.started_at,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Draining(..) | State::Exited(_))
    }

    /// What the log writer reads: the terminal, or stdout and stderr.
    pub(super) fn outputs(&self) -> Vec<BorrowedFd<'_>> {
        let all = [&self.terminal, &self.stdout, &self.stderr];
        all.into_iter().flatten().map(AsFd::as_fd).collect()
    }
}

/// The program's ends of its pipes.
#[derive(Default)]
struct ProgramEnds {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Shim {
    pub(super) fn create_container(
        &mut self,
        request: u64,
        create: CreateContainer,
        fds: Vec<OwnedFd>,
    ) -> Answered {
        let spec = create.spec.ok_or_else(|| failure(FailureKind::Invalid, "no spec"))?;
        if self.containers.contains_key(&spec.id) {
            return Err(failure(
                FailureKind::WrongState,
                format!("container {} exists already", spec.id),
            ));
        }
        let seccomp = spec.process.as_ref().is_some_and(|process| process.seccomp);
        let filter = fds.into_iter().next().filter(|_| seccomp);
        if seccomp && filter.is_none() {
            return Err(failure(FailureKind::Invalid, "the seccomp program is missing"));
        }
        let (mut container, ends) = self.clone_init(&spec, filter)?;
        drop(ends);
        let token = match &container.line {
            Some((watch, _)) => self.watch(watch.as_fd(), Source::Container(spec.id.clone())),
            None => Ok(0),
        };
        let token = token.map_err(|error| failed(&error, "wait for the container"))?;
        if let Some(line) = &mut container.line {
            line.1 = token;
        }
        container.state = State::Creating(request, None);
        self.containers.insert(spec.id, container);
        Ok(Answer::Later)
    }

    fn clone_init(
        &self,
        spec: &ContainerSpec,
        filter: Option<OwnedFd>,
    ) -> Result<(Container, ProgramEnds), Failure> {
        let made = self
            .pod
            .namespaces()
            .ok_or_else(|| failure(FailureKind::WrongState, "the pod has no namespaces yet"))?;
        let modes = spec.namespaces.clone().unwrap_or_default();
        let target = self.pid_namespace(&modes)?;
        let stdio = spec.stdio.clone().unwrap_or_default();
        let (ends, [stdin, stdout, stderr]) =
            pipes(&stdio).map_err(|error| failed(&error, "make pipes"))?;
        let group = spec.cgroup.clone().unwrap_or_default();
        let group_fd =
            open_v2(&group).map_err(|error| failed(&error, "open the container's cgroup"))?;
        let (watch, theirs) =
            crate::child::line().map_err(|error| failed(&error, "make a socket pair"))?;
        let own_pid_namespace = modes.pid() == NamespaceMode::Container;
        let new = NewNamespaces { pid: own_pid_namespace };
        match self.clone_into(target, new, group_fd.as_ref().map(AsFd::as_fd)) {
            Ok(Cloned::Child) => {
                let init = Init {
                    spec,
                    pod: init::Pod {
                        holder: made.holder.as_fd(),
                        network: made.network.as_ref().map(AsFd::as_fd),
                        ipc: made.ipc.as_ref().map(AsFd::as_fd),
                        uts: made.uts.as_ref().map(AsFd::as_fd),
                    },
                    streams: Streams {
                        stdin: ends.stdin.as_ref().map(AsFd::as_fd),
                        stdout: ends.stdout.as_ref().map(AsFd::as_fd),
                        stderr: ends.stderr.as_ref().map(AsFd::as_fd),
                    },
                    null: made.null.as_fd(),
                    filter: filter.as_ref().map(AsFd::as_fd),
                    grantable: self.grantable,
                };
                init::run(&init, &Watch::into_line(&watch.page, theirs))
            }
            Ok(Cloned::Parent(pid, pidfd)) => {
                let process = spec.process.as_ref();
                let container = Container {
                    state: State::Created,
                    pid,
                    pidfd,
                    line: Some((watch, 0)),
                    cgroup: group,
                    own_pid_namespace,
                    exit_record: spec.exit_record.clone(),
                    command: process
                        .and_then(|process| process.args.first().cloned())
                        .unwrap_or_default(),
                    stdio,
                    stdin,
                    stdout,
                    stderr,
                    terminal: None,
                    log: None,
                    log_directory: None,
                    written: false,
                    sinks: Vec::new(),
                    output_tokens: Vec::new(),
                    started_at: 0,
                };
                Ok((container, ends))
            }
            Err(error) => Err(failed(&error, "clone the container's init")),
        }
    }

    /// The process whose PID namespace a container joins; none where it gets its own or the node's.
    fn pid_namespace(&self, modes: &spec::Namespaces) -> Result<Option<BorrowedFd<'_>>, Failure> {
        match modes.pid() {
            NamespaceMode::Container | NamespaceMode::Node => Ok(None),
            NamespaceMode::Pod => {
                let init = self
                    .pod
                    .init()
                    .ok_or_else(|| failure(FailureKind::WrongState, "the pod's init has ended"))?;
                Ok(Some(init.as_fd()))
            }
            NamespaceMode::Target => {
                let id = &modes.target_container_id;
                let target = self.containers.get(id).ok_or_else(|| no_container(id))?;
                if target.has_ended() {
                    return Err(failure(
                        FailureKind::WrongState,
                        format!("target container {id} has ended"),
                    ));
                }
                Ok(Some(target.pidfd.as_fd()))
            }
        }
    }

    /// What a container's init says, until its line is closed.
    pub(super) fn hear_container(&mut self, id: &str) {
        while let Some(container) = self.containers.get_mut(id) {
            let Some((watch, _)) = &container.line else { return };
            match watch.hear() {
                Heard::Nothing => return,
                Heard::Report(reply::Result::ContainerCreated(created), fds) => {
                    self.created(id, created, fds)
                }
                Heard::Report(reply::Result::Failure(failure), _) => {
                    if let State::Creating(_, problem) = &mut container.state {
                        *problem = Some(failure);
                    }
                }
                Heard::Report(..) => {}
                Heard::End => return self.line_ended(id),
            }
        }
    }

    fn created(&mut self, id: &str, created: spec::ContainerCreated, fds: Vec<OwnedFd>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let State::Creating(request, _) = container.state else { return };
        container.terminal = fds.into_iter().next();
        if let Some(terminal) = &container.terminal {
            // The writer reads it, and never waits.
            let _nonblocking = rustix::io::ioctl_fionbio(terminal, true);
        }
        container.state = State::Created;
        let created = spec::ContainerCreated { pid: raw(container.pid), ..created };
        self.reply(request, reply::Result::ContainerCreated(created), &[]);
    }

    /// The line closes by execve, or by the end of the process, which is then reaped.
    fn line_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((watch, token)) = container.line.take() else { return };
        let errno = watch.page.errno();
        let step = Step::of(&watch.page);
        self.forget(watch.as_fd(), token);
        let Some(container) = self.containers.get_mut(id) else { return };
        match &mut container.state {
            State::Creating(_, problem) => {
                let ended = || {
                    failure(
                        FailureKind::Other,
                        format!("the container's init ended at step {}", step.name()),
                    )
                };
                problem.get_or_insert_with(ended);
            }
            State::Starting(request) => {
                let request = *request;
                if errno == 0 {
                    let (pid, started_at) = (raw(container.pid), container.started_at);
                    container.state = State::Running;
                    self.watch_output(id);
                    self.reply(request, reply::Result::Started(Started { pid, started_at }), &[]);
                } else {
                    let failure = execute_failure(&container.command, errno);
                    self.reply(request, reply::Result::Failure(failure), &[]);
                }
            }
            State::Created | State::Running | State::Draining(..) | State::Exited(_) => {}
        }
    }

    pub(super) fn start_container(
        &mut self,
        request: u64,
        start: &StartContainer,
        fds: Vec<OwnedFd>,
    ) -> Answered {
        let id = &start.container_id;
        let container = self.containers.get_mut(id).ok_or_else(|| no_container(id))?;
        let (State::Created, Some((watch, _))) = (&container.state, &container.line) else {
            return Err(failure(
                FailureKind::WrongState,
                format!("container {id} is not in state CREATED"),
            ));
        };
        let mut fds = fds.into_iter();
        container.log = fds.next();
        container.log_directory = fds.next();
        container.started_at = now();
        watch.release().map_err(|error| failed(&error, "release the container's init"))?;
        container.state = State::Starting(request);
        Ok(Answer::Later)
    }

    fn watch_output(&mut self, id: &str) {
        let count = self.containers.get(id).map_or(0, |container| container.outputs().len());
        let tokens: Vec<u64> = (0..count).map(|_| self.token(Source::Output(id.into()))).collect();
        let Some(container) = self.containers.get_mut(id) else { return };
        container.output_tokens = tokens;
        for (fd, token) in container.outputs().into_iter().zip(&container.output_tokens) {
            if self.poll.add_reader(fd, *token).is_err() {
                self.unheard.push(id.into());
            }
        }
    }

    pub(super) fn stop_watching_output(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for token in std::mem::take(&mut container.output_tokens) {
            self.sources.remove(&token);
        }
        for fd in self.containers[id].outputs() {
            self.poll.remove(fd);
        }
    }

    /// The init has been reaped.
    pub(super) fn container_ended(&mut self, id: &str, mut exit: Exit) {
        self.hear_container(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        if !container.own_pid_namespace {
            // Others of the container may live on where its init was not pid 1.
            let _later = cgroup::kill(&container.cgroup);
        }
        exit.oom_killed = cgroup::oom_kills(&container.cgroup) > 0;
        match &mut container.state {
            State::Creating(request, problem) => {
                let (request, problem) = (*request, problem.take());
                let problem = problem.unwrap_or_else(|| {
                    failure(FailureKind::Other, "the container's init has ended")
                });
                self.containers.remove(id);
                self.reply(request, reply::Result::Failure(problem), &[]);
            }
            State::Created | State::Starting(_) | State::Running => self.begin_drain(id, exit),
            State::Draining(..) | State::Exited(_) => {}
        }
    }

    /// The last bytes are written before the end is told, for readers stop reading then.
    fn begin_drain(&mut self, id: &str, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.state = State::Draining(exit, Instant::now() + DRAIN_TIME);
        let unread = !container.written && container.outputs().into_iter().any(has_input);
        let handed = !unread || self.hand_over(id).is_ok();
        let written = self.containers.get(id).is_some_and(|container| container.written);
        if !(handed && written && self.drain(id)) {
            self.drained(id);
        }
    }

    /// The end of a container is complete.
    pub(super) fn drained(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let State::Draining(exit, _) = &container.state else { return };
        let exit = *exit;
        container.state = State::Exited(exit);
        container.stdin = None;
        let name = container.exit_record.clone();
        self.stop_watching_output(id);
        if let Some(container) = self.containers.get_mut(id) {
            container.sinks.clear();
            container.stdout = None;
            container.stderr = None;
            container.terminal = None;
            container.log = None;
            container.log_directory = None;
            container.written = false;
        }
        // If it cannot be written, the daemon still hears it now, or from us later.
        let _unwritten = self.write_exit(&name, &exit);
        let exited = ContainerExited { container_id: id.into(), exit: Some(exit) };
        self.event(event::Event::ContainerExited(exited));
    }

    fn write_exit(&self, name: &str, exit: &Exit) -> std::io::Result<()> {
        use prost::Message as _;
        if name.is_empty() {
            return Ok(());
        }
        let temporary = format!(".{name}");
        let flags =
            OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file =
            rustix::fs::openat(&self.directory, &temporary, flags, Mode::from_raw_mode(0o600))?;
        std::fs::File::from(file).write_all(&exit.encode_to_vec())?;
        Ok(rustix::fs::renameat(&self.directory, &temporary, &self.directory, name)?)
    }

    /// Milliseconds until something is to be done without an event.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let deadlines = self.containers.values().filter_map(|container| match &container.state {
            State::Draining(_, deadline) => Some(*deadline),
            State::Creating(..)
            | State::Created
            | State::Starting(_)
            | State::Running
            | State::Exited(_) => None,
        });
        let retry = (!self.unheard.is_empty()).then(|| Instant::now() + RETRY_TIME);
        let left = deadlines.chain(retry).min()?.saturating_duration_since(Instant::now());
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1))
    }

    pub(super) fn end_overdue_drains(&mut self) {
        let now = Instant::now();
        let overdue = |container: &Container| matches!(&container.state, State::Draining(_, deadline) if *deadline <= now);
        let ids: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, container)| overdue(container))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.drained(&id);
        }
    }

    pub(super) fn signal(&mut self, signal: &spec::Signal) -> Answered {
        let id = &signal.container_id;
        if !signal.exec_id.is_empty() {
            return self.signal_exec(signal);
        }
        let container = self.containers.get(id).ok_or_else(|| no_container(id))?;
        if signal.kill_all {
            // Also the init that waits in CREATED, which need not be in a cgroup yet.
            let _gone = rustix::process::pidfd_send_signal(&container.pidfd, Signal::KILL);
            cgroup::kill(&container.cgroup)
                .map_err(|error| crate::child::failure(&error, Step::Cgroup))?;
            return Ok(done());
        }
        send_signal(&container.pidfd, signal.signal)
    }

    pub(super) fn resize(&mut self, resize: &Resize) -> Answered {
        let id = &resize.container_id;
        let container = self.containers.get(id).ok_or_else(|| no_container(id))?;
        // Whoever started an exec has its terminal, and nobody else.
        let terminal = container.terminal.as_ref().filter(|_| resize.exec_id.is_empty());
        let terminal =
            terminal.ok_or_else(|| failure(FailureKind::WrongState, "there is no terminal"))?;
        let limit = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: limit(resize.rows),
            ws_col: limit(resize.columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|errno| failed(&errno.into(), "set the size of the terminal"))?;
        Ok(done())
    }

    pub(super) fn close_stdin(&mut self, id: &str) -> Answered {
        self.containers.get_mut(id).ok_or_else(|| no_container(id))?.stdin = None;
        Ok(done())
    }

    pub(super) fn remove_container(&mut self, id: &str) -> Answered {
        let Some(container) = self.containers.get(id) else { return Ok(done()) };
        if !matches!(container.state, State::Exited(_)) {
            return Err(failure(FailureKind::WrongState, format!("container {id} has not ended")));
        }
        let name = container.exit_record.clone();
        self.containers.remove(id);
        self.close_log(id);
        if !name.is_empty() {
            // It may never have been written.
            let _gone = rustix::fs::unlinkat(&self.directory, &name, rustix::fs::AtFlags::empty());
        }
        Ok(done())
    }
}

/// A signal by its number, to a process that may have ended.
pub(super) fn send_signal(process: &OwnedFd, number: u32) -> Answered {
    let signal = i32::try_from(number).ok().and_then(crate::sys::signals::by_number);
    let signal = signal
        .ok_or_else(|| failure(FailureKind::Invalid, format!("there is no signal {number}")))?;
    match rustix::process::pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(done()),
        Err(errno) => Err(failed(&errno.into(), format!("send signal {number}"))),
    }
}

fn has_input(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
        && fds[0].revents().contains(PollFlags::IN)
}

/// Pipes for what is not a terminal: the program's ends, and ours of stdin, stdout and stderr.
fn pipes(stdio: &Stdio) -> std::io::Result<(ProgramEnds, [Option<OwnedFd>; 3])> {
    if stdio.terminal {
        return Ok((ProgramEnds::default(), [None, None, None]));
    }
    let output = || {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only our end: a program may not expect its output to be non-blocking.
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok::<_, std::io::Error>((ours, theirs))
    };
    let (stdout, program_stdout) = output()?;
    let (stderr, program_stderr) = output()?;
    let (program_stdin, stdin) = match stdio.stdin() {
        Stdin::Null => (None, None),
        Stdin::Open | Stdin::Once => {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            (Some(theirs), Some(ours))
        }
    };
    let ends = ProgramEnds {
        stdin: program_stdin,
        stdout: Some(program_stdout),
        stderr: Some(program_stderr),
    };
    Ok((ends, [stdin, Some(stdout), Some(stderr)]))
}

/// The directory into which a process of cgroup v2 is cloned.
pub(super) fn open_v2(group: &spec::Cgroup) -> std::io::Result<Option<OwnedFd>> {
    match group.directories.first().filter(|_| group.unified) {
        Some(directory) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(Some(rustix::fs::open(&directory.path, flags, Mode::empty())?))
        }
        None => Ok(None),
    }
}
