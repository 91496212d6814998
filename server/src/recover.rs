//! Start-up: what a daemon before this one has left is taken over, or taken away.
//!
//! Every sandbox is looked at by itself and at the same time as the others. Serving begins when all shims have
//! answered, or after a moment without those that have not: a mute one is broken soon, and in nobody's way.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use proto::shim::{ContainerReport, ContainerState, Exit, Hello, HelloReply, reply, request};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::app::App;
use crate::container::{Container, State, create, remove, restart, stop};
use crate::error::{Error, Result, chain};
use crate::events;
use crate::id::SandboxId;
use crate::sandbox::{self, Sandbox, run, teardown};
use crate::shim::{self, Shim};
use crate::store::{LoadedSandbox, gone_is_fine};
use crate::{blocking, liveness, monitor};

/// A shim that takes longer to say hello is taken for dead.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Sandboxes that are looked at at the same time.
const AT_ONCE: usize = 64;
/// Nobody is served for so long while shims have not answered. Until then a sandbox is what its record says.
const PATIENCE: Duration = Duration::from_millis(50);

/// Takes over everything. Nobody is served before it is done, but for sandboxes whose shim does not answer.
///
/// # Errors
/// The records cannot be listed, or the network of running pods cannot be kept up. One broken sandbox is no error.
pub async fn recover(app: &Arc<App>) -> Result<()> {
    let loaded = {
        let app = app.clone();
        blocking::run("read the records", move || {
            app.make_cgroups()?;
            let loaded = app.store.load()?;
            let live = loaded.sandboxes.iter().filter(|found| found.this_boot);
            let known: BTreeSet<_> =
                loaded.sandboxes.iter().map(|found| found.sandbox.id.clone()).collect();
            app.network.recover(
                live.filter_map(|found| found.sandbox.network.clone()).collect(),
                &|id| known.contains(id),
            )?;
            Ok(loaded)
        })
        .await?
    };
    for path in &loaded.damaged {
        tracing::warn!(path = %path.display(), "a record is damaged: it is dropped");
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        if let Err(error) = gone_is_fine(removed) {
            tracing::warn!(path = %path.display(), %error, "drop a damaged record");
        }
    }
    take_over_all(app, loaded.sandboxes).await;
    let app = app.clone();
    blocking::run("sweep what has no record", move || {
        sweep(&app);
        app.images.start_collecting();
        Ok(())
    })
    .await
}

async fn take_over_all(app: &Arc<App>, found: Vec<LoadedSandbox>) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut work = JoinSet::new();
    // All are there before anything is sent or served.
    let found: Vec<Found> = found.into_iter().map(|found| insert(app, found)).collect();
    for found in found {
        let (app, at_once) = (app.clone(), at_once.clone());
        work.spawn(async move {
            // Nobody closes the semaphore.
            let _turn = at_once.acquire().await;
            take_over(&app, found).await;
        });
    }
    let all = async { while work.join_next().await.is_some() {} };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        tracing::warn!(shims = work.len(), "some shims do not answer yet: serving begins");
        app.tasks.spawn(async move { work.join_all().await });
    }
}

/// A sandbox of an earlier daemon.
struct Found {
    sandbox: Arc<Sandbox>,
    containers: Vec<Arc<Container>>,
    this_boot: bool,
}

fn insert(app: &App, found: LoadedSandbox) -> Found {
    let sandbox = Arc::new(Sandbox::new(found.sandbox));
    let containers: Vec<Arc<Container>> =
        found.containers.into_iter().map(|record| Arc::new(Container::new(record))).collect();
    app.store.insert_sandbox(&sandbox);
    for container in &containers {
        app.store.insert_container(container);
        hold_layers(app, container);
    }
    Found { sandbox, containers, this_boot: found.this_boot }
}

