//! Containers: life, status, lists, and what is refused.

mod files;
mod limits;
mod logs;
mod process;
mod security;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cri::{Cri, info, refused};
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;
use serde_json::json;
use tonic::Code;

const UNKNOWN: &str = "5d8c9b1e-3c1f-4a6b-9a55-0f1f2f3f4f5f";

#[test]
fn a_container_is_created_started_stopped_and_removed() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).idle();
        let id = cx.create(&pod, &container).await?;
        ensure!(
            id.len() == 64 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)),
            "{id}"
        );
        let status = cx.status(&id).await?;
        same("state", status.state(), ContainerState::ContainerCreated)?;
        ensure!(status.created_at > 1_600_000_000_000_000_000, "{status:?}");
        same("times", (status.started_at, status.finished_at), (0, 0))?;

        cx.cri().start(&id).await?;
        let status = cx.status(&id).await?;
        same("state", status.state(), ContainerState::ContainerRunning)?;
        ensure!(status.started_at >= status.created_at && status.finished_at == 0, "{status:?}");
        let pid = cx.cri().pid(&id).await?;
        ensure!(Path::new(&format!("/proc/{pid}")).exists(), "no process {pid}");

        cx.cri().stop(&id, 10).await?;
        let status = cx.status(&id).await?;
        same("state", status.state(), ContainerState::ContainerExited)?;
        same("end", (status.exit_code, status.reason.as_str()), (0, "Completed"))?;
        ensure!(status.finished_at >= status.started_at, "{status:?}");
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} lives");
        cx.cri().stop(&id, 10).await?;

        cx.cri().remove(&id).await?;
        same("code", refused("status", cx.cri().container_status(&id).await, &[]), Code::NotFound)?;
        cx.cri().remove(&id).await?;
        cx.cri().stop(&id, 0).await?;
        Ok(())
    });
}

#[test]
fn stop_and_remove_of_what_never_was_succeed() {
    test(async |cx| {
        cx.cri().stop(UNKNOWN, 1).await?;
        cx.cri().remove(UNKNOWN).await?;
        let resources = LinuxContainerResources::default();
        for (call, code) in [
            ("start", refused("start", cx.cri().start(UNKNOWN).await, &[UNKNOWN])),
            ("status", refused("status", cx.cri().container_status(UNKNOWN).await, &[UNKNOWN])),
            ("exec", refused("exec", cx.cri().exec_sync(UNKNOWN, &["true"], 1).await, &[UNKNOWN])),
            ("stats", refused("stats", cx.cri().stats(UNKNOWN).await, &[UNKNOWN])),
            ("update", refused("update", cx.cri().update(UNKNOWN, resources).await, &[UNKNOWN])),
            ("reopen", refused("reopen", cx.cri().reopen_log(UNKNOWN).await, &[UNKNOWN])),
        ] {
            same(call, code, Code::NotFound)?;
        }
        let pod = cx.pod();
        let container = ContainerBuilder::new("busybox");
        let create = cx.cri().create(UNKNOWN, &container.config, &pod.config).await;
        same("create", refused("create in no pod", create, &[UNKNOWN]), Code::NotFound)
    });
}

