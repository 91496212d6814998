//! What every call goes through: a span, a line in the log when it ends, counters, and a
//! net under panics. And the way to work that outlives the call that asked for it.
//!
//! `runtime` and `image` are the services of the CRI, `status` gives errors their codes,
//! `method` knows the calls by name.

mod batch;
mod call;
mod containers;
mod control;
mod events;
mod image;
mod images;
pub mod method;
mod node;
pub mod parse;
mod pods;
pub mod reply;
mod runtime;
mod status;
mod streaming;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use crate::app::App;
use crate::error::{Error, Result, chain, panic_text};
use call::{Call, WatchedBody};
pub use control::Local;
pub use image::Images;
use method::Methods;
pub use runtime::Runtime;

/// All calls of one daemon. As a layer it stands around the services.
#[derive(Debug, Clone)]
pub struct Calls {
    /// The calls by name, with their counters.
    pub methods: Arc<Methods>,
    /// Calls and detached work that are under way.
    pub under_way: TaskTracker,
    /// Cancelled when the daemon begins to stop: streams that never end by themselves end then.
    pub stopping: CancellationToken,
}

impl Calls {
    /// No call yet.
    #[expect(clippy::new_without_default, reason = "there is one, made on purpose")]
    pub fn new() -> Calls {
        Calls {
            methods: Arc::new(Methods::new()),
            under_way: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Does work in a task of its own and waits for it. Whoever waits may go, as the handler
    /// of a client that timed out does: the work goes on, in the same span, and its end is
    /// logged here, because nobody else will.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Error::Unavailable`] when the daemon ends before the work does.
    ///
    /// # Panics
    ///
    /// When the work does.
    pub async fn detach<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (done, waiting) = tokio::sync::oneshot::channel();
        let work = async move {
            let result = catch_panic(work).await;
            if let Err(unheard) = done.send(result) {
                log_unheard(&unheard);
            }
        };
        self.under_way.spawn(work.instrument(Span::current()));
        match waiting.await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::ending()),
        }
    }
}

/// What the services share.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The daemon's parts.
    pub app: Arc<App>,
    /// Where work goes that must outlive its client's patience.
    pub calls: Calls,
}

/// A result as tonic wants it.
fn answer<T>(result: Result<T>) -> std::result::Result<tonic::Response<T>, Status> {
    result.map(tonic::Response::new).map_err(Status::from)
}

/// The answer of a call that a later version serves.
fn not_served<T>(call: &str) -> std::result::Result<tonic::Response<T>, Status> {
    Err(Error::Unimplemented { what: call.to_owned() }.into())
}

/// The last word on work whose client has gone.
fn log_unheard<T>(result: &std::thread::Result<Result<T>>) {
    match result {
        Ok(Ok(_)) => tracing::info!("done, after its client went"),
        Ok(Err(error)) => tracing::warn!(error = chain(error), "failed, after its client went"),
        Err(panic) => tracing::error!(panic = panic_text(&**panic), "broke, after its client went"),
    }
}

impl<S> Layer<S> for Calls {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, calls: self.clone() }
    }
}

/// A service whose calls are watched.
#[derive(Debug, Clone)]
pub struct Watched<S> {
    inner: S,
    calls: Calls,
}

type Answer = http::Response<Body>;

impl<S> Service<http::Request<Body>> for Watched<S>
where
    S: Service<http::Request<Body>, Response = Answer, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.calls.methods.find(request.uri().path());
        let span = span(method.name(), request.headers());
        let call = Call::begin(method, span.clone(), self.calls.under_way.token());
        let answer = span.in_scope(|| self.inner.call(request));
        let watched = async move {
            let answer = match catch_panic(answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(never)) => match never {},
                Err(panic) => panicked(&*panic).into_http(),
            };
            Ok(watch_answer(answer, call))
        };
        Box::pin(watched.instrument(span))
    }
}

/// The span of one call. Handlers record the ids that they learn. Its level is error so
/// that it is there however little is logged.
fn span(method: &'static str, headers: &http::HeaderMap) -> Span {
    use tracing::field::Empty;
    let span = tracing::error_span!(
        "rpc",
        method,
        sandbox = Empty,
        container = Empty,
        image = Empty,
        trace = Empty
    );
    // W3C trace context: version, trace id, parent, flags.
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    if let Some(trace) = traceparent.and_then(|text| text.split('-').nth(1)) {
        span.record("trace", trace);
    }
    span
}

/// Ends the call now, when its status is there already, or with the last of its body.
fn watch_answer(answer: Answer, mut call: Call) -> Answer {
    let status = match answer.extensions().get::<Status>() {
        Some(status) => Some(status.clone()),
        None => Status::from_header_map(answer.headers()),
    };
    match status {
        Some(status) => {
            call.end(&status);
            answer
        }
        None => answer.map(|body| Body::new(WatchedBody::new(body, call))),
    }
}

/// Waits for a future; a panic in it becomes a value.
async fn catch_panic<F: Future>(future: F) -> std::thread::Result<F::Output> {
    let mut future = pin!(future);
    // Unwind safe: after a panic nobody polls the future again.
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// The status of a call that broke. Where it broke is in the log, by the panic hook.
fn panicked(panic: &(dyn Any + Send)) -> Status {
    Status::internal(format!("berth has a bug: {}; its log says where", panic_text(panic)))
}
