//! The network of pods by CNI: which configuration serves, and every ADD with its DEL.
//!
//! ```text
//!             attach: intent on disk          ADD succeeded              detach: DEL succeeded
//!   (nothing) ------------------------> Live ---------------> Live, with ---------------------> (nothing)
//!                                         |                   a result           ^
//!                                         |                       |              |
//!                                         +---- DEL failed -------+--> Leaving --+ retried in the background
//! ```
//!
//! A DEL that fails after a good ADD fails the stop of the pod as well, so that a kubelet sees it and asks again. After
//! [`PATIENCE`] failures it does no longer: what a kubelet could do by asking, the background does anyway, and a pod
//! that stays Terminating for days helps nobody. The address stays taken until a DEL succeeds; Status and the doctor
//! tell of it. A removal is never held up by more than one try.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, RwLock, Semaphore};

use super::capabilities;
use crate::app::App;
use crate::blocking;
use crate::config::{Config, IpPreference, NetworkMode};
use crate::error::{Doing, Error, Result, chain};
use crate::id::SandboxId;
use crate::instance::Instance;
use crate::network::cni::chain::{Plugins, Target, Valid};
use crate::network::cni::config::Network;
use crate::network::cni::intent::{Intent, Log};
use crate::network::cni::{INTERFACE, config, result};
use crate::sandbox::{self, Sandbox, teardown};

/// Attachments that are made or taken back at the same time; the others wait for their turn. A plugin is a process or
/// three of some 10 MiB each.
const AT_ONCE: usize = 32;
/// DELs that fail before a stop is no longer failed by it.
const PATIENCE: u32 = 5;
/// Pauses between tries of a DEL, doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A status older than this is asked for anew when somebody wants to know.
const STATUS_AGE: Duration = Duration::from_secs(5);
/// The kernel's number for a file on which a namespace is pinned (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// A subnet or two, as text.
const MAX_RANGES: u64 = 4096;

/// What CNI does for pods.
#[derive(Debug)]
pub struct Cni {
    mode: NetworkMode,
    preference: IpPreference,
    pub(super) directories: Vec<PathBuf>,
    pub(super) plugins: Plugins,
    pub(super) log: Log,
    /// Where the node's share of the cluster's addresses is written down.
    ranges_file: PathBuf,
    /// What a kubelet told last.
    ranges: Mutex<Vec<String>>,
    loaded: Mutex<Loaded>,
    attachments: Mutex<BTreeMap<SandboxId, Arc<Attachment>>>,
    turns: Semaphore,
    /// GC takes it for itself; every other verb shares it.
    pub(super) gc: RwLock<()>,
    /// Wakes the keeper.
    pub(super) wake: Notify,
    status: Mutex<Status>,
    status_wanted: AtomicBool,
    /// The plugins are being asked for their status.
    pub(super) asking: AtomicBool,
}

/// The configuration as it was read last.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The network.
    pub network: Option<Arc<Network>>,
    /// Why there is none, where there is a file.
    pub problem: Option<String>,
}

/// What the plugins said when they were asked last.
#[derive(Debug, Default)]
struct Status {
    asked: Option<Instant>,
    problem: Option<String>,
}

/// An attachment that was made, or begun.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) intent: Mutex<Intent>,
    /// When DEL is to be tried again; None where the pod is there.
    pub(super) leaving: Mutex<Option<Instant>>,
    /// Held from the first plugin of a verb to the last: nothing happens twice at once to one pod. Across awaits.
    pub(super) busy: tokio::sync::Mutex<()>,
}

impl Attachment {
    fn new(intent: Intent, leaving: Option<Instant>) -> Arc<Attachment> {
        let (intent, leaving) = (Mutex::new(intent), Mutex::new(leaving));
        Arc::new(Attachment { intent, leaving, busy: tokio::sync::Mutex::default() })
    }

