//! Containers and the shim: namespaces, cgroups, mounts. Blocking, Linux only, no tokio.

pub mod capabilities;
pub mod cgroup;
pub mod child;
pub mod error;
pub mod exec;
pub mod init;
pub mod namespaces;
pub mod process;
pub mod root;
pub mod rootfs;
pub mod seccomp;
pub mod shim;
mod socket;
pub mod spec;
pub mod sys;
pub mod users;

pub use error::{Error, Result};
