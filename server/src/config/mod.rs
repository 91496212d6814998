//! The daemon's configuration: flags and a TOML file become a [`Config`], or a list of
//! everything that is wrong with them.
//!
//! `raw` reads the file without judging it, `resolve` judges and fills in defaults,
//! `text` writes the effective configuration back. `hack/config.toml` documents every
//! key; tests keep it equal to [`Config::default`].

mod problem;
mod raw;
mod resolve;
#[cfg(test)]
mod tests;
mod text;
mod units;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use problem::{Place, Problem, Problems};
pub use units::Size;

/// The file that is read when `--config` names no other; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// A configuration file is a page of text; more than this is a mistake.
const MAX_FILE: Size = Size::mib(1);

/// The flags of `berth serve`. Each wins over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// Read this configuration file [default: /etc/berth/config.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keep images and what outlives a reboot here [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Keep what a reboot ends here [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Listen here [default: berth.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Check the configuration, print what holds, and end
    #[arg(long)]
    pub check: bool,
}

/// What the daemon was told, judged and complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What outlives a reboot: images, layers, stubs of records. Absolute.
    pub root: PathBuf,
    /// What a reboot ends: records, shim sockets, exit records. Absolute, apart from `root`.
    pub state: PathBuf,
    /// The socket of the CRI and of berth's own command line. Absolute.
    pub socket: PathBuf,
    /// The group that may use the socket; the socket is root's alone where it does not exist.
    pub socket_group: String,
    /// What the daemon says on its standard error.
    pub log: Log,
    /// How cgroups are made.
    pub cgroup: Cgroup,
    /// Where sandboxes get their addresses.
    pub network: Network,
    /// How images are pulled.
    pub images: Images,
    /// How much is taken from images, registries, containers and clients.
    pub limits: Limits,
    /// How containers run.
    pub runtime: Runtime,
    /// How exec, attach and port-forward are served.
    pub streaming: Streaming,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least severe events that are written; BERTH_LOG in the environment wins.
    pub level: Level,
    /// The form of a line.
    pub format: Format,
}

/// Severity, from the fewest lines to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Somebody must act.
    Error,
    /// Something went wrong and was coped with.
    Warn,
    /// One line per call that changes something.
    Info,
    /// Reads and steps.
    Debug,
    /// Everything, libraries included.
    Trace,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line, for machines.
    Json,
}

/// `[cgroup]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Who makes the cgroups.
    pub driver: CgroupDriver,
}

/// Who makes the cgroups. systemd's value is known to the file and refused for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// What fits the node.
    Auto,
    /// berth itself, in the cgroup file system.
    Cgroupfs,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Who gives sandboxes their addresses.
    pub mode: NetworkMode,
    /// The bridge's subnet; without one, a private subnet that no route of the host uses, which is then kept.
    pub bridge_subnet: Option<Subnet>,
    /// Where CNI configurations are; the first file, by name, of the first directory that has one is the network.
    pub cni_conf_dirs: Vec<PathBuf>,
    /// Where CNI plugins are, searched in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// What one run of a CNI plugin may take before it is killed.
    pub cni_timeout: Duration,
    /// Which of a pod's addresses is told first.
    pub ip_preference: IpPreference,
}

/// Which of a pod's addresses is told first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpPreference {
    /// IPv4 addresses before IPv6 ones.
    Ipv4,
    /// IPv6 addresses before IPv4 ones.
    Ipv6,
    /// As the CNI plugins told them.
    Cni,
}

/// Who gives sandboxes their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// CNI for pods of the CRI where there is a configuration, else the built-in bridge.
    Auto,
    /// CNI alone: without a configuration there is no network.
    Cni,
    /// The built-in bridge.
    Bridge,
}

/// An IPv4 network of 8 to 30 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The network's address: the bits behind the prefix are zero.
    pub address: Ipv4Addr,
    /// Length of the prefix in bits, 8 to 30.
    pub prefix: u8,
}

/// `[images]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Directories in the layout of containerd's and docker's `certs.d` (HOST/hosts.toml and certificates),
    /// searched in order; the first that knows a host decides for it.
    pub hosts_dirs: Vec<PathBuf>,
}

