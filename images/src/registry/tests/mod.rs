//! Pulls from a registry of ours that misbehaves on purpose.
//!
//! What a good registry does is tested against a real one in e2e; here is what a real one
//! cannot be made to do. Names such as F-02 and R7 are those of the catalogue of threats.

mod auth;
mod faults;
mod limits;
mod mirrors;
mod proxy;
mod redirects;
pub(crate) mod server;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use server::{Auth, Body, Reply, Server};

use super::*;
use crate::digest::HashingReader;
use crate::oci::{Descriptor, MediaType, Platform};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Parts of blobs: short, so that a blob of several is quickly made.
const PART: usize = 256 << 10;

/// An image that a server has.
struct Image {
    layer: Bytes,
    layer_digest: Digest,
    config_digest: Digest,
    manifest: Bytes,
    manifest_digest: Digest,
}

/// Bytes that differ everywhere, so that a wrong order shows.
fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}

fn descriptor(media_type: &str, digest: Digest, size: usize) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

/// Puts an image `img:latest` of one layer on a server.
fn put_image(server: &Server, layer: Bytes) -> Image {
    let layer_digest = server.put("img/blobs/layer", LAYER, layer.clone());
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{layer_digest}"]}}}}"#
    );
    let config_digest = server.put("img/blobs/config", CONFIG, config.clone());
    let manifest = Bytes::from(format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
        descriptor(CONFIG, config_digest, config.len()),
        descriptor(LAYER, layer_digest, layer.len()),
    ));
    let manifest_digest = server.put("img/manifests/latest", MANIFEST, manifest.clone());
    Image { layer, layer_digest, config_digest, manifest, manifest_digest }
}

/// Puts the image behind an index, which becomes `img:latest`.
fn put_index(server: &Server, image: &Image) -> Digest {
    let entry = descriptor(MANIFEST, image.manifest_digest, image.manifest.len());
    let platform = r#","platform":{"os":"linux","architecture":"amd64"}}"#;
    let entry = format!("{}{platform}", entry.trim_end_matches('}'));
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{entry}]}}"#);
    server.put("img/manifests/latest", INDEX, index)
}

/// A configuration for tests: no files of the machine, no proxy, short pauses.
fn config() -> Config {
    let limits = Limits {
        retry_pause: Duration::from_millis(1),
        part_bytes: crate::limits::Bytes(PART as u64),
        ..Limits::default()
    };
    Config {
        hosts_dirs: Vec::new(),
        proxy: ProxySettings::default(),
        ranges: 3,
        local_ranges: 3,
        limits,
    }
}

fn client() -> Client {
    Client::new(config())
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

async fn session(client: &Client, reference: &str, credentials: &Credentials) -> Result<Session> {
    client.session(&reference.parse()?, credentials).await
}

/// Reads a layer the way a store does: on a thread that may block, hashing as it reads,
/// and once more from another host if the digest is not right.
async fn read_layer(session: &Session, layer: &Descriptor) -> Result<Vec<u8>> {
    loop {
        let received = Arc::new(AtomicU64::new(0));
        let reader = session.layer(layer, Arc::clone(&received));
        let read = tokio::task::spawn_blocking(move || {
            let mut reader = HashingReader::new(reader);
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes)
                .map_err(|error| from_io(error, || "read".to_owned()))?;
            let digest = reader.hasher.clone().finish();
            Ok::<_, Error>((bytes, digest, reader.into_inner()))
        });
        let (bytes, digest, reader) = read.await.unwrap()?;
        assert_eq!(received.load(Ordering::Relaxed), bytes.len() as u64);
        if digest == layer.digest {
            return Ok(bytes);
        }
        if !reader.distrust() {
            return Err(Error::invalid(format!("layer {}", layer.digest), "wrong digest"));
        }
    }
}

async fn pull_with(client: &Client, reference: &str, credentials: &Credentials) -> Result<Vec<u8>> {
    let session = session(client, reference, credentials).await?;
    let resolved = session.resolve(&amd64(), &Known::nothing()).await?;
    let mut all = Vec::new();
    for layer in &resolved.manifest.layers {
        all.extend(read_layer(&session, &layer.descriptor).await?);
    }
    Ok(all)
}

async fn pull(client: &Client, reference: &str) -> Result<Vec<u8>> {
    pull_with(client, reference, &Credentials::anonymous()).await
}

