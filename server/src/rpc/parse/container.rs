//! CreateContainerRequest becomes a [`ContainerSpec`].

use std::collections::BTreeMap;

use proto::cri as v1;
use runtime::cgroup::resources::Resources;

use super::sandbox::{check_user_namespace, mode};
use super::{absolute_path, clean_path, name, numeric_id, plain_path, required, shown};
use crate::container::State;
use crate::container::list::Filter;
use crate::container::spec::{
    Capabilities, ContainerSpec, Device, Mount, MountSource, PidTarget, Profile, Propagation,
    Security, SelinuxLabel, User,
};
use crate::error::{Error, Reason, Result};
use crate::signal;

/// What a CreateContainer asks for.
///
/// # Errors
/// `Invalid` names the field; `Unimplemented` what this version does not serve.
pub fn spec(config: v1::ContainerConfig) -> Result<ContainerSpec> {
    let metadata = required(config.metadata, "config.metadata")?;
    let image = required(config.image, "config.image")?;
    if !config.cdi_devices.is_empty() {
        return Err(Error::Unimplemented { what: "config.CDI_devices".into() });
    }
    let linux = config.linux.unwrap_or_default();
    let (resources, oom_score_adj) = resources(linux.resources.unwrap_or_default())?;
    let stop_signal = signal::from_cri(config.stop_signal)
        .map_err(|problem| Error::invalid("config.stop_signal", problem))?;
    Ok(ContainerSpec {
        name: name(metadata.name, "config.metadata.name")?,
        attempt: metadata.attempt,
        user_image: image.user_specified_image,
        image: required(Some(image.image).filter(|image| !image.is_empty()), "config.image.image")?,
        command: without_nul(config.command, "config.command")?,
        args: without_nul(config.args, "config.args")?,
        working_dir: working_dir(config.working_dir)?,
        env: environment(config.envs)?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_>>()?,
        devices: config.devices.into_iter().map(device).collect::<Result<_>>()?,
        labels: config.labels,
        annotations: config.annotations,
        log_path: log_path(config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources,
        oom_score_adj,
        security: security(linux.security_context.unwrap_or_default())?,
        stop_signal,
        local: None,
    })
}

fn without_nul(texts: Vec<String>, field: &str) -> Result<Vec<String>> {
    if texts.iter().any(|text| text.contains('\0')) {
        return Err(Error::invalid(field, "must not contain NUL"));
    }
    Ok(texts)
}

fn working_dir(text: String) -> Result<String> {
    if text.is_empty() { Ok(text) } else { clean_path(text, "config.working_dir") }
}

fn environment(variables: Vec<v1::KeyValue>) -> Result<Vec<(String, Vec<u8>)>> {
    let variable = |variable: v1::KeyValue| {
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) {
            return Err(Error::invalid(
                "config.envs",
                format!("{:?} is no name of a variable", shown(&variable.key)),
            ));
        }
        if variable.value.contains(&0) {
            return Err(Error::invalid(
                format!("config.envs[{:?}]", shown(&variable.key)),
                "must not contain NUL",
            ));
        }
        Ok((variable.key, variable.value))
    };
    variables.into_iter().map(variable).collect()
}

fn log_path(text: String) -> Result<String> {
    let field = "config.log_path";
    if text.starts_with('/') {
        return Err(Error::invalid(
            field,
            format!("{:?} must be relative to the sandbox's log_directory", shown(&text)),
        ));
    }
    plain_path(text, field)
}

fn mount(mount: v1::Mount) -> Result<Mount> {
    let field = |name: &str| format!("config.mounts[{:?}].{name}", shown(&mount.container_path));
    let container_path = absolute_path(mount.container_path.clone(), &field("container_path"))?;
    if container_path.trim_matches('/').is_empty() {
        return Err(Error::invalid(field("container_path"), "must not be the root itself"));
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(Error::Unimplemented { what: field("uidMappings") });
    }
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => {
            return Err(Error::invalid(
                field("propagation"),
                format!("there is no propagation {}", mount.propagation),
            ));
        }
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        return Err(Error::Known {
            reason: Reason::RroUnsupported,
            source: Box::new(Error::invalid(
                field("recursive_read_only"),
                "needs readonly, and propagation PRIVATE",
            )),
        });
    }
    let known = |option: &String| matches!(option.as_str(), "nosuid" | "nodev" | "noexec");
    if let Some(option) = mount.mount_options.iter().find(|option| !known(option)) {
        let problem = format!("{:?} must be nosuid, nodev or noexec", shown(option));
        return Err(Error::invalid(field("mount_options"), problem));
    }
    let source = match mount.image {
        Some(image) if !image.image.is_empty() => {
            image_source(image, &mount.host_path, mount.readonly, mount.image_sub_path, &field)?
        }
        _ if mount.host_path.is_empty() => {
            return Err(Error::invalid(field("host_path"), "must not be empty"));
        }
        _ => MountSource::Host(absolute_path(mount.host_path, &field("host_path"))?),
    };
    Ok(Mount {
        container_path,
        source,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        options: mount.mount_options,
    })
}

