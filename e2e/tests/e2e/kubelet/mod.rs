//! What a kubelet drives: static pods on a kubelet of Kubernetes, without an API server.

mod life;
mod logs;
mod probes;
mod streams;
mod survive;
mod volumes;

use anyhow::Result;
use e2e::Cx;
use e2e::image::{Compression, LayerBuilder, base};
use e2e::kubelet::program;
use e2e::registry::Registry;
use serde_json::{Value, json};

/// A container of the busybox image that runs a line of shell.
async fn busybox(name: &str, line: &str) -> Result<Value> {
    let image = Registry::shared()?.busybox().await?;
    Ok(json!({"name": name, "image": image, "command": ["sh", "-c", line]}))
}

/// An image with the program with which Kubernetes tests itself, above busybox.
async fn agnhost(cx: &Cx) -> Result<String> {
    let layer = LayerBuilder::new()
        .program("agnhost", std::fs::read(program("agnhost")?)?)
        .compression(Compression::None);
    cx.push("library/agnhost:latest", &base::busybox()?.layer(layer)?.build()).await
}

/// A shell that ends at SIGTERM as a good server does, and until then does nothing.
const SERVE: &str = "trap 'exit 0' TERM; sleep 100000 & wait";

/// Ids of the containers of a pod that run, and how often each was restarted.
fn lives(pod: &Value) -> Vec<(String, i64)> {
    let all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    all.map(|status| {
        let id = status["containerID"].as_str().unwrap_or_default().to_owned();
        (id, status["restartCount"].as_i64().unwrap_or(-1))
    })
    .collect()
}

/// Adds fields to a container, or to another object.
fn with(mut object: Value, fields: &Value) -> Value {
    if let (Some(object), Some(fields)) = (object.as_object_mut(), fields.as_object()) {
        object.extend(fields.clone());
    }
    object
}

/// Adds fields to the spec of a pod.
fn with_spec(mut pod: Value, fields: &Value) -> Value {
    pod["spec"] = with(pod["spec"].take(), fields);
    pod
}
