//! CreateContainer: record, directories, cgroup, and an init that waits for the start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::shim::{self, CreateContainer, reply, request};
use runtime::cgroup::{self, devices as rules, resources};
use std::os::fd::AsFd;

use super::plan::{FoundSource, Rotation, Surroundings, plan};
use super::spec::{ContainerSpec, MountSource, Profile};
use super::{Container, Record, ResolvedUser, State, devices, remove, stop};
use crate::app::{App, now};
use crate::blocking;
use crate::error::{Doing, Error, Result, chain};
use crate::events;
use crate::filters::Filter;
use crate::id::ContainerId;
use crate::image;
use crate::sandbox::{self, Sandbox};
use crate::shim::CREATE_DEADLINE;
use crate::store::{Begin, ContainerName, Ticket};
use crate::timeline::Clock;

/// How long a container whose client has gone waits for the same request to come again.
const PARK_TIME: Duration = Duration::from_secs(240);

/// Makes a container, or finds the one that the same request made before and nobody heard of. It is
/// listed only after [`publish`].
///
/// # Errors
/// What failed; nothing is left of it then.
pub async fn create(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    spec: ContainerSpec,
) -> Result<Arc<Container>> {
    let name: ContainerName = (sandbox.id.clone(), spec.name.clone(), spec.attempt);
    loop {
        match app.store.begin_container(&name) {
            Begin::New(ticket) => return make(app, sandbox, spec, &name, ticket).await,
            Begin::Exists(id) => return existing(app, &spec, &id),
            Begin::Joined(mut outcome, _) => {
                match outcome.wait_for(Option::is_some).await.as_deref() {
                    Ok(Some(Ok(_)) | None) | Err(_) => {}
                    Ok(Some(Err(error))) => {
                        let doing =
                            format!("make container {}, together with an earlier call", spec.name);
                        return Err(Error::Failed { doing, source: error.clone().into() });
                    }
                }
            }
        }
    }
}

/// The same request again gets the same container, as long as it has not been started.
fn existing(app: &App, spec: &ContainerSpec, id: &ContainerId) -> Result<Arc<Container>> {
    let container = app.store.container(id.as_str())?;
    let same = {
        let record = container.record();
        record.state == State::Created && record.spec == *spec
    };
    if same {
        return Ok(container);
    }
    Err(Error::Exists {
        what: format!("the name {} (attempt {}) in the sandbox", spec.name, spec.attempt),
        problem: format!("container {id} has it; remove it, or count the attempt up"),
    })
}

/// The answer has reached somebody: from now on the container is listed.
pub fn publish(app: &Arc<App>, container: &Arc<Container>) {
    if !container.record().delivered {
        container.change(|record| record.delivered = true);
        app.save_container_later(container);
        events::container(app, container);
    }
}

/// Takes away a container whose answer has reached nobody in time.
pub fn park(app: &Arc<App>, container: &Arc<Container>) {
    let (app, container) = (app.clone(), container.clone());
    app.clone().tasks.spawn(async move {
        if !container.wait_until(PARK_TIME, |record| record.delivered).await {
            tracing::warn!(container = %container.id, "nobody came for a container that was made: it is removed");
            if let Err(error) = remove::remove(&app, &container).await {
                tracing::error!(container = %container.id, "{}", chain(&error));
            }
        }
    });
}

async fn make(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    spec: ContainerSpec,
    name: &ContainerName,
    ticket: Ticket<ContainerId>,
) -> Result<Arc<Container>> {
    ticket.at("set the container up");
    let error = match try_make(app, sandbox, spec).await {
        Ok(container) => {
            // A sandbox that was stopped meanwhile takes no containers.
            if sandbox.record().state == sandbox::State::Ready {
                app.store.commit_container(&ticket, &container);
                park(app, &container);
                return Ok(container);
            }
            undo(app, sandbox, &container).await;
            not_ready(sandbox)
        }
        Err(error) => error,
    };
    app.store.fail_container(&ticket, name, chain(&error));
    Err(error)
}