async fn take_over(app: &Arc<App>, found: Found) {
    let Found { sandbox, containers, this_boot } = found;
    let _one_at_a_time = sandbox.lifecycle.lock().await;
    let hello = if this_boot { connect(app, &sandbox).await } else { Err(rebooted()) };
    let result = match hello {
        Ok(hello) if sandbox.record().state == sandbox::State::Ready && hello.namespaces_made => {
            settle(app, &sandbox, &containers, &hello).await
        }
        Ok(_) => {
            end(app, &sandbox, &containers, "it was being made or stopped when the daemon ended")
                .await
        }
        Err(error) => end(app, &sandbox, &containers, &chain(&error)).await,
    };
    if let Err(error) = result {
        tracing::error!(sandbox = %sandbox.id, "take over a sandbox: {}", chain(&error));
    }
}

fn rebooted() -> Error {
    Error::Unavailable {
        what: "the shim".into(),
        problem: "the machine has been started anew since".into(),
    }
}

/// Layers that are gone are an error for the next start, not for this one.
fn hold_layers(app: &App, container: &Container) {
    let record = container.record().clone();
    let mounted = record.mounted_images.iter().map(|image| (&image.id, &image.layers));
    for (id, layers) in mounted.chain([(&record.image.id, &record.image.layers)]) {
        if let Err(error) = crate::image::hold_again(app, container, id, layers) {
            tracing::warn!(container = %container.id, image = id, "hold the layers: {}", chain(&error));
        }
    }
}

