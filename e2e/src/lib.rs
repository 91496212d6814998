//! The harness of the end-to-end tests: berth's binaries on a real kernel, seen from outside.
//!
//! Nothing here knows how berth works inside. What it knows is the CRI (through a client that others wrote), the
//! control API, the command line, and the names that berth gives to kernel resources, which carry its instance id.
//!
//! | module | what it is |
//! |---|---|
//! | [`case`] | one test from census to census, and what its body is handed |
//! | [`daemon`] | a `berth serve` with directories, cgroup and log of its own |
//! | [`netns`] | a network namespace, commands and listeners in it |
//! | [`cri`], [`pod`] | the third-party CRI client; builders with a kubelet's defaults |
//! | [`kubelet`] | a kubelet of Kubernetes that runs static pods on a daemon |
//! | [`image`], [`push`] | images by hand, and how they get into a registry |
//! | [`terminal`] | a terminal with a program in it, and fingers that type |
//! | [`registry`], [`fault`] | a real registry; a server that does wrong what a real one never does |
//! | [`census`], [`canary`] | what must be the same after a test as before it |
//! | [`streams`] | streaming URLs, driven by client-go |
//! | [`cgroup`] | limits read back through an independent library |
//!
//! Every test runs its daemon in a network namespace of its own: a test that goes wrong does not touch the node.

#![cfg(feature = "harness")]

pub mod canary;
pub mod case;
pub mod census;
pub mod cgroup;
pub mod cri;
pub mod daemon;
pub mod fault;
pub mod image;
pub mod kubelet;
pub mod netns;
pub mod pod;
pub mod push;
pub mod registry;
pub mod streams;
pub mod terminal;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
pub use case::{Cx, Setup, test, test_with};

/// Where `berth`, `berth-shim` and `probe` are: BERTH_BIN_DIR, else the workspace's target/release.
pub fn bin_dir() -> PathBuf {
    match std::env::var_os("BERTH_BIN_DIR") {
        Some(dir) => dir.into(),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release")),
    }
}

/// Whether to run the full counts of loops that are otherwise cut to fit into minutes (E2E_FULL=1).
pub fn full() -> bool {
    std::env::var_os("E2E_FULL").is_some_and(|value| value == "1")
}

/// A loop count: the short one, or the full one under [`full`].
pub fn count(short: usize, full_count: usize) -> usize {
    if full() { full_count } else { short }
}

/// A deadline on the clock of this machine: E2E_SLOW says how many times slower it is (an emulated one is).
pub fn scaled(duration: Duration) -> Duration {
    let factor =
        std::env::var("E2E_SLOW").ok().and_then(|value| value.parse::<u32>().ok()).unwrap_or(1);
    duration * factor.max(1)
}

/// Nanoseconds since 1970.
pub fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.ok().and_then(|now| i64::try_from(now.as_nanos()).ok()).unwrap_or_default()
}

/// That something is what it should be; else an error with both.
pub fn same<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(
    what: &str,
    got: T,
    expected: U,
) -> Result<()> {
    if got != expected {
        bail!("{what}:\n     got {got:?}\nexpected {expected:?}");
    }
    Ok(())
}

/// Asks again and again until the answer is true, for at most so many (scaled) seconds.
pub async fn eventually(
    seconds: u64,
    what: &str,
    ask: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + scaled(Duration::from_secs(seconds));
    let mut pause = Duration::from_millis(5);
    loop {
        if ask().await? {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            bail!("not within {seconds} s: {what}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