    pub(super) fn intent(&self) -> Intent {
        lock(&self.intent).clone()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with this lock")
}

impl Cni {
    /// Nothing is read yet.
    pub(super) fn new(config: &Config, instance: &Instance) -> Cni {
        let network = &config.network;
        let directory = instance.root.join("network");
        Cni {
            mode: network.mode,
            preference: network.ip_preference,
            directories: network.cni_conf_dirs.clone(),
            plugins: Plugins {
                directories: network.cni_bin_dirs.clone(),
                deadline: network.cni_timeout,
            },
            log: Log::new(directory.join("cni")),
            ranges_file: directory.join("pod-cidr"),
            ranges: Mutex::default(),
            loaded: Mutex::default(),
            attachments: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
            gc: RwLock::default(),
            wake: Notify::new(),
            status: Mutex::default(),
            status_wanted: AtomicBool::new(false),
            asking: AtomicBool::new(false),
        }
    }

    /// Reads what an earlier daemon has attached, and the configuration. Whoever is not among `known` is gone, and its
    /// DEL is due. Blocks.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn recover(&self, known: &dyn Fn(&SandboxId) -> bool) -> Result<()> {
        let mut attachments = lock(&self.attachments);
        for intent in self.log.load()? {
            let leaving = (!known(&intent.sandbox)).then(Instant::now);
            attachments.insert(intent.sandbox.clone(), Attachment::new(intent, leaving));
        }
        drop(attachments);
        let ranges = std::fs::read_to_string(&self.ranges_file).unwrap_or_default();
        if ranges.len() as u64 <= MAX_RANGES {
            *lock(&self.ranges) = parse_ranges(&ranges).unwrap_or_default();
        }
        if self.watches() {
            self.log.prepare()?;
        }
        self.load();
        Ok(())
    }

    /// Reads the configuration. True when another one serves now. Blocks.
    pub(super) fn load(&self) -> bool {
        if self.mode == NetworkMode::Bridge {
            return false;
        }
        let read = match config::load(&self.directories) {
            Ok(network) => Loaded { network: network.map(Arc::new), problem: None },
            Err(error) => Loaded { network: None, problem: Some(chain(&error)) },
        };
        let mut loaded = lock(&self.loaded);
        let changed = loaded.network != read.network || loaded.problem != read.problem;
        if changed {
            match (&read.network, &read.problem) {
                (Some(network), _) => tracing::info!(
                    network = network.name,
                    version = network.version.text(),
                    file = %network.source.display(),
                    "a CNI network serves"
                ),
                (None, Some(problem)) => tracing::warn!("load the CNI configuration: {problem}"),
                (None, None) => tracing::info!("there is no CNI configuration"),
            }
            *lock(&self.status) = Status::default();
        }
        *loaded = read;
        changed
    }

    /// Whether configurations mean anything.
    pub(super) fn watches(&self) -> bool {
        self.mode != NetworkMode::Bridge
    }

    /// The configuration as it was read last.
    pub fn loaded(&self) -> Loaded {
        lock(&self.loaded).clone()
    }

    /// Whether pods of CRI clients, or those of `berth run`, are attached by CNI.
    pub fn serves(&self, local: bool) -> bool {
        match self.mode {
            NetworkMode::Bridge => false,
            NetworkMode::Cni => true,
            // What others bring with a package must not move the pods of `berth run`; and a file that cannot be read
            // is meant as a network all the same.
            NetworkMode::Auto => {
                let loaded = lock(&self.loaded);
                !local && (loaded.network.is_some() || loaded.problem.is_some())
            }
        }
    }

