//! Limits: what cgroups-rs reads back of what was asked for, updates, OOM kills, statistics.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::cgroup::{Limits, is_v2};
use e2e::pod::{ContainerBuilder, log_text};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;

const MIB: i64 = 1 << 20;

/// The weight of v2 for shares of v1, as the newer formula of the OCI libraries has it (`cri-contract`, 2.9).
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = f64::from(u32::try_from(shares).expect("less than the largest")).log2();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // Between 1 and 10000.
            let weight = 10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64;
            weight
        }
    }
}

fn share(shares: u64) -> u64 {
    if is_v2() { weight(shares) } else { shares }
}

/// Some resources, all of them set.
fn resources(builder: ContainerBuilder) -> ContainerBuilder {
    builder.resources(|resources| {
        *resources = LinuxContainerResources {
            cpu_period: 50_000,
            cpu_quota: 20_000,
            cpu_shares: 512,
            cpuset_cpus: "0".into(),
            memory_limit_in_bytes: 64 * MIB,
            memory_swap_limit_in_bytes: 64 * MIB,
            oom_score_adj: 500,
            ..Default::default()
        };
    })
}

#[test]
fn limits_are_in_the_cgroup() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &resources(ContainerBuilder::new(&image)).idle()).await?;
        let pid = cx.cri().pid(&id).await?;
        let limits = Limits::of(pid)?;
        same("memory", limits.memory()?, 64 * MIB)?;
        same("cpu", limits.cpu()?, (20_000, 50_000))?;
        same("cpu share", limits.cpu_share()?, share(512))?;
        same("cpus", limits.cpus()?, vec![0])?;
        same("pids", limits.pids()?, -1)?;
        same(
            "OOM score",
            std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim(),
            "500",
        )?;
        let shown = cx
            .status(&id)
            .await?
            .resources
            .and_then(|resources| resources.linux)
            .context("no resources")?;
        same("memory in the status", shown.memory_limit_in_bytes, 64 * MIB)?;
        same(
            "cpu in the status",
            (shown.cpu_quota, shown.cpu_period, shown.cpu_shares),
            (20_000, 50_000, 512),
        )?;
        // Where the kubelet has put the pod.
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let parent = e2e::case::lock(&cx.cgroup).parent.clone();
        for line in cgroups.lines().filter(|line| {
            ["cpu:", "memory:", "pids:", "0::"].iter().any(|name| line.contains(name))
        }) {
            let in_unified = line.starts_with("0::") && !is_v2();
            ensure!(
                in_unified || line.contains(&format!(":{parent}/")),
                "{line} is not below {parent}"
            );
        }
        // An exec is in the same cgroups, but for one of its own by which it can be ended: on v1 in the freezer's
        // hierarchy.
        let exec = cx.exec(&id, &["cat", "/proc/self/cgroup"]).await?;
        let exec: String = exec
            .split_inclusive('\n')
            .map(|line| match line.split_once("/exec-") {
                Some((above, _)) if line.contains(":freezer:") => format!("{above}\n"),
                Some((above, _)) if is_v2() => format!("{above}/\n").replace("//", "/"),
                _ => line.to_owned(),
            })
            .collect();
        let init = cx.exec(&id, &["cat", "/proc/1/cgroup"]).await?;
        same("cgroups of an exec", exec, init)
    });
}

#[test]
fn without_limits_there_are_none() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image)
            .idle()
            .resources(|resources| *resources = Default::default());
        let id = cx.run(&pod, &container).await?;
        let limits = Limits::of(cx.cri().pid(&id).await?)?;
        let memory = limits.memory()?;
        ensure!(memory == -1 || memory > 1 << 60, "memory {memory}");
        same("cpu", limits.cpu()?.0, -1)
    });
}

