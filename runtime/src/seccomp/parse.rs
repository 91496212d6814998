//! Reading profiles: JSON in, a checked [`Profile`] or the field that is wrong out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::filter::{Action, Arch, Condition, Operator, Rule};
use super::profile::{Architectures, Guard, GuardedRule, Profile};
use super::{Error, syscalls};

/// The highest errno that the kernel passes on (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// Arguments of a system call.
const ARGUMENTS: u32 = 6;

/// Fields that are for people.
const COMMENTS: [&str; 2] = ["comment", "$schema"];

/// The errno of an action that names none.
const EPERM: u32 = 1;

/// Fields we do not know. They are reported, since one may be a misspelt field that matters.
type Unknown = BTreeMap<String, IgnoredAny>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProfile {
    default_action: Option<String>,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<RawArchitecture>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<RawRule>>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArchitecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: Option<String>,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<RawCondition>>,
    includes: Option<RawGuard>,
    excludes: Option<RawGuard>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCondition {
    index: u32,
    #[serde(default)]
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawGuard {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
    #[serde(flatten)]
    unknown: Unknown,
}

/// Reads a profile of any of the three forms.
pub(super) fn profile(bytes: &[u8]) -> Result<Profile, Error> {
    let raw: RawProfile = serde_json::from_slice(bytes).map_err(Error::Syntax)?;
    let default_action = action(
        "defaultAction",
        raw.default_action.as_deref(),
        raw.default_errno_ret,
        raw.default_errno.as_deref(),
    )?;
    if default_action == Action::Notify {
        return Err(invalid(
            "defaultAction",
            "SCMP_ACT_NOTIFY would ask about every call, even those that start the container; \
             give the calls rules of their own",
        ));
    }
    let mut profile = Profile {
        default_action,
        architectures: architectures(raw.architectures, raw.arch_map)?,
        flags: flags(raw.flags.unwrap_or_default())?,
        rules: Vec::new(),
        listener_path: raw.listener_path.filter(|path| !path.is_empty()),
        listener_metadata: raw.listener_metadata.unwrap_or_default(),
        unknown_syscalls: Vec::new(),
        ignored_fields: Vec::new(),
    };
    note_unknown(&mut profile.ignored_fields, "", &raw.unknown);
    for (index, rule) in raw.syscalls.unwrap_or_default().into_iter().enumerate() {
        add_rule(&mut profile, &format!("syscalls[{index}]"), rule)?;
    }
    check_notify(&profile)?;
    Ok(profile)
}

/// An error about one field.
pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid { field: field.into(), problem: problem.into() }
}

fn add_rule(profile: &mut Profile, field: &str, raw: RawRule) -> Result<(), Error> {
    let names = match (raw.name.filter(|name| !name.is_empty()), raw.names.unwrap_or_default()) {
        (None, names) if !names.is_empty() => names,
        (Some(name), names) if names.is_empty() => vec![name],
        (None, _) => {
            return Err(invalid(format!("{field}.names"), "is empty; name at least one call"));
        }
        (Some(_), _) => {
            return Err(invalid(
                format!("{field}.name"),
                "is set beside names; put the name among them",
            ));
        }
    };
    if names.iter().any(String::is_empty) {
        return Err(invalid(format!("{field}.names"), "holds an empty name; take it out"));
    }
    for name in &names {
        if !syscalls::is_known(name) && !profile.unknown_syscalls.contains(name) {
            profile.unknown_syscalls.push(name.clone());
        }
    }
    let action = action(
        &format!("{field}.action"),
        raw.action.as_deref(),
        raw.errno_ret,
        raw.errno.as_deref(),
    )?;
    let conditions = conditions(field, raw.args.unwrap_or_default())?;
    let ignored = &mut profile.ignored_fields;
    note_unknown(ignored, &format!("{field}."), &raw.unknown);
    let includes = guard(ignored, &format!("{field}.includes"), raw.includes)?;
    let excludes = guard(ignored, &format!("{field}.excludes"), raw.excludes)?;
    for conditions in alternatives(conditions) {
        profile.rules.push(GuardedRule {
            rule: Rule { names: names.clone(), action, conditions },
            includes: includes.clone(),
            excludes: excludes.clone(),
        });
    }
    Ok(())
}

/// Runtimes on libseccomp, which compares each argument at most once in a rule, make one rule of
/// each comparison as soon as one argument is compared twice.
fn alternatives(conditions: Vec<Condition>) -> Vec<Vec<Condition>> {
    let twice = conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions[..at].iter().any(|other| other.index == one.index));
    if twice {
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    }
}

fn conditions(field: &str, raw: Vec<RawCondition>) -> Result<Vec<Condition>, Error> {
    raw.into_iter()
        .enumerate()
        .map(|(at, raw)| {
            let index = u8::try_from(raw.index)
                .ok()
                .filter(|&index| u32::from(index) < ARGUMENTS)
                .ok_or_else(|| {
                    invalid(
                        format!("{field}.args[{at}].index"),
                        format!("is {}; a call has arguments 0 to 5", raw.index),
                    )
                })?;
            let operator = operator(&format!("{field}.args[{at}].op"), &raw.op)?;
            Ok(Condition { index, operator, value: raw.value, value_two: raw.value_two })
        })
        .collect()
}

