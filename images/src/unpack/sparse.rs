//! Maps of sparse files: where a file has data, in the four ways that tar writes them.
//!
//! GNU tar's manual, "Storing Sparse Files": the old format inside the header, and PAX
//! versions 0.0, 0.1 (both in the records) and 1.0 (a text in front of the data).

use super::header::RawExtent;
use super::pax::{Records, integer};

/// A piece of a file that has data, in bytes. No extent is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What the records say of a sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PaxSparse {
    /// The real name, where the one in the header is made up.
    pub(super) name: Option<Vec<u8>>,
    /// The size of the file when its holes are counted.
    pub(super) real_size: Option<i64>,
    /// The map; nothing where it stands in front of the data.
    pub(super) map: Option<Vec<RawExtent>>,
}

/// Finds out whether records describe a sparse file. An unknown version is no sparse file, as in Go.
pub(super) fn in_records(records: &Records) -> Result<Option<PaxSparse>, &'static str> {
    let version = (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor"));
    let map_in_front = match version {
        (Some(b"1"), Some(b"0")) => true,
        (Some(b"0"), Some(b"0" | b"1")) => false,
        (None, None) if records.get("GNU.sparse.map").is_some() => false,
        (None, None) if records.sparse_pairs().is_some() => false,
        _ => return Ok(None),
    };
    let real_size = match records.number("GNU.sparse.size")? {
        Some(size) => Some(size),
        None => records.number("GNU.sparse.realsize")?,
    };
    let name = records.get("GNU.sparse.name").map(<[u8]>::to_vec);
    let map = if map_in_front { None } else { Some(map_in_records(records)?) };
    Ok(Some(PaxSparse { name, real_size, map }))
}

fn map_in_records(records: &Records) -> Result<Vec<RawExtent>, &'static str> {
    let count = records.number("GNU.sparse.numblocks")?.ok_or("sparse map without its length")?;
    let numbers = match (records.sparse_pairs(), records.get("GNU.sparse.map")) {
        (Some(pairs), _) => pairs.to_vec(),
        (None, Some(text)) => {
            let numbers: Option<Vec<i64>> = text.split(|byte| *byte == b',').map(integer).collect();
            numbers.ok_or("bad number in the sparse map")?
        }
        (None, None) => Vec::new(),
    };
    if usize::try_from(count).ok().and_then(|count| count.checked_mul(2)) != Some(numbers.len()) {
        return Err("the sparse map has not as many entries as it says");
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// How many lines a map in front of the data has, as its first line says: a count, then two lines for each extent.
pub(super) fn lines_in_front(text: &[u8]) -> Result<usize, &'static str> {
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    integer(first)
        .and_then(|count| usize::try_from(count).ok()?.checked_mul(2)?.checked_add(1))
        .ok_or("bad length of the sparse map")
}

/// Reads a map in front of the data, all lines of which are in `text`.
pub(super) fn map_in_front(text: &[u8], lines: usize) -> Result<Vec<RawExtent>, &'static str> {
    let numbers: Option<Vec<i64>> =
        text.split(|byte| *byte == b'\n').take(lines).skip(1).map(integer).collect();
    let numbers = numbers.ok_or("bad number in the sparse map")?;
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Checks a map: in order, without overlap, inside the file, as long as the data that follows.
pub(super) fn checked(
    map: &[RawExtent],
    size: i64,
    data: u64,
) -> Result<Vec<Extent>, &'static str> {
    let size = u64::try_from(size).map_err(|_| "negative size of a sparse file")?;
    let (mut end, mut total) = (0, 0);
    let mut extents = Vec::with_capacity(map.len());
    for (offset, length) in map {
        let negative = "negative number in the sparse map";
        let offset = u64::try_from(*offset).map_err(|_| negative)?;
        let length = u64::try_from(*length).map_err(|_| negative)?;
        if offset < end {
            return Err("the sparse map overlaps itself");
        }
        // Both are below 2^63, so their sum fits.
        end = offset + length;
        total += length;
        if end > size {
            return Err("the sparse map goes beyond the end of the file");
        }
        if length > 0 {
            extents.push(Extent { offset, length });
        }
    }
    if total != data {
        return Err("the sparse map and the data differ in length");
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_front(text: &str, expected: Option<&[RawExtent]>) {
        let map = lines_in_front(text.as_bytes())
            .and_then(|lines| map_in_front(text.as_bytes(), lines))
            .ok();
        assert_eq!(map.as_deref(), expected, "{text:?}");
    }

    #[test]
    fn a_map_in_front_of_the_data_is_read_line_by_line() {
        check_front("2\n0\n5\n10\n3\n\0\0\0", Some(&[(0, 5), (10, 3)]));
        check_front("0\n\0\0", Some(&[]));
        check_front("-1\n", None);
        check_front("x\n", None);
        check_front("1\nx\n1\n", None);
        check_front("9223372036854775807\n1\n1\n", None);
    }

    #[track_caller]
    fn check_map(map: &[RawExtent], size: i64, data: u64, expected: Option<usize>) {
        assert_eq!(checked(map, size, data).ok().map(|extents| extents.len()), expected, "{map:?}");
    }

    #[test]
    fn only_maps_in_order_and_inside_the_file_are_taken() {
        check_map(&[(0, 5), (10, 3), (20, 0)], 20, 8, Some(2));
        check_map(&[], 20, 0, Some(0));
        check_map(&[(0, 5), (4, 3)], 20, 8, None);
        check_map(&[(10, 11)], 20, 11, None);
        check_map(&[(-1, 1)], 20, 1, None);
        check_map(&[(0, -1)], 20, 0, None);
        check_map(&[(i64::MAX, i64::MAX)], i64::MAX, 1, None);
        check_map(&[(0, 5)], 20, 6, None);
        check_map(&[(0, 5)], -1, 5, None);
    }

    #[track_caller]
    fn check_records(text: &str, expected: Option<PaxSparse>) {
        let text: String = text
            .lines()
            .map(|record| {
                let mut length = record.len() + 2;
                length = record.len() + 2 + length.to_string().len();
                length = record.len() + 2 + length.to_string().len();
                format!("{length} {record}\n")
            })
            .collect();
        let records = Records::parse(text.as_bytes()).unwrap();
        assert_eq!(in_records(&records).unwrap(), expected, "{text}");
    }

    #[test]
    fn each_version_is_told_from_its_records() {
        let sparse = |name: Option<&str>, size, map| {
            Some(PaxSparse { name: name.map(|name| name.into()), real_size: Some(size), map })
        };
        check_records("path=a\n", None);
        check_records(
            "GNU.sparse.major=1\nGNU.sparse.minor=0\nGNU.sparse.name=n\nGNU.sparse.realsize=9\n",
            sparse(Some("n"), 9, None),
        );
        check_records(
            "GNU.sparse.size=9\nGNU.sparse.numblocks=1\nGNU.sparse.map=1,2\n",
            sparse(None, 9, Some(vec![(1, 2)])),
        );
        check_records(
            "GNU.sparse.size=9\nGNU.sparse.numblocks=1\nGNU.sparse.offset=1\nGNU.sparse.numbytes=2\n",
            sparse(None, 9, Some(vec![(1, 2)])),
        );
        check_records("GNU.sparse.major=2\nGNU.sparse.minor=0\n", None);
    }
}
