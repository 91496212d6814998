//! One test, from census to census, and what its body is handed.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_cri::v1::{ContainerState, ContainerStatus};
use tonic::Code;

use crate::canary::Canary;
use crate::census::Census;
use crate::cgroup::PodCgroup;
use crate::cri::Cri;
use crate::daemon::{Daemon, Options, Scratch};
use crate::image::{Image, base};
use crate::netns::NetNs;
use crate::pod::{ContainerBuilder, LogRecord, Pod, PodBuilder, log_text, parse_log};
use crate::registry::Registry;

/// What a test wants to be different before its body runs.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Options of the daemon.
    pub daemon: Options,
    /// Files that are no part of the census, by the start of their path below the root directory.
    pub may_stay: Vec<&'static str>,
    /// Size of a file system of its own for the root directory, in MiB.
    pub small_root: Option<u32>,
    /// Whether the daemon has had no pod with a network yet; otherwise the bridge, which stays once it was needed, is
    /// there before the first census.
    pub cold: bool,
}

/// What the body of a test is handed.
#[derive(Debug)]
pub struct Cx {
    /// The daemon under test.
    pub daemon: Daemon,
    /// The network namespace of daemon, command line and servers.
    pub netns: NetNs,
    /// Files that nobody may read or touch.
    pub canary: Canary,
    /// The cgroup that a kubelet would have made for the pod.
    pub cgroup: Mutex<PodCgroup>,
    /// Directories of this test.
    pub scratch: Scratch,
    before: Mutex<Census>,
    may_stay: Vec<&'static str>,
}

/// Runs a test with a daemon of its own; panics with the reason and the end of the daemon's log when it fails.
#[track_caller]
pub fn test(body: impl AsyncFnOnce(&Cx) -> Result<()>) {
    test_with(Setup::default(), body);
}

/// As [`test`], with something different.
#[track_caller]
pub fn test_with(setup: Setup, body: impl AsyncFnOnce(&Cx) -> Result<()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let outcome = runtime.block_on(run(setup, body));
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Err(error) = outcome {
        panic!("{}", chain(&error));
    }
}

/// An error and its causes, a line each.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  because: ")
}

async fn run(setup: Setup, body: impl AsyncFnOnce(&Cx) -> Result<()>) -> Result<()> {
    let cx = Cx::new(setup).await?;
    let limit = crate::scaled(Duration::from_secs(if crate::full() { 3600 } else { 180 }));
    let outcome = match tokio::time::timeout(limit, body(&cx)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("the test took longer than {limit:?}")),
    };
    let outcome = match outcome {
        Ok(()) => cx.finish().await,
        Err(error) => Err(error),
    };
    outcome.map_err(|error| {
        anyhow::anyhow!(
            "{}\n\nThe daemon's log ends with:\n{}",
            chain(&error),
            cx.daemon.log_tail(40)
        )
    })
}

impl Cx {
    async fn new(setup: Setup) -> Result<Cx> {
        let scratch = Scratch::new()?;
        let mut options = setup.daemon;
        if let Some(size) = setup.small_root {
            let root = scratch.dir("small")?;
            let data = format!("size={size}m,mode=700");
            nix::mount::mount(
                Some("e2e"),
                &root,
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                Some(data.as_str()),
            )?;
            options.root = Some(root);
        }
        let netns = NetNs::new()?;
        netns.forward(Registry::shared()?.port())?;
        let daemon = Daemon::start(&scratch, "berth", netns.clone(), options).await?;
        let cgroup = PodCgroup::new(&format!("/e2e-{}", daemon.instance))?;
        let canary = Canary::new(&scratch.dir("canary")?)?;
        let cx = Cx {
            daemon,
            netns,
            canary,
            cgroup: Mutex::new(cgroup),
            before: Mutex::default(),
            scratch,
            may_stay: setup.may_stay,
        };
        if !setup.cold {
            cx.warm().await.context("warm up the network")?;
        }
        cx.settle().await?;
        Ok(cx)
    }

