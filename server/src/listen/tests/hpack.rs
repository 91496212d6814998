//! Tests of the rewriter on header blocks: what a server with a whole table of its own reads
//! afterwards.

use proptest::prelude::*;

use super::super::hpack::{Malformed, Rewriter};
use super::codec::{Field, Table, Way};

fn is_valid(authority: &[u8]) -> bool {
    http::uri::Authority::try_from(authority).is_ok()
}

/// The fields that a server must read where a client wrote `sent`.
#[track_caller]
pub(crate) fn check_fields(sent: &[Field], read: &[Field]) {
    assert_eq!(sent.len(), read.len());
    for (sent, read) in sent.iter().zip(read) {
        if sent.0 != b":authority" || is_valid(&sent.1) {
            assert_eq!(sent, read);
        } else {
            assert_eq!(read.0, b":authority");
            assert!(is_valid(&read.1), "{:?}", String::from_utf8_lossy(&read.1));
        }
    }
}

/// Blocks of one connection, as hexadecimal digits, and the authority that each must have in the end.
#[track_caller]
fn check_authorities(blocks: &[(&str, &str)]) {
    let mut rewriter = Rewriter::default();
    let mut server = Table::new();
    for (block, expected) in blocks {
        let block = hex(block);
        let mut out = Vec::new();
        let changed = rewriter.rewrite(&block, &mut out).expect("well formed");
        assert_eq!(changed, !out.is_empty());
        let fields = server.decode(if changed { &out } else { &block }).expect("HPACK");
        let authorities: Vec<_> = fields.iter().filter(|(name, _)| name == b":authority").collect();
        assert_eq!(authorities.len(), 1, "{fields:?}");
        assert_eq!(String::from_utf8_lossy(&authorities[0].1), *expected);
    }
}

