//! E: layers that try to write outside, to lie about what they are, or to exhaust the node.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::fault::FaultServer;
use e2e::image::tar::{BLOCK, pax_records};
use e2e::image::{Compression, Content, Entry, Image, ImageBuilder, LayerBuilder, base};
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, same, test};

use super::Siege;

/// A small image of layers.
pub(super) fn image(layers: impl IntoIterator<Item = LayerBuilder>) -> Result<Image> {
    Ok(layers.into_iter().try_fold(ImageBuilder::new(), ImageBuilder::layer)?.build())
}

/// Pulls an image from a server of the test and removes it again: whether it was taken.
pub(super) async fn swallow(cx: &Cx, server: &FaultServer, image: &Image) -> Result<bool> {
    let reference = server.serve("e2e/x:1", image);
    let pull = cx.cri().pull(&reference, None);
    let outcome = tokio::time::timeout(e2e::scaled(Duration::from_secs(120)), pull)
        .await
        .context("no answer")?;
    match outcome {
        Ok(id) => {
            cx.cri().remove_image(&id).await?;
            Ok(true)
        }
        Err(status) => {
            ensure!(!status.message().is_empty(), "an error without a text");
            ensure!(status.code() != tonic::Code::Internal, "the daemon has failed: {status:?}");
            Ok(false)
        }
    }
}

#[test]
fn e_01_a_root_that_is_no_directory() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let siege = Siege::begin(cx, &[])?;
        for name in [".", "/", "./", "", "./.", "//"] {
            for entry in [
                Entry::symlink(name, cx.canary.w()),
                Entry::symlink(name, format!("../../../../../..{}", cx.canary.w())),
                Entry::hardlink(name, format!("{}/x", cx.canary.w())),
                Entry::char_device(name, 1, 3),
            ] {
                let layer =
                    LayerBuilder::new().entry(entry).file("x", "through the root").file("new", "x");
                swallow(cx, &server, &image([layer])?)
                    .await
                    .with_context(|| format!("{name:?}"))?;
            }
        }
        siege.end()
    });
}

#[test]
fn e_02_links_planted_for_later_entries() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let siege = Siege::begin(cx, &[])?;
        let (w, dir) = (cx.canary.w(), cx.canary.dir.to_string_lossy().into_owned());
        let up = format!("../../../../../../../..{w}");
        let plants: Vec<Vec<Entry>> = vec![
            vec![Entry::symlink("l", w.as_str())],
            vec![Entry::symlink("l", up.as_str())],
            vec![Entry::symlink("l", "m"), Entry::symlink("m", w.as_str())],
            vec![Entry::symlink("c", dir.as_str()), Entry::symlink("l", "c/w")],
            vec![
                Entry::dir("d"),
                Entry::symlink("d/up", "../.."),
                Entry::symlink("l", format!("d/up/../../../../../..{w}")),
            ],
            vec![Entry::symlink("l", "/proc/self/root")],
        ];
        let uses: Vec<Entry> = vec![
            Entry::file("l/new", "x"),
            Entry::file("l/x", "overwritten"),
            Entry::dir("l/newdir").mode(0o777),
            Entry::dir("l/bin").mode(0o777).owner(1, 1),
            Entry::symlink("l/link", "x"),
            Entry::hardlink("l/hard", "l/x"),
            Entry::hardlink("here", "l/x"),
            Entry::file("l/.wh.x", ""),
            Entry::file("l/.wh..wh..opq", ""),
            Entry::char_device("l/dev", 1, 3),
            Entry::fifo("l/pipe"),
            Entry::dir("l").mode(0o777).owner(1, 1),
        ];
        for plant in &plants {
            for entry in &uses {
                let (first, second) = (
                    LayerBuilder::new().entries(plant.clone()),
                    LayerBuilder::new().entry(entry.clone()),
                );
                let together = first.clone().entry(entry.clone());
                for layers in [vec![together], vec![first, second]] {
                    swallow(cx, &server, &image(layers)?).await?;
                }
            }
            cx.canary
                .check()
                .with_context(|| format!("{:?}", String::from_utf8_lossy(&plant[0].link)))?;
        }
        siege.end()
    });
}

