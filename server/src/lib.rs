//! The daemon and its command line.

pub mod config;
pub mod error;
pub mod instance;

pub use error::{Error, Result};
