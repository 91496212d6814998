//! What a pod shares and what it does not: namespaces, /dev/shm, resolv.conf, sysctls.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use e2e::cri::refused;
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;

/// The namespaces of a process: kind and identity.
fn namespaces(pid: &str) -> Result<BTreeSet<(String, String)>> {
    let mut all = BTreeSet::new();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
        all.insert((kind.to_owned(), link.to_string_lossy().into_owned()));
    }
    Ok(all)
}

/// The kinds of namespaces that a container shares with the node, that is with the daemon.
async fn shared_with_node(cx: &Cx, id: &str) -> Result<Vec<String>> {
    let container = namespaces(&cx.cri().pid(id).await?.to_string())?;
    let node = namespaces(&cx.daemon.pid()?.to_string())?;
    Ok(container.intersection(&node).map(|(kind, _)| kind.clone()).collect())
}

#[test]
fn a_container_has_namespaces_of_its_own() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).network().idle()).await?;
        let shared = shared_with_node(cx, &id).await?;
        // On cgroup v1 a container sees the host's cgroup namespace, as with the other runtimes.
        let expected: &[&str] = if e2e::cgroup::is_v2() { &[] } else { &["cgroup"] };
        ensure!(shared.is_empty() || shared == expected, "shared with the node: {shared:?}");
        same("pid 1", cx.exec(&id, &["cat", "/proc/1/cmdline"]).await?, "/bin/probe\0idle\0")?;
        Ok(())
    });
}

#[test]
fn a_host_network_pod_has_the_nodes_network_and_hostname() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let shared = shared_with_node(cx, &id).await?;
        ensure!(
            shared.iter().any(|kind| kind == "net") && !shared.iter().any(|kind| kind == "mnt"),
            "{shared:?}"
        );
        let node = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
        same("hostname", cx.exec(&id, &["hostname"]).await?, node.as_str())?;
        same("$HOSTNAME", cx.exec(&id, &["sh", "-c", "echo $HOSTNAME"]).await?, node)?;
        Ok(())
    });
}

#[test]
fn a_pod_with_a_network_has_its_own_hostname() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx
            .run_pod(cx.pod().network().with(|config| config.hostname = "web-0.example".into()))
            .await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).network().idle()).await?;
        same("hostname", cx.exec(&id, &["hostname"]).await?, "web-0.example\n")?;
        same(
            "/etc/hostname",
            cx.exec(&id, &["cat", "/etc/hostname"]).await?.trim(),
            "web-0.example",
        )?;
        same("$HOSTNAME", cx.exec(&id, &["sh", "-c", "echo $HOSTNAME"]).await?, "web-0.example\n")?;
        Ok(())
    });
}

#[test]
fn a_shared_pid_namespace_has_an_init_of_berths() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().pid(NamespaceMode::Pod)).await?;
        let container = || ContainerBuilder::new(&image).pid(NamespaceMode::Pod);
        let one = cx.run(&pod, &container().idle()).await?;
        let two = cx.run(&pod, &container().idle()).await?;
        let processes = cx.exec(&one, &["ps", "-o", "pid,args"]).await?;
        ensure!(
            processes.matches("probe idle").count() == 2,
            "one does not see the other:\n{processes}"
        );
        let first = cx.exec(&two, &["cat", "/proc/1/cmdline"]).await?;
        ensure!(!first.contains("probe"), "a container is pid 1: {first:?}");
        // The init reaps what its containers leave behind.
        cx.exec(&one, &["sh", "-c", "(sleep 0.1 &) ; (true &)"]).await?;
        e2e::eventually(5, "orphans are reaped", async || {
            let states =
                cx.exec(&two, &["sh", "-c", "grep -hs State /proc/[0-9]*/status || true"]).await?;
            Ok(!states.contains('Z'))
        })
        .await?;
        // It outlives a container and ends with the pod.
        cx.cri().stop(&one, 5).await?;
        ensure!(
            cx.exec(&two, &["true"]).await.is_ok(),
            "the second container has ended with the first"
        );
        Ok(())
    });
}

