//! What CNI needs behind the calls: files that change, DELs that failed, GC, and the status of plugins.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::Notify;

use super::cni::{self, lock};
use crate::app::App;
use crate::blocking;
use crate::error::{Doing, chain};
use crate::events;
use crate::network::cni::config::{Network, Version};
use crate::network::cni::watch::Watch;
use crate::sandbox::{Sandbox, State};

/// A file that is being written, or several that come together, are read once.
const TOGETHER: Duration = Duration::from_millis(100);
/// When the directories cannot be watched they are read anew after this.
const UNWATCHED: Duration = Duration::from_secs(30);
/// Stack of the thread that watches files, bytes.
const WATCH_STACK: usize = 256 << 10;
/// Nothing is due.
const LONG: Duration = Duration::from_secs(3600);

/// Runs until the daemon ends. The configuration has been read once, and sandboxes of earlier daemons are in the store.
pub async fn keep(app: Arc<App>) {
    check_all(&app);
    let mut collected = BTreeSet::new();
    let files = Arc::new(Notify::new());
    if app.network.cni.watches() {
        watch(app.network.cni.directories.clone(), files.clone());
    }
    changed(&app, &mut collected).await;
    loop {
        let due = start_due(&app);
        if app.network.cni.take_status_wanted() {
            ask(&app);
        }
        tokio::select! {
            () = app.network.cni.wake.notified() => {}
            () = tokio::time::sleep_until(due.into()) => {}
            () = files.notified() => {
                if read(&app).await {
                    changed(&app, &mut collected).await;
                }
            }
        }
    }
}

/// Tells of changes for as long as the daemon runs: a thread that sleeps until the kernel tells of one. Whoever is told
/// reads after the new watch is there, so that no change falls between.
fn watch(directories: Vec<PathBuf>, changed: Arc<Notify>) {
    let work = move || {
        loop {
            let watch = Watch::open(&directories);
            changed.notify_one();
            let waited = watch.and_then(|watch| {
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                poll(&mut fds, None).doing(|| "wait for changes of CNI configurations").map(drop)
            });
            match waited {
                Ok(()) => std::thread::sleep(TOGETHER),
                Err(error) => {
                    tracing::warn!("{}; they are read every {UNWATCHED:?}", chain(&error));
                    std::thread::sleep(UNWATCHED);
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("cni-watch".into()).stack_size(WATCH_STACK);
    if let Err(error) = thread.spawn(work) {
        tracing::error!(%error, "start a thread: changes of CNI configurations are not seen");
    }
}

async fn read(app: &Arc<App>) -> bool {
    let app = app.clone();
    let read = blocking::run("read the CNI configuration", move || Ok(app.network.cni.load()));
    read.await.unwrap_or_else(|error| {
        tracing::warn!("{}", chain(&error));
        false
    })
}

/// Another configuration serves.
async fn changed(app: &Arc<App>, collected: &mut BTreeSet<String>) {
    for sandbox in app.store.sandboxes() {
        supersede(app, &sandbox).await;
    }
    ask(app);
    // Networks of before are collected, too, as they were configured then.
    let mut networks: Vec<Network> =
        app.network.cni.all().iter().map(|one| one.intent().network).collect();
    networks.extend(app.network.cni.loaded().network.map(|network| (*network).clone()));
    for network in networks.into_iter().rev() {
        if network.version >= Version::V1_1 && collected.insert(network.name.clone()) {
            collect(app, network);
        }
    }
}

/// A sandbox that a CRI client has on the built-in network is to be made anew once there is a CNI network.
pub async fn supersede(app: &Arc<App>, sandbox: &Arc<Sandbox>) {
    let old = {
        let record = sandbox.record();
        record.state == State::Ready && record.network.is_some() && !record.spec.local
    };
    if !old || !app.network.cni.serves(false) {
        return;
    }
    tracing::warn!(sandbox = %sandbox.id, "a CNI configuration has come: a pod on the built-in network is no longer ready");
    sandbox.change(|record| {
        record.state = State::NotReady;
        record.problem =
            "it is on the built-in network, and there is a CNI configuration now; it is to be made anew".into();
    });
    let saved = {
        let (app, sandbox) = (app.clone(), sandbox.clone());
        blocking::run("write the record", move || app.save_sandbox(&sandbox)).await
    };
    if let Err(error) = saved {
        tracing::error!(sandbox = %sandbox.id, "{}", chain(&error));
    }
    events::sandbox(app, sandbox);
}

/// Begins the DELs whose time has come; returns when the next one is due.
fn start_due(app: &Arc<App>) -> Instant {
    let now = Instant::now();
    let mut next = now + LONG;
    for attachment in app.network.cni.all() {
        let mut leaving = lock(&attachment.leaving);
        match *leaving {
            Some(due) if due <= now => {
                // Until it has failed or not; then it says itself when it is due.
                *leaving = Some(now + LONG);
                let (app, attachment) = (app.clone(), attachment.clone());
                app.clone().tasks.spawn(async move {
                    if let Err(error) = cni::try_detach(&app, &attachment).await {
                        let intent = attachment.intent();
                        tracing::warn!(
                            sandbox = %intent.sandbox,
                            pod = intent.pod,
                            failures = intent.failures,
                            "give back what a pod had of its network: {}",
                            chain(&error)
                        );
                    }
                });
            }
            Some(due) => next = next.min(due),
            None => {}
        }
    }
    next
}

/// Asks the plugins for their status.
fn ask(app: &Arc<App>) {
    let Some(network) = app.network.cni.loaded().network else { return };
    if app.network.cni.asking.swap(true, Relaxed) {
        return;
    }
    let app = app.clone();
    app.clone().tasks.spawn(async move {
        let work = {
            let (app, network) = (app.clone(), network.clone());
            move || {
                let cni = &app.network.cni;
                cni.plugins.status(&network, &cni.log.run_file_of("status"))
            }
        };
        let answer = blocking::run("ask CNI plugins for their status", work).await;
        app.network.cni.asking.store(false, Relaxed);
        app.network.cni.set_status(&network, answer);
    });
}

/// Has the plugins give back what no pod has.
fn collect(app: &Arc<App>, network: Network) {
    let app = app.clone();
    app.clone().tasks.spawn(async move {
        let _alone = app.network.cni.gc.write().await;
        let name = network.name.clone();
        let work = {
            let app = app.clone();
            move || {
                let cni = &app.network.cni;
                let file = cni.log.run_file_of("gc");
                file.clear()?;
                cni.plugins.gc(&network, &cni.valid(&network.name), &file)
            }
        };
        let done = blocking::run("collect what CNI networks have lost", work).await;
        if let Err(error) = done {
            tracing::warn!(network = name, "{}", chain(&error));
        }
    });
}

/// After a start: says what has become of the attachments of an earlier daemon.
fn check_all(app: &Arc<App>) {
    let there: Vec<_> = app.network.cni.all();
    let there: Vec<_> = there.into_iter().filter(|one| lock(&one.leaving).is_none()).collect();
    if there.is_empty() {
        return;
    }
    let app = app.clone();
    app.clone().tasks.spawn(async move {
        for attachment in there {
            let _busy = attachment.busy.lock().await;
            let _shared = app.network.cni.gc.read().await;
            let intent = attachment.intent();
            if !app.network.cni.holds(&intent.sandbox) {
                continue;
            }
            let pod = intent.pod.clone();
            let checked = {
                let app = app.clone();
                blocking::run("check a network", move || cni::check(&app, &intent)).await
            };
            if let Err(error) = checked {
                tracing::warn!(pod, "a pod's network is not as it was made: {}", chain(&error));
            }
        }
    });
}
