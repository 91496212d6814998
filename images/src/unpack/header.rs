//! One 512-byte header block of a tar archive: v7, ustar and PAX, star, GNU.
//!
//! The layouts are those of POSIX pax(1) "ustar Interchange Format", star(5) and GNU
//! tar's manual ("Basic Tar Format"). What each field means where writers disagree is
//! what Go's archive/tar makes of it, for it reads the layers of nearly every other runtime.

use std::ops::Range;

/// Length of a header, and the unit that every length in an archive is rounded up to.
pub(super) const BLOCK: usize = 512;

/// A header as it stands in the archive.
pub(super) type Block = [u8; BLOCK];

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const DEV_MAJOR: Range<usize> = 329..337;
const DEV_MINOR: Range<usize> = 337..345;
const USTAR_PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_CTIME: Range<usize> = 488..500;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
const GNU_SPARSE: Range<usize> = 386..482;
const GNU_EXTENDED: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;
const MORE_SPARSE: Range<usize> = 0..504;
const MORE_EXTENDED: usize = 504;

/// Which of the formats a header is written in, as its magic tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header. Numbers may be negative, as base-256 allows; who uses one checks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) dialect: Dialect,
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) device: (i64, i64),
}

/// A piece of a sparse file that has data: offset and length.
pub(super) type RawExtent = (i64, i64);

/// Reads a header. The error says which field is wrong.
pub(super) fn parse(block: &Block) -> Result<Header, &'static str> {
    let dialect = dialect(block)?;
    let mut header = Header {
        dialect,
        kind: block[KIND],
        name: text(&block[NAME]).to_vec(),
        link: text(&block[LINK]).to_vec(),
        mode: number(&block[MODE]).ok_or("bad mode")?,
        uid: number(&block[UID]).ok_or("bad uid")?,
        gid: number(&block[GID]).ok_or("bad gid")?,
        size: number(&block[SIZE]).ok_or("bad size")?,
        mtime: number(&block[MTIME]).ok_or("bad modification time")?,
        device: (0, 0),
    };
    if dialect == Dialect::V7 {
        return Ok(header);
    }
    let major = number(&block[DEV_MAJOR]).ok_or("bad device number")?;
    let minor = number(&block[DEV_MINOR]).ok_or("bad device number")?;
    header.device = (major, minor);
    let prefix = prefix(block, dialect)?;
    if !prefix.is_empty() {
        header.name = [prefix, b"/", &header.name[..]].concat();
    }
    Ok(header)
}

fn prefix(block: &Block, dialect: Dialect) -> Result<&[u8], &'static str> {
    match dialect {
        Dialect::V7 => Ok(b""),
        Dialect::Ustar => Ok(text(&block[USTAR_PREFIX])),
        Dialect::Star => {
            for range in [STAR_ATIME, STAR_CTIME] {
                number(&block[range]).ok_or("bad time")?;
            }
            Ok(text(&block[STAR_PREFIX]))
        }
        Dialect::Gnu => {
            // GNU has times where ustar has its prefix. Archives of Go before 1.8 have a
            // prefix there all the same; it shows when it is no number.
            let times = [GNU_ATIME, GNU_CTIME]
                .into_iter()
                .all(|range| block[range.start] == 0 || number(&block[range]).is_some());
            let prefix = text(&block[USTAR_PREFIX]);
            Ok(if times || !prefix.is_ascii() { b"" } else { prefix })
        }
    }
}

fn dialect(block: &Block) -> Result<Dialect, &'static str> {
    let written = octal(&block[CHECKSUM]).ok_or("bad checksum")?;
    let (unsigned, signed) = checksums(block);
    if written != unsigned && written != signed {
        return Err("the checksum of the header does not match");
    }
    Ok(match (&block[MAGIC], &block[VERSION]) {
        (b"ustar\0", _) if &block[STAR_TRAILER] == b"tar\0" => Dialect::Star,
        (b"ustar\0", _) => Dialect::Ustar,
        (b"ustar ", b" \0") => Dialect::Gnu,
        _ => Dialect::V7,
    })
}

/// The sum of all bytes with the checksum field as spaces; old Sun tars summed signed bytes.
fn checksums(block: &Block) -> (i64, i64) {
    let spaces = i64::from(b' ') * 8;
    let outside = block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
    outside.fold((spaces, spaces), |(unsigned, signed), byte| {
        (unsigned + i64::from(*byte), signed + i64::from(byte.cast_signed()))
    })
}

/// Whether all of a block is zero: two such end an archive.
pub(super) fn is_zero(block: &Block) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// The sparse map inside an old GNU header: the file's real size, the extents, and whether a block of more extents follows.
pub(super) fn old_sparse(block: &Block) -> Result<(i64, Vec<RawExtent>, bool), &'static str> {
    let real_size = number(&block[GNU_REAL_SIZE]).ok_or("bad real size of a sparse file")?;
    Ok((real_size, extents(&block[GNU_SPARSE])?, block[GNU_EXTENDED] != 0))
}

/// A block of more extents of an old GNU sparse file, and whether another one follows.
pub(super) fn more_sparse(block: &Block) -> Result<(Vec<RawExtent>, bool), &'static str> {
    Ok((extents(&block[MORE_SPARSE])?, block[MORE_EXTENDED] != 0))
}

