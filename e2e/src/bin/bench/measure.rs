//! The measurements themselves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use proto::cri as v1;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::memory;
use crate::report::Print;

/// What is measured.
#[derive(Debug, Default, Clone)]
pub(crate) struct Target {
    /// The server's socket.
    pub(crate) socket: PathBuf,
    /// An image that is there already.
    pub(crate) image: String,
    /// RuntimeClass handler; empty for the default.
    pub(crate) handler: String,
    /// Pods have a network of their own.
    pub(crate) pod_network: bool,
    /// What containers run.
    pub(crate) command: Vec<String>,
    /// Where containers log, a path that both this program and the server see.
    pub(crate) logs: PathBuf,
    /// Cgroup of the pods; empty for the server's own choice.
    pub(crate) cgroup_parent: String,
}

/// How often.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Whole lives of pods, one after the other.
    pub(crate) pods: usize,
    /// Execs in one container.
    pub(crate) execs: usize,
    /// Pods that are kept to measure memory; 0 for none.
    pub(crate) idle: usize,
    /// Lives at the same time.
    pub(crate) at_once: usize,
    /// Lives before those that count, where any do.
    pub(crate) warm_up: usize,
    /// Between two lives, so that what goes on behind an answer is not measured with the next.
    pub(crate) pause: Duration,
    /// What is printed of it.
    pub(crate) print: Print,
}

/// A connection.
pub(crate) type Clients = RuntimeServiceClient<Channel>;

/// Connects to the server's socket.
pub(crate) async fn channel(target: &Target) -> Result<Channel> {
    let socket = target.socket.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    channel.with_context(|| format!("connect to {}", target.socket.display()))
}

/// Connects, and waits until the server says that it is ready.
pub(crate) async fn connect(target: &Target) -> Result<Clients> {
    let mut client = RuntimeServiceClient::new(channel(target).await?);
    client.status(v1::StatusRequest::default()).await.context("ask for the status")?;
    Ok(client)
}

/// Namespace of all pods that are made here.
const NAMESPACE: &str = "bench";

/// Removes what an earlier run has left.
pub(crate) async fn clean(client: &Clients) -> Result<()> {
    let mut client = client.clone();
    let pods =
        client.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items;
    for pod in pods
        .iter()
        .filter(|pod| pod.metadata.as_ref().is_some_and(|name| name.namespace == NAMESPACE))
    {
        remove(&mut client, &pod.id).await?;
    }
    Ok(())
}

fn sandbox_config(target: &Target, name: &str) -> v1::PodSandboxConfig {
    let network = if target.pod_network { v1::NamespaceMode::Pod } else { v1::NamespaceMode::Node };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: NAMESPACE.into(),
            attempt: 0,
        }),
        hostname: if target.pod_network { name.into() } else { String::new() },
        log_directory: target.logs.to_string_lossy().into_owned(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: target.cgroup_parent.clone(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    network: network.into(),
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                seccomp: Some(v1::SecurityProfile::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config(target: &Target) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: target.image.clone(), ..Default::default() }),
        command: target.command.clone(),
        log_path: "c.log".into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 100_000,
                cpu_shares: 512,
                memory_limit_in_bytes: 128 << 20,
                oom_score_adj: 900,
                ..Default::default()
            }),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    network: if target.pod_network {
                        v1::NamespaceMode::Pod
                    } else {
                        v1::NamespaceMode::Node
                    }
                    .into(),
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                seccomp: Some(v1::SecurityProfile::default()),
                masked_paths: vec![
                    "/proc/kcore".into(),
                    "/proc/keys".into(),
                    "/sys/firmware".into(),
                ],
                readonly_paths: vec!["/proc/sys".into(), "/proc/irq".into()],
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// A running pod, with the times of its making.
struct Made {
    sandbox: String,
    container: String,
    run: Duration,
    create: Duration,
    start: Duration,
}

async fn make(client: &mut Clients, target: &Target, name: &str) -> Result<Made> {
    let config = sandbox_config(target, name);
    let begun = Instant::now();
    let request = v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: target.handler.clone(),
    };
    let sandbox =
        client.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id;
    let ran = Instant::now();
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container_config(target)),
        sandbox_config: Some(config),
    };
    let container = client
        .create_container(request)
        .await
        .context("CreateContainer")?
        .into_inner()
        .container_id;
    let created = Instant::now();
    let request = v1::StartContainerRequest { container_id: container.clone() };
    client.start_container(request).await.context("StartContainer")?;
    Ok(Made {
        sandbox,
        container,
        run: ran - begun,
        create: created - ran,
        start: created.elapsed(),
    })
}

async fn remove(client: &mut Clients, sandbox: &str) -> Result<()> {
    client
        .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.into() })
        .await
        .context("StopPodSandbox")?;
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() };
    client.remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
    Ok(())
}

