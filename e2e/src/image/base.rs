//! The images that most tests start from: busybox with the probe, and the probe alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{Compression, Entry, ImageBuilder, Layer, LayerBuilder};
use crate::bin_dir;

/// Where Debian's busybox-static puts its binary.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Applets that are no use in a container, or are the binary itself.
const SKIPPED: [&str; 4] = ["busybox", "linuxrc", "dpkg", "rpm"];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    alice:x:1000:1000:Alice:/home/alice:/bin/sh\n\
    bob:x:1001:100:Bob:/home/bob:/bin/sh\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";

const GROUP: &str = "root:x:0:\n\
    daemon:x:1:\n\
    users:x:100:alice,bob\n\
    extra:x:101:alice\n\
    alice:x:1000:\n\
    nogroup:x:65534:\n";

/// The search path of the base images.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path of the probe in the base images.
pub const PROBE: &str = "/bin/probe";

/// busybox with a link for each applet, users, groups and the usual directories; runs `sh`.
pub fn busybox() -> Result<ImageBuilder> {
    static LAYER: OnceLock<Layer> = OnceLock::new();
    Ok(with_environment(ImageBuilder::new().built(once(&LAYER, || busybox_layer()?.build())?))
        .config("Cmd", json!(["sh"])))
}

/// The probe and an empty /tmp, nothing else.
pub fn probe_only() -> Result<ImageBuilder> {
    static LAYER: OnceLock<Layer> = OnceLock::new();
    let layer = once(&LAYER, || LayerBuilder::new().entries(probe_entries()?).build())?;
    Ok(with_environment(ImageBuilder::new().built(layer)).config("Entrypoint", json!([PROBE])))
}

/// The tree of the busybox image, for tests that change it before it becomes a layer.
pub fn busybox_layer() -> Result<LayerBuilder> {
    Ok(LayerBuilder::new().entries(busybox_entries()?).compression(Compression::Gzip))
}

/// The entries of the busybox image.
pub fn busybox_entries() -> Result<Vec<Entry>> {
    let mut entries = probe_entries()?;
    for dir in [
        "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin",
        "var", "var/tmp",
    ] {
        entries.push(Entry::dir(dir));
    }
    entries.push(Entry::dir("home/alice").owner(1000, 1000));
    entries.push(Entry::file("etc/passwd", PASSWD));
    entries.push(Entry::file("etc/group", GROUP));
    let program =
        std::fs::read(BUSYBOX).context("read busybox: install Debian's busybox-static")?;
    entries.push(Entry::file("bin/busybox", program).mode(0o755));
    for applet in applets()? {
        entries.push(Entry::symlink(format!("bin/{applet}"), "busybox"));
    }
    Ok(entries)
}

fn probe_entries() -> Result<Vec<Entry>> {
    Ok(vec![
        Entry::dir("bin"),
        Entry::dir("tmp").mode(0o1777),
        Entry::file("bin/probe", std::fs::read(probe_path()?)?).mode(0o755),
    ])
}

fn with_environment(image: ImageBuilder) -> ImageBuilder {
    image.config("Env", json!([format!("PATH={PATH}")]))
}

/// The probe on this machine: static, so that it runs in an image without libraries.
pub fn probe_path() -> Result<PathBuf> {
    let path = bin_dir().join("probe");
    if !Path::exists(&path) {
        bail!("{} is missing: hack/e2e builds it, or set BERTH_BIN_DIR", path.display());
    }
    Ok(path)
}

fn applets() -> Result<Vec<String>> {
    let output = Command::new(BUSYBOX).arg("--list").output().context("list busybox's applets")?;
    let list = String::from_utf8(output.stdout)?;
    Ok(list.lines().filter(|applet| !SKIPPED.contains(applet)).map(str::to_owned).collect())
}

fn once(cell: &OnceLock<Layer>, make: impl FnOnce() -> Result<Layer>) -> Result<Layer> {
    if let Some(layer) = cell.get() {
        return Ok(layer.clone());
    }
    let layer = make()?;
    Ok(cell.get_or_init(|| layer).clone())
}
