//! F-05 to F-07: what is too long, could be two things at once, or only looks like a digest.

use super::*;

/// Small caps, so that a test need not send a gigabyte to pass one.
fn strict() -> Client {
    let mut config = config();
    config.limits.manifest_bytes = crate::limits::Bytes(2000);
    config.limits.config_bytes = crate::limits::Bytes(2000);
    config.limits.token_bytes = crate::limits::Bytes(2000);
    Client::new(config)
}

async fn check(path: &str, reply: Reply, expected: &str) {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    put_index(&server, &image);
    server.want(Auth::Bearer { realm: format!("{}/token", server.url()) });
    let path = path
        .replace("$CONFIG", &image.config_digest.to_string())
        .replace("$MANIFEST", &image.manifest_digest.to_string());
    server.queue(&path, [reply]);
    let found = pull(&strict(), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Err(expected));
}

/// F-05: bodies without end, and lengths that are lies.
#[tokio::test]
async fn no_document_is_read_past_its_cap() {
    for (path, limit) in [
        ("/token", "limits.token_bytes"),
        ("latest", "limits.manifest_bytes"),
        ("$MANIFEST", "limits.manifest_bytes"),
        ("$CONFIG", "limits.config_bytes"),
    ] {
        for body in [
            |_| Body::Endless,
            |bytes| Body::Lie(bytes, 1 << 30),
            |bytes| Body::Lie(bytes, 1 << 62),
            |_| Body::Whole(Bytes::from(vec![b' '; 2001])),
        ] {
            let expected =
                format!("the body of the answer is over the limit of 2000 bytes ({limit})");
            check(path, Reply::Good(body), &expected).await;
        }
    }
}

/// The body of a failure is read as far as its message needs.
#[tokio::test]
async fn an_endless_failure_is_cut() {
    let endless = |status| Reply::Answer { status, headers: Vec::new(), body: Body::Endless };
    check("latest", endless(404), "404 Not Found) does not exist").await;
    check("/token", endless(403), "access denied: GET http://$R/token: 403 Forbidden").await;
}

#[tokio::test]
async fn headers_have_a_cap() {
    let many = (0..10_000).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    let many = Reply::Answer { status: 200, headers: many, body: Body::Whole(Bytes::new()) };
    let expected = "the header of the answer is over the limit of 128 lines and 256 KiB (limits.header_count, limits.header_bytes)";
    check("latest", many, expected).await;
    let long = Reply::status(200).with("x", &"y".repeat(1 << 20));
    check("latest", long, expected).await;
}

/// F-06: one document, two readings.
#[tokio::test]
async fn a_document_of_two_kinds_is_refused() {
    let both = |_: &mut Vec<(String, String)>, bytes: &mut Bytes| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let both = text.replacen('{', r#"{"layers":[],"#, 1);
        *bytes = Bytes::from(both);
    };
    check("latest", Reply::Changed(both), "came with the digest").await;
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}}"#,
        descriptor(CONFIG, image.config_digest, 2)
    );
    server.put("img/manifests/latest", INDEX, index);
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(
        &server,
        &image,
        found,
        Err(
            "image $R/img:latest: has the fields of a manifest (config, layers) and of an index (manifests)",
        ),
    );
    server.put("img/manifests/latest", INDEX, image.manifest.clone());
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Err("has the shape of a manifest and came as"));
}

/// F-06: what the index calls a manifest must not come as an index.
#[tokio::test]
async fn an_entry_must_be_what_the_index_calls_it() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    put_index(&server, &image);
    server.put("img/manifests/other", INDEX, image.manifest.clone());
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(
        &server,
        &image,
        found,
        Err(
            "image $R/img:latest: $MANIFEST: came as application/vnd.oci.image.index.v1+json, and the index calls it application/vnd.oci.image.manifest.v1+json",
        ),
    );
}

