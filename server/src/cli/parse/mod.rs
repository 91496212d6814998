//! Values of flags: text as docker takes it becomes messages of the control API.
//!
//! Nothing here asks the system for anything but the environment and the working directory,
//! and both are arguments of the functions that tests call. An error says what would be right;
//! clap puts the flag and the value in front.

mod environment;
mod policy;
mod ports;
mod size;
mod time;
mod volume;

pub(super) use environment::{Variable, collect, read_file, variable};
pub(super) use policy::{Label, capability, label, network, pids_limit, restart, security, tail};
pub(super) use ports::{Ports, ports, show_ports};
pub(super) use size::{cpus, size};
pub(super) use time::since;
pub(super) use volume::volume;
