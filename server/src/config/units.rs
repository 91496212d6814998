//! Sizes and durations as the configuration file writes them: "16MiB", "1m30s".

use std::fmt;
use std::time::Duration;

/// A number of bytes, written with a binary unit: "512B", "64KiB", "10MiB", "128GiB".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The units of a size, largest first.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// The units of a duration in milliseconds, largest first.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Size {
    /// `n` times 1024 bytes.
    pub const fn kib(n: u64) -> Size {
        Size(n << 10)
    }

    /// `n` times 1024 KiB.
    pub const fn mib(n: u64) -> Size {
        Size(n << 20)
    }

    /// `n` times 1024 MiB.
    pub const fn gib(n: u64) -> Size {
        Size(n << 30)
    }

    /// Reads one whole number with one unit; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Size> {
        let (number, unit) = split_number(text)?;
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*factor).map(Size)
    }
}

impl fmt::Display for Size {
    /// Writes what [`Size::parse`] reads, in the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0 >= *factor && self.0.is_multiple_of(*factor);
        let (unit, factor) = SIZE_UNITS.iter().find(fits).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// Reads a duration such as "90s" or "1m30s": whole numbers, units in falling order.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut last_factor = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit_end =
            rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let (number, unit) = split_number(&rest[..unit_end])?;
        let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        if *factor >= last_factor {
            return None;
        }
        last_factor = *factor;
        total = total.checked_add(number.checked_mul(*factor)?)?;
        rest = &rest[unit_end..];
    }
    (last_factor != u64::MAX).then(|| Duration::from_millis(total))
}

/// Writes what [`parse_duration`] reads; parts of a millisecond are left out.
pub(super) fn duration_text(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, factor) in DURATION_UNITS {
        if rest >= factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Splits "10MiB" into 10 and "MiB"; the number must be there and fit.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number = text.get(..digits)?.parse().ok()?;
    Some((number, &text[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check_size(text: &str, expected: Option<u64>) {
        assert_eq!(Size::parse(text).map(|size| size.0), expected, "{text}");
    }

    #[track_caller]
    fn check_duration(text: &str, expected_ms: Option<u64>) {
        assert_eq!(parse_duration(text), expected_ms.map(Duration::from_millis), "{text}");
    }

    #[test]
    fn a_size_is_a_whole_number_with_a_binary_unit() {
        check_size("0B", Some(0));
        check_size("512B", Some(512));
        check_size("64KiB", Some(65_536));
        check_size("10MiB", Some(10 << 20));
        check_size("3TiB", Some(3 << 40));
        for bad in [
            "",
            "10",
            "MiB",
            "10MB",
            "10 MiB",
            "1.5GiB",
            "-1B",
            "10mib",
            "99999999999TiB",
            "1MiB2KiB",
            "１B",
        ] {
            check_size(bad, None);
        }
    }

    #[test]
    fn a_duration_is_numbers_with_units_in_falling_order() {
        check_duration("0s", Some(0));
        check_duration("250ms", Some(250));
        check_duration("1m30s", Some(90_000));
        check_duration("2h0m5s1ms", Some(7_205_001));
        for bad in [
            "",
            "5",
            "s",
            "30s1m",
            "1s1s",
            "1.5s",
            "5 s",
            "5sec",
            "-1s",
            "99999999999999999h",
            "٣s",
        ] {
            check_duration(bad, None);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(bytes: u64, ms in 0..1_000_000_000_000u64) {
            prop_assert_eq!(Size::parse(&Size(bytes).to_string()), Some(Size(bytes)));
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9]{0,25}[a-zA-Z]{0,4}[0-9]{0,25}[a-zA-Z]{0,4}|\\PC*") {
            if let Some(size) = Size::parse(&text) {
                prop_assert_eq!(Size::parse(&size.to_string()), Some(size));
            }
            if let Some(duration) = parse_duration(&text) {
                prop_assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
            }
        }
    }
}
