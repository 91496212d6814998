//! Images: what is pulled, how it is named, and what goes wrong with it.

mod layers;
mod refused;
mod transfer;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use e2e::cri::refused as error_of;
use e2e::image::noise;
use e2e::image::{Compression, Entry, Image, ImageBuilder, LayerBuilder, architecture, base};
use e2e::pod::ContainerBuilder;
use e2e::{Cx, same, test};
use k8s_cri::v1::ContainerState;
use serde_json::json;

/// A small image with a file that names it.
fn small(text: &str) -> Result<Image> {
    Ok(ImageBuilder::new()
        .layer(LayerBuilder::new().file("text", text))?
        .config("Cmd", json!(["/text"]))
        .build())
}

/// What a tag is pulled to, with its reference.
async fn pulled(cx: &Cx, image: &Image) -> Result<(String, String)> {
    let reference = cx.push(&cx.unique(), image).await?;
    let id = cx.cri().pull(&reference, None).await?;
    Ok((reference, id))
}

#[test]
fn an_image_is_known_by_its_config_and_by_every_name() {
    test(async |cx| {
        let image = small("one")?;
        let (reference, id) = pulled(cx, &image).await?;
        same("image id", &id, image.id.as_str())?;
        let (repository, _) = reference.rsplit_once(':').context("no tag")?;
        let by_digest = format!("{repository}@{}", image.root.digest);
        let status = cx.cri().image_status(&id).await?.image.context("no image")?;
        same("tags", &status.repo_tags, &vec![reference.clone()])?;
        same("digests", &status.repo_digests, &vec![by_digest.clone()])?;
        ensure!(status.size > 0 && !status.pinned, "{status:?}");
        let bare = id.trim_start_matches("sha256:").to_owned();
        for name in [
            &reference,
            &by_digest,
            &bare,
            &bare[..12].to_owned(),
            &format!("{reference}@{}", image.root.digest),
        ] {
            let other = cx
                .cri()
                .image_status(name)
                .await?
                .image
                .with_context(|| format!("not found by {name}"))?;
            same(name, &other, &status)?;
        }
        same("listed", cx.cri().images().await?, vec![status])?;
        let verbose = cx.cri().image_status(&id).await?.info;
        ensure!(
            verbose.contains_key("info") || verbose.contains_key("imageSpec"),
            "{:?}",
            verbose.keys()
        );
        for absent in [
            "127.0.0.1:1/none:latest",
            "sha256:0123456789012345678901234567890123456789012345678901234567890123",
            "none",
        ] {
            ensure!(cx.cri().image_status(absent).await?.image.is_none(), "{absent} is there");
        }
        error_of("a name that is none", cx.cri().image_status("A B@@").await, &["a b@@"]);
        Ok(())
    });
}

#[test]
fn a_pull_by_digest_has_no_tag() {
    test(async |cx| {
        let image = small("digest")?;
        let reference = cx.push(&cx.unique(), &image).await?;
        let (repository, _) = reference.rsplit_once(':').context("no tag")?;
        let by_digest = format!("{repository}@{}", image.root.digest);
        let id = cx.cri().pull(&by_digest, None).await?;
        let status = cx.cri().image_status(&by_digest).await?.image.context("no image")?;
        same("names", (status.repo_tags, status.repo_digests), (vec![], vec![by_digest.clone()]))?;
        // With its tag it has both.
        same("image id", cx.cri().pull(&reference, None).await?, id)?;
        let status = cx.cri().image_status(&reference).await?.image.context("no image")?;
        same("names", (status.repo_tags, status.repo_digests), (vec![reference], vec![by_digest]))
    });
}

#[test]
fn one_image_in_two_repositories_is_one_image() {
    test(async |cx| {
        let image = small("two places")?;
        let (one, id) = pulled(cx, &image).await?;
        let (two, other) = pulled(cx, &image).await?;
        same("image id", &id, &other)?;
        let status = cx.cri().image_status(&one).await?.image.context("no image")?;
        same(
            "tags",
            status.repo_tags.iter().collect::<BTreeSet<_>>(),
            BTreeSet::from([&one, &two]),
        )?;
        same("images", cx.cri().images().await?.len(), 1)?;
        // By one name all of it goes, and again.
        cx.cri().remove_image(&one).await?;
        for name in [&one, &two, &id] {
            ensure!(cx.cri().image_status(name).await?.image.is_none(), "{name} is still there");
            cx.cri().remove_image(name).await?;
        }
        same("images", cx.cri().images().await?.len(), 0)
    });
}

#[test]
fn a_tag_that_moves_takes_its_name_along() {
    test(async |cx| {
        let name = cx.unique();
        let reference = cx.push(&name, &small("old")?).await?;
        let old = cx.cri().pull(&reference, None).await?;
        cx.push(&name, &small("new")?).await?;
        let new = cx.cri().pull(&reference, None).await?;
        ensure!(old != new, "the old image was pulled again");
        same(
            "by the tag",
            cx.cri().image_status(&reference).await?.image.context("no image")?.id,
            new,
        )?;
        let left = cx.cri().image_status(&old).await?.image.context("the old image is gone")?;
        same("tags of the old one", left.repo_tags.len(), 0)
    });
}

#[test]
fn removal_of_what_never_was_succeeds() {
    test(async |cx| {
        for name in ["none", "127.0.0.1:1/none:1", "5d8c9b1e-3c1f-4a6b-9a55-0f1f2f3f4f5f"] {
            cx.cri().remove_image(name).await?;
        }
        Ok(())
    });
}

