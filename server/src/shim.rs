//! The daemon's side of a shim: starting one, and calling it.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use proto::shim::{Failure, FailureKind, Message, Request, event, message, reply, request};
use runtime::shim::protocol::{self, Received};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Doing, Error, Reason, Result};
use crate::id::SandboxId;

/// Every call of a shim ends by then: none does work that takes long.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A signal is sent at once; a shim that does not is passed over, and its cgroup killed.
pub const SIGNAL_DEADLINE: Duration = Duration::from_secs(2);
/// Calls that set a container up may wait for a disk.
pub const CREATE_DEADLINE: Duration = Duration::from_secs(60);

/// Name of the socket in a sandbox's directory.
const SOCKET: &str = "shim.sock";
/// What the shim writes to its standard error; empty unless something is very wrong.
const ERRORS: &str = "shim.log";

/// The shim's program: a file that no container can write to and no upgrade removes,
/// opened through a read-only mount that exists nowhere else.
#[derive(Debug)]
pub struct Program {
    mount: OwnedFd,
}

impl Program {
    /// Copies the program into `directory` under a name made of its content, and opens it.
    ///
    /// # Errors
    /// The program is missing, or cannot be copied or mounted.
    pub fn install(source: &Path, directory: &Path) -> Result<Program> {
        use sha2::Digest as _;
        let content = std::fs::read(source).doing(|| {
            format!(
                "read the shim's program {}; build it with hack/build, or name it in runtime.shim",
                source.display()
            )
        })?;
        let digest = sha2::Sha256::digest(&content);
        let build: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let path = directory.join(format!("berth-shim-{build}"));
        std::fs::create_dir_all(directory).doing(|| format!("make {}", directory.display()))?;
        if std::fs::read(&path).is_ok_and(|present| present == content) {
            return Program::open(&path);
        }
        let doing = || format!("install the shim as {}", path.display());
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, content).doing(doing)?;
        rustix::fs::chmod(&temporary, Mode::from_raw_mode(0o755)).doing(doing)?;
        std::fs::rename(&temporary, &path).doing(doing)?;
        Program::open(&path)
    }

    fn open(path: &Path) -> Result<Program> {
        use rustix::mount::{OpenTreeFlags, open_tree};
        let doing = || format!("mount the shim's program {}", path.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(rustix::fs::CWD, path, flags).doing(doing)?;
        let readonly = runtime::sys::mount::Attributes {
            set: runtime::sys::mount::READ_ONLY,
            ..Default::default()
        };
        runtime::sys::mount::set_attributes(&mount, readonly, false).doing(doing)?;
        Ok(Program { mount })
    }

    /// Starts a shim for a sandbox whose directory and shim cgroups exist, and connects to it. Blocks for
    /// the moment that the start of a process takes; the shim is then still starting, and calls wait in its socket.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn start(
        &self,
        id: &SandboxId,
        directory: &Path,
        cgroups: &[PathBuf],
    ) -> Result<(OwnedFd, Child)> {
        let handle = open_directory(directory)?;
        let listener = listen(&handle)?;
        let errors =
            std::fs::File::options().create(true).append(true).open(directory.join(ERRORS));
        let errors = errors.doing(|| format!("open {ERRORS} of sandbox {id}"))?;
        let child = Command::new(format!("/proc/self/fd/{}", self.mount.as_raw_fd()))
            .arg(id.as_str())
            .arg(directory)
            .args(cgroups)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::from(errors))
            .spawn()
            .doing(|| format!("start the shim of sandbox {id}"))?;
        Ok((connect_in(handle.as_fd())?, child))
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("open {}", path.display()))
}

/// The socket's address through its directory's descriptor: the path itself may be longer than an address.
fn address(directory: BorrowedFd<'_>) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
        .doing(|| "name a shim's socket")
}

fn socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .doing(|| "make a socket")
}

fn listen(directory: &OwnedFd) -> Result<OwnedFd> {
    let doing = || "listen on a shim's socket";
    match rustix::fs::unlinkat(directory, SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno).doing(doing),
    }
    let socket = socket()?;
    rustix::net::bind(&socket, &address(directory.as_fd())?).doing(doing)?;
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::chmodat(directory, SOCKET, mode, rustix::fs::AtFlags::empty()).doing(doing)?;
    rustix::net::listen(&socket, 8).doing(doing)?;
    Ok(socket)
}

fn connect_in(directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::connect(&socket, &address(directory)?).doing(|| "connect to a shim")?;
    Ok(socket)
}

/// Connects to the shim of a sandbox that a daemon before this one has started.
///
/// # Errors
/// There is none, or it does not take connections.
pub fn connect(directory: &Path) -> Result<OwnedFd> {
    connect_in(open_directory(directory)?.as_fd())
}

/// A connection to a shim.
#[derive(Debug)]
pub struct Shim {
    id: SandboxId,
    /// Only its readiness is the stream's; packets are read and written as such.
    socket: UnixStream,
    next: AtomicU64,
    pid: AtomicU32,
    /// None once the connection has ended.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
}

/// A reply with its descriptors.
type Answer = (reply::Result, Vec<OwnedFd>);

