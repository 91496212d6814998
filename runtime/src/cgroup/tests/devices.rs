//! Device rules against the written order, as v2 programs and as v1 lines.

use proptest::prelude::*;

use super::*;

/// What a process wants to do with which device.
#[derive(Clone, Copy, Debug)]
struct Request {
    is_char: bool,
    major: u32,
    minor: u32,
    access: u8,
}

/// The module's first paragraph, as plain as can be.
fn expected(rules: &[Rule], request: Request) -> bool {
    let decides = |rule: &&Rule, bit: u8| {
        let kind = match rule.kind {
            Kind::All => true,
            Kind::Char => request.is_char,
            Kind::Block => !request.is_char,
        };
        kind && rule.major.is_none_or(|major| major == request.major)
            && rule.minor.is_none_or(|minor| minor == request.minor)
            && rule.access() & bit != 0
    };
    [READ, WRITE, MKNOD].into_iter().filter(|bit| request.access & bit != 0).all(|bit| {
        rules.iter().rev().find(|rule| decides(rule, bit)).is_some_and(|rule| rule.allow)
    })
}

/// Runs the program as the kernel would, all instructions of ours and no more.
fn ask_program(program: &[Instruction], request: Request) -> bool {
    let kind = if request.is_char { 2 } else { 1 };
    let context = [u32::from(request.access) << 16 | kind, request.major, request.minor];
    let mut registers = [0_u32; 7];
    let mut at = 0;
    loop {
        let Instruction { code, registers: named, offset, immediate } = program[at];
        let (to, from) = (usize::from(named & 15), usize::from(named >> 4));
        let value = immediate.cast_unsigned();
        at += 1;
        let jumps = match code {
            0x61 => {
                assert_eq!(from, 1, "loads come from the context");
                registers[to] = context[usize::try_from(offset).unwrap() / 4];
                false
            }
            0xbc => {
                registers[to] = registers[from];
                false
            }
            0xb4 => {
                registers[to] = value;
                false
            }
            0x54 => {
                registers[to] &= value;
                false
            }
            0x74 => {
                registers[to] >>= value;
                false
            }
            0x56 => registers[to] != value,
            0x16 => registers[to] == value,
            0x95 => return registers[0] == 1,
            _ => panic!("instruction {code:#x}"),
        };
        at += if jumps { usize::try_from(offset).unwrap() } else { 0 };
    }
}

/// A v1 cgroup, as `security/device_cgroup.c` keeps it.
#[derive(Default)]
struct V1Cgroup {
    allow_by_default: bool,
    exceptions: Vec<(Pattern, u8)>,
}

impl V1Cgroup {
    fn write(&mut self, V1Write { allow, line }: &V1Write) {
        if line.starts_with('a') {
            self.allow_by_default = *allow;
            self.exceptions.clear();
            return;
        }
        assert_ne!(*allow, self.allow_by_default, "an exception says what the default does not");
        let [kind, numbers, letters] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let number = |text: &str| (text != "*").then(|| text.parse().unwrap());
        let (major, minor) = numbers.split_once(':').unwrap();
        let pattern = Pattern { is_char: kind == "c", major: number(major), minor: number(minor) };
        let access = letters.chars().fold(0, |access, letter| {
            access
                | ["m", "r", "w"]
                    .iter()
                    .position(|known| known.starts_with(letter))
                    .map(|at| 1 << at)
                    .unwrap()
        });
        match self.exceptions.iter_mut().find(|(known, _)| *known == pattern) {
            Some((_, known)) => *known |= access,
            None => self.exceptions.push((pattern, access)),
        }
    }

    fn ask(&self, request: Request) -> bool {
        let device = Pattern {
            is_char: request.is_char,
            major: Some(request.major),
            minor: Some(request.minor),
        };
        let mut about = self.exceptions.iter().filter(|(pattern, _)| pattern.covers(device));
        if self.allow_by_default {
            !about.any(|(_, access)| access & request.access != 0)
        } else {
            about.any(|(_, access)| request.access & !access == 0)
        }
    }
}

