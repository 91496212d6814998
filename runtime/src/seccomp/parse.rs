//! Reading profiles: JSON in, a checked [`Profile`] or the field that is wrong out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::filter::{Action, Arch, Condition, Rule};
use super::profile::{Architectures, Guard, GuardedRule, Profile};
use super::{Error, syscalls, words};
use crate::sys::seccomp::FLAG_WAIT_KILLABLE_RECV;

/// The most names in all rules together, counted once more for each alternative that a rule becomes.
/// Profiles in use have some 500; without a limit a small file could ask for billions.
const MAX_NAMES: usize = 65_536;

/// Arguments of a system call.
const ARGUMENTS: u32 = 6;

/// Fields that are for people.
const COMMENTS: [&str; 2] = ["comment", "$schema"];

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
    let default_action = words::action(
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
        unknown_syscalls: BTreeSet::new(),
        ignored_fields: Vec::new(),
    };
    note_unknown(&mut profile.ignored_fields, "", &raw.unknown);
    let mut names_left = MAX_NAMES;
    for (index, rule) in raw.syscalls.unwrap_or_default().into_iter().enumerate() {
        add_rule(&mut profile, &mut names_left, &format!("syscalls[{index}]"), rule)?;
    }
    check_notify(&profile)?;
    Ok(profile)
}

/// An error about one field.
pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid { field: field.into(), problem: problem.into() }
}

fn add_rule(
    profile: &mut Profile,
    names_left: &mut usize,
    field: &str,
    raw: RawRule,
) -> Result<(), Error> {
    let names = names(field, raw.name, raw.names)?;
    let unknown = names.iter().filter(|name| !syscalls::is_known(name));
    profile.unknown_syscalls.extend(unknown.cloned());
    let action = words::action(
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
    let alternatives = alternatives(conditions);
    let asked = names.len().saturating_mul(alternatives.len());
    *names_left = names_left.checked_sub(asked).ok_or_else(|| {
        invalid(field, format!("is one rule too many; all together may name {MAX_NAMES} calls"))
    })?;
    for conditions in alternatives {
        profile.rules.push(GuardedRule {
            rule: Rule { names: names.clone(), action, conditions },
            includes: includes.clone(),
            excludes: excludes.clone(),
        });
    }
    Ok(())
}

/// The names of a rule, which old profiles write as one name.
fn names(
    field: &str,
    name: Option<String>,
    names: Option<Vec<String>>,
) -> Result<Vec<String>, Error> {
    let name = name.filter(|name| !name.is_empty());
    let names = match (name, names.unwrap_or_default()) {
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
    Ok(names)
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
            let operator = words::operator(&format!("{field}.args[{at}].op"), &raw.op)?;
            Ok(Condition { index, operator, value: raw.value, value_two: raw.value_two })
        })
        .collect()
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
        let native = words::arch(&format!("{field}.architecture"), &entry.architecture)?;
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
        arches.extend(words::arch(&format!("{field}[{at}]"), text)?);
    }
    Ok(arches)
}

fn flags(texts: Vec<String>) -> Result<u32, Error> {
    let mut flags = 0;
    for (at, text) in texts.iter().enumerate() {
        flags |= words::flag(&format!("flags[{at}]"), text)?;
    }
    Ok(flags)
}

/// Notify needs somebody to ask, and one flag needs notify.
fn check_notify(profile: &Profile) -> Result<(), Error> {
    let notifies = profile.rules.iter().any(|guarded| guarded.rule.action == Action::Notify);
    if notifies && profile.listener_path.is_none() {
        return Err(invalid(
            "listenerPath",
            "is missing; a rule has SCMP_ACT_NOTIFY, and nobody would answer",
        ));
    }
    if !notifies && profile.flags & FLAG_WAIT_KILLABLE_RECV != 0 {
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
        match words::capability(&name) {
            Some(bit) => guard.caps |= bit,
            None => {
                guard.impossible_cap = true;
                ignored.push(format!("{field}.caps {name:?}"));
            }
        }
    }
    guard.arches = raw.arches.filter(|arches| !arches.is_empty()).map(|arches| {
        let ours: BTreeSet<Arch> =
            arches.iter().filter_map(|text| words::guard_arch(text)).collect();
        ours.into_iter().collect()
    });
    guard.min_kernel = match raw.min_kernel.filter(|text| !text.is_empty()) {
        Some(text) => Some(words::kernel_version(&text).ok_or_else(|| {
            invalid(
                format!("{field}.minKernel"),
                format!("{} is no version like \"5.8\"", words::quoted(&text)),
            )
        })?),
        None => None,
    };
    Ok(guard)
}

fn note_unknown(ignored: &mut Vec<String>, prefix: &str, unknown: &Unknown) {
    for field in unknown.keys().filter(|field| !COMMENTS.contains(&field.as_str())) {
        ignored.push(format!("{prefix}{field}"));
    }
}
