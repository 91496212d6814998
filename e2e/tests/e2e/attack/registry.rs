//! F: registries that want credentials which are not theirs, or memory.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Options;
use e2e::fault::tls::{Authority, Certificate};
use e2e::fault::{Access, Fault, FaultServer, Rule};
use e2e::image::{Content, Entry, Image, ImageBuilder, LayerBuilder, media};
use e2e::{Cx, Setup, same, test, test_with};
use k8s_cri::v1::AuthConfig;
use serde_json::{Value, json};

use super::Siege;

fn secret() -> AuthConfig {
    AuthConfig { username: "alice".into(), password: "very-secret".into(), ..AuthConfig::default() }
}

fn basic() -> Access {
    Access::Basic { user: "alice".into(), password: "very-secret".into() }
}

fn small(text: &str) -> Result<Image> {
    Ok(ImageBuilder::new().layer(LayerBuilder::new().file("text", text))?.build())
}

/// That no request to a server had a credential.
fn clean(what: &str, server: &FaultServer) -> Result<()> {
    for request in server.requests() {
        let given = request.header("authorization");
        ensure!(given.is_none(), "{what}: {} {} had {given:?}", request.method, request.path);
        ensure!(!request.path.contains("secret"), "{what}: {}", request.path);
    }
    Ok(())
}

#[test]
fn f_01_a_layer_that_names_another_host() {
    test(async |cx| {
        let (server, other) = (FaultServer::start(&cx.netns)?, FaultServer::start(&cx.netns)?);
        server.require(basic());
        let image = small("urls")?;
        let url = format!("http://{}/layer", other.address());
        let named = image.clone().patch_root(|root| root["layers"][0]["urls"] = json!([url]))?;
        same(
            "image id",
            cx.cri().pull(&server.serve("e2e/x:1", &named), Some(secret())).await?,
            image.id.as_str(),
        )?;
        // A foreign layer, which the registry itself does not have.
        let foreign = named.patch_root(|root| {
            root["layers"][0]["mediaType"] =
                json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
            root["layers"][0]["digest"] = json!(e2e::image::digest_of(b"foreign"));
        })?;
        ensure!(
            cx.cri().pull(&server.serve("e2e/y:1", &foreign), Some(secret())).await.is_err(),
            "a foreign layer"
        );
        clean("the other host", &other)
    });
}

#[test]
fn f_02_redirects_take_no_credential_along() {
    test(async |cx| {
        cx.netns.ip("addr add 169.254.169.254/32 dev lo")?;
        cx.settle().await?;
        let (server, other) = (FaultServer::start(&cx.netns)?, FaultServer::start(&cx.netns)?);
        server.require(basic());
        for status in [301, 302, 307, 308] {
            let image = small(&format!("redirect {status}"))?;
            server.reset();
            let reference = server.serve("e2e/x:1", &image);
            other.serve("e2e/x:1", &image);
            let target =
                format!("http://{}/v2/e2e/x/blobs/{}", other.address(), image.layer(0).digest);
            server.rule(Rule::on(&image.layer(0).digest, Fault::Redirect(status, target)));
            same(
                &status.to_string(),
                cx.cri().pull(&reference, Some(secret())).await?,
                image.id.as_str(),
            )?;
            ensure!(!other.requests().is_empty(), "the redirect was not followed");
            clean("the target of a redirect", &other)?;
        }
        refused_redirects(cx, &server, &other).await
    });
}