fn image_source(
    image: v1::ImageSpec,
    host_path: &str,
    readonly: bool,
    sub_path: String,
    field: &dyn Fn(&str) -> String,
) -> Result<MountSource> {
    if !host_path.is_empty() {
        return Err(Error::invalid(field("host_path"), "must be empty where image is set"));
    }
    if !readonly {
        return Err(Error::invalid(
            field("readonly"),
            "must be true where image is set: images are never written",
        ));
    }
    let sub_path = plain_path(sub_path, &field("image_sub_path"))?;
    Ok(MountSource::Image { image: image.image, sub_path })
}

fn device(device: v1::Device) -> Result<Device> {
    let host_path = absolute_path(device.host_path, "config.devices.host_path")?;
    let container_path = match device.container_path.as_str() {
        "" => host_path.clone(),
        _ => absolute_path(device.container_path, "config.devices.container_path")?,
    };
    let permissions = if device.permissions.is_empty() { "rwm".into() } else { device.permissions };
    if permissions.chars().any(|letter| !matches!(letter, 'r' | 'w' | 'm')) {
        return Err(Error::invalid(
            "config.devices.permissions",
            format!("{:?} must be letters of rwm", shown(&permissions)),
        ));
    }
    Ok(Device { host_path, container_path, permissions })
}

/// Limits, and the score for the OOM killer. 0 and empty are "not set".
///
/// # Errors
/// `Invalid` names the field.
pub fn resources(resources: v1::LinuxContainerResources) -> Result<(Resources, i32)> {
    let field = |name: &str| format!("linux.resources.{name}");
    let invalid = |name: &str, problem: String| Error::invalid(field(name), problem);
    let set = |value: i64| (value != 0).then_some(value);
    let positive = |value: i64, name: &str| {
        u64::try_from(value)
            .map(|value| (value != 0).then_some(value))
            .map_err(|_| invalid(name, format!("{value} must not be negative")))
    };
    let cpu_period = positive(resources.cpu_period, "cpu_period")?;
    if let Some(period) = cpu_period.filter(|period| !(1000..=1_000_000).contains(period)) {
        return Err(invalid(
            "cpu_period",
            format!("{period} must be 1000 to 1000000 microseconds"),
        ));
    }
    if resources.cpu_quota != 0 && resources.cpu_quota != -1 && resources.cpu_quota < 1000 {
        return Err(invalid(
            "cpu_quota",
            format!(
                "{} must be at least 1000 microseconds, or -1 for no limit",
                resources.cpu_quota
            ),
        ));
    }
    let oom_score_adj =
        i32::try_from(resources.oom_score_adj).ok().filter(|score| (-1000..=1000).contains(score));
    let oom_score_adj = oom_score_adj.ok_or_else(|| {
        invalid("oom_score_adj", format!("{} must be -1000 to 1000", resources.oom_score_adj))
    })?;
    let limits = Resources {
        cpu_shares: positive(resources.cpu_shares, "cpu_shares")?,
        cpu_quota: set(resources.cpu_quota),
        cpu_period,
        cpuset_cpus: cpu_list(resources.cpuset_cpus, &field("cpuset_cpus"))?,
        cpuset_mems: cpu_list(resources.cpuset_mems, &field("cpuset_mems"))?,
        memory_limit: set(resources.memory_limit_in_bytes),
        memory_swap_limit: set(resources.memory_swap_limit_in_bytes),
        pids_limit: None,
        hugepage_limits: hugepages(&resources.hugepage_limits, &field("hugepage_limits"))?,
        unified: resources.unified,
    };
    check_memory(&limits).map_err(|problem| invalid("memory_limit_in_bytes", problem))?;
    Ok((limits, oom_score_adj))
}

