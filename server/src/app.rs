//! The daemon's parts, and the order in which they are built.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::cgroup::Layout;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::blocking;
use crate::config::Config;
use crate::container::stats::Layers;
use crate::container::{self, Container};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::execs::Execs;
use crate::files::FileLimit;
use crate::filters::Filters;
use crate::id::SandboxId;
use crate::instance::Instance;
use crate::node::Node;
use crate::podnet::PodNetwork;
use crate::sandbox::{self, Sandbox};
use crate::shim::{Program, Shim, Told};
use crate::store::Store;
use crate::streaming::Streaming;

/// The kernel tells of its rules in milliseconds.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// All that a call needs.
#[derive(Debug)]
pub struct App {
    /// What the operator wants.
    pub config: Config,
    /// Whose kernel names these are.
    pub instance: Instance,
    /// What this machine can do.
    pub node: Node,
    /// Sandboxes and containers.
    pub store: Store,
    /// Images.
    pub images: images::Images,
    /// Where cgroups are.
    pub cgroups: Layout,
    /// The network of pods.
    pub network: PodNetwork,
    /// The shim's program.
    pub program: Program,
    /// Compiled seccomp profiles.
    pub filters: Filters,
    /// Execs whose end somebody waits for.
    pub execs: Execs,
    /// Who hears of changes.
    pub events: Events,
    /// Exec, attach and port-forward over HTTP.
    pub streaming: Streaming,
    /// Descriptors that meters may hold together.
    pub most_metered: usize,
    /// Sizes of writable layers.
    pub layers: Layers,
    /// Where shims' events go.
    pub told: mpsc::UnboundedSender<Told>,
    /// Everything that goes on by itself.
    pub tasks: TaskTracker,
}

impl App {
    /// Builds the parts: what fails here keeps the daemon from starting. The receiver is for `monitor::run`.
    ///
    /// # Errors
    /// Those of the parts.
    pub fn build(
        config: Config,
        instance: Instance,
        files: &FileLimit,
    ) -> Result<(Arc<App>, mpsc::UnboundedReceiver<Told>)> {
        let node = Node::look(files)?;
        let cgroups = Layout::detect()?;
        let store = Store::new(&instance.state, &instance.root)?;
        let images = images::Images::open(crate::image::config(&config, &instance))?;
        let program = Program::install(&shim_path(&config)?, &instance.root.join("bin"))?;
        let network = PodNetwork::new(&config, &instance);
        let streaming = Streaming::bind(&config.streaming)?;
        let (told, events) = mpsc::unbounded_channel();
        let app = App {
            config,
            instance,
            node,
            store,
            images,
            cgroups,
            network,
            program,
            filters: Filters::default(),
            execs: Execs::default(),
            events: Events::default(),
            streaming,
            // As many as connections may.
            most_metered: usize::try_from(files.now / 4).unwrap_or(usize::MAX),
            layers: Layers::default(),
            told,
            tasks: TaskTracker::new(),
        };
        Ok((Arc::new(app), events))
    }

    /// What there is to say of the network.
    ///
    /// # Errors
    /// Looking takes too long.
    pub async fn podnet_message(self: &Arc<App>) -> Result<NetworkMessage> {
        let app = self.clone();
        blocking::within(LOOK_DEADLINE, "look at the network", move || Ok(app.network.message()))
            .await
    }

    /// Makes what stands in the kernel for no pod in particular but for the network. Blocks.
    ///
    /// # Errors
    /// Those of making cgroups.
    pub fn make_cgroups(&self) -> Result<()> {
        self.cgroups.make(&self.own_cgroup("pods"))?;
        for controller in ["memory", crate::sandbox::teardown::SHIM_CONTROLLER] {
            self.cgroups.make_in(&self.own_cgroup("shims"), controller)?;
        }
        Ok(())
    }

    /// Takes away what stands in the kernel for no pod in particular, when there is no pod: a daemon
    /// that ends then leaves nothing. Blocks.
    pub fn leave_nothing(&self) {
        if !self.store.sandboxes().is_empty() {
            return;
        }
        if let Err(error) = self.network.remove() {
            tracing::warn!("remove the bridge: {}", crate::error::chain(&error));
        }
        for path in ["pods", "shims", ""] {
            // One that is in use after all stays.
            let _in_use =
                runtime::cgroup::remove_empty(&self.cgroups.cgroup(&self.own_cgroup(path)));
        }
    }

