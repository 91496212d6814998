//! Transfers: authentication, mirrors, and registries that fail and come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Options;
use e2e::fault::tls::{Authority, Certificate};
use e2e::fault::{Access, Fault, FaultServer, Rule};
use e2e::image::noise;
use e2e::image::{Entry, Image, ImageBuilder, LayerBuilder};
use e2e::registry::{LOGIN, Registry};
use e2e::{Cx, Setup, same, test, test_with};
use k8s_cri::v1::AuthConfig;

use super::small;

/// An image with a layer of some megabytes that do not compress.
fn large() -> Result<Image> {
    let layer = LayerBuilder::new().entry(Entry::file("noise", noise(3 << 20)));
    Ok(ImageBuilder::new().layer(LayerBuilder::new().file("small", "x"))?.layer(layer)?.build())
}

/// A daemon that waits for progress no longer than a second, and finds the hosts of its registries in a directory of
/// the test.
fn impatient() -> Setup {
    let config = "[images]\nhosts_dirs = [\"{disk}/hosts\"]\n[limits]\nprogress_timeout = \"1s\"\n";
    Setup {
        daemon: Options { config: Some(config.into()), ..Options::default() },
        ..Setup::default()
    }
}

fn login(user: &str, password: &str) -> AuthConfig {
    AuthConfig { username: user.into(), password: password.into(), ..AuthConfig::default() }
}

#[test]
fn a_real_registry_lets_in_who_has_the_password() {
    test(async |cx| {
        let registry = Registry::start(&cx.dir("registry")?, true)?;
        cx.netns.forward(registry.port())?;
        let image = small("locked")?;
        let reference = registry.push("e2e/locked:1", &image).await?;
        e2e::cri::refused(
            "without a password",
            cx.cri().pull(&reference, None).await,
            &[&reference],
        );
        let wrong = login(LOGIN.0, "wrong-password");
        let status = cx
            .cri()
            .pull(&reference, Some(wrong))
            .await
            .err()
            .context("a wrong password was good")?;
        ensure!(
            !status.message().contains("wrong-password"),
            "the password is in the error: {status:?}"
        );
        let (user, password) = LOGIN;
        let encoded = e2e::fault::answer::base64(&format!("{user}:{password}"));
        let server = AuthConfig { server_address: registry.address(), ..login(user, password) };
        for (what, auth) in [
            ("user and password", login(user, password)),
            ("base64", AuthConfig { auth: encoded.clone(), ..AuthConfig::default() }),
            (
                "base64 with zeros at the end",
                AuthConfig {
                    auth: e2e::fault::answer::base64(&format!("{user}:{password}\0\0")),
                    ..AuthConfig::default()
                },
            ),
            ("with the server's address", server),
        ] {
            same(
                what,
                cx.cri().pull(&reference, Some(auth)).await.context(what)?,
                image.id.as_str(),
            )?;
            cx.cri().remove_image(&image.id).await?;
        }
        let elsewhere =
            AuthConfig { server_address: "registry.example".into(), ..login(user, password) };
        e2e::cri::refused(
            "for another server",
            cx.cri().pull(&reference, Some(elsewhere)).await,
            &[],
        );
        let log = std::fs::read_to_string(&cx.daemon.log)?;
        ensure!(!log.contains(password) && !log.contains(&encoded), "a credential is in the log");
        Ok(())
    });
}

#[test]
fn a_token_is_fetched_and_fetched_again_when_it_is_used_up() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let reference = server.serve("e2e/x:1", &large()?);
        server.require(Access::Bearer {
            realm: format!("http://{}/token", server.address()),
            uses: 2,
        });
        cx.cri().pull(&reference, Some(login("bob", "token-password"))).await?;
        let asked = server.requests_for("/token");
        ensure!(asked.len() >= 2, "{} tokens for more than two requests", asked.len());
        let expected = format!("Basic {}", e2e::fault::answer::base64("bob:token-password"));
        same(
            "what the token service gets",
            asked[0].header("authorization"),
            Some(expected.as_str()),
        )?;
        ensure!(
            asked[0].path.contains("service=e2e") && asked[0].path.contains("scope=repository"),
            "{}",
            asked[0].path
        );
        Ok(())
    });
}

#[test]
fn a_token_that_was_given_is_sent_as_it_is() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let image = small("token")?;
        let reference = server.serve("e2e/x:1", &image);
        server.require(Access::Bearer {
            realm: format!("http://{}/token", server.address()),
            uses: 9,
        });
        server.grant("the-given-token");
        let auth = AuthConfig { registry_token: "the-given-token".into(), ..AuthConfig::default() };
        same("image id", cx.cri().pull(&reference, Some(auth)).await?, image.id.as_str())?;
        same("requests for another token", server.requests_for("/token").len(), 0)
    });
}

