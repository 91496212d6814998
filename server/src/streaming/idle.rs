//! How long a connection has been silent.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// When something last came or went.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Instant>);

impl Activity {
    /// Now.
    pub(super) fn new() -> Activity {
        Activity(Mutex::new(Instant::now()))
    }

    /// Something has come or gone.
    pub(super) fn touch(&self) {
        *self.0.lock().expect("nobody panics with this lock") = Instant::now();
    }

    /// Returns when nothing has for so long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let end = *self.0.lock().expect("nobody panics with this lock") + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}
