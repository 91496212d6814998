//! A `berth serve` with directories, network namespace and log of its own.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::Cri;
use crate::netns::NetNs;
use crate::{bin_dir, cgroup, image, scaled};

/// The directories of one test. Removed, with all that is mounted there, when the value goes.
#[derive(Debug)]
pub struct Scratch {
    /// On a real disk: root directory, logs, volumes.
    pub disk: PathBuf,
    /// On tmpfs: state directory and socket.
    pub memory: PathBuf,
}

impl Scratch {
    /// New directories below BERTH_E2E_DIR (/var/tmp) and BERTH_E2E_STATE (/dev/shm).
    pub fn new() -> Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("be2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let below = |variable: &str, default: &str| -> Result<PathBuf> {
            let dir = std::env::var_os(variable)
                .map_or_else(|| PathBuf::from(default), PathBuf::from)
                .join(&name);
            std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))?;
            Ok(dir.canonicalize()?)
        };
        Ok(Scratch {
            disk: below("BERTH_E2E_DIR", "/var/tmp")?,
            memory: below("BERTH_E2E_STATE", "/dev/shm")?,
        })
    }

    /// A new directory on the disk.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.disk.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for dir in [&self.disk, &self.memory] {
            unmount_below(dir);
            std::fs::remove_dir_all(dir).ok();
        }
    }
}

/// Detaches every mount at or below a directory, the last one first.
pub fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|at| Path::new(at).starts_with(dir));
    for at in below {
        nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// What a daemon is started with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Text of the configuration file, where `{disk}` stands for the test's directory on the disk; without it no file
    /// is given.
    pub config: Option<String>,
    /// Another root directory than the one in the scratch directory.
    pub root: Option<PathBuf>,
    /// Another state directory; the instance follows from it.
    pub state: Option<PathBuf>,
    /// Variables of its environment, besides the caller's.
    pub env: Vec<(String, String)>,
    /// Files that are copied into the test's directory on the disk before, by their names there.
    pub files: Vec<(&'static str, PathBuf)>,
}

/// A daemon under test.
#[derive(Debug)]
pub struct Daemon {
    /// Root directory.
    pub root: PathBuf,
    /// State directory.
    pub state: PathBuf,
    /// The socket.
    pub socket: PathBuf,
    /// What it logs, of all its lives.
    pub log: PathBuf,
    /// The first 8 hexadecimal digits of the SHA-256 of the state directory's path.
    pub instance: String,
    /// Where it runs.
    pub netns: NetNs,
    config: Option<PathBuf>,
    env: Vec<(String, String)>,
    child: Mutex<Option<Child>>,
    cri: Cri,
}

impl Daemon {
    /// Starts a daemon in new directories below `scratch`, named after `name`, and waits until it answers.
    pub async fn start(
        scratch: &Scratch,
        name: &str,
        netns: NetNs,
        options: Options,
    ) -> Result<Daemon> {
        let state = options.state.unwrap_or_else(|| scratch.memory.join(name));
        let dir = scratch.dir(name)?;
        let root = options.root.unwrap_or_else(|| dir.join("root"));
        std::fs::create_dir_all(&state)?;
        for (name, source) in &options.files {
            std::fs::copy(source, scratch.disk.join(name))
                .with_context(|| format!("copy {}", source.display()))?;
        }
        let config = options.config.map(|text| -> Result<PathBuf> {
            let text = text.replace("{disk}", &scratch.disk.to_string_lossy());
            std::fs::write(dir.join("config.toml"), text)?;
            Ok(dir.join("config.toml"))
        });
        let socket = state.join("berth.sock");
        let daemon = Daemon {
            instance: instance_of(&state)?,
            cri: Cri::new(&socket)?,
            log: dir.join("log"),
            config: config.transpose()?,
            env: options.env,
            child: Mutex::new(None),
            root,
            state,
            socket,
            netns,
        };
        daemon.restart().await?;
        Ok(daemon)
    }

    /// The command that starts the daemon, as a caller may change it.
    pub fn command(&self) -> Command {
        let mut command = self.netns.command(bin_dir().join("berth"));
        command.arg("serve").arg("--root").arg(&self.root).arg("--state").arg(&self.state);
        command.arg("--socket").arg(&self.socket);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.envs(self.env.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Starts the daemon again on the same directories and waits until it answers.
    pub async fn restart(&self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child =
            self.command().stdout(log.try_clone()?).stderr(log).spawn().context("start berth")?;
        *self.child() = Some(child);
        crate::eventually(20, "the daemon answers", async || {
            if let Some(status) = self.exited()? {
                bail!("the daemon ended before it answered: {status}");
            }
            Ok(self.cri.version().await.is_ok())
        })
        .await
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("no test panics while it holds this lock")
    }

    fn exited(&self) -> Result<Option<ExitStatus>> {
        let mut child = self.child();
        Ok(match child.as_mut() {
            Some(process) => process.try_wait()?,
            None => None,
        })
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> Result<i32> {
        let child = self.child();
        Ok(i32::try_from(child.as_ref().context("the daemon does not run")?.id())?)
    }

    /// A client of its socket.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// A command line of berth on this daemon's socket, in its network namespace.
    pub fn berth(&self, args: &[&str]) -> Command {
        let mut command = self.netns.command(bin_dir().join("berth"));
        command.args(args).env("BERTH_SOCKET", &self.socket).stdin(Stdio::null());
        command
    }

    /// Asks the daemon to end, as a service manager does, and waits for it.
    pub async fn stop(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        crate::eventually(20, "the daemon ends after SIGTERM", async || {
            Ok(self.exited()?.is_some())
        })
        .await?;
        self.reaped()
    }

    /// Kills the daemon where it stands.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.reaped()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()?), signal)?)
    }

    fn reaped(&self) -> Result<ExitStatus> {
        let mut child = self.child().take().context("the daemon does not run")?;
        Ok(child.wait()?)
    }

    /// What a reboot does, while no daemon runs: every process of this instance ends, and the state directory is empty.
    pub fn end_everything(&self) -> Result<()> {
        kill_by_cgroup(&self.instance);
        unmount_below(&self.state);
        for entry in std::fs::read_dir(&self.state)? {
            let path = entry?.path();
            if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            }
            .with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Whether the daemon still runs.
    pub fn runs(&self) -> bool {
        self.child().is_some() && matches!(self.exited(), Ok(None))
    }

    /// The most memory the daemon has had in RAM at once, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? << 10)
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Daemon {
    /// Ends what a failed test has left: the daemon, then all that sits in cgroups of this instance.
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            child.kill().ok();
            child.wait().ok();
        }
        kill_by_cgroup(&self.instance);
    }
}

/// The instance id of a state directory.
pub fn instance_of(state: &Path) -> Result<String> {
    let digest = image::digest_of(state.canonicalize()?.as_os_str().as_encoded_bytes());
    Ok(digest["sha256:".len()..][..8].to_owned())
}

/// Kills every process in cgroups whose path has a text in it, and removes these cgroups.
pub fn kill_by_cgroup(needle: &str) {
    let deadline = Instant::now() + scaled(Duration::from_secs(10));
    while let Ok(dirs) = cgroup::find(needle) {
        if dirs.is_empty() || Instant::now() > deadline {
            return;
        }
        for dir in dirs.iter().rev() {
            std::fs::write(dir.join("freezer.state"), "THAWED").ok();
            for pid in cgroup::processes(dir) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
            std::fs::remove_dir(dir).ok();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