fn check_memory(limits: &Resources) -> std::result::Result<(), String> {
    if let Some(limit) = limits.memory_limit.filter(|limit| *limit < -1) {
        return Err(format!("{limit} must be positive, or -1 for no limit"));
    }
    match (limits.memory_limit, limits.memory_swap_limit) {
        (Some(memory), Some(swap)) if memory > 0 && swap > 0 && swap < memory => Err(format!(
            "{memory} is more than memory_swap_limit_in_bytes, {swap}, which counts memory too"
        )),
        _ => Ok(()),
    }
}

/// `0-3,7`
fn cpu_list(text: String, field: &str) -> Result<String> {
    if text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-')) {
        return Ok(text);
    }
    Err(Error::invalid(field, format!("{:?} must be a list such as 0-3,7", shown(&text))))
}

fn hugepages(limits: &[v1::HugepageLimit], field: &str) -> Result<BTreeMap<String, u64>> {
    let size = |text: &str| {
        let digits = text.trim_end_matches("KB").trim_end_matches("MB").trim_end_matches("GB");
        digits.len() + 2 == text.len()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.is_empty()
    };
    let limit = |limit: &v1::HugepageLimit| {
        if size(&limit.page_size) {
            return Ok((limit.page_size.clone(), limit.limit));
        }
        Err(Error::invalid(
            field,
            format!("{:?} must be a page size such as 2MB", shown(&limit.page_size)),
        ))
    };
    limits.iter().map(limit).collect()
}

fn security(context: v1::LinuxContainerSecurityContext) -> Result<Security> {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let options = context.namespace_options.unwrap_or_default();
    check_user_namespace(options.userns_options.as_ref())?;
    let (wanted, privileged) = (context.capabilities.unwrap_or_default(), context.privileged);
    let groups = context.supplemental_groups.iter();
    #[expect(deprecated, reason = "kubelets still send these; the structured fields win")]
    let (seccomp_path, apparmor_path) = (context.seccomp_profile_path, context.apparmor_profile);
    let paths = |paths: Vec<String>, name: &str| -> Result<Vec<String>> {
        paths.into_iter().map(|path| absolute_path(path, &field(name))).collect()
    };
    Ok(Security {
        privileged,
        capabilities: capabilities(
            &wanted.add_capabilities,
            &wanted.drop_capabilities,
            &wanted.add_ambient_capabilities,
            &field("capabilities"),
        )?,
        user: user(context.run_as_user, context.run_as_username, context.run_as_group)?,
        supplemental_groups: groups
            .map(|gid| numeric_id(*gid, &field("supplemental_groups")))
            .collect::<Result<_>>()?,
        merge_groups: context.supplemental_groups_policy
            == v1::SupplementalGroupsPolicy::Merge as i32,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: paths(context.masked_paths, "masked_paths")?,
        readonly_paths: paths(context.readonly_paths, "readonly_paths")?,
        seccomp: profile(context.seccomp, &seccomp_path, &field("seccomp"))?,
        apparmor: profile(context.apparmor, &apparmor_path, &field("apparmor"))?,
        selinux: context.selinux_options.map(|label| SelinuxLabel {
            user: label.user,
            role: label.role,
            r#type: label.r#type,
            level: label.level,
        }),
        pid: pid_target(&options, &field("namespace_options"))?,
    })
}

fn pid_target(options: &v1::NamespaceOption, field: &str) -> Result<PidTarget> {
    use v1::NamespaceMode as Mode;
    Ok(match mode(options.pid, &format!("{field}.pid"))? {
        Mode::Pod => PidTarget::Pod,
        Mode::Container => PidTarget::Container,
        Mode::Node => PidTarget::Node,
        Mode::Target if options.target_id.is_empty() => {
            return Err(Error::invalid(
                format!("{field}.target_id"),
                "must name a container where pid is TARGET",
            ));
        }
        Mode::Target => PidTarget::Target(options.target_id.clone()),
    })
}

fn user(
    uid: Option<v1::Int64Value>,
    username: String,
    gid: Option<v1::Int64Value>,
) -> Result<User> {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let gid = gid.map(|gid| numeric_id(gid.value, &field("run_as_group"))).transpose()?;
    match (uid, username.is_empty()) {
        (Some(_), false) => Err(Error::invalid(
            field("run_as_user"),
            "must not be set together with run_as_username",
        )),
        (Some(uid), true) => Ok(User::Uid(numeric_id(uid.value, &field("run_as_user"))?, gid)),
        (None, false) => Ok(User::Name(username, gid)),
        (None, true) if gid.is_some() => {
            Err(Error::invalid(field("run_as_group"), "needs run_as_user or run_as_username"))
        }
        (None, true) => Ok(User::Image),
    }
}

