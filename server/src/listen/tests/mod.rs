//! Tests of the listener and the adapter; the parts of the adapter have theirs in here too.

mod accept;
mod adapter;
mod codec;
mod hpack;
