//! Pulls that must fail: a clear error, no image, no bytes left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::daemon::Options;
use e2e::fault::{Fault, FaultServer, Rule};
use e2e::image::noise;
use e2e::image::{Compression, Entry, Image, ImageBuilder, LayerBuilder, architecture, digest_of};
use e2e::{Cx, Setup, same, test, test_with};
use serde_json::json;

use super::small;

/// That a pull is refused by an error with the words in it, and that nothing is left of it.
async fn refuse(cx: &Cx, what: &str, reference: &str, words: &[&str]) -> Result<()> {
    e2e::cri::refused(what, cx.cri().pull(reference, None).await, words);
    ensure!(cx.cri().images().await?.is_empty(), "{what}: an image is listed");
    cx.check_census().await.with_context(|| what.to_owned())
}

#[test]
fn what_is_not_there_is_named() {
    test(async |cx| {
        let registry = cx.registry()?;
        let missing = format!("{registry}/e2e/no-such-image:1");
        refuse(cx, "no such image", &missing, &["e2e/no-such-image"]).await?;
        let reference = cx.push(&cx.unique(), &small("there")?).await?;
        let (repository, _) = reference.rsplit_once(':').context("no tag")?;
        refuse(cx, "no such tag", &format!("{repository}:none"), &["none"]).await?;
        let digest = digest_of(b"nothing");
        refuse(cx, "no such digest", &format!("{repository}@{digest}"), &[&digest]).await?;
        let closed = format!("127.0.0.1:{}/x:1", e2e::registry::free_port()?);
        refuse(cx, "a registry that is not there", &closed, &["RegistryUnavailable", &closed]).await
    });
}

#[test]
fn names_that_are_none_are_refused_without_a_request() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let at = server.address();
        for name in [
            "",
            " ",
            "UPPER/case",
            "a b",
            "x:tag:tag",
            "x@sha256:short",
            "/x",
            "x/",
            "-x",
            "x:%41",
            "../x",
            "x\nx",
        ] {
            e2e::cri::refused(name, cx.cri().pull(name, None).await, &[]);
            e2e::cri::refused(name, cx.cri().pull(&format!("{at}/{name}"), None).await, &[]);
        }
        same("requests", server.requests().len(), 0)
    });
}

#[test]
fn an_image_for_another_platform_says_which() {
    test(async |cx| {
        let other = ImageBuilder::new()
            .layer(LayerBuilder::new().file("x", "x"))?
            .platform("linux", "s390x")
            .build();
        let reference = cx.push(&cx.unique(), &Image::index(&[(&other, "linux/s390x")])).await?;
        refuse(cx, "an index without this platform", &reference, &["s390x", architecture()])
            .await?;
        let reference = cx.push(&cx.unique(), &other).await?;
        refuse(cx, "an image of another platform", &reference, &["s390x", architecture()]).await
    });
}

#[test]
fn bytes_that_are_wrong_are_refused() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let layer = || LayerBuilder::new().entry(Entry::file("noise", noise(100_000)));
        let image = || anyhow::Ok(ImageBuilder::new().layer(layer())?.build());
        let good = image()?;
        let (config, blob) = (good.id.clone(), good.layer(0).digest.clone());
        for (what, path, fault, word) in [
            ("a layer with another byte", &blob, Fault::Corrupt(5000), &blob),
            (
                "a layer with another last byte",
                &blob,
                Fault::Corrupt(good.layer(0).bytes.len() - 1),
                &blob,
            ),
            ("a layer of which nothing comes", &blob, Fault::Truncate(0), &blob),
            ("a layer with one byte more", &blob, Fault::Extra, &blob),
            ("a config with another byte", &config, Fault::Corrupt(20), &config),
            ("a config of which nothing comes", &config, Fault::Truncate(0), &config),
            (
                "a manifest by digest with another byte",
                &good.root.digest,
                Fault::Corrupt(20),
                &good.root.digest,
            ),
        ] {
            server.reset();
            let reference = server.serve("e2e/x:1", &good);
            server.rule(Rule::on(path, fault));
            let by_digest = format!("{}/e2e/x@{}", server.address(), good.root.digest);
            let name = if *path == good.root.digest { &by_digest } else { &reference };
            refuse(cx, what, name, &[&word[..20]]).await?;
        }
        Ok(())
    });
}

#[test]
fn claims_that_do_not_hold_are_refused() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let layer = || LayerBuilder::new().entry(Entry::file("noise", noise(50_000)));
        let good = || anyhow::Ok(ImageBuilder::new().layer(layer())?.build());
        let wrong = digest_of(b"something else");
        let patch = |path: &'static str, value: serde_json::Value| {
            good()?.patch_root(move |root| {
                if let Some(place) = root.pointer_mut(path) {
                    *place = value;
                }
            })
        };
        let diff_id = ImageBuilder::new().layer(layer())?.diff_ids(vec![wrong.clone()]).build();
        let fewer = ImageBuilder::new().layer(layer())?.diff_ids(vec![]).build();
        let mut truncated = layer().build()?;
        let cut = truncated.blob.bytes.slice(..truncated.blob.bytes.len() - 100);
        truncated.blob = e2e::image::Content::new(&truncated.blob.media_type, cut);
        let unknown = layer().media_type("application/vnd.example.layer");
        for (what, image, words) in [
            ("a layer of another size", patch("/layers/0/size", json!(5))?, &["size"][..]),
            ("a layer of a negative size", patch("/layers/0/size", json!(-1))?, &["size"]),
            ("a layer of another digest", patch("/layers/0/digest", json!(wrong))?, &[&wrong]),
            ("a config of another size", patch("/config/size", json!(7))?, &["size"]),
            ("another diff id", diff_id, &["diff"]),
            ("fewer diff ids than layers", fewer, &["diff"]),
            (
                "a layer that was cut before it was named",
                ImageBuilder::new().built(truncated).build(),
                &["layer"],
            ),
            (
                "a layer of an unknown type",
                ImageBuilder::new().layer(unknown)?.build(),
                &["vnd.example.layer"],
            ),
        ] {
            let reference = server.serve("e2e/x:1", &image);
            refuse(cx, what, &reference, words).await?;
        }
        Ok(())
    });
}

