//! Cgroups, v1 and v2: where they are, how they are made, killed and removed.
//!
//! A cgroup is known by the directories it has: one on v2, one per hierarchy on v1.
//! They follow from a path alone, so teardown needs nothing else. What is written
//! into them is planned in [`resources`]; what is read from them is in [`stats`].

pub mod devices;
pub mod resources;
pub mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use crate::error::{Doing, Error, Result};
use crate::spec;

/// Nested cgroups deeper than this are not followed: the kernel's own default limit is lower in practice.
const MAX_DEPTH: usize = 32;

/// Where the hierarchies of this machine are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// One cgroup v2 tree for all controllers. A hybrid machine counts as v1.
    pub unified: bool,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// As the mount has it: "cpu,cpuacct", "memory", "name=systemd"; empty for v2.
    controller: String,
    mount: PathBuf,
}

impl Layout {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// No cgroup hierarchy is mounted.
    pub fn detect() -> Result<Layout> {
        let table =
            fs::read_to_string("/proc/self/mountinfo").doing(|| "read /proc/self/mountinfo")?;
        Layout::parse(&table)
    }

    /// The layout that a table of mounts shows (proc(5), mountinfo).
    ///
    /// # Errors
    /// As [`Layout::detect`].
    pub fn parse(table: &str) -> Result<Layout> {
        let mut v1: Vec<Hierarchy> = Vec::new();
        let mut v2 = None;
        for line in table.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let mut after = after.split(' ');
            let (kind, options) =
                (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
            let mount = PathBuf::from(before.split(' ').nth(4).unwrap_or_default());
            if kind == "cgroup2" {
                v2.get_or_insert(mount);
            } else if kind == "cgroup" {
                let controller = v1_controller(options, &mount);
                if v1.iter().all(|hierarchy| hierarchy.controller != controller) {
                    v1.push(Hierarchy { controller, mount });
                }
            }
        }
        match v2 {
            Some(mount) if v1.is_empty() => Ok(Layout {
                unified: true,
                hierarchies: vec![Hierarchy { controller: String::new(), mount }],
            }),
            _ if v1.is_empty() => {
                Err(Error::NotFound("a mounted cgroup file system (/sys/fs/cgroup)".into()))
            }
            _ => Ok(Layout { unified: false, hierarchies: v1 }),
        }
    }

    /// The cgroup at an absolute path such as `/kubepods/pod1/c`.
    pub fn cgroup(&self, path: &str) -> spec::Cgroup {
        let relative = path.trim_start_matches('/');
        let directory = |hierarchy: &Hierarchy| spec::CgroupDirectory {
            controller: hierarchy.controller.clone(),
            path: hierarchy.mount.join(relative).to_string_lossy().into_owned(),
        };
        spec::Cgroup {
            unified: self.unified,
            directories: self.hierarchies.iter().map(directory).collect(),
        }
    }

    /// Makes the cgroup and those above it, ready for limits. One that exists is taken as it is.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn make(&self, path: &str) -> Result<spec::Cgroup> {
        for hierarchy in &self.hierarchies {
            if self.unified {
                make_v2(&hierarchy.mount, path)?;
            } else {
                make_v1(hierarchy, path)?;
            }
        }
        Ok(self.cgroup(path))
    }

    /// The cgroup in the hierarchy of one controller only; on v2 the same as [`Layout::cgroup`].
    pub fn cgroup_in(&self, path: &str, controller: &str) -> spec::Cgroup {
        let mut cgroup = self.cgroup(path);
        if !self.unified {
            cgroup
                .directories
                .retain(|directory| directory.controller.split(',').any(|name| name == controller));
        }
        cgroup
    }

    /// Makes the cgroup in the hierarchy of one controller only.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn make_in(&self, path: &str, controller: &str) -> Result<spec::Cgroup> {
        for hierarchy in &self.hierarchies {
            if self.unified {
                make_v2(&hierarchy.mount, path)?;
            } else if hierarchy.controller.split(',').any(|name| name == controller) {
                make_v1(hierarchy, path)?;
            }
        }
        Ok(self.cgroup_in(path, controller))
    }

    /// The names of the controllers that serve containers here.
    pub fn controllers(&self) -> Vec<String> {
        if self.unified {
            let mount = &self.hierarchies[0].mount;
            let list = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            return list.split_whitespace().map(str::to_owned).collect();
        }
        let names = self.hierarchies.iter().flat_map(|hierarchy| hierarchy.controller.split(','));
        names.map(str::to_owned).collect()
    }
}

/// Of the super options only controllers count, and `name=`; the order is the mount's directory name where that says the same.
fn v1_controller(options: &str, mount: &Path) -> String {
    const KNOWN: [&str; 14] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
        "misc",
    ];
    let parts: Vec<&str> = options
        .split(',')
        .filter(|option| KNOWN.contains(option) || option.starts_with("name="))
        .collect();
    if parts.is_empty() {
        return mount
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
    }
    parts.join(",")
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