#[test]
fn limits_are_updated_before_and_after_the_start() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.create(&pod, &resources(ContainerBuilder::new(&image)).idle()).await?;
        let update = LinuxContainerResources {
            memory_limit_in_bytes: 96 * MIB,
            memory_swap_limit_in_bytes: 96 * MIB,
            ..Default::default()
        };
        cx.cri().update(&id, update).await.context("update of a created container")?;
        cx.cri().start(&id).await?;
        let limits = Limits::of(cx.cri().pid(&id).await?)?;
        same("memory", limits.memory()?, 96 * MIB)?;
        same("what was not named", limits.cpu()?, (20_000, 50_000))?;
        // Growing and shrinking: the order of memory and swap matters to the kernel.
        for size in [200, 50, 128] {
            let update = LinuxContainerResources {
                memory_limit_in_bytes: size * MIB,
                memory_swap_limit_in_bytes: size * MIB,
                cpu_shares: 100 + size,
                cpu_quota: 1000 * size,
                ..Default::default()
            };
            cx.cri().update(&id, update).await.with_context(|| format!("update to {size} MiB"))?;
            same("memory", limits.memory()?, size * MIB)?;
            same("cpu", limits.cpu()?, (1000 * size, 50_000))?;
            same("cpu share", limits.cpu_share()?, share(u64::try_from(100 + size)?))?;
            let shown = cx
                .status(&id)
                .await?
                .resources
                .and_then(|resources| resources.linux)
                .context("no resources")?;
            same(
                "status",
                (shown.memory_limit_in_bytes, shown.cpu_shares),
                (size * MIB, 100 + size),
            )?;
        }
        cx.cri()
            .update(&id, LinuxContainerResources { cpu_quota: -1, ..Default::default() })
            .await?;
        same("no quota", limits.cpu()?.0, -1)
    });
}

#[test]
fn an_update_that_fails_changes_nothing() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &resources(ContainerBuilder::new(&image)).idle()).await?;
        let update = LinuxContainerResources {
            cpu_shares: 900,
            cpuset_cpus: "4000".into(),
            ..Default::default()
        };
        e2e::cri::refused(
            "CPUs that are not there",
            cx.cri().update(&id, update).await,
            &["cpuset"],
        );
        let limits = Limits::of(cx.cri().pid(&id).await?)?;
        same("cpu share", limits.cpu_share()?, share(512))?;
        same("cpus", limits.cpus()?, vec![0])?;
        let shown = cx
            .status(&id)
            .await?
            .resources
            .and_then(|resources| resources.linux)
            .context("no resources")?;
        same("status", shown.cpu_shares, 512)
    });
}

#[test]
fn an_oom_kill_is_reported_as_one() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for _ in 0..e2e::count(3, 50) {
            let container =
                ContainerBuilder::new(&image).memory(16 * MIB).command(&["probe", "alloc", "100"]);
            let (status, log) = cx.run_to_end(&pod, &container).await?;
            same("end", (status.exit_code, status.reason.as_str()), (137, "OOMKilled"))?;
            ensure!(
                !log.iter().any(|record| record.content.starts_with(b"done")),
                "it had the memory"
            );
        }
        // A kill that is none of memory.
        let id = cx
            .run(
                &pod,
                &ContainerBuilder::new(&image).memory(64 * MIB).command(&["probe", "ignore-term"]),
            )
            .await?;
        cx.cri().stop(&id, 0).await?;
        let status = cx.status(&id).await?;
        same("end", (status.exit_code, status.reason.as_str()), (137, "Error"))
    });
}

#[test]
fn an_oom_kill_of_a_child_is_noted_at_the_end() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).memory(16 * MIB).command(&[
            "probe",
            "alloc-child",
            "100",
        ]);
        let (status, log) = cx.run_to_end(&pod, &container).await?;
        // On v2 the whole container may go with its child.
        let text = String::from_utf8(log_text(&log, "stdout"))?;
        ensure!(text.contains("signal: 9") || status.exit_code == 137, "{text} {status:?}");
        same("reason", status.reason.as_str(), "OOMKilled")
    });
}

#[test]
fn statistics_are_those_of_the_container() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container =
            ContainerBuilder::new(&image).memory(64 * MIB).command(&["probe", "alloc", "20"]);
        let container = container.with(|config| {
            config.labels.insert("k".into(), "v".into());
        });
        let id = cx.run(&pod, &container).await?;
        let idle = cx.create(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let log = pod.log(&container.config);
        e2e::eventually(10, "memory is in use", async || {
            Ok(std::fs::read_to_string(&log)?.contains("done"))
        })
        .await?;
        cx.exec(&id, &["sh", "-c", "head -c 3000000 /dev/zero > /file; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]).await?;
        let stats = cx.cri().stats(&id).await?.context("no stats")?;
        let attributes = stats.attributes.context("no attributes")?;
        same("id", &attributes.id, &id)?;
        same("labels", &attributes.labels, &container.config.labels)?;
        same("metadata", &attributes.metadata, &container.config.metadata)?;
        let memory = stats.memory.context("no memory")?;
        let value = |value: Option<UInt64Value>| value.map(|value| value.value);
        let working_set = value(memory.working_set_bytes).context("no working set")?;
        ensure!((20 << 20..64 << 20).contains(&working_set), "working set {working_set}");
        let available = value(memory.available_bytes).context("no available memory")?;
        same("available", available, (64 << 20) - working_set)?;
        ensure!(value(memory.rss_bytes).is_some_and(|rss| rss >= 20 << 20), "rss");
        let cpu = stats.cpu.context("no cpu")?;
        ensure!(
            value(cpu.usage_core_nano_seconds).is_some_and(|used| used > 1_000_000)
                && cpu.timestamp > 0,
            "{cpu:?}"
        );
        let all = cx.cri().list_stats(None).await?;
        let ids: Vec<String> =
            all.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect();
        ensure!(ids.contains(&id) && !ids.contains(&idle), "listed: {ids:?}");
        by_filter(cx, &id, &pod.id).await
    });
}

