//! Cgroups: which version, which controllers, and whether they can be used.

use runtime::cgroup::Layout;

use super::{Check, Verdict};

const AREA: &str = "cgroups";
/// What limits and statistics of containers need, with what goes without it.
const NEEDED: [(&str, Needed); 8] = [
    ("memory", Needed::Always("limits of memory, and telling who ran out of it")),
    ("cpu", Needed::Always("shares and limits of processors")),
    ("pids", Needed::Always("limits of processes")),
    ("devices", Needed::OnV1("keeping containers from devices")),
    ("freezer", Needed::OnV1("pausing, and ending containers that fork")),
    ("cpuset", Needed::Nice("binding containers to processors")),
    ("io", Needed::OnV2("statistics and weights of disks")),
    ("hugetlb", Needed::Nice("limits of huge pages")),
];

#[derive(Debug, Clone, Copy)]
enum Needed {
    Always(&'static str),
    OnV1(&'static str),
    /// Nobody's container stops working without it.
    OnV2(&'static str),
    Nice(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    unified: bool,
    controllers: Vec<String>,
    /// Mounts that are read-only.
    readonly: Vec<String>,
    /// v2 can kill a cgroup whole (5.14).
    kill: bool,
}

pub(super) fn check() -> Vec<Check> {
    match look() {
        Ok(facts) => judge(&facts),
        Err(error) => vec![Check::gap(
            Verdict::Failed,
            (AREA, "mounted"),
            error,
            "mount -t cgroup2 none /sys/fs/cgroup",
        )],
    }
}

fn look() -> Result<Facts, String> {
    let layout = Layout::detect().map_err(|error| crate::error::chain(&error))?;
    let root = layout.cgroup("/");
    let readonly = |path: &str| {
        let flags = rustix::fs::statvfs(path).map(|stat| stat.f_flag);
        flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    };
    let mounts = root.directories.iter().map(|directory| directory.path.clone());
    // The root has no cgroup.kill; any cgroup below it has.
    let below = |path: &str| {
        let entries = std::fs::read_dir(path).ok()?;
        entries.flatten().find(|entry| entry.path().join("cgroup.procs").exists())
    };
    let kill = root.directories.first().and_then(|directory| below(&directory.path));
    Ok(Facts {
        unified: layout.unified,
        controllers: layout.controllers(),
        readonly: mounts.filter(|path| readonly(path)).collect(),
        kill: kill.is_none_or(|entry| entry.path().join("cgroup.kill").exists()),
    })
}

fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![judge_version(facts), judge_writable(&facts.readonly)];
    checks.extend(judge_controllers(facts));
    checks
}

fn judge_version(facts: &Facts) -> Check {
    let name = "version";
    match (facts.unified, facts.kill) {
        (true, true) => Check::ok(AREA, name, "2"),
        (true, false) => Check::gap(
            Verdict::Warning,
            (AREA, name),
            "2, without cgroup.kill",
            "use kernel 5.14 or later: without it a container that forks is slow to end",
        ),
        (false, _) => Check::ok(AREA, name, "1 (a kubelet wants failCgroupV1: false then)"),
    }
}

fn judge_writable(readonly: &[String]) -> Check {
    if readonly.is_empty() {
        return Check::ok(AREA, "writable", "yes");
    }
    Check::gap(
        Verdict::Failed,
        (AREA, "writable"),
        format!("read-only: {}", readonly.join(", ")),
        "remount them read-write; inside a container, run it privileged",
    )
}

fn judge_controllers(facts: &Facts) -> Vec<Check> {
    let has = |name: &str| {
        let of_v1 = if name == "io" { "blkio" } else { name };
        facts.controllers.iter().any(|known| known == name || (!facts.unified && known == of_v1))
    };
    let mut missing = Vec::new();
    for (name, needed) in NEEDED {
        let (verdict, what) = match needed {
            Needed::Always(what) => (Verdict::Failed, what),
            Needed::OnV1(_) if facts.unified => continue,
            Needed::OnV1(what) => (Verdict::Failed, what),
            Needed::OnV2(what) | Needed::Nice(what) => (Verdict::Warning, what),
        };
        // Few use huge pages, and a kernel without them is as good.
        if !has(name) && name != "hugetlb" {
            missing.push((verdict, name, what));
        }
    }
    if missing.is_empty() {
        return vec![Check::ok(AREA, "controllers", facts.controllers.join(" "))];
    }
    let worst = missing.iter().map(|(verdict, ..)| *verdict).max().unwrap_or(Verdict::Ok);
    let lacks: Vec<String> =
        missing.iter().map(|(_, name, what)| format!("no {name}: {what} will not work")).collect();
    let advice = if missing.iter().any(|(_, name, _)| *name == "memory") {
        "add cgroup_enable=memory swapaccount=1 to the kernel's command line, and boot again"
    } else if facts.unified {
        "write the controllers with a + in front to /sys/fs/cgroup/cgroup.subtree_control, or use a kernel that has them"
    } else {
        "mount the controllers below /sys/fs/cgroup, or use a kernel that has them"
    };
    vec![Check::gap(worst, (AREA, "controllers"), lacks.join("; "), advice)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(unified: bool, controllers: &str) -> Facts {
        let controllers = controllers.split_whitespace().map(str::to_owned).collect();
        Facts { unified, controllers, readonly: Vec::new(), kill: true }
    }

    #[track_caller]
    fn check_controllers(facts: &Facts, verdict: Verdict, found: &str, advice: &str) {
        let [check] = &judge_controllers(facts)[..] else { panic!("one check") };
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.found.contains(found) && check.advice.contains(advice), "{check:?}");
    }

    #[test]
    fn a_whole_set_is_fine() {
        check_controllers(
            &facts(true, "cpuset cpu io memory hugetlb pids rdma misc"),
            Verdict::Ok,
            "cpuset cpu",
            "",
        );
        check_controllers(&facts(true, "cpuset cpu io memory pids"), Verdict::Ok, "", "");
        let v1 = "cpu cpuacct cpuset memory devices freezer blkio pids name=systemd";
        check_controllers(&facts(false, v1), Verdict::Ok, "", "");
    }

    #[test]
    fn what_is_missing_is_told_with_what_it_is_for() {
        check_controllers(
            &facts(true, "cpuset cpu io pids"),
            Verdict::Failed,
            "no memory: limits of memory",
            "cgroup_enable=memory",
        );
        check_controllers(
            &facts(true, "cpu memory pids"),
            Verdict::Warning,
            "no cpuset",
            "subtree_control",
        );
        check_controllers(
            &facts(true, "cpuset memory pids io"),
            Verdict::Failed,
            "no cpu:",
            "subtree_control",
        );
        check_controllers(
            &facts(false, "cpu cpuset memory blkio pids devices"),
            Verdict::Failed,
            "no freezer: pausing",
            "mount the controllers",
        );
    }

    #[test]
    fn versions_and_mounts_are_judged() {
        assert_eq!(judge_version(&facts(true, "")).found, "2");
        assert_eq!(judge_version(&facts(false, "")).verdict, Verdict::Ok);
        let old = Facts { kill: false, ..facts(true, "") };
        assert_eq!(judge_version(&old).verdict, Verdict::Warning);
        assert_eq!(judge_writable(&[]).verdict, Verdict::Ok);
        let check = judge_writable(&["/sys/fs/cgroup".into()]);
        assert_eq!(check.verdict, Verdict::Failed);
        assert!(check.found.contains("/sys/fs/cgroup") && check.advice.contains("privileged"));
    }
}
