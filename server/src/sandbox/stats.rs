//! What pods use: from their cgroups and network namespaces, never through a shim.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use runtime::cgroup::stats::Stats;

use super::{Sandbox, State};
use crate::app::{App, now};
use crate::blocking;
use crate::container::{self, list};
use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::network::{self, LinkCounters};

/// One measurement of a pod.
#[derive(Debug)]
pub struct Measured {
    /// Whose.
    pub sandbox: Arc<Sandbox>,
    /// When, nanoseconds since 1970.
    pub timestamp: i64,
    /// Of the cgroup that the pod's containers are below.
    pub stats: Stats,
    /// Its links but the loopback; none where its network is the node's.
    pub links: Option<Vec<LinkCounters>>,
    /// Its running containers.
    pub containers: Vec<container::stats::Measured>,
}

/// Measures one pod.
///
/// # Errors
/// It is not ready.
pub async fn measure_one(app: &Arc<App>, sandbox: Arc<Sandbox>) -> Result<Option<Measured>> {
    if sandbox.record().state != State::Ready {
        return Err(Error::WrongState {
            what: format!("sandbox {}", sandbox.id),
            state: "not ready".into(),
            problem: "it uses nothing that could be measured".into(),
        });
    }
    Ok(measure(app, vec![sandbox]).await?.pop())
}

/// Measures pods.
///
/// # Errors
/// Only a panic of the measuring.
pub async fn measure(app: &Arc<App>, sandboxes: Vec<Arc<Sandbox>>) -> Result<Vec<Measured>> {
    let app = app.clone();
    blocking::run("measure pods", move || {
        let running = list::Filter { state: Some(container::State::Running), ..Default::default() };
        let mut containers: HashMap<SandboxId, Vec<_>> = HashMap::new();
        for container in list::list(&app, &running, true) {
            let id = container.record().sandbox.clone();
            containers.entry(id).or_default().push(container);
        }
        // Traffic is counted on other threads meanwhile.
        let (links, measured) = std::thread::scope(|scope| {
            let links = scope.spawn(|| links(&app, &sandboxes));
            let measure = |sandbox: &Arc<Sandbox>| {
                measure_pod(&app, sandbox, containers.remove(&sandbox.id).unwrap_or_default())
            };
            let measured: Vec<Measured> = sandboxes.iter().map(measure).collect();
            (links.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), measured)
        });
        let together = measured.into_iter().zip(links);
        Ok(together.map(|(measured, links)| Measured { links, ..measured }).collect())
    })
    .await
}

fn measure_pod(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    containers: Vec<Arc<container::Container>>,
) -> Measured {
    let path = app.pod_cgroup(&sandbox.record());
    let stats = sandbox.meter.read(|| app.cgroups.cgroup(&path), app.most_metered);
    let timestamp = now();
    let measure = |container| container::stats::measure_one(app, container);
    let containers = containers.into_iter().map(measure).collect();
    Measured { timestamp, stats, links: None, containers, sandbox: sandbox.clone() }
}

/// What went over the links of each pod. The calling thread goes from one pod's network namespace to the next and does
/// not come back: nothing else may be started on it.
fn links(app: &App, sandboxes: &[Arc<Sandbox>]) -> Vec<Option<Vec<LinkCounters>>> {
    let links = |sandbox: &Arc<Sandbox>| {
        let own = sandbox.record().spec.has_network_namespace();
        own.then(|| links_of(&sandbox.id, &app.netns_path(&sandbox.id)))
    };
    sandboxes.iter().map(links).collect()
}

/// A pod that is just being stopped has no network any more.
fn links_of(id: &SandboxId, netns: &Path) -> Vec<LinkCounters> {
    network::counters_in(netns).unwrap_or_else(|error| {
        tracing::debug!(sandbox = %id, "count the traffic: {}", crate::error::chain(&error));
        Vec::new()
    })
}
