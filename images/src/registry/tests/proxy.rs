//! Proxies; and, behind one, registries that are not this machine, which loopback cannot play.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::tls::{Authority, server_config};
use super::*;

/// A proxy that leads every tunnel to one server; it keeps the heads of its requests.
struct Tunnels {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    _task: tokio::task::JoinSet<()>,
}

async fn tunnels(to: std::net::SocketAddr, answer: &'static str) -> Tunnels {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://me:hunter2@{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let kept = Arc::clone(&kept);
            open.spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    stream.read_line(&mut head).await.unwrap();
                }
                kept.lock().unwrap().push(head);
                stream.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await.unwrap();
                if answer.starts_with("200") {
                    let mut server = TcpStream::connect(to).await.unwrap();
                    // Either end may hang up first.
                    drop(tokio::io::copy_bidirectional(&mut stream, &mut server).await);
                }
            });
        }
    });
    Tunnels { url, heads, _task: task }
}

#[tokio::test]
async fn plain_http_goes_through_a_proxy_in_absolute_form() {
    let proxy = Server::start().await;
    let image = put_image(&proxy, noise(1000));
    let dir = tempfile::tempdir().unwrap();
    mirrors::write_hosts(dir.path(), "r.test", "server = \"http://r.test\"");
    let mut config = Config { hosts_dirs: vec![dir.path().to_owned()], ..config() };
    config.proxy.http = format!("http://me:hunter2@{}", proxy.registry());
    check_pulled(&proxy, &image, pull(&Client::new(config), "r.test/img").await, Ok(()));
    for seen in proxy.seen() {
        assert!(seen.path.starts_with("http://r.test/v2/img/"), "{}", seen.path);
        assert_eq!(seen.header("proxy-authorization"), Some("Basic bWU6aHVudGVyMg=="));
    }
}

#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    let authority = Authority::new();
    let identity = authority.issue("r.test", |_| {});
    let server = Server::start_tls(server_config(&identity, None, &["h2", "http/1.1"])).await;
    let image = put_image(&server, noise(3_000_000));
    let proxy = tunnels(server.address, "200 Connection established").await;
    let dir = tempfile::tempdir().unwrap();
    mirrors::write_hosts(dir.path(), "r.test", "ca = \"ca.pem\"");
    std::fs::write(dir.path().join("r.test/ca.pem"), authority.pem()).unwrap();
    let mut config = Config { hosts_dirs: vec![dir.path().to_owned()], ..config() };
    config.proxy.https = proxy.url.clone();
    check_pulled(&server, &image, pull(&Client::new(config.clone()), "r.test/img").await, Ok(()));
    let heads = proxy.heads.lock().unwrap().clone();
    assert!(!heads.is_empty());
    for head in heads {
        assert!(head.starts_with("CONNECT r.test:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Proxy-Authorization: Basic bWU6aHVudGVyMg==\r\n"), "{head}");
    }
    // The registry is another machine now: what it names must not be this one.
    let near = Server::start().await;
    for (location, expected) in [
        (
            "https://127.0.0.1:1/x".to_owned(),
            "refused to ask 127.0.0.1: it is an address of this machine",
        ),
        (
            "https://localhost:1/x".to_owned(),
            "is an address of this machine, and the registry is another one",
        ),
        ("https://169.254.169.254/x".to_owned(), "it is a link-local or metadata address"),
        (format!("{}/x", near.url()), "refused to follow it from https to http://127.0.0.1"),
    ] {
        server.queue("latest", [Reply::redirect(307, &location)]);
        let found = pull(&Client::new(config.clone()), "r.test/img").await;
        check_pulled(&server, &image, found, Err(expected));
    }
    for (realm, expected) in [
        (
            "https://127.0.0.1:1/token".to_owned(),
            "is at an address of this machine, and the registry is another one",
        ),
        (format!("{}/token", near.url()), "must be https, as the registry is"),
    ] {
        server.want(Auth::Bearer { realm });
        let credentials = Credentials::basic("u", "p");
        let found = pull_with(&Client::new(config.clone()), "r.test/img", &credentials).await;
        check_pulled(&server, &image, found, Err(expected));
    }
    assert!(near.seen().is_empty());
}

#[tokio::test]
async fn a_proxy_that_says_no_is_named_without_its_password() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    for (answer, expected) in [
        ("407 Proxy Authentication Required", "tunnel error: proxy authorization required"),
        ("403 Forbidden", "tunnel error: unsuccessful"),
    ] {
        let proxy = tunnels(server.address, answer).await;
        let mut config = config();
        config.proxy.https = proxy.url.clone();
        let found = pull(&Client::new(config), "r.test/img").await;
        let text = text_of(found.as_ref().unwrap_err());
        assert!(!text.contains("hunter2"), "{text}");
        check_pulled(&server, &image, found, Err(&format!("proxy 127.0.0.1:...: {expected}")));
    }
    let mut config = config();
    config.proxy.https = "socks5://127.0.0.1:1".to_owned();
    let found = pull(&Client::new(config), "r.test/img").await;
    check_pulled(
        &server,
        &image,
        found,
        Err("proxy 127.0.0.1:1: only proxies by http:// are known"),
    );
}

#[tokio::test]
async fn a_tunnel_that_is_cut_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 64];
            let _count = stream.read(&mut some).await.unwrap();
        }
    });
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let mut config = config();
    config.proxy.https = url;
    let found = pull(&Client::new(config), "r.test/img").await;
    assert!(matches!(found, Err(Error::Unavailable { .. })));
    check_pulled(&server, &image, found, Err("proxy 127.0.0.1:...: tunnel error"));
}