fn not_ready(sandbox: &Sandbox) -> Error {
    Error::WrongState {
        what: format!("sandbox {}", sandbox.id),
        state: "not ready".into(),
        problem: "it takes no containers; make a new sandbox".into(),
    }
}

async fn try_make(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    spec: ContainerSpec,
) -> Result<Arc<Container>> {
    if sandbox.record().state != sandbox::State::Ready {
        return Err(not_ready(sandbox));
    }
    let prepared = {
        let (app, sandbox) = (app.clone(), sandbox.clone());
        blocking::run("prepare a container", move || prepare(&app, &sandbox, spec)).await?
    };
    let container = prepared.container.clone();
    match set_up(app, sandbox, prepared).await {
        Ok(()) => Ok(container),
        Err(error) => {
            undo(app, sandbox, &container).await;
            Err(error)
        }
    }
}

/// Takes a half-made container away. What cannot be taken away now is found by its record at the next start.
async fn undo(app: &Arc<App>, sandbox: &Arc<Sandbox>, container: &Arc<Container>) {
    let discarded = async {
        stop::kill(app, container).await?;
        remove::discard(app, container).await
    };
    if let Err(error) = discarded.await {
        tracing::warn!(sandbox = %sandbox.id, container = %container.id, "take back a container that failed: {}", chain(&error));
    }
}

/// A container whose directories and cgroup exist.
struct Prepared {
    container: Arc<Container>,
    filter: Option<Arc<Filter>>,
    clock: Clock,
}

fn prepare(app: &Arc<App>, sandbox: &Arc<Sandbox>, spec: ContainerSpec) -> Result<Prepared> {
    let mut clock = Clock::start();
    let image = image::find(app, &spec.image)?;
    let id = ContainerId::random();
    let profile = effective_profile(app, &spec)?;
    let filter = app.filters.get(&profile, granted(&spec), app.node.kernel)?;
    let record = Record {
        id,
        sandbox: sandbox.id.clone(),
        image: image.remembered(&spec),
        created_at: now(),
        started_at: 0,
        finished_at: 0,
        state: State::Creating,
        pid: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        user: ResolvedUser::default(),
        resources: spec.resources.clone(),
        delivered: false,
        restarts: 0,
        stopped: false,
        paused: false,
        cuts: Vec::new(),
        timeline: Vec::new(),
        mounted_images: Vec::new(),
        plan: Arc::default(),
        spec,
    };
    let container = Arc::new(Container::new(record));
    image::hold(app, &container, &image.image.id, image.lease);
    container.remember_filter(filter.clone());
    clock.step("image and profile");
    app.save_container(&container)?;
    clock.step("record");
    // From here on a failure leaves something: the caller undoes it by the record.
    match fill(app, sandbox, &container, &image.defaults, filter.is_some(), &mut clock) {
        Ok(()) => Ok(Prepared { container, filter, clock }),
        Err(error) => {
            undo_prepared(app, sandbox, &container);
            Err(error)
        }
    }
}

fn undo_prepared(app: &App, sandbox: &Sandbox, container: &Container) {
    let cgroup = app.cgroups.cgroup(&app.container_cgroup(&sandbox.record(), &container.id));
    let removed = sandbox::teardown::remove_cgroup(&cgroup).and_then(|()| {
        let directory = app.store.container_directory(&container.id);
        images::remove_tree(&directory).doing(|| "remove a writable layer")?;
        app.erase_container(container)
    });
    if let Err(error) = removed {
        tracing::warn!(container = %container.id, "take back a container that failed: {}", chain(&error));
    }
}

