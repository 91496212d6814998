//! R7: every fault of a registry, at every thing that is fetched: the right image or a clean error.

use super::*;

/// Deadlines short enough to wait for.
fn hasty() -> Client {
    let mut config = config();
    let short = Duration::from_millis(400);
    config.limits.header_timeout = short;
    config.limits.document_timeout = short;
    config.limits.progress_timeout = short;
    config.limits.retries = 3;
    Client::new(config)
}

const TARGETS: [&str; 5] = ["token", "index", "manifest", "config", "layer"];

/// Pulls an image behind a token service and an index, with these answers where the target is asked for.
async fn check(target: &str, replies: Vec<Reply>, expected: Result<(), &str>) {
    let server = Server::start().await;
    let image = put_image(&server, noise(200_000));
    put_index(&server, &image);
    server.want(Auth::Bearer { realm: format!("{}/token", server.url()) });
    let (path, shown) = match target {
        "token" => ("/token".to_owned(), "$R/token"),
        "index" => ("manifests/latest".to_owned(), "manifests/latest"),
        "manifest" => (image.manifest_digest.to_string(), "manifests/$MANIFEST"),
        "config" => (image.config_digest.to_string(), "blobs/$CONFIG"),
        _ => (image.layer_digest.to_string(), "blobs/$LAYER"),
    };
    server.queue(&path, replies);
    let found = pull(&hasty(), &format!("{}/img", server.registry())).await;
    let expected = expected.map_err(|text| text.replace("$PATH", shown));
    check_pulled(&server, &image, found, expected.as_ref().copied().map_err(String::as_str));
}

fn stall(bytes: Bytes) -> Body {
    let half = bytes.len() / 2;
    Body::Stall(bytes, half)
}

fn cut(bytes: Bytes) -> Body {
    let half = bytes.len() / 2;
    Body::Cut(bytes, half)
}

/// Checks many cases at once, for each waits for its deadlines.
async fn check_all(cases: Vec<(&'static str, Vec<Reply>, Result<(), &'static str>)>) {
    let mut checks = tokio::task::JoinSet::new();
    for (target, replies, expected) in cases {
        checks.spawn(check(target, replies, expected));
    }
    // A failed check panics here again, with the name of this test.
    checks.join_all().await;
}

#[tokio::test]
async fn what_time_heals_is_tried_again() {
    let mut cases = Vec::new();
    for target in TARGETS {
        for fault in [
            Reply::Hangup,
            Reply::Silence,
            Reply::Good(cut),
            Reply::Good(stall),
            Reply::Good(|bytes| Body::Drip(bytes, Duration::from_millis(50))),
            Reply::status(429).with("Retry-After", "0"),
            Reply::status(429).with("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT"),
            Reply::status(408),
            Reply::status(500),
            Reply::status(502),
            Reply::status(503),
        ] {
            // The token service is asked anew by the next round of the document that needs it.
            cases.push((target, vec![fault], Ok(())));
        }
        let burst = vec![Reply::status(503), Reply::Hangup, Reply::status(500)];
        cases.push((target, burst, Ok(())));
    }
    check_all(cases).await;
}