#[test]
fn five_removals_at_once_all_succeed() {
    test(async |cx| {
        let (reference, _) = pulled(cx, &small("five")?).await?;
        let mut removals = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let (cri, reference) = (cx.cri().clone(), reference.clone());
            removals.spawn(async move {
                cri.remove_image(&reference).await?;
                anyhow::Ok(cri.image_status(&reference).await?.image.is_none())
            });
        }
        for gone in removals.join_all().await {
            ensure!(gone?, "it was there after a removal had returned");
        }
        Ok(())
    });
}

#[test]
fn a_container_works_on_when_its_image_is_removed() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let before = cx.status(&id).await?;
        cx.cri().remove_image(&image).await?;
        ensure!(cx.cri().images().await?.is_empty(), "the image is listed");
        ensure!(
            cx.exec(&id, &["ls", "/bin/busybox"]).await?.contains("busybox"),
            "its files are gone"
        );
        let after = cx.status(&id).await?;
        same("image", (&after.image_ref, &after.image_id), (&before.image_ref, &before.image_id))?;
        same("state", after.state(), ContainerState::ContainerRunning)?;
        // The image comes again beside it.
        same("image id", cx.busybox().await?, image)
    });
}

#[test]
fn the_user_of_an_image_shows() {
    test(async |cx| {
        for (user, uid, name) in [
            ("", None, ""),
            ("1234", Some(1234), ""),
            ("1234:5", Some(1234), ""),
            ("www-data", None, "www-data"),
            ("www-data:group", None, "www-data"),
            ("0", Some(0), ""),
        ] {
            let image = ImageBuilder::new()
                .layer(LayerBuilder::new().file("user", user))?
                .config("User", json!(user))
                .build();
            let (_, id) = pulled(cx, &image).await?;
            let status = cx.cri().image_status(&id).await?.image.context("no image")?;
            same(user, (status.uid.map(|uid| uid.value), status.username.as_str()), (uid, name))?;
        }
        Ok(())
    });
}

#[test]
fn every_kind_of_manifest_and_layer_is_pulled() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let layer = |text: &str, compression| {
            LayerBuilder::new().file("text", text).compression(compression)
        };
        let base = base::probe_only;
        for (what, image) in [
            ("OCI and gzip", base()?.layer(layer("OCI and gzip", Compression::Gzip))?),
            ("OCI and zstd", base()?.layer(layer("OCI and zstd", Compression::Zstd))?),
            ("OCI and plain", base()?.layer(layer("OCI and plain", Compression::None))?),
            ("docker", base()?.docker().layer(layer("docker", Compression::Gzip))?),
        ] {
            let id = cx.pull_image(&image.build()).await.context(what)?;
            let container = ContainerBuilder::new(&id).command(&["/bin/probe", "cat", "/text"]);
            same("text", cx.output(&pod, &container).await?, what)?;
        }
        Ok(())
    });
}

#[test]
fn an_index_gives_the_image_of_this_platform() {
    test(async |cx| {
        let text = |text: &str| {
            anyhow::Ok(base::probe_only()?.layer(LayerBuilder::new().file("text", text))?)
        };
        let ours = text("ours")?.build();
        let other = text("other")?.platform("linux", "s390x").build();
        let windows = text("windows")?.platform("windows", architecture()).build();
        let here = format!("linux/{}", architecture());
        let elsewhere = format!("windows/{}", architecture());
        let list =
            [(&other, "linux/s390x"), (&windows, elsewhere.as_str()), (&ours, here.as_str())];
        let pod = cx.run_pod(cx.pod()).await?;
        let docker = text("ours")?.docker().build();
        for (what, index) in [
            ("an index", Image::index(&list)),
            ("a list of docker", Image::index(&[(&docker, here.as_str())])),
            ("an index in an index", Image::index(&[(&Image::index(&list), here.as_str())])),
        ] {
            let reference = cx.push(&cx.unique(), &index).await.context(what)?;
            let id = cx.cri().pull(&reference, None).await.context(what)?;
            let status = cx.cri().image_status(&id).await?.image.context("no image")?;
            ensure!(
                status.repo_digests.iter().any(|digest| digest.ends_with(&index.root.digest)),
                "{what}: {status:?}"
            );
            let container = ContainerBuilder::new(&id).command(&["/bin/probe", "cat", "/text"]);
            same(what, cx.output(&pod, &container).await?.as_str(), "ours")?;
        }
        Ok(())
    });
}

#[test]
fn layers_that_images_share_are_on_disk_once() {
    test(async |cx| {
        let big = || LayerBuilder::new().entry(Entry::file("big", noise(6 << 20)));
        let used = async || -> Result<u64> {
            let info = cx.cri().fs_info().await?.image_filesystems;
            Ok(info.first().and_then(|place| place.used_bytes).map_or(0, |used| used.value))
        };
        let one = ImageBuilder::new()
            .layer(big())?
            .layer(LayerBuilder::new().file("text", "one"))?
            .build();
        pulled(cx, &one).await?;
        e2e::eventually(20, "6 MiB are in use", async || Ok(used().await? >= 6 << 20)).await?;
        let first = used().await?;
        let two = ImageBuilder::new()
            .layer(big())?
            .layer(LayerBuilder::new().file("text", "two"))?
            .build();
        pulled(cx, &two).await?;
        let second = used().await?;
        ensure!(second < first + (1 << 20), "{first} became {second}");
        ensure!(first < 9 << 20, "6 MiB took {first}: the compressed layer was kept");
        Ok(())
    });
}
