//! Judges what was written: raw values, flags and defaults become a [`Config`].

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use images::limits::Setting;

use super::problem::{Place, Problem};
use super::raw::{
    Located, Raw, RawConfig, RawImages, RawLimit, RawLimits, RawNetwork, RawRuntime, RawStreaming,
};
use super::units::{duration_text, parse_duration};
use super::{
    Cgroup, CgroupDriver, Config, Flags, Format, Images, IpPreference, Level, Limits, Log, Network,
    NetworkMode, Runtime, SeccompProfile, Size, Streaming, Subnet,
};

/// Says yes with a value, or what is wrong and what is allowed.
type Judged<T> = Result<T, String>;

/// Fills in defaults and judges each value; what is wrong keeps its default in the result.
pub(super) fn resolve(file: &Path, raw: RawConfig, flags: &Flags) -> (Config, Vec<Problem>) {
    let mut judge = Judge { file, problems: Vec::new() };
    let default = Config::default();
    let root = judge.path("root", &flags.root, "--root", raw.root, default.root);
    let state = judge.path("state", &flags.state, "--state", raw.state, default.state);
    // --state alone means a daemon beside the node's own, so the file's socket is not for it.
    let socket_in_file = if flags.state.is_some() { None } else { raw.socket };
    let beside = state.path.join("berth.sock");
    let socket = judge.path("socket", &flags.socket, "--socket", socket_in_file, beside);
    judge.apart(&root, &state, &socket);
    let config = Config {
        root: root.path,
        state: state.path,
        socket: socket.path,
        socket_group: judge.value(
            "socket_group",
            raw.socket_group,
            default.socket_group,
            group_name,
        ),
        log: Log {
            level: judge.value("log.level", raw.log.level, default.log.level, level),
            format: judge.value("log.format", raw.log.format, default.log.format, format),
        },
        cgroup: Cgroup {
            driver: judge.value(
                "cgroup.driver",
                raw.cgroup.driver,
                default.cgroup.driver,
                cgroup_driver,
            ),
        },
        network: network(&mut judge, raw.network, default.network),
        images: images(&mut judge, raw.images, default.images),
        limits: limits(&mut judge, raw.limits, default.limits),
        runtime: runtime(&mut judge, raw.runtime, default.runtime),
        streaming: streaming(&mut judge, raw.streaming, default.streaming),
    };
    (config, judge.problems)
}

fn network(judge: &mut Judge<'_>, raw: RawNetwork, default: Network) -> Network {
    let deadlines = Duration::from_secs(1)..=Duration::from_secs(600);
    Network {
        mode: judge.value("network.mode", raw.mode, default.mode, network_mode),
        bridge_subnet: judge.value("network.bridge_subnet", raw.bridge_subnet, None, subnet),
        cni_conf_dirs: judge.value(
            "network.cni_conf_dirs",
            raw.cni_conf_dirs,
            default.cni_conf_dirs,
            |dirs| at_least_one(directories(&dirs)?),
        ),
        cni_bin_dirs: judge.value(
            "network.cni_bin_dirs",
            raw.cni_bin_dirs,
            default.cni_bin_dirs,
            |dirs| at_least_one(plugin_directories(&dirs)?),
        ),
        cni_timeout: judge.value(
            "network.cni_timeout",
            raw.cni_timeout,
            default.cni_timeout,
            |text| duration(&text, deadlines),
        ),
        ip_preference: judge.value(
            "network.ip_preference",
            raw.ip_preference,
            default.ip_preference,
            ip_preference,
        ),
    }
}

fn images(judge: &mut Judge<'_>, raw: RawImages, default: Images) -> Images {
    Images {
        hosts_dirs: judge.value("images.hosts_dirs", raw.hosts_dirs, default.hosts_dirs, |dirs| {
            directories(&dirs)
        }),
    }
}

fn directories(dirs: &[String]) -> Judged<Vec<PathBuf>> {
    dirs.iter().map(|dir| absolute(Path::new(dir))).collect()
}

/// CNI_PATH is a list with colons between (CNI, section 2).
fn plugin_directories(dirs: &[String]) -> Judged<Vec<PathBuf>> {
    match dirs.iter().find(|dir| dir.contains(':')) {
        Some(dir) => Err(format!("{dir:?} has a colon in it, which plugins take for two paths")),
        None => directories(dirs),
    }
}

