//! RunPodSandboxRequest becomes a [`SandboxSpec`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use proto::cri as v1;

use super::{absolute_path, name, plain_path, required, shown};
use crate::config::Runtime;
use crate::error::{Error, Result};
use crate::network::resolv;
use crate::rpc::reply;
use crate::sandbox::list::Filter;
use crate::sandbox::spec::{
    DnsConfig, NetworkMode, PidMode, PodName, PortMapping, Protocol, SandboxSpec,
};

/// The handler that is built in; the empty name means it too.
pub const HANDLER: &str = "berth";
/// /dev/shm of a pod, as docker and containerd have it.
pub const SHM_SIZE: u64 = 64 << 20;

/// What a RunPodSandbox asks for.
///
/// # Errors
/// `Invalid` names the field; `Unimplemented` what this version does not serve.
pub fn spec(request: v1::RunPodSandboxRequest, runtime: &Runtime) -> Result<SandboxSpec> {
    let config = required(request.config, "config")?;
    if !matches!(request.runtime_handler.as_str(), "" | HANDLER) {
        let problem = format!(
            "there is no handler {:?}; the only one is {HANDLER:?}",
            shown(&request.runtime_handler)
        );
        return Err(Error::invalid("runtime_handler", problem));
    }
    let metadata = required(config.metadata, "config.metadata")?;
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Error::invalid(
            "config.linux.security_context.run_as_group",
            "needs run_as_user",
        ));
    }
    let (network, pid, host_ipc) = namespace_modes(&namespaces)?;
    let hostname = hostname(config.hostname, network)?;
    let dns = config.dns_config.map(|dns| DnsConfig {
        servers: dns.servers,
        searches: dns.searches,
        options: dns.options,
    });
    if let Some(dns) = &dns {
        // Only whether it can be written; it is, once the sandbox is made.
        resolv::from_config(dns)?;
    }
    let spec = SandboxSpec {
        name: PodName {
            name: name(metadata.name, "config.metadata.name")?,
            namespace: name(metadata.namespace, "config.metadata.namespace")?,
            uid: name(metadata.uid, "config.metadata.uid")?,
            attempt: metadata.attempt,
        },
        hostname,
        log_directory: log_directory(config.log_directory)?,
        dns,
        ports: ports(&config.port_mappings)?,
        labels: config.labels,
        annotations: config.annotations,
        cgroup_parent: cgroup_parent(linux.cgroup_parent)?,
        network,
        pid,
        host_ipc,
        sysctls: sysctls(linux.sysctls, network, host_ipc)?,
        privileged: security.privileged,
        handler: request.runtime_handler,
        shm_size: SHM_SIZE,
        local: false,
        overhead: linux.overhead.as_ref().map(reply::resources_json),
        resources: linux.resources.as_ref().map(reply::resources_json),
    };
    Ok(with_open_ranges(spec, runtime))
}

fn namespace_modes(options: &v1::NamespaceOption) -> Result<(NetworkMode, PidMode, bool)> {
    use v1::NamespaceMode as Mode;
    let field = |name: &str| format!("config.linux.security_context.namespace_options.{name}");
    let refuse =
        |name: &str, modes: &str| Err(Error::invalid(field(name), format!("must be {modes}")));
    let network = match mode(options.network, &field("network"))? {
        Mode::Pod => NetworkMode::Pod,
        Mode::Node => NetworkMode::Node,
        Mode::Container | Mode::Target => return refuse("network", "POD or NODE"),
    };
    let pid = match mode(options.pid, &field("pid"))? {
        Mode::Pod => PidMode::Pod,
        Mode::Container => PidMode::Container,
        Mode::Node => PidMode::Node,
        Mode::Target => return refuse("pid", "POD, CONTAINER or NODE for a sandbox"),
    };
    let host_ipc = match mode(options.ipc, &field("ipc"))? {
        Mode::Pod => false,
        Mode::Node => true,
        Mode::Container | Mode::Target => return refuse("ipc", "POD or NODE"),
    };
    check_user_namespace(options.userns_options.as_ref())?;
    Ok((network, pid, host_ipc))
}

/// A mode by its number.
pub(super) fn mode(value: i32, field: &str) -> Result<v1::NamespaceMode> {
    v1::NamespaceMode::try_from(value)
        .map_err(|_| Error::invalid(field, format!("there is no mode {value}")))
}

/// The node's user namespace is the only one that is served.
pub(super) fn check_user_namespace(options: Option<&v1::UserNamespace>) -> Result<()> {
    use v1::NamespaceMode as Mode;
    let field = "namespace_options.userns_options.mode";
    let Some(options) = options else { return Ok(()) };
    match mode(options.mode, field)? {
        Mode::Node => Ok(()),
        // What an empty message says; no mappings come with it then.
        Mode::Pod if options.uids.is_empty() && options.gids.is_empty() => Ok(()),
        Mode::Pod => Err(Error::Unimplemented { what: format!("{field} POD") }),
        Mode::Container | Mode::Target => Err(Error::invalid(field, "must be POD or NODE")),
    }
}

