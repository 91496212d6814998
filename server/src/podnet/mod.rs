//! Which network serves pods, and what a sandbox gets of it: CNI (`cni.rs`, with `keep.rs` behind the calls), or the
//! built-in bridge, made when the first pod needs it.

mod capabilities;
pub mod cni;
mod keep;

pub use keep::{keep, supersede};

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::app::{App, NetworkMessage};
use crate::blocking;
use crate::config::Config;
use crate::error::{Error, Result, chain};
use crate::id::SandboxId;
use crate::instance::Instance;
use crate::network::{self, Attachment, Bridge, PortMapping, reserve};
use crate::sandbox::Sandbox;
use crate::sandbox::spec::{NetworkMode, SandboxSpec};
use cni::Cni;

/// How long work for the background waits for more of its kind.
const TOGETHER: Duration = Duration::from_millis(50);

/// Makes rules anew that somebody else has taken away, for as long as the bridge is there: a thread that sleeps
/// until the kernel tells of a change.
fn watch(bridge: &Arc<Bridge>) -> Result<()> {
    let watch = network::Watch::open()?;
    let bridge = Arc::downgrade(bridge);
    let work = move || {
        loop {
            let mut fds = [PollFd::new(&watch, PollFlags::IN)];
            let waited = poll(&mut fds, None);
            let Some(bridge) = bridge.upgrade() else { return };
            let healed = match waited {
                Ok(_) => watch
                    .drain()
                    .and_then(|changed| if changed { bridge.heal() } else { Ok(false) }),
                Err(_) => Ok(false),
            };
            match healed {
                Ok(true) => {
                    tracing::warn!("somebody changed the rules of pods' ports; they are made anew")
                }
                Ok(false) => {}
                Err(error) => tracing::warn!("keep the rules of pods' ports: {}", chain(&error)),
            }
        }
    };
    let thread = std::thread::Builder::new().name("network-watch".into()).stack_size(WATCH_STACK);
    thread
        .spawn(work)
        .map(drop)
        .map_err(|source| Error::Io { doing: "start a thread".into(), source })
}

/// Stack of the thread that watches rules, bytes.
const WATCH_STACK: usize = 256 << 10;

/// How long the removal of the bridge waits for those who are at work on it.
const REMOVE_DEADLINE: Duration = Duration::from_secs(1);
/// How old what is known of the firewalls of others may be.
const FOREIGN_AGE: Duration = Duration::from_secs(30);

/// The network of pods.
#[derive(Debug)]
pub struct PodNetwork {
    config: network::Config,
    /// Made at the first use. The lock is held while it is made: whoever comes meanwhile needs it too.
    bridge: Mutex<Option<Arc<Bridge>>>,
    /// Attachments that were there before the bridge is opened.
    records: Mutex<Vec<Attachment>>,
    /// Something was attached or detached, and left work for the background.
    untidy: tokio::sync::Notify,
    /// Firewalls of others, and when we looked.
    foreign: Mutex<Option<(Instant, Vec<network::ForeignDrop>)>>,
    /// The other way.
    pub cni: Cni,
}

/// An attachment that is chosen and not yet made, with the sockets that hold its host ports.
#[derive(Debug)]
pub struct Prepared {
    /// Who makes it.
    pub by: By,
    /// The host ports; none is 0.
    pub ports: Vec<PortMapping>,
    /// For the shim to hold.
    pub held: Vec<OwnedFd>,
}

/// Who attaches a sandbox.
#[derive(Debug)]
pub enum By {
    /// The built-in bridge; what is chosen is for the record.
    Bridge(Attachment),
    /// The plugins of a network.
    Cni(Arc<crate::network::cni::config::Network>),
}

/// Takes a host port.
fn hold(
    mapping: &PortMapping,
    ports: &mut Vec<PortMapping>,
    held: &mut Vec<OwnedFd>,
) -> Result<()> {
    let reservation = reserve(mapping)?;
    ports.push(reservation.mapping);
    held.extend(reservation.socket);
    Ok(())
}