/// The text of an error with all its sources.
fn text_of(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Expects the layer, or an error that begins and ends as said; `$R` stands for the server.
#[track_caller]
fn check_pulled(
    server: &Server,
    image: &Image,
    found: Result<Vec<u8>>,
    expected: Result<(), &str>,
) {
    match (found, expected) {
        (Ok(bytes), Ok(())) => assert!(bytes == image.layer, "the layer is not what was put"),
        (Ok(_), Err(expected)) => panic!("pulled, and expected {expected}"),
        (Err(error), Ok(())) => panic!("expected an image and got: {}", text_of(&error)),
        (Err(error), Err(expected)) => {
            let text = text_of(&error)
                .replace(&server.registry(), "$R")
                .replace(&format!("localhost:{}", server.address.port()), "$R")
                .replace(&image.layer_digest.to_string(), "$LAYER")
                .replace(&image.config_digest.to_string(), "$CONFIG")
                .replace(&image.manifest_digest.to_string(), "$MANIFEST");
            let mut rest = text.as_str();
            for part in expected.split("...") {
                let at = rest.find(part).unwrap_or_else(|| panic!("no {part:?} in:\n{text}"));
                rest = &rest[at + part.len()..];
            }
            assert!(text.len() < 2000, "{} bytes of text", text.len());
        }
    }
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let server = Server::start().await;
    let image = put_image(&server, noise(300_000));
    let client = client();
    for reference in [
        format!("{}/img", server.registry()),
        format!("{}/img:latest", server.registry()),
        format!("{}/img@{}", server.registry(), image.manifest_digest),
        format!("{}/img:other@{}", server.registry(), image.manifest_digest),
    ] {
        check_pulled(&server, &image, pull(&client, &reference).await, Ok(()));
    }
    let agent = server.seen()[0].header("user-agent").unwrap().to_owned();
    assert!(agent.starts_with("berth/"), "{agent}");
}

#[tokio::test]
async fn an_index_leads_to_the_platform_of_the_machine() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let digest = put_index(&server, &image);
    let reference = format!("{}/img", server.registry());
    let session = session(&client(), &reference, &Credentials::anonymous()).await.unwrap();
    let resolved = session.resolve(&amd64(), &Known::nothing()).await.unwrap();
    assert_eq!(resolved.digest, digest);
    assert_eq!(resolved.indexes.len(), 1);
    assert_eq!(resolved.manifest_doc.bytes, image.manifest);
    assert_eq!(resolved.manifest_doc.media_type, MANIFEST);
    assert_eq!(resolved.config_doc.digest, image.config_digest);
    let other = session.resolve(&"linux/s390x".parse().unwrap(), &Known::nothing()).await;
    check_pulled(
        &server,
        &image,
        other.map(|_| Vec::new()),
        Err("image $R/img:latest for linux/s390x (there are: linux/amd64) does not exist"),
    );
}

#[tokio::test]
async fn an_image_without_layers_has_an_empty_one() {
    let server = Server::start().await;
    let image = put_image(&server, Bytes::new());
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Ok(()));
}

/// What is asked when the store has documents already.
#[tokio::test]
async fn what_is_stored_is_asked_for_by_head_only() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let digest = put_index(&server, &image);
    let reference = format!("{}/img", server.registry());
    let client = client();
    let first = session(&client, &reference, &Credentials::anonymous()).await.unwrap();
    let first = first.resolve(&amd64(), &Known::nothing()).await.unwrap();
    let documents: Vec<RawDoc> =
        first.indexes.iter().chain([&first.manifest_doc, &first.config_doc]).cloned().collect();
    let stored = move |digest: &Digest| {
        documents.iter().find(|document| document.digest == *digest).map(|d| d.bytes.clone())
    };
    let known = Known { stored: &stored, last: Some(digest) };
    for (reference, expected) in [
        (reference.clone(), "HEAD /v2/img/manifests/latest".to_owned()),
        (format!("{}/img@{digest}", server.registry()), format!("HEAD /v2/img/manifests/{digest}")),
    ] {
        let before = server.log().len();
        let session = session(&client, &reference, &Credentials::anonymous()).await.unwrap();
        let again = session.resolve(&amd64(), &known).await.unwrap();
        assert_eq!(again.digest, first.digest);
        assert_eq!(again.manifest, first.manifest);
        assert_eq!(server.log()[before..], [expected]);
    }
    // The tag moves: HEAD says so, and only the new documents are fetched.
    server.put("img/manifests/latest", MANIFEST, image.manifest.clone());
    let before = server.log().len();
    let session = session(&client, &reference, &Credentials::anonymous()).await.unwrap();
    let moved = session.resolve(&amd64(), &known).await.unwrap();
    assert_eq!(moved.digest, image.manifest_digest);
    assert_eq!(
        server.log()[before..],
        ["HEAD /v2/img/manifests/latest", "GET /v2/img/manifests/latest"]
    );
}

