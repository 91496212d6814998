//! From what was asked for to what the shim does: one pure function, compared by value in tests.

use std::path::Path;

use proto::shim::{self, mount::Source};

use super::spec::{
    ContainerSpec, Mount, MountSource, PidTarget, Profile, Propagation, Security, User,
};
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::sandbox::spec::{NetworkMode, PidMode, SandboxSpec};

/// What the plan needs to know besides the specs.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    /// Id of the container.
    pub id: &'a ContainerId,
    /// Its sandbox.
    pub sandbox: &'a SandboxSpec,
    /// What the image says.
    pub image: &'a ImageDefaults,
    /// Directory that the next three are relative to.
    pub base: &'a Path,
    /// Layers, top first.
    pub lowers: Vec<String>,
    /// Writable layer and its work directory.
    pub upper: String,
    /// See `upper`.
    pub work: String,
    /// Mounts of images and volumes, as they were found: one per mount of the spec.
    pub sources: Vec<Option<FoundSource>>,
    /// Volumes that the image declares and no mount covers: container path and directory.
    pub image_volumes: Vec<(String, String)>,
    /// Its cgroup.
    pub cgroup: shim::Cgroup,
    /// Device nodes to make.
    pub devices: Vec<shim::Device>,
    /// Runtime hostname, for the HOSTNAME variable.
    pub hostname: &'a str,
    /// Open files that a process may have, soft and hard.
    pub files: (u64, u64),
    /// berth rotates its log.
    pub rotation: Option<Rotation>,
}

/// When a log begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// At this many bytes.
    pub size: u64,
    /// Old files that are kept.
    pub files: u32,
}

/// What stands behind a mount that is not of a host path.
#[derive(Debug, Clone)]
pub enum FoundSource {
    /// Layers of an image, top first, relative to a directory.
    Image {
        /// The directory.
        base: String,
        /// The layers.
        lowers: Vec<String>,
    },
    /// The directory of a volume.
    Volume(String),
}

/// The parts of an image config that a container starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// NAME=value.
    pub env: Vec<String>,
    /// What runs.
    pub entrypoint: Vec<String>,
    /// Its arguments.
    pub cmd: Vec<String>,
    /// Where it runs.
    pub working_dir: String,
    /// user[:group].
    pub user: String,
    /// Paths that hold data.
    pub volumes: Vec<String>,
}

/// PATH of a container whose image sets none, as docker has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// RLIMIT_NOFILE (asm-generic/resource.h).
const NOFILE: u32 = 7;
/// Size of the tmpfs at /dev.
const DEV_SIZE: u64 = 64 << 20;

/// What to tell the shim. The seccomp program goes beside it, where `seccomp` says so.
///
/// # Errors
/// `Invalid` for no command, and for a user that is no user.
pub fn plan(
    spec: &ContainerSpec,
    around: &Surroundings<'_>,
    seccomp: bool,
) -> Result<shim::ContainerSpec> {
    let security = &spec.security;
    Ok(shim::ContainerSpec {
        id: around.id.to_string(),
        rootfs: Some(shim::Rootfs {
            base: around.base.to_string_lossy().into_owned(),
            lowers: around.lowers.clone(),
            upper: around.upper.clone(),
            work: around.work.clone(),
            readonly: security.readonly_rootfs,
        }),
        process: Some(process(spec, around, seccomp)?),
        namespaces: Some(namespaces(spec, around)),
        mounts: mounts(spec, around)?,
        devices: around.devices.clone(),
        masked_paths: unless(security.privileged, &security.masked_paths),
        readonly_paths: unless(security.privileged, &security.readonly_paths),
        cgroup: Some(around.cgroup.clone()),
        stdio: Some(stdio(spec, around.rotation)),
        exit_record: format!("exit-{}", around.id),
    })
}

fn unless(privileged: bool, paths: &[String]) -> Vec<String> {
    if privileged { Vec::new() } else { paths.to_vec() }
}

