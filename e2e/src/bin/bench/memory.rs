//! Memory of processes: the proportional set size (proc(5), smaps_rollup).

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};

/// The process that listens on a socket.
pub(crate) fn owner(socket: &Path) -> Result<i32> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(peer.pid())
}

/// Bytes of one process.
pub(crate) fn pss(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    Ok(kib.with_context(|| format!("find Pss in {path}"))? << 10)
}

/// Bytes of all processes with one of these names (proc(5), comm: 15 characters at the most).
pub(crate) fn pss_of(names: &[String]) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if names.iter().any(|name| comm.trim() == name.chars().take(15).collect::<String>()) {
            // One that has just ended uses nothing.
            sum += pss(pid).unwrap_or(0);
        }
    }
    Ok(sum)
}
