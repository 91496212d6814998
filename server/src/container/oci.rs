//! What a container is, in the words of the OCI runtime spec: for people and tools that read it.
//!
//! It is made of the plan that the shim was given. Bytes that are no UTF-8 are shown replaced.

use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceBuilder,
    LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxPidsBuilder, LinuxResourcesBuilder, Mount, MountBuilder, Process, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use proto::shim::{self, NamespaceMode, mount::Source};
use runtime::cgroup::resources::Resources;

/// The version of the spec that this follows.
pub const VERSION: &str = "1.2.1";

/// The runtime spec of a container; null if it cannot be told.
pub fn spec(plan: &shim::ContainerSpec, resources: &Resources, unified: bool) -> serde_json::Value {
    let told = build(plan, resources, unified);
    told.ok().and_then(|spec| serde_json::to_value(spec).ok()).unwrap_or_default()
}

fn build(
    plan: &shim::ContainerSpec,
    resources: &Resources,
    unified: bool,
) -> Result<Spec, OciSpecError> {
    let mut spec = SpecBuilder::default()
        .version(VERSION)
        .hostname("")
        .annotations(std::collections::HashMap::new())
        .root(root(plan)?)
        .mounts(plan.mounts.iter().map(mount).collect::<Result<Vec<_>, _>>()?)
        .linux(linux(plan, resources, unified)?);
    if let Some(process) = &plan.process {
        spec = spec.process(self::process(process, plan)?);
    }
    spec.build()
}

fn root(plan: &shim::ContainerSpec) -> Result<oci_spec::runtime::Root, OciSpecError> {
    let rootfs = plan.rootfs.clone().unwrap_or_default();
    // The root is an overlay that is mounted in the container's namespace only; this is its writable layer.
    RootBuilder::default()
        .path(PathBuf::from(rootfs.base).join(rootfs.upper))
        .readonly(rootfs.readonly)
        .build()
}

fn process(process: &shim::Process, plan: &shim::ContainerSpec) -> Result<Process, OciSpecError> {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let user = process.user.clone().unwrap_or_default();
    let mut told = UserBuilder::default().additional_gids(user.additional_gids);
    if let Some(shim::user::User::Uid(uid)) = user.user {
        told = told.uid(uid);
    }
    if let Some(shim::user::Group::Gid(gid)) = user.group {
        told = told.gid(gid);
    }
    let capabilities = process.capabilities.unwrap_or_default();
    let set = |bits: u64| -> oci_spec::runtime::Capabilities {
        let names = runtime::capabilities::names(bits);
        names.iter().filter_map(|name| name.parse::<Capability>().ok()).collect()
    };
    ProcessBuilder::default()
        .terminal(plan.stdio.as_ref().is_some_and(|stdio| stdio.terminal))
        .user(told.build()?)
        .args(process.args.iter().map(text).collect::<Vec<_>>())
        .env(process.env.iter().map(text).collect::<Vec<_>>())
        .cwd(process.cwd.clone())
        .no_new_privileges(process.no_new_privs)
        .oom_score_adj(process.oom_score_adj.unwrap_or_default())
        .apparmor_profile(process.apparmor_profile.clone())
        .selinux_label(process.selinux_label.clone())
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(set(capabilities.bounding))
                .effective(set(capabilities.effective))
                .permitted(set(capabilities.permitted))
                .inheritable(set(capabilities.inheritable))
                .ambient(set(capabilities.ambient))
                .build()?,
        )
        .build()
}

