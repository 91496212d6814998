//! Execs: further programs in a running container, with pipes or a terminal of their own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use proto::shim::{self, Exit, Signal, reply, request};
use tokio::sync::oneshot;

use super::stream::{Input, Output, Streams, Terminal};
use super::{Container, State, create, plan};
use crate::app::App;
use crate::error::{Doing, Error, Result, chain};
use crate::id::random_hex;
use crate::shim::{CALL_DEADLINE, CREATE_DEADLINE, Shim};

/// After a program has ended, what it left running may still hold its output open for so long.
const LINGER: Duration = Duration::from_millis(200);
/// Killed execs are gone by then, or hang in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Room for the output of a program that writes little.
const FIRST_ROOM: usize = 4 << 10;
/// What a reply of ExecSync may hold in all: clients take messages of 16 MiB.
const MAX_REPLY: usize = (16 << 20) - (64 << 10);

/// What to run. Empty and None: as the container itself.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// The program and its arguments.
    pub args: Vec<Vec<u8>>,
    /// NAME=value, besides the container's.
    pub env: Vec<Vec<u8>>,
    /// Where it runs.
    pub working_directory: String,
    /// user[:group].
    pub user: String,
    /// With all capabilities and no filter.
    pub privileged: bool,
    /// Give it a terminal of this many rows and columns.
    pub terminal: Option<(u32, u32)>,
    /// Keep its input open.
    pub stdin: bool,
    /// It may be killed with all that it started, and nothing else.
    pub killable: bool,
    /// Nobody reads its output.
    pub discard: bool,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    /// To send it signals, and to size its terminal.
    pub handle: Handle,
    /// Its end.
    pub exit: oneshot::Receiver<Exit>,
    /// What of its input and output was asked for. Take what is to be used: dropping this closes the rest.
    pub streams: Streams,
}

/// A program that runs, without its streams.
#[derive(Debug, Clone)]
pub struct Handle {
    id: String,
    container: String,
    shim: Arc<Shim>,
    terminal: Option<Terminal>,
}

/// Starts a program; returns when it runs.
///
/// # Errors
/// The container does not run, or the program cannot be run.
pub async fn start(app: &Arc<App>, container: &Arc<Container>, spec: ExecSpec) -> Result<Running> {
    let state = container.record().state;
    if state != State::Running {
        return Err(Error::WrongState {
            what: format!("container {}", container.id),
            state: format!("{state:?}").to_lowercase(),
            problem: "commands can be run in running containers only".into(),
        });
    }
    if container.record().paused {
        return Err(Error::WrongState {
            what: format!("container {}", container.id),
            state: "paused".into(),
            problem: "a command would not run; resume the container first".into(),
        });
    }
    let filter = if spec.privileged { None } else { create::filter_of(app, container).await? };
    let mut process = process(container, &spec)?;
    process.seccomp = filter.is_some();
    process.seccomp_flags = filter.as_ref().map_or(0, |filter| filter.flags);
    let (mut streams, theirs) = pipes(&spec).doing(|| "make pipes")?;
    let mut fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    fds.extend(filter.iter().map(|filter| filter.memory.as_fd()));
    let id = random_hex(8);
    let (rows, columns) = spec.terminal.unwrap_or_default();
    let call = shim::Exec {
        container_id: container.id.to_string(),
        exec_id: id.clone(),
        process: Some(process),
        terminal: spec.terminal.is_some(),
        stdin: streams.stdin.is_some(),
        stdout: streams.stdout.is_some(),
        stderr: streams.stderr.is_some(),
        rows,
        columns,
        own_cgroup: spec.killable,
    };
    let shim = app.shim_of(container)?;
    let exit = app.execs.expect(&id);
    let answered = shim.call(request::Call::Exec(call), &fds, CREATE_DEADLINE).await;
    let (result, descriptors) = answered.inspect_err(|_| app.execs.forget(&id))?;
    debug_assert!(
        matches!(result, reply::Result::Started(_)),
        "an exec answers that it has started"
    );
    let master = descriptors.into_iter().next().map(Terminal::new).transpose();
    let terminal = master.doing(|| "take the terminal of a command")?;
    if let Some(terminal) = &terminal {
        streams.stdin = spec.stdin.then(|| Input::Terminal(terminal.clone()));
        streams.stdout = Some(Output::Terminal(terminal.clone()));
    }
    let handle = Handle { id, container: container.id.to_string(), shim, terminal };
    Ok(Running { handle, exit, streams })
}

