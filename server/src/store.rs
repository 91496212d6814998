//! Records: in memory for every answer, on disk for the next daemon.
//!
//! A record is written twice: to the state directory, which a reboot empties, and where it
//! matters after a reboot to the root directory. Writing is a rename, never a sync: a
//! daemon that is killed loses nothing by that, and what a power cut tears has a wrong
//! checksum and is dropped.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Digest as _;
use tokio::sync::watch;

use crate::container::{self, Container};
use crate::error::{Doing, Error, Result};
use crate::events::Pod;
use crate::id::{ContainerId, SandboxId};
use crate::sandbox::spec::PodName;
use crate::sandbox::{self, Sandbox};

/// Name of a sandbox's record in its directory; containers' are named by their ids.
const RECORD: &str = "record";
/// First word of a record's first line, with the version of its form.
const FORM: &str = "berth-record-1";

/// All sandboxes and containers.
#[derive(Debug)]
pub struct Store {
    state: PathBuf,
    root: PathBuf,
    boot: String,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    sandboxes: BTreeMap<SandboxId, Arc<Sandbox>>,
    containers: BTreeMap<ContainerId, Arc<Container>>,
    sandbox_names: HashMap<PodName, Slot<SandboxId>>,
    container_names: HashMap<ContainerName, Slot<ContainerId>>,
}

/// What makes a container's name unique: its sandbox, name and attempt.
pub type ContainerName = (SandboxId, String, u32);

/// Who has a name.
#[derive(Debug)]
enum Slot<I> {
    /// It is being made by a call that others may join.
    Making(watch::Receiver<Outcome<I>>, Arc<Mutex<Holder>>),
    /// It exists.
    Made(I),
}

/// How a call ended that others wait for; None before. They get the text of its error.
pub type Outcome<I> = Option<std::result::Result<I, String>>;

/// What a call that holds a name is doing, for the errors of those who want it too.
#[derive(Debug)]
pub struct Holder {
    step: &'static str,
    since: std::time::Instant,
}

/// A name is taken: what now?
#[derive(Debug)]
pub enum Begin<I> {
    /// It is yours: make the object, and finish.
    New(Ticket<I>),
    /// Somebody is making it: wait.
    Joined(watch::Receiver<Outcome<I>>, Arc<Mutex<Holder>>),
    /// It exists.
    Exists(I),
}

/// The right to make the object of a name.
#[derive(Debug)]
pub struct Ticket<I> {
    outcome: watch::Sender<Outcome<I>>,
    holder: Arc<Mutex<Holder>>,
}

impl<I> Ticket<I> {
    /// Says what is being done now.
    pub fn at(&self, step: &'static str) {
        *self.holder.lock().expect("nobody panics with this lock") =
            Holder { step, since: std::time::Instant::now() };
    }
}

impl Holder {
    /// For an error: what the holder does, and for how long it has.
    pub fn describe(holder: &Mutex<Holder>) -> String {
        let holder = holder.lock().expect("nobody panics with this lock");
        format!("another call is making it: {}, for {:.1?}", holder.step, holder.since.elapsed())
    }
}

fn slot<I: Clone>() -> (Ticket<I>, Slot<I>) {
    let holder = Arc::new(Mutex::new(Holder { step: "begin", since: std::time::Instant::now() }));
    let (outcome, receiver) = watch::channel(None);
    (Ticket { outcome, holder: holder.clone() }, Slot::Making(receiver, holder))
}

fn begin<N: std::hash::Hash + Eq, I: Clone>(names: &mut HashMap<N, Slot<I>>, name: N) -> Begin<I> {
    match names.get(&name) {
        Some(Slot::Made(id)) => Begin::Exists(id.clone()),
        Some(Slot::Making(outcome, holder)) => Begin::Joined(outcome.clone(), holder.clone()),
        None => {
            let (ticket, slot) = slot();
            names.insert(name, slot);
            Begin::New(ticket)
        }
    }
}