/// Whole lives, one after the other, and execs in the last pod.
pub(crate) async fn lives(client: &Clients, target: &Target, plan: &Plan) -> Result<()> {
    let mut client = client.clone();
    let (mut run, mut create, mut start, mut ready, mut whole) =
        (vec![], vec![], vec![], vec![], vec![]);
    let warm_up = if plan.pods == 0 { 0 } else { plan.warm_up };
    for index in 0..warm_up + plan.pods {
        let begun = Instant::now();
        let made = make(&mut client, target, &format!("life-{index}")).await?;
        let started = begun.elapsed();
        remove(&mut client, &made.sandbox).await?;
        if index >= warm_up {
            run.push(made.run);
            create.push(made.create);
            start.push(made.start);
            ready.push(started);
            whole.push(begun.elapsed());
        }
        tokio::time::sleep(plan.pause).await;
    }
    plan.print.times("RunPodSandbox", run);
    plan.print.times("CreateContainer", create);
    plan.print.times("StartContainer", start);
    plan.print.times("pod_running", ready);
    plan.print.times("whole_life", whole);
    execs(&mut client, target, plan).await
}

async fn execs(client: &mut Clients, target: &Target, plan: &Plan) -> Result<()> {
    if plan.execs == 0 {
        return Ok(());
    }
    let made = make(client, target, "execs").await?;
    let mut times = Vec::new();
    for _ in 0..plan.execs {
        let begun = Instant::now();
        let request = v1::ExecSyncRequest {
            container_id: made.container.clone(),
            cmd: vec!["true".into()],
            timeout: 10,
        };
        let answer = client.exec_sync(request).await.context("ExecSync")?.into_inner();
        times.push(begun.elapsed());
        if answer.exit_code != 0 {
            bail!("ExecSync of true answered {}", answer.exit_code);
        }
    }
    plan.print.times("ExecSync", times);
    remove(client, &made.sandbox).await
}

/// Lives at the same time: how many in a second.
pub(crate) async fn at_once(client: &Clients, target: &Target, plan: &Plan) -> Result<()> {
    let begun = Instant::now();
    let mut work = tokio::task::JoinSet::new();
    for worker in 0..plan.at_once {
        let (mut client, target, pods) = (client.clone(), target.clone(), plan.pods);
        work.spawn(async move {
            for index in 0..pods {
                let made = make(&mut client, &target, &format!("worker-{worker}-{index}")).await?;
                remove(&mut client, &made.sandbox).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = work.join_next().await {
        done??;
    }
    let lives = u32::try_from(plan.at_once * plan.pods).unwrap_or(u32::MAX);
    println!(
        "lives_at_once_{} {:.1} per_s",
        plan.at_once,
        f64::from(lives) / begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Pods that are kept: memory of the daemon and of its helpers, and the time of lists.
pub(crate) async fn idle(
    client: &Clients,
    target: &Target,
    plan: &Plan,
    processes: &[String],
) -> Result<()> {
    let mut client = client.clone();
    let daemon = memory::owner(&target.socket)?;
    let before = (memory::pss(daemon)?, memory::pss_of(processes)?);
    for index in 0..plan.idle {
        make(&mut client, target, &format!("idle-{index}")).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = (memory::pss(daemon)?, memory::pss_of(processes)?);
    let mib = |bytes: u64| {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let mib = bytes as f64 / f64::from(1 << 20);
        mib
    };
    println!("daemon_pss {:.2} MiB", mib(before.0));
    println!("daemon_pss_at_{} {:.2} MiB", plan.idle, mib(after.0));
    let pods = u64::try_from(plan.idle)?;
    println!("helpers_pss_per_pod {:.3} MiB", mib(after.1.saturating_sub(before.1) / pods));
    let all = (after.0 + after.1).saturating_sub(before.0 + before.1);
    println!("pss_per_pod {:.3} MiB", mib(all / pods));
    lists(&mut client, plan).await
}

async fn lists(client: &mut Clients, plan: &Plan) -> Result<()> {
    let (mut pods, mut containers, mut stats) = (vec![], vec![], vec![]);
    for _ in 0..20 {
        let begun = Instant::now();
        client.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
        pods.push(begun.elapsed());
        let begun = Instant::now();
        client.list_containers(v1::ListContainersRequest::default()).await?;
        containers.push(begun.elapsed());
        let begun = Instant::now();
        client.list_container_stats(v1::ListContainerStatsRequest::default()).await?;
        stats.push(begun.elapsed());
    }
    plan.print.times(&format!("ListPodSandbox_{}", plan.idle), pods);
    plan.print.times(&format!("ListContainers_{}", plan.idle), containers);
    plan.print.times(&format!("ListContainerStats_{}", plan.idle), stats);
    Ok(())
}
