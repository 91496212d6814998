//! Redirects: followed to blobs, never with what is meant for the registry.

use super::*;

/// A registry that sends blobs to another server.
async fn redirecting(status: u16) -> (Server, Server, Image) {
    let (server, store) = (Server::start().await, Server::start().await);
    let image = put_image(&server, noise(1000));
    put_image(&store, image.layer.clone());
    let layer = image.layer_digest;
    let location = format!("{}/v2/img/blobs/{layer}?signature=hunter2", store.url());
    server.queue(&layer.to_string(), vec![Reply::redirect(status, &location); 20]);
    (server, store, image)
}

/// F-02.
#[tokio::test]
async fn a_redirect_is_followed_without_credentials() {
    for status in [301, 302, 303, 307, 308] {
        let (server, store, image) = redirecting(status).await;
        server.want(Auth::Basic("Basic dTpw".to_owned()));
        let credentials = Credentials::basic("u", "p");
        let reference = format!("{}/img", server.registry());
        let found = pull_with(&client(), &reference, &credentials).await;
        check_pulled(&server, &image, found, Ok(()));
        assert!(server.seen().iter().any(|seen| seen.header("authorization").is_some()));
        assert_eq!(store.seen().len(), 1);
        assert!(store.seen().iter().all(|seen| seen.header("authorization").is_none()));
    }
}

#[tokio::test]
async fn a_secret_url_is_not_shown() {
    let (server, store, image) = redirecting(307).await;
    store.remove(&format!("img/blobs/{}", image.layer_digest));
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    let text = text_of(found.as_ref().unwrap_err());
    assert!(!text.contains("hunter2") && text.contains(&store.registry()), "{text}");
    check_pulled(
        &server,
        &image,
        found,
        Err("(GET http://$R/v2/img/blobs/$LAYER -> http://...: 404 Not Found...) does not exist"),
    );
}

/// A host that was led elsewhere and back is still a stranger: it chose the request.
#[tokio::test]
async fn credentials_do_not_come_back_with_a_redirect() {
    let (server, store, image) = redirecting(307).await;
    server.want(Auth::Basic("Basic dTpw".to_owned()));
    let back = format!("{}/v2/admin", server.url());
    store.queue("blobs", [Reply::redirect(307, &back)]);
    let credentials = Credentials::basic("u", "p");
    let reference = format!("{}/img", server.registry());
    let found = pull_with(&client(), &reference, &credentials).await;
    check_pulled(&server, &image, found, Err("access denied: ...-> http://$R/v2/admin: 401"));
    let seen = server.seen();
    let admin = seen.iter().find(|seen| seen.path == "/v2/admin").unwrap();
    assert_eq!(admin.header("authorization"), None);
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_credentials() {
    let server = Server::start().await;
    let image = put_image(&server, noise(1000));
    server.want(Auth::Basic("Basic dTpw".to_owned()));
    server.queue(
        "manifests/latest",
        [
            Reply::status(401).with("WWW-Authenticate", "Basic"),
            Reply::redirect(302, &image.manifest_digest.to_string()),
        ],
    );
    let reference = format!("{}/img", server.registry());
    let found = pull_with(&client(), &reference, &Credentials::basic("u", "p")).await;
    check_pulled(&server, &image, found, Ok(()));
}

/// F-02: circles, long ways, other schemes and addresses near us.
#[tokio::test]
async fn a_redirect_that_leads_astray_ends_the_pull() {
    for (location, expected) in [
        ("/v2/img/manifests/latest", "leads in a circle back to http://$R/v2/img/manifests/latest"),
        (
            "http://169.254.169.254/latest/meta-data",
            "refused to ask 169.254.169.254: it is a link-local or metadata address",
        ),
        ("http://[fe80::1]/x", "refused to ask fe80::1: it is a link-local or metadata address"),
        ("ftp://x/y", "307 Temporary Redirect leads to \"ftp://x/y\", which is no URL"),
        ("http://u:p@x/", "307 Temporary Redirect leads to \"http://u:p@x/\", which is no URL"),
    ] {
        let server = Server::start().await;
        let image = put_image(&server, noise(10));
        server.queue("latest", vec![Reply::redirect(307, location); 10]);
        let found = pull(&client(), &format!("{}/img", server.registry())).await;
        check_pulled(&server, &image, found, Err(expected));
    }
}

#[tokio::test]
async fn a_long_way_of_redirects_ends_the_pull() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let hops = (0..20).map(|hop| Reply::redirect(302, &format!("/latest/{hop}")));
    server.queue("latest", hops.collect::<Vec<_>>());
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(
        &server,
        &image,
        found,
        Err("the number of redirects is over the limit of 10 (limits.redirects)"),
    );
    assert_eq!(server.log().len(), 11);
}

/// F-01: the `urls` of a layer are not asked.
#[tokio::test]
async fn foreign_urls_are_not_asked() {
    let (server, other) = (Server::start().await, Server::start().await);
    let image = put_image(&server, noise(10));
    let manifest = String::from_utf8(image.manifest.to_vec()).unwrap();
    let urls = format!("\"urls\":[\"{}/x\"],\"digest\":\"{}\"", other.url(), image.layer_digest);
    let manifest = manifest
        .replace(&format!("\"digest\":\"{}\"", image.layer_digest), &urls)
        .replace(LAYER, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    assert!(manifest.contains("urls") && manifest.contains("foreign"));
    server.put("img/manifests/latest", MANIFEST, manifest);
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Ok(()));
    server.remove(&format!("img/blobs/{}", image.layer_digest));
    let found = pull(&client(), &format!("{}/img", server.registry())).await;
    check_pulled(&server, &image, found, Err("layer $LAYER (GET...404 Not Found...does not exist"));
    assert!(other.seen().is_empty());
}