impl From<network::Error> for Error {
    fn from(error: network::Error) -> Error {
        match error {
            network::Error::Invalid(problem) => Error::invalid("network", problem),
            network::Error::PortTaken(port) => Error::Exists {
                what: format!("host port {port}"),
                problem: "another program or pod has it; choose another port".into(),
            },
            network::Error::Exhausted(problem) => {
                Error::Unavailable { what: "the pod network".into(), problem }
            }
            network::Error::Kernel { .. } => {
                Error::Failed { doing: "set up the pod network".into(), source: Box::new(error) }
            }
        }
    }
}

impl PodNetwork {
    /// Nothing is made yet.
    pub fn new(config: &Config, instance: &Instance) -> PodNetwork {
        let cni = Cni::new(config, instance);
        let config = network::Config {
            instance: instance.id.to_string(),
            directory: instance.root.join("network"),
            subnet: config.network.bridge_subnet.map(|subnet| subnet.to_string()),
        };
        PodNetwork {
            config,
            bridge: Mutex::default(),
            records: Mutex::default(),
            untidy: tokio::sync::Notify::new(),
            foreign: Mutex::default(),
            cni,
        }
    }

    /// Takes over what sandboxes had before this daemon started; opens the bridge if any had something of it. `known`
    /// are the sandboxes that have a record. Blocks.
    ///
    /// # Errors
    /// The bridge cannot be made, or what CNI plugins have attached cannot be read.
    pub fn recover(
        &self,
        records: Vec<Attachment>,
        known: &dyn Fn(&SandboxId) -> bool,
    ) -> Result<()> {
        self.cni.recover(known)?;
        let any = !records.is_empty();
        *self.records.lock().expect("nobody panics with this lock") = records;
        if any { self.bridge().map(drop) } else { Ok(()) }
    }

    fn bridge(&self) -> Result<Arc<Bridge>> {
        let mut bridge = self.bridge.lock().expect("nobody panics with this lock");
        if let Some(bridge) = &*bridge {
            return Ok(bridge.clone());
        }
        let records = self.records.lock().expect("nobody panics with this lock").clone();
        std::fs::create_dir_all(&self.config.directory).map_err(|source| Error::Io {
            doing: format!("make {}", self.config.directory.display()),
            source,
        })?;
        let opened = Arc::new(Bridge::open(&self.config, &records)?);
        watch(&opened)?;
        *bridge = Some(opened.clone());
        Ok(opened)
    }

    /// Chooses what a sandbox gets, and takes its host ports. None for one that gets nothing of it. Blocks.
    ///
    /// # Errors
    /// No address is free, or a port is taken.
    pub fn prepare(&self, sandbox: &SandboxId, spec: &SandboxSpec) -> Result<Option<Prepared>> {
        if spec.network != NetworkMode::Pod {
            return Ok(None);
        }
        let (mut ports, mut held) = (Vec::new(), Vec::new());
        if self.cni.serves(spec.local) {
            let network = self.cni.network()?;
            for mapping in &spec.ports {
                // The plugin that leads IPv6 ports to pods may not need one to be free.
                if mapping.host_ip.is_some_and(|address| address.is_ipv6()) {
                    ports.push(mapping.clone());
                } else {
                    hold(mapping, &mut ports, &mut held)?;
                }
            }
            return Ok(Some(Prepared { by: By::Cni(network), ports, held }));
        }
        let bridge = self.bridge()?;
        for mapping in &spec.ports {
            hold(mapping, &mut ports, &mut held)?;
        }
        let attachment = bridge.plan(sandbox.as_str(), &ports)?;
        Ok(Some(Prepared { by: By::Bridge(attachment), ports, held }))
    }

