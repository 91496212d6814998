//! The daemon and its command line.

pub mod cli;
pub mod config;
pub mod error;
pub mod instance;
pub mod listen;
pub mod log;
pub mod notify;
pub mod rpc;
pub mod shutdown;

pub use error::{Error, Result};
