//! GetContainerEvents: what a kubelet is told instead of asking each second.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::pod::ContainerBuilder;
use e2e::{Cx, Setup, same, test, test_with};
use k8s_cri::v1::*;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tonic::{Code, Streaming};

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};

/// One that listens.
struct Listener(Streaming<ContainerEventResponse>);

impl Listener {
    async fn new(cx: &Cx) -> Result<Listener> {
        // With a connection of its own: one that is not read holds up all that share it.
        let mut client = e2e::cri::Cri::new(&cx.daemon.socket)?.raw().0;
        let stream = client.get_container_events(GetEventsRequest {}).await;
        Ok(Listener(stream.context("GetContainerEvents")?.into_inner()))
    }

    async fn next(&mut self) -> Result<ContainerEventResponse> {
        let next = tokio::time::timeout(e2e::scaled(Duration::from_secs(30)), self.0.message());
        let next = next.await.context("no event within 30 s")?.context("the stream failed")?;
        next.context("the stream ended")
    }

    /// Events up to and with the one that a sandbox is gone.
    async fn until_deleted(&mut self, id: &str) -> Result<Vec<ContainerEventResponse>> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await?;
            let last = event.container_id == id && event.container_event_type() == Deleted;
            events.push(event);
            if last {
                return Ok(events);
            }
        }
    }
}

/// What an event says of the whole pod: its kind, whose it is, whether the sandbox is ready, and the states of the
/// containers.
type Told = (ContainerEventType, String, bool, Vec<ContainerState>);

fn told(event: &ContainerEventResponse) -> Result<Told> {
    let pod = event.pod_sandbox_status.as_ref().context("an event without the pod's status")?;
    let metadata = pod.metadata.as_ref().context("a pod without metadata")?;
    ensure!(!metadata.uid.is_empty() && !pod.id.is_empty() && event.created_at > 0, "{event:?}");
    let ready = pod.state() == PodSandboxState::SandboxReady;
    let states = event.containers_statuses.iter().map(ContainerStatus::state).collect();
    Ok((event.container_event_type(), event.container_id.clone(), ready, states))
}

#[test]
fn every_subscriber_is_told_of_a_whole_life() {
    use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    test(async |cx| {
        let image = cx.busybox().await?;
        let (mut one, mut other) = (Listener::new(cx).await?, Listener::new(cx).await?);
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        cx.cri().stop(&id, 10).await?;
        cx.cri().stop_pod(&pod.id).await?;
        // What has been done already is told once.
        cx.cri().stop_pod(&pod.id).await?;
        cx.cri().remove(&id).await?;
        cx.cri().remove_pod(&pod.id).await?;
        let events = one.until_deleted(&pod.id).await?;
        let found = events.iter().map(told).collect::<Result<Vec<_>>>()?;
        let (pod_id, exited) = (pod.id.clone(), vec![ContainerExited]);
        let expected = vec![
            (Created, pod_id.clone(), true, vec![]),
            (Started, pod_id.clone(), true, vec![]),
            (Created, id.clone(), true, vec![ContainerCreated]),
            (Started, id.clone(), true, vec![ContainerRunning]),
            (Stopped, id.clone(), true, exited.clone()),
            (Stopped, pod_id.clone(), false, exited),
            (Deleted, id, false, vec![]),
            (Deleted, pod_id, false, vec![]),
        ];
        same("events", found, expected)?;
        let times: Vec<i64> = events.iter().map(|event| event.created_at).collect();
        ensure!(times.is_sorted(), "{times:?}");
        same("what the other is told", other.until_deleted(&pod.id).await?, events)
    });
}

#[test]
fn a_program_that_ends_at_once_has_started_before() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let mut listener = Listener::new(cx).await?;
        for _ in 0..e2e::count(40, 500) {
            let id = cx.run(&pod, &ContainerBuilder::new(&image).command(&["/bin/true"])).await?;
            for kind in [Created, Started, Stopped] {
                let event = listener.next().await?;
                same("event", (event.container_event_type(), &event.container_id), (kind, &id))?;
                let status = event.containers_statuses.iter().find(|status| status.id == id);
                let status = status.context("the container is not in its event")?;
                ensure!((kind == Created) == (status.started_at == 0), "{kind:?}: {status:?}");
                if kind == Stopped {
                    same("the end", (status.exit_code, status.reason.as_str()), (0, "Completed"))?;
                    ensure!(status.finished_at >= status.started_at, "{status:?}");
                    // What is told is true for everybody.
                    same("state", cx.status(&id).await?.state(), status.state())?;
                }
            }
            cx.cri().remove(&id).await?;
            same("event", listener.next().await?.container_event_type(), Deleted)?;
        }
        Ok(())
    });
}

