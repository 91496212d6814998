//! What each step of a start took, kept in the record for whoever asks why it was slow.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// One step, with the nanoseconds it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// How long.
    pub nanoseconds: u64,
}

/// Takes the time of one step after the other.
#[derive(Debug)]
pub struct Clock {
    last: Instant,
    steps: Vec<Step>,
}

impl Clock {
    /// The first step begins.
    pub fn start() -> Clock {
        Clock { last: Instant::now(), steps: Vec::new() }
    }

    /// A step has ended, and the next one begins.
    pub fn step(&mut self, name: &str) {
        let now = Instant::now();
        let nanoseconds =
            u64::try_from(now.duration_since(self.last).as_nanos()).unwrap_or(u64::MAX);
        self.steps.push(Step { name: name.into(), nanoseconds });
        self.last = now;
    }

    /// The steps so far.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }
}
