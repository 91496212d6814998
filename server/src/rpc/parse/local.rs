//! What `berth run` asks for becomes a sandbox and a container, with docker's defaults.

use std::net::IpAddr;
use std::path::Path;

use proto::control as v1;
use runtime::cgroup::resources::Resources;

use super::container::capabilities;
use super::{absolute_path, clean_path, plain_path, shown};
use crate::container::plan::ImageDefaults;
use crate::container::spec::{
    ContainerSpec, Local, Mount, MountSource, PidTarget, Profile, Propagation, Restart, Security,
    User,
};
use crate::error::{Error, Result};
use crate::id::random_hex;
use crate::network::resolv;
use crate::sandbox::spec::{NetworkMode, PidMode, PodName, PortMapping, Protocol, SandboxSpec};
use crate::signal;

/// Namespace of the pods of `berth run`.
pub const NAMESPACE: &str = "berth";
/// Name of the log in the pod's log directory.
const LOG: &str = "log";
/// Period of the CPU quota, microseconds.
const CPU_PERIOD: u64 = 100_000;
/// Docker's bound: less is of no use to any program.
const LEAST_MEMORY: u64 = 6 << 20;

/// Paths of /proc and /sys that tell too much or do too much; docker's and containerd's lists.
const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];
const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What is to be made.
#[derive(Debug)]
pub struct Wanted {
    /// The pod.
    pub sandbox: SandboxSpec,
    /// Its container.
    pub container: ContainerSpec,
}

/// Judges all that does not need the image; its entrypoint is settled by [`settle_command`].
///
/// # Errors
/// `Invalid` names the flag.
pub fn spec(run: &v1::RunSpec, logs: &Path) -> Result<Wanted> {
    if run.image.is_empty() {
        return Err(Error::invalid("IMAGE", "must not be empty"));
    }
    let name = container_name(run)?;
    let uid = random_hex(16);
    let hostname = if run.hostname.is_empty() { random_hex(6) } else { run.hostname.clone() };
    resolv::check_hostname(&hostname)?;
    let network = match run.network() {
        v1::NetworkMode::Default => NetworkMode::Pod,
        v1::NetworkMode::Host => NetworkMode::Node,
        v1::NetworkMode::None => NetworkMode::None,
    };
    if network != NetworkMode::Pod && !run.ports.is_empty() {
        return Err(Error::invalid(
            "--publish",
            "needs a network of the container's own: leave --net out",
        ));
    }
    let sandbox = SandboxSpec {
        name: PodName {
            name: name.clone(),
            namespace: NAMESPACE.into(),
            uid: uid.clone(),
            attempt: 0,
        },
        hostname: if network == NetworkMode::Node { String::new() } else { hostname },
        log_directory: Some(logs.join(uid)),
        dns: None,
        ports: run.ports.iter().map(port).collect::<Result<_>>()?,
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: String::new(),
        network,
        pid: PidMode::Container,
        host_ipc: false,
        sysctls: Default::default(),
        privileged: run.privileged,
        handler: String::new(),
        shm_size: if run.shm_size == 0 { super::sandbox::SHM_SIZE } else { run.shm_size },
        local: true,
        overhead: None,
        resources: None,
    };
    Ok(Wanted { sandbox, container: container(run, name)? })
}

/// Docker's alphabet. Without a name: the image's own, and digits that tell it apart.
fn container_name(run: &v1::RunSpec) -> Result<String> {
    if !run.name.is_empty() {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let begins = run.name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && run.name.len() <= 128 && run.name.bytes().all(allowed) {
            return Ok(run.name.clone());
        }
        return Err(Error::invalid(
            "--name",
            format!(
                "{:?} must be 1 to 128 letters, digits, _ . -, and begin with a letter or digit",
                shown(&run.name)
            ),
        ));
    }
    let image = run.image.split('@').next().unwrap_or_default();
    let base = image.rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default();
    let base: String = base.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    Ok(format!("{}-{}", if base.is_empty() { "container" } else { &base }, random_hex(3)))
}

fn port(port: &v1::PortMapping) -> Result<PortMapping> {
    let invalid = |problem: String| Error::invalid("--publish", problem);
    let number = |value: u32| {
        u16::try_from(value).map_err(|_| invalid(format!("{value} must be 1 to 65535")))
    };
    let host_ip = match port.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| invalid(format!("{:?} is no IP address", shown(text))))?,
        ),
    };
    let container_port = number(port.container_port)?;
    if container_port == 0 {
        return Err(invalid("the container's port must be 1 to 65535".into()));
    }
    Ok(PortMapping {
        protocol: match port.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        container_port,
        host_port: number(port.host_port)?,
        host_ip,
    })
}

