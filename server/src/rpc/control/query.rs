//! Calls that only tell: lists, inspect, statistics, doctor.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::control as v1;
use serde_json::json;

use super::{Sink, find, send};
use crate::app::App;
use crate::blocking;
use crate::container::list::{Filter, list};
use crate::container::{self, Container, State};
use crate::doctor;
use crate::error::Result;
use crate::network::{Counters, PortMapping, Protocol};
use crate::sandbox::{self, Sandbox};
use crate::shown;

/// How often statistics are sent to a client that follows.
const INTERVAL: Duration = Duration::from_secs(1);

/// The state of a container in one word.
fn state_name(record: &container::Record) -> &'static str {
    match record.state {
        State::Running if record.paused => "paused",
        State::Creating | State::Created if record.restarts > 0 => "restarting",
        State::Creating | State::Created => "created",
        State::Running => "running",
        State::Exited => "exited",
    }
}

pub(super) fn containers(app: &App, all: bool) -> v1::ListContainersResponse {
    let mut found = list(app, &Filter::default(), true);
    if !all {
        found.retain(|container| matches!(container.record().state, State::Running));
    }
    let mut containers: Vec<_> = found.iter().map(|container| summary(app, container)).collect();
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    v1::ListContainersResponse { containers }
}

fn summary(app: &App, container: &Container) -> v1::ContainerSummary {
    let record = container.record().clone();
    let pod =
        app.store.sandbox(record.sandbox.as_str()).map(|sandbox| sandbox.record().clone()).ok();
    let words = |process: &proto::shim::Process| {
        process.args.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    };
    let name = pod.as_ref().map(|pod| pod.spec.name.clone());
    v1::ContainerSummary {
        id: record.id.to_string(),
        name: record.spec.name.clone(),
        pod_id: record.sandbox.to_string(),
        pod_name: name.as_ref().map(|name| name.name.clone()).unwrap_or_default(),
        pod_namespace: name.map(|name| name.namespace).unwrap_or_default(),
        image: shown_image(&record),
        image_id: record.image.id.clone(),
        state: state_name(&record).into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: record.finished_at,
        exit_code: record.exit_code,
        reason: record.reason.clone(),
        command: record.plan.process.as_ref().map(words).unwrap_or_default(),
        ports: pod
            .as_ref()
            .map(|pod| pod.spec.ports.iter().map(port).collect())
            .unwrap_or_default(),
        ip: pod.as_ref().map(ip).unwrap_or_default(),
        local: record.spec.local.is_some(),
        restarts: record.restarts,
        labels: record.spec.labels,
    }
}

fn shown_image(record: &container::Record) -> String {
    let written = &record.spec.user_image;
    if written.is_empty() { record.image.name.clone() } else { written.clone() }
}

fn ip(record: &sandbox::Record) -> String {
    record.addresses().first().map(|address| address.to_string()).unwrap_or_default()
}

fn ports(record: &sandbox::Record) -> Vec<serde_json::Value> {
    record.spec.ports.iter().map(|mapping| shown::port(&port(mapping))).collect()
}

