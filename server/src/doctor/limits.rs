//! Limits and settings of the node that containers run into: files, processes, watches, memory, the clock.

use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};

use super::{Check, Verdict, read, read_number};

const AREA: &str = "sysctl";
/// The daemon has some descriptors for each container; what containers get is the daemon's limit.
const FEW_FILES: u64 = 65_536;
/// The default of a machine with few processors, and enough for it.
const FEW_PIDS: u64 = 32_768;
/// Programs that watch files take an instance each, and all of a user's containers share them; what kind asks for.
const FEW_INSTANCES: u64 = 512;
const FEW_WATCHES: u64 = 65_536;
/// Every container has a session keyring.
const FEW_KEYS: u64 = 10_000;
/// vm.overcommit_memory that refuses what is not there (kernel: vm/overcommit-accounting).
const NEVER_OVERCOMMIT: u64 = 2;
/// A clock is wrong when it says that our own file is of tomorrow.
const CLOCK_SLACK: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Facts {
    /// The hard limit of descriptors; None is no limit.
    files: Option<u64>,
    pid_max: Option<u64>,
    threads_max: Option<u64>,
    inotify_instances: Option<u64>,
    inotify_watches: Option<u64>,
    keys: Option<u64>,
    overcommit: Option<u64>,
    /// Swap areas in use.
    swaps: Vec<String>,
    /// How far the clock is behind our own file; None where it is not.
    clock_behind: Option<Duration>,
}

pub(super) fn check() -> Vec<Check> {
    judge(&look())
}

fn look() -> Facts {
    let setting = |name: &str| read_number(&format!("/proc/sys/{name}"));
    let swaps = read("/proc/swaps").unwrap_or_default();
    let of_file =
        std::env::current_exe().and_then(std::fs::metadata).and_then(|file| file.modified());
    Facts {
        files: getrlimit(Resource::Nofile).maximum,
        pid_max: setting("kernel/pid_max"),
        threads_max: setting("kernel/threads-max"),
        inotify_instances: setting("fs/inotify/max_user_instances"),
        inotify_watches: setting("fs/inotify/max_user_watches"),
        keys: setting("kernel/keys/root_maxkeys"),
        overcommit: setting("vm/overcommit_memory"),
        swaps: swaps
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect(),
        clock_behind: of_file.ok().and_then(|file| file.duration_since(SystemTime::now()).ok()),
    }
}

fn judge(facts: &Facts) -> Vec<Check> {
    let pids = [facts.pid_max, facts.threads_max].into_iter().flatten().min();
    vec![
        judge_files(facts.files),
        at_least(
            ("processes", "kernel.pid_max and kernel.threads-max"),
            pids,
            FEW_PIDS,
            "sysctl -w kernel.pid_max=4194304 kernel.threads-max=4194304",
        ),
        at_least(
            ("inotify instances", "fs.inotify.max_user_instances"),
            facts.inotify_instances,
            FEW_INSTANCES,
            "sysctl -w fs.inotify.max_user_instances=8192",
        ),
        at_least(
            ("inotify watches", "fs.inotify.max_user_watches"),
            facts.inotify_watches,
            FEW_WATCHES,
            "sysctl -w fs.inotify.max_user_watches=524288",
        ),
        at_least(
            ("keys", "kernel.keys.root_maxkeys"),
            facts.keys,
            FEW_KEYS,
            "sysctl -w kernel.keys.root_maxkeys=1000000 kernel.keys.root_maxbytes=25000000",
        ),
        judge_overcommit(facts.overcommit),
        judge_swap(&facts.swaps),
        judge_clock(facts.clock_behind),
    ]
}

fn judge_files(hard: Option<u64>) -> Check {
    let place = (AREA, "open files");
    match hard {
        Some(limit) if limit < FEW_FILES => Check::gap(
            Verdict::Warning,
            place,
            format!("at most {limit}"),
            "set LimitNOFILE=1048576 in the daemon's unit, or ulimit -Hn before it is started",
        ),
        Some(limit) => Check::ok(AREA, place.1, format!("at most {limit}")),
        None => Check::ok(AREA, place.1, "without limit"),
    }
}

