//! HPACK as a client writes it and as a server reads it, with whole tables: the other view
//! that the rewriter is compared with.

use std::collections::VecDeque;

use super::super::huffman;

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A name and a value.
pub(crate) type Field = (Vec<u8>, Vec<u8>);

/// Static and dynamic table of one side.
pub(crate) struct Table {
    entries: VecDeque<Field>,
    max: usize,
}

/// How a client writes a field; what is not possible is not done.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// By the index of an entry that is equal.
    pub(crate) by_index: bool,
    /// By the index of an entry with the name.
    pub(crate) name_by_index: bool,
    /// The newest such entry, not the oldest.
    pub(crate) newest: bool,
    pub(crate) huffman_name: bool,
    pub(crate) huffman_value: bool,
    /// 0x40 with indexing, 0x10 never indexed, 0x00 without.
    pub(crate) form: u8,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table { entries: VecDeque::new(), max: 4096 }
    }

    fn get(&self, index: usize) -> Option<Field> {
        match index.checked_sub(1)? {
            at @ 0..61 => Some((STATIC[at].0.into(), STATIC[at].1.into())),
            at => self.entries.get(at - 61).cloned(),
        }
    }

    fn insert(&mut self, field: Field) {
        self.entries.push_front(field);
        self.evict();
    }

    fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict();
    }

    fn evict(&mut self) {
        let size = |entries: &VecDeque<Field>| -> usize {
            entries.iter().map(|(n, v)| n.len() + v.len() + 32).sum()
        };
        while size(&self.entries) > self.max {
            self.entries.pop_back();
        }
    }

    fn find(&self, newest: bool, fits: impl Fn(&Field) -> bool) -> Option<usize> {
        let mut found = (1..=61 + self.entries.len())
            .filter(|index| self.get(*index).is_some_and(|field| fits(&field)));
        // Entries of the dynamic table are newest first, behind all static ones.
        let first = found.next()?;
        if newest { Some(first) } else { found.last().or(Some(first)) }
    }

    /// Writes a block as a client does that keeps this table.
    pub(crate) fn encode(&mut self, resize: Option<usize>, fields: &[(Field, Way)]) -> Vec<u8> {
        let mut block = Vec::new();
        if let Some(max) = resize {
            self.resize(max);
            integer(&mut block, 0x20, 5, max);
        }
        for (field, way) in fields {
            if let Some(index) =
                self.find(way.newest, |entry| entry == field).filter(|_| way.by_index)
            {
                integer(&mut block, 0x80, 7, index);
                continue;
            }
            let prefix = if way.form == 0x40 { 6 } else { 4 };
            match self.find(way.newest, |entry| entry.0 == field.0).filter(|_| way.name_by_index) {
                Some(index) => integer(&mut block, way.form, prefix, index),
                None => {
                    integer(&mut block, way.form, prefix, 0);
                    string(&mut block, way.huffman_name, &field.0);
                }
            }
            string(&mut block, way.huffman_value, &field.1);
            if way.form == 0x40 {
                self.insert(field.clone());
            }
        }
        block
    }

    /// Reads a block as a server does that keeps this table.
    pub(crate) fn decode(&mut self, block: &[u8]) -> Option<Vec<Field>> {
        let mut rest = block;
        let mut fields = Vec::new();
        while let Some(first) = rest.first().copied() {
            if first & 0x80 != 0 {
                fields.push(self.get(read_integer(&mut rest, 7)?)?);
            } else if first & 0xe0 == 0x20 {
                let max = read_integer(&mut rest, 5)?;
                self.resize((max <= 4096).then_some(max)?);
            } else {
                let indexed = first & 0x40 != 0;
                let index = read_integer(&mut rest, if indexed { 6 } else { 4 })?;
                let name = if index == 0 { read_string(&mut rest)? } else { self.get(index)?.0 };
                let field = (name, read_string(&mut rest)?);
                fields.push(field.clone());
                if indexed {
                    self.insert(field);
                }
            }
        }
        Some(fields)
    }
}

fn integer(block: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let full = (1 << prefix) - 1;
    if value < full {
        block.push(pattern | u8::try_from(value).unwrap());
        return;
    }
    block.push(pattern | u8::try_from(full).unwrap());
    let mut rest = value - full;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128 + 128).unwrap());
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

fn string(block: &mut Vec<u8>, huffman: bool, text: &[u8]) {
    let coded = if huffman { huffman::encode(text) } else { text.to_vec() };
    integer(block, if huffman { 0x80 } else { 0 }, 7, coded.len());
    block.extend(coded);
}

fn read_integer(rest: &mut &[u8], prefix: u32) -> Option<usize> {
    let full = (1 << prefix) - 1;
    let (first, behind) = rest.split_first()?;
    *rest = behind;
    let mut value = usize::from(*first) & full;
    if value == full {
        for shift in (0..28).step_by(7) {
            let (next, behind) = rest.split_first()?;
            *rest = behind;
            value += usize::from(*next & 0x7f) << shift;
            if *next < 0x80 {
                return Some(value);
            }
        }
        return None;
    }
    Some(value)
}

fn read_string(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let huffman = rest.first()? & 0x80 != 0;
    let length = read_integer(rest, 7)?;
    let (text, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    if !huffman {
        return Some(text.to_vec());
    }
    let mut out = Vec::new();
    huffman::decode(text, &mut out)?;
    Some(out)
}
