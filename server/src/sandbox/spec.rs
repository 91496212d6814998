//! What is wanted of a sandbox: the valid form of the CRI's PodSandboxConfig, and of what `berth run` asks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::network::resolv::DnsConfig;
pub use crate::network::{PortMapping, Protocol};

/// The name of a sandbox; all four parts together are unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// Of the pod.
    pub name: String,
    /// Of the pod.
    pub namespace: String,
    /// Of the pod.
    pub uid: String,
    /// Counts the sandboxes that the pod has had.
    pub attempt: u32,
}

/// A sandbox as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its name.
    pub name: PodName,
    /// Empty: the node's.
    pub hostname: String,
    /// Where logs go; containers name files below it.
    pub log_directory: Option<PathBuf>,
    /// None: the node's resolv.conf.
    pub dns: Option<DnsConfig>,
    /// Ports of the node that lead into the pod.
    pub ports: Vec<PortMapping>,
    /// Told back as they are.
    pub labels: BTreeMap<String, String>,
    /// Told back as they are.
    pub annotations: BTreeMap<String, String>,
    /// Absolute path of the pod's cgroup; empty: berth makes one.
    pub cgroup_parent: String,
    /// Where its network is.
    pub network: NetworkMode,
    /// Whose processes its containers see.
    pub pid: PidMode,
    /// Shares the node's IPC.
    pub host_ipc: bool,
    /// Settings of its namespaces, with slashes.
    pub sysctls: BTreeMap<String, String>,
    /// Its containers may be privileged.
    pub privileged: bool,
    /// RuntimeClass handler; empty: the default.
    pub handler: String,
    /// Size of its /dev/shm, bytes.
    pub shm_size: u64,
    /// Made by `berth run`: not shown to CRI clients.
    pub local: bool,
    /// What the kubelet gave the pod, told back in the verbose status.
    pub overhead: Option<serde_json::Value>,
    /// See `overhead`.
    pub resources: Option<serde_json::Value>,
}

/// Where a sandbox has its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A namespace of its own, attached.
    Pod,
    /// The node's.
    Node,
    /// A namespace of its own with loopback only (`berth run --net none`).
    None,
}

/// Whose processes containers see by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidMode {
    /// All of the pod: its init is pid 1.
    Pod,
    /// Each container its own.
    Container,
    /// All of the node.
    Node,
}

impl SandboxSpec {
    /// Whether it has a network namespace of its own.
    pub fn has_network_namespace(&self) -> bool {
        self.network != NetworkMode::Node
    }
}