/// `[limits]`: how much is taken from those who are not trusted. An error names the key, so
/// that an operator finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A message from a client of the socket.
    pub request: Size,
    /// What ExecSync keeps of each of stdout and stderr; the rest is read and dropped.
    pub exec_output: Size,
    /// What registries and images may bring: every row of that table is a key.
    pub images: images::Limits,
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The shim's program; without it, `berth-shim` in the folder of the running `berth`.
    pub shim: Option<PathBuf>,
    /// The log of a container of `berth run` begins anew at this size.
    pub run_log_size: Size,
    /// Log files kept of a container of `berth run`, the current one among them, 1 to 1000.
    pub run_log_files: usize,
    /// What `berth stop` waits between the stop signal and force, where neither the command nor the image says.
    pub stop_timeout: Duration,
    /// What a stopping daemon waits for calls under way; containers go on anyway.
    pub drain_deadline: Duration,
    /// The seccomp profile of CRI containers that name none.
    pub unset_seccomp_profile: SeccompProfile,
    /// Sets net.ipv4.ip_unprivileged_port_start to 0 in pods with a network of their own.
    pub enable_unprivileged_ports: bool,
    /// Opens net.ipv4.ping_group_range to all in pods with a network of their own.
    pub enable_unprivileged_icmp: bool,
}

/// `[streaming]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streaming {
    /// Where clients of Exec, Attach and PortForward come to: a loopback address.
    pub address: IpAddr,
    /// The port there; 0 for any that is free.
    pub port: u16,
    /// A connection on which nothing comes or goes for so long is closed.
    pub idle_timeout: Duration,
    /// A client opens all streams of a session within this time.
    pub stream_creation_timeout: Duration,
}

/// A choice of seccomp profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompProfile {
    /// No filter.
    Unconfined,
    /// The built-in default profile.
    Default,
    /// A profile in OCI JSON form, by absolute path.
    File(PathBuf),
}

impl Default for Config {
    fn default() -> Config {
        let state = PathBuf::from("/run/berth");
        Config {
            root: PathBuf::from("/var/lib/berth"),
            socket: state.join("berth.sock"),
            state,
            socket_group: "berth".to_owned(),
            log: Log { level: Level::Info, format: Format::Text },
            cgroup: Cgroup { driver: CgroupDriver::Auto },
            network: Network {
                mode: NetworkMode::Auto,
                bridge_subnet: None,
                cni_conf_dirs: vec!["/etc/cni/net.d".into()],
                cni_bin_dirs: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
                    .map(PathBuf::from)
                    .to_vec(),
                cni_timeout: Duration::from_secs(60),
                ip_preference: IpPreference::Ipv4,
            },
            images: Images {
                hosts_dirs: [
                    "/etc/berth/certs.d",
                    "/etc/containerd/certs.d",
                    "/etc/docker/certs.d",
                ]
                .map(PathBuf::from)
                .to_vec(),
            },
            limits: Limits {
                request: Size::mib(16),
                exec_output: Size::mib(16),
                images: images::Limits::default(),
            },
            runtime: Runtime {
                shim: None,
                run_log_size: Size::mib(10),
                run_log_files: 5,
                stop_timeout: Duration::from_secs(10),
                drain_deadline: Duration::from_secs(10),
                unset_seccomp_profile: SeccompProfile::Unconfined,
                enable_unprivileged_ports: true,
                enable_unprivileged_icmp: true,
            },
            streaming: Streaming {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: 0,
                idle_timeout: Duration::from_secs(4 * 3600),
                stream_creation_timeout: Duration::from_secs(30),
            },
        }
    }
}

/// Reads the configuration that `flags` ask for.
///
/// The default file may be missing, a file that `--config` names may not.
///
/// # Errors
///
/// All problems at once, each with its place and its fix.
pub fn load(flags: &Flags) -> Result<Config, Problems> {
    let file = flags.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    let text = match read_file(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && flags.config.is_none() => {
            String::new()
        }
        Err(error) => {
            let text =
                format!("cannot be read: {error}; name a file that can be, or leave --config out");
            return Err(Problems(vec![Problem {
                place: Place::File(file.to_owned()),
                key: String::new(),
                text,
            }]));
        }
    };
    parse(file, &text, flags)
}

/// Judges the text of a configuration file together with the flags.
///
/// # Errors
///
/// All problems at once; `file` is only named in them.
pub fn parse(file: &Path, text: &str, flags: &Flags) -> Result<Config, Problems> {
    let (raw, mut problems) = raw::read(file, text);
    let (config, more) = resolve::resolve(file, raw, flags);
    problems.extend(more);
    // Stable, so problems of one line stay in the order in which they were found.
    problems.sort_by_key(|problem| match &problem.place {
        Place::Flag(_) | Place::Default => (0, 0),
        Place::File(_) => (1, 0),
        Place::Line(_, line) => (1, *line),
    });
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

fn read_file(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_FILE.0 + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE.0 {
        return Err(std::io::Error::other(format!("it is larger than {MAX_FILE}")));
    }
    Ok(text)
}
