//! Who waits for the end of an exec.

use std::collections::HashMap;
use std::sync::Mutex;

use proto::shim::Exit;
use tokio::sync::oneshot;

/// Execs under way, by their ids.
#[derive(Debug, Default)]
pub struct Execs {
    waiting: Mutex<HashMap<String, oneshot::Sender<Exit>>>,
}

impl Execs {
    /// Registers an exec before it is started.
    pub fn expect(&self, id: &str) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().expect("nobody panics with this lock").insert(id.to_owned(), sender);
        receiver
    }

    /// It has ended.
    pub fn ended(&self, id: &str, exit: Exit) {
        if let Some(waiting) = self.waiting.lock().expect("nobody panics with this lock").remove(id)
        {
            // Whoever waited may have given up.
            let _gone = waiting.send(exit);
        }
    }

    /// Nobody waits any more.
    pub fn forget(&self, id: &str) {
        self.waiting.lock().expect("nobody panics with this lock").remove(id);
    }
}
