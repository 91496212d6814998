//! Images: pull, import, list, remove, export.

pub mod digest;
pub mod error;
pub mod limits;
pub mod oci;
pub mod reference;
pub mod registry;
#[allow(dead_code, reason = "the store comes next")]
mod removal;
#[cfg(test)]
mod testing;
#[allow(dead_code, unused_imports, reason = "the store comes next")]
mod unpack;

pub use digest::Digest;
pub use error::{Error, Result};
pub use limits::Limits;
pub use reference::Reference;
#[allow(missing_docs)]
pub mod stub;
pub use stub::{Image, ImageConfig, Images, Lease};