async fn refused_redirects(cx: &Cx, server: &FaultServer, other: &FaultServer) -> Result<()> {
    let image = small("nowhere")?;
    let layer = image.layer(0).digest.clone();
    let metadata = cx.netns.listen(SocketAddr::from(([169, 254, 169, 254], 80)))?;
    let own = format!("http://{}/v2/e2e/x/blobs/{layer}", server.address());
    for (what, target) in [
        ("a circle", own.as_str()),
        ("the metadata service of a cloud", "http://169.254.169.254/latest"),
        ("another scheme", "ftp://127.0.0.1/x"),
        ("a file", "file:///etc/passwd"),
        ("no URL", "http://"),
    ] {
        server.reset();
        let reference = server.serve("e2e/x:1", &image);
        server.rule(Rule::on(&layer, Fault::Redirect(307, target.into())));
        ensure!(cx.cri().pull(&reference, Some(secret())).await.is_err(), "{what} was followed");
        ensure!(
            server.requests_for(&layer).len() < 200,
            "{what}: {} requests",
            server.requests_for(&layer).len()
        );
    }
    ensure!(metadata.accept().is_err(), "the metadata service was asked");
    clean("the other host", other)
}

#[test]
fn f_03_realms_that_ask_for_what_is_not_theirs() {
    let config = "[images]\nhosts_dirs = [\"{disk}/hosts\"]\n";
    let daemon = Options { config: Some(config.into()), ..Options::default() };
    test_with(Setup { daemon, ..Setup::default() }, async |cx| {
        let thief = FaultServer::start(&cx.netns)?;
        thief.require(Access::Bearer { realm: "http://unused".into(), uses: 9 });
        cx.netns.ip("addr add 169.254.169.254/32 dev lo")?;
        cx.settle().await?;
        let metadata = cx.netns.listen(SocketAddr::from(([169, 254, 169, 254], 80)))?;
        let authority = Authority::new()?;
        let secure = FaultServer::start_tls(&cx.netns, &authority, Certificate::Good)?;
        trust(cx, &secure, &authority)?;
        let plain = FaultServer::start(&cx.netns)?;
        let thief_realm = format!("http://{}/token", thief.address());
        for (what, server, realm) in [
            ("plain HTTP for a registry with TLS", &secure, thief_realm.as_str()),
            ("the metadata service of a cloud", &plain, "http://169.254.169.254/token"),
            (
                "the metadata service for a registry with TLS",
                &secure,
                "https://169.254.169.254/token",
            ),
            ("another scheme", &plain, "ftp://127.0.0.1/token"),
            ("no realm", &plain, ""),
        ] {
            let reference = server.serve("e2e/x:1", &small(what)?);
            server.require(Access::Bearer { realm: realm.into(), uses: 9 });
            ensure!(cx.cri().pull(&reference, Some(secret())).await.is_err(), "{what} was good");
            let refresh =
                AuthConfig { identity_token: "refresh-secret".into(), ..AuthConfig::default() };
            ensure!(cx.cri().pull(&reference, Some(refresh)).await.is_err(), "{what} was good");
        }
        clean("the thief", &thief)?;
        ensure!(metadata.accept().is_err(), "the metadata service was asked");
        Ok(())
    });
}

/// Makes the daemon trust a registry's authority.
fn trust(cx: &Cx, server: &FaultServer, authority: &Authority) -> Result<()> {
    let dir = cx.dir("hosts")?.join(server.address());
    std::fs::create_dir_all(&dir)?;
    let ca = dir.join("e2e-ca.pem");
    authority.write(&ca)?;
    let text = format!("server = \"https://{}\"\nca = \"{}\"\n", server.address(), ca.display());
    Ok(std::fs::write(dir.join("hosts.toml"), text)?)
}