fn make_v1(hierarchy: &Hierarchy, path: &str) -> Result<()> {
    let mut directory = hierarchy.mount.clone();
    let full = directory.join(path.trim_start_matches('/'));
    let cpuset = hierarchy.controller.split(',').any(|name| name == "cpuset");
    if !cpuset && make_directory(&full)? != Made::NoParent {
        return Ok(());
    }
    for part in components(path) {
        directory.push(part);
        if make_directory(&directory)? == Made::New && cpuset {
            inherit_cpuset(&directory)?;
        }
    }
    Ok(())
}

/// A new cpuset has no processors and takes no process before it is given some.
fn inherit_cpuset(directory: &Path) -> Result<()> {
    let parent = directory.parent().unwrap_or(directory);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = read(&parent.join(file))?;
        write(&directory.join(file), value.trim())?;
    }
    Ok(())
}

fn make_v2(mount: &Path, path: &str) -> Result<()> {
    let full = mount.join(path.trim_start_matches('/'));
    if make_directory(&full)? != Made::NoParent {
        let parent = full.parent().unwrap_or(mount);
        if parent != mount {
            enable_controllers(parent)?;
        }
        return Ok(());
    }
    let mut directory = mount.to_owned();
    for part in components(path) {
        enable_controllers(&directory)?;
        directory.push(part);
        make_directory(&directory)?;
    }
    Ok(())
}

/// Hands every controller on to the children (Documentation/admin-guide/cgroup-v2.rst, "Enabling and Disabling").
fn enable_controllers(directory: &Path) -> Result<()> {
    let available = read(&directory.join("cgroup.controllers"))?;
    let control = directory.join("cgroup.subtree_control");
    let enabled = read(&control)?;
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    for controller in available.split_whitespace().filter(|name| !enabled.contains(name)) {
        match write_existing(&control, &format!("+{controller}")) {
            // Real-time processes or a root with processes of its own keep one controller away, not the others.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EBUSY | libc::EINVAL | libc::EOPNOTSUPP)
                ) => {}
            other => other.doing(|| {
                format!("enable controller {controller} below {}", directory.display())
            })?,
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Made {
    New,
    Existed,
    NoParent,
}

fn make_directory(path: &Path) -> Result<Made> {
    match fs::create_dir(path) {
        Ok(()) => Ok(Made::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Made::Existed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Made::NoParent),
        Err(error) => Err(error).doing(|| format!("make cgroup {}", path.display())),
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).doing(|| format!("read {}", path.display()))
}

/// A file that is there. To make one in a cgroup is not permitted, which would hide that it is missing.
fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, value.as_bytes())
}

fn write(path: &Path, value: &str) -> Result<()> {
    write_existing(path, value).doing(|| format!("write {value:?} to {}", path.display()))
}

/// The directory that has the files of a controller: of v2's one, or of the hierarchy on v1.
pub fn directory<'a>(cgroup: &'a spec::Cgroup, controller: &str) -> Option<&'a Path> {
    let serves = |directory: &&spec::CgroupDirectory| {
        cgroup.unified || directory.controller.split(',').any(|name| name == controller)
    };
    cgroup.directories.iter().find(serves).map(|directory| Path::new(&directory.path))
}

/// Puts the calling process into a cgroup of v1. On v2 it was cloned into it.
///
/// It writes itself into `tasks`: moving one's own only thread takes no lock that waits for
/// all processors, as moving another process through `cgroup.procs` does.
///
/// # Errors
/// Those of the calls.
pub fn join_v1(cgroup: &spec::Cgroup) -> Result<()> {
    if cgroup.unified {
        return Ok(());
    }
    for directory in &cgroup.directories {
        write(&Path::new(&directory.path).join("tasks"), "0")?;
    }
    Ok(())
}

/// The hierarchy by which processes are found: every one has all of them.
fn processes_directory(cgroup: &spec::Cgroup) -> Option<&Path> {
    directory(cgroup, "freezer")
        .or_else(|| cgroup.directories.first().map(|directory| Path::new(&directory.path)))
}

/// The processes in a cgroup and all below it; none where it is gone.
///
/// # Errors
/// Those of reading but ENOENT and ENODEV.
pub fn processes(cgroup: &spec::Cgroup) -> Result<Vec<Pid>> {
    match processes_directory(cgroup) {
        Some(directory) => processes_below(directory, 0),
        None => Ok(Vec::new()),
    }
}

fn processes_below(directory: &Path, depth: usize) -> Result<Vec<Pid>> {
    let list = match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(list) => list,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).doing(|| format!("read the processes of {}", directory.display()));
        }
    };
    let mut pids: Vec<Pid> =
        list.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).collect();
    if depth < MAX_DEPTH {
        for child in children(directory)? {
            pids.extend(processes_below(&child, depth + 1)?);
        }
    }
    Ok(pids)
}

/// ENODEV is what an open file of a removed cgroup answers.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn children(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).doing(|| format!("list {}", directory.display())),
    };
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.filter_map(io::Result::ok).filter(is_directory).map(|entry| entry.path()).collect())
}

