//! The files that a pod's containers get: resolv.conf, hostname, hosts.

use proto::shim::HolderFile;

use super::Record;
use super::spec::NetworkMode;
use crate::error::Result;
use crate::network::resolv;
use crate::node::Node;

/// Their contents, from the record alone.
///
/// # Errors
/// The node's resolv.conf cannot be read.
pub(super) fn of(record: &Record) -> Result<Vec<HolderFile>> {
    let spec = &record.spec;
    let on_node = spec.network == NetworkMode::Node;
    let resolv_conf = match &spec.dns {
        Some(dns) => resolv::from_config(dns)?,
        None if on_node => resolv::for_host_network()?,
        None => {
            let made = resolv::for_bridge()?;
            for warning in &made.warnings {
                tracing::warn!(sandbox = %record.id, "{warning}");
            }
            made.content
        }
    };
    let hostname =
        if on_node || spec.hostname.is_empty() { Node::hostname() } else { spec.hostname.clone() };
    // CNI plugins tell theirs later: a kubelet writes the hosts of its pods itself.
    let addresses = record.addresses();
    let hosts = if on_node {
        std::fs::read("/etc/hosts").unwrap_or_default()
    } else {
        resolv::hosts(&hostname, &addresses)?.into_bytes()
    };
    let file = |name: &str, content: Vec<u8>| HolderFile { name: name.into(), content };
    Ok(vec![
        file("resolv.conf", resolv_conf.into_bytes()),
        file("hostname", format!("{hostname}\n").into_bytes()),
        file("hosts", hosts),
    ])
}