/// What a shim tells by itself.
#[derive(Debug)]
pub enum Told {
    /// Something happened in the sandbox.
    Event(SandboxId, event::Event),
    /// The connection has ended: the shim is gone.
    Gone(SandboxId),
}

impl Shim {
    /// Takes a connected socket. Must be called in the runtime.
    ///
    /// # Errors
    /// The socket cannot be waited for.
    pub fn new(id: SandboxId, socket: OwnedFd) -> Result<Shim> {
        let socket = UnixStream::from_std(socket.into())
            .doing(|| format!("wait for the shim of sandbox {id}"))?;
        Ok(Shim {
            id,
            socket,
            next: AtomicU64::new(1),
            pid: AtomicU32::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
        })
    }

    /// Its process id; 0 until it is known.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Now its process id is known.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Reads replies and events until the shim is gone.
    pub async fn read(&self, told: &mpsc::UnboundedSender<Told>) {
        while let Ok(message) = self.receive().await {
            match message {
                Received::Message(Message { body: Some(message::Body::Reply(reply)) }, fds) => {
                    let waiting = self.waiting.lock().expect("nobody panics with this lock");
                    let waiter = { waiting }.as_mut().and_then(|waiting| waiting.remove(&reply.id));
                    if let (Some(waiter), Some(result)) = (waiter, reply.result) {
                        // Whoever asked may have stopped waiting.
                        let _gone = waiter.send((result, fds));
                    }
                }
                Received::Message(Message { body: Some(message::Body::Event(event)) }, _) => {
                    if let Some(event) = event.event {
                        // The receiver lives as long as the daemon.
                        let _ending = told.send(Told::Event(self.id.clone(), event));
                    }
                }
                Received::Message(Message { body: None }, _) => {}
                Received::End => break,
            }
        }
        *self.waiting.lock().expect("nobody panics with this lock") = None;
        let _ending = told.send(Told::Gone(self.id.clone()));
    }

    async fn receive(&self) -> std::io::Result<Received<Message>> {
        loop {
            self.socket.readable().await?;
            let receive = || protocol::receive(self.socket.as_fd(), RecvFlags::DONTWAIT);
            match self.socket.try_io(Interest::READABLE, receive) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Whether the shim can still be called.
    pub fn is_connected(&self) -> bool {
        self.waiting.lock().expect("nobody panics with this lock").is_some()
    }

    /// Calls the shim, and waits for its answer until the deadline.
    ///
    /// # Errors
    /// What the shim says; [`Error::Timeout`]; [`Error::Unavailable`] where it is gone.
    pub async fn call(
        &self,
        call: request::Call,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<Answer> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match self.waiting.lock().expect("nobody panics with this lock").as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(self.gone()),
        };
        let request = Request { id, call: Some(call) };
        let work = async {
            self.send(&request, fds).await?;
            answer.await.map_err(|_| self.gone())
        };
        let answered = tokio::time::timeout(deadline, work).await;
        if let Some(waiting) = self.waiting.lock().expect("nobody panics with this lock").as_mut() {
            waiting.remove(&id);
        }
        match answered {
            Ok(Ok((reply::Result::Failure(failure), _))) => Err(error_of(failure)),
            Ok(result) => result,
            Err(_) => {
                let doing = format!("wait for the shim of sandbox {}", self.id);
                Err(Error::Timeout { doing, after: deadline })
            }
        }
    }

    async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        loop {
            let send = || protocol::send(self.socket.as_fd(), request, fds, SendFlags::DONTWAIT);
            match self.socket.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.socket.writable().await.doing(|| "wait for a shim")?;
                }
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)
                    ) =>
                {
                    return Err(self.gone());
                }
                other => return other.doing(|| format!("call the shim of sandbox {}", self.id)),
            }
        }
    }

    fn gone(&self) -> Error {
        Error::Unavailable {
            what: format!("the shim of sandbox {}", self.id),
            problem: "it has ended".into(),
        }
    }
}

/// What a shim says went wrong, as an error of the daemon.
pub fn error_of(failure: Failure) -> Error {
    let kind = failure.kind();
    let doing = failure.doing;
    let source = || std::io::Error::from_raw_os_error(failure.errno);
    match kind {
        FailureKind::NotFound => Error::NotFound { what: doing },
        FailureKind::WrongState => Error::WrongState {
            what: "the sandbox".into(),
            state: "not in the right state".into(),
            problem: doing,
        },
        FailureKind::CommandNotFound => known(Reason::CommandNotFound, doing, source()),
        FailureKind::CommandNotExecutable => known(Reason::CommandNotExecutable, doing, source()),
        FailureKind::Invalid => Error::Invalid { field: "container".into(), problem: doing },
        FailureKind::Other if failure.errno != 0 => Error::Io { doing, source: source() },
        FailureKind::Other => {
            Error::Failed { doing: "set up a container".into(), source: doing.into() }
        }
    }
}

fn known(reason: Reason, doing: String, source: std::io::Error) -> Error {
    Error::Known { reason, source: Box::new(Error::Io { doing, source }) }
}
