//! Tests of the configuration as a whole: text and flags in, settings or problems out.

use super::*;

const FILE: &str = "/etc/berth/config.toml";

fn parsed(text: &str, flags: &Flags) -> Result<Config, Problems> {
    parse(Path::new(FILE), text, flags)
}

/// The text must be refused with exactly these problems, one a line.
#[track_caller]
fn check_problems(text: &str, expected: &[&str]) {
    let problems = parsed(text, &Flags::default()).expect_err(text);
    let lines: Vec<String> = problems.0.iter().map(|problem| problem.to_string()).collect();
    assert_eq!(lines, expected, "{text}");
}

/// The text must be good and mean the default but for what `change` does.
#[track_caller]
fn check_meaning(text: &str, flags: Flags, change: impl FnOnce(&mut Config)) {
    let mut expected = Config::default();
    change(&mut expected);
    assert_eq!(parsed(text, &flags), Ok(expected), "{text}");
}

fn documented() -> &'static str {
    include_str!("../../../hack/config.toml")
}

#[test]
fn the_documented_file_is_the_default() {
    check_meaning(documented(), Flags::default(), |_| ());
    check_meaning("", Flags::default(), |_| ());
}

#[test]
fn the_documented_file_has_every_key_and_no_other() {
    let table: toml::Table = documented().parse().unwrap();
    let mut written = Vec::new();
    for (key, value) in &table {
        written.push(key.clone());
        if let Some(section) = value.as_table() {
            written.extend(section.keys().map(|inner| format!("{key}.{inner}")));
        }
    }
    let mut known = raw::known_keys();
    written.sort();
    known.sort();
    assert_eq!(written, known);
}

/// No value here is a default and no two of one kind are equal, so a key that ends up in
/// another field shows.
const ALL_CHANGED: &str = r#"root = "/data/a \"quoted\" \\ place"
state = "/data/state"
socket = "/data/socket"
socket_group = "docker"

[log]
level = "trace"
format = "json"

[cgroup]
driver = "cgroupfs"

[network]
mode = "bridge"
bridge_subnet = "10.1.0.0/24"
cni_conf_dirs = ["/d"]
cni_bin_dirs = ["/e", "/f"]
cni_timeout = "59s"
ip_preference = "ipv6"

[images]
hosts_dirs = ["/b", "/c"]

[limits]
request = "80MiB"
exec_output = "65KiB"
manifest_bytes = "5MiB"
config_bytes = "9MiB"
token_bytes = "2MiB"
error_bytes = "65KiB"
index_entries = 999
index_depth = 1
layers = 499
layer_bytes = "65GiB"
tar_bytes = "129GiB"
tar_entries = 1999999
path_bytes = "4094B"
path_depth = 511
header_records = "2MiB"
xattr_bytes = "257KiB"
sparse_extents = 262143
trailer_bytes = "17MiB"
gzip_members = 4194303
zstd_window = "129MiB"
header_bytes = "257KiB"
header_count = 127
redirects = 9
read_ahead_bytes = "65MiB"
part_bytes = "9MiB"
hosts_file_bytes = "257KiB"
hosts = 31
connect_timeout = "16s"
header_timeout = "1m1s"
document_timeout = "2m1s"
progress_timeout = "1m1s"
progress_bytes = "17KiB"
retry_after = "1m1s"
retry_pause = "251ms"
retries = 4

[runtime]
shim = "/opt/berth-shim"
run_log_size = "66KiB"
run_log_files = 2
stop_timeout = "0s"
drain_deadline = "1h"
unset_seccomp_profile = "/etc/berth/seccomp.json"
enable_unprivileged_ports = false
enable_unprivileged_icmp = false

[streaming]
address = "::1"
port = 10010
idle_timeout = "1h"
stream_creation_timeout = "31s"
"#;

#[test]
fn the_effective_configuration_is_written_as_it_is_read() {
    let config = parsed(ALL_CHANGED, &Flags::default()).unwrap();
    assert_eq!(config.to_string(), ALL_CHANGED);
    let default = Config::default().to_string();
    let same = |line: &&str| !line.is_empty() && !line.starts_with('[') && default.contains(*line);
    assert_eq!(ALL_CHANGED.lines().find(same), None, "every line differs from the default");
}

#[test]
fn keys_change_what_they_name() {
    check_meaning("log.level = \"debug\"", Flags::default(), |c| c.log.level = Level::Debug);
    check_meaning("[limits]\nrequest = \"80MiB\"", Flags::default(), |c| {
        c.limits.request = Size::mib(80)
    });
    check_meaning("[network]\nbridge_subnet = \"192.168.0.0/30\"", Flags::default(), |c| {
        c.network.bridge_subnet =
            Some(Subnet { address: Ipv4Addr::new(192, 168, 0, 0), prefix: 30 });
    });
    check_meaning("[runtime]\nunset_seccomp_profile = \"default\"", Flags::default(), |c| {
        c.runtime.unset_seccomp_profile = SeccompProfile::Default;
    });
}