impl Store {
    /// Records below these directories, which exist.
    ///
    /// # Errors
    /// The boot id cannot be read, or the directories cannot be made.
    pub fn new(state: &Path, root: &Path) -> Result<Store> {
        let file = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(file).doing(|| format!("read {file}"))?;
        let store = Store {
            state: state.into(),
            root: root.into(),
            boot: boot.trim().into(),
            index: Mutex::default(),
        };
        for directory in [
            state.join("sandboxes"),
            root.join("sandboxes"),
            root.join("containers"),
            store.trash(),
            store.logs(),
            store.volumes(),
        ] {
            std::fs::create_dir_all(&directory)
                .doing(|| format!("make {}", directory.display()))?;
        }
        Ok(store)
    }

    /// Where the logs of `berth run` are.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Where named volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("nobody panics with this lock")
    }

    /// Where a sandbox keeps what a reboot ends: its record, its shim's socket, exits.
    pub fn sandbox_directory(&self, id: &SandboxId) -> PathBuf {
        self.state.join("sandboxes").join(id.as_str())
    }

    fn stub_directory(&self, id: &SandboxId) -> PathBuf {
        self.root.join("sandboxes").join(id.as_str())
    }

    /// Where a container keeps its writable layer and volumes.
    pub fn container_directory(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    /// Where trees wait for their removal.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Takes the name of a sandbox.
    pub fn begin_sandbox(&self, name: &PodName) -> Begin<SandboxId> {
        begin(&mut self.index().sandbox_names, name.clone())
    }

    /// The sandbox exists from now on.
    pub fn commit_sandbox(&self, ticket: &Ticket<SandboxId>, sandbox: &Arc<Sandbox>) {
        let name = sandbox.record().spec.name.clone();
        let mut index = self.index();
        index.sandbox_names.insert(name, Slot::Made(sandbox.id.clone()));
        index.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        drop(index);
        ticket.outcome.send_replace(Some(Ok(sandbox.id.clone())));
    }

    /// It could not be made, and not be unmade either: it keeps its name, so that it can be stopped and removed.
    pub fn commit_broken_sandbox(
        &self,
        ticket: &Ticket<SandboxId>,
        sandbox: &Arc<Sandbox>,
        error: String,
    ) {
        self.insert_sandbox(sandbox);
        ticket.outcome.send_replace(Some(Err(error)));
    }

    /// It could not be made; the name is free.
    pub fn fail_sandbox(&self, ticket: &Ticket<SandboxId>, name: &PodName, error: String) {
        self.index().sandbox_names.remove(name);
        ticket.outcome.send_replace(Some(Err(error)));
    }

    /// Takes the name of a container.
    pub fn begin_container(&self, name: &ContainerName) -> Begin<ContainerId> {
        begin(&mut self.index().container_names, name.clone())
    }

    /// The container exists from now on.
    pub fn commit_container(&self, ticket: &Ticket<ContainerId>, container: &Arc<Container>) {
        self.insert_container(container);
        ticket.outcome.send_replace(Some(Ok(container.id.clone())));
    }

    /// It could not be made; the name is free.
    pub fn fail_container(
        &self,
        ticket: &Ticket<ContainerId>,
        name: &ContainerName,
        error: String,
    ) {
        self.index().container_names.remove(name);
        ticket.outcome.send_replace(Some(Err(error)));
    }

    /// Takes in a sandbox that a daemon before this one has made.
    pub fn insert_sandbox(&self, sandbox: &Arc<Sandbox>) {
        let name = sandbox.record().spec.name.clone();
        let mut index = self.index();
        index.sandbox_names.insert(name, Slot::Made(sandbox.id.clone()));
        index.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
    }

    /// Takes in a container.
    pub fn insert_container(&self, container: &Arc<Container>) {
        let name = container_name(&container.record());
        let mut index = self.index();
        index.container_names.insert(name, Slot::Made(container.id.clone()));
        index.containers.insert(container.id.clone(), container.clone());
    }

    /// Forgets a sandbox.
    pub fn forget_sandbox(&self, sandbox: &Sandbox) {
        let name = sandbox.record().spec.name.clone();
        let mut index = self.index();
        index.sandboxes.remove(&sandbox.id);
        index.sandbox_names.remove(&name);
    }

    /// Forgets a container.
    pub fn forget_container(&self, container: &Container) {
        let name = container_name(&container.record());
        let mut index = self.index();
        index.containers.remove(&container.id);
        index.container_names.remove(&name);
    }

    /// The sandbox with this id, or with the only id that begins so.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where several ids begin so.
    pub fn sandbox(&self, name: &str) -> Result<Arc<Sandbox>> {
        find(&self.index().sandboxes, "sandbox", name)
    }

    /// The container with this id, or with the only id that begins so.
    ///
    /// # Errors
    /// As [`Store::sandbox`].
    pub fn container(&self, name: &str) -> Result<Arc<Container>> {
        find(&self.index().containers, "container", name)
    }

    /// All sandboxes, in the order of their ids.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.index().sandboxes.values().cloned().collect()
    }

    /// All containers, in the order of their ids.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.index().containers.values().cloned().collect()
    }

    /// The containers of one sandbox.
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let index = self.index();
        index
            .containers
            .values()
            .filter(|container| container.record().sandbox == *sandbox)
            .cloned()
            .collect()
    }

    /// The records of a sandbox and of its containers that clients know of, as they all were at one moment.
    pub fn pod_at_once(&self, sandbox: &Sandbox) -> Pod {
        let index = self.index();
        let containers: Vec<_> = index
            .containers
            .values()
            .filter(|container| container.record().sandbox == sandbox.id)
            .collect();
        // None of them changes while all are held; everybody takes several in this order.
        let pod = sandbox.record();
        let held: Vec<_> = containers.iter().map(|container| container.record()).collect();
        let known = held
            .iter()
            .filter(|record| record.delivered && record.state != container::State::Creating);
        Pod { sandbox: pod.clone(), containers: known.map(|record| (**record).clone()).collect() }
    }

    /// Writes down a sandbox, with what outlives a reboot. Blocks.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save_sandbox(&self, record: &sandbox::Record) -> Result<()> {
        let content = self.encode(record)?;
        write(&self.sandbox_directory(&record.id), RECORD, &content)?;
        if record.state == sandbox::State::Creating {
            return Ok(());
        }
        write_stub(&self.stub_directory(&record.id), RECORD, &content)
    }

    /// Writes down a container. Blocks.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save_container(&self, record: &container::Record) -> Result<()> {
        let content = self.encode(record)?;
        write(&self.sandbox_directory(&record.sandbox), record.id.as_str(), &content)?;
        // What a reboot finds half made or running has ended: its stub need not say so.
        if matches!(record.state, container::State::Creating | container::State::Running) {
            return Ok(());
        }
        write_stub(&self.stub_directory(&record.sandbox), record.id.as_str(), &content)
    }

    /// Removes what is written down of a container. Blocks.
    ///
    /// # Errors
    /// Those of removing, but for what is not there.
    pub fn erase_container(&self, sandbox: &SandboxId, id: &ContainerId) -> Result<()> {
        for directory in [self.sandbox_directory(sandbox), self.stub_directory(sandbox)] {
            let path = directory.join(id.as_str());
            gone_is_fine(std::fs::remove_file(&path))
                .doing(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes what is written down of a sandbox: the last step of its life. Blocks.
    ///
    /// # Errors
    /// Those of removing, but for what is not there.
    pub fn erase_sandbox(&self, id: &SandboxId) -> Result<()> {
        for directory in [self.sandbox_directory(id), self.stub_directory(id)] {
            gone_is_fine(std::fs::remove_dir_all(&directory))
                .doing(|| format!("remove {}", directory.display()))?;
        }
        Ok(())
    }

    fn encode(&self, record: &impl Serialize) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(record).map_err(|error| Error::Failed {
            doing: "write down a record".into(),
            source: Box::new(error),
        })?;
        let checksum = hex(&sha2::Sha256::digest(&json));
        let mut content = format!("{FORM} {} {checksum}\n", self.boot).into_bytes();
        content.extend(json);
        Ok(content)
    }

    /// Reads all records: those of the state directory, and stubs of sandboxes that it does
    /// not have. Returns them with whether they are of this boot; damaged ones by their paths.
    ///
    /// # Errors
    /// A directory cannot be listed.
    pub fn load(&self) -> Result<Loaded> {
        let mut loaded = Loaded::default();
        for directory in [self.state.join("sandboxes"), self.root.join("sandboxes")] {
            for path in entries(&directory)? {
                let Some(id) =
                    path.file_name().and_then(|name| SandboxId::from_name(&name.to_string_lossy()))
                else {
                    continue;
                };
                if loaded.sandboxes.iter().all(|found| found.sandbox.id != id) {
                    self.load_sandbox(&path, &mut loaded);
                }
            }
        }
        Ok(loaded)
    }

    fn load_sandbox(&self, directory: &Path, loaded: &mut Loaded) {
        let Some((sandbox, boot)) = self.decode::<sandbox::Record>(&directory.join(RECORD)) else {
            loaded.damaged.push(directory.into());
            return;
        };
        let mut containers = Vec::new();
        for path in entries(directory).unwrap_or_default() {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            if ContainerId::from_name(&name).is_none() {
                continue;
            }
            match self.decode::<container::Record>(&path) {
                Some((container, _)) => containers.push(container),
                None => loaded.damaged.push(path),
            }
        }
        loaded.sandboxes.push(LoadedSandbox { sandbox, containers, this_boot: boot == self.boot });
    }

    /// None for what is no whole record.
    fn decode<T: DeserializeOwned>(&self, path: &Path) -> Option<(T, String)> {
        let content = std::fs::read(path).ok()?;
        let end = content.iter().position(|byte| *byte == b'\n')?;
        let (header, json) = (std::str::from_utf8(&content[..end]).ok()?, &content[end + 1..]);
        let mut words = header.split(' ');
        let (form, boot, checksum) = (words.next()?, words.next()?, words.next()?);
        let whole = form == FORM && checksum == hex(&sha2::Sha256::digest(json));
        whole
            .then(|| serde_json::from_slice(json).ok().map(|record| (record, boot.to_owned())))
            .flatten()
    }
}

/// What was found on disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Sandboxes.
    pub sandboxes: Vec<LoadedSandbox>,
    /// Files and directories that hold no whole record.
    pub damaged: Vec<PathBuf>,
}

