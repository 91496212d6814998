//! What there is becomes the CRI's messages.

use proto::cri as v1;
use runtime::cgroup::resources::Resources;
use runtime::cgroup::stats::{Pressure, Stall, Stats};

use crate::app::App;
use crate::container::spec::{Mount, MountSource, Propagation};
use crate::container::stats::Measured;
use crate::container::{self, Container, State};
use crate::events::{Event, Kind, Pod};
use crate::network::LinkCounters;
use crate::sandbox::spec::{NetworkMode, PidMode, SandboxSpec};
use crate::sandbox::stats as pod;
use crate::sandbox::{self, Sandbox};
use crate::signal;

/// The name of a sandbox.
pub fn pod_metadata(record: &sandbox::Record) -> v1::PodSandboxMetadata {
    let name = &record.spec.name;
    v1::PodSandboxMetadata {
        name: name.name.clone(),
        uid: name.uid.clone(),
        namespace: name.namespace.clone(),
        attempt: name.attempt,
    }
}

fn pod_state(state: sandbox::State) -> i32 {
    match state {
        sandbox::State::Ready => v1::PodSandboxState::SandboxReady,
        sandbox::State::Creating | sandbox::State::NotReady => v1::PodSandboxState::SandboxNotready,
    }
    .into()
}

/// A sandbox in a list.
pub fn pod(sandbox: &Sandbox) -> v1::PodSandbox {
    let record = sandbox.record();
    v1::PodSandbox {
        id: record.id.to_string(),
        metadata: Some(pod_metadata(&record)),
        state: pod_state(record.state),
        created_at: record.created_at,
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        runtime_handler: record.spec.handler.clone(),
    }
}

/// The status of a sandbox.
pub fn pod_status(record: &sandbox::Record) -> v1::PodSandboxStatus {
    v1::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: Some(pod_metadata(record)),
        state: pod_state(record.state),
        created_at: record.created_at,
        network: Some(network_status(record)),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(namespace_options(&record.spec)) }),
        }),
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        runtime_handler: record.spec.handler.clone(),
    }
}

fn network_status(record: &sandbox::Record) -> v1::PodSandboxNetworkStatus {
    let mut addresses = record.addresses().into_iter().map(|address| address.to_string());
    v1::PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
    }
}

fn namespace_options(spec: &SandboxSpec) -> v1::NamespaceOption {
    use v1::NamespaceMode as Mode;
    v1::NamespaceOption {
        network: match spec.network {
            NetworkMode::Node => Mode::Node,
            NetworkMode::Pod | NetworkMode::None => Mode::Pod,
        }
        .into(),
        pid: match spec.pid {
            PidMode::Pod => Mode::Pod,
            PidMode::Container => Mode::Container,
            PidMode::Node => Mode::Node,
        }
        .into(),
        ipc: if spec.host_ipc { Mode::Node } else { Mode::Pod }.into(),
        target_id: String::new(),
        userns_options: None,
    }
}

fn container_state(state: State) -> i32 {
    match state {
        State::Creating | State::Created => v1::ContainerState::ContainerCreated,
        State::Running => v1::ContainerState::ContainerRunning,
        State::Exited => v1::ContainerState::ContainerExited,
    }
    .into()
}

fn container_metadata(record: &container::Record) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: record.spec.name.clone(), attempt: record.spec.attempt }
}

/// A container in a list.
pub fn container(container: &Container) -> v1::Container {
    let record = container.record();
    v1::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox.to_string(),
        metadata: Some(container_metadata(&record)),
        image: Some(v1::ImageSpec {
            image: record.spec.image.clone(),
            user_specified_image: record.spec.user_image.clone(),
            ..Default::default()
        }),
        image_ref: record.image.id.clone(),
        state: container_state(record.state),
        created_at: record.created_at,
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

/// The status of a container of a sandbox.
pub fn container_status(
    app: &App,
    sandbox: &sandbox::Record,
    record: &container::Record,
) -> v1::ContainerStatus {
    let log_path = container::log::path_in(sandbox, record);
    let number = record.spec.stop_signal.or(record.image.stop_signal).unwrap_or(15);
    v1::ContainerStatus {
        id: record.id.to_string(),
        metadata: Some(container_metadata(record)),
        state: container_state(record.state),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: record.finished_at,
        exit_code: record.exit_code,
        image: Some(v1::ImageSpec {
            image: record.image.name.clone(),
            user_specified_image: record.spec.user_image.clone(),
            ..Default::default()
        }),
        image_ref: record.image.reference.clone(),
        reason: record.reason.clone(),
        message: record.message.clone(),
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
        mounts: record.spec.mounts.iter().map(|given| mount(app, given)).collect(),
        log_path: log_path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources(&record.resources, record.spec.oom_score_adj)),
            windows: None,
        }),
        image_id: record.image.id.clone(),
        user: user(record),
        stop_signal: signal::to_cri(number),
    }
}

