//! What a cgroup has used, read from its files.

use std::fs;
use std::os::unix::fs::FileExt as _;
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
    Meter::new(cgroup.clone()).read()
}

/// The most a file of a cgroup is believed to hold, bytes: io.stat has a line for each disk.
const MAX_FILE: usize = 1 << 20;

/// A cgroup whose files stay open: to open one costs ten times what it costs to read it again. They do not keep the cgroup.
#[derive(Debug)]
pub struct Meter {
    cgroup: spec::Cgroup,
    /// By name; none for what this machine has not.
    files: Vec<(&'static str, Option<fs::File>)>,
    buffer: Vec<u8>,
}

impl Meter {
    /// Nothing is opened yet.
    pub fn new(cgroup: spec::Cgroup) -> Meter {
        Meter { cgroup, files: Vec::new(), buffer: Vec::new() }
    }

    /// Reads what there is. A cgroup that is gone has nothing.
    pub fn read(&mut self) -> Stats {
        if self.cgroup.unified { read_v2(self) } else { read_v1(self) }
    }

    /// Descriptors that it holds.
    pub fn open_files(&self) -> usize {
        self.files.iter().filter(|(_, file)| file.is_some()).count()
    }

    fn text(&mut self, controller: &str, name: &'static str) -> Option<&str> {
        let place = match self.files.iter().position(|(known, _)| *known == name) {
            Some(place) => place,
            None => {
                let path = directory(&self.cgroup, controller).map(|path| path.join(name));
                self.files.push((name, path.and_then(|path| fs::File::open(path).ok())));
                self.files.len() - 1
            }
        };
        let file = self.files[place].1.as_ref()?;
        let length = read_all(file, &mut self.buffer).ok()?;
        std::str::from_utf8(&self.buffer[..length]).ok()
    }

    fn number(&mut self, controller: &str, name: &'static str) -> Option<u64> {
        self.text(controller, name)?.trim().parse().ok()
    }
}

/// Reads a file from its beginning: in one call mostly, for the kernel makes its text anew for each that begins there.
fn read_all(file: &fs::File, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        if buffer.len() < length + 4096 {
            buffer.resize(length + 8192, 0);
        }
        let offset = u64::try_from(length).unwrap_or(u64::MAX);
        let count = file.read_at(&mut buffer[length..], offset)?;
        length += count;
        if count == 0 || length > MAX_FILE {
            return Ok(length);
        }
    }
}

/// The value behind a key in a file of `key value` lines.
pub(crate) fn field(content: &str, key: &str) -> Option<u64> {
    content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn read_v1(meter: &mut Meter) -> Stats {
    let limited = |value: Option<u64>| value.filter(|limit| *limit < V1_UNLIMITED);
    let memory = meter.number("memory", "memory.usage_in_bytes").map(|usage| {
        let limit = limited(meter.number("memory", "memory.limit_in_bytes"));
        let stat = meter.text("memory", "memory.stat").unwrap_or_default();
        let total = |key| field(stat, key).unwrap_or(0);
        Memory {
            usage,
            working_set: usage.saturating_sub(total("total_inactive_file")),
            rss: total("total_rss"),
            faults: total("total_pgfault"),
            major_faults: total("total_pgmajfault"),
            limit,
        }
    });
    let swap = meter.number("memory", "memory.memsw.usage_in_bytes").zip(memory.as_ref()).map(
        |(both, memory)| {
            let limit = limited(meter.number("memory", "memory.memsw.limit_in_bytes"));
            Swap {
                usage: both.saturating_sub(memory.usage),
                limit: limit.map(|both| both.saturating_sub(memory.limit.unwrap_or(0))),
            }
        },
    );
    Stats {
        cpu_usage: meter.number("cpuacct", "cpuacct.usage"),
        memory,
        swap,
        pids: meter.number("pids", "pids.current"),
        block: meter.text("blkio", "blkio.throttle.io_service_bytes").map(block_v1),
        pressure: [None, None, None],
    }
}

fn read_v2(meter: &mut Meter) -> Stats {
    let memory = meter.number("memory", "memory.current").map(|usage| {
        let limit = meter.number("memory", "memory.max");
        let stat = meter.text("memory", "memory.stat").unwrap_or_default();
        let value = |key| field(stat, key).unwrap_or(0);
        Memory {
            usage,
            working_set: usage.saturating_sub(value("inactive_file")),
            rss: value("anon"),
            faults: value("pgfault"),
            major_faults: value("pgmajfault"),
            limit,
        }
    });
    let swap = meter
        .number("memory", "memory.swap.current")
        .map(|usage| Swap { usage, limit: meter.number("memory", "memory.swap.max") });
    let mut pressure = |name| meter.text("", name).and_then(parse_pressure);
    let pressure = [pressure("cpu.pressure"), pressure("memory.pressure"), pressure("io.pressure")];
    let cpu = meter.text("cpu", "cpu.stat").and_then(|content| field(content, "usage_usec"));
    Stats {
        cpu_usage: cpu.map(|usage| usage.saturating_mul(1000)),
        memory,
        swap,
        pids: meter.number("pids", "pids.current"),
        block: meter.text("io", "io.stat").map(block_v2),
        pressure,
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
    fn a_meter_reads_what_is_in_its_files_now() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let directories = vec![spec::CgroupDirectory {
            controller: String::new(),
            path: folder.path().to_string_lossy().into_owned(),
        }];
        let mut meter = Meter::new(spec::Cgroup { unified: true, directories });
        write("memory.current", "10\n");
        write("memory.max", "max\n");
        // Longer than one read.
        let long = "x 1\n".repeat(5000) + "inactive_file 4\nanon 3\n";
        write("memory.stat", &long);
        write("cpu.stat", "usage_usec 7\n");
        write("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=2\n");
        let stats = meter.read();
        let memory = stats.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set, memory.rss, memory.limit), (10, 6, 3, None));
        assert_eq!((stats.cpu_usage, stats.swap, stats.pids), (Some(7000), None, None));
        assert_eq!(stats.pressure[2].as_ref().unwrap().some.total, 2000);
        assert_eq!(stats.pressure[0], None);
        write("memory.current", "200\n");
        assert_eq!(meter.read().memory.unwrap().usage, 200);
        assert_eq!(meter.open_files(), 5);
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