#[test]
fn f_04_certificates_that_are_not_good() {
    let config = "[images]\nhosts_dirs = [\"{disk}/hosts\"]\n";
    let daemon = Options { config: Some(config.into()), ..Options::default() };
    test_with(Setup { daemon, ..Setup::default() }, async |cx| {
        let (authority, stranger) = (Authority::new()?, Authority::new()?);
        let good = FaultServer::start_tls(&cx.netns, &authority, Certificate::Good)?;
        trust(cx, &good, &authority)?;
        let image = small("certificates")?;
        let layer = image.layer(0).digest.clone();
        for (what, signer, certificate) in [
            ("of a stranger", &stranger, Certificate::Good),
            ("for another name", &authority, Certificate::OtherName),
            ("that has expired", &authority, Certificate::Expired),
        ] {
            let bad = FaultServer::start_tls(&cx.netns, signer, certificate)?;
            trust(cx, &bad, &authority)?;
            let reference = bad.serve("e2e/x:1", &image);
            ensure!(
                cx.cri().pull(&reference, Some(secret())).await.is_err(),
                "a registry with a certificate {what}"
            );
            // As the host of a layer.
            good.reset();
            let reference = good.serve("e2e/x:1", &image);
            let target = format!("https://{}/v2/e2e/x/blobs/{layer}", bad.address());
            good.rule(Rule::on(&layer, Fault::Redirect(307, target)));
            ensure!(
                cx.cri().pull(&reference, None).await.is_err(),
                "a layer from a host with a certificate {what}"
            );
            // As the token service.
            good.reset();
            good.require(Access::Bearer {
                realm: format!("https://{}/token", bad.address()),
                uses: 9,
            });
            ensure!(
                cx.cri().pull(&reference, Some(secret())).await.is_err(),
                "tokens from a host with a certificate {what}"
            );
            same(
                &format!("requests to a host with a certificate {what}"),
                bad.requests().len(),
                0,
            )?;
            let fresh = FaultServer::start_tls(&cx.netns, &authority, Certificate::Good)?;
            trust(cx, &fresh, &authority)?;
            same(
                "the good one",
                cx.cri().pull(&fresh.serve("e2e/x:1", &image), None).await?,
                image.id.as_str(),
            )?;
            cx.cri().remove_image(&image.id).await?;
        }
        Ok(())
    });
}

#[test]
fn f_05_answers_without_end() {
    test(async |cx| {
        let siege = Siege::begin(cx, &[])?;
        let server = FaultServer::start(&cx.netns)?;
        let large = LayerBuilder::new().entry(Entry::file("x", vec![1; 100_000]));
        let image = ImageBuilder::new().layer(large)?.build();
        let index = Image::index(&[(&image, &format!("linux/{}", e2e::image::architecture()))]);
        let (config, manifest) = (image.id.clone(), image.root.digest.clone());
        let gigabyte = 1u64 << 30;
        let error = |length: usize| Fault::Status(403, vec![], vec![b'x'; length]);
        for (what, path, fault) in [
            ("an index of a gigabyte", "/manifests/", Fault::Huge(gigabyte)),
            ("an index without end", "/manifests/", Fault::Endless),
            ("a manifest of a gigabyte", &manifest, Fault::Huge(gigabyte)),
            ("a manifest without end", &manifest, Fault::Endless),
            ("a config of a gigabyte", &config, Fault::Huge(gigabyte)),
            ("a config without end", &config, Fault::Endless),
            ("a layer without end", &image.layer(0).digest, Fault::Endless),
            ("a layer of a gigabyte", &image.layer(0).digest, Fault::Huge(gigabyte)),
            ("an error of 64 megabytes", "/manifests/", error(64 << 20)),
            ("ten thousand headers", "/manifests/", Fault::ManyHeaders(10_000)),
        ] {
            server.reset();
            let reference = server.serve("e2e/x:1", &index);
            server.rule(Rule::on(path, fault));
            let status = cx
                .cri()
                .pull(&reference, None)
                .await
                .err()
                .with_context(|| format!("{what} was taken"))?;
            ensure!(
                status.message().len() < 4096,
                "{what}: an error of {} bytes",
                status.message().len()
            );
        }
        // The token service.
        server.require(Access::Bearer {
            realm: format!("http://{}/token", server.address()),
            uses: 9,
        });
        for (what, fault) in [
            ("a token of a gigabyte", Fault::Huge(gigabyte)),
            ("a token without end", Fault::Endless),
        ] {
            server.reset();
            server.rule(Rule::on("/token", fault));
            let reference = server.serve("e2e/x:1", &index);
            ensure!(cx.cri().pull(&reference, Some(secret())).await.is_err(), "{what} was taken");
        }
        siege.end()
    });
}