    /// Path of a cgroup of berth's own: it has the instance in it.
    pub fn own_cgroup(&self, rest: &str) -> String {
        format!("/berth-{}/{rest}", self.instance.id)
    }

    /// Path of a sandbox's cgroup, below which its containers are.
    pub fn pod_cgroup(&self, record: &sandbox::Record) -> String {
        if record.spec.cgroup_parent.is_empty() {
            self.own_cgroup(&format!("pods/{}", record.id))
        } else {
            record.spec.cgroup_parent.clone()
        }
    }

    /// Path of a container's cgroup.
    pub fn container_cgroup(
        &self,
        sandbox: &sandbox::Record,
        container: &crate::id::ContainerId,
    ) -> String {
        format!(
            "{}/berth-{}-{container}",
            self.pod_cgroup(sandbox).trim_end_matches('/'),
            self.instance.id
        )
    }

    /// Path of a shim's cgroup.
    pub fn shim_cgroup(&self, sandbox: &SandboxId) -> String {
        self.own_cgroup(&format!("shims/{sandbox}"))
    }

    /// Where the network namespace of a sandbox is pinned.
    pub fn netns_path(&self, sandbox: &SandboxId) -> PathBuf {
        self.instance.state.join("netns").join(sandbox.as_str())
    }

    /// The sandbox of a container.
    ///
    /// # Errors
    /// `NotFound` where it is just being removed.
    pub fn sandbox_of(&self, container: &Container) -> Result<Arc<Sandbox>> {
        let id = container.record().sandbox.clone();
        self.store.sandbox(id.as_str())
    }

    /// The shim of a container's sandbox.
    ///
    /// # Errors
    /// `Unavailable` where it has ended.
    pub fn shim_of(&self, container: &Container) -> Result<Arc<Shim>> {
        let sandbox = self.sandbox_of(container)?;
        sandbox.shim().ok_or_else(|| Error::Unavailable {
            what: format!("the shim of sandbox {}", sandbox.id),
            problem: "it has ended; stop and remove the sandbox".into(),
        })
    }

    /// Writes a container's record as it is by then. Blocks.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save_container(&self, container: &Container) -> Result<()> {
        let erased = container.erased.lock().expect("nobody panics with this lock");
        if *erased {
            return Ok(());
        }
        let record: container::Record = container.record().clone();
        self.store.save_container(&record)
    }

    /// Takes a container's record off the disk, for good. Blocks.
    ///
    /// # Errors
    /// Those of removing.
    pub fn erase_container(&self, container: &Container) -> Result<()> {
        let mut erased = container.erased.lock().expect("nobody panics with this lock");
        let sandbox = container.record().sandbox.clone();
        self.store.erase_container(&sandbox, &container.id)?;
        *erased = true;
        Ok(())
    }

    /// Writes a sandbox's record as it is by then. Blocks.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        let erased = sandbox.erased.lock().expect("nobody panics with this lock");
        if *erased {
            return Ok(());
        }
        let record: sandbox::Record = sandbox.record().clone();
        self.store.save_sandbox(&record)
    }

    /// Takes a sandbox's record off the disk, for good. Blocks.
    ///
    /// # Errors
    /// Those of removing.
    pub fn erase_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        let mut erased = sandbox.erased.lock().expect("nobody panics with this lock");
        self.store.erase_sandbox(&sandbox.id)?;
        *erased = true;
        Ok(())
    }

    /// Writes a container's record in the background, for whoever must not wait for a disk.
    pub fn save_container_later(self: &Arc<App>, container: &Arc<Container>) {
        let (app, container) = (self.clone(), container.clone());
        self.tasks.spawn(async move {
            let id = container.id.clone();
            let saved = crate::blocking::run("write down a container", move || {
                app.save_container(&container)
            })
            .await;
            if let Err(error) = saved {
                tracing::error!(container = %id, "{}", crate::error::chain(&error));
            }
        });
    }
}

/// The shim's program: the configured one, or the one that lies beside this one.
///
/// # Errors
/// The kernel does not tell where this one lies.
pub fn shim_path(config: &Config) -> Result<PathBuf> {
    use crate::error::Doing as _;
    if let Some(path) = &config.runtime.shim {
        return Ok(path.clone());
    }
    let own = std::env::current_exe().doing(|| "find the program of berth")?;
    Ok(own.parent().unwrap_or(Path::new("/")).join("berth-shim"))
}

/// Nanoseconds since 1970.
pub fn now() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Whether pods get a network, and which.
#[derive(Debug)]
pub struct NetworkMessage {
    /// Pods can be made.
    pub ready: bool,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}