#[test]
fn a_program_that_cannot_be_run_has_not_started() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let mut listener = Listener::new(cx).await?;
        let container = ContainerBuilder::new(&image).command(&["/no/such/program"]);
        let id = cx.create(&pod, &container).await?;
        ensure!(cx.cri().start(&id).await.is_err(), "a program that is not there was started");
        same("event", listener.next().await?.container_event_type(), Created)?;
        let event = listener.next().await?;
        same("event", event.container_event_type(), Stopped)?;
        let status = event.containers_statuses.first().context("no status")?;
        same("the end", (status.exit_code, status.reason.as_str()), (128, "StartError"))
    });
}

#[test]
fn a_pod_whose_shim_dies_is_told_of() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let mut listener = Listener::new(cx).await?;
        let init = std::fs::read_to_string(format!("/proc/{}/status", cx.cri().pid(&id).await?))?;
        let shim =
            init.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?.trim();
        nix::sys::signal::kill(Pid::from_raw(shim.parse()?), Signal::SIGKILL)?;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let event = listener.next().await?;
            same("kind", event.container_event_type(), Stopped)?;
            let ready = event.pod_sandbox_status.as_ref().context("no pod")?.state();
            same("the pod", ready, PodSandboxState::SandboxNotready)?;
            seen.push(event.container_id);
        }
        same("who has stopped", seen, vec![pod.id.clone(), id.clone()])
    });
}

#[test]
fn pods_of_the_command_line_are_not_told_of() {
    test(async |cx| {
        let mut listener = Listener::new(cx).await?;
        let name = cx.push(&cx.unique(), &e2e::image::base::busybox()?.build()).await?;
        let run =
            cx.daemon.berth(&["run", "--rm", "--net", "host", &name, "/bin/true"]).output()?;
        ensure!(run.status.success(), "{run:?}");
        let pod = cx.run_pod(cx.pod()).await?;
        let event = listener.next().await?;
        same(
            "the first event",
            (event.container_event_type(), event.container_id),
            (Created, pod.id),
        )
    });
}

/// With four events each, more than the daemon keeps for one that is slow (1024) and than is under way to it.
const LIVES: usize = 320;

#[test]
fn whoever_falls_behind_is_told_so_and_hinders_nobody() {
    test(async |cx| {
        let mut slow = Listener::new(cx).await?;
        let mut quick = Listener::new(cx).await?;
        // Large enough to fill what lies between the daemon and a client that does not read.
        let text = "x".repeat(30_000);
        let mut lives = 0;
        for _ in 0..LIVES {
            let pod = cx.pod().with(|config| {
                config.annotations.insert("large".into(), text.clone());
            });
            let pod = cx.run_pod(pod).await?;
            cx.cri().remove_pod(&pod.id).await?;
            lives += quick.until_deleted(&pod.id).await?.len();
        }
        same("events", lives, LIVES * 4)?;
        let mut before = 0;
        let status = loop {
            let next = tokio::time::timeout(e2e::scaled(Duration::from_secs(30)), slow.0.message());
            match next.await.with_context(|| format!("no end after {before} events"))? {
                Ok(Some(_)) => before += 1,
                Ok(None) => bail!("the stream of a slow client ended well after {before} events"),
                Err(status) => break status,
            }
        };
        ensure!(before < lives, "{before}");
        same("code", status.code(), Code::Unavailable)?;
        ensure!(status.message().contains("list again"), "{status:?}");
        // It may come again.
        let mut again = Listener::new(cx).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        same("event", again.next().await?.container_id, pod.id)
    });
}

#[test]
fn a_daemon_that_ends_ends_the_stream() {
    test_with(Setup { cold: true, ..Default::default() }, async |cx| {
        let mut listener = Listener::new(cx).await?;
        ensure!(cx.daemon.stop().await?.success(), "the daemon failed");
        let end = listener.0.message().await;
        ensure!(!matches!(end, Ok(Some(_))), "{end:?}");
        cx.daemon.restart().await
    });
}