#[test]
fn e_03_modes_and_owners_through_links() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let siege = Siege::begin(cx, &[])?;
        let file = format!("{}/x", cx.canary.w());
        let layer = LayerBuilder::new;
        for layers in [
            // A hard link to a link, whose mode is then set.
            vec![
                layer()
                    .symlink("s", &file)
                    .entry(Entry::hardlink("h", "s").mode(0o777).owner(1, 1)),
            ],
            vec![
                layer().symlink("s", &file),
                layer().entry(Entry::hardlink("h", "s").mode(0o777).owner(1, 1)),
            ],
            // A directory or a file in the place of a link.
            vec![
                layer().symlink("d", &cx.canary.w()).entry(Entry::dir("d").mode(0o777).owner(1, 1)),
            ],
            vec![
                layer().symlink("d", &cx.canary.w()),
                layer().entry(Entry::dir("d").mode(0o777).owner(1, 1)).file("d/x", "y"),
            ],
            vec![layer().symlink("f", &file).entry(Entry::file("f", "z").mode(0o777).owner(1, 1))],
            vec![layer().symlink("f", &file).entry(Entry::file("f", "z").xattr("user.e2e", "1"))],
        ] {
            swallow(cx, &server, &image(layers)?).await?;
        }
        siege.end()
    });
}

#[test]
fn e_04_names_that_lead_out() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let siege = Siege::begin(cx, &[])?;
        let (w, r) = (cx.canary.w(), cx.canary.r());
        let up = "../".repeat(30);
        let mut names = vec![
            w.clone() + "/new",
            format!("{up}{w}/new"),
            format!("a/../..{w}/new"),
            "..".into(),
            "../x".into(),
            "a/..".into(),
            "a/../../b".into(),
        ];
        names.extend(
            [1, 2, 17, 100, 300]
                .map(|depth| format!("{}{}{w}/new", "d/".repeat(depth), "../".repeat(depth + 9))),
        );
        for name in &names {
            for entry in [
                Entry::file(name.as_str(), "x"),
                Entry::dir(name.as_str()),
                Entry::symlink(name.as_str(), "x"),
                Entry::fifo(name.as_str()),
            ] {
                swallow(cx, &server, &image([LayerBuilder::new().entry(entry)])?).await?;
            }
        }
        // Hard links to the host would show its files in the container.
        for target in [
            format!("{r}/secret"),
            format!("{up}{r}/secret"),
            format!("s/../../../../../..{r}/secret"),
            "later".into(),
            "..".into(),
            "".into(),
        ] {
            let layer = LayerBuilder::new()
                .dir("s")
                .entry(Entry::hardlink("h", target.as_str()))
                .file("later", "x");
            let reference = server.serve("e2e/x:1", &base::busybox()?.layer(layer)?.build());
            if let Ok(id) = cx.cri().pull(&reference, None).await {
                let pod = cx.run_pod(cx.pod()).await?;
                let text =
                    super::attempt(cx, &pod, &ContainerBuilder::new(&id).shell("cat /h")).await;
                cx.canary.not_in(&target, &text.unwrap_or_default().0)?;
            }
        }
        siege.end()
    });
}

/// The names that Debian's tar finds in a tar, as it would make them; none where it finds fault with it.
fn listing(tar: &[u8], cx: &Cx) -> Result<Option<BTreeSet<String>>> {
    let file = cx.scratch.disk.join("listed.tar");
    std::fs::write(&file, tar)?;
    let output = Command::new("tar")
        .args(["--list", "--absolute-names", "--quoting-style=literal", "--file"])
        .arg(&file)
        .output()?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let clean = |name: &str| name.trim_start_matches("./").trim_matches('/').to_owned();
    Ok(output.status.success().then(|| names.lines().map(clean).collect()))
}

/// The names of an image that are not those of busybox.
async fn names_in(cx: &Cx, pod: &Pod, id: &str) -> Result<BTreeSet<String>> {
    let container = ContainerBuilder::new(id).shell("cd / && find . -xdev -iname 'e-*'");
    let text = cx.output(pod, &container).await?;
    Ok(text.lines().map(|line| line.trim_start_matches("./").to_owned()).collect())
}

