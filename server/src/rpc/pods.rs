//! Calls of the CRI about sandboxes.

use std::sync::Arc;

use proto::cri as v1;
use tracing::Span;

use super::parse::sandbox as parse;
use super::{Backend, reply};
use crate::app::now;
use crate::blocking;
use crate::error::{Error, Result};
use crate::sandbox::{self, Sandbox};

pub(super) async fn run(
    backend: &Backend,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse> {
    let spec = parse::spec(request, &backend.app.config.runtime)?;
    let app = backend.app.clone();
    let id = backend.calls.detach(async move { sandbox::run::run(&app, spec).await }).await?;
    Span::current().record("sandbox", id.as_str());
    Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}

/// A sandbox that CRI clients may know of.
pub(super) fn find(backend: &Backend, id: &str) -> Result<Arc<Sandbox>> {
    let sandbox = backend.app.store.sandbox(id)?;
    if sandbox.record().spec.local {
        return Err(Error::not_found("sandbox", id));
    }
    Span::current().record("sandbox", sandbox.id.as_str());
    Ok(sandbox)
}

/// For stop and remove: what is gone is gone.
fn find_or_gone(backend: &Backend, id: &str) -> Result<Option<Arc<Sandbox>>> {
    match find(backend, id) {
        Ok(sandbox) => Ok(Some(sandbox)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn stop(
    backend: &Backend,
    request: v1::StopPodSandboxRequest,
) -> Result<v1::StopPodSandboxResponse> {
    if let Some(sandbox) = find_or_gone(backend, &request.pod_sandbox_id)? {
        let app = backend.app.clone();
        backend.calls.detach(async move { sandbox::stop::stop(&app, &sandbox).await }).await?;
    }
    Ok(v1::StopPodSandboxResponse {})
}

pub(super) async fn remove(
    backend: &Backend,
    request: v1::RemovePodSandboxRequest,
) -> Result<v1::RemovePodSandboxResponse> {
    if let Some(sandbox) = find_or_gone(backend, &request.pod_sandbox_id)? {
        let app = backend.app.clone();
        backend.calls.detach(async move { sandbox::remove::remove(&app, &sandbox).await }).await?;
    }
    Ok(v1::RemovePodSandboxResponse {})
}

pub(super) async fn status(
    backend: &Backend,
    request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse> {
    let sandbox = find(backend, &request.pod_sandbox_id)?;
    let app = &backend.app;
    let pod = app.store.pod_at_once(&sandbox);
    let timestamp = now();
    Ok(v1::PodSandboxStatusResponse {
        status: Some(reply::pod_status(&pod.sandbox)),
        info: if request.verbose {
            sandbox::status::info(app, &sandbox)
        } else {
            Default::default()
        },
        containers_statuses: reply::container_statuses(app, &pod),
        timestamp,
    })
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn list(
    backend: &Backend,
    request: v1::ListPodSandboxRequest,
) -> Result<v1::ListPodSandboxResponse> {
    let found = sandbox::list::list(&backend.app, &parse::filter(request.filter), false);
    Ok(v1::ListPodSandboxResponse {
        items: found.iter().map(|sandbox| reply::pod(sandbox)).collect(),
    })
}

pub(super) async fn stats(
    backend: &Backend,
    request: v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse> {
    let sandbox = find(backend, &request.pod_sandbox_id)?;
    let app = &backend.app;
    let measured = sandbox::stats::measure_one(app, sandbox).await?;
    Ok(v1::PodSandboxStatsResponse { stats: measured.map(|pod| reply::pod_stats(app, &pod)) })
}

pub(super) async fn list_stats(
    backend: &Backend,
    request: v1::ListPodSandboxStatsRequest,
) -> Result<v1::ListPodSandboxStatsResponse> {
    let filter = request.filter.unwrap_or_default();
    let filter =
        sandbox::list::Filter { id: filter.id, ready: Some(true), labels: filter.label_selector };
    let app = &backend.app;
    let found = sandbox::list::list(app, &filter, false);
    let measured = sandbox::stats::measure(app, found).await?;
    let stats = measured.iter().map(|pod| reply::pod_stats(app, pod)).collect();
    Ok(v1::ListPodSandboxStatsResponse { stats })
}

/// The kubelet has set the limits of the pod's cgroup, which is its own, before it says so. They are kept for those who look.
pub(super) async fn update_resources(
    backend: &Backend,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse> {
    let sandbox = find(backend, &request.pod_sandbox_id)?;
    let json = |resources: Option<v1::LinuxContainerResources>| {
        resources.as_ref().map(reply::resources_json)
    };
    let (overhead, resources) = (json(request.overhead), json(request.resources));
    let app = backend.app.clone();
    let update = move || {
        sandbox.change(|record| {
            record.overhead = overhead.or(record.overhead.take());
            record.resources = resources.or(record.resources.take());
        });
        app.save_sandbox(&sandbox)
    };
    backend.calls.detach(blocking::run("write the record", update)).await?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
