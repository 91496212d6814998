//! Points in time: "10m" ago, RFC 3339, or seconds since 1970.

use crate::app::now;

const NANOSECONDS: i64 = 1_000_000_000;
/// Units of a span in nanoseconds, as docker's `10m` and `1h30m` have them.
const UNITS: [(&str, i64); 5] = [
    ("h", 3600 * NANOSECONDS),
    ("ms", NANOSECONDS / 1000),
    ("m", 60 * NANOSECONDS),
    ("s", NANOSECONDS),
    ("d", 86_400 * NANOSECONDS),
];

/// A time in nanoseconds since 1970: a span back from now ("10m", "1h30m", "2d"), RFC 3339
/// ("2026-11-24T16:27:26Z"; UTC where no zone is given; a date alone is its beginning), or seconds since 1970.
pub(in crate::cli) fn since(text: &str) -> Result<i64, String> {
    since_at(text, now())
}

fn since_at(text: &str, now: i64) -> Result<i64, String> {
    seconds(text)
        .or_else(|| span(text).and_then(|span| now.checked_sub(span)))
        .or_else(|| rfc3339(text))
        .ok_or_else(|| {
            "write how long ago, as in 10m or 1h30m, or a time as in 2026-11-24T16:27:26Z"
                .to_owned()
        })
}

/// Seconds since 1970, with a fraction.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    number(whole, 1..=11)?.checked_mul(NANOSECONDS)?.checked_add(nanoseconds(fraction)?)
}

fn span(text: &str) -> Option<i64> {
    let mut total: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count = number(&rest[..digits], 1..=11)?;
        let unit_end =
            rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let unit = &rest[digits..unit_end];
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(count.checked_mul(*size)?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

/// RFC 3339, the time of day and the zone optional.
fn rfc3339(text: &str) -> Option<i64> {
    let date = text.get(..10)?;
    let (year, month, day) = match date.split('-').collect::<Vec<_>>()[..] {
        [year, month, day] => (number(year, 4..=4)?, number(month, 2..=2)?, number(day, 2..=2)?),
        _ => return None,
    };
    let days_in_month = match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=12).contains(&month) || !(1..=days_in_month).contains(&day) {
        return None;
    }
    let midnight = days_from_1970(year, month, day) * 86_400;
    let rest = &text[10..];
    if rest.is_empty() {
        return midnight.checked_mul(NANOSECONDS);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, zone) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let second = of_day(clock)? - offset(zone)?;
    (midnight + second).checked_mul(NANOSECONDS)?.checked_add(nanoseconds(fraction)?)
}

/// `16:27:26`, or `16:27`, in seconds.
fn of_day(clock: &str) -> Option<i64> {
    let (hour, minute, second) = match clock.split(':').collect::<Vec<_>>()[..] {
        [hour, minute, second] => {
            (number(hour, 2..=2)?, number(minute, 2..=2)?, number(second, 2..=2)?)
        }
        [hour, minute] => (number(hour, 2..=2)?, number(minute, 2..=2)?, 0),
        _ => return None,
    };
    // 60 is a leap second.
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

/// Seconds that the zone is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone.is_empty() || zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let ahead = of_day(&zone[1..])?;
    Some(if zone.starts_with('-') { -ahead } else { ahead })
}

fn number(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (digits && length.contains(&text.len())).then(|| text.parse().ok())?
}

/// Digits behind the point, in nanoseconds; further digits are cut off.
fn nanoseconds(fraction: &str) -> Option<i64> {
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{fraction:0<9}").get(..9)?.parse().ok()
}

/// Days of a date in the Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn days_from_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_764_001_646 * NANOSECONDS;

    #[track_caller]
    fn check(text: &str, seconds: i64, nanoseconds: i64) {
        assert_eq!(since_at(text, NOW), Ok(seconds * NANOSECONDS + nanoseconds), "{text}");
    }

    #[test]
    fn spans_go_back_from_now() {
        check("10m", 1_764_001_046, 0);
        check("1h30m", 1_763_996_246, 0);
        check("2d", 1_763_828_846, 0);
        check("500ms", 1_764_001_645, 500_000_000);
        check("0s", 1_764_001_646, 0);
    }

    #[test]
    fn times_have_dates_zones_and_fractions() {
        check("2025-11-24T16:27:26Z", 1_764_001_646, 0);
        check("2025-11-24T16:27:26.5Z", 1_764_001_646, 500_000_000);
        check("2025-11-24T16:27:26.0000000019Z", 1_764_001_646, 1);
        check("2025-11-24t17:57:26+01:30", 1_764_001_646, 0);
        check("2025-11-24 08:27:26-08:00", 1_764_001_646, 0);
        check("2025-11-24T16:27", 1_764_001_620, 0);
        check("2025-11-24", 1_763_942_400, 0);
        check("1970-01-01", 0, 0);
        check("2024-02-29", 1_709_164_800, 0);
        check("1764001646", 1_764_001_646, 0);
        check("1764001646.25", 1_764_001_646, 250_000_000);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "m",
            "10",
            "10x",
            "-10m",
            "1.5h",
            "yesterday",
            "2025-11-24T",
            "2025-13-01",
            "2025-02-29",
            "2025-11-31",
            "2025-11-24T24:00:00Z",
            "2025-11-24T16:60:00Z",
            "2025-11-24T16:27:26+1",
            "99999999999d",
            "２025-11-24",
            "2025-11-24Tü",
        ] {
            let found = since_at(bad, NOW);
            // Ten is a time, ten seconds into 1970, as docker has it.
            assert_eq!(found.is_ok(), bad == "10", "{bad}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(time in 1..4_000_000_000_000_000_000_i64) {
            prop_assert_eq!(rfc3339(&crate::shown::time(time).unwrap()), Some(time));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}|[0-9TZ:.+-]{0,30}") {
            drop(since_at(&text, NOW));
        }
    }
}
