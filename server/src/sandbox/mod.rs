//! Sandboxes: the record of each, its states, and one file per verb.
//!
//! ```text
//!            begin                    commit                stop, or the shim ends
//!   (nothing) ----> Creating -----------------> Ready ------------------> NotReady
//!                      |                          |                          |
//!                      +--- failure: teardown     +-------- remove ----------+---> (nothing)
//! ```
//!
//! `Creating` is not listed. A failure whose teardown fails too leaves `NotReady`, so
//! that a stop tries it again.

mod files;
pub mod list;
pub mod port_forward;
pub mod remove;
pub mod run;
pub mod spec;
pub mod stats;
pub mod status;
pub mod stop;
pub mod teardown;

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::events::{self, Story};
use crate::id::SandboxId;
use crate::meter::Kept;
use crate::network;
use crate::shim::Shim;
use crate::timeline::Step;
use spec::SandboxSpec;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In the making, not listed.
    Creating,
    /// It can take containers.
    Ready,
    /// Stopped, or broken.
    NotReady,
}

/// What is written down of a sandbox: every name of a resource follows from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: SandboxSpec,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Where it is.
    pub state: State,
    /// Its attachment to the built-in network.
    pub network: Option<network::Attachment>,
    /// What CNI plugins gave it; what they must be told to take it back is in their log.
    #[serde(default)]
    pub cni: Option<Cni>,
    /// Pid of the pod's init, 0 without one.
    pub init_pid: u32,
    /// Why it is not ready, where nobody stopped it.
    pub problem: String,
    /// What each step of its start took.
    pub timeline: Vec<Step>,
    /// What the kubelet has made of the pod's overhead since; told back in the verbose status.
    #[serde(default)]
    pub overhead: Option<serde_json::Value>,
    /// What the kubelet has made of the pod's resources since.
    #[serde(default)]
    pub resources: Option<serde_json::Value>,
}

/// What a sandbox has of a CNI network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cni {
    /// The network's name.
    pub network: String,
    /// Its addresses, in the order in which they are told; at least one.
    pub addresses: Vec<IpAddr>,
    /// What the last plugin answered.
    pub result: serde_json::Value,
}

impl Record {
    /// Its addresses in a network of its own, the first one first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let own = self.network.iter().map(|network| network.address.into());
        let cni = self.cni.iter().flat_map(|cni| &cni.addresses).copied();
        own.chain(cni).collect()
    }
}

/// A sandbox in memory.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The record as it is now; changes wake those who wait.
    record: watch::Sender<Record>,
    /// The connection to its shim, while there is one.
    shim: std::sync::Mutex<Option<Arc<Shim>>>,
    /// Held by run, stop and remove from the first step to the last: a second call waits
    /// for the first and then finds its work done.
    pub lifecycle: tokio::sync::Mutex<()>,
    /// Whether the record is off the disk, for good. Held while the record is written, so that the last state is what
    /// stays, and none comes back that was erased.
    pub erased: std::sync::Mutex<bool>,
    /// What those who listen know of it.
    pub story: Story,
    /// What its cgroup has used.
    pub meter: Kept,
}

impl Sandbox {
    /// Takes a record into memory.
    pub fn new(record: Record) -> Sandbox {
        Sandbox {
            id: record.id.clone(),
            meter: Kept::default(),
            story: Story::up_to(events::of_sandbox(&record)),
            record: watch::Sender::new(record),
            shim: std::sync::Mutex::default(),
            lifecycle: tokio::sync::Mutex::default(),
            erased: std::sync::Mutex::default(),
        }
    }

    /// The record as it is now. Hold it briefly, never across an await, and never while the store, or this record
    /// again, is asked for: whoever waits to change it keeps later readers out.
    pub fn record(&self) -> watch::Ref<'_, Record> {
        self.record.borrow()
    }

    /// Changes the record in memory.
    pub fn change(&self, change: impl FnOnce(&mut Record)) {
        self.record.send_modify(change);
    }

    /// Waits until it is no longer in the making: every path from there ends in a change, at a deadline of the step
    /// that hangs.
    pub async fn wait_until_settled(&self) {
        let mut watch = self.record.subscribe();
        // The sender lives as long as the sandbox.
        let _settled = watch.wait_for(|record| record.state != State::Creating).await.is_ok();
    }

    /// The connection to its shim.
    pub fn shim(&self) -> Option<Arc<Shim>> {
        self.shim.lock().expect("nobody panics with this lock").clone()
    }

    /// Sets the connection, and returns the one before.
    pub fn set_shim(&self, shim: Option<Arc<Shim>>) -> Option<Arc<Shim>> {
        std::mem::replace(&mut *self.shim.lock().expect("nobody panics with this lock"), shim)
    }
}