/// Layers that are honest or lie about the size of an entry whose content is a tar of its own.
fn smugglers() -> Vec<(&'static str, LayerBuilder)> {
    // Content that is a tar of its own: seen where a parser loses the step.
    let mut smuggled = Vec::new();
    Entry::file("e-smuggled", "inside").write(&mut smuggled);
    smuggled.resize(4 * BLOCK, 0);
    let size = smuggled.len() as u64;
    let carrier = || Entry::file("e-carrier", smuggled.clone());
    let record = |text: &str| {
        let header = Entry { data: text.as_bytes().to_vec(), ..Entry::new(b'x', "PaxHeaders/x") };
        LayerBuilder::new().entry(header).entry(carrier())
    };
    let global = Entry {
        data: pax_records(&[(b"size".to_vec(), b"0".to_vec())]),
        ..Entry::new(b'g', "global")
    };
    let mut negative = carrier().header();
    negative[124..136].copy_from_slice(&[0xff; 12]);
    e2e::image::tar::set_checksum(&mut negative);
    vec![
        ("honest", LayerBuilder::new().entry(carrier())),
        (
            "a pax size with a size of zero",
            LayerBuilder::new().entry(carrier().claimed_size(0).pax("size", size.to_string())),
        ),
        ("a pax size of zero", LayerBuilder::new().entry(carrier().pax("size", "0"))),
        (
            "a pax size that is larger",
            LayerBuilder::new().entry(carrier().pax("size", (size + 512).to_string())),
        ),
        (
            "two pax sizes",
            LayerBuilder::new().entry(carrier().pax("size", "0").pax("size", size.to_string())),
        ),
        ("a pax size that is no number", LayerBuilder::new().entry(carrier().pax("size", "0x800"))),
        ("a negative pax size", LayerBuilder::new().entry(carrier().pax("size", "-1"))),
        ("a global size", LayerBuilder::new().entry(global).entry(carrier())),
        ("a negative size", LayerBuilder::new().raw(&negative).raw(&smuggled)),
        ("a record that is too short", record("5 size=0\n")),
        ("a record that is too long", record("99 size=0\n")),
        ("a record without an end", record("10 size=0 ")),
        ("a record without a value", record("8 size\n")),
        (
            "a pax header for a pax header",
            LayerBuilder::new()
                .entry(Entry {
                    data: pax_records(&[(b"size".to_vec(), b"0".to_vec())]),
                    ..Entry::new(b'x', "a")
                })
                .entry(carrier().pax("comment", "x")),
        ),
        ("a wrong checksum", {
            let mut header = carrier().header();
            header[0] = b'E';
            LayerBuilder::new().raw(&header).raw(&smuggled)
        }),
    ]
}

#[test]
fn e_05_entries_that_one_parser_sees_and_another_does_not() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let pod = cx.run_pod(cx.pod()).await?;
        cx.busybox().await?;
        let mut taken = 0;
        for (what, layer) in smugglers() {
            let expected = listing(&layer.tar(), cx)?;
            let reference = server.serve("e2e/x:1", &base::busybox()?.layer(layer)?.build());
            if let Ok(id) = cx.cri().pull(&reference, None).await {
                let expected = expected
                    .with_context(|| format!("{what}: taken, but tar finds fault with it"))?;
                same(what, names_in(cx, &pod, &id).await?, expected)?;
                cx.cri().remove_image(&id).await?;
                taken += 1;
            }
        }
        ensure!(taken > 0, "not even the honest one was taken");
        Ok(())
    });
}

/// Where tar and Go's archive/tar differ, with which most of the world unpacks images, we are with Go. Links and
/// directories have no content, whatever their size says: what follows is the next header.
#[test]
fn e_05_go_decides_where_parsers_differ() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let pod = cx.run_pod(cx.pod()).await?;
        cx.busybox().await?;
        let mut smuggled = Vec::new();
        Entry::file("e-next", "inside").write(&mut smuggled);
        for entry in [Entry::symlink("e-first", "x"), Entry::dir("e-first")] {
            let layer = LayerBuilder::new().entry(Entry { data: smuggled.clone(), ..entry });
            let reference = server.serve("e2e/x:1", &base::busybox()?.layer(layer)?.build());
            let id = cx.cri().pull(&reference, None).await?;
            let expected = ["e-first", "e-next"].map(str::to_owned).into();
            same("names", names_in(cx, &pod, &id).await?, expected)?;
            cx.cri().remove_image(&id).await?;
        }
        // Of two long names GNU's decides, for Go and for us.
        let layer = LayerBuilder::new()
            .entry(Entry { data: b"e-gnu\0".to_vec(), ..Entry::new(b'L', "././@LongLink") })
            .entry(Entry::file("e-short", "x").pax("path", "e-pax"));
        let reference = server.serve("e2e/x:1", &base::busybox()?.layer(layer)?.build());
        let id = cx.cri().pull(&reference, None).await?;
        same("a long name twice", names_in(cx, &pod, &id).await?, ["e-gnu".to_owned()].into())
    });
}