#[test]
fn a_status_echoes_what_was_asked_for() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let reference = cx.cri().image_status(&image).await?.image.context("no image")?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("volume")?;
        let container =
            ContainerBuilder::new(&image).idle().mount(&volume, "/data", true).with(|config| {
                config.labels = HashMap::from([("a.example/label".into(), "1".into())]);
                config.annotations = HashMap::from([("odd".into(), "\u{2603} x=y\ty".into())]);
                config.metadata.get_or_insert_default().attempt = 3;
            });
        let id = cx.run(&pod, &container).await?;
        let reply = cx.cri().container_status(&id).await?;
        let status = reply.status.context("no status")?;
        let config = &container.config;
        same("metadata", &status.metadata, &config.metadata)?;
        same("labels", &status.labels, &config.labels)?;
        same("annotations", &status.annotations, &config.annotations)?;
        same("log path", Path::new(&status.log_path), pod.log(config).as_path())?;
        same("mounts", status.mounts.len(), 1)?;
        same("host path", status.mounts[0].host_path.as_str(), volume.to_string_lossy())?;
        same(
            "mount",
            (status.mounts[0].container_path.as_str(), status.mounts[0].readonly),
            ("/data", true),
        )?;
        same("image id", &status.image_id, &image)?;
        ensure!(
            status.image.is_some_and(|spec| reference.repo_tags.contains(&spec.image)),
            "image: no tag of it"
        );
        ensure!(
            reference.repo_digests.contains(&status.image_ref),
            "{} is no repo digest",
            status.image_ref
        );
        let verbose = info(&reply.info)?;
        ensure!(
            verbose["runtimeSpec"]["process"]["args"] == json!(["/bin/probe", "idle"]),
            "{verbose}"
        );

        let listed = cx.cri().list(None).await?;
        same("listed", listed.len(), 1)?;
        same("pod of it", &listed[0].pod_sandbox_id, &pod.id)?;
        same("image of it", &listed[0].image_id, &image)?;
        same("annotations of it", &listed[0].annotations, &config.annotations)?;
        same("state of it", listed[0].state(), ContainerState::ContainerRunning)
    });
}

#[test]
fn an_image_may_be_named_in_every_way() {
    test(async |cx| {
        let id = cx.busybox().await?;
        let image = cx.cri().image_status(&id).await?.image.context("no image")?;
        let pod = cx.run_pod(cx.pod()).await?;
        for name in
            [&id[..], &id["sha256:".len()..][..20], &image.repo_tags[0], &image.repo_digests[0]]
        {
            let container =
                cx.run(&pod, &ContainerBuilder::new(name).idle()).await.context(name.to_owned())?;
            same("image id", &cx.status(&container).await?.image_id, &id)?;
        }
        Ok(())
    });
}

#[test]
fn a_container_is_started_once() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        refused("start of a running container", cx.cri().start(&id).await, &["running"]);
        same("state", cx.status(&id).await?.state(), ContainerState::ContainerRunning)?;
        cx.cri().stop(&id, 5).await?;
        refused("start of one that has ended", cx.cri().start(&id).await, &["exited"]);
        Ok(())
    });
}

#[test]
fn the_same_request_gets_the_same_container() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).idle();
        let create = || cx.cri().create(&pod.id, &container.config, &pod.config);
        let (one, two) = tokio::join!(create(), create());
        let id = one?;
        same("the twin", &two?, &id)?;
        same("the same later", &create().await?, &id)?;
        same("containers", cx.cri().list(None).await?.len(), 1)?;
        let other = container.clone().env("CHANGED", "yes");
        refused(
            "the name for another one",
            cx.cri().create(&pod.id, &other.config, &pod.config).await,
            &[&id[..12]],
        );
        let next =
            container.clone().with(|config| config.metadata.get_or_insert_default().attempt = 1);
        ensure!(cx.create(&pod, &next).await? != id, "one container for two attempts");
        // The name is free again when its holder is gone.
        cx.cri().remove(&id).await?;
        ensure!(cx.create(&pod, &other).await? != id, "the id of a container that was removed");
        Ok(())
    });
}

