//! Capabilities by name and number (include/uapi/linux/capability.h).

/// All capabilities as of Linux 6.18, without `CAP_`, each at the index of its number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// All capabilities as a set: bit n is capability n.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// What a container has where nothing else is said: docker's and containerd's list.
pub const DEFAULT: u64 = set(&[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
]);

/// The bit of one capability, by its name with or without `CAP_`, in any case.
pub fn by_name(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

/// The names in a set, with `CAP_`, in the order of their numbers.
pub fn names(set: u64) -> Vec<String> {
    let in_set = |(number, _): &(usize, &&str)| set & (1 << number) != 0;
    NAMES.iter().enumerate().filter(in_set).map(|(_, name)| format!("CAP_{name}")).collect()
}

const fn set(names: &[&str]) -> u64 {
    let (mut bits, mut index) = (0, 0);
    while index < names.len() {
        let mut number = 0;
        while !same(NAMES[number], names[index]) {
            number += 1;
        }
        bits |= 1 << number;
        index += 1;
    }
    bits
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_header() {
        assert_eq!(by_name("CAP_CHOWN"), Some(1));
        assert_eq!(by_name("sys_admin"), Some(1 << 21));
        assert_eq!(by_name("CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(by_name("CAP_"), None);
        assert_eq!(by_name("ALL"), None);
    }

    #[test]
    fn the_default_set_is_the_one_that_images_expect() {
        assert_eq!(DEFAULT, 0xa804_25fb);
        assert_eq!(names(DEFAULT).len(), 14);
        assert_eq!(names(3), ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
    }
}
