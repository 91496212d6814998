//! RunPodSandbox: record, cgroup, shim, namespaces, network, in this order.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;

use proto::shim::{Hold, MakeNamespaces, reply, request};

use super::spec::{PidMode, SandboxSpec};
use super::{Record, Sandbox, State, files, remove, teardown};
use crate::app::{App, now};
use crate::blocking;
use crate::error::{Doing, Error, Result, chain};
use crate::events;
use crate::id::SandboxId;
use crate::podnet::{self, By, PodNetwork, Prepared};
use crate::shim::{CREATE_DEADLINE, Shim};
use crate::store::{Begin, Ticket};
use crate::timeline::Clock;

/// Makes a sandbox, or finds the one that the same request made before. Goes on when its caller is dropped only
/// if it runs in a task of its own.
///
/// # Errors
/// What failed; nothing is left of it then, or a sandbox that is not ready and names the problem.
pub async fn run(app: &Arc<App>, spec: SandboxSpec) -> Result<SandboxId> {
    loop {
        match app.store.begin_sandbox(&spec.name) {
            Begin::New(ticket) => return make(app, spec, ticket).await,
            Begin::Exists(id) => {
                if !settled(app, &id).await {
                    continue;
                }
                return existing(app, &spec, id);
            }
            Begin::Joined(mut outcome, _) => {
                match outcome.wait_for(Option::is_some).await.as_deref() {
                    // It exists now: see whether it is what this call wants.
                    Ok(Some(Ok(_))) | Ok(None) | Err(_) => {}
                    Ok(Some(Err(error))) => {
                        let doing = format!(
                            "make sandbox {}, together with an earlier call",
                            spec.name.name
                        );
                        return Err(Error::Failed { doing, source: error.clone().into() });
                    }
                }
            }
        }
    }
}

/// One that was half made when a daemon ended is being taken away; until that is done its name is not free. False
/// where it had to be waited for.
async fn settled(app: &App, id: &SandboxId) -> bool {
    match app.store.sandbox(id.as_str()) {
        Ok(sandbox) if sandbox.record().state == State::Creating => {
            sandbox.wait_until_settled().await;
            drop(sandbox.lifecycle.lock().await);
            false
        }
        Ok(_) | Err(_) => true,
    }
}

/// The same request again gets the same sandbox.
fn existing(app: &App, spec: &SandboxSpec, id: SandboxId) -> Result<SandboxId> {
    let same = app.store.sandbox(id.as_str()).is_ok_and(|sandbox| {
        let record = sandbox.record();
        record.state == State::Ready && record.spec == *spec
    });
    if same {
        return Ok(id);
    }
    let name = &spec.name;
    Err(Error::Exists {
        what: format!(
            "the name {}/{} (uid {}, attempt {})",
            name.namespace, name.name, name.uid, name.attempt
        ),
        problem: format!(
            "sandbox {id} has it, with another configuration or not ready; remove it, or count the attempt up"
        ),
    })
}

async fn make(app: &Arc<App>, spec: SandboxSpec, ticket: Ticket<SandboxId>) -> Result<SandboxId> {
    let name = spec.name.clone();
    let sandbox = Arc::new(Sandbox::new(Record {
        id: SandboxId::random(),
        spec,
        created_at: now(),
        state: State::Creating,
        network: None,
        cni: None,
        init_pid: 0,
        problem: String::new(),
        timeline: Vec::new(),
        overhead: None,
        resources: None,
    }));
    let _first = sandbox.lifecycle.lock().await;
    let error = match steps(app, &sandbox, &ticket).await {
        Ok(()) => {
            app.store.commit_sandbox(&ticket, &sandbox);
            events::sandbox(app, &sandbox);
            // The network that was chosen may be the wrong one by now.
            podnet::supersede(app, &sandbox).await;
            return Ok(sandbox.id.clone());
        }
        Err(error) => error,
    };
    match teardown::teardown(app, &sandbox).await {
        Ok(()) => {
            erase(app, &sandbox).await;
            app.store.fail_sandbox(&ticket, &name, chain(&error));
        }
        Err(second) => {
            tracing::warn!(sandbox = %sandbox.id, "take back a sandbox that failed: {}", chain(&second));
            sandbox.change(|record| {
                record.state = State::NotReady;
                record.problem = chain(&error);
            });
            app.store.commit_broken_sandbox(&ticket, &sandbox, chain(&error));
            events::sandbox(app, &sandbox);
        }
    }
    Err(error)
}

/// What stays behind here is found, and taken away, at the next start.
async fn erase(app: &Arc<App>, sandbox: &Arc<Sandbox>) {
    let erased = {
        let (app, sandbox) = (app.clone(), sandbox.clone());
        blocking::run("erase the record", move || remove::erase(&app, &sandbox)).await
    };
    if let Err(error) = erased {
        tracing::warn!(sandbox = %sandbox.id, "{}", chain(&error));
    }
}