#[test]
fn concurrent_pulls_share_one_transfer() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let image = large()?;
        let reference = server.serve("e2e/x:1", &image);
        let mut pulls = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (cri, reference) = (cx.cri().clone(), reference.clone());
            pulls.spawn(async move { cri.pull(&reference, None).await });
        }
        for id in pulls.join_all().await {
            same("image id", id?, image.id.as_str())?;
        }
        for blob in &image.blobs {
            let sent: usize =
                server.requests_for(&blob.digest).iter().map(|request| request.sent).sum();
            same(&format!("bytes sent of {}", blob.digest), sent, blob.bytes.len())?;
        }
        Ok(())
    });
}

#[test]
fn a_pull_whose_client_has_gone_is_still_good_for_the_next() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let image = large()?;
        let reference = server.serve("e2e/x:1", &image);
        server.rule(Rule::on(&image.layer(1).digest, Fault::Slow(1 << 20)).times(1));
        let gone =
            tokio::time::timeout(Duration::from_millis(300), cx.cri().pull(&reference, None)).await;
        ensure!(gone.is_err(), "the pull was faster than it can be");
        same("image id", cx.cri().pull(&reference, None).await?, image.id)
    });
}

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    test_with(impatient(), async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let half = 3 << 19;
        for (what, fault) in [
            ("a reset", Fault::Reset(half)),
            ("an end that comes too early", Fault::Truncate(half)),
            ("silence", Fault::Stall(half)),
        ] {
            server.reset();
            let image = large()?;
            let reference = server.serve("e2e/x:1", &image);
            let layer = image.layer(1);
            server.rule(Rule::on(&layer.digest, fault).times(1));
            same(what, cx.cri().pull(&reference, None).await.context(what)?, image.id.as_str())?;
            let requests = server.requests_for(&layer.digest);
            ensure!(requests.len() >= 2, "{what}: one request was enough");
            let sent: usize = requests.iter().map(|request| request.sent).sum();
            ensure!(
                sent < layer.bytes.len() + (1 << 20),
                "{what}: {sent} bytes sent for {}",
                layer.bytes.len()
            );
            ensure!(
                requests.iter().skip(1).any(|request| request.header("range").is_some()),
                "{what}: no range"
            );
            cx.cri().remove_image(&image.id).await?;
        }
        Ok(())
    });
}