#[test]
fn e_07_packings_that_are_unknown_or_cut() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let threads = || {
            Ok::<_, anyhow::Error>(
                std::fs::read_dir(format!("/proc/{}/task", cx.daemon.pid()?))?.count(),
            )
        };
        let before = threads()?;
        for media_type in
            ["tar+xz", "tar+bzip2", "tar+lzma", "tar+", "tar+gzip+encrypted", "", "tar+zstd; a=b"]
        {
            let media_type = format!("application/vnd.oci.image.layer.v1.{media_type}");
            let layer = LayerBuilder::new()
                .raw(&[0xfd, b'7', b'z', b'X', b'Z', 0])
                .compression(Compression::None)
                .unfinished();
            ensure!(
                !swallow(cx, &server, &image([layer.media_type(&media_type)])?).await?,
                "{media_type} was taken"
            );
        }
        for compression in [Compression::Gzip, Compression::Zstd] {
            let whole = LayerBuilder::new()
                .file("x", vec![b'x'; 300_000])
                .file("y", "y")
                .compression(compression)
                .build()?;
            for part in 0..e2e::count(20, 100) {
                let mut layer = whole.clone();
                let length = layer.blob.bytes.len() * part / e2e::count(20, 100);
                layer.blob = Content::new(&layer.blob.media_type, layer.blob.bytes.slice(..length));
                ensure!(
                    !swallow(cx, &server, &ImageBuilder::new().built(layer).build()).await?,
                    "{compression:?} cut at {length}"
                );
            }
        }
        e2e::eventually(15, "no thread is left", async || Ok(threads()? <= before + 4)).await
    });
}

#[test]
fn e_08_other_users_of_the_node_see_nothing() {
    test(async |cx| {
        let shell = std::fs::read("/usr/bin/busybox")?;
        let layer = base::busybox_layer()?
            .entry(Entry::file("bin/suid-sh", shell).mode(0o4755))
            .file("secret", cx.canary.token.as_str());
        let id = cx.pull_image(&ImageBuilder::new().layer(layer)?.build()).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        cx.run(&pod, &ContainerBuilder::new(&id).command(&["/bin/probe", "idle"])).await?;
        let (root, state) = (cx.daemon.root.to_string_lossy(), cx.daemon.state.to_string_lossy());
        let script = format!(
            "find '{root}' '{state}' -mindepth 1 2>/dev/null; cat '{root}'/*/* '{state}'/*/* 2>/dev/null; true"
        );
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script])
            .output()?;
        let seen = String::from_utf8_lossy(&output.stdout).into_owned();
        let below_root: Vec<&str> = seen.lines().filter(|line| line.starts_with(&*root)).collect();
        ensure!(below_root.is_empty(), "another user sees {below_root:?}");
        cx.canary.not_in("another user", &seen)?;
        let sockets = format!("find '{state}' -type s -writable 2>/dev/null; true");
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &sockets])
            .output()?;
        same(
            "sockets that another user may write to",
            String::from_utf8_lossy(&output.stdout).into_owned().as_str(),
            "",
        )
    });
}

