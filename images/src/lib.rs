//! Images: pull, import, list, remove, export.

pub mod digest;
pub mod error;
pub mod limits;
pub mod oci;
pub mod reference;
pub mod registry;

pub use digest::Digest;
pub use error::{Error, Result};
pub use limits::Limits;
pub use reference::Reference;
