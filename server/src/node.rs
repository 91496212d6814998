//! What this machine is and can do, looked at once.

use std::path::Path;

use crate::error::{Doing, Result};
use crate::files::FileLimit;

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// AppArmor profiles can be used.
    pub apparmor: bool,
    /// SELinux labels can be used.
    pub selinux: bool,
    /// The kernel can make mounts recursively read-only (5.12).
    pub recursive_read_only: bool,
    /// Open files that the daemon was started with, soft and hard: containers get the same.
    pub files: (u64, u64),
}

impl Node {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Its version is not understood.
    pub fn look(files: &FileLimit) -> Result<Node> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let kernel = version(&release)
            .ok_or(std::io::Error::other(release))
            .doing(|| "understand the kernel's version")?;
        let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Ok(Node {
            kernel,
            apparmor: apparmor.is_ok_and(|enabled| enabled.trim() == "Y"),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            recursive_read_only: kernel >= (5, 12),
            files: (
                files.before.current.unwrap_or(u64::MAX),
                files.before.maximum.unwrap_or(u64::MAX),
            ),
        })
    }

    /// The host's name, which may change while we run.
    pub fn hostname() -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }
}

/// `6.1.0-32-amd64` is 6.1.
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn the_first_two_numbers_count() {
        assert_eq!(version("6.1.0-32-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("linux"), None);
    }
}