fn user(record: &container::Record) -> Option<v1::ContainerUser> {
    let user = &record.user;
    let linux = v1::LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: user.groups.iter().map(|gid| i64::from(*gid)).collect(),
    };
    Some(v1::ContainerUser { linux: Some(linux) })
}

/// As it was given: the kubelet looks for its own paths.
fn mount(app: &App, mount: &Mount) -> v1::Mount {
    let (image, image_sub_path) = match &mount.source {
        MountSource::Image { image, sub_path } => {
            let found = crate::image::reference_of(app, image);
            (
                Some(v1::ImageSpec {
                    image: image.clone(),
                    image_ref: found,
                    ..Default::default()
                }),
                sub_path.clone(),
            )
        }
        MountSource::Host(_) | MountSource::Volume(_) => (None, String::new()),
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path().unwrap_or_default().to_owned(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            Propagation::Private => v1::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        }
        .into(),
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
        recursive_read_only: mount.recursive_read_only,
        image,
        image_sub_path,
        mount_options: mount.options.clone(),
    }
}

fn resources(resources: &Resources, oom_score_adj: i32) -> v1::LinuxContainerResources {
    let number =
        |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or_default();
    v1::LinuxContainerResources {
        cpu_period: number(resources.cpu_period),
        cpu_quota: resources.cpu_quota.unwrap_or_default(),
        cpu_shares: number(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit.unwrap_or_default(),
        oom_score_adj: oom_score_adj.into(),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit {
                page_size: page_size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit.unwrap_or_default(),
    }
}

/// Limits as JSON, for the verbose status: what is set.
pub fn resources_json(resources: &v1::LinuxContainerResources) -> serde_json::Value {
    let mut json = serde_json::Map::new();
    let numbers = [
        ("cpuPeriod", resources.cpu_period),
        ("cpuQuota", resources.cpu_quota),
        ("cpuShares", resources.cpu_shares),
        ("memoryLimitInBytes", resources.memory_limit_in_bytes),
        ("oomScoreAdj", resources.oom_score_adj),
        ("memorySwapLimitInBytes", resources.memory_swap_limit_in_bytes),
    ];
    json.extend(
        numbers
            .into_iter()
            .filter(|(_, value)| *value != 0)
            .map(|(name, value)| (name.to_owned(), value.into())),
    );
    let texts = [("cpusetCpus", &resources.cpuset_cpus), ("cpusetMems", &resources.cpuset_mems)];
    let texts = texts.into_iter().filter(|(_, value)| !value.is_empty());
    json.extend(texts.map(|(name, value)| (name.to_owned(), value.clone().into())));
    json.into()
}

/// An event, with the pod as it was then.
pub fn event(app: &App, event: &Event) -> v1::ContainerEventResponse {
    use v1::ContainerEventType as Type;
    let kind = match event.kind {
        Kind::Created => Type::ContainerCreatedEvent,
        Kind::Started => Type::ContainerStartedEvent,
        Kind::Stopped => Type::ContainerStoppedEvent,
        Kind::Deleted => Type::ContainerDeletedEvent,
    };
    v1::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(pod_status(&event.pod.sandbox)),
        containers_statuses: container_statuses(app, &event.pod),
    }
}

/// The statuses of a pod's containers.
pub fn container_statuses(app: &App, pod: &Pod) -> Vec<v1::ContainerStatus> {
    let status = |container| container_status(app, &pod.sandbox, container);
    pod.containers.iter().map(status).collect()
}

/// The measurements of a container.
pub fn container_stats(app: &App, measured: &Measured) -> v1::ContainerStats {
    let record = measured.container.record();
    let timestamp = measured.timestamp;
    let stats = measured.stats.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: record.id.to_string(),
            metadata: Some(container_metadata(&record)),
            labels: record.spec.labels.clone(),
            annotations: record.spec.annotations.clone(),
        }),
        cpu: stats.map(|stats| cpu(stats, timestamp)),
        memory: stats.map(|stats| memory(stats, timestamp)),
        writable_layer: Some(v1::FilesystemUsage {
            timestamp,
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: app.instance.root.to_string_lossy().into_owned(),
            }),
            used_bytes: Some(v1::UInt64Value { value: measured.layer.bytes }),
            inodes_used: Some(v1::UInt64Value { value: measured.layer.inodes }),
        }),
        swap: stats.and_then(|stats| swap(stats, timestamp)),
        io: stats.and_then(|stats| io(stats, timestamp)),
    }
}

