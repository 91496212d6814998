//! SPDY/3.1 as every Kubernetes client of the last decade speaks it: streams that the client opens, no flow control.
//!
//! `frame` and `headers` are the codec, without I/O. `connection` runs it: one task reads and writes, the streams are
//! handed out. Back pressure is that of TCP: a stream that nobody reads fills its buffer, then the connection stops.

mod connection;
mod dictionary;
pub(crate) mod frame;
pub(crate) mod headers;

pub(super) use connection::{Connection, Settings, Stream, Writer};
pub(super) use frame::Reset;
pub(super) use headers::Headers;