fn extents(field: &[u8]) -> Result<Vec<RawExtent>, &'static str> {
    let pair = |pair: &[u8]| Some((number(&pair[..12])?, number(&pair[12..])?));
    field
        .chunks_exact(24)
        .take_while(|entry| entry[0] != 0)
        .map(|entry| pair(entry).ok_or("bad sparse map"))
        .collect()
}

/// A text field: up to the first NUL, or all of it.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number field: base-256 where the top bit is set, else octal. Nothing where it is neither or too large.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement, big endian, in as many bytes as the field has; the top bit is the mark.
    let invert = if field[0] & 0x40 == 0 { 0x00 } else { 0xff };
    let mut value: u64 = 0;
    for (index, byte) in field.iter().enumerate() {
        let mask = if index == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from((byte ^ invert) & mask);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

/// Octal digits between spaces and NULs; an empty field is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let digits = text(&field[start..end]);
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// The header of a plain file that belongs to root and has no time; the name has at most 100 bytes.
pub(crate) fn file_header(name: &str, size: u64) -> Block {
    let mut block = [0; BLOCK];
    let mut put =
        |start: usize, text: &[u8]| block[start..start + text.len()].copy_from_slice(text);
    put(NAME.start, name.as_bytes());
    put(MODE.start, b"0000644\0");
    put(UID.start, b"0000000\0");
    put(GID.start, b"0000000\0");
    if size < 1 << 33 {
        put(SIZE.start, format!("{size:011o}\0").as_bytes());
    } else {
        // Eleven octal digits end at 8 GiB; base-256 is what everybody reads beyond.
        put(SIZE.start, &[0x80]);
        put(SIZE.end - 8, &size.to_be_bytes());
    }
    put(MTIME.start, b"00000000000\0");
    put(KIND, b"0");
    put(MAGIC.start, b"ustar\x0000");
    let sum = checksums(&block).0;
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_as_they_were_written() {
        for size in [0, 1, (1 << 33) - 1, 1 << 33, 1 << 40] {
            let header = parse(&file_header("blobs/sha256/x", size)).unwrap();
            assert_eq!((&header.name[..], header.mode), (&b"blobs/sha256/x"[..], 0o644));
            assert_eq!((header.size.cast_unsigned(), header.kind), (size, b'0'));
        }
    }

    #[track_caller]
    fn check_number(field: &[u8], expected: Option<i64>) {
        assert_eq!(number(field), expected);
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        check_number(b"0000644\0", Some(0o644));
        check_number(b" 644 \0\0\0", Some(0o644));
        check_number(b"\0\0\0\0\0\0\0\0", Some(0));
        check_number(b"77777777777\0", Some(0o77777777777));
        check_number(b"12\x009\0\0\0\0", Some(0o12));
        check_number(b"0000648\0", None);
        check_number(b"-000644\0", None);
        check_number(b"\x80\0\0\0\0\0\0\x01", Some(1));
        check_number(b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2));
        check_number(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX));
        check_number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None);
        check_number(b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None);
    }

    fn sealed(mut block: Block) -> Block {
        block[CHECKSUM].copy_from_slice(b"        ");
        let sum = checksums(&block).0;
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn block(magic: &[u8; 8]) -> Block {
        let mut block = [0; BLOCK];
        block[..3].copy_from_slice(b"b/c");
        block[MODE].copy_from_slice(b"0000755\0");
        block[SIZE].copy_from_slice(b"00000000012\0");
        block[KIND] = b'0';
        block[257..265].copy_from_slice(magic);
        block
    }

    #[track_caller]
    fn check_name(magic: &[u8; 8], prefix: &[u8], dialect: Dialect, expected: &[u8]) {
        let mut block = block(magic);
        block[345..345 + prefix.len()].copy_from_slice(prefix);
        let header = parse(&sealed(block)).unwrap();
        assert_eq!((header.dialect, &header.name[..]), (dialect, expected));
        assert_eq!((header.mode, header.size, header.kind), (0o755, 10, b'0'));
    }

    #[test]
    fn the_prefix_counts_where_the_format_has_one() {
        check_name(b"ustar\x0000", b"", Dialect::Ustar, b"b/c");
        check_name(b"ustar\x0000", b"a", Dialect::Ustar, b"a/b/c");
        check_name(b"ustar  \0", b"", Dialect::Gnu, b"b/c");
        check_name(b"ustar  \0", b"00000000012\0", Dialect::Gnu, b"b/c");
        check_name(b"ustar  \0", b"a", Dialect::Gnu, b"a/b/c");
        check_name(b"\0\0\0\0\0\0\0\0", b"a", Dialect::V7, b"b/c");
    }

    #[test]
    fn a_changed_header_is_refused() {
        let mut block = sealed(block(b"ustar\x0000"));
        block[1] ^= 1;
        assert!(parse(&block).unwrap_err().contains("checksum"));
    }

    #[test]
    fn signed_checksums_of_old_writers_are_taken() {
        let mut block = block(b"ustar\x0000");
        block[0] = 0xe4;
        block[CHECKSUM].copy_from_slice(b"        ");
        let sum = checksums(&block).1;
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(parse(&block).unwrap().name, b"\xe4/c");
    }
}
