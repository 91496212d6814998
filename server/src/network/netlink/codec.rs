//! How netlink messages and their attributes look as bytes (netlink(7), linux/netlink.h).
//!
//! Every length is checked on the way out and on the way in: an attribute that does not fit its
//! 16-bit length marks the whole batch as bad instead of wrapping around (the fault of
//! CVE-2021-43784), and a reply that claims more than it has is an error.

use std::borrow::Cow;
use std::io;

use super::{Error, Result};

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
/// Answer with everything there is.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Messages and attributes begin at multiples of this.
const ALIGN: usize = 4;
/// `struct nlmsghdr`: length, type, flags, sequence, port.
pub(super) const MESSAGE_HEADER: usize = 16;
/// `struct nlattr`: length, type.
const ATTRIBUTE_HEADER: usize = 4;

/// Messages that go to the kernel in one send.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    transaction: bool,
    too_long: bool,
}

/// Where a message begins, and what it asks for.
#[derive(Debug)]
struct Mark {
    offset: usize,
    doing: Cow<'static, str>,
}

impl Batch {
    /// A batch that begins and ends a transaction of nf_tables with its first and last message.
    pub(crate) fn transaction() -> Batch {
        Batch { transaction: true, ..Batch::default() }
    }

    /// Adds a message. `doing` names it in errors ("make link b12"), `header` is the fixed part
    /// that its kind has, `body` writes the attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        doing: impl Into<Cow<'static, str>>,
        header: &[u8],
        body: impl FnOnce(&mut Writer<'_>),
    ) {
        let offset = self.bytes.len();
        self.marks.push(Mark { offset, doing: doing.into() });
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        body(&mut Writer { bytes: &mut self.bytes, too_long: &mut self.too_long });
        match u32::try_from(self.bytes.len() - offset) {
            Ok(length) => self.bytes[offset..offset + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
    }

    /// How many bytes the messages have so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many messages there are.
    pub(super) fn count(&self) -> usize {
        self.marks.len()
    }

    /// What message number `index` asks for.
    pub(super) fn doing(&self, index: usize) -> &str {
        self.marks.get(index).map_or("talk to the kernel", |mark| &mark.doing)
    }

    /// Whether this is a transaction of nf_tables: all of it or nothing.
    pub(super) fn is_transaction(&self) -> bool {
        self.transaction
    }

    /// The finished bytes: messages numbered from `sequence` on, the last one acknowledged.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where something did not fit its length field, or there is no message.
    pub(super) fn finish(&mut self, sequence: u32) -> Result<&[u8]> {
        let too_long = self.too_long || self.marks.is_empty();
        if too_long {
            return Err(Error::Invalid(format!("message too long or empty: {}", self.doing(0))));
        }
        let mut number = sequence;
        for mark in &self.marks {
            let at = mark.offset + 8;
            self.bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
            number = number.wrapping_add(1);
        }
        if let Some(last) = self.last_acknowledged() {
            let at = last + 6;
            let flags = read_u16(&self.bytes[at..at + 2]).unwrap_or_default() | NLM_F_ACK;
            self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        Ok(&self.bytes)
    }

    /// Offset of the message whose acknowledgement ends the exchange. A transaction of nf_tables
    /// ends with a message that older kernels never acknowledge, so there it is the one before.
    fn last_acknowledged(&self) -> Option<usize> {
        self.marks.get(self.acknowledged_index()).map(|mark| mark.offset)
    }

    /// Number of the message whose acknowledgement ends the exchange.
    pub(super) fn acknowledged_index(&self) -> usize {
        let last = self.marks.len().saturating_sub(1);
        if self.is_transaction() { last.saturating_sub(1) } else { last }
    }

    /// The bytes as they are, for tests.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Writes the attributes of one message.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    too_long: &'a mut bool,
}

impl Writer<'_> {
    /// An attribute with these bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |writer| writer.bytes.extend_from_slice(value));
    }

    /// A number in the machine's byte order, as rtnetlink has them.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order, as nf_tables has them.
    pub(crate) fn u32_be(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A text that ends with a zero byte.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |writer| {
            writer.bytes.extend_from_slice(value.as_bytes());
            writer.bytes.push(0);
        });
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer<'_>)) {
        self.attribute(kind | NLA_F_NESTED, body);
    }

    /// An attribute that holds a fixed header and then attributes, such as VETH_INFO_PEER.
    pub(crate) fn nest_after(
        &mut self,
        kind: u16,
        header: &[u8],
        body: impl FnOnce(&mut Writer<'_>),
    ) {
        self.attribute(kind | NLA_F_NESTED, |writer| {
            writer.bytes.extend_from_slice(header);
            pad(writer.bytes);
            body(writer);
        });
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Writer<'_>)) {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        match u16::try_from(self.bytes.len() - offset) {
            Ok(length) => self.bytes[offset..offset + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => *self.too_long = true,
        }
        pad(self.bytes);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
}

/// A message of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// RTM_NEWLINK and the like.
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    /// The number of the request that it answers.
    pub(crate) sequence: u32,
    /// All behind the header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first `header` bytes of the payload and the attributes behind them.
    ///
    /// # Errors
    ///
    /// When the payload is shorter than that.
    pub(crate) fn split(&self, header: usize) -> Result<(&'a [u8], Attributes<'a>)> {
        let aligned = header.next_multiple_of(ALIGN).min(self.payload.len());
        let fixed = self.payload.get(..header).ok_or_else(malformed)?;
        Ok((fixed, Attributes(&self.payload[aligned..])))
    }
}

/// Takes one datagram apart into messages.
#[derive(Debug)]
pub(crate) struct Messages<'a>(pub(in crate::network) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = self.take();
        if message.is_none() {
            self.0 = &[];
        }
        Some(message.ok_or_else(malformed))
    }
}

impl<'a> Messages<'a> {
    fn take(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(read_u32(self.0.get(..4)?)?).ok()?;
        let whole = self.0.get(..length)?;
        let message = Message {
            kind: read_u16(whole.get(4..6)?)?,
            flags: read_u16(whole.get(6..8)?)?,
            sequence: read_u32(whole.get(8..12)?)?,
            payload: whole.get(MESSAGE_HEADER..)?,
        };
        self.0 = self.0.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    }
}

/// Takes a run of attributes apart into (type, value).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(in crate::network) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let attribute = self.take();
        if attribute.is_none() {
            self.0 = &[];
        }
        Some(attribute.ok_or_else(malformed))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this type.
    ///
    /// # Errors
    ///
    /// When the attributes before it are malformed.
    pub(crate) fn find(self, wanted: u16) -> Result<Option<&'a [u8]>> {
        for attribute in self {
            let (kind, value) = attribute?;
            if kind == wanted {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn take(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(read_u16(self.0.get(..2)?)?);
        let kind = read_u16(self.0.get(2..4)?)? & NLA_TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The error for bytes that are no netlink.
pub(crate) fn malformed() -> Error {
    Error::Kernel {
        doing: "read a netlink message".to_owned(),
        detail: String::new(),
        source: io::Error::from(io::ErrorKind::InvalidData),
    }
}

/// A number in the machine's byte order, where there are exactly two bytes.
pub(crate) fn read_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number in the machine's byte order, where there are exactly four bytes.
pub(crate) fn read_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number in network byte order, where there are exactly four bytes.
pub(crate) fn read_u32_be(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// A text up to its zero byte, or to its end. Bytes that are no UTF-8 are replaced.
pub(crate) fn read_text(bytes: &[u8]) -> Cow<'_, str> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}
