//! Tests of the filter compiler: against its written order of rules, against libseccomp, and
//! against the kernel.

pub(super) mod bpf;
mod compile;
mod kernel;
mod oracle;
mod profile;
mod reference;
mod samples;
mod syscalls;