#[tokio::test]
async fn a_fault_without_end_becomes_an_error_that_names_the_request() {
    for target in TARGETS {
        for (fault, expected) in [
            (Reply::Hangup, "$PATH: ...connection"),
            (Reply::status(500), "$PATH: 500 Internal Server Error"),
            (
                Reply::json(503, r#"{"errors":[{"code":"DOWN","message":"maintenance"}]}"#),
                "$PATH: 503 Service Unavailable: DOWN: maintenance",
            ),
        ] {
            check(target, vec![fault; 50], Err(expected)).await;
        }
    }
}

#[tokio::test]
async fn silence_without_end_meets_the_deadline() {
    let expected = "$PATH: no answer within 0.4 s (limits.header_timeout)";
    let silence = || vec![Reply::Silence; 50];
    check_all(TARGETS.map(|target| (target, silence(), Err(expected))).to_vec()).await;
}

#[tokio::test]
async fn a_body_that_stalls_without_end_meets_the_deadline() {
    let still = |bytes: Bytes| Body::Stall(bytes, 0);
    // A byte now and then is no progress.
    let drip = |bytes: Bytes| Body::Drip(bytes, Duration::from_millis(100));
    check_all(vec![
        (
            "config",
            vec![Reply::Good(still); 50],
            Err("$PATH: the body did not come within 0.4 s (limits.document_timeout)"),
        ),
        (
            "layer",
            vec![Reply::Good(still); 50],
            Err(
                "$PATH: stalled: 0 bytes in 0.4 s (limits.progress_timeout, limits.progress_bytes)",
            ),
        ),
        ("layer", vec![Reply::Good(drip); 50], Err("$PATH: stalled: ...bytes in 0.4 s")),
    ])
    .await;
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_told_and_not_tried_again() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let words = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
    server.queue("latest", vec![Reply::json(429, words).with("Retry-After", "3600"); 10]);
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    assert!(matches!(found, Err(Error::Unavailable { .. })));
    let expected = "429 Too Many Requests: TOOMANYREQUESTS: You have reached your pull rate limit.; it asks for a pause of 3600 s";
    check_pulled(&server, &image, found, Err(expected));
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn what_is_wrong_is_not_tried_again() {
    let flip = |_: &mut Vec<(String, String)>, bytes: &mut Bytes| {
        let mut changed = bytes.to_vec();
        changed[0] ^= 1;
        *bytes = Bytes::from(changed);
    };
    let longer = |_: &mut Vec<(String, String)>, bytes: &mut Bytes| {
        *bytes = Bytes::from([bytes, &b" "[..]].concat());
    };
    for (target, wrong_digest, wrong_length) in [
        (
            "index",
            "manifests/latest: came with the digest",
            "manifests/latest: came with the digest",
        ),
        (
            "manifest",
            "$PATH: came with the digest ... instead of $MANIFEST",
            "$PATH: came with a size of ... bytes instead of",
        ),
        (
            "config",
            "$PATH: came with the digest ... instead of $CONFIG",
            "$PATH: came with a size of ... bytes instead of",
        ),
        (
            "layer",
            "layer $LAYER: wrong digest",
            "$PATH: came with a size of 200001 bytes instead of 200000",
        ),
    ] {
        check(target, vec![Reply::Changed(flip); 2], Err(wrong_digest)).await;
        check(target, vec![Reply::Changed(longer)], Err(wrong_length)).await;
    }
}

#[tokio::test]
async fn a_layer_with_bytes_too_many_or_too_few_is_refused() {
    let more = |bytes: Bytes| Body::Chunked(Bytes::from([&bytes, &b"x"[..]].concat()));
    let expected = "sends more than the 200000 bytes of its descriptor";
    check("layer", vec![Reply::Good(more)], Err(expected)).await;
    let fewer = |bytes: Bytes| Body::Whole(bytes.slice(1..));
    check(
        "layer",
        vec![Reply::Good(fewer)],
        Err("came with a size of 199999 bytes instead of 200000"),
    )
    .await;
    // Without a length the end may be a break, so what is missing is asked for.
    let fewer = |bytes: Bytes| Body::Chunked(bytes.slice(..bytes.len() - 1));
    check("layer", vec![Reply::Good(fewer)], Ok(())).await;
    check(
        "layer",
        vec![Reply::Good(|bytes| Body::Lie(bytes, 1 << 62))],
        Err("came with a size of 4611686018427387904 bytes"),
    )
    .await;
}

#[tokio::test]
async fn an_answer_that_is_none_is_refused() {
    for (raw, expected) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", "$PATH: invalid HTTP version parsed"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "$PATH: invalid content-length parsed"),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
            "came with the encoding \"gzip\"",
        ),
    ] {
        check("manifest", vec![Reply::Raw(raw.as_bytes().to_vec())], Err(expected)).await;
        check("layer", vec![Reply::Raw(raw.as_bytes().to_vec())], Err(expected)).await;
    }
}

/// After a break, what is left is asked for and what came is not.
#[tokio::test]
async fn a_broken_layer_goes_on_where_it_broke() {
    let server = Server::start().await;
    let image = put_image(&server, noise(200_000));
    let layer = image.layer_digest.to_string();
    server.queue(&layer, vec![Reply::Good(cut), Reply::Good(cut)]);
    check_pulled(
        &server,
        &image,
        pull(&client(), &format!("{}/img", server.registry())).await,
        Ok(()),
    );
    let blobs: Vec<String> =
        server.log().into_iter().filter(|line| line.contains(&layer)).collect();
    let get = format!("GET /v2/img/blobs/{layer}");
    let expected = ["", " bytes=100000-199999", " bytes=150000-199999"];
    assert_eq!(blobs, expected.map(|range| format!("{get}{range}")));
}

/// A layer that breaks again and again, but gets on, is never given up.
#[tokio::test]
async fn progress_is_worth_another_try() {
    let server = Server::start().await;
    let image = put_image(&server, noise(500_000));
    let layer = image.layer_digest.to_string();
    server.queue(
        &layer,
        vec![
            Reply::Good(|bytes| {
                let most = bytes.len().min(20_000);
                Body::Cut(bytes, most)
            });
            39
        ],
    );
    check_pulled(
        &server,
        &image,
        pull(&client(), &format!("{}/img", server.registry())).await,
        Ok(()),
    );
}