/// A sandbox with its containers.
#[derive(Debug)]
pub struct LoadedSandbox {
    /// Its record.
    pub sandbox: sandbox::Record,
    /// Theirs.
    pub containers: Vec<container::Record>,
    /// Written since the machine started: its processes may live.
    pub this_boot: bool,
}

fn container_name(record: &container::Record) -> ContainerName {
    (record.sandbox.clone(), record.spec.name.clone(), record.spec.attempt)
}

fn find<I: Ord + Borrow<str>, T>(
    all: &BTreeMap<I, Arc<T>>,
    kind: &str,
    name: &str,
) -> Result<Arc<T>> {
    let from = all.range::<str, _>((Bound::Included(name), Bound::Unbounded));
    let mut found = from.take_while(|(id, _)| !name.is_empty() && (*id).borrow().starts_with(name));
    match (found.next(), found.next()) {
        (None, _) => Err(Error::not_found(kind, name)),
        (Some((_, object)), None) => Ok(object.clone()),
        (Some(_), Some(_)) => Err(Error::invalid(
            format!("{kind}_id"),
            format!("{name:?} begins several ids; give more of it"),
        )),
    }
}

fn write(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}"));
    let doing = || format!("write {}", path.display());
    match std::fs::write(&temporary, content) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir(directory).doing(doing)?;
            std::fs::write(&temporary, content).doing(doing)?;
        }
        other => other.doing(doing)?,
    }
    std::fs::rename(&temporary, &path).doing(doing)
}

/// Writes what a reboot leaves. On a full disk nothing new is made, but everything
/// can be stopped and removed on it: an older stub is true enough for the boot after this one.
fn write_stub(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let written = write(directory, name, content);
    if let Err(error) = &written
        && directory.join(name).exists()
    {
        tracing::warn!(
            error = crate::error::chain(error),
            "a record for after a reboot is old now"
        );
        // What there is of the new one; it may be the very space that is missing.
        std::fs::remove_file(directory.join(format!(".{name}"))).ok();
        return Ok(());
    }
    written
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.doing(|| format!("list {}", directory.display()))?,
    };
    Ok(entries.filter_map(std::io::Result::ok).map(|entry| entry.path()).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// "Already gone" is what a removal wants.
pub fn gone_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
