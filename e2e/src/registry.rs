//! A real registry: Debian's docker-registry on a loopback port.
//!
//! One without authentication is started once for all tests. It dies with this process.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::case::lock;
use crate::image::{Image, base};
use crate::push::{self, Target};
use crate::scaled;

/// bcrypt of "secret", as `htpasswd -B` makes it: the only kind that the registry takes.
const HTPASSWD: &str = "alice:$2y$05$bA6dFJRMdZ9ebRRjWKk4.ePHVmLvgJ5wt3ofBfNpJQJ1hysQS0sEm\n";

/// User and password of a registry that wants them.
pub const LOGIN: (&str, &str) = ("alice", "secret");

/// A registry that runs.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    dir: PathBuf,
    login: bool,
    process: Mutex<Child>,
    pushed: Mutex<HashSet<String>>,
}

impl Registry {
    /// The registry of all tests.
    pub fn shared() -> Result<&'static Registry> {
        static SHARED: OnceLock<Registry> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        let _alone = lock(&STARTING);
        if let Some(registry) = SHARED.get() {
            return Ok(registry);
        }
        let dir = PathBuf::from(format!("/dev/shm/be2e-registry-{}", std::process::id()));
        remove_stale(&dir)?;
        let registry = Registry::start(&dir, false)?;
        Ok(SHARED.get_or_init(|| registry))
    }

    /// Starts a registry that keeps its data in a directory; `login` makes it want [`LOGIN`].
    pub fn start(dir: &Path, login: bool) -> Result<Registry> {
        std::fs::create_dir_all(dir)?;
        let port = free_port()?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            dir.display()
        );
        if login {
            std::fs::write(dir.join("htpasswd"), HTPASSWD)?;
            let file = dir.join("htpasswd");
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: e2e, path: {}}}}}\n",
                file.display()
            ));
        }
        std::fs::write(dir.join("config.yml"), config)?;
        let process = Mutex::new(keep(dir.join("config.yml"), dir.join("log"))?);
        let registry =
            Registry { port, dir: dir.to_owned(), login, process, pushed: Mutex::default() };
        registry.wait()?;
        Ok(registry)
    }

    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + scaled(Duration::from_secs(20));
        while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))).is_err() {
            if lock(&self.process).try_wait()?.is_some() || Instant::now() > deadline {
                bail!(
                    "docker-registry: {}",
                    std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`, as references have it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an image under `repository[:tag]` and returns its reference.
    pub async fn push(&self, name: &str, image: &Image) -> Result<String> {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let login = self.login.then(|| (LOGIN.0.to_owned(), LOGIN.1.to_owned()));
        push::push(&Target { address: self.address(), login }, repository, tag, image).await?;
        Ok(format!("{}/{repository}:{tag}", self.address()))
    }

    /// The reference of the busybox image; it is pushed once.
    pub async fn busybox(&self) -> Result<String> {
        let name = "library/busybox:latest";
        if !lock(&self.pushed).contains(name) {
            self.push(name, &base::busybox()?.build()).await?;
            lock(&self.pushed).insert(name.to_owned());
        }
        Ok(format!("{}/{name}", self.address()))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let mut process = lock(&self.process);
        process.kill().ok();
        process.wait().ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Starts the registry from a thread that never ends: the kernel sends the death signal when the starting thread goes,
/// and the thread of a test goes with its test.
fn keep(config: PathBuf, log: PathBuf) -> Result<Child> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let start = || -> Result<Child> {
            let log = std::fs::File::create(log)?;
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(config);
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("start docker-registry")
        };
        sender.send(start()).ok();
        loop {
            std::thread::park();
        }
    });
    receiver.recv().context("the thread that starts the registry is gone")?
}

/// The shared registry is a static, which nobody drops: its directory goes when a later run finds its process gone.
fn remove_stale(own: &Path) -> Result<()> {
    for entry in std::fs::read_dir(own.parent().context("a directory has a parent")?)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("be2e-registry-").map(|pid| Path::new("/proc").join(pid));
        if pid.is_some_and(|proc| !proc.exists()) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
    Ok(())
}
