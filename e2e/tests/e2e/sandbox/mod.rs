//! Pods: life, status, lists, bad input.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::cri::{info, refused};
use e2e::pod::{ContainerBuilder, PodBuilder};
use e2e::{Cx, test};
use k8s_cri::v1::*;
use tonic::Code;

mod namespaces;

const UNKNOWN: &str = "5d8c9b1e-3c1f-4a6b-9a55-0f1f2f3f4f5f";

#[test]
fn a_pod_runs_stops_and_goes() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        ensure!(
            pod.id.len() == 64 && pod.id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)),
            "{}",
            pod.id
        );
        let status = cx.cri().pod_status(&pod.id).await?.status.context("no status")?;
        ensure!(status.state() == PodSandboxState::SandboxReady, "{status:?}");
        cx.cri().stop_pod(&pod.id).await?;
        let status = cx.cri().pod_status(&pod.id).await?.status.context("no status")?;
        ensure!(status.state() == PodSandboxState::SandboxNotready, "{status:?}");
        cx.cri().stop_pod(&pod.id).await?;
        cx.cri().remove_pod(&pod.id).await?;
        let gone = cx.cri().pod_status(&pod.id).await;
        ensure!(refused("status of a pod that is gone", gone, &[]) == Code::NotFound);
        ensure!(cx.cri().list_pods(None).await?.is_empty(), "it is still listed");
        cx.cri().stop_pod(&pod.id).await?;
        cx.cri().remove_pod(&pod.id).await?;
        Ok(())
    });
}

#[test]
fn stop_and_remove_of_what_never_was_succeed() {
    test(async |cx| {
        cx.cri().stop_pod(UNKNOWN).await?;
        cx.cri().remove_pod(UNKNOWN).await?;
        ensure!(
            refused("status", cx.cri().pod_status(UNKNOWN).await, &[UNKNOWN]) == Code::NotFound
        );
        Ok(())
    });
}

#[test]
fn a_running_pod_is_removed_with_its_containers() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id =
            cx.run(&pod, &ContainerBuilder::new(&image).command(&["probe", "ignore-term"])).await?;
        cx.cri().remove_pod(&pod.id).await?;
        ensure!(refused("status", cx.cri().container_status(&id).await, &[]) == Code::NotFound);
        ensure!(cx.cri().list(None).await?.is_empty(), "a container is left");
        Ok(())
    });
}

#[test]
fn a_stopped_pod_has_no_process_and_takes_no_container() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id =
            cx.run(&pod, &ContainerBuilder::new(&image).command(&["probe", "ignore-term"])).await?;
        let pid = cx.cri().pid(&id).await?;
        cx.cri().stop_pod(&pod.id).await?;
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "its process lives");
        let status = cx.status(&id).await?;
        ensure!(
            status.state() == ContainerState::ContainerExited && status.exit_code == 137,
            "{status:?}"
        );
        let late = ContainerBuilder::new(&image).idle();
        refused(
            "a container in a stopped pod",
            cx.cri().create(&pod.id, &late.config, &pod.config).await,
            &[&pod.id[..12]],
        );
        Ok(())
    });
}

#[test]
fn a_status_echoes_what_was_asked_for() {
    test(async |cx| {
        let odd = "value with spaces, UTF-8 \u{2603} and\ta tab";
        let builder = cx.pod().label("e2e/label", "x").with(|config| {
            config.annotations = HashMap::from([
                ("a.example/b".into(), odd.into()),
                ("empty".into(), String::new()),
            ]);
            config.metadata.get_or_insert_default().attempt = 7;
        });
        let pod = cx.run_pod(builder).await?;
        let reply = cx.cri().pod_status(&pod.id).await?;
        let status = reply.status.context("no status")?;
        ensure!(status.metadata == pod.config.metadata, "{status:?}");
        ensure!(
            status.labels == pod.config.labels && status.annotations == pod.config.annotations,
            "{status:?}"
        );
        ensure!(
            status.created_at > 1_600_000_000_000_000_000,
            "not in nanoseconds: {}",
            status.created_at
        );
        ensure!(
            status.network.is_none_or(|network| network.ip.is_empty()),
            "an address on the host's network"
        );
        let options =
            status.linux.and_then(|linux| linux.namespaces?.options).context("no namespaces")?;
        let asked = pod.config.linux.and_then(|linux| linux.security_context?.namespace_options);
        ensure!(Some(options.clone()) == asked, "{options:?}");
        let listed = cx.cri().list_pods(None).await?;
        ensure!(listed.len() == 1 && listed[0].annotations == pod.config.annotations, "{listed:?}");
        ensure!(
            listed[0].metadata == pod.config.metadata && listed[0].created_at == status.created_at,
            "{listed:?}"
        );
        let verbose = info(&reply.info)?;
        ensure!(verbose["pid"].is_number() && verbose["runtimeSpec"].is_object(), "{verbose}");
        Ok(())
    });
}