fn stdio(spec: &ContainerSpec, rotation: Option<Rotation>) -> shim::Stdio {
    let stdin = match (spec.stdin, spec.stdin_once) {
        (false, _) => shim::Stdin::Null,
        (true, false) => shim::Stdin::Open,
        (true, true) => shim::Stdin::Once,
    };
    let (rows, columns) = spec.local.as_ref().map_or((0, 0), |local| local.terminal_size);
    shim::Stdio {
        terminal: spec.tty,
        stdin: stdin.into(),
        no_log: spec.log_path.is_empty(),
        rotate_size: rotation.map_or(0, |rotation| rotation.size),
        rotate_files: rotation.map_or(0, |rotation| rotation.files),
        log_name: spec.log_path.clone(),
        rows,
        columns,
    }
}

fn namespaces(spec: &ContainerSpec, around: &Surroundings<'_>) -> shim::Namespaces {
    use shim::NamespaceMode as Mode;
    let mut target_container_id = String::new();
    let pid = match &spec.security.pid {
        // A pod whose containers each have their own has no init to share.
        PidTarget::Pod if around.sandbox.pid == PidMode::Container => Mode::Container,
        PidTarget::Pod if around.sandbox.pid == PidMode::Node => Mode::Node,
        PidTarget::Pod => Mode::Pod,
        PidTarget::Container => Mode::Container,
        PidTarget::Node => Mode::Node,
        PidTarget::Target(id) => {
            target_container_id.clone_from(id);
            Mode::Target
        }
    };
    // On v1 most images that look at cgroups expect the node's view.
    let cgroup = if around.cgroup.unified && !spec.security.privileged {
        Mode::Container
    } else {
        Mode::Node
    };
    let uts = if around.sandbox.network == NetworkMode::Node { Mode::Node } else { Mode::Pod };
    shim::Namespaces {
        network: if around.sandbox.has_network_namespace() { Mode::Pod } else { Mode::Node }.into(),
        pid: pid.into(),
        ipc: if around.sandbox.host_ipc { Mode::Node } else { Mode::Pod }.into(),
        uts: uts.into(),
        cgroup: cgroup.into(),
        target_container_id,
    }
}

fn process(
    spec: &ContainerSpec,
    around: &Surroundings<'_>,
    seccomp: bool,
) -> Result<shim::Process> {
    let security = &spec.security;
    Ok(shim::Process {
        args: arguments(spec, around.image)?,
        env: environment(spec, around),
        cwd: working_directory(spec, around.image),
        user: Some(user(security, &around.image.user)?),
        capabilities: Some(capabilities(security)),
        rlimits: vec![shim::Rlimit {
            resource: NOFILE,
            soft: around.files.0,
            hard: around.files.1,
        }],
        no_new_privs: security.no_new_privs,
        oom_score_adj: Some(spec.oom_score_adj),
        seccomp,
        seccomp_flags: 0,
        apparmor_profile: apparmor(security),
        selinux_label: selinux(security),
        make_cwd: true,
    })
}

/// Docker's rules: a command replaces entrypoint and cmd of the image, arguments replace its cmd only.
pub fn arguments(spec: &ContainerSpec, image: &ImageDefaults) -> Result<Vec<Vec<u8>>> {
    let (command, args) = (&spec.command, &spec.args);
    let all: Vec<Vec<u8>> = match (command.is_empty(), args.is_empty()) {
        (false, _) => command.iter().chain(args),
        (true, false) => image.entrypoint.iter().chain(args),
        (true, true) => image.entrypoint.iter().chain(&image.cmd),
    }
    .map(|argument| argument.clone().into_bytes())
    .collect();
    if all.first().is_none_or(Vec::is_empty) {
        return Err(Error::invalid(
            "config.command",
            "is empty, and the image names no command either",
        ));
    }
    Ok(all)
}

/// Later values of a name win and stay at its first place.
fn environment(spec: &ContainerSpec, around: &Surroundings<'_>) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![format!("PATH={DEFAULT_PATH}").into_bytes()];
    if !around.hostname.is_empty() {
        all.push(format!("HOSTNAME={}", around.hostname).into_bytes());
    }
    if spec.tty {
        all.push(b"TERM=xterm".to_vec());
    }
    let image = around.image.env.iter().map(|variable| variable.clone().into_bytes());
    let own = spec.env.iter().map(|(name, value)| [name.as_bytes(), b"=", value].concat());
    for variable in image.chain(own) {
        set_variable(&mut all, variable);
    }
    all
}

