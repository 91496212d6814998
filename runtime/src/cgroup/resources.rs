//! Limits of a container: planned as writes to cgroup files, then applied.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{directory, write_existing};
use crate::error::{Doing, Error, Result};
use crate::spec;

/// What a container may use. None and empty mean "not limited here".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Weight against other cgroups, 2 to 262144, 1024 for one core's share (v1 `cpu.shares`).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// Length of a period in microseconds, 1000 to 1000000.
    pub cpu_period: Option<u64>,
    /// Processors, as a list such as `0-3,7`.
    pub cpuset_cpus: String,
    /// Memory nodes, as a list.
    pub cpuset_mems: String,
    /// Bytes of memory; -1 for no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_swap_limit: Option<i64>,
    /// Processes; -1 for no limit.
    pub pids_limit: Option<i64>,
    /// Bytes of huge pages by page size (`2MB`).
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Files of cgroup v2 with their values, written as they are.
    pub unified: BTreeMap<String, String>,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Whose file it is.
    pub controller: String,
    /// Its name.
    pub file: String,
    /// What is written.
    pub value: String,
    /// Not an error where the machine lacks the controller: nothing is limited by it.
    pub optional: bool,
}

/// CPU period where only a quota is given (Documentation/scheduler/sched-bwc.rst).
const DEFAULT_PERIOD: u64 = 100_000;

/// What to write for these limits.
///
/// # Errors
/// `Invalid` for `unified` on cgroup v1, or with a name that is no file of a controller.
pub fn writes(resources: &Resources, unified: bool) -> Result<Vec<Write>> {
    let mut writes = if unified { writes_v2(resources) } else { writes_v1(resources) };
    for (file, value) in &resources.unified {
        if !unified {
            return Err(Error::Invalid(format!(
                "resources.unified[{file:?}]: this node has cgroup v1"
            )));
        }
        let controller = controller_of(file).ok_or_else(|| {
            Error::Invalid(format!("resources.unified[{file:?}] is no file of a cgroup controller"))
        })?;
        writes.push(write(controller, file, value));
    }
    Ok(writes)
}

fn write(controller: &str, file: &str, value: impl ToString) -> Write {
    Write {
        controller: controller.into(),
        file: file.into(),
        value: value.to_string(),
        optional: false,
    }
}

/// `memory.high` is memory's. `cgroup.*` is how cgroups are run, not a limit.
fn controller_of(file: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let (controller, rest) = file.split_once('.')?;
    (file.bytes().all(plain)
        && !rest.is_empty()
        && !controller.is_empty()
        && controller != "cgroup")
        .then_some(controller)
}

fn writes_v1(resources: &Resources) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut add = |controller: &str, file: &str, value: Option<String>| {
        writes.extend(value.map(|value| write(controller, file, value)));
    };
    add("cpu", "cpu.shares", resources.cpu_shares.map(|shares| shares.max(2).to_string()));
    add("cpu", "cpu.cfs_period_us", resources.cpu_period.map(|period| period.to_string()));
    add("cpu", "cpu.cfs_quota_us", resources.cpu_quota.map(|quota| quota.to_string()));
    add("cpuset", "cpuset.cpus", text(&resources.cpuset_cpus));
    add("cpuset", "cpuset.mems", text(&resources.cpuset_mems));
    add("memory", "memory.limit_in_bytes", resources.memory_limit.map(|limit| limit.to_string()));
    add("pids", "pids.max", resources.pids_limit.map(max_or));
    if let Some(limit) = resources.memory_swap_limit {
        // Kernels without swap accounting have no such file; then swap is not limited, as docker has it.
        writes.push(Write {
            optional: true,
            ..write("memory", "memory.memsw.limit_in_bytes", limit)
        });
    }
    for (size, limit) in &resources.hugepage_limits {
        let optional = *limit == 0;
        writes.push(Write {
            optional,
            ..write("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), limit)
        });
    }
    writes
}

fn writes_v2(resources: &Resources) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut add = |controller: &str, file: &str, value: Option<String>| {
        writes.extend(value.map(|value| write(controller, file, value)));
    };
    add("cpu", "cpu.weight", resources.cpu_shares.map(|shares| cpu_weight(shares).to_string()));
    add("cpu", "cpu.max", cpu_max(resources));
    add("cpuset", "cpuset.cpus", text(&resources.cpuset_cpus));
    add("cpuset", "cpuset.mems", text(&resources.cpuset_mems));
    add("memory", "memory.max", resources.memory_limit.map(max_or));
    add("pids", "pids.max", resources.pids_limit.map(max_or));
    if let Some(swap) = swap_max(resources) {
        writes.push(Write { optional: true, ..write("memory", "memory.swap.max", swap) });
    }
    for (size, limit) in &resources.hugepage_limits {
        let optional = *limit == 0;
        for file in [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")] {
            writes.push(Write { optional, ..write("hugetlb", &file, limit) });
        }
    }
    writes
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn max_or(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

fn cpu_max(resources: &Resources) -> Option<String> {
    if resources.cpu_quota.is_none() && resources.cpu_period.is_none() {
        return None;
    }
    let quota = resources.cpu_quota.map_or_else(|| "max".into(), max_or);
    Some(format!("{quota} {}", resources.cpu_period.unwrap_or(DEFAULT_PERIOD)))
}

/// v2 counts swap alone, the limit counts it with memory.
fn swap_max(resources: &Resources) -> Option<String> {
    let swap = resources.memory_swap_limit?;
    match resources.memory_limit {
        _ if swap < 0 => Some("max".into()),
        Some(memory) if memory >= 0 => Some((swap - memory).max(0).to_string()),
        _ => None,
    }
}

/// Shares of v1 as a weight of v2, 1 to 10000, by the curve that the kubelet uses for the pods'
/// cgroups since 1.34 (opencontainers/cgroups): 1024 shares become 100, both defaults.
pub fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[expect(clippy::cast_precision_loss, reason = "shares are below 2^18 here")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 10000")]
    let weight = 10f64.powf(exponent).ceil() as u64;
    weight
}

/// Writes the limits of a new cgroup.
///
/// # Errors
/// `Invalid` for a limit whose controller this machine lacks; those of writing, with file and value.
pub fn apply(cgroup: &spec::Cgroup, writes: &[Write]) -> Result<()> {
    writes.iter().try_for_each(|write| apply_one(cgroup, write))
}

fn apply_one(cgroup: &spec::Cgroup, write: &Write) -> Result<()> {
    let Some(file) = file(cgroup, write) else {
        if write.optional {
            return Ok(());
        }
        return Err(Error::Invalid(format!(
            "{} cannot be limited: this node has no {} controller",
            write.file, write.controller
        )));
    };
    match write_existing(&file, &write.value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && write.optional => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::Invalid(format!(
            "{} cannot be written: cgroups of this kernel have no such file; leave out the limit, or the name in \
             resources.unified",
            write.file
        ))),
        other => other.doing(|| format!("write {:?} to {}", write.value, file.display())),
    }
}

