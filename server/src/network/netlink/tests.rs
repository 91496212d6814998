//! Tests of the codec, by value and by property, and of what is made of the kernel's answers.

use super::*;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[track_caller]
fn check_bytes(mut batch: Batch, sequence: u32, expected: &str) {
    let bytes = batch.finish(sequence).unwrap();
    assert_eq!(bytes, hex(expected), "{bytes:02x?}");
}

#[test]
fn messages_are_numbered_and_padded_and_the_last_is_acknowledged() {
    let mut batch = Batch::default();
    batch.message(0x10, 0x600, "first", &[1, 2], |body| {
        body.text(3, "ab");
        body.nest(18, |nest| nest.bytes(1, &[7]));
    });
    batch.message(0x13, 0, "second", &[], |body| body.u32_be(4, 0x0102_0304));
    check_bytes(
        batch,
        0x11,
        "28000000 1000 0106 11000000 00000000  0102 0000
         0700 0300 616200 00   0c00 1280 0500 0100 07 000000
         18000000 1300 0500 12000000 00000000  0800 0400 01020304",
    );
}

#[test]
fn in_a_transaction_the_message_before_the_commit_is_acknowledged() {
    let mut batch = Batch::transaction();
    for kind in [0x10, 0xa00, 0x11] {
        batch.message(kind, 0, "x", &[0, 0, 0, 10], |_| {});
    }
    check_bytes(
        batch,
        1,
        "14000000 1000 0100 01000000 00000000 0000000a
         14000000 000a 0500 02000000 00000000 0000000a
         14000000 1100 0100 03000000 00000000 0000000a",
    );
}

/// D-06: a value that does not fit its length field is refused, not wrapped around.
#[test]
fn an_attribute_of_64_kib_is_refused() {
    for (length, good) in [(65531, true), (65532, false), (200_000, false)] {
        let mut batch = Batch::default();
        batch.message(0x10, 0, "make link x", &[0; 16], |body| body.bytes(3, &vec![0; length]));
        assert_eq!(batch.finish(1).is_ok(), good, "{length}");
    }
    let mut nested = Batch::default();
    nested.message(0x10, 0, "make link x", &[0; 16], |body| {
        body.nest(1, |nest| (0..4).for_each(|_| nest.bytes(2, &[0; 20_000])));
    });
    let error = nested.finish(1).unwrap_err().to_string();
    assert_eq!(error, "message too long or empty: make link x");
    assert!(Batch::default().finish(1).is_err(), "no message at all");
}

#[test]
fn a_reply_that_claims_more_than_it_has_is_an_error() {
    let message = "14000000 0200 0000 01000000 00000000 00000000";
    let whole = hex(message);
    let first = Messages(&whole).next().unwrap().unwrap();
    assert_eq!((first.kind, first.sequence, first.payload.len()), (2, 1, 4));
    for length in 1..whole.len() {
        assert!(Messages(&whole[..length]).next().unwrap().is_err(), "{length} bytes");
    }
    let short = hex("0f000000 0200 0000 01000000 00000000");
    assert!(Messages(&short).next().unwrap().is_err(), "shorter than its own header");
    for attribute in ["0300 0100", "0000 0000", "0900 0100 01020304", "08"] {
        assert!(Attributes(&hex(attribute)).next().unwrap().is_err(), "{attribute}");
    }
    assert!(first.split(5).is_err(), "a fixed part that is not there");
}

#[track_caller]
fn check_answer(reply: &str, expected: Option<(&str, i32)>) {
    let mut batch = Batch::default();
    for doing in ["make link x", "bring up link x"] {
        batch.message(0x10, 0, doing, &[0; 16], |_| {});
    }
    let mut answers = Answers::new(&batch, 7);
    for message in Messages(&hex(reply)) {
        answers.take(message.unwrap(), &mut |_| Ok(())).unwrap();
    }
    assert!(answers.finished);
    let got = answers.error.map(|error| (error.to_string(), error.errno()));
    assert_eq!(got.as_ref().map(|(text, errno)| (text.as_str(), *errno)), expected);
}

#[test]
fn the_first_failure_is_told_with_the_words_of_the_kernel() {
    let acknowledged = "24000000 0200 0001 08000000 00000000 00000000
                        10000000 1000 0500 08000000 00000000";
    check_answer(acknowledged, None);
    // EEXIST (17) to the first with the text "abc", ENODEV (19) to the second.
    let failed = "2c000000 0200 0003 07000000 00000000 efffffff
                  10000000 1000 0100 07000000 00000000  0800 0100 61626300
                  24000000 0200 0001 08000000 00000000 edffffff
                  10000000 1000 0500 08000000 00000000";
    check_answer(failed, Some(("make link x (abc)", libc::EEXIST)));
}

#[test]
fn an_answer_to_another_question_is_left_aside() {
    let mut batch = Batch::default();
    batch.message(0x10, 0, "make link x", &[0; 16], |_| {});
    let mut answers = Answers::new(&batch, 7);
    let late = hex("14000000 0200 0000 06000000 00000000 edffffff");
    for message in Messages(&late) {
        answers.take(message.unwrap(), &mut |_| Ok(())).unwrap();
    }
    assert!(!answers.finished && answers.error.is_none());
}

proptest! {
    #[test]
    fn attributes_come_back_as_they_were_written(
        attributes in proptest::collection::vec(
            (1_u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        header in proptest::collection::vec(any::<u8>(), 0..17),
    ) {
        let mut batch = Batch::default();
        batch.message(0x123, 0x600, "x", &header, |body| {
            for (kind, value) in &attributes {
                body.bytes(*kind, value);
            }
        });
        let bytes = batch.finish(9).unwrap().to_vec();
        let message = Messages(&bytes).next().unwrap().unwrap();
        prop_assert_eq!((message.kind, message.sequence), (0x123, 9));
        let (fixed, found) = message.split(header.len()).unwrap();
        prop_assert_eq!(fixed, header.as_slice());
        let found: Vec<(u16, Vec<u8>)> =
            found.map(|one| one.map(|(kind, value)| (kind, value.to_vec()))).collect::<Result<_>>().unwrap();
        prop_assert_eq!(found, attributes);
    }

    #[test]
    fn no_reply_makes_us_panic_or_go_on_forever(
        bytes in proptest::collection::vec(any::<u8>(), 0..200)
    ) {
        for message in Messages(&bytes).flatten() {
            for (_, value) in Attributes(message.payload).flatten() {
                prop_assert!(Attributes(value).count() <= 50);
            }
        }
    }
}
