//! Plans by value.

use std::path::Path;

use proto::shim::mount::Source;
use proto::shim::user::{Group, User as Name};

use super::*;
use crate::container::spec::{Capabilities, Local, Mount, Restart};
use crate::sandbox::spec::PodName;

fn pod() -> SandboxSpec {
    SandboxSpec {
        name: PodName {
            name: "web".into(),
            namespace: "default".into(),
            uid: "1".into(),
            attempt: 0,
        },
        hostname: "web".into(),
        log_directory: None,
        dns: None,
        ports: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: String::new(),
        network: NetworkMode::Pod,
        pid: PidMode::Container,
        host_ipc: false,
        sysctls: Default::default(),
        privileged: false,
        handler: String::new(),
        shm_size: 1,
        local: false,
        overhead: None,
        resources: None,
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        name: "c".into(),
        attempt: 0,
        image: "i".into(),
        user_image: String::new(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: "c.log".into(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Default::default(),
        oom_score_adj: 0,
        security: Security {
            privileged: false,
            capabilities: Capabilities { granted: runtime::capabilities::DEFAULT, ambient: 0 },
            user: User::Image,
            supplemental_groups: Vec::new(),
            merge_groups: true,
            readonly_rootfs: false,
            no_new_privs: false,
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            seccomp: Profile::Unset,
            apparmor: Profile::Unset,
            selinux: None,
            pid: PidTarget::Pod,
        },
        stop_signal: None,
        local: None,
    }
}

fn image() -> ImageDefaults {
    ImageDefaults {
        env: vec!["A=1".into(), "PATH=/bin".into(), "CANARY".into()],
        entrypoint: vec!["/entry".into()],
        cmd: vec!["default".into()],
        working_dir: "srv".into(),
        user: "33:34".into(),
        volumes: Vec::new(),
    }
}

fn plan_of(
    spec: &ContainerSpec,
    pod: &SandboxSpec,
    image: &ImageDefaults,
) -> Result<shim::ContainerSpec> {
    let id = ContainerId::random();
    let around = Surroundings {
        id: &id,
        sandbox: pod,
        image,
        base: Path::new("/root"),
        lowers: vec!["images/layers/2".into()],
        upper: "containers/x/upper".into(),
        work: "containers/x/work".into(),
        sources: spec.mounts.iter().map(|_| None).collect(),
        image_volumes: Vec::new(),
        cgroup: shim::Cgroup { unified: true, directories: Vec::new() },
        devices: Vec::new(),
        hostname: &pod.hostname,
        files: (1024, 4096),
        rotation: None,
    };
    plan(spec, &around, false)
}

fn bind(container_path: &str) -> Mount {
    Mount {
        container_path: container_path.into(),
        source: MountSource::Host("/srv".into()),
        readonly: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
        selinux_relabel: false,
        options: Vec::new(),
    }
}

#[track_caller]
fn check_arguments(command: &[&str], args: &[&str], expected: &[&str]) {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let spec = ContainerSpec { command: words(command), args: words(args), ..container() };
    let found: Vec<String> = arguments(&spec, &image())
        .unwrap()
        .into_iter()
        .map(|word| String::from_utf8(word).unwrap())
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_command_replaces_all_and_arguments_replace_the_images() {
    check_arguments(&[], &[], &["/entry", "default"]);
    check_arguments(&[], &["x"], &["/entry", "x"]);
    check_arguments(&["run"], &[], &["run"]);
    check_arguments(&["run"], &["x"], &["run", "x"]);
}

#[test]
fn no_command_at_all_is_an_error() {
    assert!(arguments(&container(), &ImageDefaults::default()).is_err());
    let empty = ContainerSpec { command: vec![String::new()], ..container() };
    assert!(arguments(&empty, &image()).is_err());
}

#[test]
fn later_variables_win_and_values_are_bytes() {
    let spec = ContainerSpec {
        env: vec![("A".into(), vec![0xff]), ("B".into(), b"2".to_vec())],
        ..container()
    };
    let plan = plan_of(&spec, &pod(), &image()).unwrap();
    let expected: Vec<&[u8]> = vec![b"PATH=/bin", b"HOSTNAME=web", b"A=\xff", b"CANARY", b"B=2"];
    assert_eq!(plan.process.unwrap().env, expected);
}

#[test]
fn the_working_directory_is_absolute() {
    let directory = |spec: &ContainerSpec, image: &ImageDefaults| {
        plan_of(spec, &pod(), image).unwrap().process.unwrap().cwd
    };
    assert_eq!(directory(&container(), &image()), "/srv");
    assert_eq!(
        directory(&ContainerSpec { working_dir: "/x".into(), ..container() }, &image()),
        "/x"
    );
    let silent = ImageDefaults { working_dir: String::new(), ..image() };
    assert_eq!(directory(&container(), &silent), "/");
}

#[track_caller]
fn check_user(text: &str, user: Name, group: Option<Group>) {
    let found = parse_user(text, "user").unwrap();
    assert_eq!((found.user, found.group), (Some(user), group));
}

#[test]
fn users_are_numbers_or_names() {
    check_user("", Name::Uid(0), None);
    check_user("1000", Name::Uid(1000), None);
    check_user("4294967294", Name::Uid(4_294_967_294), None);
    check_user("www-data", Name::Username("www-data".into()), None);
    check_user("1:2", Name::Uid(1), Some(Group::Gid(2)));
    check_user("web:media", Name::Username("web".into()), Some(Group::Groupname("media".into())));
}

#[test]
fn what_looks_like_a_number_is_never_a_name() {
    for text in [
        "2147483648000",
        "4294967295",
        "4294967296",
        "-1",
        "100000000000000000000",
        "0x0",
        "+0",
        " 0",
        "1000:4294967296",
        ":0",
        "a b",
    ] {
        assert!(parse_user(text, "user").is_err(), "{text}");
    }
}

fn targets(plan: &shim::ContainerSpec) -> Vec<&str> {
    plan.mounts.iter().map(|mount| mount.target.as_str()).collect()
}

#[test]
fn own_mounts_come_first_and_parents_before_children() {
    let spec = ContainerSpec {
        mounts: vec![bind("/data/sub"), bind("/data"), bind("/dev/shm")],
        ..container()
    };
    assert_eq!(
        targets(&plan_of(&spec, &pod(), &image()).unwrap()),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts",
            "/data",
            "/data/sub",
            "/dev/shm",
        ]
    );
}

#[test]
fn a_dev_of_the_client_replaces_all_of_ours() {
    let spec = ContainerSpec { mounts: vec![bind("/dev")], ..container() };
    assert!(
        !targets(&plan_of(&spec, &pod(), &image()).unwrap())
            .iter()
            .any(|target| target.starts_with("/dev/"))
    );
}

#[test]
fn proc_is_covered_but_never_replaced() {
    let spec = ContainerSpec { mounts: vec![bind("/proc")], ..container() };
    assert_eq!(
        targets(&plan_of(&spec, &pod(), &image()).unwrap())
            .iter()
            .filter(|target| **target == "/proc")
            .count(),
        2
    );
}

#[test]
fn privileged_containers_are_not_fenced_in() {
    let mut spec = container();
    spec.security.privileged = true;
    let plan = plan_of(&spec, &pod(), &image()).unwrap();
    assert!(plan.masked_paths.is_empty() && plan.readonly_paths.is_empty());
    let readonly =
        |target: &str| plan.mounts.iter().any(|mount| mount.target == target && mount.readonly);
    assert!(!readonly("/sys") && !readonly("/sys/fs/cgroup"));
    assert_eq!(plan.process.unwrap().capabilities.unwrap().bounding, runtime::capabilities::ALL);
}

#[test]
fn capabilities_are_inherited_only_where_they_are_ambient() {
    let mut spec = container();
    spec.security.capabilities = Capabilities { granted: 0b110, ambient: 0b100 };
    let found = plan_of(&spec, &pod(), &image()).unwrap().process.unwrap().capabilities.unwrap();
    assert_eq!((found.bounding, found.inheritable, found.ambient), (0b110, 0b100, 0b100));
}

#[test]
fn namespaces_follow_the_sandbox() {
    let mode = |spec: &ContainerSpec, pod: &SandboxSpec| {
        let namespaces = plan_of(spec, pod, &image()).unwrap().namespaces.unwrap();
        (namespaces.network(), namespaces.pid(), namespaces.ipc(), namespaces.uts())
    };
    use shim::NamespaceMode as Mode;
    assert_eq!(mode(&container(), &pod()), (Mode::Pod, Mode::Container, Mode::Pod, Mode::Pod));
    let node =
        SandboxSpec { network: NetworkMode::Node, pid: PidMode::Node, host_ipc: true, ..pod() };
    assert_eq!(mode(&container(), &node), (Mode::Node, Mode::Node, Mode::Node, Mode::Node));
    let shared = SandboxSpec { pid: PidMode::Pod, ..pod() };
    assert_eq!(mode(&container(), &shared).1, Mode::Pod);
}

#[test]
fn host_ipc_shows_the_nodes_shared_memory() {
    let pod = SandboxSpec { host_ipc: true, ..pod() };
    let plan = plan_of(&container(), &pod, &image()).unwrap();
    let shm = plan.mounts.iter().find(|mount| mount.target == "/dev/shm").unwrap();
    assert!(matches!(&shm.source, Some(Source::Bind(bind)) if bind.host_path == "/dev/shm"));
}

#[test]
fn a_terminal_brings_its_size_and_term() {
    let local = Local { restart: Restart::No, remove: false, terminal_size: (24, 80) };
    let spec = ContainerSpec {
        tty: true,
        stdin: true,
        stdin_once: true,
        local: Some(local),
        ..container()
    };
    let plan = plan_of(&spec, &pod(), &image()).unwrap();
    let stdio = plan.stdio.unwrap();
    assert_eq!(
        (stdio.terminal, stdio.stdin(), stdio.rows, stdio.columns),
        (true, shim::Stdin::Once, 24, 80)
    );
    assert!(plan.process.unwrap().env.contains(&b"TERM=xterm".to_vec()));
}
