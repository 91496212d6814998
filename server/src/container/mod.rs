//! Containers: the record of each, its states, and one file per verb.
//!
//! ```text
//!           begin              shim: created             start             end
//!  (nothing) ---> Creating ------------------> Created --------> Running --------> Exited
//!                    |                            |                 ^                 |
//!                    +-- failure: teardown        +-- end --> Exited+---- restart ----+
//! ```
//!
//! A container is listed once its creation has been answered to somebody.

pub mod attach;
pub mod create;
pub mod devices;
pub mod exec;
pub mod list;
pub mod log;
pub mod oci;
pub mod plan;
pub mod remove;
pub mod restart;
pub mod spec;
pub mod start;
pub mod stats;
pub mod status;
pub mod stop;
pub mod stream;
pub mod update;

use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::cgroup::resources::Resources;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::events::{self, Story};
use crate::filters::Filter;
use crate::id::{ContainerId, SandboxId};
use crate::meter::Kept;
use crate::timeline::Step;
use spec::ContainerSpec;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In the making, not listed.
    Creating,
    /// Its init waits for the start.
    Created,
    /// Its program runs.
    Running,
    /// It has ended.
    Exited,
}

/// What is written down of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: ContainerId,
    /// Where it lives.
    pub sandbox: SandboxId,
    /// What was asked for.
    pub spec: ContainerSpec,
    /// The image as it was found then: it may be removed later.
    pub image: Image,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// 0 before the start.
    pub started_at: i64,
    /// 0 before the end.
    pub finished_at: i64,
    /// Where it is.
    pub state: State,
    /// Pid of its init on the node, 0 without one.
    pub pid: u32,
    /// Its exit code, once it has ended.
    pub exit_code: i32,
    /// Why it ended, in the CRI's words.
    pub reason: String,
    /// More of that.
    pub message: String,
    /// Who it runs as, as resolved.
    pub user: ResolvedUser,
    /// Limits in force.
    pub resources: Resources,
    /// Its creation has been answered to somebody.
    pub delivered: bool,
    /// How often `berth run --restart` started it again.
    pub restarts: u32,
    /// A user stopped it: `unless-stopped` holds.
    pub stopped: bool,
    /// Its processes are frozen by `berth pause`.
    pub paused: bool,
    /// What could be granted only in part.
    pub cuts: Vec<String>,
    /// What each step of its creation took.
    pub timeline: Vec<Step>,
    /// Images that are mounted into it.
    #[serde(default)]
    pub mounted_images: Vec<MountedImage>,
    /// What the shim was told: execs, restarts and the verbose status come from it.
    #[serde(with = "plan_text")]
    pub plan: Arc<proto::shim::ContainerSpec>,
}

/// The plan in a record: the message as base64.
mod plan_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use prost::Message as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Arc;

    pub(super) fn serialize<S: Serializer>(
        plan: &Arc<proto::shim::ContainerSpec>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(plan.encode_to_vec()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<proto::shim::ContainerSpec>, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        proto::shim::ContainerSpec::decode(bytes.as_slice()).map(Arc::new).map_err(D::Error::custom)
    }
}

/// What a container remembers of its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the image config.
    pub id: String,
    /// A repo digest where there is one, else the id: never empty.
    pub reference: String,
    /// A tag where there is one, else what was asked for.
    pub name: String,
    /// Its layers below the root directory, top first, such as `images/layers/17`.
    pub layers: Vec<String>,
    /// Linux number of its stop signal.
    pub stop_signal: Option<u32>,
}

/// What a container remembers of an image that is mounted into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedImage {
    /// Digest of the image config.
    pub id: String,
    /// As [`Image::layers`].
    pub layers: Vec<String>,
}

/// A user as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

