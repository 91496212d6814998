//! Tests of what every call goes through, with services that do one thing each.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use proto::cri as v1;
use tonic::Code;
use tower::ServiceExt;

use super::*;

const RUN: &str = "/runtime.v1.RuntimeService/RunPodSandbox";
const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";

/// What a closure that runs in a runtime of one thread logs, and what it returns.
fn logged<T>(future: impl Future<Output = T>) -> (T, String) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = Lines(lines.clone());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let output = tracing::subscriber::with_default(subscriber, || runtime.block_on(future));
    let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    (output, text)
}

#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One call of `path` that is answered by `answer`: its status and what was logged of it.
fn call<F>(path: &str, answer: F) -> (Code, String, String)
where
    F: Future<Output = Answer> + Send + 'static,
{
    let mut answer = Some(answer);
    let inner = tower::service_fn(move |_| {
        let answer = answer.take().unwrap();
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
    let (status, log) = logged(async move {
        let answer = Calls::new().layer(inner).oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        match Status::from_header_map(&parts.headers) {
            Some(status) => status,
            None => {
                let trailers = body.collect().await.unwrap().trailers().cloned();
                Status::from_header_map(&trailers.expect("trailers")).expect("a status")
            }
        }
    });
    // Durations differ.
    let log = log
        .lines()
        .map(|line| line.split(" duration=").next().unwrap().trim())
        .collect::<Vec<_>>()
        .join("\n");
    (status.code(), status.message().to_owned(), log)
}

fn trailers(status: &Status) -> http_body::Frame<Bytes> {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    http_body::Frame::trailers(trailers)
}

fn streamed(frames: Vec<std::result::Result<http_body::Frame<Bytes>, Status>>) -> Answer {
    http::Response::new(Body::new(StreamBody::new(tokio_stream::iter(frames))))
}

#[track_caller]
fn check_failure(path: &str, error: Error, code: Code, level: &str, name: &str) {
    let text = chain(&error);
    let (found, message, log) = call(path, async move { Status::from(error).into_http() });
    assert_eq!((found, message), (code, text));
    assert_eq!(log, format!("{level} rpc{{method=\"{name}\"}}: server::rpc::call: failed"));
}

#[test]
fn a_call_that_changes_something_is_one_line_at_info() {
    let (code, _, log) = call(RUN, async { streamed(vec![Ok(trailers(&Status::ok("")))]) });
    assert_eq!(
        (code, log.as_str()),
        (Code::Ok, "INFO rpc{method=\"RunPodSandbox\"}: server::rpc::call: done")
    );
}

#[test]
fn a_call_that_reads_is_one_line_at_debug() {
    let (_, _, log) = call(LIST, async { streamed(vec![Ok(trailers(&Status::ok("")))]) });
    assert_eq!(log, "DEBUG rpc{method=\"ListPodSandbox\"}: server::rpc::call: done");
}

#[test]
fn the_level_of_a_failure_says_who_must_act() {
    let missing = || Error::not_found("container", "c1");
    check_failure(RUN, missing(), Code::NotFound, "WARN", "RunPodSandbox");
    check_failure(STATUS, missing(), Code::NotFound, "DEBUG", "ContainerStatus");
    check_failure(
        STATUS,
        Error::invalid("id", "it is empty"),
        Code::InvalidArgument,
        "WARN",
        "ContainerStatus",
    );
    let unserved = Error::Unimplemented { what: "x".into() };
    check_failure(RUN, unserved, Code::Unimplemented, "DEBUG", "RunPodSandbox");
    let full = Error::Io {
        doing: "write the record".into(),
        source: std::io::Error::from_raw_os_error(28),
    };
    check_failure(RUN, full, Code::Unknown, "ERROR", "RunPodSandbox");
}

#[test]
fn the_line_of_a_failure_has_the_whole_chain_and_the_recorded_ids() {
    let (_, log) = logged(async {
        let inner = tower::service_fn(|_| async {
            Span::current().record("sandbox", "s1");
            let source = Box::new(std::io::Error::from_raw_os_error(2));
            Ok::<_, Infallible>(
                Status::from(Error::Failed { doing: "start the shim".into(), source }).into_http(),
            )
        });
        let request = http::Request::builder().uri(RUN).header("traceparent", "00-abc123-def-01");
        let request = request.body(Body::empty()).unwrap();
        drop(Calls::new().layer(inner).oneshot(request).await.unwrap());
    });
    assert!(
        log.starts_with(" WARN rpc{method=\"RunPodSandbox\" trace=\"abc123\" sandbox=\"s1\"}: "),
        "{log}"
    );
    assert!(
        log.contains(
            "code=Unknown error=\"start the shim: No such file or directory (os error 2)\""
        ),
        "{log}"
    );
}

#[test]
fn a_stream_ends_with_the_status_in_its_trailers() {
    let data = || Ok(http_body::Frame::data(Bytes::from_static(b"x")));
    let failed = Status::unavailable("the container went");
    let (code, _, log) =
        call(LIST, async move { streamed(vec![data(), data(), Ok(trailers(&failed))]) });
    assert_eq!(code, Code::Unavailable);
    assert_eq!(log, "WARN rpc{method=\"ListPodSandbox\"}: server::rpc::call: failed");
}

#[test]
fn a_panic_in_a_handler_is_an_answer() {
    let (code, message, log) = call(RUN, async { panic!("no such thing as {}", 7) });
    let expected = "berth has a bug: no such thing as 7; its log says where";
    assert_eq!((code, message.as_str()), (Code::Internal, expected));
    assert_eq!(log, "ERROR rpc{method=\"RunPodSandbox\"}: server::rpc::call: failed");
}

#[test]
fn a_panic_in_a_stream_is_an_answer() {
    let (code, _, log) = call(LIST, async {
        let frames = tokio_stream::iter([1, 2]);
        let frames = tokio_stream::StreamExt::map(frames, |n| {
            assert!(n < 2, "broken stream");
            Ok::<_, Status>(http_body::Frame::data(Bytes::from_static(b"x")))
        });
        http::Response::new(Body::new(StreamBody::new(frames)))
    });
    assert_eq!(code, Code::Internal);
    assert_eq!(log, "ERROR rpc{method=\"ListPodSandbox\"}: server::rpc::call: failed");
}

/// Begun, failed and abandoned calls after one call with this answer, or none.
#[track_caller]
fn check_counts(answer: Option<Status>, expected: [u64; 3]) {
    let (counts, _) = logged(async move {
        let calls = Calls::new();
        let inner = tower::service_fn(move |_| {
            let answer = answer.clone();
            async move {
                match answer {
                    Some(status) => Ok::<_, Infallible>(status.into_http()),
                    None => std::future::pending().await,
                }
            }
        });
        let request = http::Request::builder().uri(RUN).body(Body::empty()).unwrap();
        let call = calls.layer(inner).oneshot(request);
        tokio::select! { biased; _ = call => (), () = tokio::task::yield_now() => () }
        assert!(calls.under_way.is_empty());
        let method = calls.methods.find(RUN);
        let ended: u64 = method.latency.iter().map(|count| count.load(Relaxed)).sum();
        assert_eq!(ended, 1);
        [&method.begun, &method.failed, &method.abandoned].map(|count| count.load(Relaxed))
    });
    assert_eq!(counts, expected);
}

#[test]
fn calls_are_counted_by_how_they_end() {
    check_counts(Some(Status::ok("")), [1, 0, 0]);
    check_counts(Some(Status::unknown("x")), [1, 1, 0]);
    check_counts(None, [1, 0, 1]);
}

#[test]
fn detached_work_answers_whoever_waits() {
    let (results, log) = logged(async {
        let calls = Calls::new();
        let good = calls.detach(async { Ok(7) }).await;
        let bad = calls.detach(async { Err::<(), _>(Error::not_found("image", "x")) }).await;
        (good.unwrap(), bad.unwrap_err().to_string())
    });
    assert_eq!(results, (7, "image x does not exist".to_owned()));
    assert_eq!(log, "", "the call logs it");
}

#[test]
fn detached_work_outlives_its_client_and_says_how_it_ended() {
    let outcome = |result: fn() -> Result<()>| {
        let (_, log) = logged(async move {
            let calls = Calls::new();
            let (go, gone) = tokio::sync::oneshot::channel::<()>();
            let work = calls.detach(async move {
                gone.await.expect("told to go on");
                result()
            });
            // The client goes while the work waits.
            let span = tracing::info_span!("rpc", sandbox = "s1");
            tokio::select! { biased; _ = work.instrument(span) => unreachable!(), () = tokio::task::yield_now() => () }
            go.send(()).unwrap();
            calls.under_way.close();
            calls.under_way.wait().await;
        });
        log.trim().to_owned()
    };
    let line = |level: &str, text: &str| {
        format!("{level} rpc{{sandbox=\"s1\"}}: server::rpc: {text}, after its client went")
    };
    assert_eq!(outcome(|| Ok(())), line("INFO", "done"));
    let missing = line("WARN", "failed") + " error=\"image x does not exist\"";
    assert_eq!(outcome(|| Err(Error::not_found("image", "x"))), missing);
    assert_eq!(outcome(|| panic!("oh")), line("ERROR", "broke") + " panic=\"oh\"");
}

#[test]
fn a_panic_in_detached_work_is_the_callers() {
    let (code, message, _) = call(RUN, async {
        let done = Calls::new().detach(async { panic!("deep down") }).await;
        done.map_err(Status::from).map_or_else(Status::into_http, |()| streamed(vec![]))
    });
    assert_eq!(
        (code, message.as_str()),
        (Code::Internal, "berth has a bug: deep down; its log says where")
    );
}

#[test]
fn version_answers_what_kubelets_want() {
    let expected = v1::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "berth".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    };
    assert_eq!(super::runtime::version(), expected);
}

#[test]
fn what_is_not_served_says_so() {
    let status = super::not_served::<v1::AttachResponse>("Attach").unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.message(), "Attach is not served by this version of berth");
}