/// Kills every process of a cgroup and of those below it, frozen ones too. One that is gone has none.
///
/// v2 does it at once (cgroup.kill). On v1 they are frozen, so that none escapes by a fork
/// and no pid is used again meanwhile, told to die and thawed; one round may miss a process that
/// cannot be frozen, so the caller repeats it until the cgroup is empty. Returns how many there were on v1.
///
/// # Errors
/// Those of the calls.
pub fn kill(cgroup: &spec::Cgroup) -> Result<usize> {
    if cgroup.unified {
        let Some(directory) = cgroup.directories.first() else { return Ok(0) };
        return match write_existing(&Path::new(&directory.path).join("cgroup.kill"), "1") {
            Err(error) if !is_gone(&error) => {
                Err(error).doing(|| format!("kill cgroup {}", directory.path))
            }
            _ => Ok(0),
        };
    }
    freeze(cgroup)?;
    let pids = processes(cgroup)?;
    for pid in &pids {
        match rustix::process::kill_process(*pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => {
                return Err(errno).doing(|| format!("kill process {}", pid.as_raw_nonzero()));
            }
        }
    }
    thaw(cgroup)?;
    Ok(pids.len())
}

/// Stops every process of a cgroup where it is. On v1 the kernel may need a moment more.
///
/// # Errors
/// Those of the calls; a cgroup that is gone is none.
pub fn freeze(cgroup: &spec::Cgroup) -> Result<()> {
    set_frozen(cgroup, true)
}

/// Lets the processes of a cgroup go on.
///
/// # Errors
/// As [`freeze`].
pub fn thaw(cgroup: &spec::Cgroup) -> Result<()> {
    set_frozen(cgroup, false)
}

fn set_frozen(cgroup: &spec::Cgroup, frozen: bool) -> Result<()> {
    let (file, value) = match (cgroup.unified, frozen) {
        (true, true) => ("cgroup.freeze", "1"),
        (true, false) => ("cgroup.freeze", "0"),
        (false, true) => ("freezer.state", "FROZEN"),
        (false, false) => ("freezer.state", "THAWED"),
    };
    let Some(directory) = directory(cgroup, "freezer") else { return Ok(()) };
    match write_existing(&directory.join(file), value) {
        Err(error) if !is_gone(&error) => {
            Err(error).doing(|| format!("write {value} to {file} of {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Whether all processes have stopped after [`freeze`].
///
/// # Errors
/// Those of reading.
pub fn is_frozen(cgroup: &spec::Cgroup) -> Result<bool> {
    let Some(directory) = directory(cgroup, "freezer") else { return Ok(false) };
    if cgroup.unified {
        return Ok(read(&directory.join("cgroup.events"))?.lines().any(|line| line == "frozen 1"));
    }
    Ok(read(&directory.join("freezer.state"))?.trim() == "FROZEN")
}

/// Sets which devices the processes of a new cgroup may use.
///
/// # Errors
/// `Invalid` for rules that v1 cannot express; those of the calls.
pub fn allow_devices(cgroup: &spec::Cgroup, rules: &[devices::Rule]) -> Result<()> {
    let Some(directory) = directory(cgroup, "devices") else {
        return Err(Error::Invalid(
            "devices cannot be limited: this node has no devices controller".into(),
        ));
    };
    if cgroup.unified {
        let doing = || format!("limit the devices of cgroup {}", directory.display());
        let program =
            crate::sys::bpf::prog_load(&devices::program(rules), "berth_devices").doing(doing)?;
        let group = fs::File::open(directory).doing(doing)?;
        return crate::sys::bpf::prog_attach_cgroup(program, group).doing(doing);
    }
    let writes = devices::v1_writes(rules).map_err(|error| Error::Invalid(error.to_string()))?;
    writes.iter().try_for_each(|write| self::write(&directory.join(write.file()), &write.line))
}

/// How often the OOM killer has taken a process of the cgroup; 0 where it is gone or memory is not controlled.
pub fn oom_kills(cgroup: &spec::Cgroup) -> u64 {
    let file = if cgroup.unified { "memory.events" } else { "memory.oom_control" };
    let content = directory(cgroup, "memory")
        .and_then(|directory| fs::read_to_string(directory.join(file)).ok());
    let value = content.as_deref().and_then(|content| stats::field(content, "oom_kill"));
    value.unwrap_or(0)
}

/// Removes a cgroup with all below it. One that is gone is removed.
///
/// # Errors
/// EBUSY while processes are in it.
pub fn remove(cgroup: &spec::Cgroup) -> Result<()> {
    for directory in &cgroup.directories {
        remove_below(Path::new(&directory.path), 0)?;
    }
    Ok(())
}

/// Removes a cgroup that has neither processes nor children.
///
/// # Errors
/// EBUSY where it has.
pub fn remove_empty(cgroup: &spec::Cgroup) -> Result<()> {
    for directory in &cgroup.directories {
        match fs::remove_dir(&directory.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).doing(|| format!("remove cgroup {}", directory.path));
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove_below(directory: &Path, depth: usize) -> Result<()> {
    match fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Children keep it, or processes do: look.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) && depth < MAX_DEPTH => {}
        Err(error) => return Err(error).doing(|| format!("remove cgroup {}", directory.display())),
    }
    for child in children(directory)? {
        remove_below(&child, depth + 1)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("remove cgroup {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
