//! A client of the same library in its other role, on a pipe with a clock that jumps.

use super::*;

type Client = WebSocketStream<DuplexStream>;

fn settings() -> Settings {
    Settings { idle: Duration::from_secs(3600), hangup: Hangup::default() }
}

fn protocol(name: &str) -> Protocol {
    PROTOCOLS.iter().find(|(have, _)| *have == name).unwrap().1
}

async fn pair(name: &str) -> (Client, Session, Incoming) {
    let (near, far) = tokio::io::duplex(4096);
    let mut readable = Readable::default();
    let stdin = readable.channel(0);
    let session = Session::start(far, protocol(name), readable, settings()).await;
    (WebSocketStream::from_raw_socket(near, Role::Client, None).await, session, stdin)
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(Bytes::copy_from_slice(bytes))
}

#[tokio::test(start_paused = true)]
async fn channels_are_the_first_byte() {
    for name in ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io", ""] {
        let (mut client, session, mut stdin) = pair(name).await;
        // Of channels that nobody asked for, and of none.
        for bytes in [&b"\x04{}"[..], b"", b"\x00", b"\x00hello"] {
            client.send(binary(bytes)).await.unwrap();
        }
        assert_eq!(stdin.next().await.as_deref(), Some(&b"hello"[..]));
        session.writer(1).write(Bytes::new()).await.unwrap();
        session.writer(2).write(Bytes::from_static(b"err")).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), binary(b"\x01"));
        assert_eq!(client.next().await.unwrap().unwrap(), binary(b"\x02err"));
        let finishing = tokio::spawn(session.finish());
        let Message::Close(Some(close)) = client.next().await.unwrap().unwrap() else { panic!() };
        assert_eq!(close.code, CloseCode::Normal);
        while client.next().await.is_some_and(|message| message.is_ok()) {}
        drop(client);
        finishing.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn with_base64_a_channel_is_a_digit() {
    for name in ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"] {
        let (mut client, session, mut stdin) = pair(name).await;
        for text in ["x", "0!", "0aGVsbG8="] {
            client.send(Message::text(text)).await.unwrap();
        }
        assert_eq!(stdin.next().await.as_deref(), Some(&b"hello"[..]));
        session.writer(1).write(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text("1aGVsbG8="));
    }
}

#[tokio::test(start_paused = true)]
async fn in_v5_the_client_closes_a_channel_alone() {
    let (mut client, session, mut stdin) = pair("v5.channel.k8s.io").await;
    client.send(binary(b"\x00in")).await.unwrap();
    client.send(binary(&[255, 0])).await.unwrap();
    assert_eq!(stdin.next().await.as_deref(), Some(&b"in"[..]));
    assert_eq!(stdin.next().await, None);
    session.writer(1).write(Bytes::from_static(b"out")).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), binary(b"\x01out"));
    // Anything else on that channel is against the protocol, and so is text.
    for wrong in [binary(&[255]), binary(&[255, 0, 0]), Message::text("\u{0}x")] {
        let (mut client, session, _stdin) = pair("v5.channel.k8s.io").await;
        client.send(wrong).await.unwrap();
        session.closed().cancelled().await;
    }
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_and_while_nobody_reads_pongs_come_unasked() {
    let (mut client, _session, stdin) = pair("v5.channel.k8s.io").await;
    client.send(Message::Ping(Bytes::from_static(b"1"))).await.unwrap();
    let answer = client.next().await.unwrap().unwrap();
    assert_eq!(answer, Message::Pong(Bytes::from_static(b"1")));
    let (mut sink, mut stream) = client.split();
    let writing = tokio::spawn(async move {
        for _ in 0..64 {
            sink.send(Message::Binary(vec![0; 64 << 10].into())).await.unwrap();
        }
    });
    assert_eq!(stream.next().await.unwrap().unwrap(), Message::Pong(Bytes::new()));
    assert!(!writing.is_finished(), "4 MiB were taken that nobody reads");
    drop(stdin);
    writing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_long_ends_the_connection() {
    let (mut client, session, _stdin) = pair("v4.channel.k8s.io").await;
    let sent = client.send(Message::Binary(vec![0; MAX_MESSAGE + 1].into())).await;
    session.closed().cancelled().await;
    drop(sent);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_carries_bytes_whatever_the_messages() {
    let (near, far) = tokio::io::duplex(4096);
    let mut pipe = tunnel(far, CancellationToken::new()).await;
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    for part in [&b"a"[..], b"", b"bcd"] {
        client.send(binary(part)).await.unwrap();
    }
    let mut read = [0; 4];
    pipe.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"abcd");
    pipe.write_all(b"answer").await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), binary(b"answer"));
    pipe.shutdown().await.unwrap();
    assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(_)));
    while client.next().await.is_some_and(|message| message.is_ok()) {}
    drop(client);
    assert_eq!(pipe.read(&mut read).await.unwrap(), 0);
}
