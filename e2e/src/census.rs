//! The census: all that a daemon may have left on the host, by its instance id, as lines that can be compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::Result;

use crate::cgroup;
use crate::daemon::Daemon;

/// Files that stay when nothing is left to serve, by the start of their path below the root directory: the shim's
/// executable, which later pods use again.
const STAYS: [&str; 1] = ["bin/"];

/// Where tests, people at work beside them, and the scripts in hack/ mount.
///
/// Whoever reads all sysctls, as the canary does, has systemd mount binfmt_misc.
const FOREIGN_MOUNTS: [&str; 6] =
    ["/be2e-", " /tmp/", " /run/netns", " /run/berth", "/target/", " /proc/sys/fs/binfmt_misc "];

/// Names of links that tests make between namespaces of their own.
const TEST_LINKS: [&str; 3] = ["e2e0", "e2e1", "e2e2"];

/// The daemon keeps a bounded number of compiled seccomp filters, each in a sealed memory file.
const KEPT: &str = "/memfd:berth-seccomp";

/// More threads than at the start that are no leak yet: blocking work is done on threads that idle for a while.
const THREADS: usize = 24;

/// What there was at one moment: lines, and how often each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    lines: BTreeMap<String, usize>,
    threads: usize,
}

impl Census {
    /// Looks at the host. Files below the root directory whose path starts with one of `may_stay` do not count.
    pub fn take(daemon: &Daemon, may_stay: &[&str]) -> Result<Census> {
        let mut census = Census::default();
        census.processes(daemon)?;
        census.mounts(daemon)?;
        census.network(daemon)?;
        for dir in cgroup::find(&daemon.instance)? {
            if !dir.ends_with(format!("e2e-{}", daemon.instance)) {
                census.add("cgroup", dir.display());
            }
        }
        census.files("root", &daemon.root, Path::new(""), may_stay)?;
        census.files("state", &daemon.state, Path::new(""), &[])?;
        census.descriptors(daemon)?;
        Ok(census)
    }

    fn add(&mut self, kind: &str, item: impl std::fmt::Display) {
        *self.lines.entry(format!("{kind}: {item}")).or_default() += 1;
    }

    /// What is in `after` and not here (+), and the reverse (-); empty when they are equal.
    pub fn difference(&self, after: &Census) -> String {
        let mut text = String::new();
        for line in self.lines.keys().chain(after.lines.keys()).collect::<BTreeSet<_>>() {
            let (had, has) =
                (self.lines.get(line).unwrap_or(&0), after.lines.get(line).unwrap_or(&0));
            // A new daemon has not yet opened all that the one before it had.
            if has < had && line.starts_with("descriptor: ") {
                continue;
            }
            let sign = if has > had { '+' } else { '-' };
            match has.abs_diff(*had) {
                0 => {}
                1 => writeln!(text, "{sign} {line}").expect("a string takes all"),
                times => {
                    writeln!(text, "{sign} {line} ({times} times)").expect("a string takes all")
                }
            }
        }
        if after.threads > self.threads + THREADS {
            writeln!(text, "+ threads: {} instead of {}", after.threads, self.threads)
                .expect("a string takes all");
        }
        text
    }

    /// Processes in a cgroup of this instance, with its directories in their command line, and their descendants.
    fn processes(&mut self, daemon: &Daemon) -> Result<()> {
        let all = processes();
        let daemon_pid = daemon.pid().unwrap_or(0);
        for (pid, process) in &all {
            let ours = ancestors(*pid, &all).any(|pid| {
                let process = &all[&pid];
                pid == daemon_pid
                    || process.cgroup.contains(&daemon.instance)
                    || process.mentions(&daemon.state)
                    || process.mentions(&daemon.root)
            });
            if ours && *pid != daemon_pid {
                self.add("process", format_args!("{} ({})", process.name, process.state));
            }
        }
        Ok(())
    }