/// Sets a NAME=value in a list of them.
pub fn set_variable(all: &mut Vec<Vec<u8>>, variable: Vec<u8>) {
    fn name(variable: &[u8]) -> &[u8] {
        let end = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
        &variable[..end]
    }
    match all.iter_mut().find(|other| name(other) == name(&variable)) {
        Some(other) => *other = variable,
        None => all.push(variable),
    }
}

fn working_directory(spec: &ContainerSpec, image: &ImageDefaults) -> String {
    let directory =
        [&spec.working_dir, &image.working_dir].into_iter().find(|directory| !directory.is_empty());
    match directory {
        Some(directory) if directory.starts_with('/') => directory.clone(),
        Some(directory) => format!("/{directory}"),
        None => "/".into(),
    }
}

fn user(security: &Security, image: &str) -> Result<shim::User> {
    use shim::user::{Group, User as Name};
    let mut user = match &security.user {
        User::Image => parse_user(image, "the image's USER")?,
        User::Text(text) => parse_user(text, "user")?,
        User::Uid(uid, gid) => shim::User {
            user: Some(Name::Uid(*uid)),
            group: gid.map(Group::Gid),
            ..Default::default()
        },
        User::Name(name, gid) => {
            shim::User { group: gid.map(Group::Gid), ..parse_user(name, "run_as_username")? }
        }
    };
    user.additional_gids.clone_from(&security.supplemental_groups);
    user.merge_groups = security.merge_groups;
    Ok(user)
}

/// `user[:group]`, each a name or a number. What looks like a number is one, or is refused:
/// it is never looked up as a name (CVE-2016-3697, CVE-2024-40635).
pub fn parse_user(text: &str, field: &str) -> Result<shim::User> {
    use shim::user::{Group, User as Name};
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() && group.is_some() {
        return Err(Error::invalid(field, format!("{text:?} names a group without a user")));
    }
    let user = match user {
        "" => Name::Uid(0),
        user => match number_or_name(user, field)? {
            Ok(uid) => Name::Uid(uid),
            Err(name) => Name::Username(name),
        },
    };
    let group = match group.filter(|group| !group.is_empty()) {
        Some(group) => Some(match number_or_name(group, field)? {
            Ok(gid) => Group::Gid(gid),
            Err(name) => Group::Groupname(name),
        }),
        None => None,
    };
    Ok(shim::User { user: Some(user), group, ..Default::default() })
}

fn number_or_name(text: &str, field: &str) -> Result<std::result::Result<u32, String>> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.parse::<u32>().ok().filter(|number| *number != u32::MAX);
        return number.map(Ok).ok_or_else(|| {
            Error::invalid(field, format!("{text:?} is larger than the largest id, 4294967294"))
        });
    }
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let rest = text.bytes().all(|byte| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'@' | b'$' | b'\\')
    });
    if !first || !rest {
        return Err(Error::invalid(field, format!("{text:?} is neither a number nor a name")));
    }
    Ok(Err(text.to_owned()))
}

fn capabilities(security: &Security) -> shim::Capabilities {
    let granted = if security.privileged {
        runtime::capabilities::ALL
    } else {
        security.capabilities.granted
    };
    let ambient = security.capabilities.ambient;
    shim::Capabilities {
        bounding: granted | ambient,
        effective: granted | ambient,
        permitted: granted | ambient,
        inheritable: ambient,
        ambient,
    }
}

fn apparmor(security: &Security) -> String {
    match &security.apparmor {
        _ if security.privileged => String::new(),
        Profile::Localhost(name) => name.clone(),
        Profile::Unset | Profile::Default | Profile::Unconfined => String::new(),
    }
}

fn selinux(security: &Security) -> String {
    match &security.selinux {
        Some(label) if !security.privileged && !label.r#type.is_empty() => {
            format!("{}:{}:{}:{}", label.user, label.role, label.r#type, label.level)
        }
        _ => String::new(),
    }
}