#[tokio::test]
async fn stored_bytes_that_are_damaged_are_fetched_again() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let reference = format!("{}/img", server.registry());
    let session = session(&client(), &reference, &Credentials::anonymous()).await.unwrap();
    let damaged = |_: &Digest| Some(Bytes::from_static(b"{}"));
    let known = Known { stored: &damaged, last: Some(image.manifest_digest) };
    let found = session.resolve(&amd64(), &known).await.unwrap();
    assert_eq!(found.config_doc.digest, image.config_digest);
}

/// A blob of several parts comes by ranges, each once, and in order.
#[tokio::test]
async fn a_large_blob_comes_in_parts() {
    let server = Server::start().await;
    let image = put_image(&server, noise(3 * PART + 5));
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Ok(()));
    let mut ranges: Vec<String> = server
        .log()
        .iter()
        .filter_map(|line| line.split("bytes=").nth(1))
        .map(str::to_owned)
        .collect();
    ranges.sort_by_key(|range| range.split('-').next().unwrap().parse::<u64>().unwrap());
    let edge = |count: usize| count * PART;
    let expected = [(0, edge(1)), (edge(1), edge(2)), (edge(2), edge(3)), (edge(3), edge(3) + 5)];
    assert_eq!(ranges, expected.map(|(start, end)| format!("{start}-{}", end - 1)));
}

/// A registry on this machine has one connection for a blob unless it is told otherwise.
#[tokio::test]
async fn a_local_registry_sends_a_large_blob_whole() {
    let server = Server::start().await;
    let image = put_image(&server, noise(3 * PART));
    let client = Client::new(Config { local_ranges: 1, ..config() });
    check_pulled(
        &server,
        &image,
        pull(&client, &format!("{}/img", server.registry())).await,
        Ok(()),
    );
    assert!(!server.log().iter().any(|line| line.contains("bytes=")));
}

/// With no memory to read ahead the parts come one by one, and still all come.
#[tokio::test]
async fn parts_need_no_memory_ahead() {
    let server = Server::start().await;
    let image = put_image(&server, noise(3 * PART));
    let mut config = config();
    config.limits.read_ahead_bytes = crate::limits::Bytes(1);
    let found = pull(&Client::new(config), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Ok(()));
}

/// A host that knows no ranges sends the whole blob in one answer.
#[tokio::test]
async fn a_large_blob_comes_whole_where_ranges_are_unknown() {
    let server = Server::start().await;
    let image = put_image(&server, noise(2 * PART));
    server.queue("blobs/sha256:", [Reply::Good(Body::Whole), Reply::WithoutRange]);
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Ok(()));
    let blobs =
        server.log().iter().filter(|line| line.contains(&image.layer_digest.to_string())).count();
    assert_eq!(blobs, 1);
}

/// Four layers at once, whose readers take turns, end all.
#[tokio::test]
async fn layers_side_by_side_do_not_starve_each_other() {
    let server = Server::start().await;
    let layers: Vec<Bytes> = (0..4).map(|n| noise(3 * PART + n)).collect();
    let digests: Vec<Digest> =
        layers.iter().map(|layer| server.put("img/blobs/layer", LAYER, layer.clone())).collect();
    let session =
        session(&client(), &format!("{}/img", server.registry()), &Credentials::anonymous())
            .await
            .unwrap();
    let mut readers: Vec<(BlobReader, Vec<u8>)> = digests
        .iter()
        .zip(&layers)
        .map(|(digest, layer)| {
            let descriptor = Descriptor {
                media_type: MediaType::ImageLayerGzip,
                digest: *digest,
                size: layer.len() as u64,
                platform: None,
                annotations: std::collections::BTreeMap::new(),
            };
            (session.layer(&descriptor, Arc::default()), Vec::new())
        })
        .collect();
    let read = tokio::task::spawn_blocking(move || {
        // The last layer is read to its end first: it must not wait for the others.
        for (reader, bytes) in readers.iter_mut().rev() {
            std::io::Read::read_to_end(reader, bytes).unwrap();
        }
        readers.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>()
    });
    let read = read.await.unwrap();
    assert!(read.iter().zip(&layers).all(|(read, layer)| read == layer));
}

