//! When to ask again: pauses that grow, and those that a registry asks for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// The longest pause that we make of our own accord.
const LONGEST: Duration = Duration::from_secs(8);

/// The pause after a number of failures in a row, from `first` on doubled each time. Up to
/// a quarter more is added by chance, so that a hundred nodes do not come back at once.
pub(crate) fn pause(first: Duration, failures: u64) -> Duration {
    let doubled = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let pause = first.saturating_mul(1 << doubled).min(LONGEST);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    pause + pause / 4 * (nanos % 1024) / 1024
}

/// What `Retry-After` asks for, as seconds or as a date (RFC 9110, 10.2.3).
pub(crate) fn asked(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    // A date that has passed asks for no pause.
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_asked(header: Option<&str>, expected: Option<u64>) {
        // 1994-11-06 08:49:30, seven seconds before the RFC's example.
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(RETRY_AFTER, header.parse().unwrap());
        }
        assert_eq!(asked(&headers, now), expected.map(Duration::from_secs));
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        check_asked(Some("120"), Some(120));
        check_asked(Some(" 0 "), Some(0));
        check_asked(Some("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        check_asked(Some("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        check_asked(Some("soon"), None);
        check_asked(Some("-1"), None);
        check_asked(None, None);
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let first = Duration::from_millis(250);
        for (failures, least) in
            [(0, 250), (1, 250), (2, 500), (5, 4000), (6, 8000), (u64::MAX, 8000)]
        {
            let least = Duration::from_millis(least);
            let pause = pause(first, failures);
            assert!(pause >= least && pause <= least + least / 4, "{failures}: {pause:?}");
        }
    }
}