fn container(run: &v1::RunSpec, name: String) -> Result<ContainerSpec> {
    let stop_signal = match run.stop_signal.as_str() {
        "" => None,
        text => Some(signal::parse(text).ok_or_else(|| {
            Error::invalid("--stop-signal", format!("{:?} is no signal", shown(text)))
        })?),
    };
    let size = run.terminal_size.unwrap_or_default();
    let terminal_size = (size.rows, size.columns);
    Ok(ContainerSpec {
        name,
        attempt: 0,
        image: run.image.clone(),
        user_image: run.image.clone(),
        command: Vec::new(),
        args: without_nul(&run.args)?,
        working_dir: working_dir(&run.working_directory)?,
        env: run.env.iter().map(|variable| environment(variable)).collect::<Result<_>>()?,
        mounts: run.volumes.iter().map(volume).collect::<Result<_>>()?,
        devices: Vec::new(),
        labels: run.labels.clone(),
        annotations: Default::default(),
        log_path: LOG.into(),
        stdin: run.interactive,
        // As docker has it: what is started detached keeps its input for whoever attaches.
        stdin_once: run.interactive && !run.detach,
        tty: run.terminal,
        resources: resources(run)?,
        oom_score_adj: 0,
        security: security(run)?,
        stop_signal,
        local: Some(Local { restart: restart(run)?, remove: run.remove, terminal_size }),
    })
}

fn without_nul(args: &[String]) -> Result<Vec<String>> {
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("COMMAND", "must not contain NUL"));
    }
    Ok(args.to_vec())
}

fn working_dir(text: &str) -> Result<String> {
    if text.is_empty() { Ok(String::new()) } else { clean_path(text.to_owned(), "--workdir") }
}

fn environment(variable: &[u8]) -> Result<(String, Vec<u8>)> {
    let end = variable.iter().position(|byte| *byte == b'=').filter(|end| *end > 0);
    let invalid = || {
        Error::invalid(
            "--env",
            format!(
                "{:?} must be NAME=VALUE without NUL",
                shown(&String::from_utf8_lossy(variable))
            ),
        )
    };
    let end = end.filter(|_| !variable.contains(&0)).ok_or_else(invalid)?;
    let name = String::from_utf8(variable[..end].to_vec()).map_err(|_| invalid())?;
    Ok((name, variable[end + 1..].to_vec()))
}

fn volume(volume: &v1::Volume) -> Result<Mount> {
    let container_path = absolute_path(volume.target.clone(), "--volume")?;
    if container_path.trim_matches('/').is_empty() {
        return Err(Error::invalid("--volume", "must not be mounted at the root itself"));
    }
    let source = match volume.source.as_str() {
        "" => MountSource::Volume(None),
        path if path.starts_with('/') => {
            MountSource::Host(plain_path(path.to_owned(), "--volume")?)
        }
        name => MountSource::Volume(Some(volume_name(name)?)),
    };
    Ok(Mount {
        container_path,
        source,
        readonly: volume.readonly,
        recursive_read_only: false,
        propagation: Propagation::Private,
        selinux_relabel: false,
        options: Vec::new(),
    })
}

fn volume_name(name: &str) -> Result<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= 128 && name.bytes().all(allowed) {
        return Ok(name.to_owned());
    }
    Err(Error::invalid(
        "--volume",
        format!("{:?} is neither an absolute path nor the name of a volume", shown(name)),
    ))
}

fn resources(run: &v1::RunSpec) -> Result<Resources> {
    let limit = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if run.memory != 0 && run.memory < LEAST_MEMORY {
        return Err(Error::invalid(
            "--memory",
            format!("{} bytes must be at least 6m", run.memory),
        ));
    }
    let quota = run.nano_cpus.saturating_mul(CPU_PERIOD) / 1_000_000_000;
    if run.nano_cpus != 0 && quota < 1000 {
        return Err(Error::invalid("--cpus", "must be at least 0.01"));
    }
    Ok(Resources {
        memory_limit: (run.memory != 0).then(|| limit(run.memory)),
        cpu_quota: (quota != 0).then(|| limit(quota)),
        cpu_period: (quota != 0).then_some(CPU_PERIOD),
        pids_limit: (run.pids_limit != 0).then_some(run.pids_limit),
        ..Default::default()
    })
}

fn security(run: &v1::RunSpec) -> Result<Security> {
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    let seccomp = match run.seccomp.as_str() {
        "" | "default" => Profile::Default,
        "unconfined" => Profile::Unconfined,
        path if path.starts_with('/') => Profile::Localhost(path.to_owned()),
        other => {
            let problem = format!(
                "{:?} must be default, unconfined or the absolute path of a profile",
                shown(other)
            );
            return Err(Error::invalid("--security-opt seccomp", problem));
        }
    };
    Ok(Security {
        privileged: run.privileged,
        capabilities: capabilities(
            &run.add_capabilities,
            &run.drop_capabilities,
            &[],
            "--cap-add and --cap-drop",
        )?,
        user: if run.user.is_empty() { User::Image } else { User::Text(run.user.clone()) },
        supplemental_groups: Vec::new(),
        merge_groups: true,
        readonly_rootfs: run.readonly_rootfs,
        no_new_privs: false,
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp,
        apparmor: Profile::Unset,
        selinux: None,
        pid: PidTarget::Container,
    })
}

