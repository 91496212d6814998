//! F-04 and TLS at large: which certificates are believed, at the registry and beyond.

use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::*;

/// An authority of its own for each test.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, in PEM.
pub(super) struct Identity {
    cert: String,
    key: String,
}

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::default();
        // Two authorities of one name would be told apart by their signatures only.
        let key = KeyPair::generate().unwrap();
        let name = format!("authority {}", Digest::of(&key.serialize_der()));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Authority { issuer }
    }

    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(super) fn issue(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }
}

fn expired(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
}

/// A certificate that is its own authority, as `openssl req -x509` makes it.
fn self_signed(name: &str, change: impl Fn(&mut CertificateParams)) -> Identity {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    Identity { cert: cert.pem(), key: key.serialize_pem() }
}

pub(super) fn server_config(
    identity: &Identity,
    client_ca: Option<&Authority>,
    alpn: &[&str],
) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.issuer.der().clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let chain =
        CertificateDer::pem_slice_iter(identity.cert.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn tls_server(identity: &Identity) -> Server {
    Server::start_tls(server_config(identity, None, &["http/1.1"])).await
}

/// Pulls `r.io/img` from a server whose hosts.toml has these lines; `$DIR` is where files lie.
async fn pull_by_hosts(server: &Server, lines: &str, files: &[(&str, &str)]) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    mirrors::write_hosts(dir.path(), "r.io", &format!("server = \"{}\"\n{lines}", server.url()));
    for (name, text) in files {
        std::fs::write(dir.path().join("r.io").join(name), text).unwrap();
    }
    let client = Client::new(Config { hosts_dirs: vec![dir.path().to_owned()], ..config() });
    pull(&client, "r.io/img").await
}

#[tokio::test]
async fn a_certificate_of_a_listed_authority_is_believed() {
    let authority = Authority::new();
    let server = tls_server(&authority.issue("localhost", |_| {})).await;
    let image = put_image(&server, noise(1000));
    for lines in ["ca = \"ca.pem\"", "ca = [\"other.pem\", \"ca.pem\"]"] {
        let other = Authority::new().pem();
        let files = [("ca.pem", authority.pem()), ("other.pem", other)];
        let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
        check_pulled(&server, &image, pull_by_hosts(&server, lines, &files).await, Ok(()));
    }
}

/// Docker's layout of certificates, without a hosts.toml.
#[tokio::test]
async fn a_directory_of_docker_is_believed() {
    let authority = Authority::new();
    let server = tls_server(&authority.issue("localhost", |_| {})).await;
    let image = put_image(&server, noise(1000));
    let dir = tempfile::tempdir().unwrap();
    // A registry on localhost is plain HTTP, unless a file says that it is not.
    mirrors::write_hosts(dir.path(), "localhost:443", "");
    std::fs::write(dir.path().join("localhost:443/ca.crt"), authority.pem()).unwrap();
    let limits = crate::Limits::default();
    let route =
        super::super::mirrors::load(&[dir.path().to_owned()], "localhost:443", &limits).unwrap();
    assert_eq!(route.hosts[0].tls.ca.len(), 1);
    let files = [("ca.pem", authority.pem())];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    check_pulled(&server, &image, pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await, Ok(()));
}

/// F-04 at the registry.
#[tokio::test]
async fn a_certificate_that_does_not_hold_is_refused() {
    let authority = Authority::new();
    let pem = authority.pem();
    let ca = ("ca = \"ca.pem\"", vec![("ca.pem", pem.as_str())]);
    let none = ("", Vec::new());
    let good = authority.issue("localhost", |_| {});
    let other_name = authority.issue("other.io", |_| {});
    let old = authority.issue("localhost", expired);
    for (identity, (lines, files), expected) in [
        (
            &good,
            &none,
            "TLS: invalid peer certificate: UnknownIssuer: put the certificate of its authority into a ca file of its hosts.toml",
        ),
        (
            &other_name,
            &ca,
            "TLS: invalid peer certificate: certificate not valid for name \"localhost\"",
        ),
        (
            &old,
            &ca,
            "TLS: invalid peer certificate: certificate expired...: renew it, or look at this machine's clock",
        ),
    ] {
        let server = tls_server(identity).await;
        let image = put_image(&server, noise(10));
        let found = pull_by_hosts(&server, lines, files).await;
        assert!(matches!(found, Err(Error::Unavailable { .. })));
        check_pulled(&server, &image, found, Err(expected));
        assert!(server.seen().is_empty());
        let found = pull_by_hosts(&server, "skip_verify = true", &[]).await;
        check_pulled(&server, &image, found, Ok(()));
    }
}

