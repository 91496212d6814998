//! berth's own service: one call, one line.

mod attach;
mod change;
mod exec;
mod forward;
mod images;
mod logs;
mod query;
mod run;
mod session;

use std::sync::Arc;

use proto::control as v1;
use proto::control::control_server::Control;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Backend, answer};
use crate::app::App;
use crate::container::Container;
use crate::error::{Error, Result};

pub(super) type Answer<T> = std::result::Result<Response<T>, Status>;

/// Messages that may wait for a slow client before whoever makes them waits too.
const AHEAD: usize = 8;

/// The service.
#[derive(Debug, Clone)]
pub struct Local(pub Backend);

/// Where the messages of a streaming answer go.
pub(super) type Sink<T> = mpsc::Sender<std::result::Result<T, Status>>;

/// A streaming answer, made by a task of its own that ends with the client.
pub(super) fn stream<T, F, W>(backend: &Backend, work: F) -> Answer<BoxStream<T>>
where
    T: Send + 'static,
    F: FnOnce(Sink<T>) -> W,
    W: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    let work = work(sender.clone());
    let stopping = backend.calls.stopping.clone();
    backend.calls.under_way.spawn(async move {
        let ended = tokio::select! {
            // A client that has gone needs nothing more; a daemon that ends keeps nobody waiting.
            () = sender.closed() => Ok(()),
            () = stopping.cancelled() => Err(Error::ending()),
            ended = work => ended,
        };
        if let Err(error) = ended {
            // If nobody listens any more, the log has it all the same.
            sender.send(Err(error.into())).await.ok();
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

/// Sends one message; a client that has gone ends the work.
pub(super) async fn send<T>(sink: &Sink<T>, message: T) -> Result<()> {
    let gone = |_| Error::Unavailable { what: "the client".into(), problem: "it has gone".into() };
    sink.send(Ok(message)).await.map_err(gone)
}

/// A container by its id, a beginning of it that is no other's, or its name.
fn find(app: &App, name: &str) -> Result<Arc<Container>> {
    let missing = match app.store.container(name) {
        Err(error @ Error::NotFound { .. }) => error,
        found => return found,
    };
    let mut named = app.store.containers();
    named.retain(|container| container.record().spec.name == name);
    match (named.pop(), named.is_empty()) {
        (Some(container), true) => Ok(container),
        (Some(_), false) => Err(Error::invalid(
            "container",
            format!("several containers are called {name}; give an id"),
        )),
        (None, _) => Err(missing),
    }
}

#[tonic::async_trait]
impl Control for Local {
    type RunStream = BoxStream<v1::RunResponse>;
    type ExecStream = BoxStream<v1::ExecResponse>;
    type LogsStream = BoxStream<v1::LogsResponse>;
    type StatsStream = BoxStream<v1::StatsResponse>;
    type PullStream = BoxStream<v1::PullResponse>;
    type ExportImageStream = BoxStream<v1::ExportImageResponse>;
    type AttachStream = BoxStream<v1::AttachResponse>;
    type PortForwardStream = BoxStream<v1::PortForwardResponse>;

    async fn run(&self, request: Request<Streaming<v1::RunRequest>>) -> Answer<Self::RunStream> {
        let backend = self.0.clone();
        stream(&self.0, |sink| run::run(backend, request.into_inner(), sink))
    }

    async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Answer<Self::ExecStream> {
        let app = self.0.app.clone();
        stream(&self.0, |sink| exec::exec(app, request.into_inner(), sink))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        let app = self.0.app.clone();
        stream(&self.0, |sink| logs::logs(app, request.into_inner(), sink))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        answer(Ok(query::containers(&self.0.app, request.get_ref().all)))
    }

    async fn list_pods(
        &self,
        request: Request<v1::ListPodsRequest>,
    ) -> Answer<v1::ListPodsResponse> {
        answer(Ok(query::pods(&self.0.app, request.get_ref().all)))
    }

    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Answer<v1::InspectResponse> {
        answer(query::inspect(&self.0.app, &request.get_ref().names))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Answer<v1::StopResponse> {
        answer(change::stop(&self.0, request.into_inner()).await)
    }

    async fn kill(&self, request: Request<v1::KillRequest>) -> Answer<v1::KillResponse> {
        answer(change::kill(&self.0, request.into_inner()).await)
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Answer<v1::RemoveResponse> {
        answer(change::remove(&self.0, request.into_inner()).await)
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Answer<v1::PauseResponse> {
        let paused = change::set_paused(&self.0, &request.get_ref().container, true).await;
        answer(paused.map(|id| v1::PauseResponse { id }))
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Answer<v1::ResumeResponse> {
        let resumed = change::set_paused(&self.0, &request.get_ref().container, false).await;
        answer(resumed.map(|id| v1::ResumeResponse { id }))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Answer<Self::StatsStream> {
        let app = self.0.app.clone();
        stream(&self.0, |sink| query::stats(app, request.into_inner(), sink))
    }

    async fn pull(&self, request: Request<v1::PullRequest>) -> Answer<Self::PullStream> {
        let backend = self.0.clone();
        stream(&self.0, |sink| images::pull(backend, request.into_inner(), sink))
    }

    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        answer(Ok(images::list(&self.0.app)))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        answer(images::remove(&self.0, request.into_inner()).await)
    }

    async fn import_image(
        &self,
        request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Answer<v1::ImportImageResponse> {
        answer(images::import(&self.0, request.into_inner()).await)
    }

    async fn export_image(
        &self,
        request: Request<v1::ExportImageRequest>,
    ) -> Answer<Self::ExportImageStream> {
        let app = self.0.app.clone();
        stream(&self.0, |sink| images::export(app, request.into_inner(), sink))
    }

    async fn prune_images(
        &self,
        request: Request<v1::PruneImagesRequest>,
    ) -> Answer<v1::PruneImagesResponse> {
        answer(images::prune(&self.0, request.get_ref().all).await)
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Answer<v1::DoctorResponse> {
        answer(query::doctor(&self.0.app).await)
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Answer<v1::InfoResponse> {
        answer(query::info(&self.0.app).await)
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Answer<Self::AttachStream> {
        let app = self.0.app.clone();
        stream(&self.0, |sink| attach::attach(app, request.into_inner(), sink))
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardRequest>>,
    ) -> Answer<Self::PortForwardStream> {
        let app = self.0.app.clone();
        stream(&self.0, |sink| forward::forward(app, request.into_inner(), sink))
    }
}