    /// Makes what was prepared. `fds` are the sandbox's network namespace and a route socket in it.
    ///
    /// # Errors
    /// The kernel or a plugin refuses; a teardown takes back what was made.
    pub async fn attach(
        app: &Arc<App>,
        sandbox: &Arc<Sandbox>,
        by: By,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        let [netns, route] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| Error::Failed {
            doing: "attach the network".into(),
            source: format!("the shim sent {} descriptors, not 2", fds.len()).into(),
        })?;
        let attachment = match by {
            By::Cni(network) => return cni::attach(app, sandbox, network, route).await,
            By::Bridge(attachment) => attachment,
        };
        let app = app.clone();
        blocking::run("attach the network", move || {
            app.network.bridge()?.attach(&attachment, netns.as_fd(), route.as_fd())?;
            app.network.untidy.notify_one();
            Ok(())
        })
        .await
    }

    /// Takes back what a sandbox has of the bridge, as often as anybody likes. Blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn detach(&self, attachment: &Attachment) -> Result<()> {
        self.bridge()?.detach(attachment)?;
        self.untidy.notify_one();
        Ok(())
    }

    /// Finishes behind the calls what attach and detach leave for later: the kernel takes its time to delete a
    /// link. Runs until the daemon ends.
    pub async fn tidy(app: Arc<App>) {
        loop {
            app.network.untidy.notified().await;
            // Those that come close together are done together.
            tokio::time::sleep(TOGETHER).await;
            let Some(bridge) = app.network.opened() else { continue };
            let tidied = blocking::run("tidy the bridge", move || Ok(bridge.tidy()?)).await;
            if let Err(error) = tidied {
                tracing::warn!("tidy the bridge: {}", chain(&error));
            }
        }
    }

    /// Whether pods get a network now, and which; what cannot be given back is told, too. Blocks.
    pub fn message(&self) -> NetworkMessage {
        let mut message = if self.cni.serves(false) {
            self.cni_message()
        } else {
            let mut text = match self.status() {
                Some(status) => format!(
                    "the built-in bridge {} serves with subnet {}",
                    status.bridge, status.subnet
                ),
                None => "the built-in bridge serves; it is made for the first pod".into(),
            };
            for drop in self.recent_foreign_drops().unwrap_or_default() {
                text += &format!("; {}: {}", drop.place(), drop.why);
            }
            NetworkMessage { ready: true, reason: "DefaultNetwork", message: text }
        };
        for left in self.cni.leaving() {
            message.message += &format!("; {left}");
        }
        message
    }

    fn cni_message(&self) -> NetworkMessage {
        let loaded = self.cni.loaded();
        let asked = self.cni.status_problem();
        match (self.cni.problem(&loaded).or(asked), loaded.network) {
            (None, Some(network)) => NetworkMessage {
                ready: true,
                reason: "",
                message: format!("CNI {} serves", network.shown()),
            },
            (problem, _) => NetworkMessage {
                ready: false,
                reason: "NetworkPluginNotReady",
                message: format!("Network plugin returns error: {}", problem.unwrap_or_default()),
            },
        }
    }

    /// Takes the bridge and its rules away, when no pod needs them any more. Blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self) -> Result<()> {
        let Some(bridge) = self.bridge.lock().expect("nobody panics with this lock").take() else {
            return Ok(());
        };
        // Whoever is at work on it must not make it anew.
        let at_work = Arc::downgrade(&bridge);
        drop(bridge);
        let deadline = Instant::now() + REMOVE_DEADLINE;
        while at_work.strong_count() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(network::remove_all(&self.config)?)
    }

    /// What serves now, if the bridge has been made.
    pub fn status(&self) -> Option<network::Status> {
        self.opened().map(|bridge| bridge.status())
    }

    /// Rules of others that keep pods from the world. Blocks.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn foreign_drops(&self) -> Result<Vec<network::ForeignDrop>> {
        Ok(network::foreign_drops(&self.config)?)
    }

    /// As [`PodNetwork::foreign_drops`], but what was true a moment ago will do: a node may have thousands of rules,
    /// and a kubelet asks every few seconds. Blocks.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn recent_foreign_drops(&self) -> Result<Vec<network::ForeignDrop>> {
        let mut seen = self.foreign.lock().expect("nobody panics with this lock");
        if let Some((when, drops)) = &*seen
            && when.elapsed() < FOREIGN_AGE
        {
            return Ok(drops.clone());
        }
        let drops = self.foreign_drops()?;
        *seen = Some((Instant::now(), drops.clone()));
        Ok(drops)
    }

    /// Bytes that pods sent and received, by the names of their links. Blocks.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn counters(&self) -> Result<std::collections::HashMap<String, network::Counters>> {
        self.opened().map_or(Ok(Default::default()), |bridge| Ok(bridge.counters()?))
    }

    fn opened(&self) -> Option<Arc<Bridge>> {
        self.bridge.lock().expect("nobody panics with this lock").clone()
    }
}
