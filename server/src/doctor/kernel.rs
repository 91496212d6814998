//! The kernel: its version, and what it was built with.

use rustix::mount::FsOpenFlags;

use super::{Check, Verdict, read, read_number};

const AREA: &str = "kernel";
/// mount_setattr(2) is of 5.12, cgroup.kill of 5.14.
const LEAST: (u32, u32) = (5, 14);
/// The oldest that berth is tested on.
const TESTED: (u32, u32) = (6, 1);
/// The kinds of namespaces that a container needs, as /proc/PID/ns calls them, with the files of their limits.
const NAMESPACES: [(&str, &str); 6] = [
    ("mnt", "mnt"),
    ("pid", "pid"),
    ("net", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
];
/// Each container and each pod takes one of most kinds.
const FEW_NAMESPACES: u64 = 256;
/// What filters of berth's and of pods' profiles answer with.
const SECCOMP_ACTIONS: [&str; 5] = ["kill_process", "errno", "trap", "log", "allow"];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Facts {
    release: String,
    overlay: bool,
    /// Kinds that the kernel lacks.
    missing: Vec<&'static str>,
    /// Kinds with a low limit, and the limit.
    few: Vec<(&'static str, u64)>,
    /// How many user namespaces there may be; None where the kernel has none.
    user_namespaces: Option<u64>,
    /// Words of actions_avail; None without seccomp filters.
    seccomp: Option<Vec<String>>,
}

pub(super) fn check() -> Vec<Check> {
    judge(&look())
}

fn look() -> Facts {
    let has = |kind: &str| std::fs::symlink_metadata(format!("/proc/self/ns/{kind}")).is_ok();
    let limit = |kind: &str| read_number(&format!("/proc/sys/user/max_{kind}_namespaces"));
    let listed = read("/proc/filesystems").unwrap_or_default();
    let listed = listed.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    Facts {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        // Asking for it loads the module where it is one; only root may ask.
        overlay: listed || rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).is_ok(),
        missing: NAMESPACES.iter().filter(|(kind, _)| !has(kind)).map(|(kind, _)| *kind).collect(),
        few: NAMESPACES
            .iter()
            .filter_map(|(kind, file)| Some((*kind, limit(file)?)))
            .filter(|(_, limit)| *limit < FEW_NAMESPACES)
            .collect(),
        user_namespaces: has("user").then(|| limit("user").unwrap_or(u64::MAX)),
        seccomp: actions.map(|words| words.split_whitespace().map(str::to_owned).collect()),
    }
}

fn judge(facts: &Facts) -> Vec<Check> {
    vec![
        judge_version(&facts.release),
        judge_overlay(facts.overlay),
        judge_namespaces(facts),
        judge_user_namespaces(facts.user_namespaces),
        judge_seccomp(facts.seccomp.as_deref()),
    ]
}

fn judge_version(release: &str) -> Check {
    let place = (AREA, "version");
    let (major, minor) = TESTED;
    match crate::node::version(release) {
        Some(version) if version >= TESTED => Check::ok(AREA, place.1, release),
        Some(version) if version >= LEAST => Check::gap(
            Verdict::Warning,
            place,
            format!("{release}, older than any that berth is tested on"),
            format!("use {major}.{minor} or later, which Debian 12 has"),
        ),
        Some(_) => Check::gap(
            Verdict::Failed,
            place,
            format!("{release} lacks system calls that berth needs"),
            format!("use {major}.{minor} or later, which Debian 12 has"),
        ),
        None => Check::gap(
            Verdict::Warning,
            place,
            format!("{release:?} tells no version"),
            format!("make sure that it is {major}.{minor} or later"),
        ),
    }
}

fn judge_overlay(overlay: bool) -> Check {
    if overlay {
        return Check::ok(AREA, "overlay", "there");
    }
    Check::gap(
        Verdict::Failed,
        (AREA, "overlay"),
        "the kernel does not know the file system",
        "modprobe overlay, and put a line \"overlay\" into /etc/modules-load.d/berth.conf",
    )
}

fn judge_namespaces(facts: &Facts) -> Check {
    let place = (AREA, "namespaces");
    if !facts.missing.is_empty() {
        return Check::gap(
            Verdict::Failed,
            place,
            format!("the kernel lacks {}", facts.missing.join(", ")),
            "use a kernel with CONFIG_NAMESPACES and all kinds below it",
        );
    }
    if facts.few.is_empty() {
        return Check::ok(AREA, place.1, "all kinds");
    }
    let list = |text: &dyn Fn(&(&str, u64)) -> String, between: &str| {
        facts.few.iter().map(text).collect::<Vec<_>>().join(between)
    };
    let verdict = if facts.few.iter().any(|(_, limit)| *limit == 0) {
        Verdict::Failed
    } else {
        Verdict::Warning
    };
    Check::gap(
        verdict,
        place,
        format!("few are allowed: {}", list(&|(kind, limit)| format!("{limit} {kind}"), ", ")),
        format!(
            "sysctl -w {}",
            list(&|(kind, _)| format!("user.max_{kind}_namespaces=65536"), " ")
        ),
    )
}

fn judge_user_namespaces(limit: Option<u64>) -> Check {
    let place = (AREA, "user namespaces");
    match limit {
        Some(0) => Check::gap(
            Verdict::Warning,
            place,
            "none are allowed, so no pod can have one",
            "sysctl -w user.max_user_namespaces=65536",
        ),
        Some(_) => Check::ok(AREA, place.1, "there"),
        None => Check::gap(
            Verdict::Warning,
            place,
            "the kernel has none, so no pod can have one",
            "use a kernel with CONFIG_USER_NS, if pods are to have some",
        ),
    }
}

fn judge_seccomp(actions: Option<&[String]>) -> Check {
    let place = (AREA, "seccomp");
    let Some(actions) = actions else {
        return Check::gap(
            Verdict::Failed,
            place,
            "the kernel has no filters",
            "use a kernel with CONFIG_SECCOMP_FILTER, or run containers with \
             --security-opt seccomp=unconfined",
        );
    };
    let has = |wanted: &str| actions.iter().any(|action| action == wanted);
    let missing: Vec<&str> = SECCOMP_ACTIONS.into_iter().filter(|wanted| !has(wanted)).collect();
    if !missing.is_empty() {
        return Check::gap(
            Verdict::Failed,
            place,
            format!("filters lack {}", missing.join(", ")),
            "use a newer kernel",
        );
    }
    Check::ok(
        AREA,
        place.1,
        if has("user_notif") { "filters and notifications" } else { "filters" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_one(check: Check, verdict: Verdict, found: &str, advice: &str) {
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.found.contains(found) && check.advice.contains(advice), "{check:?}");
    }

    #[test]
    fn old_kernels_are_told() {
        check_one(judge_version("6.1.0-32-amd64"), Verdict::Ok, "6.1.0", "");
        check_one(judge_version("7.0-rc1"), Verdict::Ok, "7.0", "");
        check_one(judge_version("5.15.0"), Verdict::Warning, "5.15.0", "6.1 or later");
        check_one(judge_version("4.19.0"), Verdict::Failed, "4.19.0", "6.1 or later");
        check_one(judge_version("custom"), Verdict::Warning, "custom", "6.1 or later");
    }

    #[test]
    fn what_the_kernel_lacks_is_told() {
        check_one(judge_overlay(false), Verdict::Failed, "does not know", "modprobe overlay");
        check_one(judge_overlay(true), Verdict::Ok, "", "");
        let facts = Facts { missing: vec!["cgroup"], ..Facts::default() };
        check_one(judge_namespaces(&facts), Verdict::Failed, "lacks cgroup", "CONFIG_NAMESPACES");
        let facts = Facts { few: vec![("net", 10), ("mnt", 20)], ..Facts::default() };
        check_one(
            judge_namespaces(&facts),
            Verdict::Warning,
            "10 net, 20 mnt",
            "sysctl -w user.max_net_namespaces=65536 user.max_mnt_namespaces=65536",
        );
        let facts = Facts { few: vec![("net", 0)], ..Facts::default() };
        check_one(judge_namespaces(&facts), Verdict::Failed, "0 net", "sysctl -w");
        check_one(judge_user_namespaces(None), Verdict::Warning, "has none", "CONFIG_USER_NS");
        check_one(judge_user_namespaces(Some(0)), Verdict::Warning, "none are allowed", "sysctl");
        check_one(judge_user_namespaces(Some(1)), Verdict::Ok, "", "");
    }

    #[test]
    fn filters_need_their_actions() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let all = words("kill_process kill_thread trap errno user_notif trace log allow");
        check_one(judge_seccomp(Some(&all)), Verdict::Ok, "filters and notifications", "");
        let old = words("kill trap errno trace allow");
        check_one(judge_seccomp(Some(&old)), Verdict::Failed, "lack kill_process, log", "newer");
        check_one(judge_seccomp(None), Verdict::Failed, "no filters", "CONFIG_SECCOMP_FILTER");
    }
}
