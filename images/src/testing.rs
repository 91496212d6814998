//! Tars for tests, sound and otherwise, written field by field.

use std::os::unix::fs::MetadataExt;

pub(crate) const BLOCK: usize = 512;

/// How a header is written where a value does not fit into ustar's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Pax,
    Gnu,
}

/// One entry of a tar.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) kind: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    pub(crate) content: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) records: Vec<(String, Vec<u8>)>,
    pub(crate) dialect: Dialect,
}

/// Who runs the tests: files may be given to nobody else.
pub(crate) fn own_ids() -> (u32, u32) {
    let me = std::fs::metadata("/proc/self").unwrap();
    (me.uid(), me.gid())
}

pub(crate) fn item(kind: u8, name: &str) -> Item {
    let (uid, gid) = own_ids();
    Item {
        kind,
        name: name.into(),
        link: Vec::new(),
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: uid.into(),
        gid: gid.into(),
        mtime: 1_700_000_000,
        content: Vec::new(),
        device: (0, 0),
        records: Vec::new(),
        dialect: Dialect::Pax,
    }
}

pub(crate) fn file(name: &str, content: impl Into<Vec<u8>>) -> Item {
    Item { content: content.into(), ..item(b'0', name) }
}

pub(crate) fn dir(name: &str) -> Item {
    item(b'5', name)
}

pub(crate) fn symlink(name: &str, target: &str) -> Item {
    Item { link: target.into(), mode: 0o777, ..item(b'2', name) }
}

pub(crate) fn hard_link(name: &str, target: &str) -> Item {
    Item { link: target.into(), ..item(b'1', name) }
}

impl Item {
    pub(crate) fn mode(mut self, mode: u32) -> Item {
        self.mode = mode;
        self
    }

    pub(crate) fn record(mut self, key: &str, value: impl Into<Vec<u8>>) -> Item {
        self.records.push((key.into(), value.into()));
        self
    }

    pub(crate) fn gnu(mut self) -> Item {
        self.dialect = Dialect::Gnu;
        self
    }
}

/// A tar of these entries with its end.
pub(crate) fn tar(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        write(&mut out, item);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

/// Appends one entry.
pub(crate) fn write(out: &mut Vec<u8>, item: &Item) {
    let mut records = item.records.clone();
    for (kind, key, value) in [(b'L', "path", &item.name), (b'K', "linkpath", &item.link)] {
        if value.len() <= 100 {
            continue;
        }
        match item.dialect {
            Dialect::Pax => records.push((key.into(), value.clone())),
            Dialect::Gnu => {
                let content = [&value[..], b"\0"].concat();
                out.extend(header(item, kind, b"././@LongLink", b"", content.len() as u64));
                pad(out, &content);
            }
        }
    }
    if !records.is_empty() {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        out.extend(header(item, b'x', b"PaxHeaders/x", b"", text.len() as u64));
        pad(out, &text);
    }
    let cut = |value: &[u8]| value[..value.len().min(100)].to_vec();
    let (name, link) = (cut(&item.name), cut(&item.link));
    out.extend(header(item, item.kind, &name, &link, item.content.len() as u64));
    pad(out, &item.content);
}

/// A PAX record with the length that it has.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

/// Appends content, filled up to a whole block.
pub(crate) fn pad(out: &mut Vec<u8>, content: &[u8]) {
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// One header block with a right checksum.
pub(crate) fn header(item: &Item, kind: u8, name: &[u8], link: &[u8], size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    number(&mut block[100..108], item.mode.into());
    number(&mut block[108..116], item.uid);
    number(&mut block[116..124], item.gid);
    number(&mut block[124..136], size);
    number(&mut block[136..148], item.mtime.try_into().unwrap_or(0));
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    let magic: &[u8; 8] = match item.dialect {
        Dialect::Pax => b"ustar\x0000",
        Dialect::Gnu => b"ustar  \0",
    };
    block[257..265].copy_from_slice(magic);
    number(&mut block[329..337], item.device.0.into());
    number(&mut block[337..345], item.device.1.into());
    seal(&mut block);
    block
}

/// Puts the right checksum into a header.
pub(crate) fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal where it fits, else base-256.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let octal = format!("{value:0digits$o}");
    if octal.len() <= digits {
        field[..digits].copy_from_slice(octal.as_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    let start = field.len().saturating_sub(bytes.len());
    let from = bytes.len().saturating_sub(field.len());
    field[start..].copy_from_slice(&bytes[from..]);
    field[0] |= 0x80;
}