    /// The network for a new pod.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn network(&self) -> Result<Arc<Network>> {
        let loaded = self.loaded();
        loaded.network.clone().ok_or_else(|| Error::Unavailable {
            what: "the pod network".into(),
            problem: self.problem(&loaded).unwrap_or_default(),
        })
    }

    /// Why no pod can be attached.
    pub(super) fn problem(&self, loaded: &Loaded) -> Option<String> {
        let directories: Vec<_> =
            self.directories.iter().map(|one| one.display().to_string()).collect();
        match loaded {
            Loaded { problem: Some(problem), .. } => Some(format!(
                "the CNI configuration cannot be used: {problem}; mend the file, it is read at once"
            )),
            Loaded { network: None, .. } => Some(format!(
                "there is no CNI configuration in {}; install the cluster's network, or set network.mode to \"bridge\"",
                directories.join(", ")
            )),
            Loaded { .. } => lock(&self.status).problem.clone(),
        }
    }

    /// Takes the subnets of a kubelet. Blocks.
    ///
    /// # Errors
    /// They are none.
    pub fn set_ranges(&self, text: &str) -> Result<()> {
        let ranges = parse_ranges(text)?;
        let mut own = lock(&self.ranges);
        if *own != ranges {
            let doing = || format!("write {}", self.ranges_file.display());
            if let Some(directory) = self.ranges_file.parent() {
                std::fs::create_dir_all(directory).doing(doing)?;
            }
            let temporary = self.ranges_file.with_extension("new");
            std::fs::write(&temporary, text).doing(doing)?;
            std::fs::rename(&temporary, &self.ranges_file).doing(doing)?;
            *own = ranges;
        }
        Ok(())
    }

    pub(super) fn find(&self, sandbox: &SandboxId) -> Option<Arc<Attachment>> {
        lock(&self.attachments).get(sandbox).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Attachment>> {
        lock(&self.attachments).values().cloned().collect()
    }

    /// Whether a sandbox has something that DEL must give back.
    pub fn holds(&self, sandbox: &SandboxId) -> bool {
        lock(&self.attachments).contains_key(sandbox)
    }

    /// Nobody waits for the DEL of a sandbox any more: it is being removed.
    pub fn abandon(&self, sandbox: &SandboxId) {
        if let Some(attachment) = self.find(sandbox) {
            lock(&attachment.intent).abandoned = true;
        }
    }

    /// What GC must leave alone.
    pub(super) fn valid(&self, network: &str) -> Vec<Valid> {
        let there = self.all().into_iter().filter(|one| lock(&one.leaving).is_none());
        let intents = there.map(|one| one.intent()).filter(|one| one.network.name == network);
        intents
            .map(|one| Valid { container: one.sandbox.to_string(), interface: one.interface })
            .collect()
    }

    /// What could not be given back yet, one line each.
    pub fn leaving(&self) -> Vec<String> {
        let gone = self.all().into_iter().filter(|one| lock(&one.leaving).is_some());
        gone.map(|one| one.intent()).filter(|one| one.failures > 0).map(|one| told(&one)).collect()
    }

    /// What was found the last time the plugins were asked; asks for more when that is old.
    pub(super) fn status_problem(&self) -> Option<String> {
        let status = lock(&self.status);
        if status.asked.is_none_or(|asked| asked.elapsed() > STATUS_AGE)
            && !self.status_wanted.swap(true, Relaxed)
        {
            self.wake.notify_one();
        }
        status.problem.clone()
    }

    /// Whether somebody wants to know; true once.
    pub(super) fn take_status_wanted(&self) -> bool {
        self.status_wanted.swap(false, Relaxed)
    }

    pub(super) fn set_status(&self, network: &Network, answer: Result<()>) {
        let serves = lock(&self.loaded).network.as_deref() == Some(network);
        let mut status = lock(&self.status);
        let problem = answer.err().map(|error| chain(&error));
        if serves {
            if status.problem != problem {
                match &problem {
                    Some(problem) => {
                        tracing::warn!("ask the CNI plugins for their status: {problem}")
                    }
                    None => tracing::info!(network = network.name, "the CNI plugins can serve"),
                }
            }
            *status = Status { asked: Some(Instant::now()), problem };
        }
    }
}

/// An attachment that is to be given back, for people.
fn told(intent: &Intent) -> String {
    let result = intent.result.clone().unwrap_or_default();
    let addresses = result::addresses(&result, &intent.interface).unwrap_or_default();
    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    let held = if addresses.is_empty() {
        "what it had".to_owned()
    } else {
        format!("address {}", addresses.join(", "))
    };
    format!(
        "{held} of pod {} (sandbox {}) on CNI network {} could not be given back yet, tried {} times: {}",
        intent.pod,
        intent.sandbox.short(),
        intent.network.name,
        intent.failures,
        intent.problem
    )
}

/// Subnets with commas between, as a kubelet of a node with two families tells them.
fn parse_ranges(text: &str) -> Result<Vec<String>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let good = part.split_once('/').is_some_and(|(address, prefix)| {
                let most = match address.parse::<IpAddr>() {
                    Ok(IpAddr::V4(_)) => 32,
                    Ok(IpAddr::V6(_)) => 128,
                    Err(_) => return false,
                };
                prefix.parse::<u8>().is_ok_and(|prefix| prefix <= most)
            });
            let problem = "must be subnets such as 10.1.0.0/24, with commas between";
            let field = "runtime_config.network_config.pod_cidr";
            if good { Ok(part.to_owned()) } else { Err(Error::invalid(field, problem)) }
        })
        .collect()
}