#[test]
fn the_socket_lies_in_the_state_directory_unless_it_is_said() {
    let flags = |state: Option<&str>, socket: Option<&str>| Flags {
        state: state.map(PathBuf::from),
        socket: socket.map(PathBuf::from),
        ..Flags::default()
    };
    check_meaning("state = \"/s\"", flags(None, None), |c| {
        (c.state, c.socket) = ("/s".into(), "/s/berth.sock".into());
    });
    check_meaning("state = \"/s\"\nsocket = \"/x/y\"", flags(None, None), |c| {
        (c.state, c.socket) = ("/s".into(), "/x/y".into());
    });
    check_meaning("state = \"/s\"\nsocket = \"/x/y\"", flags(Some("/t"), None), |c| {
        (c.state, c.socket) = ("/t".into(), "/t/berth.sock".into());
    });
    check_meaning("socket = \"/x/y\"", flags(Some("/t"), Some("/z")), |c| {
        (c.state, c.socket) = ("/t".into(), "/z".into());
    });
    check_meaning("", flags(Some("/t//./u/"), None), |c| {
        (c.state, c.socket) = ("/t/u".into(), "/t/u/berth.sock".into());
    });
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_lines() {
    check_problems(
        "root = \"data\"\n[log]\nlevel = 5\nformt = \"json\"\n[limits]\nlayers = 0\nprogress_timeout = \"5\"\n",
        &[
            "/etc/berth/config.toml:1: root: \"data\" is relative; write an absolute path, /.../data",
            "/etc/berth/config.toml:3: log.level: this is of type integer; write text in quotes",
            "/etc/berth/config.toml:4: log.formt: there is no such key; did you mean log.format?",
            "/etc/berth/config.toml:6: limits.layers: must be more than nothing",
            "/etc/berth/config.toml:7: limits.progress_timeout: \"5\" is not a duration; \
             write numbers with h, m, s or ms: \"90s\", \"1m30s\"",
        ],
    );
}

#[test]
fn unknown_keys_are_errors_that_name_the_likely_one() {
    let line = |text: &str| format!("/etc/berth/config.toml:1: {text}");
    let check = |text: &str, expected: &str| check_problems(text, &[&line(expected)]);
    check("rooot = \"/x\"", "rooot: there is no such key; did you mean root?");
    check("level = \"info\"", "level: there is no such key; did you mean log.level?");
    check("log.driver = \"auto\"", "log.driver: there is no such key; did you mean cgroup.driver?");
    check("[netwrk]", "netwrk: there is no such key; did you mean network?");
    check(
        "[plugins.\"io.containerd\"]",
        "plugins: there is no such key; hack/config.toml has all of them",
    );
}

#[test]
fn values_that_are_not_allowed_are_told_what_is() {
    let check = |text: &str, expected: &str| {
        check_problems(text, &[&format!("/etc/berth/config.toml:1: {expected}")]);
    };
    check(
        "log.level = \"verbose\"",
        "log.level: \"verbose\" is not known; write \"error\" or \"warn\" or \"info\" or \"debug\" or \"trace\"",
    );
    check(
        "cgroup.driver = \"systemd\"",
        "cgroup.driver: \"systemd\" is not served by this version of berth; write \"cgroupfs\" or \"auto\", \
         and set the same driver in the kubelet's configuration",
    );
    check(
        "network.mode = \"host\"",
        "network.mode: \"host\" is not known; write \"auto\" or \"cni\" or \"bridge\"",
    );
    check("network.cni_conf_dirs = []", "network.cni_conf_dirs: this is empty; name a directory");
    check(
        "network.cni_bin_dirs = [\"/a:/b\"]",
        "network.cni_bin_dirs: \"/a:/b\" has a colon in it, which plugins take for two paths",
    );
    check(
        "network.cni_timeout = \"0s\"",
        "network.cni_timeout: \"0s\" is out of range; write 1s to 10m",
    );
    check(
        "network.ip_preference = \"v6\"",
        "network.ip_preference: \"v6\" is not known; write \"ipv4\" or \"ipv6\" or \"cni\"",
    );
    check("limits.request = \"4MiB\"", "limits.request: 4MiB is out of range; write 16MiB to 1GiB");
    check(
        "limits.manifest_bytes = \"4MB\"",
        "limits.manifest_bytes: \"4MB\" is not a size; write a whole number and B, KiB, MiB or GiB: \"16MiB\"",
    );
    check(
        "limits.layers = -1",
        "limits.layers: this is of type integer; write a whole number, not negative",
    );
    check("log = 5", "log: this is of type integer; write a section, [log]");
    check(
        "images.hosts_dirs = [\"/a\", 1]",
        "images.hosts_dirs: this is of type array; write a list of texts, [\"a\", \"b\"]",
    );
    check(
        "images.hosts_dirs = [\"a\"]",
        "images.hosts_dirs: \"a\" is relative; write an absolute path, /.../a",
    );
    check(
        "network.bridge_subnet = \"10.0.0.1/24\"",
        "network.bridge_subnet: \"10.0.0.1/24\" has bits set behind its prefix; write \"10.0.0.0/24\"",
    );
    check(
        "network.bridge_subnet = \"10.0.0.0/31\"",
        "network.bridge_subnet: \"10.0.0.0/31\" has a prefix of 31 bits; write 8 to 30",
    );
    check(
        "network.bridge_subnet = \"127.0.0.0/8\"",
        "network.bridge_subnet: \"127.0.0.0/8\" is no network for hosts; write a private one such as \"10.88.0.0/16\"",
    );
    check(
        "runtime.unset_seccomp_profile = \"runtime/default\"",
        "runtime.unset_seccomp_profile: \"runtime/default\" is no profile; \
         write \"unconfined\", \"default\" or the absolute path of one",
    );
    check(
        "runtime.stop_timeout = \"2h\"",
        "runtime.stop_timeout: \"2h\" is out of range; write 0s to 1h",
    );
    check(
        "socket_group = \"\"",
        "socket_group: \"\" is not the name of a group; write a name of /etc/group, such as \"berth\"",
    );
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let problems = parsed("[log]\nlevel = \n", &Flags::default()).unwrap_err();
    let first = problems.0[0].to_string();
    assert!(first.starts_with("/etc/berth/config.toml:2: this is not TOML: "), "{first}");
    let twice = parsed("[log]\nlevel = \"info\"\nlevel = \"info\"\n", &Flags::default())
        .unwrap_err()
        .to_string();
    assert!(twice.contains("config.toml:3: ") && twice.contains("duplicate key"), "{twice}");
}

#[test]
fn directories_must_lie_side_by_side() {
    let check = |root: &str, state: &str, expected: &str| {
        let flags =
            Flags { root: Some(root.into()), state: Some(state.into()), ..Flags::default() };
        let problems = parsed("", &flags).unwrap_err().to_string();
        assert!(problems.contains(expected), "{problems}");
    };
    check("/a", "/a", "--state: state: root and state are both /a; name two directories");
    check("/a", "/a/./", "--state: state: root and state are both /a; name two directories");
    check("/a/b", "/a", "--state: state: root /a/b and state /a lie inside each other");
    check("/a", "/a/b", "--state: state: root /a and state /a/b lie inside each other");
    check("a", "/b", "--root: root: \"a\" is relative");
    check("", "/b", "--root: root: this is empty");
    check("/a", "/b/../c", "--state: state: \"/b/../c\" has \"..\" in it");
    check("/", "/b", "--root: root: / is the whole system");
    check("/a", "/b\n", "--state: state: \"/b\\n\" has control characters");
}

#[test]
fn a_socket_that_the_group_could_not_reach_is_refused() {
    let check = |socket: &str, expected: &str| {
        let flags = Flags { socket: Some(socket.into()), ..Flags::default() };
        let problems = parsed("", &flags).unwrap_err().to_string();
        assert!(problems.contains(expected), "{problems}");
    };
    check("/run/berth", "--socket: socket: /run/berth is a directory; name a file");
    check("/", "--socket: socket: / is a directory");
    check(
        "/var/lib/berth/x.sock",
        "--socket: socket: /var/lib/berth/x.sock lies in the root directory",
    );
    check("berth.sock", "--socket: socket: \"berth.sock\" is relative");
}

#[test]
fn only_the_default_file_may_be_missing() {
    let flags = Flags { config: Some("/does/not/exist.toml".into()), ..Flags::default() };
    let problems = load(&flags).unwrap_err().to_string();
    assert!(problems.starts_with("/does/not/exist.toml: cannot be read: "), "{problems}");
}

#[test]
fn a_file_is_read_up_to_a_megabyte() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let flags = Flags { config: Some(file.clone()), ..Flags::default() };
    std::fs::write(&file, "log.level = \"warn\"").unwrap();
    assert_eq!(load(&flags).unwrap().log.level, Level::Warn);
    std::fs::write(&file, "#".repeat((1 << 20) + 1)).unwrap();
    let problems = load(&flags).unwrap_err().to_string();
    assert!(problems.contains("it is larger than 1MiB"), "{problems}");
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(load(&flags).unwrap_err().to_string().contains("cannot be read: "));
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_configuration_or_a_list_of_problems(text in "(\\PC|\n|[a-z.=\\[\\]\"{}0-9]){0,200}") {
        match parsed(&text, &Flags::default()) {
            Ok(config) => proptest::prop_assert_eq!(parsed(&config.to_string(), &Flags::default()), Ok(config)),
            Err(problems) => proptest::prop_assert!(!problems.0.is_empty()),
        }
    }
}
