//! Containers and the shim: namespaces, cgroups, mounts. Blocking, Linux only, no tokio.

pub mod error;
pub mod root;

pub use error::{Error, Result};