/// Attaches a sandbox. What it began is given back by [`detach`], whatever became of it.
///
/// # Errors
/// A plugin fails, or gives no address.
pub(super) async fn attach(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    network: Arc<Network>,
    route: OwnedFd,
) -> Result<()> {
    let cni = &app.network.cni;
    let record = sandbox.record().clone();
    let ranges = lock(&cni.ranges).clone();
    let intent = Intent {
        sandbox: record.id.clone(),
        pod: format!("{}/{}", record.spec.name.namespace, record.spec.name.name),
        network: (*network).clone(),
        args: capabilities::args(&record.id, &record.spec.name)?,
        capabilities: capabilities::of(&record.spec, &app.pod_cgroup(&record), &ranges)?,
        netns: app.netns_path(&record.id),
        interface: INTERFACE.into(),
        result: None,
        failures: 0,
        problem: String::new(),
        abandoned: false,
    };
    let attachment = Attachment::new(intent, None);
    let _busy = attachment.busy.lock().await;
    // Nobody closes the semaphore.
    let _turn = cni.turns.acquire().await;
    let _shared = cni.gc.read().await;
    let (app, attachment) = (app.clone(), attachment.clone());
    let cni = blocking::run("attach the network", move || add(&app, &attachment, route)).await?;
    sandbox.change(|record| record.cni = Some(cni));
    Ok(())
}

fn add(app: &App, attachment: &Arc<Attachment>, route: OwnedFd) -> Result<sandbox::Cni> {
    let cni = &app.network.cni;
    let intent = attachment.intent();
    crate::network::set_up_loopback(route.as_fd())?;
    // A plugin that is not there would keep the others from giving back what they have given.
    let missing = cni.plugins.find_all(&intent.network);
    missing.map_err(|error| Error::Failed {
        doing: format!("attach to CNI {}", intent.network.shown()),
        source: error.into(),
    })?;
    // From here on there is something to give back.
    cni.log.write(&intent)?;
    lock(&cni.attachments).insert(intent.sandbox.clone(), attachment.clone());
    let file = cni.log.run_file(&intent.sandbox);
    let target = target(&intent, Some(&intent.netns), &file);
    let added = cni.plugins.add(&intent.network, &target)?;
    let addresses = result::addresses(&added, &intent.interface).unwrap_or_default();
    let written = {
        let mut intent = lock(&attachment.intent);
        intent.result = Some(added.clone());
        cni.log.write(&intent)
    };
    written?;
    if addresses.is_empty() {
        return Err(Error::Failed {
            doing: format!("attach to CNI {}", intent.network.shown()),
            source: format!("no plugin gave {} an address", intent.interface).into(),
        });
    }
    let addresses = in_order(addresses, cni.preference);
    Ok(sandbox::Cni { network: intent.network.name, addresses, result: added })
}

fn target<'a>(
    intent: &'a Intent,
    netns: Option<&'a Path>,
    file: &'a crate::network::cni::exec::RunFile,
) -> Target<'a> {
    Target {
        container: intent.sandbox.as_str(),
        netns,
        interface: &intent.interface,
        args: &intent.args,
        capabilities: &intent.capabilities,
        file,
    }
}

fn in_order(mut addresses: Vec<IpAddr>, preference: IpPreference) -> Vec<IpAddr> {
    match preference {
        IpPreference::Ipv4 => addresses.sort_by_key(IpAddr::is_ipv6),
        IpPreference::Ipv6 => addresses.sort_by_key(IpAddr::is_ipv4),
        IpPreference::Cni => {}
    }
    addresses
}