#[test]
fn filters_pick_by_id_pod_state_and_label() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let one = cx.run_pod(cx.pod()).await?;
        let two = cx.run_pod(cx.pod()).await?;
        let label = |value: &str| {
            let labels = HashMap::from([
                ("color".to_owned(), value.to_owned()),
                ("tier".into(), "a".into()),
            ]);
            ContainerBuilder::new(&image).idle().with(|config| config.labels = labels)
        };
        let created = cx.create(&one, &label("red")).await?;
        let running = cx.run(&one, &label("blue")).await?;
        let exited = cx.run(&two, &label("red")).await?;
        cx.cri().stop(&exited, 5).await?;
        let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
        let labels = |value: &str| HashMap::from([("color".to_owned(), value.to_owned())]);
        let filter = ContainerFilter::default;
        let all = [&created, &running, &exited];
        for (filter, expected) in [
            (filter(), all.to_vec()),
            (ContainerFilter { id: created.clone(), ..filter() }, vec![&created]),
            (ContainerFilter { id: created[..16].into(), ..filter() }, vec![&created]),
            (
                ContainerFilter { pod_sandbox_id: one.id.clone(), ..filter() },
                vec![&created, &running],
            ),
            (ContainerFilter { pod_sandbox_id: two.id[..16].into(), ..filter() }, vec![&exited]),
            (
                ContainerFilter { state: state(ContainerState::ContainerCreated), ..filter() },
                vec![&created],
            ),
            (
                ContainerFilter { state: state(ContainerState::ContainerRunning), ..filter() },
                vec![&running],
            ),
            (
                ContainerFilter { state: state(ContainerState::ContainerExited), ..filter() },
                vec![&exited],
            ),
            (
                ContainerFilter { label_selector: labels("red"), ..filter() },
                vec![&created, &exited],
            ),
            (
                ContainerFilter {
                    label_selector: labels("red"),
                    pod_sandbox_id: two.id.clone(),
                    ..filter()
                },
                vec![&exited],
            ),
            (ContainerFilter { label_selector: labels("green"), ..filter() }, vec![]),
            (ContainerFilter { id: UNKNOWN.into(), ..filter() }, vec![]),
        ] {
            let found = cx.cri().list(Some(filter.clone())).await?;
            let mut found: Vec<&String> = found.iter().map(|container| &container.id).collect();
            let mut expected = expected;
            found.sort();
            expected.sort();
            same(&format!("{filter:?}"), found, expected)?;
        }
        Ok(())
    });
}

#[test]
fn a_prefix_of_an_id_is_enough_in_every_call() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).idle();
        let id = cx.cri().create(&pod.id[..20], &container.config, &pod.config).await?;
        let short = &id[..13];
        cx.cri().start(short).await?;
        same("status", cx.status(short).await?.id, id.as_str())?;
        same("exec", cx.exec(short, &["echo", "x"]).await?, "x\n")?;
        cx.cri().reopen_log(short).await?;
        cx.cri()
            .update(short, LinuxContainerResources { cpu_shares: 100, ..Default::default() })
            .await?;
        ensure!(cx.cri().stats(short).await?.is_some(), "no stats");
        cx.cri().stop(short, 5).await?;
        cx.cri().remove(short).await?;
        same("code", refused("status", cx.cri().container_status(&id).await, &[]), Code::NotFound)
    });
}

/// That a container is refused, by an error that names the words, and nothing is left of it.
async fn refuse(
    cx: &Cx,
    pod: &Pod,
    what: &str,
    container: ContainerBuilder,
    words: &[&str],
) -> Result<()> {
    refused(what, cx.cri().create(&pod.id, &container.config, &pod.config).await, words);
    ensure!(cx.cri().list(None).await?.is_empty(), "{what}: a container is listed");
    ensure!(!pod.log(&container.config).exists(), "{what}: a log file is there");
    Ok(())
}

#[test]
fn bad_containers_are_refused() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let nothing = cx.busybox_with(&[("Cmd", json!(null))]).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let before = cx.census()?;
        let container = || ContainerBuilder::new(&image).idle();
        let volume = cx.dir("volume")?;
        let mount = |host: &str, target: &str| container().mount(Path::new(host), target, false);
        let host = volume.to_string_lossy().into_owned();
        let file = cx.scratch.disk.join("file");
        std::fs::write(&file, "x")?;
        let below_file = format!("{}/x", file.display());
        let missing = "127.0.0.1:1/no/such:image";
        let cases: Vec<(&str, ContainerBuilder, &[&str])> = vec![
            ("an unknown image", ContainerBuilder::new(missing).idle(), &["no/such:image"]),
            ("no image", container().with(|config| config.image = None), &["image"]),
            ("no metadata", container().with(|config| config.metadata = None), &["metadata"]),
            (
                "no name",
                container().with(|config| config.metadata.get_or_insert_default().name.clear()),
                &["name"],
            ),
            ("no command anywhere", ContainerBuilder::new(&nothing), &["command"]),
            (
                "a relative working directory",
                container().with(|config| config.working_dir = "a/b".into()),
                &["working_dir"],
            ),
            ("a mount source that is relative", mount("volume", "/data"), &["host_path"]),
            ("a mount source below a file", mount(&below_file, "/data"), &["/file/x"]),
            ("a mount without a source", mount("", "/data"), &["host_path"]),
            ("a mount target that is relative", mount(&host, "data"), &["container_path"]),
            ("a mount without a target", mount(&host, ""), &["container_path"]),
            ("a mount over the root", mount(&host, "/"), &["container_path"]),
            (
                "a log path with ..",
                container().with(|config| config.log_path = "../../canary/w/log".into()),
                &["log_path"],
            ),
            (
                "an absolute log path",
                container().with(|config| config.log_path = "/tmp/log".into()),
                &["log_path"],
            ),
            ("a variable without a name", container().env("", "x"), &["env"]),
            ("a variable with = in its name", container().env("A=B", "x"), &["env"]),
            ("a variable with NUL", container().env("A", "x\0B=y"), &["env"]),
            ("an argument with NUL", container().args(&["a\0b"]), &["args"]),
        ];
        for (what, container, words) in cases {
            refuse(cx, &pod, what, container, words).await?;
        }
        cx.check_same(&before).await
    });
}

