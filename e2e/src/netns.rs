//! A network namespace of a test's own, without a name: this process holds it by a descriptor.
//!
//! `ip netns exec` would mount a fresh /sys, which hides the cgroups; so commands enter with nsenter.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lives as long as this value, its processes and its pins.
#[derive(Clone, Debug)]
pub struct NetNs {
    file: Arc<File>,
}

impl NetNs {
    /// A new namespace with its loopback up.
    pub fn new() -> Result<NetNs> {
        let make = || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare a network namespace")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        let file = on_thread(make)??;
        let netns = NetNs { file: Arc::new(file) };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// A path of the namespace that other processes can open while this one lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Identity of the namespace, as `net:[...]` shows it.
    pub fn link(&self) -> Result<String> {
        Ok(std::fs::read_link(self.path())?.to_string_lossy().into_owned())
    }

    /// A command that will run in the namespace and die with this process.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter"]);
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Runs iproute2 in the namespace; the words of the command are split at spaces.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.output("ip", &words.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs a command in the namespace and returns what it printed.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output =
            self.command(program).args(args).output().with_context(|| format!("run {program}"))?;
        success(&format!("{program} {}", args.join(" ")), output)
    }

    /// Runs a function on a fresh thread inside the namespace. Sockets that it makes stay there.
    pub fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| -> Result<T> {
            setns(&*self.file, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
            Ok(function())
        })?
    }

    /// Listens inside the namespace, for use with tokio.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let listener = self
            .inside(|| TcpListener::bind(address))?
            .with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Connects from inside the namespace.
    pub fn connect(
        &self,
        address: SocketAddr,
        timeout: std::time::Duration,
    ) -> Result<std::io::Result<TcpStream>> {
        self.inside(|| TcpStream::connect_timeout(&address, timeout))
    }

    /// Makes a loopback port of this process' namespace reachable under the same address inside the namespace.
    /// Needs the runtime of the test, and ends with it.
    pub fn forward(&self, port: u16) -> Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = tokio::net::TcpListener::from_std(self.listen(address)?)?;
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(address).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Ok(())
    }

    /// Joins two namespaces by a veth pair: `here` with one address and `there` with another.
    pub fn link_to(&self, other: &NetNs, here: &str, there: &str) -> Result<()> {
        let (near, far) = ("e2e0", "e2e1");
        self.ip(&format!(
            "link add {near} type veth peer name {far} netns {}",
            other.path().display()
        ))?;
        for (netns, link, address) in [(self, near, here), (other, far, there)] {
            netns.ip(&format!("addr add {address} dev {link}"))?;
            netns.ip(&format!("link set {link} up"))?;
        }
        Ok(())
    }
}

/// The output of a command that must have ended well.
pub fn success(what: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a function on a thread that ends after it, for calls that change what a thread is.
fn on_thread<T: Send>(function: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(function).join())
        .map_err(|_| anyhow::anyhow!("a thread panicked"))
}