/// The block must go on as it is, whatever came before.
#[track_caller]
fn check_same(block: &str) {
    let mut out = Vec::new();
    assert_eq!(Rewriter::default().rewrite(&hex(block), &mut out), Ok(false));
    assert!(out.is_empty());
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |two: &[char]| u8::from_str_radix(&two.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// `:authority` and `/run/x.sock` in characters, as hexadecimal digits.
const NAME: &str = "0a 3a617574686f72697479";
const PATH: &str = "0b 2f72756e2f782e736f636b";

#[test]
fn a_path_becomes_a_host_of_the_same_length_in_every_form() {
    for form in ["41", "01", "11"] {
        check_authorities(&[(&format!("83 86 {form} {PATH} 84"), "localhost-l")]);
    }
    for form in ["40", "00", "10"] {
        check_authorities(&[(&format!("83 {form} {NAME} {PATH} 84"), "localhost-l")]);
    }
}

#[test]
fn names_and_values_may_be_in_huffman_code() {
    let coded = |text: &str| {
        let code = super::super::huffman::encode(text.as_bytes());
        let digits: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:02x}{digits}", 0x80 + code.len())
    };
    check_authorities(&[(&format!("83 86 41 {} 84", coded("/run/x.sock")), "localhost-l")]);
    check_authorities(&[(
        &format!("83 86 40 {} {} 84", coded(":authority"), coded("%2Frun")),
        "localh",
    )]);
}

#[test]
fn an_entry_of_the_table_is_repaired_once_and_used_by_index_then() {
    check_authorities(&[(&format!("41 {PATH} 83"), "localhost-l"), ("be 83", "localhost-l")]);
    check_same("be 83");
}

#[test]
fn an_empty_authority_becomes_localhost() {
    check_authorities(&[("83 81 84", "localhost"), ("83 81 84", "localhost")]);
    for form in
        ["01 00", "11 00", "00 0a3a617574686f72697479 00", "41 00", "40 0a3a617574686f72697479 00"]
    {
        check_authorities(&[(&format!("83 {form} 84"), "localhost")]);
    }
}

#[test]
fn an_entry_that_only_the_client_has_is_counted_ever_after() {
    // x-a: 1, then the empty authority, then x-b: 2; afterwards all three by index.
    let blocks = [
        ("40 03782d61 0131  40 0a3a617574686f72697479 00  40 03782d62 0132", "localhost"),
        ("be bf c0", "localhost"),
    ];
    check_authorities(&blocks);
    let mut rewriter = Rewriter::default();
    let mut server = Table::new();
    let mut read = Vec::new();
    for (block, _) in blocks {
        let mut out = Vec::new();
        assert_eq!(rewriter.rewrite(&hex(block), &mut out), Ok(true));
        read = server.decode(&out).unwrap();
    }
    let text =
        |field: &Field| String::from_utf8([&field.0[..], b"=", &field.1[..]].concat()).unwrap();
    assert_eq!(
        read.iter().map(text).collect::<Vec<_>>(),
        ["x-b=2", ":authority=localhost", "x-a=1"]
    );
}

#[test]
fn an_entry_that_only_the_client_has_lends_its_name() {
    // Entry 62 is the empty authority; its name is used with a good value and with a bad one.
    check_authorities(&[
        ("41 00 83", "localhost"),
        ("7e 03 616263 83", "abc"),
        ("be 83", "abc"),
        (&format!("0f30 {PATH} 83"), "localhost-l"),
    ]);
}

#[test]
fn the_name_of_an_entry_is_known_by_its_index() {
    check_authorities(&[
        ("41 03 616263 83", "abc"),
        (&format!("7e {PATH}"), "localhost-l"),
        ("be", "localhost-l"),
    ]);
}

#[test]
fn good_authorities_and_everything_else_stay_as_they_are() {
    check_same("83 86 41 09 6c6f63616c686f7374 84"); // localhost
    check_same("83 86 41 07 5b3a3a315d3a38 84"); // [::1]:8
    check_same("3f e1 1f 83 86 84"); // a new size of the table
    check_same("83 86 44 0b 2f72756e2f782e736f636b"); // a path is no authority
    check_same("40 02 7465 08 747261696c657273");
    check_same("");
}

#[test]
fn the_blocks_of_grpc_for_python_are_served() {
    // grpcio 1.85.3, target unix:/tmp/front.sock: first and second call.
    let first = "40053a70617468222f72756e74696d652e76312e52756e74696d65536572766963652f56657273696f6e\
        400a3a617574686f7269747910746d7025324666726f6e742e736f636b8386400c636f6e74656e742d7479706510\
        6170706c69636174696f6e2f677270634002746508747261696c657273";
    check_authorities(&[(first, "localhost-localh"), ("c0 bf 83 86 be", "localhost-localh")]);
    // The same with an empty grpc.default_authority.
    let empty = "40053a70617468222f72756e74696d652e76312e52756e74696d65536572766963652f56657273696f6e\
        400a3a617574686f72697479008386400c636f6e74656e742d74797065106170706c69636174696f6e2f67727063";
    check_authorities(&[(empty, "localhost"), ("c0 bf 83 86 be", "localhost")]);
}

#[test]
fn what_is_not_hpack_is_refused() {
    let check = |block: &str| {
        assert_eq!(
            Rewriter::default().rewrite(&hex(block), &mut Vec::new()),
            Err(Malformed),
            "{block}"
        )
    };
    check("41"); // no value
    check("41 05 6162"); // a value beyond the end
    check("ff"); // an index that goes on
    check("ff ff ff ff ff 01"); // an integer of 5 bytes and more
    check("41 81 00"); // padding that is not ones
    check("40"); // no name
}

fn a_field() -> impl Strategy<Value = Field> {
    let authority = prop_oneof![
        Just(""),
        Just("localhost"),
        Just("/run/berth/berth.sock"),
        Just("%2Frun%2Fberth%2Fberth.sock"),
        Just("tmp%2Fx"),
        Just("a:b:c"),
        Just("[::1]:10"),
    ];
    let authority = authority.prop_map(|value| (b":authority".to_vec(), value.as_bytes().to_vec()));
    let name = prop_oneof![Just(":path"), Just("x"), Just("grpc-timeout"), Just("user-agent")];
    let value = prop_oneof![
        4 => "[a-z]{0,3}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..1500),
    ];
    prop_oneof![
        authority,
        (name, value).prop_map(|(name, value)| (name.as_bytes().to_vec(), value))
    ]
}

fn a_way() -> impl Strategy<Value = Way> {
    let form = prop_oneof![3 => Just(0x40), 1 => Just(0x10), 1 => Just(0x00)];
    (any::<[bool; 4]>(), any::<bool>(), form).prop_map(|([a, b, c, d], huffman_value, form)| Way {
        by_index: a,
        name_by_index: b,
        newest: c,
        huffman_name: d,
        huffman_value,
        form,
    })
}

/// A header block to come: a new size of the table, and fields with the way they are written.
pub(crate) type Plan = (Option<usize>, Vec<(Field, Way)>);

pub(crate) fn a_connection() -> impl Strategy<Value = Vec<Plan>> {
    let resize =
        prop_oneof![6 => Just(None), 1 => (0..=4096usize).prop_map(Some), 1 => Just(Some(4096))];
    let fields = proptest::collection::vec((a_field(), a_way()), 0..12);
    proptest::collection::vec((resize, fields), 1..30)
}

proptest! {
    #[test]
    fn a_server_reads_what_the_client_wrote_but_for_bad_authorities(connection in a_connection()) {
        let (mut client, mut server) = (Table::new(), Table::new());
        let mut rewriter = Rewriter::default();
        for (resize, fields) in connection {
            let block = client.encode(resize, &fields);
            let mut out = Vec::new();
            let changed = rewriter.rewrite(&block, &mut out).expect("well formed");
            let read = server.decode(if changed { &out } else { &block }).expect("HPACK");
            let sent: Vec<Field> = fields.into_iter().map(|(field, _)| field).collect();
            check_fields(&sent, &read);
        }
    }

    #[test]
    fn any_bytes_are_a_block_or_are_refused(block: Vec<u8>) {
        let mut out = Vec::new();
        // What the rewriter takes, and h2 would take, stays readable.
        if Table::new().decode(&block).is_some() {
            let changed = Rewriter::default().rewrite(&block, &mut out).expect("well formed");
            let read = Table::new().decode(if changed { &out } else { &block });
            prop_assert!(read.is_some());
        } else {
            let refused = Rewriter::default().rewrite(&block, &mut out);
            let read = Table::new().decode(if out.is_empty() { &block } else { &out });
            prop_assert!(refused.is_err() || read.is_none());
        }
    }

    #[test]
    fn a_host_is_judged_as_the_http_crate_does(authority in "[a-z0-9:@%/.\\[\\]-]{0,12}|[a-z]{1,5}:[0-9]{0,7}") {
        let mut client = Table::new();
        let way = Way { by_index: false, name_by_index: true, newest: true, huffman_name: false, huffman_value: false, form: 0x10 };
        let block = client.encode(None, &[((b":authority".to_vec(), authority.as_bytes().to_vec()), way)]);
        let changed = Rewriter::default().rewrite(&block, &mut Vec::new());
        prop_assert_eq!(changed, Ok(!is_valid(authority.as_bytes())));
    }
}
