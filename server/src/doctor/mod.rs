//! `berth doctor`: whether this node can do what berth needs of it, and what to do about each gap.
//!
//! Each part reads facts and judges them with a pure function, which tests call with values.
//! A check that always warns is no check: what merely could be otherwise is told as it is found.

mod cgroups;
mod cni;
mod disk;
mod kernel;
mod limits;
mod network;

use std::path::{Path, PathBuf};

pub use cni::{cni, leaving};
pub use network::foreign;
use proto::control as v1;

/// Where things are that are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The root directory; it need not exist yet.
    pub root: PathBuf,
    /// The state directory; it need not exist yet.
    pub state: PathBuf,
    /// The shim's program.
    pub shim: PathBuf,
}

impl Default for Paths {
    /// Those of a daemon without flags, with the shim beside the running program.
    fn default() -> Paths {
        let config = crate::config::Config::default();
        let own = std::env::current_exe().unwrap_or_default();
        let shim = own.parent().unwrap_or(Path::new("/")).join("berth-shim");
        Paths { root: config.root, state: config.state, shim }
    }
}

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing need be done.
    Ok,
    /// Something does not work, or will not for long.
    Warning,
    /// Containers do not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// "kernel", "cgroups", "network", "disk", "sysctl" or "runtime".
    pub area: &'static str,
    /// The thing, in a few words.
    pub name: &'static str,
    /// What it comes to.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing need be done.
    pub advice: String,
}

/// Looks at everything, in a fixed order. Blocks, for tens of milliseconds mostly; a root
/// directory on a dead disk holds it up for good, so call it where it can be abandoned.
pub fn check(paths: &Paths) -> Vec<Check> {
    [
        kernel::check(),
        cgroups::check(),
        network::check(),
        disk::check(paths),
        limits::check(),
        runtime(paths),
    ]
    .concat()
}

impl Check {
    fn ok(area: &'static str, name: &'static str, found: impl Into<String>) -> Check {
        Check { area, name, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn gap(
        verdict: Verdict,
        (area, name): (&'static str, &'static str),
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Check {
        Check { area, name, verdict, found: found.into(), advice: advice.into() }
    }
}

impl From<Check> for v1::Check {
    fn from(check: Check) -> v1::Check {
        let result = match check.verdict {
            Verdict::Ok => v1::CheckResult::Ok,
            Verdict::Warning => v1::CheckResult::Warning,
            Verdict::Failed => v1::CheckResult::Failed,
        };
        v1::Check {
            area: check.area.into(),
            name: check.name.into(),
            result: result.into(),
            found: check.found,
            advice: check.advice,
        }
    }
}

/// The programs themselves.
fn runtime(paths: &Paths) -> Vec<Check> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&paths.shim)
        .map(|metadata| metadata.is_file().then(|| metadata.permissions().mode()));
    let mode = mode.map_err(|error| error.to_string());
    vec![judge_shim(&paths.shim, mode), judge_user(rustix::process::geteuid().as_raw())]
}

/// `mode` is None where there is something else than a file.
fn judge_shim(path: &Path, mode: Result<Option<u32>, String>) -> Check {
    let place = ("runtime", "shim");
    let path = path.display();
    let advice = "build it with hack/build, put it beside berth, or name it in the configuration \
                  ([runtime] shim)";
    match mode {
        Ok(Some(mode)) if mode & 0o111 != 0 => Check::ok(place.0, place.1, path.to_string()),
        Ok(Some(_)) => {
            let advice = format!("chmod +x {path}");
            Check::gap(Verdict::Failed, place, format!("{path} is not executable"), advice)
        }
        Ok(None) => Check::gap(Verdict::Failed, place, format!("{path} is no file"), advice),
        Err(error) => Check::gap(Verdict::Failed, place, format!("{path}: {error}"), advice),
    }
}

fn judge_user(uid: u32) -> Check {
    match uid {
        0 => Check::ok("runtime", "user", "root"),
        uid => Check::gap(
            Verdict::Warning,
            ("runtime", "user"),
            format!("user {uid}, who cannot look at everything"),
            "run the doctor as root, or ask a running daemon; berth serve needs root",
        ),
    }
}

/// A small file of the kernel's, without the space around its text.
fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A file that holds one number.
fn read_number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_shim(mode: Result<Option<u32>, String>, verdict: Verdict, found: &str) {
        let check = judge_shim(Path::new("/opt/berth-shim"), mode);
        assert_eq!(check.verdict, verdict);
        assert!(check.found.contains(found), "{check:?}");
        assert_eq!(check.advice.is_empty(), verdict == Verdict::Ok, "{check:?}");
    }

    #[test]
    fn the_shim_must_be_a_program() {
        check_shim(Ok(Some(0o100_755)), Verdict::Ok, "/opt/berth-shim");
        check_shim(Ok(Some(0o100_644)), Verdict::Failed, "not executable");
        check_shim(Ok(None), Verdict::Failed, "no file");
        check_shim(Err("No such file".into()), Verdict::Failed, "No such file");
    }

    #[test]
    fn whoever_is_not_root_sees_less() {
        assert_eq!(judge_user(0).verdict, Verdict::Ok);
        assert_eq!(judge_user(1000).verdict, Verdict::Warning);
    }

    #[test]
    fn this_machine_is_looked_at_whole() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: directory.path().join("root"),
            state: directory.path().join("state"),
            shim: "/proc/self/exe".into(),
        };
        let checks = check(&paths);
        for area in ["kernel", "cgroups", "network", "disk", "sysctl", "runtime"] {
            assert!(checks.iter().any(|check| check.area == area), "nothing of {area}");
        }
        for check in &checks {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(check.advice.is_empty(), check.verdict == Verdict::Ok, "{check:?}");
        }
        let mut names: Vec<_> = checks.iter().map(|check| (check.area, check.name)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), checks.len(), "every check has a name of its own");
        assert!(!paths.root.exists(), "to look is not to make");
    }
}
