//! Tests of the adapter on whole connections: bytes in, in pieces of any size, bytes out.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::super::authority::AnyAuthority;
use super::codec::{Field, Table, Way};
use super::hpack::{a_connection, check_fields};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A client that sends one piece per read and is slow before each second one.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    slow: bool,
}

impl Pieces {
    /// Cuts the bytes into pieces of these sizes, over and over.
    fn new(bytes: &[u8], sizes: &[usize]) -> Pieces {
        let mut rest = bytes;
        let mut pieces = VecDeque::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*size).clamp(1, rest.len()));
            pieces.push_back(piece.to_vec());
            rest = behind;
        }
        Pieces { pieces, slow: false }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.slow = !self.slow;
        if self.slow {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What a server reads through the adapter, with a buffer of so many bytes.
fn through(bytes: &[u8], sizes: &[usize], buffer: usize) -> io::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut adapter = AnyAuthority::new(Pieces::new(bytes, sizes));
        let mut all = Vec::new();
        let mut buffer = vec![0; buffer];
        loop {
            match adapter.read(&mut buffer).await? {
                0 => return Ok(all),
                length => all.extend_from_slice(&buffer[..length]),
            }
        }
    })
}

/// These bytes must go on as they are, in pieces of every small size.
#[track_caller]
fn check_untouched(bytes: &[u8]) {
    for size in [1, 2, 3, 7, 8, 9, 10, 24, 33, 1000, 100_000] {
        assert_eq!(through(bytes, &[size], 8192).unwrap(), bytes, "in pieces of {size}");
    }
}

#[track_caller]
fn check_refused(bytes: &[u8]) {
    for sizes in [&[1000][..], &[100_000]] {
        let error = through(bytes, sizes, 8192).expect_err("refused").to_string();
        assert_eq!(error, "the client sent a header block of more than 65536 bytes or 64 frames");
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frames.concat()].concat()
}

/// Kind, flags, stream and payload of each frame behind the preface.
fn frames_of(bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut rest = bytes.strip_prefix(PREFACE).expect("the preface");
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let stream = u32::from_be_bytes(rest[5..9].try_into().unwrap());
        frames.push((rest[3], rest[4], stream, rest[9..9 + length].to_vec()));
        rest = &rest[9 + length..];
    }
    frames
}

/// A literal `:authority` without indexing.
fn authority(value: &[u8]) -> Vec<u8> {
    [&[0x01, u8::try_from(value.len()).unwrap()], value].concat()
}