    /// Makes what stays once a network was needed.
    pub async fn warm(&self) -> Result<()> {
        let pod = self.run_pod(self.pod().network()).await?;
        self.cri().remove_pod(&pod.id).await?;
        // The kernel takes a namespace and its links apart after the last process has gone.
        let port = format!("b{}", self.daemon.instance);
        crate::eventually(10, "the pod's link is gone", async || {
            Ok(!self.netns.ip("-brief link")?.lines().any(|line| line.starts_with(&port)))
        })
        .await
    }

    /// Takes the first census again, after what makes things that are meant to stay.
    pub async fn settle(&self) -> Result<()> {
        let trash = ["trash", "images/trash"].map(|dir| self.daemon.root.join(dir));
        crate::eventually(10, "what was removed is gone", async || {
            Ok(trash.iter().all(|dir| {
                !std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
            }))
        })
        .await?;
        *lock(&self.before) = self.census()?;
        Ok(())
    }

    /// What there is now, to compare with in the middle of a test.
    pub fn census(&self) -> Result<Census> {
        Census::take(&self.daemon, &self.may_stay)
    }

    /// Removes what there is, through the APIs, and compares the censuses.
    async fn finish(&self) -> Result<()> {
        if !self.daemon.runs() {
            bail!("the daemon has ended by itself");
        }
        self.remove_all().await?;
        self.check_census().await?;
        lock(&self.cgroup).remove()?;
        self.canary.check()
    }

    /// Removes every pod, container and image that the APIs show.
    pub async fn remove_all(&self) -> Result<()> {
        let cri = self.cri();
        let local = cri
            .control()
            .list_containers(proto::control::ListContainersRequest { all: true })
            .await;
        for container in local.map(|reply| reply.into_inner().containers).unwrap_or_default() {
            if container.local {
                let request = proto::control::RemoveRequest {
                    container: container.id,
                    force: true,
                    volumes: true,
                };
                match cri.control().remove(request).await {
                    // One with --rm goes by itself.
                    Err(status) if status.code() == Code::NotFound => {}
                    removed => drop(removed.context("remove a container of `berth run`")?),
                }
            }
        }
        for pod in cri.list_pods(None).await? {
            cri.stop_pod(&pod.id).await.context("stop a pod after the test")?;
            cri.remove_pod(&pod.id).await.context("remove a pod after the test")?;
        }
        for image in cri.images().await? {
            cri.remove_image(&image.id).await.context("remove an image after the test")?;
        }
        // Layers of a pull that failed are kept for the next try.
        let request = proto::control::PruneImagesRequest { all: true };
        cri.control().prune_images(request).await.context("prune images after the test")?;
        Ok(())
    }

    /// Compares with the first census.
    pub async fn check_census(&self) -> Result<()> {
        let before = lock(&self.before).clone();
        self.check_same(&before).await
    }

    /// Compares with a census, for up to a minute: what is undone in the background may take a moment.
    pub async fn check_same(&self, before: &Census) -> Result<()> {
        let difference = Mutex::new(String::new());
        let equal = async || {
            let now = self.census()?;
            *lock(&difference) = before.difference(&now);
            Ok(lock(&difference).is_empty())
        };
        let outcome = crate::eventually(60, "the census is as it was before", equal).await;
        outcome.with_context(|| format!("left behind (+) or gone (-):\n{}", lock(&difference)))
    }

    /// The CRI client.
    pub fn cri(&self) -> &Cri {
        self.daemon.cri()
    }

    /// The registry's address as part of a reference.
    pub fn registry(&self) -> Result<String> {
        Ok(Registry::shared()?.address())
    }

    /// Puts an image into the registry and returns its reference there.
    pub async fn push(&self, name: &str, image: &Image) -> Result<String> {
        Registry::shared()?.push(name, image).await
    }

    /// Puts an image into the registry under a name of this test alone, pulls it, and returns its id.
    pub async fn pull_image(&self, image: &Image) -> Result<String> {
        let reference = self.push(&self.unique(), image).await?;
        self.cri().pull(&reference, None).await.with_context(|| format!("pull {reference}"))
    }

    /// A repository and tag that no other test uses.
    pub fn unique(&self) -> String {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        format!(
            "e2e/{}:{}",
            self.daemon.instance,
            NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        )
    }