fn at_least_one(dirs: Vec<PathBuf>) -> Judged<Vec<PathBuf>> {
    if dirs.is_empty() { Err("this is empty; name a directory".to_owned()) } else { Ok(dirs) }
}

fn limits(judge: &mut Judge<'_>, raw: RawLimits, default: Limits) -> Limits {
    let mut images = default.images;
    for (name, limit) in raw.images {
        let key = format!("limits.{name}");
        let (setting, line) = match limit {
            RawLimit::Size(raw) => (size(&raw.value).map(|size| Setting::Bytes(size.0)), raw.line),
            RawLimit::Count(raw) => (Ok(Setting::Count(raw.value)), raw.line),
            RawLimit::Time(raw) => (time(&raw.value).map(Setting::Time), raw.line),
        };
        let set = |setting| match images.set(name, setting) {
            Err(images::Error::Invalid { problem, .. }) => Err(problem),
            _ => Ok(()),
        };
        judge.value(&key, Some(Located { value: setting, line }), (), |setting| {
            setting.and_then(set)
        });
    }
    Limits {
        // Below 16 MiB a kubelet with its pods and mounts would be refused.
        request: judge.size(
            "limits.request",
            raw.request,
            default.request,
            Size::mib(16)..=Size::gib(1),
        ),
        exec_output: judge.size(
            "limits.exec_output",
            raw.exec_output,
            default.exec_output,
            Size::kib(64)..=Size::gib(1),
        ),
        images,
    }
}

fn runtime(judge: &mut Judge<'_>, raw: RawRuntime, default: Runtime) -> Runtime {
    let grace = Duration::ZERO..=Duration::from_secs(3600);
    Runtime {
        shim: judge.value("runtime.shim", raw.shim, default.shim, |text| {
            if text.is_empty() { Ok(None) } else { absolute(Path::new(&text)).map(Some) }
        }),
        run_log_size: judge.size(
            "runtime.run_log_size",
            raw.run_log_size,
            default.run_log_size,
            Size::kib(64)..=Size::gib(1024),
        ),
        run_log_files: judge.value(
            "runtime.run_log_files",
            raw.run_log_files,
            default.run_log_files,
            |n| count(n, 1..=1000),
        ),
        stop_timeout: judge.value(
            "runtime.stop_timeout",
            raw.stop_timeout,
            default.stop_timeout,
            |text| duration(&text, grace.clone()),
        ),
        drain_deadline: judge.value(
            "runtime.drain_deadline",
            raw.drain_deadline,
            default.drain_deadline,
            |text| duration(&text, grace.clone()),
        ),
        unset_seccomp_profile: judge.value(
            "runtime.unset_seccomp_profile",
            raw.unset_seccomp_profile,
            default.unset_seccomp_profile,
            seccomp_profile,
        ),
        enable_unprivileged_ports: judge.value(
            "runtime.enable_unprivileged_ports",
            raw.enable_unprivileged_ports,
            default.enable_unprivileged_ports,
            Ok,
        ),
        enable_unprivileged_icmp: judge.value(
            "runtime.enable_unprivileged_icmp",
            raw.enable_unprivileged_icmp,
            default.enable_unprivileged_icmp,
            Ok,
        ),
    }
}

fn streaming(judge: &mut Judge<'_>, raw: RawStreaming, default: Streaming) -> Streaming {
    let (second, hour, day) =
        (Duration::from_secs(1), Duration::from_secs(3600), Duration::from_secs(24 * 3600));
    Streaming {
        address: judge.value("streaming.address", raw.address, default.address, loopback),
        port: judge.value("streaming.port", raw.port, default.port, |port| {
            u16::try_from(port).map_err(|_| format!("{port} is out of range; write 0 to 65535"))
        }),
        idle_timeout: judge.value(
            "streaming.idle_timeout",
            raw.idle_timeout,
            default.idle_timeout,
            |text| duration(&text, second..=day),
        ),
        stream_creation_timeout: judge.value(
            "streaming.stream_creation_timeout",
            raw.stream_creation_timeout,
            default.stream_creation_timeout,
            |text| duration(&text, second..=hour),
        ),
    }
}

fn loopback(text: String) -> Judged<IpAddr> {
    let address = text.parse::<IpAddr>().ok().filter(IpAddr::is_loopback);
    address.ok_or_else(|| {
        format!(
            "{text:?} is not a loopback address; write \"127.0.0.1\" or \"::1\": \
             the kubelet is on this node, and nobody else may come"
        )
    })
}