/// What is mounted, in order: our own, but for those that the spec brings itself, then the
/// spec's with parents first.
fn mounts(spec: &ContainerSpec, around: &Surroundings<'_>) -> Result<Vec<shim::Mount>> {
    let given = |target: &str| {
        spec.mounts.iter().any(|mount| Path::new(&mount.container_path) == Path::new(target))
    };
    let dev_given = given("/dev");
    let replaced = |target: &str| {
        // /proc is not replaced but covered, and only by another procfs: what must be believed stays.
        target != "/proc" && given(target) || dev_given && target.starts_with("/dev/")
    };
    let mut mounts: Vec<shim::Mount> =
        default_mounts(spec, around).into_iter().filter(|mount| !replaced(&mount.target)).collect();
    for (path, directory) in &around.image_volumes {
        let volume = shim::VolumeMount { host_path: directory.clone(), copy_up: true };
        mounts.push(shim::Mount {
            target: path.clone(),
            source: Some(Source::Volume(volume)),
            ..Default::default()
        });
    }
    let mut own: Vec<(&Mount, &Option<FoundSource>)> =
        spec.mounts.iter().zip(&around.sources).collect();
    own.sort_by_key(|(mount, _)| Path::new(&mount.container_path).components().count());
    for (mount, source) in own {
        mounts.push(own_mount(mount, source.as_ref())?);
    }
    Ok(mounts)
}

fn default_mounts(spec: &ContainerSpec, around: &Surroundings<'_>) -> Vec<shim::Mount> {
    let privileged = spec.security.privileged;
    let mount =
        |target: &str, source: Source, nodev: bool, noexec: bool, readonly: bool| shim::Mount {
            target: target.into(),
            source: Some(source),
            nosuid: true,
            nodev,
            noexec,
            readonly,
        };
    let shm = if around.sandbox.host_ipc {
        Source::Bind(shim::BindMount {
            host_path: "/dev/shm".into(),
            recursive: true,
            ..Default::default()
        })
    } else {
        Source::Shm(shim::ShmMount {})
    };
    let holder = |target: &str, file: &str| shim::Mount {
        target: target.into(),
        source: Some(Source::Holder(shim::HolderMount { file: file.into() })),
        readonly: spec.security.readonly_rootfs,
        ..Default::default()
    };
    vec![
        mount("/proc", Source::Proc(shim::ProcMount {}), true, true, false),
        mount(
            "/dev",
            Source::Tmpfs(shim::Tmpfs { size: DEV_SIZE, mode: 0o755 }),
            false,
            false,
            false,
        ),
        mount("/dev/pts", Source::Devpts(shim::Devpts {}), false, true, false),
        mount("/dev/shm", shm, true, true, false),
        mount("/dev/mqueue", Source::Mqueue(shim::MqueueMount {}), true, true, false),
        mount("/sys", Source::Sysfs(shim::SysfsMount {}), true, true, !privileged),
        mount("/sys/fs/cgroup", Source::Cgroup(shim::CgroupMount {}), true, true, !privileged),
        holder("/etc/resolv.conf", "resolv.conf"),
        holder("/etc/hostname", "hostname"),
        holder("/etc/hosts", "hosts"),
    ]
}

fn own_mount(mount: &Mount, found: Option<&FoundSource>) -> Result<shim::Mount> {
    let source = match (&mount.source, found) {
        (MountSource::Host(path), _) => Source::Bind(shim::BindMount {
            host_path: path.clone(),
            recursive: true,
            recursive_readonly: mount.recursive_read_only,
            propagation: match mount.propagation {
                Propagation::Private => shim::Propagation::Private,
                Propagation::HostToContainer => shim::Propagation::Slave,
                Propagation::Bidirectional => shim::Propagation::Shared,
            }
            .into(),
            make_source: true,
        }),
        (MountSource::Image { sub_path, .. }, Some(FoundSource::Image { base, lowers })) => {
            Source::Image(shim::ImageMount {
                base: base.clone(),
                lowers: lowers.clone(),
                sub_path: sub_path.clone(),
            })
        }
        (MountSource::Volume(_), Some(FoundSource::Volume(directory))) => {
            Source::Volume(shim::VolumeMount { host_path: directory.clone(), copy_up: true })
        }
        (MountSource::Image { .. } | MountSource::Volume(_), _) => {
            return Err(Error::invalid(
                "config.mounts",
                format!("{} has no source", mount.container_path),
            ));
        }
    };
    let option = |name: &str| mount.options.iter().any(|option| option == name);
    Ok(shim::Mount {
        target: mount.container_path.clone(),
        source: Some(source),
        readonly: mount.readonly,
        nosuid: option("nosuid"),
        nodev: option("nodev"),
        noexec: option("noexec"),
    })
}

#[cfg(test)]
mod tests;
