//! Layouts by value.

use std::path::Path;

use super::{Layout, directory};

const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw,relatime - tmpfs cgroup rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
29 25 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
30 25 0:23 /x /mnt/again rw,relatime - cgroup cgroup rw,cpu
31 25 0:27 / /sys/fs/cgroup/cpuset,cpuacct rw,nosuid shared:7 - cgroup cgroup rw,cpuset,cpuacct,clone_children
";
const UNIFIED: &str =
    "25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

#[track_caller]
fn check(table: &str, unified: bool, expected: &[(&str, &str)]) {
    let layout = Layout::parse(table).unwrap();
    let cgroup = layout.cgroup("/pod/c");
    let found: Vec<_> =
        cgroup.directories.iter().map(|dir| (dir.controller.as_str(), dir.path.as_str())).collect();
    assert_eq!((layout.unified, found.as_slice()), (unified, expected));
}

#[test]
fn a_hybrid_machine_counts_as_v1() {
    check(
        HYBRID,
        false,
        &[
            ("cpu", "/sys/fs/cgroup/cpu/pod/c"),
            ("memory", "/sys/fs/cgroup/memory/pod/c"),
            ("name=systemd", "/sys/fs/cgroup/systemd/pod/c"),
            ("cpuset,cpuacct", "/sys/fs/cgroup/cpuset,cpuacct/pod/c"),
        ],
    );
}

#[test]
fn one_tree_is_v2() {
    check(UNIFIED, true, &[("", "/sys/fs/cgroup/pod/c")]);
}

#[test]
fn a_machine_without_cgroups_is_an_error() {
    assert!(Layout::parse("20 1 8:1 / / rw - ext4 /dev/sda rw\n").is_err());
}

#[test]
fn controllers_are_found_in_shared_hierarchies() {
    let cgroup = Layout::parse(HYBRID).unwrap().cgroup("/c");
    assert_eq!(directory(&cgroup, "cpuacct"), Some(Path::new("/sys/fs/cgroup/cpuset,cpuacct/c")));
    assert_eq!(directory(&cgroup, "pids"), None);
    let cgroup = Layout::parse(UNIFIED).unwrap().cgroup("/c");
    assert_eq!(directory(&cgroup, "pids"), Some(Path::new("/sys/fs/cgroup/c")));
}