/// The container's own process, with the differences.
fn process(container: &Container, spec: &ExecSpec) -> Result<shim::Process> {
    use shim::user::{Group, User};
    let record = container.record();
    let mut process = record.plan.process.clone().unwrap_or_default();
    process.args.clone_from(&spec.args);
    for variable in &spec.env {
        plan::set_variable(&mut process.env, variable.clone());
    }
    if spec.terminal.is_some() && !process.env.iter().any(|variable| variable.starts_with(b"TERM="))
    {
        process.env.push(b"TERM=xterm".to_vec());
    }
    if !spec.working_directory.is_empty() {
        process.cwd.clone_from(&spec.working_directory);
    }
    process.make_cwd = false;
    process.user = Some(if spec.user.is_empty() {
        let user = &record.user;
        shim::User {
            user: Some(User::Uid(user.uid)),
            group: Some(Group::Gid(user.gid)),
            additional_gids: user.groups.clone(),
            merge_groups: false,
        }
    } else {
        shim::User { merge_groups: true, ..plan::parse_user(&spec.user, "user")? }
    });
    if spec.privileged {
        let all = runtime::capabilities::ALL;
        process.capabilities = Some(shim::Capabilities {
            bounding: all,
            effective: all,
            permitted: all,
            inheritable: 0,
            ambient: 0,
        });
        process.no_new_privs = false;
    }
    Ok(process)
}

/// Our ends, and the program's: stdin where there is one, stdout, stderr.
fn pipes(spec: &ExecSpec) -> std::io::Result<(Streams, Vec<OwnedFd>)> {
    let (mut streams, mut theirs) = (Streams::default(), Vec::new());
    if spec.terminal.is_some() {
        return Ok((streams, theirs));
    }
    if spec.stdin {
        let (ours, end) = Input::pipe()?;
        streams.stdin = Some(ours);
        theirs.push(end);
    }
    if spec.discard {
        return Ok((streams, theirs));
    }
    for output in [&mut streams.stdout, &mut streams.stderr] {
        let (ours, end) = Output::pipe()?;
        *output = Some(ours);
        theirs.push(end);
    }
    Ok((streams, theirs))
}

impl Handle {
    /// Sends a signal to the program.
    ///
    /// # Errors
    /// The shim is gone, or there is no such signal.
    pub async fn signal(&self, number: u32) -> Result<()> {
        self.send(Signal { signal: number, ..Default::default() }).await
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// It has none.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        match &self.terminal {
            Some(terminal) => terminal.resize(rows, columns).doing(|| "set the size of a terminal"),
            None => Err(Error::WrongState {
                what: format!("a command in container {}", self.container),
                state: "without a terminal".into(),
                problem: "there is nothing to set the size of".into(),
            }),
        }
    }

    async fn send(&self, signal: Signal) -> Result<()> {
        let signal =
            Signal { container_id: self.container.clone(), exec_id: self.id.clone(), ..signal };
        self.shim.call(request::Call::Signal(signal), &[], CALL_DEADLINE).await.map(drop)
    }
}

impl Running {
    /// As [`Handle::signal`].
    ///
    /// # Errors
    /// The same.
    pub async fn signal(&self, number: u32) -> Result<()> {
        self.handle.signal(number).await
    }

