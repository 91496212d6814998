//! What pods use, and lists that come as streams.

use anyhow::{Context, Result, ensure};
use e2e::cri::{info, refused};
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;
use proto::cri as newer;
use tonic::{Code, Streaming};

/// Bytes that the memory hog holds.
const HELD: u64 = 24 << 20;

async fn stats(cx: &Cx, id: &str) -> Result<LinuxPodSandboxStats> {
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    let reply = cx.cri().raw().0.pod_sandbox_stats(request).await.context("PodSandboxStats")?;
    let stats = reply.into_inner().stats.context("no stats")?;
    same("id", stats.attributes.context("no attributes")?.id.as_str(), id)?;
    stats.linux.context("nothing of Linux")
}

async fn list(cx: &Cx, filter: PodSandboxStatsFilter) -> Result<Vec<String>> {
    let request = ListPodSandboxStatsRequest { filter: Some(filter) };
    let reply = cx.cri().raw().0.list_pod_sandbox_stats(request).await?.into_inner();
    let id = |stats: PodSandboxStats| stats.attributes.map(|attributes| attributes.id);
    reply.stats.into_iter().map(|stats| id(stats).context("no attributes")).collect()
}

fn number(value: Option<UInt64Value>) -> Result<u64> {
    Ok(value.context("a value is missing")?.value)
}

#[test]
fn a_pod_is_measured_by_its_cgroup() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let hog = ContainerBuilder::new(&image)
            .memory(64 << 20)
            .shell("dd if=/dev/zero of=/dev/shm/held bs=1M count=24; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 1000");
        let hog = cx.run(&pod, &hog).await?;
        let idle = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        e2e::eventually(30, "the memory is held", async || {
            let memory = stats(cx, &pod.id).await?.memory.context("no memory")?;
            Ok(number(memory.usage_bytes)? >= HELD)
        })
        .await?;
        let first = stats(cx, &pod.id).await?;
        let cpu = first.cpu.context("no cpu")?;
        let memory = first.memory.context("no memory")?;
        ensure!(cpu.timestamp > 0 && number(cpu.usage_core_nano_seconds)? > 0, "no time was used");
        ensure!(number(memory.working_set_bytes)? <= number(memory.usage_bytes)?);
        // What the kernel says of the pod's own cgroup, read beside berth.
        let file = e2e::case::lock(&cx.cgroup).file(
            "memory",
            if e2e::cgroup::is_v2() { "memory.current" } else { "memory.usage_in_bytes" },
        );
        let told: u64 = std::fs::read_to_string(&file)?.trim().parse()?;
        let usage = number(memory.usage_bytes)?;
        ensure!(told.abs_diff(usage) < 8 << 20, "{} says {told}, berth {usage}", file.display());
        // An init each, the shell's children are none or one.
        let processes = number(first.process.context("no processes")?.process_count)?;
        ensure!((2..=3).contains(&processes), "{processes} processes");
        ensure!(first.network.is_none(), "a network of the node's: {:?}", first.network);
        let mut containers: Vec<String> = first
            .containers
            .iter()
            .filter_map(|stats| stats.attributes.as_ref().map(|attributes| attributes.id.clone()))
            .collect();
        containers.sort();
        let mut expected = vec![hog.clone(), idle.clone()];
        expected.sort();
        same("containers", containers, expected)?;
        // Again, from files that are open by now; one that has ended is no part of it.
        cx.cri().stop(&hog, 0).await?;
        let second = stats(cx, &pod.id).await?;
        same("containers after an end", second.containers.len(), 1)?;
        let before = number(cpu.usage_core_nano_seconds)?;
        let after = number(second.cpu.context("no cpu")?.usage_core_nano_seconds)?;
        ensure!(after >= before, "{before} then {after}");
        Ok(())
    });
}

#[test]
fn the_traffic_of_a_pod_is_counted_as_the_pod_sees_it() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        // Without a process in the pod, too.
        let network = stats(cx, &pod.id).await?.network.context("no network")?;
        let link = network.default_interface.context("no default link")?;
        same("name", link.name.as_str(), "eth0")?;
        same("other links", network.interfaces.len(), 0)?;
        let before = (number(link.rx_bytes)?, number(link.tx_bytes)?);
        let id = cx.run(&pod, &ContainerBuilder::new(&image).network().idle()).await?;
        let route = cx.exec(&id, &["ip", "route"]).await?;
        let gateway = route.split("via ").nth(1).and_then(|rest| rest.split(' ').next());
        let gateway = gateway.with_context(|| format!("no gateway in {route}"))?;
        cx.exec(&id, &["ping", "-c", "3", "-i", "0.1", "-s", "1000", gateway]).await?;
        let network = stats(cx, &pod.id).await?.network.context("no network")?;
        let link = network.default_interface.context("no default link")?;
        let after = (number(link.rx_bytes)?, number(link.tx_bytes)?);
        ensure!(after.0 >= before.0 + 3000 && after.1 >= before.1 + 3000, "{before:?} {after:?}");
        let inside = cx.exec(&id, &["cat", "/sys/class/net/eth0/statistics/tx_bytes"]).await?;
        let inside: u64 = inside.trim().parse()?;
        ensure!(inside >= after.1 && inside < after.1 + 2000, "{inside} inside, {after:?} told");
        Ok(())
    });
}

