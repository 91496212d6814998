//! Images: pull, import, list, remove, export.

pub mod digest;
pub mod error;
pub mod oci;
pub mod reference;

pub use digest::Digest;
pub use error::{Error, Result};
pub use reference::Reference;