/// Docker's documentation makes a certificate that is its own authority; it works as in Go.
#[tokio::test]
async fn a_self_signed_certificate_is_believed_where_it_is_listed() {
    let listed = self_signed("localhost", |_| {});
    let server = tls_server(&listed).await;
    let image = put_image(&server, noise(10));
    let files = [("ca.pem", listed.cert.as_str())];
    check_pulled(&server, &image, pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await, Ok(()));
    let other = self_signed("localhost", |_| {});
    let files = [("ca.pem", other.cert.as_str())];
    let found = pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await;
    check_pulled(&server, &image, found, Err("TLS: invalid peer certificate"));
    for (identity, expected) in [
        (self_signed("other.io", |_| {}), "not valid for name"),
        (self_signed("localhost", expired), "expired"),
    ] {
        let server = tls_server(&identity).await;
        let files = [("ca.pem", identity.cert.as_str())];
        let found = pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await;
        check_pulled(&server, &image, found, Err(expected));
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let authority = Authority::new();
    let ours = authority.issue("client", |_| {});
    let config = server_config(&authority.issue("localhost", |_| {}), Some(&authority), &[]);
    let server = Server::start_tls(config).await;
    let image = put_image(&server, noise(10));
    let ca = authority.pem();
    let both = format!("{}{}", ours.cert, ours.key);
    let files =
        [("ca.pem", ca.as_str()), ("c.pem", &ours.cert), ("k.pem", &ours.key), ("both.pem", &both)];
    for client in ["\"both.pem\"", "[[\"c.pem\", \"k.pem\"]]", "[\"both.pem\"]"] {
        let lines = format!("ca = \"ca.pem\"\nclient = {client}");
        check_pulled(&server, &image, pull_by_hosts(&server, &lines, &files).await, Ok(()));
    }
    let found = pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await;
    assert!(matches!(found, Err(Error::Unavailable { .. })));
    let expected = "TLS: received fatal alert: CertificateRequired: it wants a certificate of ours";
    check_pulled(&server, &image, found, Err(expected));
    for (client, expected) in [
        ("\"c.pem\"", "c.pem: comes without a private key in PEM form"),
        ("\"k.pem\"", "k.pem: holds no certificate in PEM form"),
        ("[[\"ca.pem\", \"k.pem\"]]", "ca.pem: comes with the private key of another certificate"),
    ] {
        let lines = format!("ca = \"ca.pem\"\nclient = {client}");
        check_pulled(&server, &image, pull_by_hosts(&server, &lines, &files).await, Err(expected));
    }
}

/// F-04 at the hosts that a registry names: what was allowed to it is not allowed to them.
#[tokio::test]
async fn a_blob_host_is_verified_like_a_registry() {
    let authority = Authority::new();
    let ca = authority.pem();
    let files = [("ca.pem", ca.as_str())];
    for (identity, expected) in [
        (authority.issue("127.0.0.1", |_| {}), Ok(())),
        (authority.issue("other.io", |_| {}), Err("not valid for name \"127.0.0.1\"")),
        (authority.issue("127.0.0.1", expired), Err("certificate expired")),
        (Authority::new().issue("127.0.0.1", |_| {}), Err("UnknownIssuer")),
    ] {
        let server = tls_server(&authority.issue("localhost", |_| {})).await;
        let store = tls_server(&identity).await;
        let image = put_image(&server, noise(10));
        put_image(&store, image.layer.clone());
        // By address, for the host of the registry itself is localhost.
        let location = format!("https://{}/v2/img/blobs/{}", store.registry(), image.layer_digest);
        server.queue(&image.layer_digest.to_string(), vec![Reply::redirect(307, &location); 10]);
        // The leave to skip verification is the registry's alone.
        let lines = "ca = \"ca.pem\"\nskip_verify = true";
        let found = pull_by_hosts(&server, lines, &files).await;
        check_pulled(&server, &image, found, expected);
    }
}

/// F-04 at the token service.
#[tokio::test]
async fn a_token_service_is_verified_like_a_registry() {
    let authority = Authority::new();
    let ca = authority.pem();
    let files = [("ca.pem", ca.as_str())];
    for (identity, expected) in [
        (authority.issue("127.0.0.1", |_| {}), Ok(())),
        (authority.issue("other.io", |_| {}), Err("not valid for name \"127.0.0.1\"")),
        (Authority::new().issue("127.0.0.1", |_| {}), Err("UnknownIssuer")),
    ] {
        let server = tls_server(&authority.issue("localhost", |_| {})).await;
        let service = tls_server(&identity).await;
        let image = put_image(&server, noise(10));
        server.want(Auth::Bearer { realm: format!("https://{}/token", service.registry()) });
        server.allow_token("token-1");
        let lines = "ca = \"ca.pem\"\nskip_verify = true";
        let found = pull_by_hosts(&server, lines, &files).await;
        check_pulled(&server, &image, found, expected);
    }
}

/// F-02 and F-03: from TLS nothing leads to plain HTTP.
#[tokio::test]
async fn tls_is_not_left_for_plain_http() {
    let authority = Authority::new();
    let ca = authority.pem();
    let files = [("ca.pem", ca.as_str())];
    let server = tls_server(&authority.issue("localhost", |_| {})).await;
    let plain = Server::start().await;
    let image = put_image(&server, noise(10));
    server.queue("latest", [Reply::redirect(307, &format!("{}/x", plain.url()))]);
    let found = pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await;
    check_pulled(
        &server,
        &image,
        found,
        Err("refused to follow it from https to http://127.0.0.1"),
    );
    server.want(Auth::Bearer { realm: format!("{}/token", plain.url()) });
    let found = pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await;
    check_pulled(&server, &image, found, Err("must be https, as the registry is"));
    assert!(plain.seen().is_empty());
}

/// HTTP/2 serves documents and small layers; large layers have connections of their own.
#[tokio::test]
async fn http_2_is_spoken_where_it_is_offered() {
    let authority = Authority::new();
    let ca = authority.pem();
    let files = [("ca.pem", ca.as_str())];
    let identity = authority.issue("localhost", |_| {});
    for alpn in [&["h2", "http/1.1"][..], &["h2"], &["http/1.1"], &[]] {
        let server = Server::start_tls(server_config(&identity, None, alpn)).await;
        let mut large = String::new();
        for length in [1000, 3_000_000] {
            let image = put_image(&server, noise(length));
            let found = pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await;
            check_pulled(&server, &image, found, Ok(()));
            large = image.layer_digest.to_string();
        }
        // Only HTTP/1.1 has a header Host here.
        let all = server.seen();
        let count = |is: &dyn Fn(&server::Seen) -> bool| all.iter().filter(|seen| is(seen)).count();
        let with_host = count(&|seen| seen.header("host").is_some());
        let expected = match alpn {
            ["h2", "http/1.1"] => count(&|seen| seen.path.contains(&large)),
            ["h2"] => 0,
            _ => all.len(),
        };
        assert_eq!(with_host, expected, "{alpn:?}");
    }
}

/// R7: GOAWAY ends a connection, not a pull.
#[tokio::test]
async fn goaway_is_survived() {
    let authority = Authority::new();
    let ca = authority.pem();
    let files = [("ca.pem", ca.as_str())];
    let identity = authority.issue("localhost", |_| {});
    let server = Server::start_tls(server_config(&identity, None, &["h2"])).await;
    let image = put_image(&server, noise(3_000_000));
    for path in [
        "manifests/latest".to_owned(),
        image.config_digest.to_string(),
        image.layer_digest.to_string(),
    ] {
        server.queue(&path, [Reply::Hangup]);
        let found = pull_by_hosts(&server, "ca = \"ca.pem\"", &files).await;
        check_pulled(&server, &image, found, Ok(()));
    }
}

/// What answers is no TLS: the error says what to write where.
#[tokio::test]
async fn plain_http_behind_https_is_explained() {
    let server = Server::start().await;
    let image = put_image(&server, noise(10));
    let dir = tempfile::tempdir().unwrap();
    mirrors::write_hosts(
        dir.path(),
        "r.io",
        &format!("server = \"https://{}\"", server.registry()),
    );
    let client = Client::new(Config { hosts_dirs: vec![dir.path().to_owned()], ..config() });
    let found = pull(&client, "r.io/img").await;
    check_pulled(
        &server,
        &image,
        found,
        Err(
            "TLS: ...: it does not speak TLS; if that is right, say so with server = \"http://...\" in its hosts.toml",
        ),
    );
}