#[test]
fn what_is_not_http2_goes_on_as_it_is() {
    check_untouched(b"");
    check_untouched(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    check_untouched(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n more");
    check_untouched(&PREFACE[..20]);
    check_untouched(&connection(&[frame(4, 0, 0, &[0; 6])])[..30]);
}

#[test]
fn header_blocks_that_break_the_rules_go_on_as_they_are() {
    let bad = authority(b"/run/x.sock");
    let begin = frame(HEADERS, 0, 1, &bad);
    check_untouched(&connection(&[
        begin.clone(),
        frame(DATA, 0, 1, b"x"),
        frame(HEADERS, 4, 3, &bad),
    ]));
    check_untouched(&connection(&[begin.clone(), frame(CONTINUATION, 4, 3, b"")]));
    check_untouched(&connection(&[begin]));
    check_untouched(&connection(&[frame(HEADERS, 4 | 8, 1, &[200, 0x82])]));
    check_untouched(&connection(&[frame(HEADERS, 4 | 8, 1, &[])]));
    check_untouched(&connection(&[frame(HEADERS, 4 | 0x20, 1, &[1, 2, 3])]));
    check_untouched(&connection(&[frame(HEADERS, 4, 1, b"\x41"), frame(HEADERS, 4, 3, &bad)]));
    check_untouched(&connection(&[frame(HEADERS, 4, 1, &[0x82; 16_385])]));
    check_untouched(&connection(&[frame(CONTINUATION, 4, 1, &bad)]));
}

#[test]
fn a_header_block_is_read_whole_wherever_it_is_cut() {
    let payload = [&[0x83, 0x86][..], &authority(b"/run/x.sock"), &[0x84]].concat();
    let good = [&[0x83, 0x86][..], &authority(b"localhost-l"), &[0x84]].concat();
    let expected = [frame(HEADERS, 5, 1, &good), frame(DATA, 1, 1, b"later")];
    for cut in 0..=payload.len() {
        let (first, rest) = payload.split_at(cut);
        let padded = [&[3], first, &[0; 3]].concat();
        let sent = connection(&[
            frame(HEADERS, 1 | 8, 1, &padded),
            frame(CONTINUATION, 4, 1, rest),
            expected[1].clone(),
        ]);
        for size in 1..sent.len() {
            assert_eq!(
                through(&sent, &[size], 8192).unwrap(),
                connection(&expected),
                "cut at {cut}, pieces of {size}"
            );
        }
    }
}

#[test]
fn priority_and_the_end_of_the_stream_are_kept() {
    let block = authority(b"");
    let sent =
        connection(&[frame(HEADERS, 1 | 4 | 0x20, 5, &[&[0, 0, 0, 3, 9][..], &block].concat())]);
    let expected = connection(&[frame(
        HEADERS,
        1 | 4 | 0x20,
        5,
        &[&[0, 0, 0, 3, 9][..], &authority(b"localhost")].concat(),
    )]);
    assert_eq!(through(&sent, &[1000], 8192).unwrap(), expected);
}

#[test]
fn a_frame_that_grows_over_the_limit_is_split() {
    // Huffman code of a path is shorter than the host that replaces it.
    let path = super::super::huffman::encode(&b"/".repeat(100));
    let bad = [&[0x01, 0x80 + u8::try_from(path.len()).unwrap()], &path[..]].concat();
    let block = [&vec![0x82; 16_384 - bad.len()], &bad[..]].concat();
    let read = through(&connection(&[frame(HEADERS, 4, 1, &block)]), &[100_000], 8192).unwrap();
    let frames = frames_of(&read);
    assert_eq!(
        frames.iter().map(|f| (f.0, f.1, f.3.len())).collect::<Vec<_>>(),
        [(HEADERS, 0, 16_384), (CONTINUATION, 4, 25)]
    );
    let whole = [&frames[0].3[..], &frames[1].3].concat();
    assert_eq!(Table::new().decode(&whole).unwrap().last().unwrap().1.len(), 100);
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    let begin = frame(HEADERS, 0, 1, &[]);
    let full = frame(CONTINUATION, 0, 1, &[0x82; 16_384]);
    check_refused(&connection(&[begin.clone(), full.repeat(4)]));
    check_refused(&connection(&[begin, frame(CONTINUATION, 0, 1, &[]).repeat(64)]));
}

#[test]
fn the_largest_header_block_is_served() {
    let part = [0x82; 16_384 - 9];
    let last = frame(CONTINUATION, END_HEADERS, 1, &part);
    check_untouched(&connection(&[
        frame(HEADERS, 0, 1, &part),
        frame(CONTINUATION, 0, 1, &part).repeat(2),
        last,
    ]));
}

fn a_frame() -> impl Strategy<Value = Vec<u8>> {
    let kind = any::<u8>().prop_filter("no header block", |kind| *kind != HEADERS);
    let other = (kind, any::<u8>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300));
    let other =
        other.prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload));
    let headers = prop_oneof![
        Just(frame(HEADERS, 4, 1, &[0x83, 0x86, 0x84])),
        Just(
            [frame(HEADERS, 0, 1, &authority(b"localhost:80")), frame(CONTINUATION, 4, 1, &[0x84])]
                .concat()
        ),
        Just(frame(HEADERS, 4 | 8 | 0x20, 1, &[2, 0, 0, 0, 0, 7, 0x83, 0, 0])),
    ];
    prop_oneof![3 => other, 1 => headers]
}

