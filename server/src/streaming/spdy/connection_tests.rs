//! A client made of the codec, on a pipe with a clock that jumps.

use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

use super::*;

const IDLE: Duration = Duration::from_secs(3600);

/// The other side.
struct Client {
    read: ReadHalf<DuplexStream>,
    write: WriteHalf<DuplexStream>,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
}

fn pair() -> (Client, Connection) {
    let (near, far) = tokio::io::duplex(4096);
    let settings = Settings {
        idle: IDLE,
        acceptable: |headers| headers.get("streamtype") != Some("bad"),
        hangup: Hangup::default(),
    };
    let (read, write) = tokio::io::split(near);
    let (encoder, decoder) = (Encoder::new().unwrap(), Decoder::new());
    let client = Client { read, write, encoder, decoder, input: BytesMut::new() };
    (client, Connection::start(far, settings))
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.write.write_all(bytes).await.unwrap();
    }

    async fn open(&mut self, id: u32, kind: &str) {
        let mut bytes = Vec::new();
        self.encoder.open(&mut bytes, id, false, &Headers::new(&[("streamtype", kind)]));
        self.send(&bytes).await;
    }

    async fn data(&mut self, id: u32, bytes: &[u8], fin: bool) {
        let head = Encoder::data_head(id, bytes.len(), fin);
        self.send(&[&head, bytes].concat()).await;
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.decoder.next(&mut self.input).unwrap() {
                return Some(event);
            }
            if self.read.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn streams_are_answered_at_once_and_close_in_halves() {
    let (mut client, mut connection) = pair();
    client.open(1, "error").await;
    client.open(3, "stdin").await;
    // Before anybody has taken them.
    for id in [1, 3] {
        assert_eq!(client.next().await, Some(Event::Headers { id, fin: false }));
    }
    client.data(3, b"hello", true).await;
    let error = connection.accept().await.unwrap();
    let mut stdin = connection.accept().await.unwrap();
    assert_eq!(stdin.headers.get("streamtype"), Some("stdin"));
    assert_eq!(stdin.incoming.next().await.as_deref(), Some(&b"hello"[..]));
    assert_eq!(stdin.incoming.next().await, None);
    stdin.outgoing.write(Bytes::from_static(b"world")).await.unwrap();
    stdin.outgoing.close().await;
    error.outgoing.close().await;
    let finishing = tokio::spawn(connection.finish());
    for event in [
        Event::Data { id: 3, bytes: Bytes::from_static(b"world"), fin: false },
        Event::Data { id: 3, bytes: Bytes::new(), fin: true },
        Event::Data { id: 1, bytes: Bytes::new(), fin: true },
        Event::GoAway,
    ] {
        assert_eq!(client.next().await, Some(event));
    }
    assert_eq!(client.next().await, None);
    drop(client);
    finishing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_is_left_after_a_while() {
    let (client, connection) = pair();
    connection.finish().await;
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn pings_of_the_client_are_answered() {
    let (mut client, _connection) = pair();
    let mut bytes = Vec::new();
    Encoder::ping(&mut bytes, 2);
    Encoder::ping(&mut bytes, 5);
    client.send(&bytes).await;
    assert_eq!(client.next().await, Some(Event::Ping(5)));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_acceptable_is_reset_and_the_others_go_on() {
    let (mut client, mut connection) = pair();
    client.open(1, "bad").await;
    assert_eq!(client.next().await, Some(Event::Reset(1)));
    client.open(3, "good").await;
    assert_eq!(client.next().await, Some(Event::Headers { id: 3, fin: false }));
    assert_eq!(connection.accept().await.unwrap().id, 3);
    // A stream that nobody serves any more is reset as well.
    assert_eq!(client.next().await, Some(Event::Reset(3)));
    client.data(3, b"late", false).await;
    client.data(99, b"never opened", false).await;
    assert_eq!(client.next().await, Some(Event::Reset(99)));
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_the_client_ends_both_halves() {
    let (mut client, mut connection) = pair();
    client.open(1, "data").await;
    let mut stream = connection.accept().await.unwrap();
    let mut bytes = Vec::new();
    Encoder::reset(&mut bytes, 1, Reset::Cancel);
    client.send(&bytes).await;
    assert_eq!(stream.incoming.next().await, None);
    stream.outgoing.gone().await;
    assert_eq!(stream.outgoing.write(Bytes::from_static(b"x")).await, Err(Gone));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_reads_stops_the_client_and_not_the_other_direction() {
    let (mut client, mut connection) = pair();
    client.open(1, "data").await;
    let mut stream = connection.accept().await.unwrap();
    let total = 4 << 20;
    let mut bytes = Encoder::data_head(1, total, true).to_vec();
    bytes.resize(8 + total, b'x');
    let Client { mut read, mut write, .. } = client;
    let mut writing = tokio::spawn(async move { write.write_all(&bytes).await.map(|()| write) });
    let waited = tokio::time::timeout(Duration::from_secs(600), &mut writing).await;
    assert!(waited.is_err(), "4 MiB were taken that nobody reads");
    // Our direction is open all the same.
    stream.outgoing.write(Bytes::from_static(b"out")).await.unwrap();
    let mut heard = BytesMut::new();
    while !heard.ends_with(b"out") {
        read.read_buf(&mut heard).await.unwrap();
    }
    let mut taken = 0;
    while let Some(bytes) = stream.incoming.next().await {
        taken += bytes.len();
    }
    assert_eq!(taken, total);
    writing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_no_answers_is_cut_off() {
    let (mut client, connection) = pair();
    let mut ping = Vec::new();
    Encoder::ping(&mut ping, 1);
    let closed = connection.closed();
    let flood = async { while client.write.write_all(&ping).await.is_ok() {} };
    tokio::select! {
        () = flood => {}
        () = closed.cancelled() => {}
    }
    closed.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_a_number_of_before_ends_the_connection() {
    for ids in [[3, 1], [1, 1], [1, 4]] {
        let (mut client, connection) = pair();
        for id in ids {
            client.open(id, "data").await;
        }
        connection.closed().cancelled().await;
        assert_eq!(client.next().await, Some(Event::Headers { id: ids[0], fin: false }));
        assert_eq!(client.next().await, Some(Event::GoAway));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_connection_and_pings_break_it() {
    let (mut client, connection) = pair();
    let mut ping = Vec::new();
    Encoder::ping(&mut ping, 1);
    for _ in 0..3 {
        tokio::time::sleep(IDLE / 2).await;
        client.send(&ping).await;
        assert_eq!(client.next().await, Some(Event::Ping(1)));
    }
    assert!(!connection.closed().is_cancelled());
    connection.closed().cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn more_streams_than_there_may_be_are_refused() {
    let (mut client, mut connection) = pair();
    let mut streams = Vec::new();
    for number in 0..u32::try_from(MAX_STREAMS).unwrap() {
        client.open(2 * number + 1, "data").await;
        assert!(matches!(client.next().await, Some(Event::Headers { .. })));
        streams.push(connection.accept().await.unwrap());
    }
    client.open(5001, "data").await;
    assert_eq!(client.next().await, Some(Event::Reset(5001)));
}
