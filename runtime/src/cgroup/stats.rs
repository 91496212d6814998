//! What a cgroup has used, read from its files.

use std::fs;
use std::path::Path;

use super::directory;
use crate::spec;

/// One reading of a cgroup. None: this machine does not count it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU time so far, nanoseconds.
    pub cpu_usage: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap.
    pub swap: Option<Swap>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from and written to block devices.
    pub block: Option<(u64, u64)>,
    /// Pressure on CPU, memory, and block devices; v2 with PSI only.
    pub pressure: [Option<Pressure>; 3],
}

/// Memory of a cgroup, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged.
    pub usage: u64,
    /// Without file pages that could go at once: what the kubelet evicts by.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults.
    pub faults: u64,
    /// Page faults that read from disk.
    pub major_faults: u64,
    /// None: not limited.
    pub limit: Option<u64>,
}

/// Swap of a cgroup, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swap {
    /// Swapped out.
    pub usage: u64,
    /// None: not limited.
    pub limit: Option<u64>,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pressure {
    /// Some tasks waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// One line of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stall {
    /// Per cent of the last 10, 60 and 300 seconds.
    pub averages: [f64; 3],
    /// Nanoseconds so far.
    pub total: u64,
}

/// v1 writes a number near this where nothing is limited (PAGE_COUNTER_MAX in pages).
const V1_UNLIMITED: u64 = 1 << 62;

/// Reads what there is. A cgroup that is gone has nothing.
pub fn read(cgroup: &spec::Cgroup) -> Stats {
    if cgroup.unified { read_v2(cgroup) } else { read_v1(cgroup) }
}

fn file(cgroup: &spec::Cgroup, controller: &str, name: &str) -> Option<String> {
    fs::read_to_string(directory(cgroup, controller)?.join(name)).ok()
}

fn number(cgroup: &spec::Cgroup, controller: &str, name: &str) -> Option<u64> {
    file(cgroup, controller, name)?.trim().parse().ok()
}

/// The value behind a key in a file of `key value` lines.
pub(crate) fn field(content: &str, key: &str) -> Option<u64> {
    content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn read_v1(cgroup: &spec::Cgroup) -> Stats {
    let limited = |value: Option<u64>| value.filter(|limit| *limit < V1_UNLIMITED);
    let memory = number(cgroup, "memory", "memory.usage_in_bytes").map(|usage| {
        let stat = file(cgroup, "memory", "memory.stat").unwrap_or_default();
        let total = |key| field(&stat, key).unwrap_or(0);
        Memory {
            usage,
            working_set: usage.saturating_sub(total("total_inactive_file")),
            rss: total("total_rss"),
            faults: total("total_pgfault"),
            major_faults: total("total_pgmajfault"),
            limit: limited(number(cgroup, "memory", "memory.limit_in_bytes")),
        }
    });
    let swap = number(cgroup, "memory", "memory.memsw.usage_in_bytes").zip(memory.as_ref()).map(
        |(both, memory)| {
            let limit = limited(number(cgroup, "memory", "memory.memsw.limit_in_bytes"));
            Swap {
                usage: both.saturating_sub(memory.usage),
                limit: limit.map(|both| both.saturating_sub(memory.limit.unwrap_or(0))),
            }
        },
    );
    Stats {
        cpu_usage: number(cgroup, "cpuacct", "cpuacct.usage"),
        memory,
        swap,
        pids: number(cgroup, "pids", "pids.current"),
        block: file(cgroup, "blkio", "blkio.throttle.io_service_bytes")
            .map(|content| block_v1(&content)),
        pressure: [None, None, None],
    }
}

fn read_v2(cgroup: &spec::Cgroup) -> Stats {
    let limit = |name| number(cgroup, "memory", name);
    let memory = number(cgroup, "memory", "memory.current").map(|usage| {
        let stat = file(cgroup, "memory", "memory.stat").unwrap_or_default();
        let value = |key| field(&stat, key).unwrap_or(0);
        Memory {
            usage,
            working_set: usage.saturating_sub(value("inactive_file")),
            rss: value("anon"),
            faults: value("pgfault"),
            major_faults: value("pgmajfault"),
            limit: limit("memory.max"),
        }
    });
    let swap = number(cgroup, "memory", "memory.swap.current")
        .map(|usage| Swap { usage, limit: limit("memory.swap.max") });
    let pressure = |name| file(cgroup, "", name).and_then(|content| parse_pressure(&content));
    let cpu = file(cgroup, "cpu", "cpu.stat");
    Stats {
        cpu_usage: cpu
            .and_then(|content| field(&content, "usage_usec"))
            .map(|usage| usage.saturating_mul(1000)),
        memory,
        swap,
        pids: number(cgroup, "pids", "pids.current"),
        block: file(cgroup, "io", "io.stat").map(|content| block_v2(&content)),
        pressure: [pressure("cpu.pressure"), pressure("memory.pressure"), pressure("io.pressure")],
    }
}

/// Lines `major:minor Read bytes` (Documentation/admin-guide/cgroup-v1/blkio-controller.rst).
fn block_v1(content: &str) -> (u64, u64) {
    let sum = |operation: &str| {
        let value = |line: &str| {
            let mut words = line.split(' ').skip(1);
            words.next().filter(|word| *word == operation).and(words.next())?.parse::<u64>().ok()
        };
        content.lines().filter_map(value).fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

/// Lines `major:minor rbytes=.. wbytes=.. ...` (cgroup-v2.rst, io.stat).
fn block_v2(content: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let words = content.split_whitespace();
        words
            .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

fn parse_pressure(content: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        let line = content.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
        let average = |key| value(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let total = value("total=").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let averages = [average("avg10="), average("avg60="), average("avg300=")];
        Some(Stall { averages, total: total.saturating_mul(1000) })
    };
    Some(Pressure { some: line("some")?, full: line("full").unwrap_or_default() })
}

/// Whether a path is the directory of a cgroup that exists.
pub fn exists(cgroup: &spec::Cgroup) -> bool {
    cgroup.directories.first().is_some_and(|directory| Path::new(&directory.path).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_words() {
        let content = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(content, "oom_kill"), Some(3));
        assert_eq!(field(content, "oom"), None);
    }

    #[test]
    fn block_devices_are_summed() {
        let v1 = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 30\n9:0 Read 1\nTotal 31\n";
        assert_eq!(block_v1(v1), (11, 20));
        let v2 = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n9:0 rbytes=1 wbytes=2 rios=1 wios=1\n";
        assert_eq!(block_v2(v2), (11, 22));
    }

    #[test]
    fn pressure_totals_are_nanoseconds() {
        let content = "some avg10=1.50 avg60=0.25 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n";
        let pressure = parse_pressure(content).unwrap();
        assert_eq!(pressure.some, Stall { averages: [1.5, 0.25, 0.0], total: 7000 });
        assert_eq!(pressure.full.total, 2000);
        assert_eq!(parse_pressure(""), None);
    }
}
