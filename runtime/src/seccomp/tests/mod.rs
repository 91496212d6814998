//! Tests of the filter compiler: against its written order of rules, against libseccomp, and
//! against the kernel.

pub(super) mod bpf;
mod compile;
mod kernel;
mod profile;
mod reference;
mod samples;