/// Makes directories and the cgroup, and the plan for the shim.
fn fill(
    app: &App,
    sandbox: &Sandbox,
    container: &Container,
    image: &super::plan::ImageDefaults,
    seccomp: bool,
    clock: &mut Clock,
) -> Result<()> {
    let record = container.record().clone();
    let pod = sandbox.record().clone();
    let spec = &record.spec;
    let directory = app.store.container_directory(&record.id);
    for part in ["upper", "work"] {
        make_directory(&directory.join(part))?;
    }
    let devices = devices::find(spec)?;
    clock.step("directories and devices");
    let path = app.container_cgroup(&pod, &record.id);
    let group = app.cgroups.make(&path)?;
    resources::apply(&group, &resources::writes(&spec.resources, app.cgroups.unified)?)?;
    cgroup::allow_devices(&group, &device_rules(spec, &devices))?;
    clock.step("cgroup");
    let relative = |part: &str| format!("containers/{}/{part}", record.id);
    let hostname = if pod.spec.hostname.is_empty() {
        crate::node::Node::hostname()
    } else {
        pod.spec.hostname.clone()
    };
    let around = Surroundings {
        id: &record.id,
        sandbox: &pod.spec,
        image,
        base: &app.instance.root,
        lowers: record.image.layers.clone(),
        upper: relative("upper"),
        work: relative("work"),
        sources: sources(app, container, spec, &directory)?,
        image_volumes: image_volumes(spec, image, &directory)?,
        cgroup: group,
        devices: devices.iter().map(|device| device.node.clone()).collect(),
        hostname: &hostname,
        files: app.node.files,
        rotation: spec.local.is_some().then(|| rotation(app)),
    };
    let plan = Arc::new(plan(spec, &around, seccomp)?);
    container.change(|record| record.plan = plan);
    clock.step("plan");
    Ok(())
}

fn rotation(app: &App) -> Rotation {
    let runtime = &app.config.runtime;
    let files = u32::try_from(runtime.run_log_files.saturating_sub(1)).unwrap_or(u32::MAX);
    Rotation { size: runtime.run_log_size.0, files }
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).doing(|| format!("make {}", path.display()))
}

/// What stands behind mounts of images and volumes.
fn sources(
    app: &App,
    container: &Container,
    spec: &ContainerSpec,
    directory: &Path,
) -> Result<Vec<Option<FoundSource>>> {
    let find = |(index, mount): (usize, &super::spec::Mount)| {
        let path = match &mount.source {
            MountSource::Host(_) => return Ok(None),
            MountSource::Image { image, .. } => {
                return image::mount_source(app, container, image).map(Some);
            }
            MountSource::Volume(Some(name)) => app.store.volumes().join(name),
            MountSource::Volume(None) => directory.join("volumes").join(index.to_string()),
        };
        make_directory(&path)?;
        Ok(Some(FoundSource::Volume(path.to_string_lossy().into_owned())))
    };
    spec.mounts.iter().enumerate().map(find).collect()
}

/// Directories for the volumes that the image declares, where no mount covers them.
fn image_volumes(
    spec: &ContainerSpec,
    image: &super::plan::ImageDefaults,
    directory: &Path,
) -> Result<Vec<(String, String)>> {
    let covered = |path: &str| {
        spec.mounts.iter().any(|mount| Path::new(&mount.container_path) == Path::new(path))
    };
    let mut volumes = Vec::new();
    for (index, path) in image.volumes.iter().filter(|path| !covered(path)).enumerate() {
        let source: PathBuf = directory.join("volumes").join(format!("image-{index}"));
        make_directory(&source)?;
        volumes.push((
            format!("/{}", path.trim_start_matches('/')),
            source.to_string_lossy().into_owned(),
        ));
    }
    Ok(volumes)
}

fn device_rules(spec: &ContainerSpec, devices: &[devices::Found]) -> Vec<rules::Rule> {
    if spec.security.privileged {
        return vec![rules::Rule::ALLOW_ALL];
    }
    rules::standard().into_iter().chain(devices.iter().map(|device| device.rule)).collect()
}

