//! The pod's namespaces, and its init where containers share a PID namespace.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal};

use super::{Answer, Answered, Shim, Source, failed, failure, raw};
use crate::child::{Heard, Step, Watch};
use crate::namespaces::{self, Namespaces};
use crate::spec::{
    Exit, Failure, FailureKind, InitExited, MakeNamespaces, NamespacesMade, event, reply,
};
use crate::sys::clone::{Cloned, NewNamespaces};

/// Where the pod is.
#[derive(Debug, Default)]
pub(super) struct Pod {
    making: Option<Making>,
    namespaces: Option<Namespaces>,
    init: Option<Init>,
}

/// The child that is at work: first the one that makes the namespaces, then the pod's init.
#[derive(Debug)]
struct Making {
    request: u64,
    wanted: MakeNamespaces,
    watch: Watch,
    token: u64,
    pid: Pid,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Init {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Pod {
    pub(super) fn namespaces(&self) -> Option<&Namespaces> {
        self.namespaces.as_ref()
    }

    pub(super) fn is_made(&self) -> bool {
        self.namespaces.is_some() && self.making.is_none()
    }

    /// 0 without one.
    pub(super) fn init_pid(&self) -> u32 {
        self.init.as_ref().map_or(0, |init| raw(init.pid))
    }

    /// The process whose PID namespace the pod shares.
    pub(super) fn init(&self) -> Option<&OwnedFd> {
        self.init.as_ref().map(|init| &init.pidfd)
    }

    pub(super) fn end(&self) {
        if let Some(init) = &self.init {
            // It may have ended already.
            let _gone = rustix::process::pidfd_send_signal(&init.pidfd, Signal::KILL);
        }
    }
}

impl Shim {
    pub(super) fn make_namespaces(&mut self, request: u64, wanted: MakeNamespaces) -> Answered {
        if self.pod.namespaces.is_some() || self.pod.making.is_some() {
            return Err(failure(FailureKind::WrongState, "the pod's namespaces exist already"));
        }
        let (watch, theirs) =
            crate::child::line().map_err(|error| failed(&error, "make a socket pair"))?;
        match self.clone_into(None, NewNamespaces::default(), None) {
            Ok(Cloned::Child) => {
                let line = Watch::into_line(&watch.page, theirs);
                namespaces::run(&wanted, &self.options.directory, &line)
            }
            Ok(Cloned::Parent(pid, _)) => self.follow(request, wanted, watch, pid),
            Err(error) => Err(failed(&error, "clone the process that makes the pod's namespaces")),
        }
    }

    fn follow(&mut self, request: u64, wanted: MakeNamespaces, watch: Watch, pid: Pid) -> Answered {
        let token = self
            .watch(watch.as_fd(), Source::Pod)
            .map_err(|error| failed(&error, "wait for a child"))?;
        self.pod.making = Some(Making { request, wanted, watch, token, pid, failure: None });
        Ok(Answer::Later)
    }

    /// What the child at work says.
    pub(super) fn hear_pod(&mut self) {
        let Some(making) = &mut self.pod.making else { return };
        match making.watch.hear() {
            Heard::Nothing => {}
            Heard::Report(reply::Result::Failure(failure), _) => making.failure = Some(failure),
            Heard::Report(reply::Result::NamespacesMade(_), fds) => self.namespaces_made(fds),
            Heard::Report(reply::Result::Done(_), _) => self.pod_made(),
            Heard::Report(..) | Heard::End => self.making_failed(),
        }
    }

    fn namespaces_made(&mut self, fds: Vec<OwnedFd>) {
        let Some(making) = self.take_making() else { return };
        match Namespaces::from_report(&making.wanted, fds) {
            Ok(made) => self.pod.namespaces = Some(made),
            Err(error) => {
                let failure = crate::child::failure(&error, Step::Namespaces);
                return self.reply(making.request, reply::Result::Failure(failure), &[]);
            }
        }
        if !making.wanted.shared_pid {
            return self.answer_made(making.request);
        }
        if let Err(failure) = self.start_init(making.request, making.wanted) {
            self.pod.namespaces = None;
            self.reply(making.request, reply::Result::Failure(failure), &[]);
        }
    }

    fn take_making(&mut self) -> Option<Making> {
        let making = self.pod.making.take()?;
        self.forget(making.watch.as_fd(), making.token);
        Some(making)
    }

    fn start_init(&mut self, request: u64, wanted: MakeNamespaces) -> Result<(), Failure> {
        let (watch, theirs) =
            crate::child::line().map_err(|error| failed(&error, "make a socket pair"))?;
        match self.clone_into(None, NewNamespaces { pid: true }, None) {
            Ok(Cloned::Child) => {
                let line = Watch::into_line(&watch.page, theirs);
                match &self.pod.namespaces {
                    Some(made) => namespaces::run_init(made, &line),
                    None => crate::sys::clone::exit_now(1),
                }
            }
            Ok(Cloned::Parent(pid, pidfd)) => {
                self.pod.init = Some(Init { pid, pidfd });
                self.follow(request, wanted, watch, pid).map(drop)
            }
            Err(error) => Err(failed(&error, "clone the pod's init")),
        }
    }

    fn pod_made(&mut self) {
        if let Some(making) = self.take_making() {
            self.answer_made(making.request);
        }
    }

    fn answer_made(&mut self, request: u64) {
        let result =
            reply::Result::NamespacesMade(NamespacesMade { init_pid: self.pod.init_pid() });
        let fds = self.pod.namespaces.as_ref().map(|made| {
            let network = [&made.network, &made.route];
            network
                .into_iter()
                .flatten()
                .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
                .collect::<Result<Vec<_>, _>>()
        });
        match fds.unwrap_or_else(|| Ok(Vec::new())) {
            Ok(fds) => self.reply(request, result, &fds),
            Err(errno) => {
                let failure = failed(&errno.into(), "duplicate the network namespace");
                self.reply(request, reply::Result::Failure(failure), &[]);
            }
        }
    }

    fn making_failed(&mut self) {
        let Some(making) = self.take_making() else { return };
        let step = Step::of(&making.watch.page).name();
        let failure = making.failure.unwrap_or_else(|| {
            failure(
                FailureKind::Other,
                format!("the process that makes the pod's namespaces ended at step {step}"),
            )
        });
        self.pod.namespaces = None;
        self.reply(making.request, reply::Result::Failure(failure), &[]);
    }

    /// Whether the process was one of the pod's own.
    pub(super) fn pod_child_ended(&mut self, pid: Pid, exit: &Exit) -> bool {
        if self.pod.making.as_ref().is_some_and(|making| making.pid == pid) {
            // All it had to say came before its end.
            while self.pod.making.as_ref().is_some_and(|making| making.pid == pid) {
                self.hear_pod();
            }
            return true;
        }
        if self.pod.init.as_ref().is_some_and(|init| init.pid == pid) {
            self.pod.init = None;
            self.event(event::Event::InitExited(InitExited { exit: Some(*exit) }));
            return true;
        }
        false
    }
}
