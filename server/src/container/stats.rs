//! What containers use: from their cgroups, never through a shim; the writable layer's size from memory.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runtime::cgroup::stats::Stats;

use super::{Container, State};
use crate::app::{App, now};
use crate::blocking;
use crate::error::Result;
use crate::id::ContainerId;

/// A size is measured anew when it is asked for and older than this.
const FRESH: Duration = Duration::from_secs(10);

/// One measurement.
#[derive(Debug)]
pub struct Measured {
    /// Whose.
    pub container: Arc<Container>,
    /// When, nanoseconds since 1970.
    pub timestamp: i64,
    /// From its cgroup; none where it does not run.
    pub stats: Option<Stats>,
    /// Of its writable layer, as far as it is known.
    pub layer: Layer,
}

/// The size of a writable layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layer {
    /// On disk.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Measures containers.
///
/// # Errors
/// Only a panic of the measuring.
pub async fn measure(app: &Arc<App>, containers: Vec<Arc<Container>>) -> Result<Vec<Measured>> {
    let worker = app.clone();
    let measured = blocking::run("measure containers", move || {
        Ok(containers
            .into_iter()
            .map(|container| measure_one(&worker, container))
            .collect::<Vec<_>>())
    })
    .await?;
    Ok(measured)
}

/// Measures one container. Blocks.
pub fn measure_one(app: &Arc<App>, container: Arc<Container>) -> Measured {
    let runs = matches!(container.record().state, State::Running | State::Created);
    let stats = app.sandbox_of(&container).ok().filter(|_| runs).map(|sandbox| {
        let cgroup = || app.cgroups.cgroup(&app.container_cgroup(&sandbox.record(), &container.id));
        container.meter.read(cgroup, app.most_metered)
    });
    let layer = app.layers.size(app, &container.id);
    Measured { timestamp: now(), stats, layer, container }
}

/// Sizes of writable layers: the last known ones, measured in the background.
#[derive(Debug, Default)]
pub struct Layers {
    known: Mutex<HashMap<ContainerId, Known>>,
    /// Those that wait for the one thread that measures; none while there is no such thread.
    waiting: Mutex<Option<Vec<ContainerId>>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    layer: Layer,
    /// None while it is being measured.
    since: Option<Instant>,
}

impl Layers {
    /// The last known size; a new one is measured behind the answer where that is old.
    fn size(&self, app: &Arc<App>, id: &ContainerId) -> Layer {
        let mut known = self.known.lock().expect("nobody panics with this lock");
        let entry =
            known.entry(id.clone()).or_insert(Known { layer: Layer::default(), since: None });
        let first = entry.since.is_none() && entry.layer == Layer::default();
        let old = entry.since.is_some_and(|since| since.elapsed() > FRESH);
        let layer = entry.layer;
        if first || old {
            entry.since = None;
            // Marked as under way, so that it is measured once.
            entry.layer.inodes = entry.layer.inodes.max(1);
            drop(known);
            self.refresh(app, id);
        }
        layer
    }

    /// The sizes of all writable layers together.
    pub fn total(&self, app: &Arc<App>) -> Layer {
        let containers = app.store.containers();
        let sizes = containers.iter().map(|container| self.size(app, &container.id));
        sizes.fold(Layer::default(), |sum, layer| Layer {
            bytes: sum.bytes + layer.bytes,
            inodes: sum.inodes + layer.inodes,
        })
    }

    /// One thread measures them all, one after the other: a node of many containers is not all at its disk for that.
    fn refresh(&self, app: &Arc<App>, id: &ContainerId) {
        let mut waiting = self.waiting.lock().expect("nobody panics with this lock");
        if let Some(waiting) = &mut *waiting {
            waiting.push(id.clone());
            return;
        }
        *waiting = Some(vec![id.clone()]);
        let app = app.clone();
        app.clone().tasks.spawn_blocking(move || {
            while let Some(id) = app.layers.next() {
                let layer = walk(app.store.container_directory(&id).join("upper"));
                let mut known = app.layers.known.lock().expect("nobody panics with this lock");
                // It may be gone by now.
                if let Some(known) = known.get_mut(&id) {
                    *known = Known { layer, since: Some(Instant::now()) };
                }
            }
        });
    }

    fn next(&self) -> Option<ContainerId> {
        let mut waiting = self.waiting.lock().expect("nobody panics with this lock");
        let next = waiting.as_mut().and_then(Vec::pop);
        if next.is_none() {
            *waiting = None;
        }
        next
    }

    /// A container is gone.
    pub fn forget(&self, id: &ContainerId) {
        self.known.lock().expect("nobody panics with this lock").remove(id);
    }
}

/// What goes away meanwhile does not count. A list of directories and no recursion: how deep they are is the container's
/// to say.
fn walk(directory: PathBuf) -> Layer {
    let mut layer = Layer::default();
    let mut directories = vec![directory];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.filter_map(std::io::Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            layer.inodes += 1;
            layer.bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    layer
}
