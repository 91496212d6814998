//! What is wanted of a container: the valid form of the CRI's ContainerConfig, and of what `berth run` asks.

use std::collections::BTreeMap;

use runtime::cgroup::resources::Resources;
use serde::{Deserialize, Serialize};

/// A container as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// With `attempt` unique in its sandbox.
    pub name: String,
    /// Counts the containers of that name.
    pub attempt: u32,
    /// As it was asked for: an image id, a tag or a digest.
    pub image: String,
    /// As the user wrote it, for show.
    pub user_image: String,
    /// Replaces the image's entrypoint, and drops its command.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Empty: the image's.
    pub working_dir: String,
    /// In order; values are bytes.
    pub env: Vec<(String, Vec<u8>)>,
    /// As the client gave them, in its order.
    pub mounts: Vec<Mount>,
    /// Devices of the node.
    pub devices: Vec<Device>,
    /// Told back as they are.
    pub labels: BTreeMap<String, String>,
    /// Told back as they are.
    pub annotations: BTreeMap<String, String>,
    /// Below the sandbox's log directory; empty: no log.
    pub log_path: String,
    /// Keep its input open.
    pub stdin: bool,
    /// Close its input when the first attach ends.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Its limits.
    pub resources: Resources,
    /// Score for the OOM killer, -1000 to 1000.
    pub oom_score_adj: i32,
    /// What it may do.
    pub security: Security,
    /// Linux number of the signal that stops it; None: the image's, else SIGTERM.
    pub stop_signal: Option<u32>,
    /// What only `berth run` asks.
    pub local: Option<Local>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute.
    pub container_path: String,
    /// What is mounted.
    pub source: MountSource,
    /// Not writable.
    pub readonly: bool,
    /// Nor anything mounted below.
    pub recursive_read_only: bool,
    /// How later mounts pass.
    pub propagation: Propagation,
    /// Told back.
    pub selinux_relabel: bool,
    /// nosuid, nodev, noexec.
    pub options: Vec<String>,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountSource {
    /// A path of the node, as it was given.
    Host(String),
    /// An image: as named, resolved to its id, and a path in it.
    Image {
        /// As the client named it.
        image: String,
        /// In the image; empty: all of it.
        sub_path: String,
    },
    /// A directory of berth's own, copied up from the image: by name, or without one.
    Volume(Option<String>),
}

/// How mounts made later pass between node and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Not at all.
    Private,
    /// Into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A device of the node, or a directory of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute.
    pub host_path: String,
    /// Absolute.
    pub container_path: String,
    /// Of `rwm`.
    pub permissions: String,
}

/// What a container may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Everything.
    pub privileged: bool,
    /// Capability sets before they are cut to what may be granted; bit n is capability n.
    pub capabilities: Capabilities,
    /// Who it runs as.
    pub user: User,
    /// Groups besides.
    pub supplemental_groups: Vec<u32>,
    /// Groups that the image gives the user count too.
    pub merge_groups: bool,
    /// Its root cannot be written.
    pub readonly_rootfs: bool,
    /// No new privileges by execve.
    pub no_new_privs: bool,
    /// Hidden paths.
    pub masked_paths: Vec<String>,
    /// Read-only paths.
    pub readonly_paths: Vec<String>,
    /// Filter of system calls.
    pub seccomp: Profile,
    /// AppArmor profile.
    pub apparmor: Profile,
    /// SELinux label; empty: none.
    pub selinux: Option<SelinuxLabel>,
    /// Whose processes it sees.
    pub pid: PidTarget,
}

/// Capability sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Bounding, permitted, effective.
    pub granted: u64,
    /// Ambient, and inheritable with it.
    pub ambient: u64,
}

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum User {
    /// What the image says.
    Image,
    /// By number, with the group's where that is given.
    Uid(u32, Option<u32>),
    /// By name in the image's /etc/passwd.
    Name(String, Option<u32>),
    /// As an image's USER or docker's --user: user[:group].
    Text(String),
}

/// A security profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// None was named.
    Unset,
    /// The runtime's own.
    Default,
    /// None at all.
    Unconfined,
    /// A file (seccomp) or a loaded profile (AppArmor) of the node.
    Localhost(String),
}

/// Parts of an SELinux label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxLabel {
    /// Such as `system_u`.
    pub user: String,
    /// Such as `system_r`.
    pub role: String,
    /// Such as `container_t`.
    pub r#type: String,
    /// Such as `s0:c1,c2`.
    pub level: String,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidTarget {
    /// The pod's.
    Pod,
    /// Its own.
    Container,
    /// The node's.
    Node,
    /// Those of another container of the pod, by id.
    Target(String),
}

/// What only `berth run` asks of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// What to do when it ends.
    pub restart: Restart,
    /// Remove it when it has ended.
    pub remove: bool,
    /// Rows and columns of its terminal at the start.
    pub terminal_size: (u32, u32),
}

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    No,
    /// After a failure, so many times in a row; 0: without end.
    OnFailure(u32),
    /// Always.
    Always,
    /// Always, but not after a user has stopped it.
    UnlessStopped,
}

impl Mount {
    /// The path on the node, where it shows one.
    pub fn host_path(&self) -> Option<&str> {
        match &self.source {
            MountSource::Host(path) => Some(path),
            MountSource::Image { .. } | MountSource::Volume(_) => None,
        }
    }
}
