//! The words of a profile: which action, operator, architecture, flag or capability a text means.

use super::Error;
use super::filter::{Action, Arch, Operator};
use super::parse::invalid;
use crate::sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_TSYNC, FLAG_WAIT_KILLABLE_RECV};

/// The highest errno that the kernel passes on (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// The errno of an action that names none.
const EPERM: u32 = 1;

pub(super) fn operator(field: &str, text: &str) -> Result<Operator, Error> {
    Ok(match text {
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessEqual,
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_GE" => Operator::GreaterEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_MASKED_EQ" => Operator::MaskedEqual,
        _ => {
            return Err(invalid(
                field,
                format!(
                    "{} is no operator; use SCMP_CMP_ and NE, LT, LE, EQ, GE, GT or MASKED_EQ",
                    quoted(text)
                ),
            ));
        }
    })
}

pub(super) fn action(
    field: &str,
    text: Option<&str>,
    errno_number: Option<u32>,
    errno_name: Option<&str>,
) -> Result<Action, Error> {
    let text = text.unwrap_or_default();
    // containers-common writes both forms of the same errno; its own code prefers the name.
    let errno = match errno_name.filter(|name| !name.is_empty()) {
        Some(name) => Some(errno_by_name(field, name)?),
        None => errno_number,
    };
    let action = match text {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_ERRNO" => return errno_value(field, errno, MAX_ERRNO).map(Action::Errno),
        "SCMP_ACT_TRACE" => {
            return errno_value(field, errno, u32::from(u16::MAX)).map(Action::Trace);
        }
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_NOTIFY" => Action::Notify,
        "" => return Err(invalid(field, "is missing; say for example SCMP_ACT_ERRNO")),
        _ => {
            return Err(invalid(
                field,
                format!(
                    "{} is no action; use SCMP_ACT_ and KILL_PROCESS, KILL_THREAD, KILL, TRAP, \
                     ERRNO, TRACE, ALLOW, LOG or NOTIFY",
                    quoted(text)
                ),
            ));
        }
    };
    // The runtime spec: a runtime must fail on an errno that the action cannot carry.
    if errno.is_some() {
        return Err(invalid(
            field,
            format!("{text} takes no errno; only SCMP_ACT_ERRNO and SCMP_ACT_TRACE do"),
        ));
    }
    Ok(action)
}

fn errno_value(field: &str, errno: Option<u32>, max: u32) -> Result<u16, Error> {
    let errno = errno.unwrap_or(EPERM);
    u16::try_from(errno)
        .ok()
        .filter(|_| errno <= max)
        .ok_or_else(|| invalid(field, format!("has errno {errno}; it can be 0 to {max}")))
}

/// A number in text, or a name like ENOSYS.
fn errno_by_name(field: &str, name: &str) -> Result<u32, Error> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let name = match name {
        "EWOULDBLOCK" => "EAGAIN",
        "EDEADLOCK" => "EDEADLK",
        "ENOTSUP" => "EOPNOTSUPP",
        other => other,
    };
    // The names of nix are the kernel's, and 133 is the last of them.
    (1..=133)
        .find(|&errno| format!("{:?}", nix::errno::Errno::from_raw(errno)) == name)
        .map(i32::cast_unsigned)
        .ok_or_else(|| {
            invalid(field, format!("has errno {}, which Linux does not have", quoted(name)))
        })
}

/// None for an architecture whose calls cannot reach a filter of ours.
pub(super) fn arch(field: &str, text: &str) -> Result<Option<Arch>, Error> {
    const ELSEWHERE: [&str; 15] = [
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "S390",
        "S390X",
        "PARISC",
        "PARISC64",
        "RISCV64",
        "LOONGARCH64",
    ];
    let short = text.strip_prefix("SCMP_ARCH_").unwrap_or_default();
    Ok(match short {
        "X86_64" => Some(Arch::X86_64),
        "X86" => Some(Arch::X86),
        "X32" => Some(Arch::X32),
        "AARCH64" => Some(Arch::Aarch64),
        "ARM" => Some(Arch::Arm),
        "NATIVE" => None,
        other if ELSEWHERE.contains(&other) => None,
        _ => {
            return Err(invalid(
                field,
                format!("{} is no architecture; use for example SCMP_ARCH_X86_64", quoted(text)),
            ));
        }
    })
}

/// A bit for seccomp(2).
pub(super) fn flag(field: &str, text: &str) -> Result<u32, Error> {
    Ok(match text {
        "SECCOMP_FILTER_FLAG_TSYNC" => FLAG_TSYNC,
        "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => FLAG_WAIT_KILLABLE_RECV,
        _ => {
            return Err(invalid(
                field,
                format!(
                    "{} is no flag; use SECCOMP_FILTER_FLAG_ and LOG, SPEC_ALLOW, TSYNC or \
                     WAIT_KILLABLE_RECV",
                    quoted(text)
                ),
            ));
        }
    })
}

/// libseccomp's short names, which docker's format uses here.
pub(super) fn guard_arch(text: &str) -> Option<Arch> {
    match text {
        "amd64" => Some(Arch::X86_64),
        "x86" => Some(Arch::X86),
        "x32" => Some(Arch::X32),
        "arm64" => Some(Arch::Aarch64),
        "arm" => Some(Arch::Arm),
        _ => None,
    }
}

pub(super) fn kernel_version(text: &str) -> Option<(u32, u32)> {
    let (version, patch) = text.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(version) || !digits(patch) {
        return None;
    }
    Some((version.parse().ok()?, patch.parse().ok()?))
}

/// The capability's bit. The order is that of `linux/capability.h`.
pub(super) fn capability(name: &str) -> Option<u64> {
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
    let short = name.strip_prefix("CAP_")?;
    NAMES.iter().position(|known| *known == short).map(|number| 1 << number)
}

/// The text for an error, which must not be as long as a file can be.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}