    /// The mount table of this namespace, without what other tests have mounted meanwhile.
    fn mounts(&mut self, daemon: &Daemon) -> Result<()> {
        let own = [&daemon.root, &daemon.state].map(|dir| dir.to_string_lossy().into_owned());
        for line in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let is_own = line.contains(&daemon.instance)
                || own.iter().any(|dir| line.contains(dir.as_str()));
            let foreign = FOREIGN_MOUNTS.iter().any(|place| line.contains(place));
            if is_own || !foreign {
                // Without the two ids in front, which differ each time.
                self.add("mount", line.splitn(4, ' ').nth(3).unwrap_or(line));
            }
        }
        Ok(())
    }

    fn network(&mut self, daemon: &Daemon) -> Result<()> {
        for (kind, program, args) in [
            ("address", "ip", &["-brief", "address"][..]),
            ("route", "ip", &["route", "show", "table", "all"]),
            ("nft", "nft", &["--stateless", "list", "ruleset"]),
        ] {
            for line in daemon.netns.output(program, args)?.lines() {
                // Links of the test are none of the daemon's.
                if TEST_LINKS.iter().any(|link| line.contains(link)) {
                    continue;
                }
                // Whether a bridge without ports is down yet is a matter of time.
                let words = line
                    .split_whitespace()
                    .filter(|word| !["UP", "DOWN", "linkdown"].contains(word));
                self.add(kind, words.collect::<Vec<_>>().join(" "));
            }
        }
        Ok(())
    }

    fn files(&mut self, kind: &str, top: &Path, below: &Path, may_stay: &[&str]) -> Result<()> {
        for entry in std::fs::read_dir(top.join(below)).into_iter().flatten().flatten() {
            let path = below.join(entry.file_name());
            let name = path.to_string_lossy();
            if STAYS.iter().chain(may_stay).any(|start| name.starts_with(start)) {
                continue;
            }
            let Ok(file_type) = entry.file_type() else { continue };
            if file_type.is_dir() {
                self.add(kind, format_args!("{name}/"));
                self.files(kind, top, &path, may_stay)?;
            } else if file_type.is_socket() {
                self.add(kind, format_args!("{name} (socket)"));
            } else {
                self.add(kind, &name);
            }
        }
        Ok(())
    }

    /// Descriptors of the daemon by what they point to. Connections to registries are kept for a while, so connected
    /// TCP sockets do not count.
    fn descriptors(&mut self, daemon: &Daemon) -> Result<()> {
        let Ok(pid) = daemon.pid() else { return Ok(()) };
        let proc = Path::new("/proc").join(pid.to_string());
        let connected = connected_sockets(&proc);
        for entry in std::fs::read_dir(proc.join("fd"))?.flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            if connected.contains(&target) || target.starts_with(KEPT) {
                continue;
            }
            match target.split_once(":[") {
                Some((kind, _)) => self.add("descriptor", kind),
                None => self.add("descriptor", target),
            }
        }
        self.threads = std::fs::read_dir(proc.join("task"))?.count();
        Ok(())
    }
}

struct Process {
    name: String,
    state: char,
    parent: i32,
    cgroup: String,
    command: Vec<u8>,
}

impl Process {
    fn mentions(&self, path: &Path) -> bool {
        let path = path.as_os_str().as_encoded_bytes();
        self.command.windows(path.len()).any(|part| part == path)
    }
}

/// All processes of the host; those that end while we look are left out.
fn processes() -> HashMap<i32, Process> {
    let mut all = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(process) = process(&entry.path()) {
            all.insert(pid, process);
        }
    }
    all
}

/// proc_pid_stat(5): the name stands in parentheses and may have any character in it.
fn process(proc: &Path) -> Option<Process> {
    let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some(Process {
        name: name.into(),
        state: match fields.next()? {
            "Z" => 'Z',
            _ => '-',
        },
        parent: fields.next()?.parse().ok()?,
        cgroup: std::fs::read_to_string(proc.join("cgroup")).unwrap_or_default(),
        command: std::fs::read(proc.join("cmdline")).unwrap_or_default(),
    })
}

/// A process, its parent, and so on, as far as the table goes.
fn ancestors(pid: i32, all: &HashMap<i32, Process>) -> impl Iterator<Item = i32> {
    let mut next = Some(pid).filter(|pid| all.contains_key(pid));
    std::iter::from_fn(move || {
        let here = next?;
        next = Some(all[&here].parent).filter(|parent| *parent != here && all.contains_key(parent));
        Some(here)
    })
}

/// Connected TCP sockets of the namespace of a process, as their descriptors read. proc_net_tcp: field 4 is the state
/// (`0A` listens), field 10 the inode.
fn connected_sockets(proc: &Path) -> BTreeSet<String> {
    let mut sockets = BTreeSet::new();
    for table in ["net/tcp", "net/tcp6"] {
        for line in std::fs::read_to_string(proc.join(table)).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() > 9 && fields[3] != "0A" {
                sockets.insert(format!("socket:[{}]", fields[9]));
            }
        }
    }
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(lines: &[(&str, usize)], threads: usize) -> Census {
        Census {
            lines: lines.iter().map(|(line, times)| ((*line).to_owned(), *times)).collect(),
            threads,
        }
    }

    #[track_caller]
    fn check(before: &[(&str, usize)], after: &[(&str, usize)], expected: &str) {
        assert_eq!(census(before, 4).difference(&census(after, 5)), expected);
    }

    #[test]
    fn the_same_is_no_difference() {
        check(&[("mount: /", 1)], &[("mount: /", 1)], "");
    }

    #[test]
    fn what_came_and_what_went_is_named() {
        check(
            &[("file: a", 1), ("descriptor: pipe", 1)],
            &[("descriptor: pipe", 3), ("process: sh (Z)", 1)],
            "+ descriptor: pipe (2 times)\n- file: a\n+ process: sh (Z)\n",
        );
        check(&[("descriptor: socket", 2)], &[("descriptor: socket", 1)], "");
    }

    #[test]
    fn this_process_is_found_among_all() {
        let all = processes();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(ancestors(own, &all).count() >= 2);
        assert!(all[&own].mentions(Path::new("e2e")));
    }
}