async fn steps(app: &Arc<App>, sandbox: &Arc<Sandbox>, ticket: &Ticket<SandboxId>) -> Result<()> {
    let mut clock = Clock::start();
    ticket.at("write the record and start the shim");
    let started = start_shim(app, sandbox).await?;
    clock.step("shim");

    ticket.at("make the namespaces");
    let shim = connect(app, sandbox, started.socket, started.child)?;
    let make = MakeNamespaces {
        netns_path: started.netns,
        ..namespaces(&sandbox.record(), started.files, &started.network)
    };
    let (result, fds) =
        shim.call(request::Call::MakeNamespaces(make), &[], CREATE_DEADLINE).await?;
    if let reply::Result::NamespacesMade(made) = result {
        sandbox.change(|record| record.init_pid = made.init_pid);
    }
    clock.step("namespaces");

    if let Some(prepared) = started.network {
        ticket.at("attach the network");
        let ports: Vec<_> = prepared.held.iter().map(AsFd::as_fd).collect();
        if !ports.is_empty() {
            shim.call(request::Call::Hold(Hold {}), &ports, CREATE_DEADLINE).await?;
        }
        PodNetwork::attach(app, sandbox, prepared.by, fds).await?;
        clock.step("network");
    }
    sandbox.change(|record| {
        record.state = State::Ready;
        record.timeline = clock.steps();
    });
    let (app, sandbox) = (app.clone(), sandbox.clone());
    blocking::run("write the record", move || app.save_sandbox(&sandbox)).await
}

struct Started {
    socket: std::os::fd::OwnedFd,
    child: Child,
    netns: String,
    files: Vec<proto::shim::HolderFile>,
    network: Option<Prepared>,
}

/// All that blocks before the shim can be called, in one go: the address is chosen, the record
/// written, and only then does anything exist.
async fn start_shim(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<Started> {
    let (app, sandbox) = (app.clone(), sandbox.clone());
    blocking::run("start the shim", move || {
        let prepared = app.network.prepare(&sandbox.id, &sandbox.record().spec)?;
        if let Some(prepared) = &prepared {
            sandbox.change(|record| {
                if let By::Bridge(attachment) = &prepared.by {
                    record.network = Some(attachment.clone());
                }
                record.spec.ports.clone_from(&prepared.ports);
            });
        }
        app.save_sandbox(&sandbox)?;
        let record = sandbox.record().clone();
        if let Some(logs) = record.spec.log_directory.as_ref().filter(|_| record.spec.local) {
            std::fs::create_dir_all(logs).doing(|| format!("make {}", logs.display()))?;
        }
        let files = files::of(&record)?;
        if record.spec.cgroup_parent.is_empty() {
            app.cgroups.make(&app.pod_cgroup(&record))?;
        }
        let shims = shim_cgroups(&app, &sandbox.id)?;
        let netns = if record.spec.has_network_namespace() {
            make_pin(&app, &sandbox.id)?
        } else {
            String::new()
        };
        let (socket, child) =
            app.program.start(&sandbox.id, &app.store.sandbox_directory(&sandbox.id), &shims)?;
        Ok(Started { socket, child, netns, files, network: prepared })
    })
    .await
}

/// The shim has a cgroup of its own, by which it is found and ended: on v1 in one hierarchy,
/// and in memory one that all shims share, so that no pod's limit holds for it.
fn shim_cgroups(app: &App, id: &SandboxId) -> Result<Vec<PathBuf>> {
    let own = app.cgroups.make_in(&app.shim_cgroup(id), teardown::SHIM_CONTROLLER)?;
    let mut directories: Vec<PathBuf> =
        own.directories.iter().map(|directory| PathBuf::from(&directory.path)).collect();
    if !app.cgroups.unified {
        let shared = app.cgroups.make_in(&app.own_cgroup("shims"), "memory")?;
        directories
            .extend(shared.directories.iter().map(|directory| PathBuf::from(&directory.path)));
    }
    Ok(directories)
}

/// The file on which the network namespace is pinned.
fn make_pin(app: &App, id: &SandboxId) -> Result<String> {
    let path = app.netns_path(id);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).doing(|| format!("make {}", directory.display()))?;
    }
    std::fs::File::create(&path).doing(|| format!("make {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Takes a connection to the sandbox's shim and listens to it.
///
/// # Errors
/// The socket cannot be waited for.
pub fn connect(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    socket: std::os::fd::OwnedFd,
    child: impl Into<Option<Child>>,
) -> Result<Arc<Shim>> {
    let shim = Arc::new(Shim::new(sandbox.id.clone(), socket)?);
    let child: Option<Child> = child.into();
    shim.set_pid(child.as_ref().map_or(0, Child::id));
    sandbox.set_shim(Some(shim.clone()));
    let (reader, told) = (shim.clone(), app.told.clone());
    app.tasks.spawn(async move {
        reader.read(&told).await;
        if let Some(mut child) = child {
            // It closes its socket by ending; its remains are collected here.
            let _reaped = tokio::task::spawn_blocking(move || child.wait()).await;
        }
    });
    Ok(shim)
}

fn namespaces(
    record: &Record,
    files: Vec<proto::shim::HolderFile>,
    network: &Option<Prepared>,
) -> MakeNamespaces {
    let spec = &record.spec;
    let own_network = spec.has_network_namespace();
    MakeNamespaces {
        network: own_network,
        ipc: !spec.host_ipc,
        uts: own_network,
        shared_pid: spec.pid == PidMode::Pod,
        hostname: if own_network { spec.hostname.clone() } else { String::new() },
        sysctls: sysctls(spec, network),
        shm_size: if spec.host_ipc { 0 } else { spec.shm_size },
        files,
        netns_path: String::new(),
    }
}

/// Ours first, so that the pod's own win.
fn sysctls(spec: &SandboxSpec, network: &Option<Prepared>) -> Vec<proto::shim::Sysctl> {
    let ours = match network {
        _ if !spec.has_network_namespace() => Vec::new(),
        Some(Prepared { by: By::Cni(_), .. }) => crate::network::cni_sysctls(),
        Some(_) | None => crate::network::pod_sysctls(),
    };
    let theirs = spec.sysctls.iter().map(|(name, value)| (name.clone(), value.clone()));
    ours.into_iter()
        .chain(theirs)
        .map(|(name, value)| proto::shim::Sysctl { name, value })
        .collect()
}
