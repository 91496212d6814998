//! Execs in the shim: further processes of a running container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::{Pid, Signal};

use super::container::{open_v2, send_signal};
use super::{Answer, Answered, Shim, Source, done, failed, failure, no_container, now, raw};
use crate::cgroup;
use crate::child::{Heard, Step, Watch, execute_failure};
use crate::exec;
use crate::init::Streams;
use crate::spec::{self, ExecExited, Exit, Failure, FailureKind, Started, event, reply};
use crate::sys::clone::{Cloned, NewNamespaces};

/// An exec.
#[derive(Debug)]
pub(super) struct Exec {
    container: String,
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    line: Option<(Watch, u64)>,
    /// The call to answer until the program runs.
    request: Option<u64>,
    failure: Option<Failure>,
    command: Vec<u8>,
    /// Where `kill_all` finds its processes; none where it has no cgroup of its own.
    cgroup: Option<spec::Cgroup>,
    /// Master side of its terminal, until the reply takes it along: it hangs up when whoever started the exec has gone.
    terminal: Option<OwnedFd>,
}

impl Shim {
    pub(super) fn exec(&mut self, request: u64, call: spec::Exec, fds: Vec<OwnedFd>) -> Answered {
        let id = &call.container_id;
        let container = self.containers.get(id).ok_or_else(|| no_container(id))?;
        if !container.is_running() {
            return Err(failure(FailureKind::WrongState, format!("container {id} is not running")));
        }
        if self.execs.contains_key(&call.exec_id) {
            return Err(failure(
                FailureKind::WrongState,
                format!("exec {} exists already", call.exec_id),
            ));
        }
        let group = if call.own_cgroup {
            Some(
                make_cgroup(&container.cgroup, &call.exec_id)
                    .map_err(|error| failed(&error, "make the exec's cgroup"))?,
            )
        } else {
            None
        };
        let cloned = self.clone_exec(&call, fds, group.as_ref());
        match cloned.and_then(|exec| self.follow_exec(request, &call.exec_id, exec)) {
            Ok(()) => Ok(Answer::Later),
            Err(failure) => {
                remove_cgroup(group.as_ref());
                Err(failure)
            }
        }
    }

    fn clone_exec(
        &self,
        call: &spec::Exec,
        fds: Vec<OwnedFd>,
        group: Option<&spec::Cgroup>,
    ) -> Result<Exec, Failure> {
        let made = self
            .pod
            .namespaces()
            .ok_or_else(|| failure(FailureKind::WrongState, "the pod has no namespaces"))?;
        let container = &self.containers[&call.container_id];
        let process =
            call.process.as_ref().ok_or_else(|| failure(FailureKind::Invalid, "no process"))?;
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool, name: &str| match wanted {
            true => fds
                .next()
                .map(Some)
                .ok_or_else(|| failure(FailureKind::Invalid, format!("{name} is missing"))),
            false => Ok(None),
        };
        let [stdin, stdout, stderr] = [
            next(call.stdin, "stdin")?,
            next(call.stdout, "stdout")?,
            next(call.stderr, "stderr")?,
        ];
        let filter = next(process.seccomp, "the seccomp program")?;
        let join = group.unwrap_or(&container.cgroup);
        let group_fd =
            open_v2(join).map_err(|error| failed(&error, "open the container's cgroup"))?;
        let (watch, theirs) =
            crate::child::line().map_err(|error| failed(&error, "make a socket pair"))?;
        // Processes of the container see it from their own PID namespace, whichever that is.
        let target = Some(container.pidfd.as_fd());
        match self.clone_into(target, NewNamespaces::default(), group_fd.as_ref().map(AsFd::as_fd))
        {
            Ok(Cloned::Child) => {
                let exec = exec::Exec {
                    process,
                    target: container.pidfd.as_fd(),
                    cgroup: Some(join),
                    streams: Streams {
                        stdin: stdin.as_ref().map(AsFd::as_fd),
                        stdout: stdout.as_ref().map(AsFd::as_fd),
                        stderr: stderr.as_ref().map(AsFd::as_fd),
                    },
                    null: made.null.as_fd(),
                    filter: filter.as_ref().map(AsFd::as_fd),
                    grantable: self.grantable,
                    terminal: call.terminal.then_some((call.rows, call.columns)),
                };
                exec::run(&exec, &Watch::into_line(&watch.page, theirs))
            }
            Ok(Cloned::Parent(pid, pidfd)) => Ok(Exec {
                container: call.container_id.clone(),
                pid,
                pidfd,
                line: Some((watch, 0)),
                request: None,
                failure: None,
                command: process.args.first().cloned().unwrap_or_default(),
                cgroup: group.cloned(),
                terminal: None,
            }),
            Err(error) => Err(failed(&error, "clone the exec")),
        }
    }

