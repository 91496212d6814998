//! What layers become as a tree: whiteouts, opaque directories, links across layers, attributes, implied directories.

use anyhow::{Result, ensure};
use e2e::image::{Entry, Image, ImageBuilder, LayerBuilder, base};
use e2e::pod::ContainerBuilder;
use e2e::{Cx, same, test};

/// The tree of an image as a shell in it sees it.
async fn look(cx: &Cx, image: &Image, script: &str) -> Result<String> {
    let id = cx.pull_image(image).await?;
    let pod = cx.run_pod(cx.pod()).await?;
    cx.output(&pod, &ContainerBuilder::new(&id).shell(script)).await
}

fn on_busybox(layers: impl IntoIterator<Item = LayerBuilder>) -> Result<Image> {
    let image = layers.into_iter().try_fold(base::busybox()?, ImageBuilder::layer)?;
    Ok(image.build())
}

#[test]
fn whiteouts_remove_what_lies_below_and_nothing_else() {
    test(async |cx| {
        let layer = LayerBuilder::new;
        let image = on_busybox([
            layer()
                .dir("d")
                .file("d/gone", "1")
                .file("d/kept", "2")
                .dir("d/sub")
                .file("d/sub/x", "3")
                .file("d/again", "old"),
            // A whiteout does not touch its own layer, whichever comes first.
            layer()
                .whiteout("d/gone")
                .file("d/again", "new")
                .whiteout("d/again")
                .whiteout("d/sub")
                .whiteout("d/never"),
            layer().file("d/late", "4"),
        ])?;
        let script = "cd /d && find . | sort && cat again kept late";
        same("tree", look(cx, &image, script).await?.as_str(), ".\n./again\n./kept\n./late\nnew24")
    });
}

#[test]
fn an_opaque_directory_hides_all_below_it() {
    test(async |cx| {
        let layer = LayerBuilder::new;
        let image = on_busybox([
            layer()
                .dir("d")
                .file("d/a", "1")
                .dir("d/sub")
                .file("d/sub/x", "2")
                .dir("e")
                .file("e/a", "kept"),
            layer().dir("d").file("d/b", "3").opaque("d"),
            layer().file("d/c", "4").dir("d/sub").file("d/sub/y", "5"),
        ])?;
        let script = "cd / && find d e | sort";
        same(
            "tree",
            look(cx, &image, script).await?.as_str(),
            "d\nd/b\nd/c\nd/sub\nd/sub/y\ne\ne/a\n",
        )
    });
}

#[test]
fn a_file_and_a_directory_may_take_each_others_place() {
    test(async |cx| {
        let layer = LayerBuilder::new;
        let image = on_busybox([
            layer()
                .dir("was-dir")
                .file("was-dir/x", "1")
                .file("was-file", "2")
                .symlink("was-link", "/etc")
                .dir("stays")
                .file("stays/x", "s"),
            layer()
                .file("was-dir", "now a file")
                .dir("was-file")
                .file("was-file/y", "3")
                .dir("was-link")
                .file("was-link/z", "4")
                .dir("stays"),
        ])?;
        let script = "cd / && cat was-dir was-file/y was-link/z stays/x; ls -A was-link; test ! -e /etc/z && echo; ls -A was-file";
        same("tree", look(cx, &image, script).await?.as_str(), "now a file34sz\n\ny\n")
    });
}

#[test]
fn a_hard_link_may_lead_into_a_lower_layer() {
    test(async |cx| {
        let image = on_busybox([
            LayerBuilder::new()
                .dir("low")
                .entry(Entry::file("low/file", "content").mode(0o640).owner(5, 6)),
            LayerBuilder::new().dir("high").entry(Entry::hardlink("high/link", "low/file")),
        ])?;
        let script = "cat /high/link; stat -c ' %a %u:%g' /high/link";
        same("link", look(cx, &image, script).await?.as_str(), "content 640 5:6\n")
    });
}

