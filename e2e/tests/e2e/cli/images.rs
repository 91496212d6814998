//! Images by the command line: pull, list, remove, import, export, prune.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Daemon, Options};
use e2e::image::{Compression, Image, ImageBuilder, LayerBuilder, base, digest_of};
use e2e::netns::success;
use e2e::{Cx, same, test};
use serde_json::{Value, json};

use super::{bad, detached, good, image};

#[test]
fn an_image_is_pulled_listed_and_removed() {
    test(async |cx| {
        let image = image().await?;
        let text = good(cx, &["pull", &image])?;
        ensure!(
            !text.contains('\r') && !text.contains('\x1b'),
            "bars where there is no terminal: {text:?}"
        );
        let (name, _) = image.rsplit_once(':').context("no tag")?;
        let table = good(cx, &["images"])?;
        ensure!(table.contains(name) && table.contains("latest"), "{table}");
        ensure!(
            bad(cx, &["pull", &format!("{name}-none")], 1)?.contains(name),
            "the error does not name the image"
        );
        // In use it stays; by force it goes, and what runs goes on.
        let id = detached(cx, &["--name", "user", &image, "probe", "idle"])?;
        ensure!(
            bad(cx, &["rmi", &image], 1)?.contains(&id[..12]),
            "the error does not name the container"
        );
        good(cx, &["rmi", "-f", &image])?;
        ensure!(!good(cx, &["images"])?.contains(name), "still listed");
        same("exec", good(cx, &["exec", "user", "echo", "on"])?.as_str(), "on\n")?;
        ensure!(
            bad(cx, &["rmi", &image], 1)?.contains(&image),
            "the error does not name the image"
        );
        Ok(())
    });
}

fn three_layers() -> Result<Image> {
    let layer = |name: &str, compression| {
        LayerBuilder::new().file(name, name.repeat(1000)).dir("d").compression(compression)
    };
    let image = base::busybox()?.layer(layer("plain", Compression::None))?;
    let image =
        image.layer(layer("gzip", Compression::Gzip))?.layer(layer("zstd", Compression::Zstd))?;
    Ok(image.layer(LayerBuilder::new().whiteout("plain").symlink("link", "d"))?.build())
}

/// The digests in an OCI archive, each of them checked, and the id of its image.
fn contents(cx: &Cx, archive: &Path) -> Result<(BTreeSet<String>, String)> {
    let dir = cx.dir("archive")?;
    std::fs::remove_dir_all(&dir)?;
    let dir = cx.dir("archive")?;
    let untar = Command::new("tar").arg("-C").arg(&dir).arg("-xf").arg(archive).output()?;
    success("unpack an archive", untar)?;
    let mut digests = BTreeSet::new();
    for entry in std::fs::read_dir(dir.join("blobs/sha256"))? {
        let path = entry?.path();
        let digest = digest_of(&std::fs::read(&path)?);
        same(
            "name of a blob",
            digest.strip_prefix("sha256:"),
            path.file_name().and_then(|name| name.to_str()),
        )?;
        digests.insert(digest);
    }
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
    let root = index["manifests"][0]["digest"]
        .as_str()
        .context("no manifest")?
        .trim_start_matches("sha256:");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(dir.join("blobs/sha256").join(root))?)?;
    let id = manifest["config"]["digest"].as_str().context("no config")?.to_owned();
    Ok((digests, id))
}

#[test]
fn an_export_has_every_digest_and_comes_back_as_the_same_image() {
    test(async |cx| {
        let image = three_layers()?;
        let reference = cx.push(&cx.unique(), &image).await?;
        good(cx, &["pull", &reference])?;
        let archive = cx.scratch.disk.join("image.tar");
        let path = archive.to_string_lossy().into_owned();
        good(cx, &["image", "export", &reference, &path])?;
        let (digests, id) = contents(cx, &archive)?;
        same("image id", &id, &image.id)?;
        ensure!(digests.contains(&image.id), "the config has another digest");
        // What was plain is the very blob; what was packed may be packed again, but holds the same tar.
        ensure!(digests.contains(&image.layer(1).digest), "the plain layer has another digest");
        let other =
            Daemon::start(&cx.scratch, "other", cx.netns.clone(), Options::default()).await?;
        let import = other.berth(&["image", "import", &path, "again:1"]).output()?;
        success("import", import)?;
        let status = other
            .cri()
            .image_status("again:1")
            .await?
            .image
            .context("not there after the import")?;
        same("image id", &status.id, &image.id)?;
        // And out of it again: the archive is the same set of blobs.
        let second = cx.scratch.disk.join("second.tar");
        let export =
            other.berth(&["image", "export", "again:1", &second.to_string_lossy()]).output()?;
        success("export again", export)?;
        same("blobs", contents(cx, &second)?, (digests, id))?;
        let run = other
            .berth(&[
                "run",
                "--rm",
                "--net",
                "host",
                "again:1",
                "sh",
                "-c",
                "ls -d /plain /gzip /link",
            ])
            .output()?;
        same("tree", String::from_utf8_lossy(&run.stdout).as_ref(), "/gzip\n/link\n")?;
        other.stop().await.map(drop)
    });
}

