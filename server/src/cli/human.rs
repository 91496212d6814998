//! Values as people read them: ages, sizes, ids; and text that cannot steer a terminal.

use std::borrow::Cow;
use std::time::Duration;

/// Digits of an id that are shown.
const ID_DIGITS: usize = 12;
/// Characters of a command that are shown, docker's number.
const COMMAND_WIDTH: usize = 20;
/// Units of a span, largest first, in seconds.
const SPANS: [(&str, u64); 5] =
    [("year", 31_536_000), ("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60)];

/// A span in its largest unit of which there are at least two: "90 seconds" says more than "1 minute".
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (unit, size) =
        SPANS.into_iter().find(|(_, size)| seconds / size >= 2).unwrap_or(("second", 1));
    match seconds / size {
        0 => "less than a second".to_owned(),
        1 => format!("1 {unit}"),
        count => format!("{count} {unit}s"),
    }
}

/// The span between two times in nanoseconds; a clock that was put back makes none.
pub(super) fn between(then: i64, now: i64) -> Duration {
    Duration::from_nanos(u64::try_from(now.saturating_sub(then)).unwrap_or_default())
}

/// How long ago: "3 minutes ago"; "-" where there is no such time.
pub(super) fn ago(then: i64, now: i64) -> String {
    if then == 0 { "-".to_owned() } else { format!("{} ago", span(between(then, now))) }
}

/// Bytes with three digits in decimal units, as disks and networks are sold: "142MB".
pub(super) fn size(bytes: u64) -> String {
    scaled(bytes, 1000, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Bytes with three digits in binary units, as memory is: "1.5GiB".
pub(super) fn binary_size(bytes: u64) -> String {
    scaled(bytes, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(bytes: u64, base: u64, units: &[&str]) -> String {
    let mut power = 0;
    let mut divisor = 1_u64;
    while power + 1 < units.len() && bytes / divisor >= base {
        divisor *= base;
        power += 1;
    }
    let whole = bytes / divisor;
    // Whole numbers all the way: what is shown is cut off, never rounded up to the next unit.
    let tenths =
        u64::try_from(u128::from(bytes % divisor) * 100 / u128::from(divisor)).unwrap_or_default();
    let unit = units[power];
    match (power, whole) {
        (0, _) | (_, 100..) => format!("{whole}{unit}"),
        (_, 10..) => format!("{whole}.{}{unit}", tenths / 10),
        _ => format!("{whole}.{tenths:02}{unit}"),
    }
}

/// An id or digest as tables show it: 12 digits, without the algorithm.
pub(super) fn short(id: &str) -> &str {
    let digits = id.split_once(':').map_or(id, |(_, digits)| digits);
    digits.get(..ID_DIGITS).unwrap_or(digits)
}

/// An id as asked for.
pub(super) fn id(id: &str, whole: bool) -> String {
    if whole { id.to_owned() } else { short(id).to_owned() }
}

/// A command in quotes; the end of a long one is left out.
pub(super) fn command(words: &[String], whole: bool) -> String {
    let line = printable(&words.join(" ")).into_owned();
    if whole || line.chars().count() <= COMMAND_WIDTH {
        return format!("\"{line}\"");
    }
    let beginning: String = line.chars().take(COMMAND_WIDTH - 1).collect();
    format!("\"{beginning}…\"")
}

/// Text of an image, a container or the daemon on one line, without characters that steer a
/// terminal or turn the direction of what follows.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if steers(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_span(seconds: u64, expected: &str) {
        assert_eq!(span(Duration::from_secs(seconds)), expected);
    }

    #[test]
    fn a_span_has_one_unit() {
        check_span(0, "less than a second");
        check_span(1, "1 second");
        check_span(59, "59 seconds");
        check_span(119, "119 seconds");
        check_span(120, "2 minutes");
        check_span(7199, "119 minutes");
        check_span(7200, "2 hours");
        check_span(86_400 * 2 - 1, "47 hours");
        check_span(86_400 * 13, "13 days");
        check_span(86_400 * 14, "2 weeks");
        check_span(86_400 * 365 * 3, "3 years");
    }

    #[test]
    fn an_age_is_never_negative() {
        assert_eq!(ago(5_000_000_000, 8_000_000_000), "3 seconds ago");
        assert_eq!(ago(8_000_000_000, 5_000_000_000), "less than a second ago");
        assert_eq!(ago(0, 5), "-");
    }

    #[track_caller]
    fn check_size(bytes: u64, decimal: &str, binary: &str) {
        assert_eq!((size(bytes).as_str(), binary_size(bytes).as_str()), (decimal, binary));
    }

    #[test]
    fn sizes_have_three_digits() {
        check_size(0, "0B", "0B");
        check_size(999, "999B", "999B");
        check_size(1000, "1.00kB", "1000B");
        check_size(1024, "1.02kB", "1.00KiB");
        check_size(12_345, "12.3kB", "12.0KiB");
        check_size(142_999_999, "142MB", "136MiB");
        check_size(1_610_612_736, "1.61GB", "1.50GiB");
        check_size(u64::MAX, "18.4EB", "15.9EiB");
    }

    #[test]
    fn ids_are_cut_to_twelve_digits() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
        assert_eq!(short("0123"), "0123");
        assert_eq!(short(""), "");
        assert_eq!(id("sha256:0123456789abcdef", true), "sha256:0123456789abcdef");
    }

    #[test]
    fn a_long_command_is_cut() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(command(&words("sleep 60"), false), "\"sleep 60\"");
        assert_eq!(command(&words("nginx -g daemon off; x"), false), "\"nginx -g daemon off…\"");
        assert_eq!(command(&words("nginx -g daemon off; x"), true), "\"nginx -g daemon off; x\"");
        assert_eq!(command(&["sh".into(), "-c".into(), "a\nb".into()], false), "\"sh -c a\\nb\"");
    }

    #[test]
    fn text_cannot_steer_a_terminal() {
        assert_eq!(printable("plain ü 漢"), "plain ü 漢");
        assert_eq!(
            printable("a\u{1b}[2Jb\r\n\u{202e}c\u{9b}"),
            "a\\u{1b}[2Jb\\r\\n\\u{202e}c\\u{9b}"
        );
    }
}