/// Serves a document under a tag, whatever it is.
fn document(server: &FaultServer, image: &Image, media_type: &str, value: &Value) -> String {
    server.serve("e2e/x:1", &Image { root: Content::json(media_type, value), ..image.clone() })
}

#[test]
fn f_06_documents_of_two_kinds() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let image = small("two kinds")?;
        let manifest: Value = serde_json::from_slice(&image.root.bytes)?;
        let index: Value = serde_json::from_slice(
            &Image::index(&[(&image, &format!("linux/{}", e2e::image::architecture()))]).root.bytes,
        )?;
        let both = |media_type: &str| {
            let mut both = manifest.clone();
            both["manifests"] = index["manifests"].clone();
            both["mediaType"] = json!(media_type);
            both
        };
        let image = Image { manifests: vec![image.root.clone()], ..image };
        let mut untyped = both("");
        untyped.as_object_mut().context("an object")?.remove("mediaType");
        for (what, header, value) in [
            ("both, called a manifest", media::MANIFEST, both(media::MANIFEST)),
            ("both, called an index", media::INDEX, both(media::INDEX)),
            ("both, called nothing", media::MANIFEST, untyped),
            ("a manifest that the header calls an index", media::INDEX, manifest.clone()),
            ("an index that the header calls a manifest", media::MANIFEST, index.clone()),
            (
                "docker's first schema",
                "application/vnd.docker.distribution.manifest.v1+json",
                json!({"schemaVersion": 1, "fsLayers": [], "history": []}),
            ),
            ("a list", media::MANIFEST, json!([1, 2])),
            (
                "no layers",
                media::MANIFEST,
                json!({"schemaVersion": 2, "mediaType": media::MANIFEST, "config": manifest["config"]}),
            ),
        ] {
            let reference = document(&server, &image, header, &value);
            ensure!(cx.cri().pull(&reference, None).await.is_err(), "{what} was taken");
        }
        let here = format!("linux/{}", e2e::image::architecture());
        let deep = (0..1000).fold(image, |inner, _| Image::index(&[(&inner, &here)]));
        server.reset();
        let reference = server.serve("e2e/deep:1", &deep);
        ensure!(
            cx.cri().pull(&reference, None).await.is_err(),
            "an index in a thousand indexes was taken"
        );
        ensure!(server.requests().len() < 100, "{} requests", server.requests().len());
        Ok(())
    });
}

#[test]
fn f_07_digests_that_are_paths() {
    test(async |cx| {
        let siege = Siege::begin(cx, &[])?;
        let server = FaultServer::start(&cx.netns)?;
        let image = small("digests")?;
        let long = format!("sha256:{}", "a".repeat(1 << 20));
        let upper = image.layer(0).digest.to_uppercase();
        let digests = [
            "sha256:../../../../canary/w/x",
            "sha256:",
            "sha256",
            "",
            "sha256:abc",
            "md5:0123456789abcdef0123456789abcdef",
            &upper,
            &long,
            "sha256:%2e%2e",
            "../../x",
            "sha256:0123456789012345678901234567890123456789012345678901234567890123/x",
        ];
        for digest in digests {
            let shown = &digest[..digest.len().min(40)];
            for path in ["/config/digest", "/layers/0/digest"] {
                let patched = image.clone().patch_root(|root| {
                    if let Some(place) = root.pointer_mut(path) {
                        *place = json!(digest);
                    }
                })?;
                server.reset();
                let reference = server.serve("e2e/x:1", &patched);
                ensure!(
                    cx.cri().pull(&reference, None).await.is_err(),
                    "{shown} in {path} was taken"
                );
                same(&format!("requests for {shown}"), server.requests_for("/blobs/").len(), 0)?;
            }
            server.reset();
            let name = format!("{}/e2e/x@{digest}", server.address());
            ensure!(cx.cri().pull(&name, None).await.is_err(), "{shown} as a reference was taken");
            same(&format!("requests by the reference {shown}"), server.requests().len(), 0)?;
            cx.cri().image_status(&name).await.ok();
            cx.cri().remove_image(&name).await.ok();
        }
        siege.end()
    });
}