#[test]
fn directories_that_are_only_implied_keep_what_they_were() {
    test(async |cx| {
        let image = on_busybox([
            LayerBuilder::new().entry(Entry::dir("srv").mode(0o1777).owner(9, 9)),
            LayerBuilder::new().file("tmp/x", "1").file("srv/y", "2").file("new/deep/z", "3"),
            LayerBuilder::new().file("tmp/w", "1"),
        ])?;
        let script = "stat -c '%a %u:%g' /tmp /srv /new /new/deep";
        same(
            "modes",
            look(cx, &image, script).await?.as_str(),
            "1777 0:0\n1777 9:9\n755 0:0\n755 0:0\n",
        )
    });
}

#[test]
fn a_layer_may_have_its_names_in_any_order_and_spelling() {
    test(async |cx| {
        let image = on_busybox([LayerBuilder::new()
            .file("./a/before-its-directory", "1")
            .entry(Entry::dir("./a/").mode(0o700))
            .file("/absolute", "2")
            .file("twice", "first")
            .file("twice", "second")
            .file("x//y///z", "3")
            .file("sp ace\u{2603}\ttab", "4")])?;
        let script = "stat -c %a /a; cat /a/before-its-directory /absolute /twice /x/y/z '/sp ace\u{2603}\ttab'";
        same("tree", look(cx, &image, script).await?.as_str(), "700\n12second34")
    });
}

#[test]
fn extended_attributes_and_file_capabilities_are_kept() {
    test(async |cx| {
        // vfs_cap_data of version 2, CAP_NET_RAW permitted and effective.
        let capability: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let program = std::fs::read(base::probe_path()?)?;
        let image = on_busybox([LayerBuilder::new()
            .entry(
                Entry::file("bin/capable", program)
                    .mode(0o755)
                    .xattr("security.capability", capability),
            )
            .entry(
                Entry::file("attributes", "x")
                    .xattr("user.e2e", "value")
                    .xattr("trusted.overlay.opaque", "y"),
            )])?;
        let id = cx.pull_image(&image).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&id).user(1000, None).command(&[
            "/bin/capable",
            "cat",
            "/proc/self/status",
        ]);
        let text = cx.output(&pod, &container).await?;
        ensure!(
            text.contains("CapEff:\t0000000000002000\n"),
            "the capability of the file is gone: {text}"
        );
        let container =
            ContainerBuilder::new(&id).command(&["/bin/probe", "xattr", "/attributes", "user.e2e"]);
        same("an attribute", cx.output(&pod, &container).await?.as_str(), "value\n")
    });
}

#[test]
fn sparse_and_long_files_are_whole() {
    test(async |cx| {
        // GNU sparse 1.0: the map stands in front of the data, in a block of its own.
        let mut data = format!("{:\0<512}", "2\n0\n512\n1048576\n512\n").into_bytes();
        data.extend([b'a'; 512]);
        data.extend([b'b'; 512]);
        let sparse = Entry::file("GNUSparseFile.0/sparse", data)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.name", "sparse")
            .pax("GNU.sparse.realsize", "2097152");
        let image = on_busybox([LayerBuilder::new().entry(sparse).file("after", "still in step")])?;
        let script = "stat -c %s /sparse; head -c 512 /sparse | tr -d a | wc -c; dd if=/sparse bs=512 skip=2048 count=1 2>/dev/null | tr -d b | wc -c; \
            tr -d '\\000' < /sparse | wc -c; cat /after";
        same(
            "sparse file",
            look(cx, &image, script).await?.as_str(),
            "2097152\n0\n0\n1024\nstill in step",
        )
    });
}

#[test]
fn hundreds_of_layers_are_one_tree() {
    test(async |cx| {
        let count = 200;
        let layers = (0..count).map(|number| {
            LayerBuilder::new().file(&format!("layers/{number}"), number.to_string())
        });
        let image = on_busybox(layers)?;
        let script = "ls /layers | wc -l; cat /layers/0 /layers/199";
        same("tree", look(cx, &image, script).await?.as_str(), "200\n0199")
    });
}
