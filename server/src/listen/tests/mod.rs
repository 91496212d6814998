//! Tests of the listener and the adapter; the parts of the adapter have theirs in here too.

pub(crate) mod accept;
mod adapter;
mod codec;
mod hpack;
