//! The end of the daemon: stop accepting, let the calls under way finish, close. Shims and
//! containers stay. A second signal ends it at once.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::error::{Doing, Result};

/// Connections without calls get so long to say goodbye.
const GOODBYE: Duration = Duration::from_millis(250);

/// The signals that end the daemon.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from now on; none ends the process by itself any more.
    pub fn catch() -> Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).doing(|| "catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).doing(|| "catch SIGINT")?,
        })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing was under way any more.
    Empty,
    /// Something still was at the deadline, and is given up.
    Late,
    /// A signal said to end at once.
    Signalled,
}

/// Waits for the calls and the work under way, then a moment for the connections to close,
/// all within the deadline. `connections` ends when the last is closed.
pub async fn drain(
    under_way: &TaskTracker,
    connections: impl Future,
    deadline: Duration,
    signalled: impl Future,
) -> Drained {
    let finish = async {
        let mut connections = std::pin::pin!(connections);
        under_way.close();
        tokio::select! {
            // All connections closed: what is still under way is detached work.
            _ = &mut connections => under_way.wait().await,
            () = under_way.wait() => {
                // A client that does not close its side keeps nobody waiting.
                tokio::time::timeout(GOODBYE, connections).await.ok();
            }
        }
    };
    tokio::select! {
        () = finish => Drained::Empty,
        () = tokio::time::sleep(deadline) => Drained::Late,
        _ = signalled => Drained::Signalled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    /// Drains with a clock that jumps, so no time passes.
    #[track_caller]
    fn check(
        work: Option<Duration>,
        connections: impl Future,
        signalled: impl Future,
        expected: Drained,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let drained = runtime.block_on(async {
            let under_way = TaskTracker::new();
            if let Some(work) = work {
                under_way.spawn(tokio::time::sleep(work));
            }
            drain(&under_way, connections, Duration::from_secs(10), signalled).await
        });
        assert_eq!(drained, expected);
    }

    const SHORT: Option<Duration> = Some(Duration::from_secs(9));
    const LONG: Option<Duration> = Some(Duration::from_secs(11));

    #[test]
    fn work_under_way_is_waited_for_until_the_deadline() {
        check(None, ready(()), pending::<()>(), Drained::Empty);
        check(SHORT, pending::<()>(), pending::<()>(), Drained::Empty);
        check(SHORT, ready(()), pending::<()>(), Drained::Empty);
        check(LONG, pending::<()>(), pending::<()>(), Drained::Late);
        check(LONG, ready(()), pending::<()>(), Drained::Late);
    }

    #[test]
    fn a_client_that_stays_connected_holds_nothing_up() {
        check(None, pending::<()>(), pending::<()>(), Drained::Empty);
    }

    #[test]
    fn a_second_signal_ends_the_wait() {
        let soon = || tokio::time::sleep(Duration::from_secs(1));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let drained = runtime.block_on(async {
            let under_way = TaskTracker::new();
            under_way.spawn(pending::<()>());
            drain(&under_way, pending::<()>(), Duration::from_secs(10), soon()).await
        });
        assert_eq!(drained, Drained::Signalled);
    }
}
