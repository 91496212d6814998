//! The container we run. The messages of the shim protocol are the model: what
//! the daemon wants crosses one socket and is applied as it stands.

pub use proto::shim::*;