#[test]
fn the_nodes_pid_namespace_is_used_where_asked_for() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().pid(NamespaceMode::Node)).await?;
        let id =
            cx.run(&pod, &ContainerBuilder::new(&image).pid(NamespaceMode::Node).idle()).await?;
        let shared = shared_with_node(cx, &id).await?;
        ensure!(shared.iter().any(|kind| kind == "pid"), "{shared:?}");
        let own =
            cx.exec(&id, &["cat", &format!("/proc/{}/cmdline", cx.cri().pid(&id).await?)]).await?;
        ensure!(own.contains("idle"), "its own pid is another one: {own:?}");
        // Stop ends all of it although there is no pid 1 to kill.
        cx.exec(&id, &["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null &"]).await?;
        cx.cri().stop(&id, 1).await?;
        Ok(())
    });
}

#[test]
fn containers_of_a_pod_share_ipc_and_shm() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let one = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let two = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        cx.exec(&one, &["sh", "-c", "echo shared > /dev/shm/file"]).await?;
        same("another /dev/shm", cx.exec(&two, &["cat", "/dev/shm/file"]).await?, "shared\n")?;
        let size =
            cx.exec(&two, &["sh", "-c", "df -k /dev/shm | tail -1 | awk '{print $2}'"]).await?;
        ensure!(size.trim() == "65536", "/dev/shm has {size} KiB");
        let options = cx.exec(&one, &["grep", " /dev/shm ", "/proc/self/mountinfo"]).await?;
        ensure!(
            ["nosuid", "nodev", "noexec"].iter().all(|option| options.contains(option)),
            "{options}"
        );
        let (first, second) = (cx.cri().pid(&one).await?, cx.cri().pid(&two).await?);
        let ipc = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/ipc"));
        ensure!(ipc(first)? == ipc(second)?, "two IPC namespaces");
        ensure!(ipc(first)? != ipc(cx.daemon.pid()?)?, "the node's IPC namespace");
        Ok(())
    });
}

#[test]
fn the_nodes_ipc_is_used_where_asked_for() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().ipc(NamespaceMode::Node)).await?;
        let container = ContainerBuilder::new(&image).idle().security(|security| {
            security.namespace_options.get_or_insert_default().ipc = NamespaceMode::Node.into();
        });
        let id = cx.run(&pod, &container).await?;
        let shared = shared_with_node(cx, &id).await?;
        ensure!(shared.iter().any(|kind| kind == "ipc"), "{shared:?}");
        let name = format!("e2e-{}", cx.daemon.instance);
        cx.exec(&id, &["touch", &format!("/dev/shm/{name}")]).await?;
        let on_node = std::path::Path::new("/dev/shm").join(&name);
        ensure!(on_node.exists(), "another /dev/shm than the node's");
        Ok(std::fs::remove_file(on_node)?)
    });
}

async fn resolv_conf(cx: &Cx, image: &str, dns: Option<DnsConfig>) -> Result<String> {
    let pod = cx.run_pod(cx.pod().with(|config| config.dns_config = dns)).await?;
    cx.output(&pod, &ContainerBuilder::new(image).shell("cat /etc/resolv.conf")).await
}

#[test]
fn resolv_conf_is_as_the_kubelet_says() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let dns = DnsConfig {
            servers: owned(&["10.96.0.10", "fd00::1"]),
            searches: owned(&["default.svc.cluster.local", "svc.cluster.local"]),
            options: owned(&["ndots:5", "edns0"]),
        };
        let text = resolv_conf(cx, &image, Some(dns)).await?;
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        ensure!(
            lines
                == [
                    "nameserver 10.96.0.10",
                    "nameserver fd00::1",
                    "options ndots:5 edns0",
                    "search default.svc.cluster.local svc.cluster.local",
                ],
            "{text}"
        );
        // Empty lists make an empty file; no configuration at all takes the node's.
        let text = resolv_conf(cx, &image, Some(DnsConfig::default())).await?;
        ensure!(text.trim().is_empty(), "{text}");
        let text = resolv_conf(cx, &image, None).await?;
        let node = std::fs::read_to_string("/etc/resolv.conf")?;
        ensure!(node.contains("nameserver 127.") || text == node, "{text}");
        ensure!(!text.contains("nameserver 127."), "a loopback resolver reached a pod: {text}");
        Ok(())
    });
}