/// Ranges that are ignored are skipped; ranges that are wrong are refused.
#[tokio::test]
async fn a_resumed_layer_is_put_together_rightly() {
    let range = |range: &str| Reply::Answer {
        status: 206,
        headers: vec![("Content-Range".to_owned(), range.to_owned())],
        body: Body::Whole(noise(100_000)),
    };
    for second in [Reply::WithoutRange, Reply::status(416)] {
        check("layer", vec![Reply::Good(cut), second], Ok(())).await;
    }
    for (second, problem) in [
        (
            range("bytes 0-99999/200000"),
            "asked for the bytes 100000-199999/200000 and came with Content-Range \"bytes 0-99999/200000\"",
        ),
        (
            range("bytes 100000-199999/999999"),
            "came with Content-Range \"bytes 100000-199999/999999\"",
        ),
        (range("nonsense"), "came with Content-Range \"nonsense\""),
        (
            Reply::Answer { status: 206, headers: Vec::new(), body: Body::Whole(noise(100_000)) },
            "came with Content-Range \"\"",
        ),
    ] {
        // Once it is asked for all of the blob; if even then another range comes, it is no registry.
        check("layer", vec![Reply::Good(cut), second.clone()], Ok(())).await;
        check("layer", vec![Reply::Good(cut), second.clone(), second], Err(problem)).await;
    }
    // A host may send less of a range than it was asked for.
    let server = Server::start().await;
    let image = put_image(&server, noise(200_000));
    let some = Reply::Answer {
        status: 206,
        headers: vec![("Content-Range".to_owned(), "bytes 100000-149999/200000".to_owned())],
        body: Body::Whole(image.layer.slice(100_000..150_000)),
    };
    server.queue(&image.layer_digest.to_string(), vec![Reply::Good(cut), some]);
    check_pulled(
        &server,
        &image,
        pull(&client(), &format!("{}/img", server.registry())).await,
        Ok(()),
    );
}

/// A break in one part of several hurts no other part.
#[tokio::test]
async fn parts_are_resumed_each_for_itself() {
    let server = Server::start().await;
    let image = put_image(&server, noise(3 * PART + 9));
    let layer = image.layer_digest.to_string();
    server.queue(
        &layer,
        vec![
            Reply::Good(cut),
            Reply::Hangup,
            Reply::Good(cut),
            Reply::status(500),
            Reply::WithoutRange,
        ],
    );
    check_pulled(
        &server,
        &image,
        pull(&client(), &format!("{}/img", server.registry())).await,
        Ok(()),
    );
}

#[tokio::test]
async fn a_registry_that_restarts_is_waited_for() {
    let server = Server::start().await;
    let image = put_image(&server, noise(200_000));
    let dir = tempfile::tempdir().unwrap();
    // The second host is down for good: its refusals are what the pauses are for.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!("server = \"http://{closed}\"\n[host.\"{}\"]\n", server.url());
    mirrors::write_hosts(dir.path(), "r.io", &text);
    let client = Client::new(Config { hosts_dirs: vec![dir.path().to_owned()], ..config() });
    let layer = image.layer_digest.to_string();
    server.queue(&layer, vec![Reply::Good(cut), Reply::status(404), Reply::Hangup]);
    check_pulled(&server, &image, pull(&client, "r.io/img").await, Ok(()));
}

#[tokio::test]
async fn nobody_at_the_port_is_said_at_once() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = pull(&client(), &format!("{closed}/img")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }));
    let text = text_of(&error).replace(&closed.to_string(), "$R");
    assert_eq!(
        text,
        "image $R/img:latest: GET http://$R/v2/img/manifests/latest: tcp connect error: Connection refused (os error 111)"
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_transfer() {
    let server = Server::start().await;
    let image = put_image(&server, noise(3 * PART));
    let session =
        session(&client(), &format!("{}/img", server.registry()), &Credentials::anonymous())
            .await
            .unwrap();
    let resolved = session.resolve(&amd64(), &Known::nothing()).await.unwrap();
    let pull = Arc::downgrade(&session.pull);
    let reader = session.layer(&resolved.manifest.layers[0].descriptor, Arc::default());
    drop(session);
    assert!(pull.upgrade().is_some());
    drop(reader);
    // Its tasks hold the pull; when they are gone, so is it.
    tokio::time::timeout(Duration::from_secs(10), async {
        while pull.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    drop(image);
}
