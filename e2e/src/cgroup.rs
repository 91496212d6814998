//! cgroups from outside: what berth has set, read back through cgroups-rs, and the pod's parent that a kubelet makes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cgroups_rs::fs::cgroup::get_cgroups_relative_paths_by_pid;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::hierarchies;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Controller, MaxValue};

/// The controllers under which a kubelet makes a pod's cgroup on v1.
const KUBELET_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "systemd"];

/// Whether this machine has cgroup v2 alone.
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Where the hierarchies are mounted.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let fields = |line: &str| -> Option<PathBuf> {
        let (left, right) = line.split_once(" - ")?;
        right
            .starts_with("cgroup")
            .then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or_default()))
    };
    Ok(mounts.lines().filter_map(fields).collect())
}

/// All cgroup directories, of every hierarchy, whose path contains a text.
pub fn find(needle: &str) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for top in hierarchies()? {
        collect(&top, needle, &mut found);
    }
    Ok(found)
}

/// Directories vanish while we look; that is no error.
fn collect(dir: &Path, needle: &str, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            collect(&path, needle, found);
            if path.to_string_lossy().contains(needle) {
                found.insert(path);
            }
        }
    }
}

/// The processes of a cgroup directory.
pub fn processes(dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The cgroup of a pod, as a kubelet makes it before it calls the runtime.
#[derive(Debug)]
pub struct PodCgroup {
    /// What goes into `cgroup_parent`.
    pub parent: String,
    dirs: Vec<PathBuf>,
}

impl PodCgroup {
    /// Makes the cgroup in every hierarchy that a kubelet uses.
    pub fn new(parent: &str) -> Result<PodCgroup> {
        let mut dirs = Vec::new();
        if is_v2() {
            let top = Path::new("/sys/fs/cgroup");
            dirs.push(make(top, parent)?);
            for dir in [top.to_path_buf(), dirs[0].clone()] {
                for controller in ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"] {
                    // Not every kernel has all of them.
                    std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
                        .ok();
                }
            }
        } else {
            for top in
                KUBELET_CONTROLLERS.map(|controller| Path::new("/sys/fs/cgroup").join(controller))
            {
                if top.is_dir() {
                    dirs.push(make(&top, parent)?);
                }
            }
        }
        Ok(PodCgroup { parent: parent.into(), dirs })
    }

    /// Removes the cgroup; a child that berth left behind makes that fail.
    pub fn remove(&mut self) -> Result<()> {
        for dir in &self.dirs {
            match std::fs::remove_dir(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("remove the pod's cgroup {}", dir.display()));
                }
                _ => {}
            }
        }
        self.dirs.clear();
        Ok(())
    }

    /// A file of the pod's own cgroup in a v1 controller, or in the one hierarchy of v2.
    pub fn file(&self, controller: &str, name: &str) -> PathBuf {
        let top = PathBuf::from("/sys/fs/cgroup");
        let top = if is_v2() { top } else { top.join(controller) };
        top.join(self.parent.trim_start_matches('/')).join(name)
    }
}

fn make(top: &Path, parent: &str) -> Result<PathBuf> {
    let dir = top.join(parent.trim_start_matches('/'));
    std::fs::create_dir(&dir)
        .with_context(|| format!("make the pod's cgroup {}", dir.display()))?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        // On v1 a cpuset takes no process before both are filled.
        if top.ends_with("cpuset") {
            std::fs::copy(top.join(file), dir.join(file))?;
        }
    }
    Ok(dir)
}

/// The limits of a process' cgroups in the words of cgroups-rs.
#[derive(Clone, Debug)]
pub struct Limits {
    pid: u32,
}

impl Limits {
    /// The cgroups that a process is in now.
    pub fn of(pid: i32) -> Result<Limits> {
        Ok(Limits { pid: u32::try_from(pid)? })
    }

    fn with<C, T>(&self, name: &str, read: impl FnOnce(&C) -> T) -> Result<T>
    where
        for<'a> &'a C: From<&'a cgroups_rs::fs::Subsystem>,
        C: Controller + cgroups_rs::fs::ControllIdentifier,
    {
        let paths = get_cgroups_relative_paths_by_pid(self.pid)?;
        let path = paths
            .get(if is_v2() { "" } else { name })
            .with_context(|| format!("no {name} cgroup"))?;
        let cgroup = Cgroup::load(hierarchies::auto(), path.trim_start_matches('/'));
        let controller: &C =
            cgroup.controller_of().with_context(|| format!("no {name} controller"))?;
        Ok(read(controller))
    }

    /// Bytes of memory; where there is no limit, -1 on v2 and a huge number on v1.
    pub fn memory(&self) -> Result<i64> {
        self.with("memory", |memory: &MemController| memory.memory_stat().limit_in_bytes)
    }

    /// Microseconds of CPU time in a period, -1 for no limit; and the period.
    pub fn cpu(&self) -> Result<(i64, u64)> {
        self.with("cpu", |cpu: &CpuController| Ok((cpu.cfs_quota()?, cpu.cfs_period()?)))?
    }

    /// Shares on v1, weight on v2.
    pub fn cpu_share(&self) -> Result<u64> {
        Ok(self.with("cpu", CpuController::shares)??)
    }

    /// The CPUs that may be used.
    pub fn cpus(&self) -> Result<Vec<u64>> {
        let ranges = self.with("cpuset", |cpuset: &CpuSetController| cpuset.cpuset().cpus)?;
        Ok(ranges.into_iter().flat_map(|(first, last)| first..=last).collect())
    }

    /// Processes and threads, -1 for no limit.
    pub fn pids(&self) -> Result<i64> {
        Ok(match self.with("pids", PidController::get_pid_max)?? {
            MaxValue::Max => -1,
            MaxValue::Value(value) => value,
        })
    }
}
