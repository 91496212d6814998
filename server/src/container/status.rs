//! ContainerStatus: what a verbose answer has besides the status.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Container, oci};
use crate::app::App;

/// The `info` of a verbose status: one JSON object, as crictl shows it.
pub fn info(app: &App, container: &Container) -> BTreeMap<String, String> {
    let record = container.record().clone();
    let info = json!({
        "sandboxID": record.sandbox,
        "pid": record.pid,
        "config": record.spec,
        "image": record.image,
        "restarts": record.restarts,
        "paused": record.paused,
        "timeline": record.timeline,
        "notGranted": record.cuts,
        "writableLayer": app.store.container_directory(&record.id).join("upper"),
        "runtimeSpec": oci::spec(&record.plan, &record.resources, app.cgroups.unified),
    });
    BTreeMap::from([("info".into(), info.to_string())])
}