    /// Pulls busybox and returns its id.
    pub async fn busybox(&self) -> Result<String> {
        let reference = Registry::shared()?.busybox().await?;
        self.cri().pull(&reference, None).await.with_context(|| format!("pull {reference}"))
    }

    /// Pulls the busybox image with another configuration: field and value pairs.
    pub async fn busybox_with(&self, config: &[(&str, serde_json::Value)]) -> Result<String> {
        let image = config
            .iter()
            .fold(base::busybox()?, |image, (field, value)| image.config(field, value.clone()));
        self.pull_image(&image.build()).await
    }

    /// A pod with a kubelet's defaults below the cgroup of this test.
    pub fn pod(&self) -> PodBuilder {
        PodBuilder::new(&self.scratch.disk.join("logs")).cgroup_parent(&lock(&self.cgroup).parent)
    }

    /// Runs a pod; makes its log directory before, as a kubelet does.
    pub async fn run_pod(&self, pod: PodBuilder) -> Result<Pod> {
        std::fs::create_dir_all(&pod.config.log_directory)?;
        let id = self.cri().run_pod(&pod.config, &pod.handler).await.context("RunPodSandbox")?;
        Ok(Pod { id, config: pod.config })
    }

    /// Creates a container.
    pub async fn create(&self, pod: &Pod, container: &ContainerBuilder) -> Result<String> {
        self.cri().create(&pod.id, &container.config, &pod.config).await.context("CreateContainer")
    }

    /// Creates and starts a container.
    pub async fn run(&self, pod: &Pod, container: &ContainerBuilder) -> Result<String> {
        let id = self.create(pod, container).await?;
        self.cri().start(&id).await.context("StartContainer")?;
        Ok(id)
    }

    /// Waits until a container has ended.
    pub async fn wait(&self, id: &str) -> Result<ContainerStatus> {
        let status = Mutex::new(ContainerStatus::default());
        crate::eventually(60, "the container ends", async || {
            *lock(&status) = self.status(id).await?;
            Ok(lock(&status).state == i32::from(ContainerState::ContainerExited))
        })
        .await?;
        Ok(status.into_inner().expect("no waiter panicked"))
    }

    /// The status of a container.
    pub async fn status(&self, id: &str) -> Result<ContainerStatus> {
        self.cri().container_status(id).await?.status.context("a reply without status")
    }

    /// Runs a container to its end; returns its status and its log.
    pub async fn run_to_end(
        &self,
        pod: &Pod,
        container: &ContainerBuilder,
    ) -> Result<(ContainerStatus, Vec<LogRecord>)> {
        let id = self.run(pod, container).await?;
        let status = self.wait(&id).await?;
        Ok((status, parse_log(&std::fs::read(pod.log(&container.config))?)?))
    }

    /// Runs a container to its end, which must be a good one; returns what it wrote to its stdout.
    pub async fn output(&self, pod: &Pod, container: &ContainerBuilder) -> Result<String> {
        let (status, log) = self.run_to_end(pod, container).await?;
        let text = String::from_utf8_lossy(&log_text(&log, "stdout")).into_owned();
        if status.exit_code != 0 {
            let errors = String::from_utf8_lossy(&log_text(&log, "stderr")).into_owned();
            bail!(
                "the container ended with {} ({}): {text}{errors}",
                status.exit_code,
                status.reason
            );
        }
        Ok(text)
    }

    /// Runs a command in a container, which must end with 0; returns what it printed.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<String> {
        let reply = self
            .cri()
            .exec_sync(id, command, 60)
            .await
            .with_context(|| format!("exec {command:?}"))?;
        if reply.exit_code != 0 {
            bail!(
                "{command:?} ended with {}: {}",
                reply.exit_code,
                String::from_utf8_lossy(&reply.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&reply.stdout).into_owned())
    }

    /// A new directory of this test on the disk.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        self.scratch.dir(name)
    }

    /// Where logs go.
    pub fn logs(&self) -> PathBuf {
        Path::new(&self.scratch.disk).join("logs")
    }
}

/// Locks a mutex of the harness.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding a lock of the harness")
}