#[test]
fn sysctls_are_set_in_the_pod_alone() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let before = e2e::canary::sysctls();
        let builder = cx.pod().network();
        let builder = builder
            .sysctl("kernel.shm_rmid_forced", "1")
            .sysctl("net/ipv4/ip_unprivileged_port_start", "80");
        let pod = cx.run_pod(builder.sysctl("fs.mqueue.msg_max", "77")).await?;
        let show = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/fs/mqueue/msg_max";
        let text = cx.output(&pod, &ContainerBuilder::new(&image).network().shell(show)).await?;
        ensure!(text == "1\n80\n77\n", "{text}");
        ensure!(e2e::canary::sysctls() == before, "a sysctl of the host has changed");
        Ok(())
    });
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).idle().privileged();
        refused(
            "privileged in a plain pod",
            cx.cri().create(&pod.id, &container.config, &pod.config).await,
            &["privileged"],
        );
        let pod = cx.run_pod(cx.pod().privileged()).await?;
        cx.run(&pod, &container).await.map(drop)
    });
}

#[test]
fn a_pod_without_a_cgroup_parent_gets_one_of_berths() {
    test(async |cx| {
        let image = cx.busybox().await?;
        for parent in [String::new(), format!("/e2e-made-{}", cx.daemon.instance)] {
            let pod = cx.run_pod(cx.pod().cgroup_parent(&parent)).await?;
            let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
            let pid = cx.cri().pid(&id).await?;
            let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let controller = if e2e::cgroup::is_v2() { "0::" } else { ":memory:" };
            let path = cgroup
                .lines()
                .find_map(|line| Some(line.split_once(controller)?.1))
                .context("no cgroup")?;
            ensure!(path.starts_with(&parent), "{path} is not below {parent:?}");
            ensure!(
                path.contains(&id) || path.contains(&cx.daemon.instance),
                "{path} names neither container nor instance"
            );
            end(cx, &pod).await?;
        }
        // A parent that the runtime had to make belongs to whoever named it.
        e2e::daemon::kill_by_cgroup(&format!("e2e-made-{}", cx.daemon.instance));
        Ok(())
    });
}

async fn end(cx: &Cx, pod: &Pod) -> Result<()> {
    cx.cri().stop_pod(&pod.id).await?;
    Ok(cx.cri().remove_pod(&pod.id).await?)
}

#[test]
fn a_container_joins_the_processes_of_another() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let other = cx.run_pod(cx.pod()).await?;
        let target =
            cx.run(&pod, &ContainerBuilder::new(&image).command(&["sleep", "4321"])).await?;
        let debug = |target: &str| {
            let target = target.to_owned();
            ContainerBuilder::new(&image).idle().security(move |security| {
                let options = security.namespace_options.get_or_insert_default();
                options.pid = NamespaceMode::Target.into();
                options.target_id = target;
            })
        };
        let id = cx.run(&pod, &debug(&target)).await?;
        let seen = cx.exec(&id, &["ps"]).await?;
        ensure!(seen.contains("sleep 4321") && seen.contains("probe idle"), "{seen}");
        let create = async |pod: &e2e::pod::Pod, target: &str| {
            cx.cri().create(&pod.id, &debug(target).config, &pod.config).await
        };
        e2e::cri::refused("another pod", create(&other, &target).await, &["target_id"]);
        let waits = cx.create(&pod, &ContainerBuilder::new(&image).idle()).await?;
        e2e::cri::refused("one that does not run", create(&pod, &waits).await, &["target_id"]);
        e2e::cri::refused("none", create(&pod, "0123").await, &["0123"]);
        // It may end between the two calls.
        let late = create(&pod, &target).await?;
        cx.cri().stop(&target, 0).await?;
        ensure!(cx.cri().start(&late).await.is_err(), "started without its target");
        Ok(())
    });
}
