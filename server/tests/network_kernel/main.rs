//! The built-in network against the real kernel, in network namespaces of its own. Needs root and
//! the programs ip, nft, iptables and conntrack (Debian's iproute2, nftables, iptables,
//! conntrack); changes nothing outside.

#![allow(clippy::unwrap_used, reason = "a step of a scene that fails ends the test")]

mod guests;
mod life;
mod nodes;
mod reach;