/// The measurements of a pod and its containers.
pub fn pod_stats(app: &App, measured: &pod::Measured) -> v1::PodSandboxStats {
    let record = measured.sandbox.record();
    let timestamp = measured.timestamp;
    let stats = &measured.stats;
    let process = stats.pids.map(|pids| v1::ProcessUsage { timestamp, process_count: value(pids) });
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: record.id.to_string(),
            metadata: Some(pod_metadata(&record)),
            labels: record.spec.labels.clone(),
            annotations: record.spec.annotations.clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(cpu(stats, timestamp)),
            memory: Some(memory(stats, timestamp)),
            network: measured.links.as_ref().map(|links| network(links, timestamp)),
            process,
            containers: measured
                .containers
                .iter()
                .map(|container| container_stats(app, container))
                .collect(),
            io: io(stats, timestamp),
        }),
        windows: None,
    }
}

/// The link of this name is the pod's way to the world, whoever made it.
const DEFAULT_LINK: &str = "eth0";

fn network(links: &[LinkCounters], timestamp: i64) -> v1::NetworkUsage {
    let usage = |link: &LinkCounters| v1::NetworkInterfaceUsage {
        name: link.name.clone(),
        rx_bytes: value(link.counters.rx_bytes),
        rx_errors: value(link.counters.rx_errors),
        tx_bytes: value(link.counters.tx_bytes),
        tx_errors: value(link.counters.tx_errors),
    };
    let (default, others): (Vec<_>, Vec<_>) =
        links.iter().partition(|link| link.name == DEFAULT_LINK);
    v1::NetworkUsage {
        timestamp,
        default_interface: default.first().map(|link| usage(link)),
        interfaces: others.into_iter().map(usage).collect(),
    }
}

fn io(stats: &Stats, timestamp: i64) -> Option<v1::IoUsage> {
    let psi = stats.pressure[2].as_ref().map(psi)?;
    Some(v1::IoUsage { timestamp, psi: Some(psi) })
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(stats: &Stats, timestamp: i64) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: stats.cpu_usage.and_then(value),
        // The kubelet makes it of two samples.
        usage_nano_cores: None,
        psi: stats.pressure[0].as_ref().map(psi),
    }
}

fn memory(stats: &Stats, timestamp: i64) -> v1::MemoryUsage {
    let memory = stats.memory.as_ref();
    let available =
        memory.and_then(|memory| Some(memory.limit?.saturating_sub(memory.working_set)));
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: memory.and_then(|memory| value(memory.working_set)),
        available_bytes: available.and_then(value),
        usage_bytes: memory.and_then(|memory| value(memory.usage)),
        rss_bytes: memory.and_then(|memory| value(memory.rss)),
        page_faults: memory.and_then(|memory| value(memory.faults)),
        major_page_faults: memory.and_then(|memory| value(memory.major_faults)),
        psi: stats.pressure[1].as_ref().map(psi),
    }
}

fn swap(stats: &Stats, timestamp: i64) -> Option<v1::SwapUsage> {
    let swap = stats.swap.as_ref()?;
    Some(v1::SwapUsage {
        timestamp,
        swap_available_bytes: swap.limit.and_then(|limit| value(limit.saturating_sub(swap.usage))),
        swap_usage_bytes: value(swap.usage),
    })
}

fn psi(pressure: &Pressure) -> v1::PsiStats {
    let data = |stall: &Stall| v1::PsiData {
        total: stall.total,
        avg10: stall.averages[0],
        avg60: stall.averages[1],
        avg300: stall.averages[2],
    };
    v1::PsiStats { full: Some(data(&pressure.full)), some: Some(data(&pressure.some)) }
}