#[test]
fn a_registry_that_stalls_is_given_up_in_time() {
    let config = "[limits]\nprogress_timeout = \"1s\"\ndocument_timeout = \"1s\"\n";
    let daemon = Options { config: Some(config.into()), ..Options::default() };
    test_with(Setup { daemon, ..Setup::default() }, async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let image = ImageBuilder::new()
            .layer(LayerBuilder::new().entry(Entry::file("noise", noise(200_000))))?
            .build();
        for (what, path, fault) in [
            ("a layer that stops", &image.layer(0).digest, Fault::Stall(50)),
            ("a layer that never comes", &image.layer(0).digest, Fault::Stall(0)),
            ("a layer of one byte a second", &image.layer(0).digest, Fault::Slow(1)),
            ("a config that stops", &image.id, Fault::Stall(10)),
        ] {
            server.reset();
            let reference = server.serve("e2e/x:1", &image);
            server.rule(Rule::on(path, fault));
            let began = Instant::now();
            refuse(cx, what, &reference, &[]).await?;
            ensure!(
                began.elapsed() < e2e::scaled(Duration::from_secs(90)),
                "{what}: {:?}",
                began.elapsed()
            );
        }
        // Others go on meanwhile.
        let stuck = server.serve("e2e/stuck:1", &image);
        server.rule(Rule::on(&image.layer(0).digest, Fault::Stall(1000)));
        let (stuck, free) = tokio::join!(cx.cri().pull(&stuck, None), cx.busybox());
        ensure!(stuck.is_err(), "the stuck one came");
        free.map(drop)
    });
}

#[test]
fn a_disk_that_is_full_ends_the_pull_and_nothing_else() {
    let setup = Setup { small_root: Some(24), ..Setup::default() };
    test_with(setup, async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &e2e::pod::ContainerBuilder::new(&image).idle()).await?;
        let before = cx.census()?;
        let large = ImageBuilder::new()
            .layer(LayerBuilder::new().entry(Entry::file("noise", noise(40 << 20))))?
            .build();
        let reference = cx.push(&cx.unique(), &large).await?;
        e2e::cri::refused("a pull", cx.cri().pull(&reference, None).await, &["no space left"]);
        same("images", cx.cri().images().await?.len(), 1)?;
        cx.check_same(&before).await?;
        ensure!(cx.exec(&id, &["echo", "on"]).await? == "on\n", "the container was disturbed");
        // With the disk full to the last byte everything can still be stopped and removed.
        std::fs::write(cx.daemon.root.join("filler"), noise(64 << 20)).ok();
        cx.cri().stop_pod(&pod.id).await?;
        cx.cri().remove_pod(&pod.id).await?;
        cx.cri().remove_image(&image).await?;
        std::fs::remove_file(cx.daemon.root.join("filler"))?;
        cx.busybox().await.map(drop)
    });
}

#[test]
fn unpacked_layers_that_no_image_names_are_swept() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let layer = |name: &str| LayerBuilder::new().entry(Entry::file(name, noise(500_000)));
        let image = ImageBuilder::new()
            .layer(layer("one"))?
            .layer(layer("two"))?
            .layer(layer("three"))?
            .build();
        let reference = server.serve("e2e/x:1", &image);
        // The last layer never comes right: the finished ones are of no use to anybody.
        server.rule(Rule::on(&image.layer(2).digest, Fault::Corrupt(1000)));
        e2e::cri::refused("a bad layer", cx.cri().pull(&reference, None).await, &[]);
        // As for keeping finished layers for a next try: not for ever.
        let request = proto::control::PruneImagesRequest { all: true };
        cx.cri().control().prune_images(request).await?;
        cx.check_census().await?;
        server.reset();
        same("image id", cx.cri().pull(&reference, None).await?, image.id.as_str())?;
        same(
            "config",
            cx.cri().image_status(&reference).await?.image.context("no image")?.id,
            image.id,
        )
    });
}

#[test]
fn a_layer_of_any_packing_that_ends_early_is_an_error() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let whole = LayerBuilder::new()
                .entry(Entry::file("noise", noise(60_000)))
                .compression(compression)
                .build()?;
            for percent in [1, 10, 50, 90, 99] {
                let mut layer = whole.clone();
                let cut = layer.blob.bytes.slice(..layer.blob.bytes.len() * percent / 100);
                layer.blob = e2e::image::Content::new(&layer.blob.media_type, cut);
                let reference = server.serve("e2e/x:1", &ImageBuilder::new().built(layer).build());
                let what = format!("{compression:?} cut at {percent} %");
                e2e::cri::refused(&what, cx.cri().pull(&reference, None).await, &["layer"]);
            }
        }
        ensure!(cx.cri().images().await?.is_empty(), "an image is listed");
        Ok(())
    });
}