#[test]
fn bad_users_are_refused() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let before = cx.census()?;
        let security = |change: fn(&mut LinuxContainerSecurityContext)| {
            ContainerBuilder::new(&image).idle().security(change)
        };
        let unknown = security(|security| security.run_as_username = "mallory".into());
        refuse(cx, &pod, "an unknown user", unknown, &["mallory"]).await?;
        let both = security(|security| {
            security.run_as_user = Some(Int64Value { value: 1 });
            security.run_as_username = "alice".into();
        });
        refuse(cx, &pod, "a user by number and by name", both, &["run_as_user"]).await?;
        let group = security(|security| security.run_as_group = Some(Int64Value { value: 1 }));
        refuse(cx, &pod, "a group without a user", group, &["run_as_group"]).await?;
        for value in [-1, 1 << 32, i64::MAX] {
            let user = ContainerBuilder::new(&image).idle().user(value, None);
            refuse(cx, &pod, &format!("user {value}"), user, &["run_as_user"]).await?;
        }
        let of_image = cx.busybox_with(&[("User", json!("mallory"))]).await?;
        refuse(
            cx,
            &pod,
            "an unknown user of the image",
            ContainerBuilder::new(&of_image).idle(),
            &["mallory"],
        )
        .await?;
        cx.cri().remove_image(&of_image).await?;
        cx.check_same(&before).await
    });
}

#[test]
fn bad_limits_and_profiles_are_refused() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let before = cx.census()?;
        let resources = |change: fn(&mut LinuxContainerResources)| {
            ContainerBuilder::new(&image).idle().resources(change)
        };
        let security = |change: fn(&mut LinuxContainerSecurityContext)| {
            ContainerBuilder::new(&image).idle().security(change)
        };
        let localhost = |path: &str| {
            let profile = SecurityProfile { profile_type: 2, localhost_ref: path.into() };
            ContainerBuilder::new(&image)
                .idle()
                .security(|security| security.seccomp = Some(profile))
        };
        let broken = cx.scratch.disk.join("broken.json");
        std::fs::write(&broken, "{not json")?;
        let device = |host: &str| {
            let device = Device {
                container_path: "/dev/x".into(),
                host_path: host.into(),
                permissions: "rw".into(),
            };
            ContainerBuilder::new(&image).idle().with(|config| config.devices.push(device))
        };
        let cases = vec![
            ("CPUs that are not there", resources(|r| r.cpuset_cpus = "4000".into()), "cpuset"),
            ("CPUs that are no list", resources(|r| r.cpuset_cpus = "a,b".into()), "cpuset"),
            ("an OOM score out of range", resources(|r| r.oom_score_adj = 5000), "oom_score_adj"),
            (
                "a capability that does not exist",
                security(|s| {
                    s.capabilities.get_or_insert_default().add_capabilities.push("FLY".into());
                }),
                "fly",
            ),
            ("a seccomp profile without a path", localhost(""), "localhost_ref"),
            (
                "a seccomp profile that is missing",
                localhost("/no/such/profile.json"),
                "/no/such/profile.json",
            ),
            ("a seccomp profile that is a directory", localhost("/tmp"), "/tmp"),
            (
                "a seccomp profile that is no JSON",
                localhost(&broken.to_string_lossy()),
                "broken.json",
            ),
            ("a device that is missing", device("/dev/no-such-device"), "/dev/no-such-device"),
            ("a device that is none", device("/etc/passwd"), "/etc/passwd"),
        ];
        for (what, container, word) in cases {
            refuse(cx, &pod, what, container, &[word]).await?;
        }
        cx.check_same(&before).await
    });
}

