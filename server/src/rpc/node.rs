//! Calls of the CRI about the node.

use std::collections::BTreeMap;

use proto::cri as v1;
use serde_json::json;

use super::Backend;
use super::parse::sandbox::HANDLER;
use crate::app::{App, NetworkMessage};
use crate::blocking;
use crate::error::Result;
use crate::network::cni::INTERFACE;
use crate::network::cni::config::Network;

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn runtime_config(
    _: &Backend,
    _: v1::RuntimeConfigRequest,
) -> Result<v1::RuntimeConfigResponse> {
    let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
    Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
}

/// The built-in bridge chooses its subnet itself: the cluster's pod CIDR is for CNI plugins that ask for it.
pub(super) async fn update_runtime_config(
    backend: &Backend,
    request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse> {
    let network =
        request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
    let app = backend.app.clone();
    let work = move || app.network.cni.set_ranges(&network.pod_cidr);
    blocking::run("write down the pod CIDR", work).await?;
    Ok(v1::UpdateRuntimeConfigResponse {})
}

pub(super) async fn status(
    backend: &Backend,
    request: v1::StatusRequest,
) -> Result<v1::StatusResponse> {
    let condition = |r#type: &str, status: bool, reason: &str, message: String| {
        v1::RuntimeCondition { r#type: r#type.into(), status, reason: reason.into(), message }
    };
    let app = &backend.app;
    let network = app.podnet_message().await?;
    let info = if request.verbose { info(backend, &network) } else { BTreeMap::new() };
    let handler = |name: &str| v1::RuntimeHandler {
        name: name.into(),
        features: Some(v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: app.node.recursive_read_only,
            user_namespaces: false,
        }),
    };
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", true, "", String::new()),
                condition("NetworkReady", network.ready, network.reason, network.message),
            ],
        }),
        info,
        runtime_handlers: vec![handler(""), handler(HANDLER)],
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    })
}

/// The daemon's configuration and what it found on the node, as crictl info shows it.
fn info(backend: &Backend, network: &NetworkMessage) -> BTreeMap<String, String> {
    let app = &backend.app;
    let config = json!({
        "rootDir": app.instance.root,
        "stateDir": app.instance.state,
        "socket": app.config.socket,
        "instance": app.instance.id.to_string(),
        "cgroupVersion": if app.cgroups.unified { 2 } else { 1 },
        "cgroupControllers": app.cgroups.controllers(),
        "kernel": format!("{}.{}", app.node.kernel.0, app.node.kernel.1),
        "apparmor": app.node.apparmor,
        "selinux": app.node.selinux,
    });
    let network = json!({ "message": network.message });
    // As containerd has them, for tools that look there.
    let loaded = app.network.cni.loaded();
    let last = loaded.problem.unwrap_or_else(|| "OK".into());
    BTreeMap::from([
        ("config".into(), config.to_string()),
        ("network".into(), network.to_string()),
        ("cniconfig".into(), cni_config(app, loaded.network.as_deref()).to_string()),
        ("lastCNILoadStatus".into(), last),
    ])
}

fn cni_config(app: &App, network: Option<&Network>) -> serde_json::Value {
    let networks = network.iter().map(|network| {
        let plugins: Vec<_> =
            network.plugins.iter().map(|plugin| json!({ "Network": plugin })).collect();
        let config = json!({
            "Name": network.name,
            "CNIVersion": network.version.text(),
            "Plugins": plugins,
            "Source": network.source,
        });
        json!({ "Config": config, "IFName": INTERFACE })
    });
    json!({
        "PluginDirs": app.config.network.cni_bin_dirs,
        "PluginConfDir": app.config.network.cni_conf_dirs.first(),
        "PluginMaxConfNum": 1,
        "Prefix": "eth",
        "Networks": networks.collect::<Vec<_>>(),
    })
}