    fn follow_exec(&mut self, request: u64, id: &str, mut exec: Exec) -> Result<(), Failure> {
        if let Some((watch, token)) = &mut exec.line {
            *token = self
                .watch(watch.as_fd(), Source::Exec(id.into()))
                .map_err(|error| failed(&error, "wait for the exec"))?;
        }
        exec.request = Some(request);
        self.execs.insert(id.into(), exec);
        Ok(())
    }

    /// What an exec says, until its line is closed.
    pub(super) fn hear_exec(&mut self, id: &str) {
        while let Some(exec) = self.execs.get_mut(id) {
            let Some((watch, _)) = &exec.line else { return };
            match watch.hear() {
                Heard::Nothing => return,
                Heard::Report(reply::Result::Attached(_), fds) => {
                    exec.terminal = fds.into_iter().next()
                }
                Heard::Report(reply::Result::Failure(failure), _) => exec.failure = Some(failure),
                Heard::Report(..) => {}
                Heard::End => return self.exec_line_ended(id),
            }
        }
    }

    fn exec_line_ended(&mut self, id: &str) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        let Some((watch, token)) = exec.line.take() else { return };
        let errno = watch.page.errno();
        if errno != 0 {
            exec.failure = Some(execute_failure(&exec.command, errno));
        }
        self.forget(watch.as_fd(), token);
        let Some(exec) = self.execs.get_mut(id) else { return };
        let Some(request) = exec.request.take() else { return };
        if let Some(failure) = exec.failure.clone() {
            return self.reply(request, reply::Result::Failure(failure), &[]);
        }
        // Whoever asked holds it alone: when they close it or are killed, the program is hung up.
        let master = exec.terminal.take();
        let started = reply::Result::Started(Started { pid: raw(exec.pid), started_at: now() });
        self.reply(request, started, master.as_slice());
    }

    /// It has been reaped.
    pub(super) fn exec_ended(&mut self, id: &str, exit: Exit) {
        self.hear_exec(id);
        let Some(exec) = self.execs.remove(id) else { return };
        remove_cgroup(exec.cgroup.as_ref());
        if exec.failure.is_none() {
            let exited =
                ExecExited { container_id: exec.container, exec_id: id.into(), exit: Some(exit) };
            self.event(event::Event::ExecExited(exited));
        }
    }

    /// An exec that has ended needs no signal.
    pub(super) fn signal_exec(&mut self, signal: &spec::Signal) -> Answered {
        let Some(exec) = self.execs.get(&signal.exec_id) else { return Ok(done()) };
        if !signal.kill_all {
            return send_signal(&exec.pidfd, signal.signal);
        }
        let _gone = rustix::process::pidfd_send_signal(&exec.pidfd, Signal::KILL);
        if let Some(group) = &exec.cgroup {
            cgroup::kill(group).map_err(|error| crate::child::failure(&error, Step::Cgroup))?;
        }
        Ok(done())
    }
}

/// A cgroup below the container's: on v1 in the freezer hierarchy only, by which processes are killed.
fn make_cgroup(container: &spec::Cgroup, exec: &str) -> std::io::Result<spec::Cgroup> {
    let mut group = container.clone();
    for directory in &mut group.directories {
        if group.unified || directory.controller.split(',').any(|name| name == "freezer") {
            let path = Path::new(&directory.path).join(format!("exec-{exec}"));
            std::fs::create_dir(&path)?;
            directory.path = path.to_string_lossy().into_owned();
        }
    }
    Ok(group)
}

/// What the exec has left running keeps it; then it goes with the container.
fn remove_cgroup(group: Option<&spec::Cgroup>) {
    let own = |directory: &&spec::CgroupDirectory| directory.path.contains("/exec-");
    for directory in group.iter().flat_map(|group| group.directories.iter().filter(own)) {
        let _busy = std::fs::remove_dir(&directory.path);
    }
}
