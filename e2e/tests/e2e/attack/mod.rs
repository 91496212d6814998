//! Hostile images, pods and registries. Each test is named by the id of its threat in the catalogue.
//!
//! What a test shows is not that the attack is refused (often it may go on, inside the container) but that nothing of
//! the host was read, written or left behind.

mod bombs;
mod handles;
mod hostile;
mod registry;
mod rootfs;
mod unpack;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::Cx;
use e2e::canary::{Watch, sysctls};
use e2e::image::{Entry, Image, ImageBuilder, LayerBuilder, base};
use e2e::pod::{ContainerBuilder, Pod};

/// What is watched while an attack goes on.
struct Siege<'a> {
    cx: &'a Cx,
    watch: Watch,
    sysctls: BTreeMap<PathBuf, Vec<u8>>,
}

impl<'a> Siege<'a> {
    /// Begins to watch the disk. The daemon's directories, logs and `volumes` may change.
    fn begin(cx: &'a Cx, volumes: &[&Path]) -> Result<Siege<'a>> {
        let mut allowed = vec![cx.scratch.dir("berth")?, cx.logs(), cx.daemon.root.clone()];
        allowed.extend(volumes.iter().map(|volume| volume.to_path_buf()));
        Ok(Siege { cx, watch: Watch::new(&cx.scratch.disk, allowed)?, sysctls: sysctls() })
    }

    /// That nothing on the host was touched.
    fn end(self) -> Result<()> {
        let daemon = self.cx.daemon.pid()?;
        let ours = |pid: i32| {
            let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            pid == daemon || cgroup.contains(&self.cx.daemon.instance)
        };
        let violations = self.watch.violations(ours)?;
        ensure!(violations.is_empty(), "the host's files were touched:\n{}", violations.join("\n"));
        self.cx.canary.check()?;
        let now = sysctls();
        let changed: Vec<_> =
            now.iter().filter(|(path, value)| self.sysctls.get(*path) != Some(value)).collect();
        ensure!(changed.is_empty(), "sysctls have changed: {changed:?}");
        let peak = self.cx.daemon.peak_memory()?;
        ensure!(peak < 256 << 20, "the daemon has taken {peak} bytes");
        Ok(())
    }
}

/// busybox without what the entries replace, and the entries in its place.
fn busybox_with(entries: Vec<Entry>) -> Result<ImageBuilder> {
    let replaced = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        entries.iter().any(|entry| {
            let other = String::from_utf8_lossy(&entry.path).into_owned();
            path == other || path.starts_with(&format!("{other}/"))
        })
    };
    let kept: Vec<Entry> =
        base::busybox_entries()?.into_iter().filter(|entry| !replaced(&entry.path)).collect();
    ImageBuilder::new().layer(LayerBuilder::new().entries(kept).entries(entries))
}

/// busybox with a layer on top that puts the entries in place of what is there.
fn over_busybox(entries: Vec<Entry>) -> Result<ImageBuilder> {
    base::busybox()?.layer(LayerBuilder::new().entries(entries))
}

/// Runs a container; an error is as good as an end. Returns what it printed and its exit code, if it ran.
async fn attempt(cx: &Cx, pod: &Pod, container: &ContainerBuilder) -> Option<(String, i32)> {
    let id = cx.create(pod, container).await.ok()?;
    let started = cx.cri().start(&id).await.is_ok();
    let end = if started { cx.wait(&id).await.ok() } else { None };
    let log = std::fs::read(pod.log(&container.config)).unwrap_or_default();
    cx.cri().remove(&id).await.ok();
    Some((String::from_utf8_lossy(&log).into_owned(), end?.exit_code))
}

/// Pulls an image and runs a line of shell in it; all of it may fail.
async fn attempt_image(
    cx: &Cx,
    pod: &Pod,
    image: &Image,
    container: impl FnOnce(&str) -> ContainerBuilder,
) -> Result<Option<String>> {
    let reference = cx.push(&cx.unique(), image).await?;
    let Ok(id) = cx.cri().pull(&reference, None).await else { return Ok(None) };
    let outcome = attempt(cx, pod, &container(&id)).await;
    cx.cri().remove_image(&id).await.context("remove the image of an attack")?;
    Ok(outcome.map(|(text, _)| text))
}
