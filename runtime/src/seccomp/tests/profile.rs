//! Reading profiles and resolving them for a container.

use std::fs;
use std::path::Path;

use crate::seccomp::{
    Action, Arch, Condition, Error, Filter, MAX_PROFILE_BYTES, Operator, Profile, Rule,
};

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYSLOG: u64 = 1 << 34;

fn parse(text: &str) -> Profile {
    Profile::parse(text.as_bytes()).unwrap()
}

/// A profile with this text in its list of rules.
fn with_rule(rule: &str) -> String {
    format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#)
}

fn resolve(text: &str) -> Filter {
    parse(text).resolve(0, Arch::X86_64, (6, 18))
}

/// Parsing fails with an error about this field that says this.
#[track_caller]
fn check_error(text: &str, expected_field: &str, expected: &str) {
    let error = Profile::parse(text.as_bytes()).unwrap_err();
    let Error::Invalid { field, problem } = error else { panic!("{error:?}") };
    assert_eq!(field, expected_field);
    assert!(problem.contains(expected), "{problem}");
}

/// Parsing fails as JSON, and the source says this.
#[track_caller]
fn check_syntax(bytes: &[u8], expected: &str) {
    let error = Profile::parse(bytes).unwrap_err();
    let Error::Syntax(source) = error else { panic!("{error:?}") };
    assert!(source.to_string().contains(expected), "{source}");
}

/// Which of the rules, each with a name of its own, exist for a container.
#[track_caller]
fn check_guards(guards: &str, caps: u64, arch: Arch, kernel: (u32, u32), expected: bool) {
    let rule = format!(r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW", {guards}}}"#);
    let filter = parse(&with_rule(&rule)).resolve(caps, arch, kernel);
    assert_eq!(!filter.rules.is_empty(), expected, "{guards}");
}

#[test]
fn the_form_of_the_runtime_spec_is_read() {
    let filter = resolve(
        r#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_ARM", "SCMP_ARCH_S390X"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "syscalls": [{
                "names": ["clone", "fork"], "action": "SCMP_ACT_TRACE", "errnoRet": 9,
                "args": [{"index": 5, "value": 4294967296, "valueTwo": 7, "op": "SCMP_CMP_MASKED_EQ"}]
            }]
        }"#,
    );
    let condition =
        Condition { index: 5, operator: Operator::MaskedEqual, value: 4_294_967_296, value_two: 7 };
    let rule = Rule {
        names: vec!["clone".to_owned(), "fork".to_owned()],
        action: Action::Trace(9),
        conditions: vec![condition],
    };
    let expected = Filter {
        default_action: Action::Errno(38),
        bad_arch_action: Action::KillThread,
        newer_action: Some(Action::Errno(38)),
        arches: vec![Arch::X86_64, Arch::X86],
        rules: vec![rule],
        flags: 6,
    };
    assert_eq!(filter, expected);
}

#[test]
fn old_profiles_with_one_name_for_each_rule_are_read() {
    let rule = r#"{"name": "read", "action": "SCMP_ACT_ALLOW", "args": null}"#;
    assert_eq!(resolve(&with_rule(rule)).rules[0].names, ["read"]);
}