/// Gathers what is wrong.
struct Judge<'f> {
    file: &'f Path,
    problems: Vec<Problem>,
}

/// A path and where it was said.
struct Said {
    path: PathBuf,
    place: Place,
    key: &'static str,
}

impl Judge<'_> {
    /// The value that the file gives, if it is good, else the default.
    fn value<R, T>(
        &mut self,
        key: &str,
        raw: Raw<R>,
        default: T,
        judge: impl FnOnce(R) -> Judged<T>,
    ) -> T {
        let Some(located) = raw else { return default };
        match judge(located.value) {
            Ok(value) => value,
            Err(text) => {
                self.report(Place::Line(self.file.to_owned(), located.line), key, text);
                default
            }
        }
    }

    fn size(
        &mut self,
        key: &str,
        raw: Raw<String>,
        default: Size,
        range: RangeInclusive<Size>,
    ) -> Size {
        self.value(key, raw, default, |text| in_range(size(&text)?, range))
    }

    /// A path from a flag, else from the file, else the default.
    fn path(
        &mut self,
        key: &'static str,
        flag: &Option<PathBuf>,
        flag_name: &'static str,
        raw: Raw<String>,
        default: PathBuf,
    ) -> Said {
        let (path, place) = match (flag, raw) {
            (Some(path), _) => (path.clone(), Place::Flag(flag_name)),
            (None, Some(raw)) => {
                (PathBuf::from(raw.value), Place::Line(self.file.to_owned(), raw.line))
            }
            (None, None) => return Said { path: default, place: Place::Default, key },
        };
        match absolute(&path) {
            Ok(path) => Said { path, place, key },
            Err(text) => {
                self.report(place.clone(), key, text);
                Said { path: default, place, key }
            }
        }
    }

    /// Root and state live and die apart, and the socket is a name of its own.
    fn apart(&mut self, root: &Said, state: &Said, socket: &Said) {
        let blame = if matches!(state.place, Place::Default) { root } else { state };
        for said in [root, state] {
            if said.path == Path::new("/") {
                self.report(
                    said.place.clone(),
                    said.key,
                    "/ is the whole system; name a directory for berth".to_owned(),
                );
            }
        }
        if root.path == state.path {
            let text =
                format!("root and state are both {}; name two directories", root.path.display());
            self.report(blame.place.clone(), blame.key, text);
        } else if root.path.starts_with(&state.path) || state.path.starts_with(&root.path) {
            let text = format!(
                "root {} and state {} lie inside each other; name two directories side by side",
                root.path.display(),
                state.path.display()
            );
            self.report(blame.place.clone(), blame.key, text);
        }
        if socket.path == root.path
            || socket.path == state.path
            || socket.path.file_name().is_none()
        {
            let text = format!(
                "{} is a directory; name a file, such as DIR/berth.sock",
                socket.path.display()
            );
            self.report(socket.place.clone(), socket.key, text);
        }
        if socket.path.starts_with(&root.path) && socket.path != root.path {
            let text = format!(
                "{} lies in the root directory, which only root may enter; put it into the state directory",
                socket.path.display()
            );
            self.report(socket.place.clone(), socket.key, text);
        }
    }

    fn report(&mut self, place: Place, key: &str, text: String) {
        self.problems.push(Problem { place, key: key.to_owned(), text });
    }
}

/// The path without needless parts; it must be absolute and may not climb.
fn absolute(path: &Path) -> Judged<PathBuf> {
    let shown = path.display();
    if path.as_os_str().is_empty() {
        return Err("this is empty; write an absolute path".to_owned());
    }
    if !path.is_absolute() {
        return Err(format!("\"{shown}\" is relative; write an absolute path, /.../{shown}"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("\"{shown}\" has \"..\" in it; write the path without"));
    }
    if path.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(format!("{path:?} has control characters or is not UTF-8; write a plain path"));
    }
    Ok(path.components().collect())
}

fn group_name(text: String) -> Judged<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '$');
    if text.is_empty() || text.len() > 32 || !text.chars().all(good) {
        return Err(format!(
            "{text:?} is not the name of a group; write a name of /etc/group, such as \"berth\""
        ));
    }
    Ok(text)
}

fn level(text: String) -> Judged<Level> {
    one_of(
        &text,
        &[
            ("error", Ok(Level::Error)),
            ("warn", Ok(Level::Warn)),
            ("info", Ok(Level::Info)),
            ("debug", Ok(Level::Debug)),
            ("trace", Ok(Level::Trace)),
        ],
    )
}