fn hostname(hostname: String, network: NetworkMode) -> Result<String> {
    if hostname.is_empty() && network == NetworkMode::Node {
        return Ok(hostname);
    }
    if !hostname.is_empty() {
        resolv::check_hostname(&hostname)?;
    }
    Ok(hostname)
}

fn log_directory(text: String) -> Result<Option<PathBuf>> {
    if text.is_empty() {
        return Ok(None);
    }
    absolute_path(text, "config.log_directory").map(|path| Some(path.into()))
}

fn cgroup_parent(text: String) -> Result<String> {
    let field = "config.linux.cgroup_parent";
    if text.is_empty() {
        return Ok(text);
    }
    if text.ends_with(".slice") {
        let problem = "is a slice of systemd, but this daemon makes cgroups itself: set cgroupDriver: cgroupfs in the kubelet's configuration";
        return Err(Error::invalid(field, format!("{:?} {problem}", shown(&text))));
    }
    plain_path(text, field).map(|path| format!("/{}", path.trim_matches('/')))
}

fn ports(mappings: &[v1::PortMapping]) -> Result<Vec<PortMapping>> {
    // Without a host port there is nothing to do: pods are reached by their addresses.
    mappings.iter().filter(|mapping| mapping.host_port != 0).map(port).collect()
}

fn port(mapping: &v1::PortMapping) -> Result<PortMapping> {
    let field = |name: &str| format!("config.port_mappings.{name}");
    let number = |value: i32, name: &str| {
        let port = u16::try_from(value).ok().filter(|port| *port != 0);
        port.ok_or_else(|| Error::invalid(field(name), format!("{value} must be 1 to 65535")))
    };
    let protocol = match v1::Protocol::try_from(mapping.protocol) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => {
            return Err(Error::invalid(
                field("protocol"),
                format!("there is no protocol {}", mapping.protocol),
            ));
        }
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => {
            let invalid =
                |_| Error::invalid(field("host_ip"), format!("{:?} is no IP address", shown(text)));
            Some(text.parse::<IpAddr>().map_err(invalid)?)
        }
    };
    Ok(PortMapping {
        protocol,
        container_port: number(mapping.container_port, "container_port")?,
        host_port: number(mapping.host_port, "host_port")?,
        host_ip,
    })
}

/// Settings of namespaces that are the pod's own, with slashes.
fn sysctls(
    given: BTreeMap<String, String>,
    network: NetworkMode,
    host_ipc: bool,
) -> Result<BTreeMap<String, String>> {
    let mut sysctls = BTreeMap::new();
    for (name, value) in given {
        let field = format!("config.linux.sysctls[{:?}]", shown(&name));
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        let plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'/' | b'.');
        let parts_hold =
            path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !path.bytes().all(plain) || !parts_hold || path.len() > 256 {
            return Err(Error::invalid(field, "is no name of a sysctl"));
        }
        if value.len() > 4096 || value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::invalid(
                field,
                "has a value with control characters, or of more than 4096 bytes",
            ));
        }
        let ipc = path.starts_with("kernel/shm")
            || path.starts_with("kernel/msg")
            || path == "kernel/sem"
            || path.starts_with("fs/mqueue/");
        let net = path.starts_with("net/");
        if !ipc && !net {
            return Err(Error::invalid(
                field,
                "is a setting of the whole node: pods have kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.*",
            ));
        }
        if ipc && host_ipc || net && network == NetworkMode::Node {
            return Err(Error::invalid(
                field,
                "would be set for the node, whose namespace the pod shares",
            ));
        }
        sysctls.insert(path, value);
    }
    Ok(sysctls)
}

/// What a pod with a network of its own may do there, where the operator has not said otherwise.
pub fn with_open_ranges(mut spec: SandboxSpec, runtime: &Runtime) -> SandboxSpec {
    if spec.has_network_namespace() {
        if runtime.enable_unprivileged_ports {
            spec.sysctls
                .entry("net/ipv4/ip_unprivileged_port_start".into())
                .or_insert_with(|| "0".into());
        }
        if runtime.enable_unprivileged_icmp {
            spec.sysctls
                .entry("net/ipv4/ping_group_range".into())
                .or_insert_with(|| "0 2147483647".into());
        }
    }
    spec
}

/// Which sandboxes a list is of.
pub fn filter(filter: Option<v1::PodSandboxFilter>) -> Filter {
    let filter = filter.unwrap_or_default();
    let ready = filter.state.map(|state| state.state == v1::PodSandboxState::SandboxReady as i32);
    Filter { id: filter.id, ready, labels: filter.label_selector }
}