/// F-06: indexes in indexes end somewhere. A circle cannot be made, for a digest cannot hold itself.
#[tokio::test]
async fn indexes_in_indexes_end() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    put_index(&server, &image);
    let wrap = |inner: &str| {
        let digest = server.put("img/manifests/inner", INDEX, inner.to_owned());
        let entry = descriptor(INDEX, digest, inner.len());
        format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#)
    };
    let entry = descriptor(MANIFEST, image.manifest_digest, image.manifest.len());
    let mut index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    for (depth, expected) in [
        (1, Ok(())),
        (2, Ok(())),
        (
            3,
            Err(
                "image $R/img:latest: indexes in indexes is over the limit of 2 (limits.index_depth)",
            ),
        ),
        (1000, Err("limits.index_depth")),
    ] {
        if depth == 1000 {
            for _ in 0..997 {
                index = wrap(&index);
            }
        }
        server.put("img/manifests/latest", INDEX, index.clone());
        let found = pull(&client(), &format!("{}/img", server.registry())).await;
        check_pulled(&server, &image, found, expected);
        index = wrap(&index);
    }
}

/// F-07: a digest in a header or document is parsed before anything is done with it.
#[tokio::test]
async fn what_is_no_digest_is_refused() {
    for digest in ["sha256:../../x", "sha256:12", "md5:00", ""] {
        let server = Server::start().await;
        let image = put_image(&server, noise(10));
        let answer = Reply::Answer {
            status: 200,
            headers: vec![("Docker-Content-Digest".to_owned(), digest.to_owned())],
            body: Body::Whole(image.manifest.clone()),
        };
        server.queue("latest", [answer]);
        let found = pull(&client(), &format!("{}/img", server.registry())).await;
        check_pulled(
            &server,
            &image,
            found,
            Err(&format!("latest: came with {digest:?} for its digest")),
        );
        let manifest = String::from_utf8(image.manifest.to_vec()).unwrap();
        server.put(
            "img/manifests/latest",
            MANIFEST,
            manifest.replace(&image.layer_digest.to_string(), digest),
        );
        let found = pull(&client(), &format!("{}/img", server.registry())).await;
        check_pulled(&server, &image, found, Err("image $R/img:latest: layers[0].digest: digest"));
        assert_eq!(server.log().len(), 2);
    }
}

/// A header with a digest of another algorithm says nothing.
#[tokio::test]
async fn a_digest_of_another_algorithm_is_passed_over() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let answer = Reply::Answer {
        status: 200,
        headers: vec![("Docker-Content-Digest".to_owned(), format!("sha512:{}", "0".repeat(128)))],
        body: Body::Whole(image.manifest.clone()),
    };
    server.queue("latest", [answer]);
    check_pulled(
        &server,
        &image,
        pull(&client(), &format!("{}/img", server.registry())).await,
        Ok(()),
    );
}

#[tokio::test]
async fn an_image_for_another_machine_is_refused() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let session =
        session(&client(), &format!("{}/img", server.registry()), &Credentials::anonymous())
            .await
            .unwrap();
    let found = session.resolve(&"linux/s390x".parse().unwrap(), &Known::nothing()).await;
    check_pulled(
        &server,
        &image,
        found.map(|_| Vec::new()),
        Err("image $R/img:latest: is for linux/amd64, and this machine is linux/s390x"),
    );
}

/// The size of a layer is refused before a byte of it is asked for.
#[tokio::test]
async fn a_layer_that_claims_too_much_is_not_asked_for() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let manifest = String::from_utf8(image.manifest.to_vec()).unwrap();
    server.put(
        "img/manifests/latest",
        MANIFEST,
        manifest.replace("\"size\":10}", "\"size\":99999999999999}"),
    );
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(
        &server,
        &image,
        found,
        Err("image $R/img:latest: layer $LAYER is over the limit of 64 GiB (limits.layer_bytes)"),
    );
    assert_eq!(server.log().len(), 1);
}