/// One block as frames: cut in two, padded, with priority, as the numbers say.
fn block_frames(
    block: &[u8],
    stream: u32,
    cut: usize,
    padding: u8,
    priority: bool,
) -> Vec<Vec<u8>> {
    let (first, rest) = block.split_at(cut.min(block.len()));
    let mut payload = vec![padding];
    payload.extend_from_slice(if priority { &[0, 0, 0, 0, 16] } else { &[] });
    payload.extend_from_slice(first);
    payload.extend(vec![0; usize::from(padding)]);
    let flags = 8 | if priority { 0x20 } else { 0 };
    if rest.is_empty() {
        return vec![frame(HEADERS, flags | END_HEADERS, stream, &payload)];
    }
    vec![frame(HEADERS, flags, stream, &payload), frame(CONTINUATION, END_HEADERS, stream, rest)]
}

/// The header blocks of a connection, joined, and all its other frames.
fn blocks_and_others(bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut blocks, mut others): (Vec<Vec<u8>>, Vec<_>) = (Vec::new(), Vec::new());
    for (kind, flags, stream, payload) in frames_of(bytes) {
        assert!(payload.len() <= 16_384);
        match kind {
            HEADERS => {
                let padding = if flags & 8 == 0 { 0 } else { usize::from(payload[0]) };
                let start = usize::from(flags & 8 != 0) + if flags & 0x20 == 0 { 0 } else { 5 };
                blocks.push(payload[start..payload.len() - padding].to_vec());
            }
            CONTINUATION => blocks.last_mut().unwrap().extend(payload),
            _ => others.push(frame(kind, flags, stream, &payload)),
        }
    }
    (blocks, others)
}

proptest! {
    #[test]
    fn a_connection_with_nothing_to_change_passes_byte_by_byte(
        frames in proptest::collection::vec(a_frame(), 0..20),
        sizes in proptest::collection::vec(1..400usize, 1..10),
        buffer in 1..500usize,
    ) {
        let sent = connection(&frames);
        prop_assert_eq!(through(&sent, &sizes, buffer).unwrap(), sent);
    }

    #[test]
    fn any_bytes_behind_the_preface_are_passed_or_refused(
        bytes: Vec<u8>,
        sizes in proptest::collection::vec(1..50usize, 1..10),
    ) {
        let sent = [PREFACE, &bytes].concat();
        if let Ok(read) = through(&sent, &sizes, 64) {
            prop_assert!(read.starts_with(PREFACE));
        }
    }

    #[test]
    fn the_server_reads_the_fields_and_frames_of_the_client(
        calls in a_connection(),
        cuts in proptest::collection::vec((0..200usize, any::<u8>(), any::<bool>()), 30),
        sizes in proptest::collection::vec(1..600usize, 1..10),
        buffer in 1..3000usize,
    ) {
        let mut client = Table::new();
        let mut frames = Vec::new();
        let mut sent_fields: Vec<Vec<Field>> = Vec::new();
        for ((resize, fields), (cut, padding, priority)) in calls.iter().zip(cuts) {
            let fields: &Vec<(Field, Way)> = fields;
            let block = client.encode(*resize, fields);
            prop_assume!(block.len() < 16_000);
            frames.extend(block_frames(&block, 1, cut, padding, priority));
            frames.push(frame(DATA, 0, 1, &vec![padding; cut]));
            sent_fields.push(fields.iter().map(|(field, _)| field.clone()).collect());
        }
        let sent = connection(&frames);
        let read = through(&sent, &sizes, buffer).unwrap();
        let (blocks, others) = blocks_and_others(&read);
        prop_assert_eq!(others, blocks_and_others(&sent).1);
        let mut server = Table::new();
        for (block, sent) in blocks.iter().zip(&sent_fields) {
            check_fields(sent, &server.decode(block).expect("HPACK"));
        }
        prop_assert_eq!(blocks.len(), sent_fields.len());
    }
}