/// Gives back what a sandbox has, if it has anything. Its processes are gone.
///
/// # Errors
/// See the head of this file.
pub async fn detach(app: &Arc<App>, sandbox: &SandboxId) -> Result<()> {
    let Some(attachment) = app.network.cni.find(sandbox) else { return Ok(()) };
    let Err(error) = try_detach(app, &attachment).await else { return Ok(()) };
    let intent = attachment.intent();
    if intent.result.is_some() && !intent.abandoned && intent.failures < PATIENCE {
        return Err(error);
    }
    tracing::warn!(sandbox = %sandbox, "{}; it is tried again in the background", told(&intent));
    Ok(())
}

/// One DEL, if it is still needed.
pub(super) async fn try_detach(app: &Arc<App>, attachment: &Arc<Attachment>) -> Result<()> {
    let cni = &app.network.cni;
    let _busy = attachment.busy.lock().await;
    let id = lock(&attachment.intent).sandbox.clone();
    if !cni.holds(&id) {
        return Ok(());
    }
    let _turn = cni.turns.acquire().await;
    let _shared = cni.gc.read().await;
    let (app, attachment) = (app.clone(), attachment.clone());
    blocking::run("detach the network", move || {
        let deleted = del(&app, &attachment.intent());
        let failed = deleted.as_ref().err().map(|error| chain(error));
        settle(&app, &attachment, failed);
        deleted
    })
    .await
}

fn del(app: &App, intent: &Intent) -> Result<()> {
    let cni = &app.network.cni;
    let file = cni.log.run_file(&intent.sandbox);
    file.clear()?;
    let netns = Some(intent.netns.as_path()).filter(|path| is_pinned(path));
    cni.plugins.del(&intent.network, &target(intent, netns, &file), intent.result.as_ref())?;
    teardown::unpin(&intent.netns)?;
    cni.log.erase(&intent.sandbox)
}

/// Forgets an attachment that is given back, or says when it is tried again.
fn settle(app: &App, attachment: &Attachment, failed: Option<String>) {
    let cni = &app.network.cni;
    let mut intent = lock(&attachment.intent);
    let Some(problem) = failed else {
        lock(&cni.attachments).remove(&intent.sandbox);
        return;
    };
    intent.failures = intent.failures.saturating_add(1);
    intent.problem = problem;
    // It counts tries only: an older number does no harm.
    if let Err(error) = cni.log.write(&intent) {
        tracing::debug!(sandbox = %intent.sandbox, "{}", chain(&error));
    }
    let doublings = intent.failures.saturating_sub(1).min(16);
    let pause = PAUSES.0.saturating_mul(1 << doublings).min(PAUSES.1);
    *lock(&attachment.leaving) = Some(Instant::now() + pause);
    cni.wake.notify_one();
}

/// Whether the plugins still find an attachment as they made it; one without a result was never made. Blocks.
///
/// # Errors
/// What they found.
pub(super) fn check(app: &App, intent: &Intent) -> Result<()> {
    let cni = &app.network.cni;
    let Some(added) = &intent.result else { return Ok(()) };
    let file = cni.log.run_file(&intent.sandbox);
    cni.plugins.check(&intent.network, &target(intent, Some(&intent.netns), &file), added)
}

/// Whether a namespace is pinned there: after a reboot there is none.
fn is_pinned(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == NSFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_family_comes_first_and_keeps_its_order() {
        let parse = |list: &[&str]| -> Vec<IpAddr> {
            list.iter().map(|text| text.parse().unwrap()).collect()
        };
        let told = parse(&["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"]);
        let check = |preference, expected: &[&str]| {
            assert_eq!(in_order(told.clone(), preference), parse(expected));
        };
        check(IpPreference::Ipv4, &["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]);
        check(IpPreference::Ipv6, &["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"]);
        check(IpPreference::Cni, &["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"]);
    }

    #[test]
    fn subnets_of_a_kubelet_are_understood() {
        assert_eq!(parse_ranges("10.1.0.0/24,fd00::/64").unwrap(), ["10.1.0.0/24", "fd00::/64"]);
        assert_eq!(parse_ranges("").unwrap(), [""; 0]);
        for bad in ["10.1.0.0", "x/24", "10.1.0.0/33", "fd00::/129"] {
            assert!(parse_ranges(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        assert!(!is_pinned(Path::new("/etc/hostname")) && !is_pinned(Path::new("/no/file")));
        assert!(is_pinned(Path::new("/proc/self/ns/net")));
    }
}
