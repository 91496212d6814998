//! Which network serves pods, and what a sandbox gets of it. Today that is the built-in bridge,
//! made when the first pod needs it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::app::App;
use crate::blocking;
use crate::config::Config;
use crate::error::{Error, Result, chain};
use crate::id::SandboxId;
use crate::instance::Instance;
use crate::network::{self, Attachment, Bridge, PortMapping, reserve};
use crate::sandbox::spec::{NetworkMode, SandboxSpec};

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
}

/// An attachment that is chosen and not yet made, with the sockets that hold its host ports.
#[derive(Debug)]
pub struct Prepared {
    /// For the record.
    pub attachment: Attachment,
    /// For the shim to hold.
    pub held: Vec<OwnedFd>,
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
        }
    }

    /// Takes over what sandboxes had before this daemon started; opens the bridge if any had something. Blocks.
    ///
    /// # Errors
    /// The bridge cannot be made.
    pub fn recover(&self, records: Vec<Attachment>) -> Result<()> {
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
        let bridge = self.bridge()?;
        let mut ports: Vec<PortMapping> = Vec::new();
        let mut held = Vec::new();
        for mapping in &spec.ports {
            let reservation = reserve(mapping)?;
            ports.push(reservation.mapping);
            held.extend(reservation.socket);
        }
        let attachment = bridge.plan(sandbox.as_str(), &ports)?;
        Ok(Some(Prepared { attachment, held }))
    }

    /// Makes what was prepared. `fds` are the sandbox's network namespace and a route socket in it. Blocks.
    ///
    /// # Errors
    /// The kernel refuses; `detach` takes back what was made.
    pub fn attach(&self, prepared: Prepared, fds: Vec<OwnedFd>) -> Result<()> {
        let [netns, route] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| Error::Failed {
            doing: "attach the network".into(),
            source: format!("the shim sent {} descriptors, not 2", fds.len()).into(),
        })?;
        self.bridge()?.attach(&prepared.attachment, netns.as_fd(), route.as_fd())?;
        self.untidy.notify_one();
        Ok(())
    }

    /// Takes back what a sandbox has, as often as anybody likes. Blocks.
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
