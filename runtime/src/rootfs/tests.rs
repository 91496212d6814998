//! Plans by value.

use std::path::{Path, PathBuf};

use super::{MountStep, Source, Step, plan};
use crate::spec::{self, mount::Source as SpecSource};

fn mount(target: &str, source: SpecSource) -> spec::Mount {
    spec::Mount { target: target.into(), source: Some(source), ..Default::default() }
}

fn bind(path: &str) -> SpecSource {
    SpecSource::Bind(spec::BindMount {
        host_path: path.into(),
        recursive: true,
        ..Default::default()
    })
}

fn targets(steps: &[Step]) -> Vec<String> {
    let shown = |step: &Step| match step {
        Step::Mount(mount) => format!("mount {}", mount.target.display()),
        Step::Node(node) => format!("node {}", node.path.display()),
        Step::Link { path, .. } => format!("link {}", path.display()),
        Step::ReadOnly(path) => format!("readonly {}", path.display()),
        Step::Seal(path) => format!("seal {}", path.display()),
        Step::Mask(path) => format!("mask {}", path.display()),
    };
    steps.iter().map(shown).collect()
}

#[test]
fn devices_come_right_after_dev_and_before_what_is_mounted_on_them() {
    let device = |path: &str| spec::Device {
        path: path.into(),
        mode: libc::S_IFCHR | 0o600,
        ..Default::default()
    };
    let spec = spec::ContainerSpec {
        mounts: vec![
            mount("/proc", SpecSource::Proc(spec::ProcMount {})),
            mount("/dev", SpecSource::Tmpfs(spec::Tmpfs { size: 65536, mode: 0o755 })),
            mount("/dev/null", bind("/x")),
        ],
        devices: vec![device("/dev/fuse"), device("/opt/dev"), device("/dev/zero")],
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        rootfs: Some(spec::Rootfs { readonly: true, ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(
        targets(&plan(&spec)),
        [
            "mount /proc",
            "mount /dev",
            "node /dev/null",
            "node /dev/full",
            "node /dev/random",
            "node /dev/urandom",
            "node /dev/tty",
            "link /dev/fd",
            "link /dev/stdin",
            "link /dev/stdout",
            "link /dev/stderr",
            "link /dev/ptmx",
            "node /dev/fuse",
            "node /dev/zero",
            "mount /dev/null",
            "node /opt/dev",
            "readonly /proc/sys",
            "mask /proc/kcore",
            "seal /",
        ]
    );
}

#[test]
fn a_dev_of_the_user_gets_no_nodes_of_ours() {
    let spec =
        spec::ContainerSpec { mounts: vec![mount("/dev", bind("/dev"))], ..Default::default() };
    assert_eq!(targets(&plan(&spec)), ["mount /dev"]);
}

fn cgroup_spec(unified: bool, private: bool) -> spec::ContainerSpec {
    let directory = |controller: &str, path: &str| spec::CgroupDirectory {
        controller: controller.into(),
        path: path.into(),
    };
    let directories = if unified {
        vec![directory("", "/sys/fs/cgroup/pod/c")]
    } else {
        vec![
            directory("memory", "/sys/fs/cgroup/memory/pod/c"),
            directory("name=systemd", "/sys/fs/cgroup/systemd/pod/c"),
        ]
    };
    let mode = if private { spec::NamespaceMode::Container } else { spec::NamespaceMode::Pod };
    spec::ContainerSpec {
        mounts: vec![spec::Mount {
            readonly: true,
            ..mount("/sys/fs/cgroup", SpecSource::Cgroup(spec::CgroupMount {}))
        }],
        cgroup: Some(spec::Cgroup { unified, directories }),
        namespaces: Some(spec::Namespaces { cgroup: mode as i32, ..Default::default() }),
        ..Default::default()
    }
}

#[track_caller]
fn check_cgroup(unified: bool, private: bool, expected: &[&str]) {
    assert_eq!(targets(&plan(&cgroup_spec(unified, private))), expected);
}

#[test]
fn cgroups_show_the_container_only() {
    check_cgroup(true, true, &["mount /sys/fs/cgroup"]);
    check_cgroup(true, false, &["mount /sys/fs/cgroup"]);
    check_cgroup(
        false,
        false,
        &[
            "mount /sys/fs/cgroup",
            "mount /sys/fs/cgroup/memory",
            "mount /sys/fs/cgroup/systemd",
            "seal /sys/fs/cgroup",
        ],
    );
    let steps = plan(&cgroup_spec(true, false));
    let expected = Source::Bind {
        path: "/sys/fs/cgroup/pod/c".into(),
        recursive: false,
        propagation: spec::Propagation::Private,
        make: false,
    };
    assert!(matches!(&steps[0], Step::Mount(MountStep { source, attributes, .. })
        if *source == expected && *attributes == libc::MOUNT_ATTR_RDONLY));
}

#[test]
fn own_file_systems_are_strict_about_links_and_volumes_are_not() {
    let spec = spec::ContainerSpec {
        mounts: vec![
            mount("/proc", SpecSource::Proc(spec::ProcMount {})),
            mount("/sys", SpecSource::Sysfs(spec::SysfsMount {})),
            mount("/data", bind("/srv")),
        ],
        ..Default::default()
    };
    let strict: Vec<(PathBuf, bool)> = plan(&spec)
        .iter()
        .filter_map(|step| match step {
            Step::Mount(mount) => Some((mount.target.clone(), mount.strict)),
            Step::Node(_)
            | Step::Link { .. }
            | Step::ReadOnly(_)
            | Step::Seal(_)
            | Step::Mask(_) => None,
        })
        .collect();
    assert_eq!(
        strict,
        [
            (Path::new("/proc").into(), true),
            (Path::new("/sys").into(), true),
            (Path::new("/data").into(), false)
        ]
    );
}

#[test]
fn an_image_is_always_read_only() {
    let image = SpecSource::Image(spec::ImageMount {
        base: "/b".into(),
        lowers: vec!["1".into()],
        sub_path: "/x".into(),
    });
    let spec = spec::ContainerSpec { mounts: vec![mount("/i", image)], ..Default::default() };
    assert!(matches!(
        &plan(&spec)[0],
        Step::Mount(MountStep { attributes: libc::MOUNT_ATTR_RDONLY, .. })
    ));
}
