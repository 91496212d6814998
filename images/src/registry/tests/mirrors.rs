//! Mirrors: their order, what makes the next one be asked, and what an error tells of them.

use std::path::Path;

use super::*;

/// Writes a hosts.toml and returns its path.
pub(super) fn write_hosts(dir: &Path, registry: &str, text: &str) -> String {
    let dir = dir.join(registry);
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("hosts.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A mirror and the registry `r.io` itself, which is elsewhere by `server`.
struct Pair {
    mirror: Server,
    upstream: Server,
    image: Image,
    client: Client,
    _dir: tempfile::TempDir,
}

async fn pair(more: &str) -> Pair {
    let (mirror, upstream) = (Server::start().await, Server::start().await);
    let image = put_image(&upstream, noise(1000));
    put_image(&mirror, image.layer.clone());
    let dir = tempfile::tempdir().unwrap();
    let text = format!("server = \"{}\"\n[host.\"{}\"]\n{more}", upstream.url(), mirror.url());
    write_hosts(dir.path(), "r.io", &text);
    let client = Client::new(Config { hosts_dirs: vec![dir.path().to_owned()], ..config() });
    Pair { mirror, upstream, image, client, _dir: dir }
}

#[tokio::test]
async fn a_mirror_serves_all_and_is_told_for_whom() {
    let pair = pair("").await;
    check_pulled(&pair.upstream, &pair.image, pull(&pair.client, "r.io/img").await, Ok(()));
    assert!(pair.upstream.log().is_empty());
    assert_eq!(pair.mirror.log().len(), 3);
    assert!(pair.mirror.seen().iter().all(|seen| seen.path.ends_with("?ns=r.io")));
}

#[tokio::test]
async fn whatever_a_mirror_lacks_comes_from_the_registry() {
    for reply in [
        Reply::status(404),
        Reply::status(401),
        Reply::status(403),
        Reply::status(500),
        Reply::status(400),
        Reply::status(429).with("Retry-After", "100000"),
        Reply::Hangup,
        Reply::Raw(b"garbage\r\n\r\n".to_vec()),
        Reply::redirect(302, "http://169.254.169.254/"),
        Reply::Changed(|_, bytes| *bytes = Bytes::from_static(b"{}")),
    ] {
        let pair = pair("").await;
        pair.mirror.queue("/", vec![reply; 20]);
        check_pulled(&pair.upstream, &pair.image, pull(&pair.client, "r.io/img").await, Ok(()));
    }
}

#[tokio::test]
async fn a_mirror_that_is_down_is_asked_once() {
    let pair = pair("").await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!("server = \"{}\"\n[host.\"http://{closed}\"]\n", pair.upstream.url());
    write_hosts(pair._dir.path(), "r.io", &text);
    check_pulled(&pair.upstream, &pair.image, pull(&pair.client, "r.io/img").await, Ok(()));
    let missing = pull(&pair.client, "r.io/img:none").await;
    let expected = "image r.io/img:none (asked 2 hosts: GET http://127...: tcp connect error: Connection refused...; GET http://$R/v2/img/manifests/none: 404 Not Found: MANIFEST_UNKNOWN: manifest unknown) does not exist";
    check_pulled(&pair.upstream, &pair.image, missing, Err(expected));
}

#[tokio::test]
async fn a_mirror_that_may_not_resolve_serves_digests_only() {
    let pair = pair("capabilities = [\"pull\"]").await;
    check_pulled(&pair.upstream, &pair.image, pull(&pair.client, "r.io/img").await, Ok(()));
    assert_eq!(pair.upstream.log(), ["GET /v2/img/manifests/latest?ns=r.io"]);
    assert_eq!(pair.mirror.log().len(), 2);
    let by_digest = format!("r.io/img@{}", pair.image.manifest_digest);
    check_pulled(&pair.upstream, &pair.image, pull(&pair.client, &by_digest).await, Ok(()));
    assert_eq!(pair.upstream.log().len(), 1);
}

#[tokio::test]
async fn a_mirror_sees_its_own_headers_and_no_credentials() {
    let pair = pair("[host.\"$\".header]\nx-key = \"mine\"\nAuthorization = \"Basic bWU6\"").await;
    let text = std::fs::read_to_string(pair._dir.path().join("r.io/hosts.toml")).unwrap();
    write_hosts(pair._dir.path(), "r.io", &text.replace('$', &pair.mirror.url()));
    pair.mirror.want(Auth::Basic("Basic bWU6".to_owned()));
    let credentials = Credentials::basic("u", "p");
    let found = pull_with(&pair.client, "r.io/img", &credentials).await;
    check_pulled(&pair.upstream, &pair.image, found, Ok(()));
    assert_eq!(pair.mirror.seen().len(), 3);
    for seen in pair.mirror.seen() {
        assert_eq!(seen.header("x-key"), Some("mine"));
        assert_eq!(seen.header("authorization"), Some("Basic bWU6"));
    }
    // The registry sees the user, and not the mirror's headers.
    pair.mirror.queue("/", vec![Reply::status(404); 10]);
    pair.upstream.want(Auth::Basic("Basic dTpw".to_owned()));
    let found = pull_with(&pair.client, "r.io/img", &credentials).await;
    check_pulled(&pair.upstream, &pair.image, found, Ok(()));
    assert!(pair.upstream.seen().iter().all(|seen| seen.header("x-key").is_none()));
}

/// A mirror that damages a layer is found out by the digest, and the registry makes it good.
#[tokio::test]
async fn a_layer_with_the_wrong_digest_is_fetched_from_the_next_host() {
    let pair = pair("").await;
    let damage = Reply::Changed(|_, bytes| *bytes = Bytes::from(vec![7; bytes.len()]));
    pair.mirror.queue(&pair.image.layer_digest.to_string(), vec![damage; 10]);
    check_pulled(&pair.upstream, &pair.image, pull(&pair.client, "r.io/img").await, Ok(()));
    assert_eq!(pair.upstream.log().len(), 1);
}

/// A change of the file holds for the next pull, without a restart.
#[tokio::test]
async fn a_change_of_the_file_is_seen_by_the_next_pull() {
    let pair = pair("").await;
    check_pulled(&pair.upstream, &pair.image, pull(&pair.client, "r.io/img").await, Ok(()));
    let text = format!("server = \"{}\"", pair.upstream.url());
    write_hosts(pair._dir.path(), "r.io", &text);
    let before = pair.mirror.log().len();
    check_pulled(&pair.upstream, &pair.image, pull(&pair.client, "r.io/img").await, Ok(()));
    assert_eq!(pair.mirror.log().len(), before);
    write_hosts(pair._dir.path(), "r.io", "server = 1");
    let broken = pull(&pair.client, "r.io/img").await;
    check_pulled(&pair.upstream, &pair.image, broken, Err("hosts.toml: line 1: invalid type"));
}

/// A path of its own, for registries that have their API elsewhere.
#[tokio::test]
async fn the_path_of_a_host_is_kept() {
    let pair = pair("").await;
    for (path, override_path, expected) in [
        ("/cache", false, "/cache/v2/img/manifests/none?ns=r.io"),
        ("/v2/cache", true, "/v2/cache/img/manifests/none?ns=r.io"),
    ] {
        let text =
            format!("server = \"{}{path}\"\noverride_path = {override_path}", pair.upstream.url());
        write_hosts(pair._dir.path(), "r.io", &text);
        let before = pair.upstream.log().len();
        let found = pull(&pair.client, "r.io/img:none").await;
        check_pulled(&pair.upstream, &pair.image, found, Err("does not exist"));
        assert_eq!(pair.upstream.log()[before..], [format!("GET {expected}")]);
    }
}

#[tokio::test]
async fn no_host_that_may_pull_is_an_error_that_says_so() {
    let pair = pair("").await;
    let text = format!("server = \"{}\"\ncapabilities = [\"push\"]", pair.upstream.url());
    write_hosts(pair._dir.path(), "r.io", &text);
    let found = pull(&pair.client, "r.io/img").await;
    let expected = "image r.io/img:latest: no host may be asked for it; see the capabilities in its hosts.toml";
    check_pulled(&pair.upstream, &pair.image, found, Err(expected));
}