fn restart(run: &v1::RunSpec) -> Result<Restart> {
    let policy = run.restart.unwrap_or_default();
    let restart = match policy.condition() {
        v1::RestartCondition::No => Restart::No,
        v1::RestartCondition::OnFailure => Restart::OnFailure(policy.maximum_retries),
        v1::RestartCondition::Always => Restart::Always,
        v1::RestartCondition::UnlessStopped => Restart::UnlessStopped,
    };
    if run.remove && restart != Restart::No {
        return Err(Error::invalid("--rm", "cannot be used together with --restart"));
    }
    Ok(restart)
}

/// Docker's --entrypoint: it replaces the image's and drops its command; an empty one only drops the entrypoint.
pub fn settle_command(
    container: &mut ContainerSpec,
    entrypoint: Option<&str>,
    image: &ImageDefaults,
) {
    match entrypoint {
        None => {}
        Some("") => {
            let args = std::mem::take(&mut container.args);
            container.command = if args.is_empty() { image.cmd.clone() } else { args };
        }
        Some(program) => container.command = vec![program.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> v1::RunSpec {
        v1::RunSpec { image: "docker.io/library/nginx:1".into(), ..Default::default() }
    }

    fn parsed(run: &v1::RunSpec) -> Result<Wanted> {
        spec(run, Path::new("/logs"))
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut v1::RunSpec), flag: &str) {
        let mut run = run();
        change(&mut run);
        let error = parsed(&run).unwrap_err().to_string();
        assert!(error.contains(flag), "{error}");
    }

    #[test]
    fn a_pod_of_ones_own_with_dockers_defaults() {
        let wanted = parsed(&run()).unwrap();
        assert!(wanted.sandbox.local);
        assert!(wanted.container.name.starts_with("nginx-"));
        assert_eq!(wanted.container.name, wanted.sandbox.name.name);
        assert_eq!(wanted.container.security.seccomp, Profile::Default);
        assert_eq!(wanted.container.security.capabilities.granted, runtime::capabilities::DEFAULT);
        assert_eq!(wanted.sandbox.hostname.len(), 12);
    }

    #[test]
    fn bad_values_name_their_flags() {
        refused(|run| run.image.clear(), "IMAGE");
        refused(|run| run.name = "a/b".into(), "--name");
        refused(|run| run.env = vec![b"=x".to_vec()], "--env");
        refused(|run| run.env = vec![b"X".to_vec()], "--env");
        refused(|run| run.memory = 1, "--memory");
        refused(|run| run.nano_cpus = 1, "--cpus");
        refused(|run| run.working_directory = "x".into(), "--workdir");
        refused(|run| run.seccomp = "x".into(), "--security-opt");
        refused(|run| run.stop_signal = "NOPE".into(), "--stop-signal");
        refused(|run| run.add_capabilities = vec!["NOPE".into()], "--cap-add");
        let volume = |source: &str, target: &str| v1::Volume {
            source: source.into(),
            target: target.into(),
            readonly: false,
        };
        refused(|run| run.volumes = vec![volume("/x/../y", "/d")], "--volume");
        refused(|run| run.volumes = vec![volume("../y", "/d")], "--volume");
        refused(|run| run.volumes = vec![volume("y", "d")], "--volume");
        refused(|run| run.volumes = vec![volume("y", "/")], "--volume");
        refused(
            |run| run.ports = vec![v1::PortMapping { container_port: 0, ..Default::default() }],
            "--publish",
        );
        refused(
            |run| {
                run.ports = vec![v1::PortMapping { container_port: 70_000, ..Default::default() }]
            },
            "--publish",
        );
        refused(
            |run| {
                run.remove = true;
                run.restart = Some(v1::RestartPolicy {
                    condition: v1::RestartCondition::Always.into(),
                    maximum_retries: 0,
                });
            },
            "--rm",
        );
    }

    #[test]
    fn limits_become_the_cgroups() {
        let wanted =
            parsed(&v1::RunSpec { memory: 64 << 20, nano_cpus: 1_500_000_000, ..run() }).unwrap();
        let resources = wanted.container.resources;
        assert_eq!(resources.memory_limit, Some(64 << 20));
        assert_eq!((resources.cpu_quota, resources.cpu_period), (Some(150_000), Some(100_000)));
    }

    #[track_caller]
    fn check_command(entrypoint: Option<&str>, args: &[&str], expected: (&[&str], &[&str])) {
        let mut container =
            parsed(&v1::RunSpec { args: args.iter().map(|arg| (*arg).into()).collect(), ..run() })
                .unwrap()
                .container;
        let image = ImageDefaults {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["cmd".into()],
            ..Default::default()
        };
        settle_command(&mut container, entrypoint, &image);
        assert_eq!((container.command, container.args), (words(expected.0), words(expected.1)));
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn an_entrypoint_replaces_the_images() {
        check_command(None, &["x"], (&[], &["x"]));
        check_command(Some("sh"), &["-c", "x"], (&["sh"], &["-c", "x"]));
        check_command(Some("sh"), &[], (&["sh"], &[]));
        check_command(Some(""), &["x", "y"], (&["x", "y"], &[]));
        check_command(Some(""), &[], (&["cmd"], &[]));
    }
}
