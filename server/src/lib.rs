//! The daemon and its command line.
//!
//! | module | story |
//! |---|---|
//! | `cli` | one file for each verb of the command line; `serve` is the daemon's life |
//! | `config` | flags and TOML become a `Config`, or all that is wrong with them |
//! | `instance` | the daemon's directories, locked, and its id in the names of the kernel |
//! | `listen` | the socket, and what makes every gRPC client's bytes fit for h2 |
//! | `rpc` | the services, and what every call goes through |
//! | `shutdown`, `notify`, `log`, `files` | signals, systemd, the log, the limit of open files |
//! | `error` | what can go wrong; `rpc` gives it its gRPC code |

pub mod cli;
pub mod config;
pub mod error;
pub mod files;
pub mod instance;
pub mod listen;
pub mod log;
pub mod network;
pub mod notify;
pub mod rpc;
pub mod shutdown;

pub use error::{Error, Result};