/// A container in memory.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    record: watch::Sender<Record>,
    /// Held by create, start, remove and a restart, as in `Sandbox`.
    pub lifecycle: tokio::sync::Mutex<()>,
    /// What the stops under way have agreed on.
    stop: std::sync::Mutex<Stop>,
    /// How many read its output and need it until they have all.
    attending: watch::Sender<usize>,
    /// Keep the layers of its images in the store.
    leases: std::sync::Mutex<Vec<(images::Lease, Option<images::Pin>)>>,
    /// The seccomp program it was made with, for its execs; none before, and in a new daemon.
    filter: std::sync::OnceLock<Option<Arc<Filter>>>,
    /// Whether the record is off the disk, for good. Held while the record is written, so that the last state is what
    /// stays, and none comes back that was erased.
    pub erased: std::sync::Mutex<bool>,
    /// What those who listen know of it.
    pub story: Story,
    /// What its cgroup has used.
    pub meter: Kept,
}

/// Somebody who reads a container's output. Ends with its drop.
#[derive(Debug)]
pub struct Attending(Arc<Container>);

impl Drop for Attending {
    fn drop(&mut self) {
        self.0.attending.send_modify(|count| *count -= 1);
    }
}

/// The stops of a container, together: one signal, and the earliest of their deadlines.
#[derive(Debug, Default)]
pub struct Stop {
    /// The stop signal has been sent.
    pub signalled: bool,
    /// When it is killed.
    pub deadline: Option<Instant>,
}

impl Container {
    /// Takes a record into memory.
    pub fn new(record: Record) -> Container {
        Container {
            id: record.id.clone(),
            meter: Kept::default(),
            story: Story::up_to(events::of_container(&record)),
            record: watch::Sender::new(record),
            lifecycle: tokio::sync::Mutex::default(),
            stop: std::sync::Mutex::default(),
            attending: watch::Sender::new(0),
            leases: std::sync::Mutex::default(),
            filter: std::sync::OnceLock::new(),
            erased: std::sync::Mutex::default(),
        }
    }

    /// The seccomp program it was made with, if this daemon knows it.
    pub fn filter(&self) -> Option<&Option<Arc<Filter>>> {
        self.filter.get()
    }

    /// Remembers the seccomp program: the first one counts.
    pub fn remember_filter(&self, filter: Option<Arc<Filter>>) {
        self.filter.get_or_init(|| filter);
    }

    /// Keeps layers for as long as there is the container, and their image from being collected by a
    /// kubelet that does not know of the container.
    pub fn hold(&self, lease: images::Lease, pin: Option<images::Pin>) {
        self.leases.lock().expect("nobody panics with this lock").push((lease, pin));
    }

    /// The record as it is now. Hold it briefly, never across an await, and never while the store, or this record
    /// again, is asked for: whoever waits to change it keeps later readers out.
    pub fn record(&self) -> watch::Ref<'_, Record> {
        self.record.borrow()
    }

    /// Changes the record in memory, and wakes those who wait.
    pub fn change(&self, change: impl FnOnce(&mut Record)) {
        self.record.send_modify(change);
    }

    /// To wait for changes.
    pub fn watch(&self) -> watch::Receiver<Record> {
        self.record.subscribe()
    }

    /// Waits for so long until the record is as it should be. Whether it became so.
    pub async fn wait_until(&self, limit: Duration, wanted: impl FnMut(&Record) -> bool) -> bool {
        let mut watch = self.watch();
        let waited = tokio::time::timeout(limit, watch.wait_for(wanted)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// Somebody reads its output: with `--rm` it is not removed before they have all of it, or go.
    pub fn attend(self: &Arc<Container>) -> Attending {
        self.attending.send_modify(|count| *count += 1);
        Attending(self.clone())
    }

    /// Waits until nobody reads its output any more.
    pub async fn unattended(&self) {
        let mut attending = self.attending.subscribe();
        // The sender lives as long as we do.
        let _open = attending.wait_for(|count| *count == 0).await;
    }

    /// The stops under way.
    pub fn stop(&self) -> std::sync::MutexGuard<'_, Stop> {
        self.stop.lock().expect("nobody panics with this lock")
    }
}
