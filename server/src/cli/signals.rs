//! Signals that a client passes on to the program it shows.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::Stream;

use super::failure::Failure;

/// What a terminal, a shell or a supervisor sends to a program to act on.
const PASSED_ON: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Numbers of signals as they come, without end. From now on none of them ends this process.
#[derive(Debug)]
pub(super) struct Signals(Vec<(u32, Signal)>);

impl Signals {
    pub(super) fn catch() -> Result<Signals, Failure> {
        let catch = |number: i32| {
            let caught = signal(SignalKind::from_raw(number));
            let caught = caught.map_err(|error| Failure::step("catch signals", &error))?;
            Ok((number.unsigned_abs(), caught))
        };
        PASSED_ON.into_iter().map(catch).collect::<Result<_, _>>().map(Signals)
    }
}

impl Stream for Signals {
    type Item = u32;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<u32>> {
        for (number, signal) in &mut self.0 {
            if signal.poll_recv(context).is_ready() {
                return Poll::Ready(Some(*number));
            }
        }
        Poll::Pending
    }
}

/// Whether a signal asks its receiver to end, as Ctrl-C does.
pub(super) fn asks_to_end(number: u32) -> bool {
    [libc::SIGINT, libc::SIGTERM].iter().any(|known| known.unsigned_abs() == number)
}