/// Drops after adds, but what is added by its own name survives a drop of ALL.
///
/// # Errors
/// `Invalid` for an unknown name, at `field`.
pub fn capabilities(
    add: &[String],
    drop: &[String],
    ambient: &[String],
    field: &str,
) -> Result<Capabilities> {
    let (all_added, added) = set(add, field)?;
    let (all_dropped, dropped) = set(drop, field)?;
    let (all_ambient, ambient) = set(ambient, field)?;
    let base = if all_added { runtime::capabilities::ALL } else { runtime::capabilities::DEFAULT };
    let base = if all_dropped { 0 } else { base };
    let granted = (base | added) & !dropped;
    let ambient = if all_ambient { runtime::capabilities::ALL } else { ambient } & !dropped;
    Ok(Capabilities { granted: granted | ambient, ambient })
}

fn set(names: &[String], field: &str) -> Result<(bool, u64)> {
    let mut found = (false, 0);
    for name in names {
        if name.eq_ignore_ascii_case("ALL") {
            found.0 = true;
            continue;
        }
        found.1 |= runtime::capabilities::by_name(name).ok_or_else(|| {
            Error::invalid(field, format!("there is no capability {:?}", shown(name)))
        })?;
    }
    Ok(found)
}

/// The structured field, else the text that older kubelets send.
fn profile(profile: Option<v1::SecurityProfile>, text: &str, field: &str) -> Result<Profile> {
    use v1::security_profile::ProfileType;
    let Some(profile) = profile else { return profile_text(text, field) };
    let kind = ProfileType::try_from(profile.profile_type).map_err(|_| {
        Error::invalid(
            format!("{field}.profile_type"),
            format!("there is no type {}", profile.profile_type),
        )
    })?;
    let named = !profile.localhost_ref.is_empty();
    match kind {
        ProfileType::Localhost => localhost(&profile.localhost_ref, field),
        ProfileType::RuntimeDefault | ProfileType::Unconfined if named => Err(Error::invalid(
            format!("{field}.localhost_ref"),
            "must be empty where the type is not Localhost",
        )),
        ProfileType::RuntimeDefault => Ok(Profile::Default),
        ProfileType::Unconfined => Ok(Profile::Unconfined),
    }
}

fn profile_text(text: &str, field: &str) -> Result<Profile> {
    match text {
        "" => Ok(Profile::Unset),
        "runtime/default" | "docker/default" => Ok(Profile::Default),
        "unconfined" => Ok(Profile::Unconfined),
        _ if text.starts_with("localhost/") => localhost(text, field),
        _ => Err(Error::invalid(
            field,
            format!("{:?} must be runtime/default, unconfined or localhost/NAME", shown(text)),
        )),
    }
}

fn localhost(text: &str, field: &str) -> Result<Profile> {
    let name = text.strip_prefix("localhost/").unwrap_or(text);
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Error::invalid(
            format!("{field}.localhost_ref"),
            "must name a profile where the type is Localhost",
        ));
    }
    Ok(Profile::Localhost(name.to_owned()))
}

/// Which containers a list is of.
///
/// # Errors
/// `Invalid` for a state that is none.
pub fn filter(filter: Option<v1::ContainerFilter>) -> Result<Filter> {
    use v1::ContainerState;
    let filter = filter.unwrap_or_default();
    let state = match filter.state.map(|state| ContainerState::try_from(state.state)) {
        None => None,
        Some(Ok(ContainerState::ContainerCreated)) => Some(State::Created),
        Some(Ok(ContainerState::ContainerRunning)) => Some(State::Running),
        Some(Ok(ContainerState::ContainerExited)) => Some(State::Exited),
        // None ever is: what is in the making is not listed.
        Some(Ok(ContainerState::ContainerUnknown)) => Some(State::Creating),
        Some(Err(_)) => return Err(Error::invalid("filter.state", "there is no such state")),
    };
    Ok(Filter {
        id: filter.id,
        sandbox: filter.pod_sandbox_id,
        state,
        labels: filter.label_selector,
    })
}
