//! Programs as a daemon tells them, on pipes of ours.

use std::io::Read;

use rustix::pipe::{PipeFlags, pipe, pipe_with};

use super::*;

fn started() -> Told {
    Told::Started(Started { container_id: "3f2a".into(), name: "web".into(), ..Default::default() })
}

fn exited(code: i32) -> Told {
    Told::Exited(Exited { code, reason: String::new() })
}

struct Ended {
    outcome: Result<String, (u8, String)>,
    forwarded: Vec<u32>,
    stdout: String,
    stderr: String,
}

fn code(outcome: Outcome) -> Result<String, (u8, String)> {
    outcome.map(|code| format!("{code:?}")).map_err(|failure| (failure.code, failure.text))
}

fn exit(code: u8) -> Result<String, (u8, String)> {
    Ok(format!("{:?}", ExitCode::from(code)))
}

fn read(pipe: impl Into<File>) -> String {
    let mut text = Vec::new();
    pipe.into().read_to_end(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

async fn told(
    messages: impl Stream<Item = Result<Told, Status>> + Unpin,
    signals: impl Stream<Item = u32> + Unpin,
    until: Until,
) -> Ended {
    let (stdout, our_stdout) = pipe().unwrap();
    let (stderr, our_stderr) = pipe().unwrap();
    let output = Output::new(our_stdout.into(), our_stderr.into());
    let mut forwarded = Vec::new();
    let ask = |ask| match ask {
        Ask::Signal(number) => forwarded.push(number),
        other @ (Ask::Stdin(_) | Ask::StdinClosed | Ask::Resize(_)) => {
            panic!("{other:?} without input")
        }
    };
    let outcome = follow(messages, signals, ask, &output, wanted(until)).await;
    drop(output);
    Ended { outcome: code(outcome), forwarded, stdout: read(stdout), stderr: read(stderr) }
}

fn script(messages: Vec<Told>) -> impl Stream<Item = Result<Told, Status>> + Unpin {
    tokio_stream::iter(messages.into_iter().map(Ok))
}

fn wanted(until: Until) -> Wanted {
    Wanted { until, proxy: true, keys: None }
}

fn no_signals() -> impl Stream<Item = u32> + Unpin {
    tokio_stream::pending()
}

#[tokio::test]
async fn output_goes_to_its_descriptor_and_the_code_is_ours() {
    let messages = vec![
        started(),
        Told::Stdout(b"out ".to_vec()),
        Told::Stderr(b"err".to_vec()),
        Told::Unknown,
        Told::Stdout(b"more".to_vec()),
        exited(3),
    ];
    let ended = told(script(messages), no_signals(), Until::Exit).await;
    assert_eq!(ended.outcome, exit(3));
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out more", "err"));
}

#[tokio::test]
async fn detached_it_ends_with_the_start() {
    let ended = told(script(vec![started()]), no_signals(), Until::StartWithId).await;
    assert_eq!((ended.outcome, ended.stdout.as_str()), (exit(0), "3f2a\n"));
    let ended = told(script(vec![started()]), no_signals(), Until::Start).await;
    assert_eq!((ended.outcome, ended.stdout.as_str()), (exit(0), ""));
}

#[tokio::test]
async fn the_daemons_refusal_is_the_failure() {
    let refusal = tokio_stream::iter([Err(Status::not_found("image x does not exist"))]);
    let ended = told(refusal, no_signals(), Until::Exit).await;
    assert_eq!(ended.outcome, Err((1, "image x does not exist".into())));
    let later = [Ok(started()), Err(Status::unavailable("berth: it is ending"))];
    let ended = told(tokio_stream::iter(later), no_signals(), Until::Exit).await;
    let text = "berth: it is ending; what runs in container web may go on";
    assert_eq!(ended.outcome, Err((125, text.into())));
}

#[tokio::test]
async fn a_daemon_that_ends_early_is_told() {
    let ended = told(script(vec![started()]), no_signals(), Until::Exit).await;
    let (code, text) = ended.outcome.unwrap_err();
    assert_eq!(code, 125);
    assert!(text.contains("in container web goes on"), "{text}");
    let ended = told(script(vec![]), no_signals(), Until::StartWithId).await;
    assert!(ended.outcome.unwrap_err().1.contains("without an answer"));
}

#[tokio::test]
async fn signals_are_passed_on_and_the_third_request_to_end_is_for_us() {
    let messages = script(vec![started()]).chain(tokio_stream::pending());
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    // Whether a message or a signal is taken first is a matter of chance: begin with a start that is certain.
    let messages = messages.map(move |message| {
        for number in [2, 10, 15, 1, 2] {
            sender.send(number).unwrap();
        }
        message
    });
    let signals = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    let ended = told(messages, signals, Until::Exit).await;
    assert_eq!(ended.forwarded, [2, 10, 15, 1]);
    let (code, text) = ended.outcome.unwrap_err();
    assert_eq!(code, 130);
    assert!(text.contains("in container web may go on"), "{text}");
}

#[tokio::test]
async fn whoever_passes_no_signals_on_is_ended_by_the_first() {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let messages = script(vec![started()]).chain(tokio_stream::pending()).map(move |message| {
        sender.send(2).unwrap();
        message
    });
    let signals = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    let (_reader, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let output = Output::new(File::from(stdout.try_clone().unwrap()), File::from(stdout));
    let wanted = Wanted { proxy: false, ..wanted(Until::Exit) };
    let outcome = follow(messages, signals, |ask| panic!("{ask:?}"), &output, wanted).await;
    assert_eq!(code(outcome).unwrap_err().0, 130);
}

#[tokio::test]
async fn before_the_start_a_signal_ends_us() {
    let ended = told(tokio_stream::pending(), tokio_stream::iter([15]), Until::Exit).await;
    assert_eq!(ended.outcome, Err((143, String::new())));
    assert!(ended.forwarded.is_empty());
}

#[tokio::test]
async fn a_reader_that_went_away_ends_us_quietly() {
    let (gone, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    drop(gone);
    let output = Output::new(File::from(stdout.try_clone().unwrap()), File::from(stdout));
    let messages = vec![started(), Told::Stdout(b"x".to_vec()), exited(0)];
    let outcome =
        follow(script(messages), no_signals(), |_| (), &output, wanted(Until::Exit)).await;
    assert_eq!(code(outcome), Err((141, String::new())));
}

#[tokio::test]
async fn a_slow_reader_keeps_the_daemon_waiting() {
    let (reader, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let output = Output::new(File::from(stdout.try_clone().unwrap()), File::from(stdout));
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let following = async move {
        code(follow(messages, no_signals(), |_| (), &output, wanted(Until::Exit)).await)
    };
    let chunk = || Ok(Told::Stdout(vec![b'x'; 64 << 10]));
    let telling = async {
        sender.send(Ok(started())).await.unwrap();
        // A pipe holds 64 KiB: the second cannot be written, the third waits in the channel.
        for _ in 0..3 {
            sender.send(chunk()).await.unwrap();
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(sender.try_send(chunk()).is_err(), "more is taken than can be written");
        let reading = std::thread::spawn(move || read(reader));
        sender.send(chunk()).await.unwrap();
        sender.send(Ok(exited(0))).await.unwrap();
        reading
    };
    let (outcome, reading) = tokio::join!(following, telling);
    assert_eq!(outcome, exit(0));
    assert_eq!(reading.join().unwrap().len(), 4 * (64 << 10));
}