fn port(mapping: &PortMapping) -> v1::PortMapping {
    v1::PortMapping {
        protocol: match mapping.protocol {
            Protocol::Tcp => v1::Protocol::Tcp,
            Protocol::Udp => v1::Protocol::Udp,
            Protocol::Sctp => v1::Protocol::Sctp,
        }
        .into(),
        container_port: mapping.container_port.into(),
        host_port: mapping.host_port.into(),
        host_ip: mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

pub(super) fn pods(app: &App, all: bool) -> v1::ListPodsResponse {
    let ready = if all { None } else { Some(true) };
    let filter = sandbox::list::Filter { ready, ..Default::default() };
    let found = sandbox::list::list(app, &filter, true);
    let mut pods: Vec<_> = found.iter().map(|sandbox| pod(app, sandbox)).collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    v1::ListPodsResponse { pods }
}

fn pod(app: &App, sandbox: &Sandbox) -> v1::PodSummary {
    let containers = app.store.containers_of(&sandbox.id).len();
    let record = sandbox.record();
    let name = &record.spec.name;
    v1::PodSummary {
        id: record.id.to_string(),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        attempt: name.attempt,
        state: if record.state == sandbox::State::Ready { "ready" } else { "notready" }.into(),
        created_at: record.created_at,
        ip: ip(&record),
        containers: u32::try_from(containers).unwrap_or(u32::MAX),
        local: record.spec.local,
        handler: record.spec.handler.clone(),
    }
}

/// Containers, pods and images by any of their names.
pub(super) fn inspect(app: &App, names: &[String]) -> Result<v1::InspectResponse> {
    let object = |name: &String| -> Result<String> {
        let missing = match find(app, name) {
            Ok(container) => return Ok(inspect_container(app, &container)),
            Err(error) => error,
        };
        if let Ok(sandbox) = app.store.sandbox(name) {
            return Ok(merge(json!({"kind": "pod"}), sandbox::status::info(app, &sandbox)));
        }
        crate::image::inspect(app, name)?.ok_or(missing)
    };
    Ok(v1::InspectResponse { objects: names.iter().map(object).collect::<Result<_>>()? })
}

fn inspect_container(app: &App, container: &Container) -> String {
    let record = container.record().clone();
    let pod = app.store.sandbox(record.sandbox.as_str()).ok();
    let network = pod.as_ref().map(|pod| pod.record().clone());
    let head = json!({
        "kind": "container",
        "id": record.id,
        "name": record.spec.name,
        "state": state_name(&record),
        "createdAt": shown::time(record.created_at),
        "startedAt": shown::time(record.started_at),
        "finishedAt": shown::time(record.finished_at),
        "restarts": record.restarts,
        "ip": network.as_ref().map(ip),
        "ports": network.map(|pod| ports(&pod)),
        "exitCode": record.exit_code,
        "reason": record.reason,
        "message": record.message,
        "user": record.user,
        "logPath": container::log::path(app, container),
    });
    let mut info = container::status::info(app, container);
    if let Some(pod) = pod {
        info.extend(
            sandbox::status::info(app, &pod).into_values().map(|value| ("pod".to_owned(), value)),
        );
    }
    merge(head, info)
}

/// Objects of verbose statuses, which are JSON texts, in one.
fn merge(head: serde_json::Value, info: impl IntoIterator<Item = (String, String)>) -> String {
    let serde_json::Value::Object(mut all) = head else { return head.to_string() };
    for (key, text) in info {
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        if let ("info", serde_json::Value::Object(fields)) = (key.as_str(), &value) {
            all.extend(fields.clone());
        } else {
            all.insert(key, value);
        }
    }
    serde_json::Value::Object(all).to_string()
}

pub(super) async fn stats(
    app: Arc<App>,
    request: v1::StatsRequest,
    sink: Sink<v1::StatsResponse>,
) -> Result<()> {
    loop {
        let containers = if request.containers.is_empty() {
            list(&app, &Filter { state: Some(State::Running), ..Default::default() }, true)
        } else {
            request.containers.iter().map(|name| find(&app, name)).collect::<Result<_>>()?
        };
        send(&sink, measure(&app, containers).await?).await?;
        if !request.follow {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn measure(app: &Arc<App>, containers: Vec<Arc<Container>>) -> Result<v1::StatsResponse> {
    let measured = container::stats::measure(app, containers).await?;
    let links = {
        let app = app.clone();
        blocking::run("count the traffic of pods", move || app.network.counters()).await?
    };
    Ok(v1::StatsResponse {
        stats: measured.iter().map(|measured| stat(app, measured, &links)).collect(),
    })
}

fn stat(
    app: &App,
    measured: &container::stats::Measured,
    links: &HashMap<String, Counters>,
) -> v1::ContainerStats {
    let record = measured.container.record().clone();
    let stats = measured.stats.clone().unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let link = app.store.sandbox(record.sandbox.as_str()).ok().and_then(|sandbox| {
        let link = sandbox.record().network.as_ref()?.link.clone();
        links.get(&link).copied()
    });
    let (block_read, block_written) = stats.block.unwrap_or_default();
    v1::ContainerStats {
        id: record.id.to_string(),
        name: record.spec.name,
        timestamp: measured.timestamp,
        cpu_usage: stats.cpu_usage.unwrap_or_default(),
        memory_working_set: memory.working_set,
        memory_limit: memory.limit.unwrap_or_default(),
        processes: stats.pids.unwrap_or_default(),
        network_received: link.map_or(0, |link| link.rx_bytes),
        network_sent: link.map_or(0, |link| link.tx_bytes),
        block_read,
        block_written,
    }
}

/// A disk that hangs is given up: whoever asks wants to hear of it.
const DOCTOR_DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn doctor(app: &Arc<App>) -> Result<v1::DoctorResponse> {
    let app = app.clone();
    let checks = blocking::within(DOCTOR_DEADLINE, "look at the node", move || {
        let paths = doctor::Paths {
            root: app.instance.root.clone(),
            state: app.instance.state.clone(),
            shim: crate::app::shim_path(&app.config)?,
        };
        let mut checks = doctor::check(&paths);
        checks.push(doctor::foreign(&app.network.foreign_drops()?));
        checks.push(doctor::cni(&app.config.network));
        checks.push(doctor::leaving(&app.network.cni.leaving()));
        Ok(checks)
    })
    .await?;
    Ok(v1::DoctorResponse { checks: checks.into_iter().map(v1::Check::from).collect() })
}

pub(super) async fn info(app: &Arc<App>) -> Result<v1::InfoResponse> {
    let network = app.podnet_message().await?;
    Ok(v1::InfoResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        build: String::new(),
        instance: app.instance.id.to_string(),
        root: app.instance.root.to_string_lossy().into_owned(),
        state: app.instance.state.to_string_lossy().into_owned(),
        pid: std::process::id(),
        cgroup_driver: "cgroupfs".into(),
        cgroup_version: if app.cgroups.unified { 2 } else { 1 },
        network: network.message,
    })
}
