//! `berth port-forward`: ports of this machine that lead into a pod.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use proto::control::port_forward_request::Message as Say;
use proto::control::port_forward_response::Message;
use proto::control::{PortForwardRequest, PortForwardResponse, PortForwardSpec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::attach::Output;
use super::connect::{Client, Socket, connect};
use super::failure::{Failure, Outcome, SIGNALLED, tell};
use super::signals::Signals;

/// Bytes in one message.
const CHUNK: usize = 64 << 10;
/// Messages that wait for the daemon.
const AHEAD: usize = 4;
/// Connections at once; more wait in the listener's queue.
const MOST_CONNECTIONS: usize = 1000;

/// The flags of `berth port-forward`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Ends with Ctrl-C.")]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Container, or pod, by id or name
    name: String,
    /// [ADDRESS:]LOCAL:REMOTE, or one port for both; LOCAL 0 is any free one
    #[arg(required = true, value_name = "PORTS", value_parser = parse)]
    ports: Vec<Ports>,
}

/// A way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    local: SocketAddr,
    remote: u16,
}

fn parse(text: &str) -> Result<Ports, String> {
    let wrong = |problem: String| format!("{problem}; write [ADDRESS:]LOCAL:REMOTE, as 8080:80");
    let port = |word: &str| {
        word.parse::<u16>().map_err(|_| wrong(format!("{word:?} is no port (0 to 65535)")))
    };
    let (rest, remote) = text.rsplit_once(':').unwrap_or((text, text));
    let remote = port(remote)?;
    if remote == 0 {
        return Err(wrong("the port inside must not be 0".to_owned()));
    }
    let (address, local) = match rest.rsplit_once(':') {
        Some((address, local)) => {
            let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
            let parsed = match (address, bare) {
                ("localhost", _) => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                (address, bare) => bare.unwrap_or(address).parse::<IpAddr>(),
            };
            let no_address =
                |_| wrong(format!("{address:?} is no address (IPv6 goes in brackets)"));
            (parsed.map_err(no_address)?, port(local)?)
        }
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), port(rest)?),
    };
    Ok(Ports { local: SocketAddr::new(address, local), remote })
}

/// Forwards until a signal.
pub(super) async fn run(args: Args) -> Outcome {
    let client = connect(&args.socket).await?;
    let mut signals = Signals::catch()?;
    let output = Output::standard()?;
    let mut accepting = JoinSet::new();
    for ports in args.ports {
        let listener = TcpListener::bind(ports.local).await;
        let listener = listener
            .map_err(|error| Failure::step(format!("listen on {}", ports.local), &error))?;
        let local = listener.local_addr().unwrap_or(ports.local);
        let line = format!("{local} -> {}:{}\n", args.name, ports.remote).into_bytes();
        output.stdout(line).await.map_err(|error| Failure::step("write output", &error))?;
        accepting.spawn(accept(client.clone(), listener, args.name.clone(), ports.remote));
    }
    tokio::select! {
        Some(number) = signals.next() => {
            Ok(ExitCode::from(u8::try_from(number).unwrap_or(u8::MAX).saturating_add(SIGNALLED)))
        }
        Some(ended) = accepting.join_next() => match ended {
            Ok(failure) => Err(failure),
            Err(panic) => Err(Failure::step("forward a port", &panic)),
        },
        else => Ok(ExitCode::SUCCESS),
    }
}

/// Takes connections for one port. Only a daemon that has gone ends it: what is wrong with one connection is told.
async fn accept(client: Client, listener: TcpListener, name: String, remote: u16) -> Failure {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => accepted,
            Some(ended) = connections.join_next() => {
                match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(End::Daemon(failure))) => return failure,
                    Ok(Err(End::Connection(problem))) => tell(&format!("port {remote}: {problem}")),
                    Err(panic) => tell(&format!("port {remote}: {panic}")),
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let spec = PortForwardSpec { name: name.clone(), port: remote.into() };
                connections.spawn(forward(client.clone(), stream, spec));
            }
            // Out of descriptors, or a client that has gone already: the next may do better.
            Err(error) => {
                tell(&format!("port {remote}: take a connection: {error}"));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Why a connection ended badly.
enum End {
    /// The daemon is not there any more.
    Daemon(Failure),
    /// Only this one.
    Connection(String),
}

async fn forward(mut client: Client, stream: TcpStream, spec: PortForwardSpec) -> Result<(), End> {
    let (sender, requests) = mpsc::channel(AHEAD);
    sender.try_send(say(Say::Spec(spec))).ok();
    let answers = client.port_forward(ReceiverStream::new(requests)).await.map_err(ended)?;
    let (reader, writer) = stream.into_split();
    let mut answers = answers.into_inner();
    // Nothing is read before the other end is there: a client that is refused sees it at once.
    match answers.message().await.map_err(ended)?.and_then(|answer| answer.message) {
        Some(Message::Connected(_)) => {}
        _ => return Err(End::Connection("the daemon ended the call".to_owned())),
    }
    // Each direction ends by itself.
    tokio::try_join!(to_daemon(reader, sender), from_daemon(answers, writer)).map(drop)
}

fn ended(status: tonic::Status) -> End {
    let broke = std::error::Error::source(&status).is_some();
    let failure = Failure::from(status);
    if broke { End::Daemon(failure) } else { End::Connection(failure.text) }
}

async fn to_daemon(
    mut reader: OwnedReadHalf,
    sender: mpsc::Sender<PortForwardRequest>,
) -> Result<(), End> {
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        let read = reader.read_buf(&mut bytes).await;
        let read = read.map_err(|error| End::Connection(format!("read: {error}")))?;
        let message = if read == 0 { Say::Closed(true) } else { Say::Data(bytes) };
        // Where the call has ended, the other direction says why.
        if sender.send(say(message)).await.is_err() || read == 0 {
            // The call's own end would be the end of both directions: it is kept until the daemon ends it.
            sender.closed().await;
            return Ok(());
        }
    }
}

async fn from_daemon(
    mut answers: Streaming<PortForwardResponse>,
    mut writer: OwnedWriteHalf,
) -> Result<(), End> {
    while let Some(answer) = answers.message().await.map_err(ended)? {
        let written = match answer.message {
            Some(Message::Data(bytes)) => writer.write_all(&bytes).await,
            Some(Message::Closed(true)) => writer.shutdown().await,
            Some(Message::Connected(_) | Message::Closed(false)) | None => Ok(()),
        };
        written.map_err(|error| End::Connection(format!("write: {error}")))?;
    }
    Ok(())
}

fn say(message: Say) -> PortForwardRequest {
    PortForwardRequest { message: Some(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, local: &str, remote: u16) {
        let expected = Ports { local: local.parse().unwrap(), remote };
        assert_eq!(parse(text), Ok(expected), "{text}");
    }

    #[test]
    fn ports_are_read() {
        check("8080:80", "127.0.0.1:8080", 80);
        check("80", "127.0.0.1:80", 80);
        check("0:80", "127.0.0.1:0", 80);
        check("0.0.0.0:8080:80", "0.0.0.0:8080", 80);
        check("localhost:8080:80", "127.0.0.1:8080", 80);
        check("[::1]:8080:80", "[::1]:8080", 80);
        for wrong in ["", "http", "8080:0", "8080:", "web:8080:80", "70000:80", "1:2:3:4"] {
            let problem = parse(wrong).unwrap_err();
            assert!(problem.contains("[ADDRESS:]LOCAL:REMOTE"), "{wrong}: {problem}");
        }
    }
}
