//! Decodes strings in HPACK's Huffman code (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: codes of one length follow each other in the order of their
//! symbols, so the lengths alone say everything. A bit at a time is fast enough for one
//! `:authority` per connection.

/// The end-of-string symbol; only its beginning may occur, as padding.
const END: usize = 256;

/// The longest code.
const MAX_BITS: usize = 30;

/// Bits of each symbol's code, END last.
#[rustfmt::skip]
const LENGTHS: [u8; END + 1] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The codes of one length: the first code, how many there are, and where their symbols
/// begin in [`SYMBOLS`].
#[derive(Clone, Copy)]
struct Group {
    first: u32,
    count: u32,
    start: usize,
}

/// By length; lengths without a code have a count of 0.
const GROUPS: [Group; MAX_BITS + 1] = groups();

/// All symbols, by length and then by value.
const SYMBOLS: [u16; END + 1] = symbols();

const fn groups() -> [Group; MAX_BITS + 1] {
    let mut groups = [Group { first: 0, count: 0, start: 0 }; MAX_BITS + 1];
    let mut symbol = 0;
    while symbol <= END {
        groups[LENGTHS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let mut bits = 1;
    while bits <= MAX_BITS {
        let shorter = groups[bits - 1];
        groups[bits].first = (shorter.first + shorter.count) << 1;
        groups[bits].start = shorter.start + shorter.count as usize;
        bits += 1;
    }
    groups
}

#[expect(clippy::cast_possible_truncation, reason = "a symbol is at most 256")]
const fn symbols() -> [u16; END + 1] {
    let mut next = groups();
    let mut symbols = [0; END + 1];
    let mut symbol = 0;
    while symbol <= END {
        let group = &mut next[LENGTHS[symbol] as usize];
        symbols[group.start] = symbol as u16;
        group.start += 1;
        symbol += 1;
    }
    symbols
}

/// Appends the decoded text to `out`. `None` when the code is not whole: a wrong padding,
/// or the end-of-string symbol. `out` may have grown then.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut code: u32 = 0;
    let mut bits = 0;
    for byte in coded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            bits += 1;
            let group = GROUPS.get(bits)?;
            let Some(within) = code.checked_sub(group.first).filter(|within| *within < group.count)
            else {
                continue;
            };
            // END has no byte, so it fails here.
            out.push(u8::try_from(SYMBOLS[group.start + within as usize]).ok()?);
            (code, bits) = (0, 0);
        }
    }
    let padding_is_ones = code == (1 << bits) - 1;
    (bits < 8 && padding_is_ones).then_some(())
}

/// Codes a text, for tests.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let mut bits = String::new();
    for byte in text {
        let length = LENGTHS[usize::from(*byte)] as usize;
        let group = GROUPS[length];
        let within =
            SYMBOLS[group.start..].iter().position(|symbol| *symbol == u16::from(*byte)).unwrap();
        bits += &format!("{:0length$b}", group.first + u32::try_from(within).unwrap());
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|eight| u8::from_str_radix(std::str::from_utf8(eight).unwrap(), 2).unwrap())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(coded: &[u8], expected: Option<&str>) {
        let mut out = Vec::new();
        let decoded = decode(coded, &mut out).map(|()| String::from_utf8(out).unwrap());
        assert_eq!(decoded.as_deref(), expected);
    }

    #[test]
    fn the_examples_of_the_rfc_decode() {
        // RFC 7541, C.4.1, C.4.3 and C.6.1.
        check(
            &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff],
            Some("www.example.com"),
        );
        check(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], Some("custom-key"));
        check(&[0x64, 0x02], Some("302"));
        check(&[], Some(""));
    }

    #[test]
    fn a_code_that_is_not_whole_is_refused() {
        check(&[0xff], None); // eight bits of padding
        check(&[0x00], None); // padding that is not ones
        check(&[0xff, 0xff, 0xff, 0xff], None); // the end-of-string symbol
    }

    proptest! {
        #[test]
        fn every_text_decodes_from_its_code(text: Vec<u8>) {
            let mut out = Vec::new();
            prop_assert_eq!(decode(&encode(&text), &mut out), Some(()));
            prop_assert_eq!(out, text);
        }

        #[test]
        fn a_code_that_decodes_is_the_code_of_its_text(coded: Vec<u8>) {
            let mut out = Vec::new();
            if decode(&coded, &mut out).is_some() {
                prop_assert_eq!(encode(&out), coded);
            }
        }
    }
}