fn operator(field: &str, text: &str) -> Result<Operator, Error> {
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
                    "{text:?} is no operator; use SCMP_CMP_ and NE, LT, LE, EQ, GE, GT or MASKED_EQ"
                ),
            ));
        }
    })
}

fn action(
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
                    "{text:?} is no action; use SCMP_ACT_ and KILL_PROCESS, KILL_THREAD, KILL, TRAP, \
                     ERRNO, TRACE, ALLOW, LOG or NOTIFY"
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
        .ok_or_else(|| invalid(field, format!("has errno {name:?}, which Linux does not have")))
}

fn architectures(
    listed: Option<Vec<String>>,
    map: Option<Vec<RawArchitecture>>,
) -> Result<Architectures, Error> {
    let listed = listed.unwrap_or_default();
    let map = map.unwrap_or_default();
    if !listed.is_empty() && !map.is_empty() {
        return Err(invalid("archMap", "is set beside architectures; keep one of them"));
    }
    if map.is_empty() {
        return Ok(Architectures::Listed(arches("architectures", &listed)?));
    }
    let mut mapped = Vec::new();
    for (at, entry) in map.into_iter().enumerate() {
        let field = format!("archMap[{at}]");
        let native = arch(&format!("{field}.architecture"), &entry.architecture)?;
        let subs = arches(
            &format!("{field}.subArchitectures"),
            &entry.sub_architectures.unwrap_or_default(),
        )?;
        if let Some(native) = native {
            mapped.push((native, subs));
        }
    }
    Ok(Architectures::Mapped(mapped))
}

fn arches(field: &str, texts: &[String]) -> Result<Vec<Arch>, Error> {
    let mut arches = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        arches.extend(arch(&format!("{field}[{at}]"), text)?);
    }
    Ok(arches)
}

/// None for an architecture whose calls cannot reach a filter of ours.
fn arch(field: &str, text: &str) -> Result<Option<Arch>, Error> {
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
                format!("{text:?} is no architecture; use for example SCMP_ARCH_X86_64"),
            ));
        }
    })
}

fn flags(texts: Vec<String>) -> Result<u32, Error> {
    let mut flags = 0;
    for (at, text) in texts.iter().enumerate() {
        flags |= match text.as_str() {
            "SECCOMP_FILTER_FLAG_TSYNC" => 1,
            "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 1 << 2,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => WAIT_KILLABLE_RECV,
            _ => {
                return Err(invalid(
                    format!("flags[{at}]"),
                    format!(
                        "{text:?} is no flag; use SECCOMP_FILTER_FLAG_ and LOG, SPEC_ALLOW, TSYNC or \
                         WAIT_KILLABLE_RECV"
                    ),
                ));
            }
        };
    }
    Ok(flags)
}

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`; the kernel takes it only with a listener.
const WAIT_KILLABLE_RECV: u32 = 1 << 5;

fn check_notify(profile: &Profile) -> Result<(), Error> {
    let notifies = profile.rules.iter().any(|guarded| guarded.rule.action == Action::Notify);
    if notifies && profile.listener_path.is_none() {
        return Err(invalid(
            "listenerPath",
            "is missing; a rule has SCMP_ACT_NOTIFY, and nobody would answer",
        ));
    }
    if !notifies && profile.flags & WAIT_KILLABLE_RECV != 0 {
        return Err(invalid(
            "flags",
            "has SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which goes with SCMP_ACT_NOTIFY only",
        ));
    }
    Ok(())
}

fn guard(ignored: &mut Vec<String>, field: &str, raw: Option<RawGuard>) -> Result<Guard, Error> {
    let Some(raw) = raw else { return Ok(Guard::default()) };
    note_unknown(ignored, &format!("{field}."), &raw.unknown);
    let mut guard = Guard::default();
    for name in raw.caps.unwrap_or_default() {
        match capability(&name) {
            Some(bit) => guard.caps |= bit,
            None => {
                guard.impossible_cap = true;
                ignored.push(format!("{field}.caps {name:?}"));
            }
        }
    }
    guard.arches = raw
        .arches
        .filter(|arches| !arches.is_empty())
        .map(|arches| arches.iter().filter_map(|text| guard_arch(text)).collect());
    guard.min_kernel = match raw.min_kernel.filter(|text| !text.is_empty()) {
        Some(text) => Some(kernel_version(&text).ok_or_else(|| {
            invalid(format!("{field}.minKernel"), format!("{text:?} is no version like \"5.8\""))
        })?),
        None => None,
    };
    Ok(guard)
}

/// libseccomp's short names, which docker's format uses here.
fn guard_arch(text: &str) -> Option<Arch> {
    match text {
        "amd64" => Some(Arch::X86_64),
        "x86" => Some(Arch::X86),
        "x32" => Some(Arch::X32),
        "arm64" => Some(Arch::Aarch64),
        "arm" => Some(Arch::Arm),
        _ => None,
    }
}

fn kernel_version(text: &str) -> Option<(u32, u32)> {
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

fn note_unknown(ignored: &mut Vec<String>, prefix: &str, unknown: &Unknown) {
    for field in unknown.keys().filter(|field| !COMMENTS.contains(&field.as_str())) {
        ignored.push(format!("{prefix}{field}"));
    }
}
