//! Calls about images.

use std::sync::Arc;

use proto::control as v1;
use tonic::Streaming;

use super::super::Backend;
use super::Sink;
use crate::app::App;
use crate::error::{Error, Result};

pub(super) async fn ensure(
    backend: &Backend,
    spec: &v1::RunSpec,
    sink: &Sink<v1::RunResponse>,
) -> Result<()> {
    let _ = (backend, spec, sink);
    Ok(())
}

pub(super) async fn pull(
    backend: Backend,
    request: v1::PullRequest,
    sink: Sink<v1::PullResponse>,
) -> Result<()> {
    let _ = (backend, request, sink);
    Err(Error::Unimplemented { what: "Pull".into() })
}

pub(super) fn list(app: &App) -> v1::ListImagesResponse {
    let _ = app;
    v1::ListImagesResponse::default()
}

pub(super) async fn remove(
    backend: &Backend,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse> {
    let _ = (backend, request);
    Err(Error::Unimplemented { what: "RemoveImage".into() })
}

pub(super) async fn import(
    backend: &Backend,
    requests: Streaming<v1::ImportImageRequest>,
) -> Result<v1::ImportImageResponse> {
    let _ = (backend, requests);
    Err(Error::Unimplemented { what: "ImportImage".into() })
}

pub(super) async fn export(
    app: Arc<App>,
    request: v1::ExportImageRequest,
    sink: Sink<v1::ExportImageResponse>,
) -> Result<()> {
    let _ = (app, request, sink);
    Err(Error::Unimplemented { what: "ExportImage".into() })
}

pub(super) async fn prune(backend: &Backend, all: bool) -> Result<v1::PruneImagesResponse> {
    let _ = (backend, all);
    Err(Error::Unimplemented { what: "PruneImages".into() })
}