#[test]
fn a_registry_that_is_busy_is_asked_again() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let after = |status| {
            Fault::Status(status, vec![("retry-after".into(), "1".into())], b"busy".to_vec())
        };
        for (path, fault, times) in [
            ("/manifests/1", after(429), 2),
            ("/blobs/", after(429), 2),
            ("/blobs/", after(503), 1),
            ("/blobs/", Fault::Status(500, vec![], vec![]), 2),
            ("/manifests/", Fault::Status(502, vec![], vec![]), 2),
            ("/blobs/", Fault::Close, 5),
            ("/manifests/", Fault::Reset(10), 1),
        ] {
            server.reset();
            let image = small(&format!("{path} {fault:?}"))?;
            let reference = server.serve("e2e/x:1", &image);
            let what = format!("{path} {fault:?}");
            server.rule(Rule::on(path, fault).times(times).and_head());
            same(
                &what,
                cx.cri().pull(&reference, None).await.with_context(|| what.clone())?,
                image.id.as_str(),
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_range_that_is_ignored_or_wrong_does_no_harm() {
    test_with(impatient(), async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        for second in [Fault::IgnoreRange, Fault::WrongRange] {
            server.reset();
            let image = large()?;
            let reference = server.serve("e2e/x:1", &image);
            let layer = image.layer(1).digest.clone();
            server.rule(Rule::on(&layer, Fault::Reset(1 << 20)).times(1));
            let what = format!("{second:?}");
            server.rule(Rule::on(&layer, second).times(1));
            same(
                &what,
                cx.cri().pull(&reference, None).await.with_context(|| what.clone())?,
                image.id.as_str(),
            )?;
            cx.cri().remove_image(&image.id).await?;
        }
        Ok(())
    });
}

#[test]
fn mirrors_come_first_and_the_registry_last() {
    test_with(impatient(), async |cx| {
        let (broken, mirror) = (FaultServer::start(&cx.netns)?, FaultServer::start(&cx.netns)?);
        broken.rule(Rule::on("/", Fault::Status(500, vec![], vec![])).and_head());
        let image = small("mirrored")?;
        mirror.serve("library/mirrored:latest", &image);
        hosts(
            cx,
            "docker.io",
            &[&broken.address(), &mirror.address()],
            "https://registry.invalid",
        )?;
        // A short name is one of docker.io.
        same("image id", cx.cri().pull("mirrored", None).await?, image.id.as_str())?;
        let status = cx.cri().image_status("mirrored").await?.image.context("no image")?;
        same("tags", status.repo_tags, vec!["docker.io/library/mirrored:latest".to_owned()])?;
        ensure!(!broken.requests().is_empty(), "the first mirror was not asked");
        ensure!(
            mirror.requests()[0].path.contains("ns=docker.io"),
            "{}",
            mirror.requests()[0].path
        );
        // Where no mirror has it, the registry itself is asked.
        let own = FaultServer::start(&cx.netns)?;
        let reference = own.serve("e2e/own:1", &small("own")?);
        hosts(cx, &own.address(), &[&mirror.address()], &format!("http://{}", own.address()))?;
        cx.cri().pull(&reference, None).await.map(drop).context("by way of the registry itself")
    });
}

/// Writes a hosts.toml with mirrors in front of a server.
fn hosts(cx: &Cx, registry: &str, mirrors: &[&str], server: &str) -> Result<()> {
    let dir = cx.dir("hosts")?.join(registry);
    std::fs::create_dir_all(&dir)?;
    let mut text = format!("server = \"{server}\"\n");
    for mirror in mirrors {
        text.push_str(&format!(
            "[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        ));
    }
    Ok(std::fs::write(dir.join("hosts.toml"), text)?)
}

#[test]
fn a_registry_with_a_certificate_of_its_own_is_trusted_where_told() {
    test_with(impatient(), async |cx| {
        let authority = Authority::new()?;
        authority.write(&cx.scratch.disk.join("ca.pem"))?;
        let h1 = FaultServer::start_tls(&cx.netns, &authority, Certificate::Good)?;
        let h2 = FaultServer::start_h2(&cx.netns, &authority, 3)?;
        for (what, server) in [("HTTP/1.1", h1), ("HTTP/2 with GOAWAY after three requests", h2)] {
            let image = large()?;
            let reference = server.serve("e2e/x:1", &image);
            let dir = cx.dir("hosts")?.join(server.address());
            std::fs::create_dir_all(&dir)?;
            let ca = cx.scratch.disk.join("ca.pem");
            let text =
                format!("server = \"https://{}\"\nca = \"{}\"\n", server.address(), ca.display());
            std::fs::write(dir.join("hosts.toml"), text)?;
            same(what, cx.cri().pull(&reference, None).await.context(what)?, image.id.as_str())?;
            cx.cri().remove_image(&image.id).await?;
        }
        Ok(())
    });
}

#[test]
fn a_pull_that_is_killed_goes_on_in_the_next_life() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let layer = |number: usize| {
            LayerBuilder::new()
                .entry(Entry::file(format!("noise{number}"), noise((1 << 20) + number)))
        };
        let image = (0..4)
            .try_fold(ImageBuilder::new(), |image, number| image.layer(layer(number)))?
            .build();
        let reference = server.serve("e2e/x:1", &image);
        let last = image.layer(3).digest.clone();
        server.rule(Rule::on(&last, Fault::Stall(1 << 19)).times(1));
        let (cri, name) = (cx.cri().clone(), reference.clone());
        let pull = tokio::spawn(async move { cri.pull(&name, None).await });
        e2e::eventually(20, "three layers are fetched", async || {
            let whole = |index: usize| {
                let layer = image.layer(index);
                server.requests_for(&layer.digest).iter().map(|request| request.sent).sum::<usize>()
                    >= layer.bytes.len()
            };
            Ok((0..3).all(whole) && !server.requests_for(&last).is_empty())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        cx.daemon.kill()?;
        pull.await?.err().context("the pull has outlived its daemon")?;
        server.reset();
        cx.daemon.restart().await?;
        ensure!(cx.cri().images().await?.is_empty(), "an image that is not whole is listed");
        same("image id", cx.cri().pull(&reference, None).await?, image.id.as_str())?;
        for index in 0..3 {
            let again = server.requests_for(&image.layer(index).digest).len();
            same(&format!("requests for layer {index} in the second life"), again, 0)?;
        }
        Ok(())
    });
}
