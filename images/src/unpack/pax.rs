//! PAX extended headers: the records, and the values that matter to us.
//!
//! POSIX pax(1), "pax Extended Header": each record is `LENGTH KEY=VALUE\n`, the length
//! in decimal and counting itself. Values that are empty mean "as in the ustar header".

use std::collections::BTreeMap;

/// The records of one extended header by key; a repeated key counts as it was last written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Pairs of GNU sparse format 0.0, which repeats its keys: offset, length, offset, length...
    sparse_pairs: Vec<i64>,
}

/// A point in time: seconds since 1970 and nanoseconds, 0 to 999,999,999.
pub(super) type Time = (i64, u32);

const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";
const SCHILY: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";

impl Records {
    /// Reads all records of a header.
    pub(super) fn parse(mut text: &[u8]) -> Result<Records, &'static str> {
        let mut records = Records::default();
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or("malformed extended header")?;
            records.take(key, value)?;
            text = rest;
        }
        if records.sparse_pairs.len() % 2 != 0 {
            return Err("GNU.sparse.offset without GNU.sparse.numbytes");
        }
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if key == SPARSE_OFFSET || key == SPARSE_LENGTH {
            let wanted = if self.sparse_pairs.len().is_multiple_of(2) {
                SPARSE_OFFSET
            } else {
                SPARSE_LENGTH
            };
            if key != wanted {
                return Err("GNU.sparse.offset and GNU.sparse.numbytes out of order");
            }
            self.sparse_pairs.push(integer(value).ok_or("bad number in the sparse map")?);
            return Ok(());
        }
        let is_string = [&b"path"[..], b"linkpath", b"uname", b"gname"].contains(&key);
        if is_string && value.contains(&0) {
            return Err("NUL in a string of the extended header");
        }
        self.values.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    /// The value of a key, unless it is empty.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// A whole number, or an error where the value is none.
    pub(super) fn number(&self, key: &str) -> Result<Option<i64>, &'static str> {
        self.get(key)
            .map(|value| integer(value).ok_or("bad number in the extended header"))
            .transpose()
    }

    /// A time such as `1700000000.123456789`; digits after the ninth are cut.
    pub(super) fn time(&self, key: &str) -> Result<Option<Time>, &'static str> {
        self.get(key).map(|value| time(value).ok_or("bad time in the extended header")).transpose()
    }

    /// Offsets and lengths that format 0.0 wrote as pairs of records.
    pub(super) fn sparse_pairs(&self) -> Option<&[i64]> {
        Some(self.sparse_pairs.as_slice()).filter(|pairs| !pairs.is_empty())
    }

    /// The first key of a list that is here with a value.
    pub(super) fn first_of(&self, keys: &[&'static str]) -> Option<&'static str> {
        keys.iter().copied().find(|key| self.get(key).is_some())
    }

    /// Extended attributes by name. Star's way of writing one wins over libarchive's, which encodes it.
    pub(super) fn xattrs(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
        let mut xattrs = BTreeMap::new();
        for (key, value) in &self.values {
            if let Some(name) = key.strip_prefix(LIBARCHIVE).filter(|_| !value.is_empty()) {
                let name = percent_decoded(name).ok_or("bad name of an extended attribute")?;
                let value = base64(value).ok_or("bad value of an extended attribute")?;
                xattrs.insert(name, value);
            }
        }
        for (key, value) in &self.values {
            if let Some(name) = key.strip_prefix(SCHILY).filter(|_| !value.is_empty()) {
                xattrs.insert(name.to_vec(), value.clone());
            }
        }
        Ok(xattrs)
    }
}

/// Splits one record off: key, value, what follows.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // Twenty digits are more than any length has; nothing longer is searched for the space.
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(integer(&text[..space])?).ok()?;
    if length > text.len() || length < space + 2 {
        return None;
    }
    let (body, newline) = text[space + 1..length].split_at(length - space - 2);
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let key = &body[..equals];
    let sound = newline == b"\n" && !key.is_empty() && !key.contains(&0);
    sound.then_some((key, &body[equals + 1..], &text[length..]))
}

/// A decimal number with an optional sign.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn time(text: &[u8]) -> Option<Time> {
    let (seconds, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let whole = integer(seconds)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    // The fraction goes away from zero, as the sign of the whole number says: -1.25 is 1.25 s before 1970.
    if seconds.first() == Some(&b'-') && nanos > 0 {
        return Some((whole.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((whole, nanos))
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let digits = [*rest.next()?, *rest.next()?];
        let value = u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
        decoded.push(value);
    }
    Some(decoded)
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    // libarchive leaves the padding out.
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    base64::Engine::decode(&engine, text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_error(text: &[u8]) {
        assert!(Records::parse(text).is_err(), "{:?}", String::from_utf8_lossy(text));
    }

    #[test]
    fn records_are_read_in_order_and_the_last_counts() {
        let records = Records::parse(b"10 path=a\n10 path=b\n12 size=123\n").unwrap();
        assert_eq!(records.get("path"), Some(&b"b"[..]));
        assert_eq!(records.number("size"), Ok(Some(123)));
        assert_eq!(records.get("uid"), None);
    }

    #[test]
    fn an_empty_value_says_nothing() {
        let records = Records::parse(b"8 path=\n").unwrap();
        assert_eq!(records.get("path"), None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for text in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"10 path=a ",
            b"10path=a\n",
            b"x path=a\n",
            b"-1 path=a\n",
            b"8 =abcd\n",
            b"9 noequal\n",
            b"11 path=a\0\n",
            b"3 \n",
            b"99999999999999999999 path=a\n",
            b"123456789012345678901234 p=a\n",
            b"27 GNU.sparse.numbytes=512\n",
            b"23 GNU.sparse.offset=0\n",
        ] {
            check_error(text);
        }
    }

    #[track_caller]
    fn check_time(text: &str, expected: Option<Time>) {
        assert_eq!(time(text.as_bytes()), expected, "{text}");
    }

    #[test]
    fn times_have_a_fraction_and_a_sign() {
        check_time("1", Some((1, 0)));
        check_time("1.", Some((1, 0)));
        check_time("1.5", Some((1, 500_000_000)));
        check_time("1.1234567899", Some((1, 123_456_789)));
        check_time("-1.25", Some((-2, 750_000_000)));
        check_time("-0.5", Some((-1, 500_000_000)));
        check_time("-1", Some((-1, 0)));
        check_time("1.x", None);
        check_time(".5", None);
        check_time("", None);
    }

    #[test]
    fn attributes_of_both_writers_are_found() {
        let text = [
            ("SCHILY.xattr.user.a", "1"),
            ("LIBARCHIVE.xattr.user.a", "Mg"),
            ("LIBARCHIVE.xattr.user.%62", "Mw"),
        ]
        .map(|(key, value)| crate::testing::record(key, value.as_bytes()))
        .concat();
        let records = Records::parse(&text).unwrap();
        let xattrs: Vec<_> = records.xattrs().unwrap().into_iter().collect();
        assert_eq!(
            xattrs,
            [(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), b"3".to_vec())]
        );
    }
}
