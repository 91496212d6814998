use super::*;
use crate::streaming::spdy::headers::{MAX_BLOCK, MAX_PAIRS};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

/// Feeds bytes in pieces, and returns all events.
fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Event>, Malformed> {
    let (mut decoder, mut input, mut events) = (Decoder::new(), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        while let Some(event) = decoder.next(&mut input)? {
            events.push(event);
        }
    }
    Ok(events)
}

fn opened(id: u32, fin: bool, headers: &Headers) -> Event {
    Event::Open { id, fin, unidirectional: false, headers: headers.clone() }
}

#[test]
fn frames_come_back_however_they_are_cut() {
    let mut encoder = Encoder::new().unwrap();
    let stdin = Headers::new(&[("streamType", "stdin"), ("port", "80")]);
    let error = Headers::new(&[("streamType", "error")]);
    let mut bytes = Vec::new();
    encoder.open(&mut bytes, 1, false, &error);
    encoder.open(&mut bytes, 3, true, &stdin);
    bytes.extend_from_slice(&Encoder::data_head(1, 5, false));
    bytes.extend_from_slice(b"hello");
    Encoder::ping(&mut bytes, 7);
    bytes.extend_from_slice(&Encoder::data_head(1, 0, true));
    Encoder::reset(&mut bytes, 3, Reset::Cancel);
    Encoder::go_away(&mut bytes, 3, false);
    let events = [
        opened(1, false, &error),
        opened(3, true, &stdin),
        Event::Data { id: 1, bytes: Bytes::from_static(b"hello"), fin: false },
        Event::Ping(7),
        Event::Data { id: 1, bytes: Bytes::new(), fin: true },
        Event::Reset(3),
        Event::GoAway,
    ];
    assert_eq!(decode(&bytes, bytes.len()).unwrap(), events);
    let whole = |event: &Event| !matches!(event, Event::Data { bytes, .. } if !bytes.is_empty());
    let single: Vec<Event> = decode(&bytes, 1).unwrap().into_iter().filter(whole).collect();
    assert_eq!(single, events.into_iter().filter(whole).collect::<Vec<_>>());
}

#[test]
fn a_reply_reads_as_headers_and_keeps_the_stream_of_the_compressor_whole() {
    let mut encoder = Encoder::new().unwrap();
    let mut bytes = Vec::new();
    for id in (1..100).step_by(2) {
        encoder.reply(&mut bytes, id).unwrap();
    }
    let ids: Vec<u32> = (1..100).step_by(2).collect();
    let events: Vec<Event> = ids.into_iter().map(|id| Event::Headers { id, fin: false }).collect();
    assert_eq!(decode(&bytes, 13).unwrap(), events);
}

#[test]
fn a_long_data_frame_arrives_in_parts_of_which_the_last_has_the_end() {
    let length = 3 * MAX_PART + 17;
    let mut bytes = Encoder::data_head(9, length, true).to_vec();
    bytes.extend(std::iter::repeat_n(b'x', length));
    let events = decode(&bytes, usize::MAX).unwrap();
    let part = |event: &Event| {
        let Event::Data { id: 9, bytes, fin } = event else { panic!("{event:?}") };
        (bytes.len(), *fin)
    };
    let parts: Vec<(usize, bool)> = events.iter().map(part).collect();
    assert_eq!(parts, [(MAX_PART, false), (MAX_PART, false), (MAX_PART, false), (17, true)]);
}

/// The head of a control frame of this kind and length.
fn head(version: u8, kind: u16, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    control(&mut bytes, kind, 0, &[&vec![0; length]]);
    bytes[1] = version;
    bytes
}

#[track_caller]
fn refused(bytes: &[u8]) {
    assert!(decode(bytes, usize::MAX).is_err());
}

#[test]
fn what_is_not_spdy_is_refused() {
    refused(b"\x00\x00\x00\x00 HTTP");
    refused(&head(2, PING, 4));
    refused(&head(3, PING, 3));
    refused(&head(3, RST_STREAM, 8));
    refused(&head(3, SYN_STREAM, 4));
    refused(&head(3, SYN_STREAM, 40));
    refused(&Encoder::data_head(0, 1, false));
    // More than is taken is known from the head alone.
    refused(&head(3, SYN_STREAM, MAX_CONTROL + 1)[..HEAD]);
}

