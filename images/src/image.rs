//! An image as the store knows it, and its id.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::Platform;

/// The id of an image: the digest of its config, the same whichever registry it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId(Digest);

impl ImageId {
    /// The id of the image with this config.
    pub fn of(config: Digest) -> ImageId {
        ImageId(config)
    }

    /// The digest of the config.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = Error;

    /// `sha256:` and 64 hex digits.
    fn from_str(text: &str) -> Result<ImageId> {
        text.parse().map(ImageId)
    }
}

/// All that lists and status calls tell about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of the config.
    pub id: ImageId,
    /// Tags in full, such as `docker.io/library/nginx:latest`; none where it was only ever pulled by digest.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/nginx@sha256:..` with the digest that the reference led to, an index
    /// or a manifest; the latest pull first.
    pub repo_digests: Vec<String>,
    /// What it takes on disk, in bytes, layers that it shares included. Never zero, never changes.
    pub size: u64,
    /// The user of its config, `user[:group]`; empty where the config has none.
    pub user: String,
    /// When it was made, in nanoseconds since 1970; 0 where the config does not say.
    pub created: i64,
    /// Labels of the config.
    pub labels: BTreeMap<String, String>,
    /// What it was built for.
    pub platform: Platform,
    /// Whether it must not be collected: configured so, or pinned by [`crate::Images::pin`].
    pub pinned: bool,
}

/// Reads RFC 3339 text such as `2024-05-01T12:00:00.5Z`, in nanoseconds since 1970.
pub(crate) fn nanos_of(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut clock = clock.splitn(3, ':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let offset = match zone.split_at(1) {
        ("Z" | "z", "") => 0,
        (sign, offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let minutes = number(hours)? * 60 + number(minutes)?;
            if sign == "-" { -minutes * 60 } else { minutes * 60 }
        }
    };
    let sound = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    if !sound || second > 60 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + i64::from(digit - b'0'));
    let seconds = days_of(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// A number of up to four digits, as dates have them.
fn number(text: &str) -> Option<i64> {
    let sound = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    sound.then(|| text.parse().ok())?
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years begin in March here, so
/// that the leap day is the last one.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// Writes seconds since 1970 as RFC 3339 text, as image configs have it.
pub(crate) fn rfc3339(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The year by its average length, then put right: dates before it are in the year before.
    let mut year = 1970 + days * 400 / 146_097;
    while days_of(year + 1, 1, 1) <= days {
        year += 1;
    }
    while days_of(year, 1, 1) > days {
        year -= 1;
    }
    let month = (1..=12).rev().find(|month| days_of(year, *month, 1) <= days).unwrap_or(1);
    let day = days - days_of(year, month, 1) + 1;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<i64>) {
        assert_eq!(nanos_of(text), expected, "{text}");
    }

    #[test]
    fn times_of_configs_are_read() {
        check("1970-01-01T00:00:00Z", Some(0));
        check("2024-02-29T12:30:15.123456789Z", Some(1_709_209_815_123_456_789));
        check("2024-02-29T12:30:15.5+02:00", Some(1_709_202_615_500_000_000));
        check("1969-12-31T23:59:59-00:30", Some(1_799_000_000_000));
        check("0001-01-01T00:00:00Z", None);
        for text in [
            "",
            "2024",
            "2024-01-01",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T25:00:00Z",
            "+024-01-01T00:00:00Z",
            "2024-01-01T00:00:00.xZ",
            "ä-01-01T00:00:00Z",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        for seconds in [0, 59, 951_782_400, 951_868_799, 1_700_000_000, 4_102_444_800, -1] {
            let text = rfc3339(seconds);
            assert_eq!(nanos_of(&text), Some(seconds * 1_000_000_000), "{text}");
        }
        assert_eq!(rfc3339(1_709_209_815), "2024-02-29T12:30:15Z");
    }
}
