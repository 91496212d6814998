//! PodSandboxStatus: what a verbose answer has besides the status.

use std::collections::BTreeMap;

use serde_json::json;

use super::Sandbox;
use crate::app::App;
use crate::container::{self, State};

/// The `info` of a verbose status: one JSON object, as crictl shows it.
pub fn info(app: &App, sandbox: &Sandbox) -> BTreeMap<String, String> {
    let record = sandbox.record().clone();
    let netns = record.spec.has_network_namespace().then(|| app.netns_path(&record.id));
    let namespaces = netns.iter().map(|path| json!({"type": "network", "path": path}));
    let info = json!({
        "pid": pid(app, sandbox),
        "config": record.spec,
        "overhead": record.overhead.as_ref().or(record.spec.overhead.as_ref()),
        "resources": record.resources.as_ref().or(record.spec.resources.as_ref()),
        "network": record.network,
        "cniResult": record.cni,
        "problem": record.problem,
        "cgroup": app.pod_cgroup(&record),
        "timeline": record.timeline,
        "runtimeSpec": {
            "ociVersion": container::oci::VERSION,
            "hostname": record.spec.hostname,
            "linux": {"namespaces": namespaces.collect::<Vec<_>>(), "cgroupsPath": app.pod_cgroup(&record)},
        },
    });
    BTreeMap::from([("info".into(), info.to_string())])
}

/// A process that stands for the sandbox: its init, else the init of its oldest running container, else 0.
pub fn pid(app: &App, sandbox: &Sandbox) -> u32 {
    let init = sandbox.record().init_pid;
    if init != 0 {
        return init;
    }
    let containers = app.store.containers_of(&sandbox.id);
    let running = containers.iter().filter_map(|container| {
        let record = container.record();
        (record.state == State::Running).then_some((record.created_at, record.pid))
    });
    running.min().map_or(0, |(_, pid)| pid)
}