    /// As [`Handle::resize`].
    ///
    /// # Errors
    /// The same.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        self.handle.resize(rows, columns)
    }

    /// Kills the program and, where it was started `killable`, all that it has started.
    pub async fn kill(&mut self) {
        if let Err(error) = self.handle.send(Signal { kill_all: true, ..Default::default() }).await
        {
            tracing::warn!(container = self.handle.container, "kill an exec: {}", chain(&error));
        }
        if tokio::time::timeout(KILL_DEADLINE, &mut self.exit).await.is_err() {
            tracing::warn!(
                container = self.handle.container,
                "an exec is still there {KILL_DEADLINE:?} after it was killed"
            );
        }
    }

    /// The end of the program: its code, or 255 where its shim has gone and nobody knows.
    pub async fn wait(&mut self) -> i32 {
        (&mut self.exit).await.map_or(255, |exit| i32::try_from(exit.code).unwrap_or(255))
    }
}

/// What a program wrote, and its exit code.
#[derive(Debug, Default)]
pub struct Written {
    /// As much as is kept.
    pub stdout: Vec<u8>,
    /// See `stdout`.
    pub stderr: Vec<u8>,
    /// 0 to 255.
    pub code: i32,
}

/// ExecSync: runs a program to its end. What it writes beyond the limit is read and dropped.
///
/// # Errors
/// As [`start`]; [`Error::Timeout`] after the program and all that it started were killed. No timeout is zero.
pub async fn run(
    app: &Arc<App>,
    container: &Arc<Container>,
    args: Vec<Vec<u8>>,
    timeout: Duration,
) -> Result<Written> {
    let spec = ExecSpec { args, killable: !timeout.is_zero(), ..Default::default() };
    let mut running = start(app, container, spec).await?;
    let limit =
        usize::try_from(app.config.limits.exec_output.0).unwrap_or(usize::MAX).min(MAX_REPLY);
    let Streams { stdout, stderr, .. } = std::mem::take(&mut running.streams);
    let (mut out, mut err) = (Kept::new(limit), Kept::new(limit));
    let finished = async {
        let reading = async { tokio::join!(out.read(stdout), err.read(stderr)) };
        tokio::pin!(reading);
        tokio::select! {
            // Whoever closes its output has mostly ended.
            _ = &mut reading => running.wait().await,
            code = async { (&mut running.exit).await.map_or(255, |exit| i32::try_from(exit.code).unwrap_or(255)) } => {
                // What it wrote is there; what it left running may write on, unheard.
                match tokio::time::timeout(LINGER, reading).await {
                    Ok(_) | Err(_) => {}
                }
                code
            }
        }
    };
    let code = if timeout.is_zero() {
        finished.await
    } else {
        match tokio::time::timeout(timeout, finished).await {
            Ok(code) => code,
            Err(_) => {
                running.kill().await;
                let doing = format!("run a command in container {}", container.id);
                return Err(Error::Timeout { doing, after: timeout });
            }
        }
    };
    let mut output = Written { stdout: out.bytes, stderr: err.bytes, code };
    // Where both are long, each has half of what a reply holds.
    output.stdout.truncate(MAX_REPLY - output.stderr.len().min(MAX_REPLY / 2));
    output.stderr.truncate(MAX_REPLY - output.stdout.len());
    Ok(output)
}

/// The beginning of an output.
struct Kept {
    bytes: Vec<u8>,
    limit: usize,
}

impl Kept {
    fn new(limit: usize) -> Kept {
        Kept { bytes: Vec::new(), limit }
    }

    /// Reads to the end.
    async fn read(&mut self, output: Option<Output>) {
        let Some(mut output) = output else { return };
        let mut beyond = Vec::new();
        loop {
            let read = if self.bytes.len() < self.limit {
                // Most programs write little.
                if self.bytes.len() == self.bytes.capacity() {
                    self.bytes.reserve(FIRST_ROOM);
                }
                let read = output.read(&mut self.bytes).await;
                self.bytes.truncate(self.limit);
                read
            } else {
                beyond.clear();
                output.read(&mut beyond).await
            };
            match read {
                Ok(count) if count > 0 => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}