/// All requests about the devices that short rule lists speak of.
fn requests() -> Vec<Request> {
    let mut requests = Vec::new();
    for is_char in [false, true] {
        for major in [0, 1, 5, 0xffff_ffff] {
            for minor in [0, 3, 5, 0x8000_0000] {
                requests.extend((1..=7).map(|access| Request { is_char, major, minor, access }));
            }
        }
    }
    requests
}

/// Program and, where there is one, the v1 form answer as expected.
#[track_caller]
fn check_all(rules: &[Rule]) {
    let program = program(rules);
    let v1 = v1_writes(rules).ok().map(|writes| {
        let mut cgroup = V1Cgroup::default();
        writes.iter().for_each(|write| cgroup.write(write));
        cgroup
    });
    for request in requests() {
        let expected = expected(rules, request);
        assert_eq!(ask_program(&program, request), expected, "v2 {request:?} {rules:#?}");
        if let Some(cgroup) = &v1 {
            assert_eq!(cgroup.ask(request), expected, "v1 {request:?} {rules:#?}");
        }
    }
}

/// Under the standard rules the request has this answer.
#[track_caller]
fn check_standard(kind: char, major: u32, minor: u32, access: u8, expected: bool) {
    let request = Request { is_char: kind == 'c', major, minor, access };
    assert_eq!(ask_program(&program(&standard()), request), expected, "{request:?}");
}

