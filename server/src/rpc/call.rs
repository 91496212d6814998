//! One call from its beginning to the last byte of its answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Span;

use super::method::{Kind, Method};
use super::{panicked, status};

/// A call that is under way. Ends once: by [`Call::end`], or abandoned when it is dropped
/// before.
#[derive(Debug)]
pub(super) struct Call {
    method: &'static Method,
    begun: Instant,
    span: Span,
    ended: bool,
    _under_way: TaskTrackerToken,
}

impl Call {
    pub(super) fn begin(method: &'static Method, span: Span, under_way: TaskTrackerToken) -> Call {
        method.begun.fetch_add(1, Relaxed);
        Call { method, begun: Instant::now(), span, ended: false, _under_way: under_way }
    }

    /// Counts and logs the end. Only the first one matters.
    pub(super) fn end(&mut self, status: &Status) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let duration = self.begun.elapsed();
        self.method.record(duration);
        let _entered = self.span.enter();
        if status.code() == Code::Ok {
            match self.method.kind {
                Kind::Change => tracing::info!(?duration, "done"),
                Kind::Read => tracing::debug!(?duration, "done"),
            }
            return;
        }
        self.method.failed.fetch_add(1, Relaxed);
        let code = status.code();
        let error = status::whole_text(status);
        if status::is_grave(status) {
            tracing::error!(?duration, ?code, error, "failed");
        } else if is_ordinary(self.method.kind, code) {
            tracing::debug!(?duration, ?code, error, "failed");
        } else {
            tracing::warn!(?duration, ?code, error, "failed");
        }
    }
}

/// Failures that happen on a healthy node all the time: a kubelet asks for the status of
/// what it has just seen go, and tries calls that it can do without.
fn is_ordinary(kind: Kind, code: Code) -> bool {
    code == Code::Unimplemented || kind == Kind::Read && code == Code::NotFound
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let duration = self.begun.elapsed();
        self.method.record(duration);
        self.method.abandoned.fetch_add(1, Relaxed);
        let _entered = self.span.enter();
        match self.method.kind {
            Kind::Change => tracing::info!(?duration, "its client went"),
            Kind::Read => tracing::debug!(?duration, "its client went"),
        }
    }
}

/// The body of an answer; the call ends with it.
#[derive(Debug)]
pub(super) struct WatchedBody {
    body: Body,
    call: Call,
}

impl WatchedBody {
    pub(super) fn new(body: Body, call: Call) -> WatchedBody {
        WatchedBody { body, call }
    }
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.call.ended {
            return Poll::Ready(None);
        }
        let span = this.call.span.clone();
        let body = &mut this.body;
        // Unwind safe: after a panic the call has ended and the body is never polled again.
        let polled =
            span.in_scope(|| catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(None)) => {
                this.call.end(&Status::ok(""));
                Poll::Ready(None)
            }
            Ok(Poll::Ready(Some(Ok(frame)))) => {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    this.call.end(&status);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(Poll::Ready(Some(Err(status)))) => {
                this.call.end(&status);
                Poll::Ready(Some(Err(status)))
            }
            Err(panic) => {
                let status = panicked(&*panic);
                this.call.end(&status);
                // The status of a stream travels in its trailers.
                let mut trailers = http::HeaderMap::new();
                Poll::Ready(Some(
                    status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
                ))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.call.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