async fn connect(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<HelloReply> {
    let socket = {
        let (app, id) = (app.clone(), sandbox.id.clone());
        let connect = move || {
            if liveness::shim_is_stopped(&app, &id).unwrap_or(false) {
                return Err(Error::Unavailable {
                    what: format!("the shim of sandbox {id}"),
                    problem: "it is stopped by a signal and answers nobody".into(),
                });
            }
            shim::connect(&app.store.sandbox_directory(&id))
        };
        blocking::within(HELLO_DEADLINE, "connect to a shim", connect).await?
    };
    let shim: Arc<Shim> = run::connect(app, sandbox, socket, None)?;
    let hello = Hello { version: runtime::shim::protocol::VERSION };
    let (result, _) = shim.call(request::Call::Hello(hello), &[], HELLO_DEADLINE).await?;
    if let reply::Result::Hello(hello) = result {
        shim.set_pid(hello.shim_pid);
        return Ok(hello);
    }
    Err(Error::Failed { doing: "greet a shim".into(), source: "it answered something else".into() })
}

/// The shim lives: its word counts.
async fn settle(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    containers: &[Arc<Container>],
    hello: &HelloReply,
) -> Result<()> {
    let reports: HashMap<&str, &ContainerReport> =
        hello.containers.iter().map(|report| (report.container_id.as_str(), report)).collect();
    for container in containers {
        let (delivered, state) = {
            let record = container.record();
            (record.delivered, record.state)
        };
        if state == State::Creating {
            // Nobody has heard of it.
            remove::remove(app, container).await?;
            continue;
        }
        if !delivered {
            // Its answer may have reached somebody just before the daemon ended.
            create::park(app, container);
        }
        if state == State::Exited {
            restart::ended(app, container);
        } else {
            match reports.get(container.id.as_str()) {
                Some(report) => follow(app, container, report),
                None => ended_unseen(app, sandbox, container),
            }
        }
    }
    Ok(())
}

fn follow(app: &Arc<App>, container: &Arc<Container>, report: &ContainerReport) {
    match (report.state(), &report.exit) {
        (ContainerState::Exited, Some(exit)) => {
            container.change(|record| record.started_at = record.started_at.max(report.started_at));
            monitor::container_ended(app, container, exit);
        }
        (ContainerState::Running, _) if container.record().state == State::Created => {
            container.change(|record| {
                record.state = State::Running;
                record.started_at = report.started_at;
                record.pid = report.pid;
            });
            app.save_container_later(container);
            events::container(app, container);
        }
        _ => {}
    }
}

/// The end of a container that its shim wrote down, or that nobody knows.
fn ended_unseen(app: &Arc<App>, sandbox: &Sandbox, container: &Arc<Container>) {
    if container.record().state == State::Exited {
        return;
    }
    let path = app.store.sandbox_directory(&sandbox.id).join(format!("exit-{}", container.id));
    let exit = std::fs::read(path).ok().and_then(|bytes| Exit::decode(bytes.as_slice()).ok());
    match exit {
        Some(exit) => monitor::container_ended(app, container, &exit),
        None => stop::set_unknown(app, container),
    }
}

/// Nobody answers for the sandbox any more: it is released, and its records tell what was. The caller holds its
/// lifecycle lock.
async fn end(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    containers: &[Arc<Container>],
    problem: &str,
) -> Result<()> {
    let state = sandbox.record().state;
    if state == sandbox::State::Ready {
        tracing::warn!(sandbox = %sandbox.id, problem, "a sandbox is no longer ready");
    }
    for container in containers {
        ended_unseen(app, sandbox, container);
    }
    // One that said nothing is not asked again.
    sandbox.set_shim(None);
    sandbox.change(|record| {
        if record.state == sandbox::State::Ready {
            record.problem = problem.into();
        }
        record.state = sandbox::State::NotReady;
        record.init_pid = 0;
    });
    teardown::teardown(app, sandbox).await?;
    for container in containers.iter().filter(|container| !container.record().delivered) {
        remove::discard(app, container).await?;
    }
    let (app, sandbox) = (app.clone(), sandbox.clone());
    blocking::run("write the record", move || {
        if state == sandbox::State::Creating {
            sandbox::remove::erase(&app, &sandbox)?;
            app.store.forget_sandbox(&sandbox);
            return Ok(());
        }
        events::sandbox(&app, &sandbox);
        app.save_sandbox(&sandbox)
    })
    .await
}

/// Takes away what no record names: writable layers, shims' cgroups, trash.
fn sweep(app: &Arc<App>) {
    let names = |directory: std::path::PathBuf| {
        let entries =
            std::fs::read_dir(directory).into_iter().flatten().filter_map(std::io::Result::ok);
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    for path in names(app.instance.root.join("containers")) {
        let known = path
            .file_name()
            .is_some_and(|name| app.store.container(&name.to_string_lossy()).is_ok());
        if let (false, Some(name)) = (known, path.file_name())
            && let Err(error) = std::fs::rename(&path, app.store.trash().join(name))
        {
            tracing::warn!(path = %path.display(), %error, "sweep a writable layer");
        }
    }
    for path in names(app.store.trash()) {
        app.tasks.spawn_blocking(move || {
            if let Err(error) = images::remove_tree(&path) {
                tracing::warn!(path = %path.display(), %error, "empty the trash");
            }
        });
    }
    let shims = app.cgroups.cgroup_in(&app.own_cgroup("shims"), teardown::SHIM_CONTROLLER);
    for id in strays(app, &shims) {
        tracing::warn!(sandbox = %id, "a shim has no record: it is ended");
        end_stray(&id, &app.cgroups.cgroup_in(&app.shim_cgroup(&id), teardown::SHIM_CONTROLLER));
    }
    let pods = app.cgroups.cgroup(&app.own_cgroup("pods"));
    for id in strays(app, &pods) {
        tracing::warn!(sandbox = %id, "the processes of a pod have no record: they are ended");
        end_stray(&id, &app.cgroups.cgroup(&app.own_cgroup(&format!("pods/{id}"))));
    }
}

/// Sandboxes that have a cgroup here, and no record.
fn strays(app: &App, cgroup: &proto::shim::Cgroup) -> BTreeSet<SandboxId> {
    let entries =
        |path: &str| std::fs::read_dir(path).into_iter().flatten().filter_map(std::io::Result::ok);
    let names = cgroup.directories.iter().flat_map(|directory| entries(&directory.path));
    let ids = names.filter_map(|entry| SandboxId::from_name(&entry.file_name().to_string_lossy()));
    ids.filter(|id| app.store.sandbox(id.as_str()).is_err()).collect()
}

fn end_stray(id: &SandboxId, cgroup: &proto::shim::Cgroup) {
    if let Err(error) = teardown::remove_cgroup(cgroup) {
        tracing::warn!(sandbox = %id, "end what has no record: {}", chain(&error));
    }
}