fn file(cgroup: &spec::Cgroup, write: &Write) -> Option<PathBuf> {
    directory(cgroup, &write.controller).map(|directory| directory.join(&write.file))
}

/// Changes the limits of a cgroup that lives: all of them, or none.
///
/// # Errors
/// As [`apply`]; what was there before is then there again.
pub fn update(cgroup: &spec::Cgroup, mut writes: Vec<Write>) -> Result<()> {
    swap_first_when_growing(cgroup, &mut writes);
    let mut undo: Vec<(PathBuf, String)> = Vec::new();
    for write in &writes {
        let before = file(cgroup, write).and_then(|file| {
            let value = fs::read_to_string(&file).ok()?;
            Some((file, value))
        });
        if let Err(error) = apply_one(cgroup, write) {
            for (file, value) in undo.iter().rev() {
                write_existing(file, value.trim())
                    .doing(|| format!("restore {}", file.display()))?;
            }
            return Err(error);
        }
        undo.extend(before);
    }
    Ok(())
}

/// v1 keeps memory <= memory and swap at every moment: when both grow, the second goes first.
fn swap_first_when_growing(cgroup: &spec::Cgroup, writes: &mut [Write]) {
    let position = |name: &str| writes.iter().position(|write| write.file == name);
    let (memory, swap) =
        (position("memory.limit_in_bytes"), position("memory.memsw.limit_in_bytes"));
    let (Some(memory), Some(swap)) = (memory, swap) else { return };
    let current = file(cgroup, &writes[swap]).and_then(|file| number(&file));
    let wanted: Option<i64> = writes[swap].value.parse().ok();
    let grows =
        wanted.is_some_and(|wanted| wanted < 0 || current.is_some_and(|current| wanted > current));
    if grows && memory < swap {
        writes.swap(memory, swap);
    }
}

fn number(file: &Path) -> Option<i64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Resources {
        Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpuset_cpus: "0-1".into(),
            memory_limit: Some(1 << 20),
            memory_swap_limit: Some(3 << 20),
            pids_limit: Some(-1),
            hugepage_limits: BTreeMap::from([("2MB".into(), 0)]),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(resources: &Resources, unified: bool, expected: &[(&str, &str)]) {
        let writes = writes(resources, unified).unwrap();
        let found: Vec<_> =
            writes.iter().map(|write| (write.file.as_str(), write.value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn limits_become_files_of_v1() {
        check(
            &limits(),
            false,
            &[
                ("cpu.shares", "1024"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpuset.cpus", "0-1"),
                ("memory.limit_in_bytes", "1048576"),
                ("pids.max", "max"),
                ("memory.memsw.limit_in_bytes", "3145728"),
                ("hugetlb.2MB.limit_in_bytes", "0"),
            ],
        );
    }

    #[test]
    fn limits_become_files_of_v2() {
        check(
            &limits(),
            true,
            &[
                ("cpu.weight", "100"),
                ("cpu.max", "50000 100000"),
                ("cpuset.cpus", "0-1"),
                ("memory.max", "1048576"),
                ("pids.max", "max"),
                ("memory.swap.max", "2097152"),
                ("hugetlb.2MB.max", "0"),
                ("hugetlb.2MB.rsvd.max", "0"),
            ],
        );
        let unlimited =
            Resources { cpu_quota: Some(-1), memory_limit: Some(-1), ..Default::default() };
        check(&unlimited, true, &[("cpu.max", "max 100000"), ("memory.max", "max")]);
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        check(&Resources::default(), true, &[]);
        check(&Resources::default(), false, &[]);
    }

    #[test]
    fn weights_follow_the_kubelets_curve() {
        for (shares, weight) in
            [(0, 1), (2, 1), (3, 2), (102, 17), (1024, 100), (2048, 174), (262_144, 10_000)]
        {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn unified_names_only_files_of_controllers() {
        let with = |file: &str| Resources {
            unified: BTreeMap::from([(file.into(), "1".into())]),
            ..Default::default()
        };
        check(&with("memory.high"), true, &[("memory.high", "1")]);
        assert!(writes(&with("memory.high"), false).is_err());
        for file in [
            "../../x/memory.max",
            "cgroup.procs",
            "cgroup.kill",
            "/memory.max",
            "memory",
            "memory.",
            ".max",
            "",
        ] {
            assert!(writes(&with(file), true).is_err(), "{file}");
        }
    }
}
