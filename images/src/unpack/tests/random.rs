//! Layers nobody thought of: random trees, hostile names, changed bytes.

use proptest::prelude::*;

use super::*;
use crate::testing::Dialect;

/// Few names, so that entries meet each other.
fn name() -> BoxedStrategy<String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "dd"]), 1..4)
        .prop_map(|parts| parts.join("/"))
        .boxed()
}

/// Names that want to get out.
fn hostile_name(canary: String) -> BoxedStrategy<String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "..",
        ".",
        "",
        "link",
        ".wh.a",
        ".wh..wh..opq",
        ".wh..",
        "canary",
        "file",
    ]);
    prop_oneof![
        4 => prop::collection::vec(part, 0..5).prop_map(|parts| parts.join("/")),
        1 => Just(canary.clone()),
        1 => Just(format!("link/{canary}/file")),
        1 => Just(format!("../../canary/{}", "x".repeat(120))),
    ]
    .boxed()
}

fn any_item(name: BoxedStrategy<String>) -> impl Strategy<Value = Item> {
    let kind = prop::sample::select(vec![b'0', b'0', b'0', b'5', b'5', b'1', b'2', b'6', 0, b'7']);
    let content = prop::collection::vec(any::<u8>(), 0..2000);
    let mode = prop::sample::select(vec![0o644, 0o755, 0, 0o4755, 0o1777, 0o2070, 0o7777]);
    let rest = (mode, -10_i64..2_000_000_000, any::<bool>(), any::<bool>());
    (kind, name.clone(), name, content, rest).prop_map(
        |(kind, name, link, content, (mode, mtime, gnu, fraction))| {
            let has_content = matches!(kind, 0 | b'0' | b'7');
            let mut item = Item {
                link: if matches!(kind, b'1' | b'2') { link.into() } else { Vec::new() },
                content: if has_content { content } else { Vec::new() },
                mode,
                mtime,
                dialect: if gnu { Dialect::Gnu } else { Dialect::Pax },
                ..item(kind, &name)
            };
            if fraction {
                item = item.record("mtime", format!("{mtime}.000001"));
            }
            item
        },
    )
}

/// Unpacks, and where that works checks that the same bytes come back. Whatever happens, the canary is whole.
fn check_stream(stream: &[u8]) -> std::result::Result<bool, TestCaseError> {
    let bench = bench();
    let done = bench.unpack(stream, Some(&bottom()));
    prop_assert!(bench.canary_is_whole());
    match done {
        Ok(unpacked) => {
            prop_assert!(bench.replay() == stream, "the tar made again differs");
            prop_assert_eq!(unpacked.diff_id, Digest::of(stream));
            Ok(true)
        }
        Err(Error::Invalid { .. } | Error::Limit { .. }) => Ok(false),
        Err(error) => Err(TestCaseError::fail(format!("{error:?}"))),
    }
}

/// A quarter of the usual number of cases, for each writes files; PROPTEST_CASES raises it.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases / 4, ..usual }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_layer_comes_back_to_the_byte(
        items in prop::collection::vec(any_item(name()), 0..20),
        padding in 0_usize..30_000,
    ) {
        // Files where directories have to be are refused, so most of these name no such.
        let mut stream = tar(&items);
        stream.resize(stream.len() + padding, 0);
        check_stream(&stream)?;
    }

    #[test]
    fn trees_without_contradictions_are_always_taken(
        files in prop::collection::btree_map(name(), prop::collection::vec(any::<u8>(), 0..3000), 0..20),
    ) {
        let items: Vec<_> = files
            .into_iter()
            .map(|(name, content)| file(&format!("{name}/file"), content))
            .collect();
        prop_assert!(check_stream(&tar(&items))?);
    }

    #[test]
    fn nothing_hostile_reaches_the_canary(
        items in prop::collection::vec(any_item(hostile_name("/tmp/../tmp/canary".to_owned())), 1..25),
        into_canary in any::<bool>(),
    ) {
        let bench = bench();
        let canary = bench.temp.path().join("canary");
        let target = if into_canary { canary.to_str().unwrap() } else { "../../../../../../../.." };
        let mut all = vec![symlink("link", target)];
        all.extend(items);
        // A refusal is fine; each item alone behind the link must be harmless too.
        for items in [&all[..], &all[..2]] {
            let bench = super::bench();
            let done = bench.unpack(&tar(items), Some(&bottom()));
            prop_assert!(bench.canary_is_whole());
            prop_assert!(!matches!(done, Err(Error::Io { .. })), "{done:?}");
        }
        prop_assert!(bench.canary_is_whole());
    }

    #[test]
    fn changed_bytes_never_do_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        seal in any::<bool>(),
    ) {
        let mut stream = tar(&[
            dir("d"),
            file("d/f", vec![1; 700]),
            file(&"l".repeat(120), "x").gnu(),
            file("p", "x").record("mtime", "1.5").record("SCHILY.xattr.user.a", "b"),
            symlink("s", "d"),
            hard_link("h", "d/f"),
        ].into_iter().chain(sparse_items()).collect::<Vec<_>>());
        for (index, byte) in changes {
            let at = index.index(stream.len());
            stream[at] = byte;
            if seal {
                // Only headers have a checksum to put right; in content this changes more bytes, which is fine.
                let block = at / 512 * 512;
                crate::testing::seal(&mut stream[block..block + 512]);
            }
        }
        check_stream(&stream)?;
    }
}

#[test]
fn every_truncation_is_refused() {
    let stream = tar(&[file("a", vec![7; 100_000]), dir("d"), file("d/b", b"text".repeat(9000))]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&stream).unwrap();
    let zstd = zstd::stream::encode_all(&stream[..], 3).unwrap();
    for whole in [stream, gzip.finish().unwrap(), zstd] {
        for percent in 0..100 {
            let bench = bench();
            let cancel = AtomicBool::new(false);
            let lowers = bottom();
            let job = Job {
                what: "layer x".to_owned(),
                blob: Some((Digest::of(&whole), whole.len() as u64)),
                diff_id: None,
                lowers: Some(&lowers),
                limits: &bench.limits,
                cancel: &cancel,
            };
            let cut = &whole[..whole.len() * percent / 100];
            assert!(
                unpack(cut, open(&bench.temp.path().join("work")), &job).is_err(),
                "{percent} %"
            );
        }
    }
}