fn rule() -> impl Strategy<Value = Rule> {
    let kind = prop::sample::select(vec![Kind::All, Kind::Char, Kind::Block]);
    let major = prop::option::of(prop::sample::select(vec![1_u32, 5, 0xffff_ffff]));
    let minor = prop::option::of(prop::sample::select(vec![3_u32, 5, 0x8000_0000]));
    let access = prop_oneof![Just((true, true, true)), any::<(bool, bool, bool)>()];
    (any::<bool>(), kind, major, minor, access).prop_map(
        |(allow, kind, major, minor, (read, write, mknod))| Rule {
            allow,
            kind,
            major,
            minor,
            read,
            write,
            mknod,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn programs_and_v1_lines_answer_by_the_order_of_rules(
        rules in prop::collection::vec(rule(), 0..10)
    ) {
        check_all(&rules);
    }

    #[test]
    fn every_list_that_only_allows_has_a_v1_form(
        rules in prop::collection::vec(rule().prop_map(|rule| Rule { allow: true, ..rule }), 0..10)
    ) {
        prop_assert!(v1_writes(&rules).is_ok());
        check_all(&rules);
    }

    #[test]
    fn every_instruction_of_a_program_is_reached(rules in prop::collection::vec(rule(), 0..10)) {
        let program = program(&rules);
        let mut reached = vec![false; program.len()];
        reached[0] = true;
        for (at, instruction) in program.iter().enumerate() {
            prop_assert!(reached[at], "{} of {:#?}", at, program);
            if instruction.code != EXIT {
                reached[at + 1] = true;
                if matches!(instruction.code, UNEQUAL | EQUAL) {
                    reached[at + 1 + usize::try_from(instruction.offset).unwrap()] = true;
                }
            }
        }
    }
}

#[test]
fn without_rules_nothing_is_allowed() {
    check_all(&[]);
    let request = Request { is_char: true, major: 1, minor: 3, access: READ };
    assert!(!ask_program(&program(&[]), request));
}

#[test]
fn d_09_containers_get_the_standard_devices_and_no_others() {
    let open = READ | WRITE;
    for minor in [3, 5, 7, 8, 9] {
        check_standard('c', 1, minor, open, true);
    }
    check_standard('c', 5, 0, open, true);
    check_standard('c', 5, 2, open, true);
    check_standard('c', 136, 0, open, true);
    check_standard('c', 136, 1_048_575, open, true);

    check_standard('b', 8, 0, READ, false); // a disk
    check_standard('b', 1, 3, READ, false); // a ram disk with the numbers of /dev/null
    check_standard('c', 1, 1, READ, false); // mem
    check_standard('c', 1, 11, WRITE, false); // kmsg
    check_standard('c', 10, 200, open, false); // net/tun
    check_standard('c', 10, 229, open, false); // fuse
    check_standard('c', 10, 237, open, false); // loop-control
    check_standard('c', 5, 1, open, false); // the host's console
    check_standard('c', 5, 3, open, false);
}

#[test]
fn making_a_node_is_allowed_but_making_and_opening_it_at_once_is_not() {
    check_standard('b', 8, 0, MKNOD, true);
    check_standard('c', 10, 229, MKNOD, true);
    check_standard('b', 8, 0, MKNOD | READ, false);
    check_standard('c', 1, 3, ALL_ACCESS, true);
}

#[test]
fn a_device_given_to_the_container_is_allowed_as_far_as_asked() {
    let fuse = Rule {
        kind: Kind::Char,
        major: Some(10),
        minor: Some(229),
        mknod: false,
        ..Rule::ALLOW_ALL
    };
    let read_only =
        Rule { write: false, kind: Kind::Block, major: Some(8), minor: Some(0), ..fuse };
    let mut rules = standard();
    rules.extend([fuse, read_only]);
    let ask = |is_char, major, minor, access| {
        ask_program(&program(&rules), Request { is_char, major, minor, access })
    };
    assert!(ask(true, 10, 229, READ | WRITE));
    assert!(ask(false, 8, 0, READ));
    assert!(!ask(false, 8, 0, READ | WRITE));
    assert!(!ask(false, 8, 1, READ));
}

#[test]
fn a_denial_of_writing_also_stops_opening_for_reading_and_writing() {
    let deny =
        Rule { allow: false, read: false, mknod: false, kind: Kind::Char, ..Rule::ALLOW_ALL };
    let rules = [Rule::ALLOW_ALL, deny];
    let request = |access| Request { is_char: true, major: 4, minor: 64, access };
    assert!(ask_program(&program(&rules), request(READ)));
    assert!(!ask_program(&program(&rules), request(READ | WRITE)));
    check_all(&rules);
}

#[test]
fn the_standard_rules_have_this_v1_form() {
    let writes = v1_writes(&standard()).unwrap();
    let text: Vec<String> =
        writes.iter().map(|write| format!("{} {}", write.file(), write.line)).collect();
    assert_eq!(
        text,
        [
            "devices.deny a *:* rwm",
            "devices.allow c *:* m",
            "devices.allow b *:* m",
            "devices.allow c 1:3 rwm",
            "devices.allow c 1:5 rwm",
            "devices.allow c 1:7 rwm",
            "devices.allow c 1:8 rwm",
            "devices.allow c 1:9 rwm",
            "devices.allow c 5:0 rwm",
            "devices.allow c 5:2 rwm",
            "devices.allow c 136:* rwm",
        ]
    );
}

#[test]
fn a_privileged_container_gets_everything_in_both_forms() {
    let allow_all = V1Write { allow: true, line: "a *:* rwm".to_owned() };
    assert_eq!(v1_writes(&[Rule::ALLOW_ALL]).unwrap(), [allow_all]);
    let rules = [standard(), vec![Rule::ALLOW_ALL]].concat();
    assert!(program(&rules).len() < 10);
    check_all(&rules);
}

#[test]
fn taking_back_a_part_of_a_wider_rule_is_an_error_in_v1() {
    let all_mem = Rule { kind: Kind::Char, major: Some(1), ..Rule::ALLOW_ALL };
    let not_kmsg = Rule { allow: false, minor: Some(11), ..all_mem };
    let error = v1_writes(&[all_mem, not_kmsg]).unwrap_err();
    assert!(error.to_string().starts_with("device rule 1 takes back"), "{error}");
    check_all(&[all_mem, not_kmsg]);
}

#[test]
fn lines_for_the_same_device_give_what_is_asked_at_once() {
    let read =
        Rule { kind: Kind::Char, major: Some(1), write: false, mknod: false, ..Rule::ALLOW_ALL };
    let write = Rule { major: None, minor: Some(3), read: false, write: true, ..read };
    check_all(&[read, write]);
    let lines: Vec<String> =
        v1_writes(&[read, write]).unwrap().into_iter().map(|write| write.line).collect();
    assert_eq!(lines, ["a *:* rwm", "c 1:* r", "c *:3 w", "c 1:3 rw"]);
}
