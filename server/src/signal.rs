//! Signals by name and number, and as the CRI counts them.

/// Names without SIG, with Linux's numbers on x86 and arm (signal(7)); aliases come after what they mean.
const NAMES: [(&str, u32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", 34),
];
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// A signal by its name, with or without `SIG`, or its number, as `kill` and an image's STOPSIGNAL take it.
pub fn parse(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: char| rest.strip_prefix(sign)?.parse::<u32>().ok();
    if let Some(rest) = name.strip_prefix("RTMIN+").map(|_| &name[5..]) {
        return offset(rest, '+').map(|n| RTMIN + n).filter(|number| *number <= RTMAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let down = if rest.is_empty() { Some(0) } else { offset(rest, '-') };
        return down.and_then(|n| RTMAX.checked_sub(n)).filter(|number| *number >= RTMIN);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The name of a signal, with `SIG`.
pub fn name(number: u32) -> String {
    match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None if (RTMIN..=RTMAX).contains(&number) => format!("SIGRTMIN+{}", number - RTMIN),
        None => number.to_string(),
    }
}

/// The CRI's own numbering, in its order from 1 on; from SIGRTMIN (35) it is Linux's plus one.
const CRI: [u32; 34] = [
    6, 14, 7, 17, 17, 18, 8, 1, 4, 2, 29, 6, 9, 13, 29, 27, 30, 3, 11, 16, 19, 31, 15, 5, 20, 21,
    22, 23, 10, 12, 26, 28, 24, 25,
];

/// Linux's number of a value of the CRI's enum Signal. 0, the runtime's default, is None.
///
/// # Errors
/// The value is not one of the enum's.
pub fn from_cri(value: i32) -> Result<Option<u32>, String> {
    let unknown = || format!("{value} is no signal");
    match usize::try_from(value).map_err(|_| unknown())? {
        0 => Ok(None),
        index @ 1..=34 => Ok(Some(CRI[index - 1])),
        35..=65 => Ok(Some(value.unsigned_abs() - 1)),
        _ => Err(unknown()),
    }
}

/// The value of the CRI's enum Signal for a signal of Linux.
pub fn to_cri(number: u32) -> i32 {
    let value = match CRI.iter().position(|known| *known == number) {
        Some(index) => index + 1,
        None => usize::try_from(number).unwrap_or_default() + 1,
    };
    i32::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proto::cri::Signal;

    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        for (text, expected) in [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigkill", Some(9)),
            ("9", Some(9)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("RTMAX", Some(64)),
            ("RTMIN+31", None),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!(name(15), "SIGTERM");
        assert_eq!(name(37), "SIGRTMIN+3");
    }

    #[test]
    fn the_cris_numbering_is_its_own() {
        for (value, expected) in [
            (Signal::Sigabrt, 6),
            (Signal::Sigterm, 15),
            (Signal::Sigkill, 9),
            (Signal::Sigxfsz, 25),
            (Signal::Sigrtmin, 34),
            (Signal::Sigrtminplus15, 49),
            (Signal::Sigrtmaxminus14, 50),
            (Signal::Sigrtmax, 64),
        ] {
            assert_eq!(from_cri(value as i32), Ok(Some(expected)));
            assert_eq!(to_cri(expected), value as i32);
        }
        assert_eq!(from_cri(0), Ok(None));
        assert!(from_cri(66).is_err());
        assert!(from_cri(-1).is_err());
        // An alias comes back as what it means.
        assert_eq!(to_cri(17), Signal::Sigchld as i32);
    }
}