#[test]
fn the_same_request_gets_the_same_pod() {
    test(async |cx| {
        let builder = cx.pod();
        std::fs::create_dir_all(&builder.config.log_directory)?;
        let run = || cx.cri().run_pod(&builder.config, "");
        let (first, second, third) = tokio::join!(run(), run(), run());
        let first = first?;
        ensure!(first == second? && first == third?, "different pods");
        ensure!(run().await? == first, "another pod later");
        ensure!(cx.cri().list_pods(None).await?.len() == 1, "more than one");
        // The same name for something else names the holder.
        let other = builder.clone().label("changed", "yes");
        refused(
            "the name for another pod",
            cx.cri().run_pod(&other.config, "").await,
            &[&first[..12]],
        );
        // Another attempt is another pod.
        let next = builder.with(|config| config.metadata.get_or_insert_default().attempt = 1);
        ensure!(cx.cri().run_pod(&next.config, "").await? != first, "one pod for two attempts");
        Ok(())
    });
}

#[test]
fn filters_pick_by_id_state_and_label() {
    test(async |cx| {
        let ready = cx.run_pod(cx.pod().label("tier", "a").label("color", "red")).await?;
        let stopped = cx.run_pod(cx.pod().label("tier", "a").label("color", "blue")).await?;
        cx.cri().stop_pod(&stopped.id).await?;
        let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let filter = PodSandboxFilter::default;
        let both = [&ready.id, &stopped.id];
        let cases: Vec<(PodSandboxFilter, Vec<&String>)> = vec![
            (filter(), both.to_vec()),
            (PodSandboxFilter { id: ready.id.clone(), ..filter() }, vec![&ready.id]),
            (PodSandboxFilter { id: ready.id[..20].into(), ..filter() }, vec![&ready.id]),
            (
                PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..filter() },
                vec![&ready.id],
            ),
            (
                PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..filter() },
                vec![&stopped.id],
            ),
            (
                PodSandboxFilter { label_selector: labels(&[("tier", "a")]), ..filter() },
                both.to_vec(),
            ),
            (
                PodSandboxFilter {
                    label_selector: labels(&[("tier", "a"), ("color", "red")]),
                    ..filter()
                },
                vec![&ready.id],
            ),
            (PodSandboxFilter { label_selector: labels(&[("tier", "b")]), ..filter() }, vec![]),
            (
                PodSandboxFilter {
                    id: ready.id.clone(),
                    state: state(PodSandboxState::SandboxNotready),
                    label_selector: labels(&[("tier", "a")]),
                },
                vec![],
            ),
            (PodSandboxFilter { id: UNKNOWN.into(), ..filter() }, vec![]),
        ];
        for (filter, mut expected) in cases {
            let mut found: Vec<String> = cx
                .cri()
                .list_pods(Some(filter.clone()))
                .await?
                .into_iter()
                .map(|pod| pod.id)
                .collect();
            found.sort();
            expected.sort();
            ensure!(found.iter().collect::<Vec<_>>() == expected, "{filter:?} found {found:?}");
        }
        Ok(())
    });
}