#[test]
fn only_ready_pods_of_the_filter_are_listed() {
    test(async |cx| {
        let one = cx.run_pod(cx.pod().label("tier", "front")).await?;
        let two = cx.run_pod(cx.pod().label("tier", "back").network()).await?;
        let label = |value: &str| PodSandboxStatsFilter {
            label_selector: [("tier".to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        same("by label", list(cx, label("back")).await?, vec![two.id.clone()])?;
        let by_id = PodSandboxStatsFilter { id: one.id[..20].into(), ..Default::default() };
        same("by a beginning of the id", list(cx, by_id).await?, vec![one.id.clone()])?;
        same("all", list(cx, PodSandboxStatsFilter::default()).await?.len(), 2)?;
        cx.cri().stop_pod(&two.id).await?;
        same("ready", list(cx, PodSandboxStatsFilter::default()).await?, vec![one.id])?;
        let ask = async |id: &str| {
            let request = PodSandboxStatsRequest { pod_sandbox_id: id.into() };
            cx.cri().raw().0.pod_sandbox_stats(request).await
        };
        same(
            "a stopped pod",
            refused("stats", ask(&two.id).await, &["not ready"]),
            Code::FailedPrecondition,
        )?;
        same("no pod", refused("stats", ask("0123").await, &["0123"]), Code::NotFound)
    });
}

/// All messages of a stream, which must end by itself.
async fn all<T>(
    stream: std::result::Result<tonic::Response<Streaming<T>>, tonic::Status>,
) -> Result<Vec<T>> {
    let mut stream = stream?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

async fn pods(cx: &Cx, filter: Option<newer::PodSandboxFilter>) -> Result<Vec<newer::PodSandbox>> {
    let request = newer::StreamPodSandboxesRequest { filter };
    let messages = all(cx.cri().newer().stream_pod_sandboxes(request).await).await?;
    ensure!(messages.iter().all(|message| !message.pod_sandboxes.is_empty()), "an empty batch");
    Ok(messages.into_iter().flat_map(|message| message.pod_sandboxes).collect())
}

#[test]
fn lists_come_as_streams() {
    test(async |cx| {
        same("pods where there are none", pods(cx, None).await?.len(), 0)?;
        let image = cx.busybox().await?;
        // More than one message holds.
        let large = "x".repeat(60_000);
        let mut made: Vec<Pod> = Vec::new();
        for _ in 0..40 {
            let pod = cx.pod().with(|config| {
                config.annotations.insert("large".into(), large.clone());
            });
            made.push(cx.run_pod(pod).await?);
        }
        let id = cx.run(&made[0], &ContainerBuilder::new(&image).idle()).await?;
        let mut found: Vec<String> = pods(cx, None).await?.into_iter().map(|pod| pod.id).collect();
        found.sort();
        let mut expected: Vec<String> = made.iter().map(|pod| pod.id.clone()).collect();
        expected.sort();
        same("pods", found, expected)?;
        let filter = newer::PodSandboxFilter { id: made[7].id.clone(), ..Default::default() };
        same("pods of a filter", pods(cx, Some(filter)).await?.len(), 1)?;
        let mut client = cx.cri().newer();
        let containers =
            all(client.stream_containers(newer::StreamContainersRequest::default()).await).await?;
        let found: Vec<_> = containers.iter().flat_map(|message| &message.containers).collect();
        same("containers", found.iter().map(|found| &found.id).collect::<Vec<_>>(), vec![&id])?;
        let request = newer::StreamContainerStatsRequest::default();
        let measured = all(client.stream_container_stats(request).await).await?;
        let count: usize = measured.iter().map(|message| message.container_stats.len()).sum();
        same("containers measured", count, 1)?;
        let request = newer::StreamPodSandboxStatsRequest::default();
        let measured = all(client.stream_pod_sandbox_stats(request).await).await?;
        let count: usize = measured.iter().map(|message| message.pod_sandbox_stats.len()).sum();
        same("pods measured", (count, measured.len() > 1), (40, true))?;
        let mut images = cx.cri().newer_images();
        let request = newer::StreamImagesRequest::default();
        let listed = all(images.stream_images(request).await).await?;
        let listed: Vec<_> = listed.iter().flat_map(|message| &message.images).collect();
        same("images", listed.iter().map(|found| &found.id).collect::<Vec<_>>(), vec![&image])
    });
}

#[test]
fn resources_that_a_kubelet_changes_are_shown() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let update = |id: &str| newer::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.into(),
            resources: Some(newer::LinuxContainerResources {
                cpu_shares: 512,
                memory_limit_in_bytes: 1 << 27,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut client = cx.cri().newer();
        client.update_pod_sandbox_resources(update(&pod.id)).await?;
        let shown = async || -> Result<serde_json::Value> {
            Ok(info(&cx.cri().pod_status(&pod.id).await?.info)?["resources"].clone())
        };
        let expected = serde_json::json!({"cpuShares": 512, "memoryLimitInBytes": 1 << 27});
        same("resources", shown().await?, expected.clone())?;
        // The same request for a pod still finds it.
        let again = cx.cri().run_pod(&pod.config, "").await?;
        same("the same pod", again, pod.id.clone())?;
        cx.daemon.kill()?;
        cx.daemon.restart().await?;
        same("resources after a restart", shown().await?, expected)?;
        let missing = client.update_pod_sandbox_resources(update("0123")).await;
        same("no pod", refused("update", missing, &["0123"]), Code::NotFound)
    });
}