#[test]
fn layouts_docker_archives_and_trees_are_imported() {
    test(async |cx| {
        let image = base::busybox()?.config("Env", json!(["KIND=layout"])).build();
        let layout = cx.dir("layout")?;
        image.write_layout(&layout, "from-layout:1")?;
        good(cx, &["image", "import", &layout.to_string_lossy()])?;
        let status = cx
            .cri()
            .image_status("from-layout:1")
            .await?
            .image
            .context("the layout is not there")?;
        same("image id", &status.id, &image.id)?;
        // As `docker save` writes it.
        let docker = cx.dir("docker")?;
        let plain = base::busybox_layer()?;
        std::fs::write(docker.join("layer.tar"), plain.tar())?;
        let image =
            ImageBuilder::new().layer(plain)?.config("Cmd", json!(["/bin/echo", "saved"])).build();
        std::fs::write(docker.join("config.json"), &image.blobs[0].bytes)?;
        let list =
            json!([{"Config": "config.json", "RepoTags": ["saved:7"], "Layers": ["layer.tar"]}]);
        std::fs::write(docker.join("manifest.json"), list.to_string())?;
        let archive = cx.scratch.disk.join("docker.tar");
        success(
            "tar",
            Command::new("tar")
                .arg("-C")
                .arg(&docker)
                .arg("-cf")
                .arg(&archive)
                .arg(".")
                .output()?,
        )?;
        good(cx, &["image", "import", &archive.to_string_lossy()])?;
        same(
            "a docker archive runs",
            good(cx, &["run", "--rm", "--net", "host", "saved:7"])?.as_str(),
            "saved\n",
        )?;
        same(
            "image id",
            &cx.cri().image_status("saved:7").await?.image.context("no image")?.id,
            &image.id,
        )?;
        // A tree without any word about it.
        let tree = cx.scratch.disk.join("tree.tar");
        std::fs::write(&tree, base::busybox_layer()?.file("hello", "world\n").tar())?;
        good(cx, &["image", "import", &tree.to_string_lossy(), "tree:1"])?;
        same(
            "a tree",
            good(cx, &["run", "--rm", "--net", "host", "tree:1", "/bin/cat", "/hello"])?.as_str(),
            "world\n",
        )?;
        ensure!(
            bad(cx, &["image", "import", "/etc/passwd", "x:1"], 1)?.contains("/etc/passwd"),
            "what is no image"
        );
        ensure!(
            bad(cx, &["image", "import", "/no/such/file"], 1)?.contains("/no/such/file"),
            "what is not there"
        );
        Ok(())
    });
}

#[test]
fn prune_takes_what_nobody_needs() {
    test(async |cx| {
        let used = image().await?;
        detached(cx, &["--name", "user", &used, "probe", "idle"])?;
        let name = cx.unique();
        let old = cx
            .push(&name, &ImageBuilder::new().layer(LayerBuilder::new().file("x", "old"))?.build())
            .await?;
        good(cx, &["pull", &old])?;
        cx.push(&name, &ImageBuilder::new().layer(LayerBuilder::new().file("x", "new"))?.build())
            .await?;
        good(cx, &["pull", &old])?;
        same("images", cx.cri().images().await?.len(), 3)?;
        good(cx, &["image", "prune"])?;
        same("without the nameless one", cx.cri().images().await?.len(), 2)?;
        good(cx, &["image", "prune", "-a"])?;
        let left = cx.cri().images().await?;
        ensure!(left.len() == 1 && left[0].repo_tags.contains(&used), "{left:?}");
        Ok(())
    });
}

#[test]
fn credentials_of_docker_are_used() {
    test(async |cx| {
        let registry = e2e::registry::Registry::start(&cx.dir("registry")?, true)?;
        cx.netns.forward(registry.port())?;
        let image = ImageBuilder::new().layer(LayerBuilder::new().file("x", "locked"))?.build();
        let reference = registry.push("e2e/locked:1", &image).await?;
        bad(cx, &["pull", &reference], 1)?;
        let docker = cx.dir("docker-config")?;
        let (user, password) = e2e::registry::LOGIN;
        let auth = e2e::fault::answer::base64(&format!("{user}:{password}"));
        std::fs::write(
            docker.join("config.json"),
            json!({"auths": {registry.address(): {"auth": auth}}}).to_string(),
        )?;
        let output =
            cx.daemon.berth(&["pull", &reference]).env("DOCKER_CONFIG", &docker).output()?;
        success("pull with the client's config.json", output)?;
        let log = std::fs::read_to_string(&cx.daemon.log)?;
        ensure!(!log.contains(&auth) && !log.contains(password), "a credential is in the log");
        Ok(())
    });
}