#[test]
fn e_09_one_name_for_two_contents() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let layer = |text: &str| LayerBuilder::new().file("text", text);
        let good = ImageBuilder::new().layer(layer("good"))?.build();
        same(
            "image id",
            cx.cri().pull(&server.serve("e2e/x:1", &good), None).await?,
            good.id.as_str(),
        )?;
        // The same config with another layer: its diff id does not fit.
        let mut other = ImageBuilder::new().layer(layer("other"))?.build();
        let config = good.blobs[0].clone();
        let descriptor = config.descriptor();
        other.blobs[0] = config;
        let other = other.patch_root(|root| root["config"] = descriptor)?;
        ensure!(
            cx.cri().pull(&server.serve("e2e/y:1", &other), None).await.is_err(),
            "another layer for the same image id"
        );
        let kept = cx.cri().image_status(&good.id).await?.image.context("the good one is gone")?;
        ensure!(
            !kept.repo_tags.iter().any(|tag| tag.contains("e2e/y")),
            "the tag was moved: {kept:?}"
        );
        // Layers of equal diff id behind different blobs are the same layer; a blob that claims a known diff id is not.
        let lie = ImageBuilder::new()
            .layer(layer("lie"))?
            .diff_ids(vec![layer("good").build()?.diff_id])
            .build();
        ensure!(
            cx.cri().pull(&server.serve("e2e/z:1", &lie), None).await.is_err(),
            "a layer that claims to be known"
        );
        Ok(())
    });
}

#[test]
fn e_10_names_and_attributes_of_the_overlay_itself() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let pod = cx.run_pod(cx.pod()).await?;
        let siege = Siege::begin(cx, &[])?;
        let low = || {
            base::busybox_layer().map(|layer| {
                layer
                    .dir("d")
                    .file("d/low", "low")
                    .dir("e")
                    .file("e/low", "low")
                    .symlink("to-d", "d")
            })
        };
        let high: Vec<(&str, LayerBuilder)> = vec![
            ("a device 0:0", LayerBuilder::new().entry(Entry::char_device("d/low", 0, 0))),
            (
                "opaque",
                LayerBuilder::new().entry(Entry::dir("d").xattr("trusted.overlay.opaque", "y")),
            ),
            (
                "opaque for a user",
                LayerBuilder::new().entry(Entry::dir("d").xattr("user.overlay.opaque", "y")),
            ),
            (
                "opaque, older",
                LayerBuilder::new().entry(Entry::dir("d").xattr("trusted.overlay.opaque", "x")),
            ),
            (
                "a redirect",
                LayerBuilder::new().entry(Entry::dir("f").xattr("trusted.overlay.redirect", "/e")),
            ),
            (
                "metacopy",
                LayerBuilder::new().entry(
                    Entry::file("d/low", "")
                        .xattr("trusted.overlay.metacopy", "")
                        .xattr("trusted.overlay.redirect", "/etc/passwd"),
                ),
            ),
            (
                "a whiteout by an attribute",
                LayerBuilder::new()
                    .entry(Entry::file("d/low", "low").xattr("trusted.overlay.whiteout", "y")),
            ),
            ("a whiteout of .", LayerBuilder::new().dir("d").file("d/.wh..", "")),
            ("a whiteout of ..", LayerBuilder::new().dir("d").file("d/.wh...", "")),
            ("a whiteout of nothing", LayerBuilder::new().dir("d").file("d/.wh.", "")),
            ("a whiteout with a slash", LayerBuilder::new().file(".wh.d/low", "")),
            ("opaque through a link", LayerBuilder::new().file("to-d/.wh..wh..opq", "")),
            (
                "a huge attribute",
                LayerBuilder::new()
                    .entry(Entry::file("g", "").xattr("user.big", vec![b'x'; 1 << 20])),
            ),
        ];
        for (what, layer) in high {
            let reference =
                server.serve("e2e/x:1", &ImageBuilder::new().layer(low()?)?.layer(layer)?.build());
            let Ok(id) = cx.cri().pull(&reference, None).await else { continue };
            let script = "cat /d/low /e/low 2>&1; test -e /f/low && echo redirected; ls -A /d";
            let text = cx
                .output(&pod, &ContainerBuilder::new(&id).command(&["/bin/sh", "-c", script]))
                .await
                .context(what)?;
            let device =
                what == "a device 0:0" || what == "opaque through a link" || what == "metacopy";
            ensure!(
                device || text.starts_with("lowlow"),
                "{what}: a lower file has vanished: {text}"
            );
            ensure!(!text.contains("redirected") && !text.contains("root:"), "{what}: {text}");
            cx.cri().remove_image(&id).await?;
        }
        siege.end()
    });
}
