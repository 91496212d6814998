//! CRI log records: `TIME STREAM TAG CONTENT\n` (kubelet's pkg/kubelet/kuberuntime/logs).

/// Bytes of content in one record; a longer line is told in parts.
pub const MAX_CONTENT: usize = 16 << 10;

/// Turns the output of one stream into records, whatever pieces it comes in.
#[derive(Debug)]
pub struct Records {
    stream: &'static [u8],
    /// The line that has no end yet; shorter than [`MAX_CONTENT`] and one more byte.
    open: Vec<u8>,
}

impl Records {
    /// For `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Records {
        Records { stream: stream.as_bytes(), open: Vec::new() }
    }

    /// Takes bytes as they were read at `time`, and appends the records that are complete.
    /// The `\r` of a line's `\r\n` is not content.
    pub fn push(&mut self, time: &[u8], mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.line(time, &bytes[..end], out);
            bytes = &bytes[end + 1..];
        }
        self.take(time, bytes, out);
    }

    /// The stream is at its end: what has no end of line is told as a part.
    pub fn finish(&mut self, time: &[u8], out: &mut Vec<u8>) {
        if !self.open.is_empty() {
            let open = std::mem::take(&mut self.open);
            self.record(time, b'P', &open, out);
        }
    }

    /// A whole line, with what was open before it.
    fn line(&mut self, time: &[u8], bytes: &[u8], out: &mut Vec<u8>) {
        if self.open.is_empty() && bytes.len() <= MAX_CONTENT {
            return self.record(time, b'F', without_return(bytes), out);
        }
        self.take(time, bytes, out);
        let open = std::mem::take(&mut self.open);
        self.record(time, b'F', without_return(&open), out);
        self.open = open;
        self.open.clear();
    }

    /// Bytes without an end of line. One byte more than a record is kept back, for it may be the `\r` before the end.
    fn take(&mut self, time: &[u8], mut bytes: &[u8], out: &mut Vec<u8>) {
        while self.open.len() + bytes.len() > MAX_CONTENT + 1 {
            let fits = (MAX_CONTENT + 1 - self.open.len()).min(bytes.len());
            self.open.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            let open = std::mem::take(&mut self.open);
            self.record(time, b'P', &open[..MAX_CONTENT], out);
            self.open = open;
            self.open.drain(..MAX_CONTENT);
        }
        self.open.extend_from_slice(bytes);
        if self.open.len() == MAX_CONTENT + 1 && self.open.last() != Some(&b'\r') {
            let last = self.open.pop();
            let open = std::mem::take(&mut self.open);
            self.record(time, b'P', &open, out);
            self.open = open;
            self.open.clear();
            self.open.extend(last);
        }
    }

    fn record(&self, time: &[u8], tag: u8, content: &[u8], out: &mut Vec<u8>) {
        out.reserve(time.len() + self.stream.len() + content.len() + 5);
        out.extend_from_slice(time);
        out.push(b' ');
        out.extend_from_slice(self.stream);
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(content);
        out.push(b'\n');
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A time as RFC 3339 in UTC with nanoseconds: `2026-11-24T16:27:26.000000001Z`.
pub fn format_time(seconds: i64, nanoseconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let second = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are counted
/// from March, so that the leap day is the last.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_TO_1970: i64 = 719_468;
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) =
        (days.div_euclid(DAYS_IN_400_YEARS), days.rem_euclid(DAYS_IN_400_YEARS));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &[u8] = b"T";

    fn records(pieces: &[&[u8]]) -> String {
        let (mut records, mut out) = (Records::new("stdout"), Vec::new());
        for piece in pieces {
            records.push(TIME, piece, &mut out);
        }
        records.finish(TIME, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[track_caller]
    fn check(pieces: &[&[u8]], expected: &str) {
        assert_eq!(records(pieces), expected);
    }

    #[test]
    fn lines_become_full_records_whatever_their_pieces() {
        check(&[b"a\nb\n"], "T stdout F a\nT stdout F b\n");
        check(&[b"a", b"b\nc", b"\n"], "T stdout F ab\nT stdout F c\n");
        check(&[b"\n\n"], "T stdout F \nT stdout F \n");
        check(&[], "");
    }

    #[test]
    fn a_tail_without_an_end_is_a_part() {
        check(&[b"a\nb"], "T stdout F a\nT stdout P b\n");
    }

    #[test]
    fn carriage_returns_before_the_end_are_not_content() {
        check(&[b"a\r\nb\r", b"\n"], "T stdout F a\nT stdout F b\n");
        check(&[b"a\rb\n"], "T stdout F a\rb\n");
    }

    #[test]
    fn long_lines_are_split_at_16_kib() {
        let line = [b'x'; MAX_CONTENT];
        let full = format!("T stdout F {}\n", "x".repeat(MAX_CONTENT));
        let part = format!("T stdout P {}\n", "x".repeat(MAX_CONTENT));
        check(&[&line, b"\n"], &full);
        check(&[&line, b"\r\n"], &full);
        check(&[&line, b"\r", b"\n"], &full);
        check(&[&line, b"yz\n"], &format!("{part}T stdout F yz\n"));
        check(&[&line, &line, b"\n"], &format!("{part}{full}"));
        check(&[&line, &line, b"y"], &format!("{part}{part}T stdout P y\n"));
    }

    #[test]
    fn times_are_of_the_calendar() {
        assert_eq!(format_time(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(format_time(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(format_time(1_795_537_646, 999_999_999), "2026-11-24T16:27:26.999999999Z");
        assert_eq!(format_time(4_107_542_399, 0), "2100-02-28T23:59:59.000000000Z");
        assert_eq!(format_time(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    proptest! {
        /// Content comes back as it went in, and no record is too long.
        #[test]
        fn nothing_is_lost(runs in prop::collection::vec((prop_oneof![0..20usize, 16_380..16_390usize, 0..40_000usize], any::<bool>()), 0..8)) {
            let pieces: Vec<Vec<u8>> = runs.iter().map(|(length, end)| [vec![b'a'; *length], vec![b'\n'; usize::from(*end)]].concat()).collect();
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let text = records(&pieces);
            let mut content = String::new();
            for line in text.lines() {
                let rest = line.strip_prefix("T stdout ").expect("every line is a record");
                let (tag, rest) = rest.split_once(' ').expect("a tag");
                prop_assert!(rest.len() <= MAX_CONTENT);
                content.push_str(rest);
                if tag == "F" { content.push('\n') } else { prop_assert_eq!(tag, "P") }
            }
            let whole: Vec<u8> = pieces.concat();
            prop_assert_eq!(content.as_bytes(), whole.as_slice());
        }
    }
}
