//! The whole store.