#[test]
fn kinds_that_nobody_acts_on_are_passed_over() {
    let mut bytes = head(3, 4, 12);
    bytes.extend(head(3, 9, 8));
    bytes.extend(head(3, 4000, 0));
    bytes.extend(Encoder::data_head(1, 0, false));
    assert_eq!(decode(&bytes, 5).unwrap(), vec![Event::Other; 4]);
}

/// A SYN_STREAM whose block is what `block` deflates to.
fn opening(block: &[u8]) -> Vec<u8> {
    let mut stream = Compress::new(Compression::best(), true);
    stream.set_dictionary(crate::streaming::spdy::dictionary::dictionary()).unwrap();
    let mut deflated = Vec::with_capacity(block.len() + 1024);
    stream.compress_vec(block, &mut deflated, FlushCompress::Sync).unwrap();
    let mut bytes = Vec::new();
    control(&mut bytes, SYN_STREAM, 0, &[&1_u32.to_be_bytes(), &[0; 6], &deflated]);
    bytes
}

#[test]
fn a_bomb_of_headers_is_refused() {
    let long = u32::try_from(MAX_BLOCK).unwrap().to_be_bytes();
    let block =
        [&1_u32.to_be_bytes()[..], &[0, 0, 0, 1, b'a'], &long, &vec![0; MAX_BLOCK]].concat();
    let bytes = opening(&block);
    assert!(bytes.len() < 4096, "it is short on the wire: {}", bytes.len());
    refused(&bytes);
    let many = u32::try_from(MAX_PAIRS + 1).unwrap().to_be_bytes();
    refused(&opening(&many));
    refused(&opening(&u32::MAX.to_be_bytes()));
    refused(&opening(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']));
    refused(&opening(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]));
    refused(&opening(&[0, 0, 0, 0, 1]));
}

#[test]
fn only_the_first_of_several_values_counts_and_names_have_no_case() {
    let headers = Headers::new(&[("StreamType", "data\0error")]);
    let mut encoder = Encoder::new().unwrap();
    let mut bytes = Vec::new();
    encoder.open(&mut bytes, 1, false, &headers);
    let Event::Open { headers, .. } = decode(&bytes, 3).unwrap().remove(0) else { panic!() };
    assert_eq!((headers.get("streamtype"), headers.get("port")), (Some("data"), None));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048), piece in 1_usize..64) {
        let _judged = decode(&bytes, piece);
    }

    #[test]
    fn random_bodies_of_control_frames_never_panic(
        frames in proptest::collection::vec((0_u16..12, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..64)), 1..8),
    ) {
        let mut bytes = Vec::new();
        for (kind, flags, body) in frames {
            control(&mut bytes, kind, flags, &[&body]);
        }
        let _judged = decode(&bytes, 7);
    }

    #[test]
    fn a_damaged_opening_never_panics(at in 0_usize..200, byte in any::<u8>()) {
        let mut encoder = Encoder::new().unwrap();
        let mut bytes = Vec::new();
        encoder.open(&mut bytes, 1, false, &Headers::new(&[("streamtype", "error"), ("requestid", "17")]));
        encoder.open(&mut bytes, 3, false, &Headers::new(&[("streamtype", "data"), ("requestid", "17")]));
        let length = bytes.len();
        bytes[at % length] = byte;
        let _judged = decode(&bytes, 11);
    }

    #[test]
    fn headers_come_back(pairs in proptest::collection::btree_map("[a-z-]{1,12}", "[ -~]{0,40}", 0..20)) {
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let headers = Headers::new(&pairs);
        let mut encoder = Encoder::new().unwrap();
        let mut bytes = Vec::new();
        encoder.open(&mut bytes, 1, false, &headers);
        encoder.open(&mut bytes, 3, true, &headers);
        prop_assert_eq!(decode(&bytes, 9).unwrap(), vec![opened(1, false, &headers), opened(3, true, &headers)]);
    }
}
