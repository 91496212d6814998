//! Pods and containers with the defaults that a kubelet sends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_cri::v1::*;

/// What a kubelet masks and makes read-only in a container that is not privileged.
pub const MASKED_PATHS: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
/// See [`MASKED_PATHS`].
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Names that no other pod of this process has.
fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A pod in the making: host network, namespaces of its own for the rest, a log directory.
#[derive(Clone, Debug)]
pub struct PodBuilder {
    /// The message that will be sent.
    pub config: PodSandboxConfig,
    /// The runtime handler, empty for the default.
    pub handler: String,
}

impl PodBuilder {
    /// A pod whose logs go below a directory that exists.
    pub fn new(logs: &Path) -> PodBuilder {
        let serial = serial();
        let name = format!("pod{serial}");
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                network: NamespaceMode::Node.into(),
                pid: NamespaceMode::Container.into(),
                ..Default::default()
            }),
            seccomp: Some(SecurityProfile::default()),
            ..Default::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: format!("00000000-0000-0000-0000-{serial:012}"),
                namespace: "e2e".into(),
                attempt: 0,
                name: name.clone(),
            }),
            log_directory: logs.join(&name).to_string_lossy().into_owned(),
            labels: [("app".to_owned(), name)].into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        };
        PodBuilder { config, handler: String::new() }
    }

    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.config.linux.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxSandboxSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    /// Gives it a name.
    pub fn name(mut self, name: &str) -> PodBuilder {
        self.config.metadata.get_or_insert_default().name = name.into();
        self
    }

    /// Gives it a network of its own and, as a kubelet does then, a hostname.
    pub fn network(mut self) -> PodBuilder {
        self.namespaces().network = NamespaceMode::Pod.into();
        self.config.hostname = self.config.metadata.get_or_insert_default().name.clone();
        self
    }

    /// Sets the mode of the PID namespace.
    pub fn pid(mut self, mode: NamespaceMode) -> PodBuilder {
        self.namespaces().pid = mode.into();
        self
    }

    /// Sets the mode of the IPC namespace.
    pub fn ipc(mut self, mode: NamespaceMode) -> PodBuilder {
        self.namespaces().ipc = mode.into();
        self
    }

    /// Allows privileged containers.
    pub fn privileged(mut self) -> PodBuilder {
        self.security().privileged = true;
        self
    }

    /// Sets a sysctl.
    pub fn sysctl(mut self, key: &str, value: &str) -> PodBuilder {
        self.linux().sysctls.insert(key.into(), value.into());
        self
    }

    /// Sets the parent of its cgroups.
    pub fn cgroup_parent(mut self, parent: &str) -> PodBuilder {
        self.linux().cgroup_parent = parent.into();
        self
    }

    /// Publishes a port: TCP unless said otherwise.
    pub fn port(mut self, protocol: Protocol, host_port: i32, container_port: i32) -> PodBuilder {
        self.config.port_mappings.push(PortMapping {
            protocol: protocol.into(),
            container_port,
            host_port,
            host_ip: String::new(),
        });
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> PodBuilder {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    /// Changes the message in any other way.
    pub fn with(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> PodBuilder {
        change(&mut self.config);
        self
    }
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// What it was made from; CreateContainer wants it again.
    pub config: PodSandboxConfig,
}

impl Pod {
    /// The log file of a container of this pod.
    pub fn log(&self, container: &ContainerConfig) -> PathBuf {
        Path::new(&self.config.log_directory).join(&container.log_path)
    }
}

/// A container in the making.
#[derive(Clone, Debug)]
pub struct ContainerBuilder {
    /// The message that will be sent.
    pub config: ContainerConfig,
}

impl ContainerBuilder {
    /// A container of an image, which runs what the image says.
    pub fn new(image: &str) -> ContainerBuilder {
        let name = format!("c{}", serial());
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let security = LinuxContainerSecurityContext {
            namespace_options: Some(NamespaceOption {
                network: NamespaceMode::Node.into(),
                pid: NamespaceMode::Container.into(),
                ..Default::default()
            }),
            masked_paths: owned(&MASKED_PATHS),
            readonly_paths: owned(&READONLY_PATHS),
            ..Default::default()
        };
        let resources =
            LinuxContainerResources { cpu_shares: 2, oom_score_adj: 1000, ..Default::default() };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(crate::cri::image_spec(image)),
            log_path: format!("{name}_0.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(security),
            }),
            ..Default::default()
        };
        ContainerBuilder { config }
    }

    fn linux(&mut self) -> &mut LinuxContainerConfig {
        self.config.linux.get_or_insert_default()
    }

    /// The security context, to change it.
    pub fn security(
        mut self,
        change: impl FnOnce(&mut LinuxContainerSecurityContext),
    ) -> ContainerBuilder {
        change(self.linux().security_context.get_or_insert_default());
        self
    }

    /// The resources, to change them.
    pub fn resources(
        mut self,
        change: impl FnOnce(&mut LinuxContainerResources),
    ) -> ContainerBuilder {
        change(self.linux().resources.get_or_insert_default());
        self
    }

    /// Changes the message in any other way.
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> ContainerBuilder {
        change(&mut self.config);
        self
    }

    /// Gives it a name; its log file is named after it.
    pub fn name(mut self, name: &str) -> ContainerBuilder {
        self.config.metadata.get_or_insert_default().name = name.into();
        self.config.log_path = format!("{name}_0.log");
        self
    }

    /// Replaces the image's entrypoint.
    pub fn command(mut self, command: &[&str]) -> ContainerBuilder {
        self.config.command = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Runs a line of shell.
    pub fn shell(self, line: &str) -> ContainerBuilder {
        self.command(&["/bin/sh", "-c", line])
    }

    /// Runs until it is stopped, and ends at once on SIGTERM.
    pub fn idle(self) -> ContainerBuilder {
        self.command(&["/bin/probe", "idle"])
    }

    /// Replaces the image's command, or adds to a command.
    pub fn args(mut self, args: &[&str]) -> ContainerBuilder {
        self.config.args = args.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Sets a variable.
    pub fn env(mut self, key: &str, value: &str) -> ContainerBuilder {
        self.config.envs.push(KeyValue { key: key.into(), value: value.into() });
        self
    }

    /// Mounts a host path.
    pub fn mount(mut self, host: &Path, container: &str, readonly: bool) -> ContainerBuilder {
        self.config.mounts.push(Mount {
            host_path: host.to_string_lossy().into_owned(),
            container_path: container.into(),
            readonly,
            ..Default::default()
        });
        self
    }

    /// Runs as a user and, where one is given, a group.
    pub fn user(self, uid: i64, gid: Option<i64>) -> ContainerBuilder {
        self.security(|security| {
            security.run_as_user = Some(Int64Value { value: uid });
            security.run_as_group = gid.map(|value| Int64Value { value });
        })
    }

    /// Takes the network of the pod, of whichever mode the pod is.
    pub fn network(self) -> ContainerBuilder {
        self.security(|security| {
            security.namespace_options.get_or_insert_default().network = NamespaceMode::Pod.into();
        })
    }

    /// Sets the mode of the PID namespace.
    pub fn pid(self, mode: NamespaceMode) -> ContainerBuilder {
        self.security(|security| {
            security.namespace_options.get_or_insert_default().pid = mode.into()
        })
    }

    /// Makes it privileged, as a kubelet does: no masks.
    pub fn privileged(self) -> ContainerBuilder {
        self.security(|security| {
            security.privileged = true;
            security.masked_paths.clear();
            security.readonly_paths.clear();
        })
    }

    /// Puts the runtime's default seccomp profile on.
    pub fn seccomp_default(self) -> ContainerBuilder {
        self.security(|security| security.seccomp = Some(SecurityProfile::default()))
    }

    /// Limits memory, in bytes, without swap.
    pub fn memory(self, bytes: i64) -> ContainerBuilder {
        self.resources(|resources| {
            resources.memory_limit_in_bytes = bytes;
            resources.memory_swap_limit_in_bytes = bytes;
        })
    }

    /// Gives it a terminal.
    pub fn tty(mut self) -> ContainerBuilder {
        self.config.tty = true;
        self
    }
}

/// One record of a log in the CRI's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line ends here (`F`) or goes on in the next record (`P`).
    pub full: bool,
    /// The text, without the newline.
    pub content: Vec<u8>,
}

/// Parses a log; a record that is torn or malformed is an error.
pub fn parse_log(bytes: &[u8]) -> anyhow::Result<Vec<LogRecord>> {
    let mut records = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let shown = || String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        let bad =
            |what: &str| anyhow::anyhow!("log record {} {what}: {:?}", records.len(), shown());
        let line = line.strip_suffix(b"\n").ok_or_else(|| bad("has no end"))?;
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut next = || parts.next().ok_or_else(|| bad("is too short"));
        let (time, stream, tag, content) = (next()?, next()?, next()?, next()?);
        let time = String::from_utf8(time.to_vec())?;
        let stream = String::from_utf8(stream.to_vec())?;
        if time.len() < 20 || !time.contains('T') {
            return Err(bad("has no time"));
        }
        if !["stdout", "stderr"].contains(&stream.as_str())
            || ![b"F".as_slice(), b"P"].contains(&tag)
        {
            return Err(bad("has a wrong stream or tag"));
        }
        records.push(LogRecord { time, stream, full: tag == b"F", content: content.to_vec() });
    }
    Ok(records)
}

/// The text of a stream of a log, lines put together again.
pub fn log_text(records: &[LogRecord], stream: &str) -> Vec<u8> {
    let mut text = Vec::new();
    for record in records.iter().filter(|record| record.stream == stream) {
        text.extend_from_slice(&record.content);
        if record.full {
            text.push(b'\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_put_together_from_its_records() {
        let log =
            b"2026-01-01T00:00:00.000000001Z stdout P one \n2026-01-01T00:00:00Z stderr F oops\n\
            2026-01-01T00:00:00Z stdout F two\n2026-01-01T00:00:00Z stdout F \n";
        let records = parse_log(log).unwrap();
        assert_eq!(log_text(&records, "stdout"), b"one two\n\n");
        assert_eq!(log_text(&records, "stderr"), b"oops\n");
    }

    #[test]
    fn a_torn_record_is_an_error() {
        for log in [
            &b"2026-01-01T00:00:00Z stdout F one"[..],
            b"2026-01-01T00:00:00Z stdout one\n",
            b"x stdout F y\n",
        ] {
            assert!(parse_log(log).is_err());
        }
    }
}