#[test]
fn a_program_that_cannot_be_run_ends_the_start() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for (what, command, words) in [
            ("a missing program", "/no/such/program", ["/no/such/program", "no such file"]),
            ("a name that is not in PATH", "no-such-program", ["no-such-program", ""]),
            ("a file that is no program", "/etc/passwd", ["/etc/passwd", "permission denied"]),
            ("a directory", "/etc", ["/etc", ""]),
        ] {
            let id = cx.create(&pod, &ContainerBuilder::new(&image).command(&[command])).await?;
            refused(what, cx.cri().start(&id).await, &words);
            let status = cx.status(&id).await?;
            same(what, status.state(), ContainerState::ContainerExited)?;
            same(what, (status.exit_code, status.reason.as_str()), (128, "StartError"))?;
            ensure!(status.message.contains(command), "{what}: {:?}", status.message);
            same(what, status.started_at, 0)?;
            ensure!(status.finished_at > 0, "{what}: no end");
            cx.cri().remove(&id).await?;
        }
        Ok(())
    });
}

#[test]
fn a_container_that_is_removed_while_it_runs_is_killed() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).command(&["probe", "ignore-term"]);
        let id = cx.run(&pod, &container).await?;
        let pid = cx.cri().pid(&id).await?;
        cx.cri().remove(&id).await?;
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} lives");
        ensure!(pod.log(&container.config).exists(), "the log is gone with the container");
        Ok(())
    });
}

#[test]
fn a_created_container_is_removed_without_having_run() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("volume")?;
        let container = ContainerBuilder::new(&image)
            .shell("echo ran > /data/ran")
            .mount(&volume, "/data", false);
        let id = cx.create(&pod, &container).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        ensure!(!volume.join("ran").exists(), "it ran before it was started");
        cx.cri().stop(&id, 1).await?;
        cx.cri().remove(&id).await?;
        ensure!(!volume.join("ran").exists(), "it ran when it was removed");
        Ok(())
    });
}

#[test]
fn many_containers_at_once_come_and_go() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let mut lives = tokio::task::JoinSet::new();
        for number in 0..e2e::count(24, 200) {
            let container =
                ContainerBuilder::new(&image).shell(&format!("echo {number}; exit {}", number % 7));
            lives.spawn(life(cx.cri().clone(), pod.clone(), container, number));
        }
        lives.join_all().await.into_iter().collect::<Result<Vec<()>>>()?;
        same("left", cx.cri().list(None).await?.len(), 0)
    });
}

/// A container from its making to its removal, with its exit code and its log.
async fn life(cri: Cri, pod: Pod, container: ContainerBuilder, number: usize) -> Result<()> {
    let id = cri.create(&pod.id, &container.config, &pod.config).await?;
    cri.start(&id).await?;
    let deadline = Instant::now() + e2e::scaled(Duration::from_secs(60));
    let status = loop {
        let status = cri.container_status(&id).await?.status.context("no status")?;
        if status.state() == ContainerState::ContainerExited {
            break status;
        }
        ensure!(Instant::now() < deadline, "container {number} does not end: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    same("exit code", usize::try_from(status.exit_code)?, number % 7)?;
    let log = e2e::pod::parse_log(&std::fs::read(pod.log(&container.config))?)?;
    same("log", e2e::pod::log_text(&log, "stdout"), format!("{number}\n").into_bytes())?;
    Ok(cri.remove(&id).await?)
}