async fn by_filter(cx: &Cx, id: &str, pod: &str) -> Result<()> {
    let filter = ContainerStatsFilter::default;
    let label = |value: &str| [("k".to_owned(), value.to_owned())].into();
    for (filter, expected) in [
        (ContainerStatsFilter { id: id[..13].into(), ..filter() }, 1),
        (ContainerStatsFilter { pod_sandbox_id: pod.into(), ..filter() }, 1),
        (ContainerStatsFilter { label_selector: label("v"), ..filter() }, 1),
        (ContainerStatsFilter { label_selector: label("w"), ..filter() }, 0),
        (ContainerStatsFilter { id: "0000".into(), ..filter() }, 0),
    ] {
        let found = cx.cri().list_stats(Some(filter.clone())).await?;
        same(&format!("{filter:?}"), found.len(), expected)?;
    }
    Ok(())
}

#[test]
fn a_written_layer_shows_in_the_statistics_after_a_while() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        cx.exec(&id, &["sh", "-c", "head -c 8000000 /dev/zero > /file; sync /file"]).await?;
        e2e::eventually(30, "8 MB show as used", async || {
            let layer = cx
                .cri()
                .stats(&id)
                .await?
                .and_then(|stats| stats.writable_layer)
                .context("no writable layer")?;
            Ok(layer.used_bytes.is_some_and(|used| (8_000_000..9_000_000).contains(&used.value)))
        })
        .await
    });
}

/// A file of the cgroup of a container on v2.
async fn v2_file(cx: &Cx, id: &str, name: &str) -> Result<String> {
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", cx.cri().pid(id).await?))?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup")?;
    let file = PathBuf::from("/sys/fs/cgroup").join(path).join(name);
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

#[test]
fn files_of_cgroup_v2_are_written_as_they_are() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let unified = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            ContainerBuilder::new(&image).idle().resources(|resources| resources.unified = pairs)
        };
        let good = unified(&[("memory.high", "50331648"), ("pids.max", "77")]);
        if !is_v2() {
            e2e::cri::refused(
                "unified on v1",
                cx.cri().create(&pod.id, &good.config, &pod.config).await,
                &["unified"],
            );
            return Ok(());
        }
        let id = cx.run(&pod, &good).await?;
        same("memory.high", v2_file(cx, &id, "memory.high").await?, "50331648")?;
        same("pids", Limits::of(cx.cri().pid(&id).await?)?.pids()?, 77)?;
        for key in [
            "../memory.max",
            "/sys/fs/cgroup/memory.max",
            "cgroup.procs",
            "cgroup.kill",
            "memory.no_such_file",
            "",
        ] {
            let bad = unified(&[(key, "1")]);
            e2e::cri::refused(
                key,
                cx.cri().create(&pod.id, &bad.config, &pod.config).await,
                &["unified"],
            );
        }
        Ok(())
    });
}

#[test]
fn page_sizes_that_the_node_has_not_may_be_limited_to_nothing_only() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let limited = |limit: u64| {
            // A kubelet names every size that it knows; no machine has the last one.
            let sizes = ["64KB", "2MB", "32MB", "1GB", "3GB"];
            ContainerBuilder::new(&image).idle().resources(|resources| {
                resources.hugepage_limits = sizes
                    .map(|size| HugepageLimit {
                        page_size: size.into(),
                        limit: if size == "3GB" { limit } else { 0 },
                    })
                    .to_vec();
            })
        };
        cx.run(&pod, &limited(0)).await?;
        let refused = cx.cri().create(&pod.id, &limited(3 << 30).config, &pod.config).await;
        e2e::cri::refused("a size that is not there", refused, &["hugetlb", "3GB"]);
        Ok(())
    });
}
