//! Networks of sandboxes by CNI plugins: what others have installed gives pods their addresses.
//!
//! `config` reads the files, `chain` knows the verbs, `exec` runs one plugin, `result` reads what it answers. `intent`
//! is the log by which every ADD is followed by a DEL. `watch` hears of files that change. Nothing here knows of
//! sandboxes; `podnet` puts it together.
//!
//! Everything here blocks, for as long as plugins take: up to the deadline for each.

pub mod chain;
pub mod config;
pub mod exec;
pub mod intent;
pub mod result;
pub mod watch;

/// Name of a pod's link.
pub const INTERFACE: &str = "eth0";
