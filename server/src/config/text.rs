//! Writes a [`Config`] as the TOML that would make it.

use std::fmt;
use std::path::{Path, PathBuf};

use images::limits::Setting;

use super::units::{Size, duration_text};
use super::{
    CgroupDriver, Config, Format, IpPreference, Level, NetworkMode, SeccompProfile, Subnet,
};

impl fmt::Display for Config {
    /// Every key with the value that holds, readable by [`super::parse`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "root = {}", path(&self.root))?;
        writeln!(f, "state = {}", path(&self.state))?;
        writeln!(f, "socket = {}", path(&self.socket))?;
        writeln!(f, "socket_group = {}", quoted(&self.socket_group))?;
        writeln!(f, "\n[log]")?;
        writeln!(f, "level = {}", quoted(&self.log.level.to_string()))?;
        writeln!(f, "format = {}", quoted(&self.log.format.to_string()))?;
        writeln!(f, "\n[cgroup]")?;
        writeln!(f, "driver = {}", quoted(&self.cgroup.driver.to_string()))?;
        writeln!(f, "\n[network]")?;
        writeln!(f, "mode = {}", quoted(&self.network.mode.to_string()))?;
        let subnet = self
            .network
            .bridge_subnet
            .map_or_else(|| "auto".to_owned(), |subnet| subnet.to_string());
        writeln!(f, "bridge_subnet = {}", quoted(&subnet))?;
        writeln!(f, "cni_conf_dirs = {}", paths(&self.network.cni_conf_dirs))?;
        writeln!(f, "cni_bin_dirs = {}", paths(&self.network.cni_bin_dirs))?;
        writeln!(f, "cni_timeout = {}", quoted(&duration_text(self.network.cni_timeout)))?;
        writeln!(f, "ip_preference = {}", quoted(&self.network.ip_preference.to_string()))?;
        writeln!(f, "\n[images]")?;
        writeln!(f, "hosts_dirs = {}", paths(&self.images.hosts_dirs))?;
        let limits = &self.limits;
        writeln!(f, "\n[limits]")?;
        writeln!(f, "request = \"{}\"", limits.request)?;
        writeln!(f, "exec_output = \"{}\"", limits.exec_output)?;
        for row in limits.images.table() {
            match row.setting {
                Setting::Bytes(bytes) => writeln!(f, "{} = \"{}\"", row.name, Size(bytes))?,
                Setting::Count(count) => writeln!(f, "{} = {count}", row.name)?,
                Setting::Time(time) => {
                    writeln!(f, "{} = {}", row.name, quoted(&duration_text(time)))?
                }
            }
        }
        let runtime = &self.runtime;
        writeln!(f, "\n[runtime]")?;
        writeln!(f, "shim = {}", runtime.shim.as_deref().map_or_else(|| quoted(""), path))?;
        writeln!(f, "run_log_size = \"{}\"", runtime.run_log_size)?;
        writeln!(f, "run_log_files = {}", runtime.run_log_files)?;
        writeln!(f, "stop_timeout = {}", quoted(&duration_text(runtime.stop_timeout)))?;
        writeln!(f, "drain_deadline = {}", quoted(&duration_text(runtime.drain_deadline)))?;
        writeln!(
            f,
            "unset_seccomp_profile = {}",
            quoted(&runtime.unset_seccomp_profile.to_string())
        )?;
        writeln!(f, "enable_unprivileged_ports = {}", runtime.enable_unprivileged_ports)?;
        writeln!(f, "enable_unprivileged_icmp = {}", runtime.enable_unprivileged_icmp)?;
        let streaming = &self.streaming;
        writeln!(f, "\n[streaming]")?;
        writeln!(f, "address = {}", quoted(&streaming.address.to_string()))?;
        writeln!(f, "port = {}", streaming.port)?;
        writeln!(f, "idle_timeout = {}", quoted(&duration_text(streaming.idle_timeout)))?;
        let creation = duration_text(streaming.stream_creation_timeout);
        writeln!(f, "stream_creation_timeout = {}", quoted(&creation))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Text => "text",
            Format::Json => "json",
        })
    }
}

impl fmt::Display for CgroupDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CgroupDriver::Auto => "auto",
            CgroupDriver::Cgroupfs => "cgroupfs",
        })
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NetworkMode::Auto => "auto",
            NetworkMode::Cni => "cni",
            NetworkMode::Bridge => "bridge",
        })
    }
}

impl fmt::Display for IpPreference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IpPreference::Ipv4 => "ipv4",
            IpPreference::Ipv6 => "ipv6",
            IpPreference::Cni => "cni",
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for SeccompProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SeccompProfile::Unconfined => f.write_str("unconfined"),
            SeccompProfile::Default => f.write_str("default"),
            SeccompProfile::File(file) => write!(f, "{}", file.display()),
        }
    }
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|one| path(one)).collect();
    format!("[{}]", paths.join(", "))
}

/// A TOML basic string. Paths hold no control characters, so two escapes are enough.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