#[test]
fn an_errno_may_be_a_name_or_a_number_in_text_or_both_forms() {
    let check = |text: &str, expected| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {text}}}"#);
        assert_eq!(resolve(&text).default_action, Action::Errno(expected), "{text}");
    };
    check(r#""comment": "none""#, 1);
    check(r#""defaultErrno": "ENOSYS", "defaultErrnoRet": 38"#, 38);
    check(r#""defaultErrno": "EWOULDBLOCK""#, 11);
    check(r#""defaultErrno": "EHWPOISON""#, 133);
    check(r#""defaultErrno": "95""#, 95);
    check(r#""defaultErrno": "", "defaultErrnoRet": 0"#, 0);
}

#[test]
fn each_action_is_read() {
    let check = |text: &str, expected| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_{text}"}}"#);
        assert_eq!(resolve(&text).default_action, expected);
    };
    check("KILL", Action::KillThread);
    check("KILL_THREAD", Action::KillThread);
    check("KILL_PROCESS", Action::KillProcess);
    check("TRAP", Action::Trap);
    check("ERRNO", Action::Errno(1));
    check("TRACE", Action::Trace(1));
    check("ALLOW", Action::Allow);
    check("LOG", Action::Log);
}

#[test]
fn profiles_that_let_unknown_calls_through_have_nothing_for_newer_ones() {
    let check = |text: &str, expected| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_{text}"}}"#);
        assert_eq!(resolve(&text).newer_action, expected, "{text}");
    };
    check("ALLOW", None);
    check("LOG", None);
    check("TRACE", None);
    check("ERRNO", Some(Action::Errno(38)));
    check("TRAP", Some(Action::Errno(38)));
    check("KILL_PROCESS", Some(Action::Errno(38)));
}

#[test]
fn comparing_an_argument_twice_makes_a_rule_of_each_comparison() {
    let rules = resolve(&with_rule(
        r#"{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 38, "op": "SCMP_CMP_NE"},
            {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"},
            {"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}"#,
    ))
    .rules;
    let values: Vec<Vec<u64>> = rules
        .iter()
        .map(|rule| rule.conditions.iter().map(|condition| condition.value).collect())
        .collect();
    assert_eq!(values, [[38], [1], [40]]);
}

#[test]
fn a_rule_needs_all_it_includes_and_none_of_what_it_excludes() {
    let check = |guards, caps, expected| check_guards(guards, caps, Arch::X86_64, (6, 1), expected);
    check(r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#, 0, false);
    check(r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#, CAP_SYS_ADMIN, true);
    check(r#""includes": {"caps": ["CAP_SYS_ADMIN", "CAP_SYSLOG"]}"#, CAP_SYSLOG, false);
    check(r#""includes": {"caps": ["CAP_OF_THE_FUTURE"]}"#, u64::MAX, false);
    check(r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_SYSLOG"]}"#, CAP_SYSLOG, false);
    check(r#""excludes": {"caps": ["CAP_SYS_ADMIN"]}"#, CAP_SYSLOG, true);
    check(r#""excludes": {"caps": ["CAP_OF_THE_FUTURE"]}"#, u64::MAX, true);
    check(r#""includes": {}, "excludes": null"#, 0, true);
    check(r#""includes": {"caps": [], "arches": [], "minKernel": ""}"#, 0, true);
}

#[test]
fn a_rule_may_be_for_one_native_architecture() {
    let check = |guards, arch, expected| check_guards(guards, 0, arch, (6, 1), expected);
    check(r#""includes": {"arches": ["amd64", "x32"]}"#, Arch::X86_64, true);
    check(r#""includes": {"arches": ["s390", "s390x"]}"#, Arch::X86_64, false);
    check(r#""includes": {"arches": ["arm", "arm64"]}"#, Arch::Aarch64, true);
    check(r#""excludes": {"arches": ["arm64"]}"#, Arch::Aarch64, false);
    check(r#""excludes": {"arches": ["s390"]}"#, Arch::X86_64, true);
}

#[test]
fn a_rule_may_be_for_newer_or_for_older_kernels() {
    let check = |guards, kernel, expected| check_guards(guards, 0, Arch::X86_64, kernel, expected);
    check(r#""includes": {"minKernel": "4.8"}"#, (4, 7), false);
    check(r#""includes": {"minKernel": "4.8"}"#, (4, 8), true);
    check(r#""includes": {"minKernel": "4.8"}"#, (6, 1), true);
    check(r#""excludes": {"minKernel": "4.8"}"#, (4, 10), false);
    check(r#""excludes": {"minKernel": "4.8"}"#, (3, 10), true);
}

#[test]
fn architectures_come_from_the_list_or_from_the_entry_of_the_native_one() {
    let check = |text: &str, native, expected: &[Arch]| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {text}}}"#);
        assert_eq!(parse(&text).resolve(0, native, (6, 1)).arches, expected, "{text}");
    };
    let map = r#""archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_S390X", "subArchitectures": null}]"#;
    check(map, Arch::X86_64, &[Arch::X86_64, Arch::X86, Arch::X32]);
    check(map, Arch::Aarch64, &[Arch::Aarch64, Arch::Arm]);
    check(
        r#""architectures": ["SCMP_ARCH_X32", "SCMP_ARCH_X86_64"]"#,
        Arch::X86_64,
        &[Arch::X86_64, Arch::X32],
    );
    check(r#""architectures": ["SCMP_ARCH_NATIVE"]"#, Arch::Aarch64, &[Arch::Aarch64]);
    check(r#""architectures": [], "archMap": []"#, Arch::X86_64, &[Arch::X86_64]);
}

#[test]
fn flags_become_bits_and_a_rule_that_notifies_asks_for_a_listener() {
    let check = |flags: &str, action: &str, expected| {
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "flags": [{flags}], "listenerPath": "/run/x",
                "syscalls": [{{"names": ["mkdir"], "action": "{action}"}}]}}"#
        );
        assert_eq!(resolve(&text).flags, expected, "{flags} {action}");
    };
    check("", "SCMP_ACT_LOG", 0);
    check(r#""SECCOMP_FILTER_FLAG_TSYNC""#, "SCMP_ACT_LOG", 1);
    check(r#""SECCOMP_FILTER_FLAG_LOG""#, "SCMP_ACT_LOG", 2);
    check("", "SCMP_ACT_NOTIFY", 8);
    check(r#""SECCOMP_FILTER_FLAG_TSYNC""#, "SCMP_ACT_NOTIFY", 8);
    check(r#""SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV""#, "SCMP_ACT_NOTIFY", 0x28);
}

#[test]
fn what_a_profile_says_in_vain_is_reported() {
    let profile = parse(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "$schema": "x", "defaultaction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["raed", "read", "swapcontext", "raed"], "action": "SCMP_ACT_ALLOW",
                 "comment": "reading", "exclude": {}, "includes": {"cap": ["CAP_BPF"]}},
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["BPF"]}}]}"#,
    );
    assert_eq!(profile.unknown_syscalls, ["raed".to_owned()].into());
    assert_eq!(
        profile.ignored_fields,
        [
            "defaultaction",
            "syscalls[0].exclude",
            "syscalls[0].includes.cap",
            "syscalls[1].includes.caps \"BPF\""
        ]
    );
}

#[test]
fn c_10_what_is_no_profile_at_all_is_an_error() {
    check_error("", "(whole file)", "is empty");
    check_error(" \n", "(whole file)", "is empty");
    check_error("{}", "defaultAction", "is missing");
    check_syntax(b"{", "EOF");
    check_syntax(b"[]", "expected struct RawProfile");
    check_syntax(b"\x7fELF", "expected value");
    check_syntax(br#"{"defaultAction": "SCMP_ACT_ALLOW"} {}"#, "trailing");
    check_syntax(
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultAction": "SCMP_ACT_KILL"}"#,
        "duplicate",
    );
    check_syntax(br#"{"defaultAction": 1}"#, "expected a string");
    check_syntax(br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1}"#, "invalid value");
    let large = " ".repeat(MAX_PROFILE_BYTES + 1);
    check_error(&large, "(whole file)", "larger than 1048576 bytes");
}

#[test]
fn a_wrong_value_is_an_error_that_names_its_field() {
    check_error(r#"{"defaultAction": "ALLOW"}"#, "defaultAction", r#""ALLOW" is no action"#);
    check_error(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "defaultAction", "every call");
    check_error(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#,
        "defaultAction",
        "takes no errno",
    );
    check_error(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}"#,
        "defaultAction",
        "it can be 0 to 4095",
    );
    check_error(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "EWHAT"}"#,
        "defaultAction",
        r#""EWHAT""#,
    );
    check_error(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86", "X32"]}"#,
        "architectures[1]",
        r#""X32" is no architecture"#,
    );
    check_error(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
            "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#,
        "archMap",
        "beside architectures",
    );
    check_error(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "flags": ["LOG"]}"#,
        "flags[0]",
        r#""LOG" is no flag"#,
    );
    check_error(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
        "flags",
        "SCMP_ACT_NOTIFY only",
    );
}

#[test]
fn an_error_is_short_however_long_the_wrong_word() {
    let text = format!(r#"{{"defaultAction": "{}"}}"#, "x".repeat(100_000));
    assert!(Profile::parse(text.as_bytes()).unwrap_err().to_string().len() < 300);
}

#[test]
fn a_wrong_rule_is_an_error_that_names_its_place() {
    let check = |rule: &str, field, expected| check_error(&with_rule(rule), field, expected);
    check(r#"{"action": "SCMP_ACT_ALLOW"}"#, "syscalls[0].names", "is empty");
    check(
        r#"{"names": ["read", ""], "action": "SCMP_ACT_ALLOW"}"#,
        "syscalls[0].names",
        "empty name",
    );
    check(
        r#"{"name": "read", "names": ["write"], "action": "SCMP_ACT_ALLOW"}"#,
        "syscalls[0].name",
        "beside names",
    );
    check(r#"{"names": ["read"]}"#, "syscalls[0].action", "is missing");
    check(r#"{"names": ["read"], "action": "allow"}"#, "syscalls[0].action", "no action");
    check(
        r#"{"names": ["read"], "action": "SCMP_ACT_LOG", "errnoRet": 1}"#,
        "syscalls[0].action",
        "no errno",
    );
    check(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#, "listenerPath", "is missing");
    let arg = |arg: &str| {
        format!(
            r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW"}},
               {{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                 "args": [{{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}}, {arg}]}}"#
        )
    };
    check(
        &arg(r#"{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}"#),
        "syscalls[1].args[1].index",
        "0 to 5",
    );
    check(
        &arg(r#"{"index": 256, "value": 1, "op": "SCMP_CMP_EQ"}"#),
        "syscalls[1].args[1].index",
        "256",
    );
    check(
        &arg(r#"{"index": 1, "value": 1, "op": "EQ"}"#),
        "syscalls[1].args[1].op",
        r#""EQ" is no operator"#,
    );
    for version in ["4", "4.8.1", "x.1", "4.", "+4.8", "4.8-rc1"] {
        let rule = format!(
            r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {{"minKernel": "{version}"}}}}"#
        );
        check(&rule, "syscalls[0].includes.minKernel", version);
    }
}

#[test]
fn a_small_file_cannot_ask_for_endless_rules() {
    let names = vec![r#""read""#; 300].join(",");
    let args = vec![r#"{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}"#; 300].join(",");
    let rule = format!(r#"{{"names": [{names}], "action": "SCMP_ACT_ALLOW", "args": [{args}]}}"#);
    check_error(&with_rule(&rule), "syscalls[0]", "may name 65536 calls");
}

#[test]
fn c_10_a_profile_is_loaded_from_a_regular_file_only() {
    let check = |path: &Path, expected: &str| {
        let error = Profile::load(path).unwrap_err();
        let Error::Read { path: named, source } = error else { panic!("{error:?}") };
        assert_eq!(named, path);
        assert!(source.to_string().contains(expected), "{source}");
    };
    check(Path::new(""), "No such file");
    check(Path::new("/nonexistent/profile.json"), "No such file");
    check(Path::new("/"), "not a regular file");
    check(Path::new("/dev/zero"), "not a regular file");

    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    check(&fifo, "not a regular file");
    let file = dir.path().join("profile.json");
    fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    assert_eq!(Profile::load(&file).unwrap().resolve(0, Arch::X86_64, (6, 1)).rules, []);
    fs::write(&file, vec![b' '; MAX_PROFILE_BYTES + 10]).unwrap();
    assert!(Profile::load(&file).unwrap_err().to_string().contains("larger than"));
}
