//! `berth serve`: the daemon, from its flags to its end.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use proto::control::control_server::ControlServer;
use proto::cri::image_service_server::ImageServiceServer;
use proto::cri::runtime_service_server::RuntimeServiceServer;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::app::App;
use crate::cli::{fail, finish};
use crate::config::{self, Config, Flags, Problems};
use crate::error::{Error, Result};
use crate::notify::Notify;
use crate::podnet::{self, PodNetwork};
use crate::rpc::{Backend, Calls, Images, Local, Runtime};
use crate::shutdown::{Drained, Signals, drain};
use crate::{files, instance, listen, liveness, log, monitor, recover, streaming};

/// Calls that one connection may have under way at once. A kubelet has about one for each
/// pod that it works on; 1000 leaves room for a hundred pods' probes at the same moment.
const STREAMS: u32 = 1000;

/// What a client may send ahead before it is read, on one stream and on a connection. An
/// image that is imported should not wait for window updates; a connection should not be
/// able to fill the memory.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Streams that a client opened and took back at once (CVE-2023-44487) are bounded by h2's
/// own default of 20 for those not yet accepted, and by this for those that we reset.
const LOCAL_RESETS: usize = 256;

/// What other users may not do with what the daemon makes: write.
const UMASK: rustix::fs::Mode = rustix::fs::Mode::from_raw_mode(0o022);

/// A connection costs a descriptor, so they may take a quarter of them, in these bounds.
const CONNECTIONS: std::ops::RangeInclusive<u64> = 16..=1024;

/// The configuration of the flags, or the process's exit code when there is nothing to serve.
///
/// Prints all problems of a bad configuration, and for `--check` the one that holds.
pub fn configure(flags: &Flags) -> std::result::Result<Config, ExitCode> {
    let config = config::load(flags).map_err(|problems| refuse(&problems))?;
    if flags.check {
        return Err(finish(write!(io::stdout(), "{config}")));
    }
    Ok(config)
}

fn refuse(problems: &Problems) -> ExitCode {
    // If standard error is gone, there is nobody to tell.
    writeln!(io::stderr(), "{problems}").ok();
    ExitCode::FAILURE
}

/// Begins to log, then serves until a signal or a failure ends it. Must be called in a
/// runtime, which the caller ends without waiting for what is still in it.
pub async fn serve(config: Config) -> ExitCode {
    if let Err(error) = log::init(&config.log) {
        return fail(&error);
    }
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = crate::error::chain(&error), "cannot serve");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<()> {
    let begun = Instant::now();
    let mut signals = Signals::catch()?;
    let notify = Notify::from_env();
    if !rustix::process::geteuid().is_root() {
        return Err(Error::invalid(
            "user",
            "berth serve makes namespaces and mounts; run it as root",
        ));
    }
    // Whatever the daemon was started with; containers begin with it, too.
    rustix::process::umask(UMASK);
    let files = files::raise();
    let instance = instance::prepare(&config)?;
    let (app, told) = App::build(config.clone(), instance, &files)?;
    tokio::spawn(monitor::run(app.clone(), told));
    tokio::spawn(PodNetwork::tidy(app.clone()));
    tokio::spawn(liveness::run(app.clone()));
    // Before anybody can ask for it.
    recover::recover(&app).await?;
    tokio::spawn(podnet::keep(app.clone()));
    let (listener, socket_file) =
        listen::bind(&config.socket, &config.socket_group)?.into_tokio()?;
    let incoming = listen::accept(listener, connection_bound(files.now));

    let calls = Calls::new();
    let mut streaming = tokio::spawn(streaming::serve(app.clone(), calls.stopping.clone()));
    let stop_accepting = calls.stopping.clone().cancelled_owned();
    let backend = Backend { app: app.clone(), calls: calls.clone() };
    let server = services(&config, &backend).serve_with_incoming_shutdown(incoming, stop_accepting);
    let mut server = tokio::spawn(server);

    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = %app.instance.id,
        socket = %config.socket.display(),
        root = %app.instance.root.display(),
        state = %app.instance.state.display(),
        after = ?begun.elapsed(),
        "serving"
    );
    notify.ready(&format!("serving at {}", config.socket.display()));

    let signal = tokio::select! {
        signal = signals.next() => signal,
        ended = &mut server => return Err(server_ended(ended)),
        ended = &mut streaming => return Err(streaming_ended(ended)),
    };
    tracing::info!(signal, deadline = ?config.runtime.drain_deadline, "stopping; containers go on");
    notify.stopping("waiting for calls under way");
    calls.stopping.cancel();
    drop(socket_file);
    match drain(&calls.under_way, server, config.runtime.drain_deadline, signals.next()).await {
        Drained::Empty => tracing::info!("stopped"),
        Drained::Late => {
            tracing::warn!(under_way = calls.under_way.len(), "stopped with work under way")
        }
        Drained::Signalled => {
            tracing::warn!(under_way = calls.under_way.len(), "stopped at once, as told")
        }
    }
    // Not in the runtime's pool, which may be busy with work that is given up.
    std::thread::spawn(move || app.leave_nothing()).join().ok();
    Ok(())
}

/// The services of the socket, watched, over HTTP/2 as the socket speaks it. No keep-alive:
/// the kernel tells at once when the client of a unix socket has gone. Header lists have
/// the bound of the adapter's header blocks.
fn services(config: &Config, backend: &Backend) -> Router<Stack<Calls, Identity>> {
    let request = usize::try_from(config.limits.request.0).unwrap_or(usize::MAX);
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS))
        .http2_max_header_list_size(u32::try_from(listen::MAX_HEADER_BLOCK).unwrap_or(u32::MAX))
        .max_frame_size(u32::try_from(listen::MAX_FRAME).unwrap_or(u32::MAX))
        .layer(backend.calls.clone())
        .add_service(
            RuntimeServiceServer::new(Runtime(backend.clone())).max_decoding_message_size(request),
        )
        .add_service(
            ImageServiceServer::new(Images(backend.clone())).max_decoding_message_size(request),
        )
        .add_service(ControlServer::new(Local(backend.clone())).max_decoding_message_size(request))
}

fn server_ended(
    ended: std::result::Result<
        std::result::Result<(), tonic::transport::Error>,
        tokio::task::JoinError,
    >,
) -> Error {
    let doing = "serve the socket".to_owned();
    match ended {
        Ok(Ok(())) => Error::Failed { doing, source: "the server ended by itself".into() },
        Ok(Err(error)) => Error::Failed { doing, source: error.into() },
        Err(error) => Error::Failed { doing, source: error.into() },
    }
}

fn streaming_ended(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Error {
    let doing = "serve streaming clients".to_owned();
    match ended {
        Ok(Ok(())) => Error::Failed { doing, source: "the server ended by itself".into() },
        Ok(Err(error)) => Error::Failed { doing, source: error.into() },
        Err(error) => Error::Failed { doing, source: error.into() },
    }
}

fn connection_bound(files: u64) -> usize {
    let bound = (files / 4).clamp(*CONNECTIONS.start(), *CONNECTIONS.end());
    usize::try_from(bound).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_a_quarter_of_the_descriptors() {
        let check = |files: u64, expected: usize| assert_eq!(connection_bound(files), expected);
        check(0, 16);
        check(128, 32);
        check(1024, 256);
        check(u64::MAX, 1024);
    }
}
