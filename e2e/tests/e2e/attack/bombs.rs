//! Layers that are small on the way and large, or without an end, on the disk (E-06, E-11).

use anyhow::{Context, Result, ensure};
use e2e::fault::FaultServer;
use e2e::image::layer::compress;
use e2e::image::{Compression, Content, Entry, ImageBuilder, Layer, LayerBuilder};
use e2e::test;

use super::Siege;
use super::unpack::{image, swallow};

/// A layer of which the tar begins with some bytes and goes on with zeros, packed so that it is small.
fn zeros_behind(start: &[u8], mebibytes: usize) -> Result<Layer> {
    let part = compress(&vec![0; 16 << 20], Compression::Gzip)?;
    let mut blob = compress(start, Compression::Gzip)?.to_vec();
    for _ in 0..mebibytes / 16 {
        blob.extend_from_slice(&part);
    }
    let mut layer = LayerBuilder::new().build()?;
    layer.blob = Content::new(&layer.blob.media_type, blob);
    Ok(layer)
}

#[test]
fn e_06_endless_padding_names_and_maps() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let siege = Siege::begin(cx, &[])?;
        let large = e2e::count(1 << 10, 10 << 10);
        let tar = LayerBuilder::new().file("x", "x").tar();
        swallow(cx, &server, &ImageBuilder::new().built(zeros_behind(&tar, large)?).build())
            .await
            .context("padding")?;
        let huge = (large as u64) << 20;
        for (what, kind) in [
            ("a pax header", b'x'),
            ("a long name", b'L'),
            ("a long link", b'K'),
            ("a global header", b'g'),
        ] {
            let header = Entry::new(kind, "huge").claimed_size(huge).header();
            let taken = swallow(
                cx,
                &server,
                &ImageBuilder::new().built(zeros_behind(&header, large)?).build(),
            )
            .await?;
            ensure!(!taken, "{what} of {huge} bytes was taken");
        }
        // A sparse map of very many entries.
        let count = e2e::count(1_000_000, 10_000_000);
        let mut map = format!("{count}\n").into_bytes();
        (0..count).for_each(|n| map.extend_from_slice(format!("{n}\n0\n").as_bytes()));
        let sparse = Entry::file("GNUSparseFile.0/x", map)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0");
        let sparse = sparse.pax("GNU.sparse.name", "x").pax("GNU.sparse.realsize", "10000000");
        ensure!(
            !swallow(cx, &server, &image([LayerBuilder::new().entry(sparse)])?).await?,
            "the map was taken"
        );
        let size = u64::MAX >> 1;
        let huge = Entry::file("x", "").claimed_size(size);
        ensure!(
            !swallow(cx, &server, &image([LayerBuilder::new().entry(huge)])?).await?,
            "a file of {size} bytes was taken"
        );
        siege.end()
    });
}

/// A zstd frame that claims a window of 2 GiB (RFC 8878, 3.1.1.1.2: exponent 21, mantissa 0) around one raw block.
fn zstd_with_huge_window(bytes: &[u8]) -> Result<Vec<u8>> {
    let size = u32::try_from(bytes.len())?;
    let block = (size << 3 | 1).to_le_bytes();
    Ok([&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3], &block[..3], bytes].concat())
}

#[test]
fn e_11_bombs() {
    test(async |cx| {
        let server = FaultServer::start(&cx.netns)?;
        let siege = Siege::begin(cx, &[])?;
        let many = e2e::count(30_000, 1_000_000);
        let entries = (0..many).map(|n| Entry::file(format!("d{}/f{n}", n / 1000), ""));
        let same_name = (0..many).map(|n| Entry::file("same", n.to_string()));
        let links = std::iter::once(Entry::file("f", "x"))
            .chain((0..e2e::count(5_000, 65_500)).map(|n| Entry::hardlink(format!("h{n}"), "f")));
        let deep = Entry::file(format!("{}f", "d/".repeat(10_000)), "x");
        let layers: Vec<(&str, LayerBuilder)> = vec![
            ("many entries", LayerBuilder::new().entries(entries)),
            ("one name many times", LayerBuilder::new().entries(same_name)),
            ("many hard links", LayerBuilder::new().entries(links)),
            ("a deep tree", LayerBuilder::new().entry(deep)),
        ];
        for (what, layer) in layers {
            swallow(cx, &server, &image([layer])?).await.context(what)?;
        }
        let mut window = LayerBuilder::new().compression(Compression::Zstd).build()?;
        let tar = LayerBuilder::new().file("x", "x").tar();
        window.blob = Content::new(&window.blob.media_type, zstd_with_huge_window(&tar)?);
        swallow(cx, &server, &ImageBuilder::new().built(window).build())
            .await
            .context("a window of 2 GiB")?;
        let stack = (0..1000).map(|n| LayerBuilder::new().file(&n.to_string(), "x"));
        ensure!(!swallow(cx, &server, &image(stack)?).await?, "1000 layers were taken");
        ensure!(
            !swallow(cx, &server, &image([])?).await? || cx.cri().images().await?.is_empty(),
            "no layer"
        );
        // A gzip stream of many members is a good one.
        let layer = LayerBuilder::new().file("x", vec![b'x'; 100_000]);
        let parts: Vec<u8> = layer
            .tar()
            .chunks(1000)
            .map(|part| compress(part, Compression::Gzip))
            .collect::<Result<Vec<_>>>()?
            .concat();
        let mut members = layer.build()?;
        members.blob = Content::new(&members.blob.media_type, parts);
        ensure!(
            swallow(cx, &server, &ImageBuilder::new().built(members).build()).await?,
            "a gzip of many members"
        );
        siege.end()
    });
}