#[test]
fn a_unique_prefix_of_an_id_is_enough() {
    test(async |cx| {
        let mut pods: Vec<String> = Vec::new();
        // Two of at most seventeen ids begin with the same digit.
        let (one, two) = loop {
            let pod = cx.run_pod(cx.pod()).await?;
            if let Some(twin) = pods.iter().find(|id| id[..1] == pod.id[..1]) {
                break (twin.clone(), pod.id);
            }
            pods.push(pod.id);
        };
        let common = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
        let ambiguous =
            refused("an ambiguous prefix", cx.cri().pod_status(&one[..common]).await, &[]);
        ensure!(ambiguous != Code::NotFound, "an ambiguous prefix is not found");
        let status = cx.cri().pod_status(&one[..=common]).await?.status.context("no status")?;
        ensure!(status.id == one, "{status:?}");
        refused("stop of an ambiguous prefix", cx.cri().stop_pod(&one[..common]).await, &[]);
        cx.cri().stop_pod(&two[..=common]).await?;
        cx.cri().remove_pod(&two[..=common]).await?;
        ensure!(cx.cri().pod_status(&two).await.is_err(), "the pod is still there");
        ensure!(cx.cri().pod_status(&one).await.is_ok(), "the wrong pod is gone");
        Ok(())
    });
}

#[test]
fn many_pods_at_once_come_and_go() {
    test(async |cx| {
        let count = e2e::count(16, 100);
        let mut starts = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (cri, pod) = (cx.cri().clone(), cx.pod());
            std::fs::create_dir_all(&pod.config.log_directory)?;
            starts.spawn(async move { cri.run_pod(&pod.config, "").await });
        }
        let ids: Vec<String> = starts.join_all().await.into_iter().collect::<Result<_, _>>()?;
        let listed = cx.cri().list_pods(None).await?;
        ensure!(listed.len() == count, "{} of {count} are listed", listed.len());
        ensure!(
            listed.iter().all(|pod| pod.state() == PodSandboxState::SandboxReady),
            "{listed:?}"
        );
        let mut ends = tokio::task::JoinSet::new();
        for id in ids {
            let cri = cx.cri().clone();
            ends.spawn(async move {
                cri.stop_pod(&id).await?;
                cri.remove_pod(&id).await
            });
        }
        ends.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(())
    });
}

/// That a pod is refused with an error that names the words, and leaves nothing.
async fn refuse(cx: &Cx, what: &str, pod: PodBuilder, words: &[&str]) -> Result<()> {
    std::fs::create_dir_all(cx.logs())?;
    refused(what, cx.cri().run_pod(&pod.config, &pod.handler).await, words);
    ensure!(cx.cri().list_pods(None).await?.is_empty(), "{what}: a pod is listed");
    cx.check_census().await.with_context(|| what.to_owned())
}

#[test]
fn incomplete_metadata_is_refused() {
    test(async |cx| {
        let metadata = |change: fn(&mut PodSandboxMetadata)| {
            cx.pod().with(|config| change(config.metadata.get_or_insert_default()))
        };
        refuse(cx, "no metadata", cx.pod().with(|config| config.metadata = None), &["metadata"])
            .await?;
        refuse(cx, "no name", metadata(|metadata| metadata.name.clear()), &["name"]).await?;
        refuse(cx, "no namespace", metadata(|metadata| metadata.namespace.clear()), &["namespace"])
            .await?;
        refuse(cx, "no uid", metadata(|metadata| metadata.uid.clear()), &["uid"]).await
    });
}

#[test]
fn an_unknown_handler_is_refused() {
    test(async |cx| {
        let pod = PodBuilder { handler: "no-such-handler".into(), ..cx.pod() };
        refuse(cx, "unknown handler", pod, &["no-such-handler"]).await?;
        let pod = PodBuilder { handler: "berth".into(), ..cx.pod() };
        cx.run_pod(pod).await.map(drop)
    });
}