/// Capabilities by which a profile decides.
fn granted(spec: &ContainerSpec) -> u64 {
    if spec.security.privileged {
        runtime::capabilities::ALL
    } else {
        spec.security.capabilities.granted
    }
}

fn effective_profile(app: &App, spec: &ContainerSpec) -> Result<Profile> {
    use crate::config::SeccompProfile;
    if spec.security.privileged {
        return Ok(Profile::Unconfined);
    }
    Ok(match (&spec.security.seccomp, &app.config.runtime.unset_seccomp_profile) {
        (Profile::Unset, SeccompProfile::Unconfined) => Profile::Unconfined,
        (Profile::Unset, SeccompProfile::Default) => Profile::Default,
        (Profile::Unset, SeccompProfile::File(path)) => {
            Profile::Localhost(path.to_string_lossy().into_owned())
        }
        (profile, _) => profile.clone(),
    })
}

async fn set_up(app: &Arc<App>, sandbox: &Arc<Sandbox>, prepared: Prepared) -> Result<()> {
    let Prepared { container, filter, mut clock } = prepared;
    clock.step("hand over");
    call_shim(sandbox, &container, filter.as_deref()).await?;
    clock.step("set up by the shim");
    container.change(|record| record.timeline = clock.steps());
    let (app, container) = (app.clone(), container.clone());
    blocking::run("write the record", move || app.save_container(&container)).await
}

/// Empties the work directory of a container's root for the next mount: overlayfs refuses one that a volatile mount has
/// used (overlayfs.rst, "Volatile mount"). Nothing of the container is in it.
///
/// # Errors
/// Those of the file system.
pub async fn renew_work_directory(app: &App, container: &Container) -> Result<()> {
    let work = app.store.container_directory(&container.id).join("work");
    blocking::run("renew the work directory", move || {
        images::remove_tree(&work).doing(|| format!("remove {}", work.display()))?;
        make_directory(&work)
    })
    .await
}

/// Has the shim set the container up as its plan says: for the first time, and for a restart.
///
/// # Errors
/// What the shim says.
pub async fn call_shim(
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    filter: Option<&Filter>,
) -> Result<()> {
    let mut plan: shim::ContainerSpec = container.record().plan.as_ref().clone();
    if let (Some(process), Some(filter)) = (&mut plan.process, filter) {
        process.seccomp_flags = filter.flags;
    }
    let shim = sandbox.shim().ok_or_else(|| not_ready(sandbox))?;
    let fds: Vec<_> = filter.iter().map(|filter| filter.memory.as_fd()).collect();
    let call = request::Call::CreateContainer(CreateContainer { spec: Some(plan) });
    let (result, _) = shim.call(call, &fds, CREATE_DEADLINE).await?;
    if let reply::Result::ContainerCreated(created) = result {
        for cut in &created.cuts {
            tracing::info!(container = %container.id, "{cut}");
        }
        container.change(|record| {
            record.state = State::Created;
            record.pid = created.pid;
            record.user =
                ResolvedUser { uid: created.uid, gid: created.gid, groups: created.groups };
            record.cuts = created.cuts;
        });
    }
    Ok(())
}

/// The seccomp program of a container that exists: for execs and restarts.
///
/// # Errors
/// The profile's file is gone or damaged, and this daemon did not make the container.
pub async fn filter_of(app: &Arc<App>, container: &Arc<Container>) -> Result<Option<Arc<Filter>>> {
    if let Some(filter) = container.filter() {
        return Ok(filter.clone());
    }
    let (app, container) = (app.clone(), container.clone());
    blocking::run("find the seccomp profile", move || {
        let spec = container.record().spec.clone();
        let filter =
            app.filters.get(&effective_profile(&app, &spec)?, granted(&spec), app.node.kernel)?;
        container.remember_filter(filter.clone());
        Ok(filter)
    })
    .await
}
