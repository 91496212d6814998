//! Sizes and parts of processors: "64m", "1.5g", "0.25".

/// Powers of 1024 by the letter of a unit.
const UNITS: &str = "bkmgtp";
/// Billionths of a processor in one.
const NANO: u64 = 1_000_000_000;
/// Digits of a fraction that count.
const FRACTION_DIGITS: usize = 9;

/// Bytes: a number, a fraction allowed, and a unit of powers of 1024 as docker takes them:
/// b, k, m, g, t, p, in any case, with "b" or "ib" behind. No unit is bytes.
pub(in crate::cli) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "write a number with b, k, m or g behind it, such as 64m or 1.5g".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let factor = factor(unit.trim_start()).ok_or_else(wrong)?;
    let (whole, nano) = decimal(number).ok_or_else(wrong)?;
    let bytes = u128::from(whole) * u128::from(factor)
        + u128::from(nano) * u128::from(factor) / u128::from(NANO);
    match u64::try_from(bytes) {
        Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err("is more than any machine has".to_owned()),
    }
}

fn factor(unit: &str) -> Option<u64> {
    let mut letters = unit.chars();
    let power = match letters.next() {
        None => 0,
        Some(letter) => UNITS.find(letter)?,
    };
    let rest = letters.as_str();
    let allowed = rest.is_empty() || (power > 0 && (rest == "b" || rest == "ib"));
    allowed.then(|| 1 << (10 * power))
}

/// Processors in billionths: "1.5" is 1500000000. Zero is no limit.
pub(in crate::cli) fn cpus(text: &str) -> Result<u64, String> {
    let wrong = || "write a number of processors such as 2 or 0.5".to_owned();
    let (whole, nano) = decimal(text.trim()).ok_or_else(wrong)?;
    whole
        .checked_mul(NANO)
        .and_then(|whole| whole.checked_add(nano))
        .filter(|nano| i64::try_from(*nano).is_ok())
        .ok_or_else(|| "is more than any machine has".to_owned())
}

/// The whole part of a number and its fraction in billionths; further digits are cut off.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: String =
        fraction.chars().chain(std::iter::repeat('0')).take(FRACTION_DIGITS).collect();
    Some((whole, fraction.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: u64) {
        assert_eq!(size(text), Ok(expected), "{text}");
    }

    #[test]
    fn sizes_are_dockers() {
        check("0", 0);
        check("1234", 1234);
        check("10b", 10);
        check("1k", 1 << 10);
        check("64m", 64 << 20);
        check("64M", 64 << 20);
        check("64mb", 64 << 20);
        check("64MiB", 64 << 20);
        check("1.5g", 3 << 29);
        check(".5k", 512);
        check("1.k", 1 << 10);
        check("2 g", 2 << 30);
        check("1t", 1 << 40);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in [
            "", "m", "64x", "-1", "-1m", "1..5g", "1.5.5g", "64bb", "64bib", "６4m", "1m1m", ".",
            "0x10", "1e3",
        ] {
            let error = size(bad).unwrap_err();
            assert!(error.contains("such as 64m"), "{bad:?}: {error}");
        }
        for large in ["99999999p", "8192p"] {
            assert_eq!(size(large).unwrap_err(), "is more than any machine has", "{large}");
        }
        assert!(size("99999999999999999999").is_err());
    }

    #[test]
    fn processors_have_fractions() {
        let check = |text: &str, expected: u64| assert_eq!(cpus(text), Ok(expected), "{text}");
        check("0", 0);
        check("2", 2 * NANO);
        check("0.5", NANO / 2);
        check(".25", NANO / 4);
        check("1.000000001", NANO + 1);
        check("1.0000000019", NANO + 1);
        for bad in ["", ".", "-1", "1,5", "half", "1e1", "99999999999", "1.5m"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}