fn format(text: String) -> Judged<Format> {
    one_of(&text, &[("text", Ok(Format::Text)), ("json", Ok(Format::Json))])
}

fn cgroup_driver(text: String) -> Judged<CgroupDriver> {
    let later = "\"systemd\" is not served by this version of berth; write \"cgroupfs\" or \"auto\", \
                 and set the same driver in the kubelet's configuration";
    one_of(
        &text,
        &[
            ("auto", Ok(CgroupDriver::Auto)),
            ("cgroupfs", Ok(CgroupDriver::Cgroupfs)),
            ("systemd", Err(later)),
        ],
    )
}

fn network_mode(text: String) -> Judged<NetworkMode> {
    one_of(
        &text,
        &[
            ("auto", Ok(NetworkMode::Auto)),
            ("cni", Ok(NetworkMode::Cni)),
            ("bridge", Ok(NetworkMode::Bridge)),
        ],
    )
}

fn ip_preference(text: String) -> Judged<IpPreference> {
    one_of(
        &text,
        &[
            ("ipv4", Ok(IpPreference::Ipv4)),
            ("ipv6", Ok(IpPreference::Ipv6)),
            ("cni", Ok(IpPreference::Cni)),
        ],
    )
}

fn seccomp_profile(text: String) -> Judged<SeccompProfile> {
    match text.as_str() {
        "unconfined" => Ok(SeccompProfile::Unconfined),
        "default" => Ok(SeccompProfile::Default),
        path if path.starts_with('/') => absolute(Path::new(path)).map(SeccompProfile::File),
        _ => Err(format!(
            "{text:?} is no profile; write \"unconfined\", \"default\" or the absolute path of one"
        )),
    }
}

fn subnet(text: String) -> Judged<Option<Subnet>> {
    if text == "auto" {
        return Ok(None);
    }
    let wrong = || {
        format!("{text:?} is not an IPv4 network; write \"auto\" or one such as \"10.88.0.0/16\"")
    };
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    if !(8..=30).contains(&prefix) {
        return Err(format!("{text:?} has a prefix of {prefix} bits; write 8 to 30"));
    }
    let mask = u32::MAX << (32 - prefix);
    let network = Ipv4Addr::from(u32::from(address) & mask);
    if network != address {
        return Err(format!(
            "{text:?} has bits set behind its prefix; write \"{network}/{prefix}\""
        ));
    }
    if network.is_loopback()
        || network.is_multicast()
        || network.is_unspecified()
        || network.is_link_local()
    {
        return Err(format!(
            "{text:?} is no network for hosts; write a private one such as \"10.88.0.0/16\""
        ));
    }
    Ok(Some(Subnet { address, prefix }))
}

fn size(text: &str) -> Judged<Size> {
    let wrong = || {
        format!("{text:?} is not a size; write a whole number and B, KiB, MiB or GiB: \"16MiB\"")
    };
    Size::parse(text).ok_or_else(wrong)
}

fn time(text: &str) -> Judged<Duration> {
    parse_duration(text).ok_or_else(|| {
        format!("{text:?} is not a duration; write numbers with h, m, s or ms: \"90s\", \"1m30s\"")
    })
}

fn duration(text: &str, range: RangeInclusive<Duration>) -> Judged<Duration> {
    let value = time(text)?;
    if range.contains(&value) {
        return Ok(value);
    }
    let (from, to) = (duration_text(*range.start()), duration_text(*range.end()));
    Err(format!("{text:?} is out of range; write {from} to {to}"))
}

fn count(n: u64, range: RangeInclusive<usize>) -> Judged<usize> {
    in_range(usize::try_from(n).unwrap_or(usize::MAX), range)
}

fn in_range<T: PartialOrd + std::fmt::Display>(value: T, range: RangeInclusive<T>) -> Judged<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(format!("{value} is out of range; write {} to {}", range.start(), range.end()))
}

/// Finds a word in a list; a word that is known but not served has its text there.
fn one_of<T: Copy>(text: &str, words: &[(&str, Result<T, &str>)]) -> Judged<T> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return value.map_err(str::to_owned);
    }
    let allowed: Vec<String> = words
        .iter()
        .filter(|(_, value)| value.is_ok())
        .map(|(word, _)| format!("\"{word}\""))
        .collect();
    Err(format!("{text:?} is not known; write {}", allowed.join(" or ")))
}