#[tokio::test]
async fn an_explanation_names_hosts_in_order_with_what_they_see() {
    let server = Server::start().await;
    put_image(&server, noise(10));
    let dir = tempfile::tempdir().unwrap();
    let file = mirrors::write_hosts(
        dir.path(),
        "r.io",
        &format!(
            "[host.\"https://m.io\"]\ncapabilities=[\"pull\"]\n[host.\"{}\"]\nskip_verify=true\n",
            server.url()
        ),
    );
    let mut config = config();
    config.hosts_dirs = vec![dir.path().to_owned()];
    config.proxy.https = "http://user:hunter2@proxy:3128".to_owned();
    let credentials = Credentials::basic("me", "hunter2");
    let explained = Client::new(config)
        .explain(&"r.io/img".parse().unwrap(), &credentials, false)
        .await
        .unwrap();
    assert_eq!(explained.source, Some(PathBuf::from(file)));
    assert_eq!(explained.notes.len(), 1);
    let line = |host: &HostLine| {
        format!(
            "{} {:?} {} {:?} {:?}",
            host.url.replace(&server.registry(), "$R"),
            host.capabilities,
            host.credential,
            host.tls,
            host.proxy
        )
    };
    assert_eq!(
        explained.hosts.iter().map(line).collect::<Vec<_>>(),
        [
            "https://m.io/v2/img/manifests/latest?ns=r.io [\"pull\"] no credentials [] Some(\"http://proxy:3128/\")",
            "http://$R/v2/img/manifests/latest?ns=r.io [\"pull\", \"resolve\"] no credentials [\"skip_verify\"] None",
            "https://r.io/v2/img/manifests/latest [\"pull\", \"resolve\"] the password of user \"me\" [] Some(\"http://proxy:3128/\")",
        ]
    );
}

/// An IPv6 address of a registry is no plain text in a query.
#[tokio::test]
async fn a_mirror_is_told_of_every_kind_of_registry() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let dir = tempfile::tempdir().unwrap();
    for (registry, expected) in
        [("[::1]:5000", "?ns=%5B::1%5D:5000"), ("r.io:5000", "?ns=r.io:5000")]
    {
        mirrors::write_hosts(dir.path(), registry, &format!("server = \"{}\"", server.url()));
        let client = Client::new(Config { hosts_dirs: vec![dir.path().to_owned()], ..config() });
        let found = pull(&client, &format!("{registry}/img")).await;
        check_pulled(&server, &image, found, Ok(()));
        assert!(server.log().last().unwrap().ends_with(expected), "{:?}", server.log());
    }
}

proptest::proptest! {
    /// Whatever a registry or a file says, reading it ends without a panic.
    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC*", bytes: Vec<u8>, mixed in "[A-Za-z]+ ([a-z]+=(\"[^\"]*\"|[a-z]*),? ?)*") {
        for text in [&text, &mixed, &String::from_utf8_lossy(&bytes).into_owned()] {
            let mut headers = http::HeaderMap::new();
            if let Ok(value) = http::HeaderValue::from_str(text) {
                headers.insert(http::header::WWW_AUTHENTICATE, value.clone());
                headers.insert(http::header::RETRY_AFTER, value);
            }
            if let Ok(challenge::Challenge::Bearer { realm, .. }) = challenge::pick(&headers) {
                assert!(!realm.is_empty());
            }
            let now = std::time::SystemTime::now();
            assert!(retry::asked(&headers, now).is_none_or(|pause| pause >= Duration::ZERO));
            if let Ok(uri) = url::follow(&"https://r.io/v2/x".parse().unwrap(), text.as_bytes()) {
                assert!(url::Origin::of(&uri).is_some());
            }
            if let Ok(base) = url::Base::parse(text, false) {
                assert!(base.join("img/manifests/latest").host().is_some());
            }
            let limits = Limits::default();
            let errors = [
                hosts_file::parse(text, std::path::Path::new("/d/hosts.toml"), &limits).err(),
                docker_config::lookup(text.as_bytes(), &"r.io/x".parse().unwrap()).err(),
                crate::oci::Document::parse(text.as_bytes(), Some(text), "x", &limits).err(),
            ];
            assert!(errors.into_iter().flatten().all(|error| text_of(&error).len() < 2000));
            assert!(failure::words(http::StatusCode::BAD_REQUEST, text.as_bytes()).len() < 8000);
        }
    }
}

#[tokio::test]
async fn an_explanation_can_ask_the_hosts() {
    let server = Server::start().await;
    put_image(&server, noise(10));
    for (tag, expected) in [("latest", "200 OK"), ("none", "404 Not Found")] {
        let reference = format!("{}/img:{tag}", server.registry()).parse().unwrap();
        let explained =
            client().explain(&reference, &Credentials::anonymous(), true).await.unwrap();
        assert_eq!(explained.hosts[0].answer.as_deref(), Some(expected));
        assert!(explained.hosts[0].is_upstream && explained.source.is_none());
    }
}