/// A setting that should not be lower; a kernel without it has no such limit.
fn at_least(
    (name, setting): (&'static str, &str),
    value: Option<u64>,
    least: u64,
    advice: &str,
) -> Check {
    match value {
        Some(value) if value < least => Check::gap(
            Verdict::Warning,
            (AREA, name),
            format!("{setting} is {value}, too few for many containers"),
            format!("{advice}, and a line in /etc/sysctl.d"),
        ),
        Some(value) => Check::ok(AREA, name, value.to_string()),
        None => Check::ok(AREA, name, "no such limit"),
    }
}

fn judge_overcommit(mode: Option<u64>) -> Check {
    let place = (AREA, "overcommit");
    match mode {
        Some(NEVER_OVERCOMMIT) => Check::gap(
            Verdict::Warning,
            place,
            "vm.overcommit_memory is 2: programs are refused memory that is free",
            "sysctl -w vm.overcommit_memory=1, as a kubelet sets it",
        ),
        Some(mode) => Check::ok(AREA, place.1, mode.to_string()),
        None => Check::ok(AREA, place.1, "not known"),
    }
}

fn judge_swap(swaps: &[String]) -> Check {
    let found = match swaps {
        [] => "none".to_owned(),
        swaps => format!("{} (a kubelet wants failSwapOn: false then)", swaps.join(" ")),
    };
    Check::ok(AREA, "swap", found)
}

fn judge_clock(behind: Option<Duration>) -> Check {
    match behind {
        Some(behind) if behind > CLOCK_SLACK => Check::gap(
            Verdict::Warning,
            (AREA, "clock"),
            format!(
                "at least {} days behind: certificates of registries will not be valid yet",
                behind.as_secs() / 86_400
            ),
            "set the clock, and keep it right with systemd-timesyncd or chrony",
        ),
        _ => Check::ok(AREA, "clock", "plausible"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            files: Some(1_048_576),
            pid_max: Some(4_194_304),
            threads_max: Some(192_000),
            inotify_instances: Some(8192),
            inotify_watches: Some(190_000),
            keys: Some(1_000_000),
            overcommit: Some(0),
            swaps: Vec::new(),
            clock_behind: None,
        }
    }

    /// The only gap that a change makes.
    #[track_caller]
    fn check_gap(change: impl FnOnce(&mut Facts), name: &str, found: &str, advice: &str) {
        let mut facts = facts();
        change(&mut facts);
        let gaps: Vec<Check> =
            judge(&facts).into_iter().filter(|check| check.verdict != Verdict::Ok).collect();
        let [gap] = &gaps[..] else { panic!("{gaps:?}") };
        assert_eq!(gap.name, name);
        assert!(gap.found.contains(found) && gap.advice.contains(advice), "{gap:?}");
    }

    #[test]
    fn a_common_node_is_fine() {
        for facts in
            [facts(), Facts::default(), Facts { swaps: vec!["/dev/sda2".into()], ..facts() }]
        {
            for check in judge(&facts) {
                assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
            }
        }
    }

    #[test]
    fn each_low_limit_is_told_with_its_setting() {
        check_gap(|f| f.files = Some(4096), "open files", "4096", "LimitNOFILE");
        check_gap(|f| f.pid_max = Some(4096), "processes", "4096", "kernel.pid_max");
        check_gap(|f| f.threads_max = Some(100), "processes", "100", "kernel.threads-max");
        check_gap(
            |f| f.inotify_instances = Some(128),
            "inotify instances",
            "128",
            "max_user_instances=8192",
        );
        check_gap(
            |f| f.inotify_watches = Some(8192),
            "inotify watches",
            "8192",
            "max_user_watches",
        );
        check_gap(|f| f.keys = Some(200), "keys", "200", "root_maxkeys");
        check_gap(|f| f.overcommit = Some(2), "overcommit", "is 2", "overcommit_memory=1");
        let year = Duration::from_secs(400 * 86_400);
        check_gap(|f| f.clock_behind = Some(year), "clock", "400 days", "chrony");
    }

    #[test]
    fn a_file_of_today_says_nothing_of_the_clock() {
        assert_eq!(judge_clock(Some(Duration::from_secs(3600))).verdict, Verdict::Ok);
    }
}
