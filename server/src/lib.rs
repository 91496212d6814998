//! The daemon and its command line.
//!
//! - `cli`: one file per verb, each a client of the socket; `serve` is the daemon. `doctor`: what a node lacks.
//! - `config`, `instance`, `listen`, `log`, `notify`, `shutdown`: what stands around the work.
//! - `rpc`: the services. Requests are parsed there, and answers made; protobuf types of the CRI go no deeper.
//! - `sandbox`, `container`: records, states, one file per verb. `monitor` takes what shims tell, `liveness` notices those that are stopped.
//! - `events`: what becomes of pods and containers, for whoever listens.
//! - `store`: records in memory and on disk. `shim`: starting and calling shims. `app` holds all parts together.
//! - `streaming`: exec, attach and port-forward over HTTP, SPDY and WebSockets.
//! - `meter`: what a cgroup has used, from files that stay open.
//! - `image`, `podnet` and `network`, `filters`, `node`: what sandboxes and containers are made of.
//!
//! Invariants: a record is written before the first resource exists; every name of a resource
//! follows from the record; one `teardown` serves failure, stop, remove and restart.

pub mod app;
pub mod blocking;
pub mod cli;
pub mod config;
pub mod container;
pub mod doctor;
pub mod error;
pub mod events;
pub mod execs;
pub mod files;
pub mod filters;
pub mod id;
pub mod image;
pub mod instance;
pub mod listen;
pub mod liveness;
pub mod log;
pub mod meter;
pub mod monitor;
pub mod network;
pub mod node;
pub mod notify;
pub mod podnet;
pub mod recover;
pub mod rpc;
pub mod sandbox;
pub mod shim;
pub mod shown;
pub mod shutdown;
pub mod signal;
pub mod store;
pub mod streaming;
pub mod timeline;

pub use error::{Error, Result};