fn mount(mount: &shim::Mount) -> Result<Mount, OciSpecError> {
    let (kind, source) = match &mount.source {
        Some(Source::Bind(bind)) => ("bind", bind.host_path.clone()),
        Some(Source::Tmpfs(_)) => ("tmpfs", "tmpfs".into()),
        Some(Source::Proc(_)) => ("proc", "proc".into()),
        Some(Source::Sysfs(_)) => ("sysfs", "sysfs".into()),
        Some(Source::Devpts(_)) => ("devpts", "devpts".into()),
        Some(Source::Mqueue(_)) => ("mqueue", "mqueue".into()),
        Some(Source::Cgroup(_)) => ("cgroup", "cgroup".into()),
        Some(Source::Holder(holder)) => ("bind", format!("pod:{}", holder.file)),
        Some(Source::Shm(_)) => ("bind", "pod:shm".into()),
        Some(Source::Image(image)) => ("overlay", image.lowers.join(":")),
        Some(Source::Volume(volume)) => ("bind", volume.host_path.clone()),
        None => ("none", String::new()),
    };
    let flags = [
        (mount.readonly, "ro"),
        (mount.nosuid, "nosuid"),
        (mount.nodev, "nodev"),
        (mount.noexec, "noexec"),
    ];
    let options = flags.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned());
    MountBuilder::default()
        .destination(PathBuf::from(&mount.target))
        .typ(kind)
        .source(PathBuf::from(source))
        .options(options.collect::<Vec<_>>())
        .build()
}

fn linux(
    plan: &shim::ContainerSpec,
    resources: &Resources,
    unified: bool,
) -> Result<Linux, OciSpecError> {
    let modes = plan.namespaces.clone().unwrap_or_default();
    let mut namespaces = vec![LinuxNamespaceType::Mount];
    let own = [
        (modes.network(), LinuxNamespaceType::Network),
        (modes.pid(), LinuxNamespaceType::Pid),
        (modes.ipc(), LinuxNamespaceType::Ipc),
        (modes.uts(), LinuxNamespaceType::Uts),
        (modes.cgroup(), LinuxNamespaceType::Cgroup),
    ];
    namespaces.extend(
        own.into_iter().filter(|(mode, _)| *mode != NamespaceMode::Node).map(|(_, kind)| kind),
    );
    let namespaces =
        namespaces.into_iter().map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    let group = plan.cgroup.as_ref().and_then(|group| group.directories.first());
    let devices = plan.devices.iter().map(|device| {
        let kind = if device.mode & libc::S_IFMT == libc::S_IFBLK {
            LinuxDeviceType::B
        } else {
            LinuxDeviceType::C
        };
        LinuxDeviceBuilder::default()
            .path(PathBuf::from(&device.path))
            .typ(kind)
            .major(device.major)
            .minor(device.minor)
            .file_mode(device.mode & 0o7777)
            .uid(device.uid)
            .gid(device.gid)
            .build()
    });
    LinuxBuilder::default()
        .namespaces(namespaces.collect::<Result<Vec<_>, _>>()?)
        .devices(devices.collect::<Result<Vec<_>, _>>()?)
        .masked_paths(plan.masked_paths.clone())
        .readonly_paths(plan.readonly_paths.clone())
        .cgroups_path(PathBuf::from(group.map(|group| group.path.clone()).unwrap_or_default()))
        .resources(limits(resources, unified)?)
        .build()
}

fn limits(
    resources: &Resources,
    unified: bool,
) -> Result<oci_spec::runtime::LinuxResources, OciSpecError> {
    let mut cpu = LinuxCpuBuilder::default()
        .cpus(resources.cpuset_cpus.clone())
        .mems(resources.cpuset_mems.clone());
    if let Some(shares) = resources.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if let Some(quota) = resources.cpu_quota {
        cpu = cpu.quota(quota);
    }
    if let Some(period) = resources.cpu_period {
        cpu = cpu.period(period);
    }
    let mut memory = LinuxMemoryBuilder::default();
    if let Some(limit) = resources.memory_limit {
        memory = memory.limit(limit);
    }
    if let Some(swap) = resources.memory_swap_limit {
        memory = memory.swap(swap);
    }
    let mut limits = LinuxResourcesBuilder::default().cpu(cpu.build()?).memory(memory.build()?);
    if let Some(pids) = resources.pids_limit {
        limits = limits.pids(LinuxPidsBuilder::default().limit(pids).build()?);
    }
    if unified && !resources.unified.is_empty() {
        limits = limits.unified(
            resources.unified.clone().into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
    }
    limits.build()
}
