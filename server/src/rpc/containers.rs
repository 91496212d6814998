//! Calls of the CRI about containers.

use std::sync::Arc;
use std::time::Duration;

use proto::cri as v1;
use tracing::Span;

use super::parse::container as parse;
use super::{Backend, pods, reply};
use crate::container::list::{Filter, list as select};
use crate::container::spec::{ContainerSpec, PidTarget, Profile};
use crate::container::{self, Container, State};
use crate::error::{Error, Result};
use crate::sandbox::Sandbox;

pub(super) async fn create(
    backend: &Backend,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse> {
    let sandbox = pods::find(backend, &request.pod_sandbox_id)?;
    let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    let mut spec = parse::spec(config)?;
    check_against(backend, &sandbox, &mut spec)?;
    let app = backend.app.clone();
    let made = backend
        .calls
        .detach(async move { container::create::create(&app, &sandbox, spec).await })
        .await?;
    // Whoever has gone by now never sees it: then it waits for the same request to come again.
    container::create::publish(&backend.app, &made);
    Span::current().record("container", made.id.as_str());
    Ok(v1::CreateContainerResponse { container_id: made.id.to_string() })
}

/// What can be judged only with the sandbox and the node in view.
fn check_against(backend: &Backend, sandbox: &Sandbox, spec: &mut ContainerSpec) -> Result<()> {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let record = sandbox.record().clone();
    if spec.security.privileged && !record.spec.privileged {
        return Err(Error::invalid(field("privileged"), "needs a privileged sandbox"));
    }
    if matches!(spec.security.apparmor, Profile::Localhost(_)) && !backend.app.node.apparmor {
        return Err(Error::invalid(
            field("apparmor"),
            "names a profile, but this node has no AppArmor",
        ));
    }
    if let PidTarget::Target(name) = &spec.security.pid {
        let target = backend.app.store.container(name)?;
        let runs = target.record().state == State::Running;
        if target.record().sandbox != record.id || !runs {
            return Err(Error::invalid(
                field("namespace_options.target_id"),
                "must name a running container of the same sandbox",
            ));
        }
        spec.security.pid = PidTarget::Target(target.id.to_string());
    }
    Ok(())
}

/// A container that CRI clients may know of.
pub(super) fn find(backend: &Backend, id: &str) -> Result<Arc<Container>> {
    let container = backend.app.store.container(id)?;
    let (local, delivered) = {
        let record = container.record();
        (record.spec.local.is_some(), record.delivered)
    };
    // Whoever knows all of an id has had the answer, even when the daemon that gave it was killed right then.
    let known = delivered || id == container.id.as_str();
    if local || !known {
        return Err(Error::not_found("container", id));
    }
    container::create::publish(&backend.app, &container);
    Span::current().record("container", container.id.as_str());
    Ok(container)
}

/// For stop and remove: what is gone is gone.
fn find_or_gone(backend: &Backend, id: &str) -> Result<Option<Arc<Container>>> {
    match find(backend, id) {
        Ok(container) => Ok(Some(container)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn start(
    backend: &Backend,
    request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse> {
    let (app, container) = (backend.app.clone(), find(backend, &request.container_id)?);
    backend.calls.detach(async move { container::start::start(&app, &container).await }).await?;
    Ok(v1::StartContainerResponse {})
}

pub(super) async fn stop(
    backend: &Backend,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse> {
    if let Some(container) = find_or_gone(backend, &request.container_id)? {
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let app = backend.app.clone();
        backend
            .calls
            .detach(async move { container::stop::stop(&app, &container, grace).await })
            .await?;
    }
    Ok(v1::StopContainerResponse {})
}

pub(super) async fn remove(
    backend: &Backend,
    request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse> {
    if let Some(container) = find_or_gone(backend, &request.container_id)? {
        let app = backend.app.clone();
        backend
            .calls
            .detach(async move { container::remove::remove(&app, &container).await })
            .await?;
    }
    Ok(v1::RemoveContainerResponse {})
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn list(
    backend: &Backend,
    request: v1::ListContainersRequest,
) -> Result<v1::ListContainersResponse> {
    let found = select(&backend.app, &parse::filter(request.filter)?, false);
    Ok(v1::ListContainersResponse {
        containers: found.iter().map(|container| reply::container(container)).collect(),
    })
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn status(
    backend: &Backend,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse> {
    let container = find(backend, &request.container_id)?;
    let app = &backend.app;
    let sandbox = app.sandbox_of(&container)?.record().clone();
    let record = container.record().clone();
    Ok(v1::ContainerStatusResponse {
        status: Some(reply::container_status(app, &sandbox, &record)),
        info: if request.verbose {
            container::status::info(app, &container)
        } else {
            Default::default()
        },
    })
}

pub(super) async fn update(
    backend: &Backend,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse> {
    let container = find(backend, &request.container_id)?;
    if let Some(linux) = request.linux {
        let (wanted, _) = parse::resources(linux)?;
        let app = backend.app.clone();
        backend
            .calls
            .detach(async move { container::update::update(&app, &container, wanted).await })
            .await?;
    }
    Ok(v1::UpdateContainerResourcesResponse {})
}

pub(super) async fn reopen_log(
    backend: &Backend,
    request: v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse> {
    let (app, container) = (backend.app.clone(), find(backend, &request.container_id)?);
    backend.calls.detach(async move { container::log::reopen(&app, &container).await }).await?;
    Ok(v1::ReopenContainerLogResponse {})
}

/// The words of a command.
pub(super) fn command(words: Vec<String>) -> Result<Vec<Vec<u8>>> {
    if words.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd", "must name a command"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Error::invalid("cmd", "must not contain NUL"));
    }
    Ok(words.into_iter().map(String::into_bytes).collect())
}

pub(super) async fn exec_sync(
    backend: &Backend,
    request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse> {
    let container = find(backend, &request.container_id)?;
    let args = command(request.cmd)?;
    let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    let app = backend.app.clone();
    // A command must be killed at its time-out even if nobody waits any more.
    let output = backend
        .calls
        .detach(async move { container::exec::run(&app, &container, args, timeout).await })
        .await?;
    Ok(v1::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.code,
    })
}

pub(super) async fn stats(
    backend: &Backend,
    request: v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse> {
    let container = find(backend, &request.container_id)?;
    let measured = container::stats::measure(&backend.app, vec![container]).await?;
    let stats = measured.first().map(|measured| reply::container_stats(&backend.app, measured));
    Ok(v1::ContainerStatsResponse { stats })
}

pub(super) async fn list_stats(
    backend: &Backend,
    request: v1::ListContainerStatsRequest,
) -> Result<v1::ListContainerStatsResponse> {
    let filter = request.filter.unwrap_or_default();
    let filter = Filter {
        id: filter.id,
        sandbox: filter.pod_sandbox_id,
        state: Some(State::Running),
        labels: filter.label_selector,
    };
    let found = select(&backend.app, &filter, false);
    let measured = container::stats::measure(&backend.app, found).await?;
    let stats =
        measured.iter().map(|measured| reply::container_stats(&backend.app, measured)).collect();
    Ok(v1::ListContainerStatsResponse { stats })
}