#[test]
fn bad_paths_in_a_pod_are_refused() {
    test(async |cx| {
        let link = cx.scratch.disk.join("link");
        std::os::unix::fs::symlink(cx.canary.w(), &link)?;
        let w = cx.canary.w();
        for (what, dir) in [
            ("a relative log directory", "logs/x".to_owned()),
            ("a log directory with ..", format!("{}/../canary/w", cx.logs().display())),
        ] {
            let pod = cx.pod().with(|config| config.log_directory = dir);
            refuse(cx, what, pod, &["log_directory"]).await?;
        }
        for parent in ["/../../tmp", "/a/../../b", "relative/../.."] {
            let pod = cx.pod().cgroup_parent(parent);
            refuse(cx, &format!("cgroup_parent {parent}"), pod, &["cgroup_parent"]).await?;
        }
        ensure!(std::fs::read_dir(&w)?.count() == 3, "something was put into {w}");
        Ok(())
    });
}

#[test]
fn bad_text_in_a_pod_is_refused() {
    test(async |cx| {
        let dns = |change: fn(&mut DnsConfig)| {
            cx.pod().with(|config| change(config.dns_config.get_or_insert_default()))
        };
        let hostname = |name: &str| cx.pod().network().with(|config| config.hostname = name.into());
        refuse(cx, "hostname with a newline", hostname("a\nb"), &["hostname"]).await?;
        refuse(cx, "hostname of 300 bytes", hostname(&"a".repeat(300)), &["hostname"]).await?;
        refuse(
            cx,
            "DNS server with a newline",
            dns(|dns| dns.servers.push("1.1.1.1\nx".into())),
            &["dns"],
        )
        .await?;
        refuse(
            cx,
            "DNS search with a newline",
            dns(|dns| dns.searches.push("a\nnameserver 6.6.6.6".into())),
            &["dns"],
        )
        .await?;
        refuse(
            cx,
            "DNS option with a newline",
            dns(|dns| dns.options.push("ndots:5\nx".into())),
            &["dns"],
        )
        .await
    });
}

#[test]
fn bad_security_in_a_pod_is_refused() {
    test(async |cx| {
        let security = |change: fn(&mut LinuxSandboxSecurityContext)| {
            cx.pod().with(|config| {
                change(
                    config.linux.get_or_insert_default().security_context.get_or_insert_default(),
                );
            })
        };
        let group = security(|security| security.run_as_group = Some(Int64Value { value: 1000 }));
        refuse(cx, "a group without a user", group, &["run_as_group"]).await?;
        let network = |mode: NamespaceMode| {
            cx.pod().with(|config| {
                let security =
                    config.linux.get_or_insert_default().security_context.get_or_insert_default();
                security.namespace_options.get_or_insert_default().network = mode.into();
            })
        };
        refuse(cx, "network of a container", network(NamespaceMode::Container), &["network"])
            .await?;
        refuse(cx, "network of a target", network(NamespaceMode::Target), &["network"]).await
    });
}

#[test]
fn sysctls_that_are_the_hosts_are_refused() {
    test(async |cx| {
        let before = e2e::canary::sysctls();
        for (key, value) in [
            ("net.ipv4.ip_forward", "0"),
            ("kernel.core_pattern", "|/bin/x"),
            ("kernel.panic", "1"),
            ("../kernel/panic", "1"),
            ("kernel.shm_rmid_forced", "1\nkernel.panic=1"),
            ("kernel.shm_rmid_forced+kernel.panic", "1"),
            ("", "1"),
        ] {
            refuse(
                cx,
                &format!("{key}={value} on the host's network"),
                cx.pod().sysctl(key, value),
                &["sysctl"],
            )
            .await?;
        }
        let pod = cx.pod().ipc(NamespaceMode::Node).sysctl("kernel.shm_rmid_forced", "1");
        refuse(cx, "an IPC sysctl on the host's IPC", pod, &["sysctl", "kernel.shm_rmid_forced"])
            .await?;
        let pod = cx.pod().network().sysctl("net.ipv4.no_such_thing", "1");
        refuse(cx, "a sysctl that does not exist", pod, &["net.ipv4.no_such_thing"]).await?;
        ensure!(e2e::canary::sysctls() == before, "a sysctl of the host has changed");
        Ok(())
    });
}
