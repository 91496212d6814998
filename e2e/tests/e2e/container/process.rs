//! What runs in a container and how it ends: command, environment, directory, signals, exit codes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::pod::{ContainerBuilder, Pod, log_text, parse_log};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;
use proto::cri as newer;
use serde_json::json;

/// The arguments that a container gets, for a command and args of the pod over those of an image.
#[test]
fn command_and_args_replace_those_of_the_image() {
    test(async |cx| {
        let image = cx
            .busybox_with(&[
                ("Entrypoint", json!(["/bin/probe", "args", "entry"])),
                ("Cmd", json!(["cmd"])),
            ])
            .await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for (command, args, expected) in [
            (vec![], vec![], "entry\ncmd\n"),
            (vec![], vec!["a", "b c"], "entry\na\nb c\n"),
            (vec!["/bin/probe", "args", "x"], vec![], "x\n"),
            (vec!["probe", "args"], vec!["y", ""], "y\n\n"),
        ] {
            let container = ContainerBuilder::new(&image).command(&command).args(&args);
            same(&format!("{command:?} {args:?}"), cx.output(&pod, &container).await?, expected)?;
        }
        Ok(())
    });
}

#[test]
fn the_environment_is_the_images_then_the_pods() {
    test(async |cx| {
        let image = cx
            .busybox_with(&[("Env", json!(["PATH=/bin", "A=image", "B=image", "EMPTY="]))])
            .await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).command(&["probe", "env"]);
        let container = container.env("B", "pod").env("C", "x=y z\u{2603}").env("B", "last");
        let text = cx.output(&pod, &container).await?;
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.strip_prefix(&format!("{key}=")))
                .collect::<Vec<_>>()
        };
        same("A", value("A"), vec!["image"])?;
        same("B", value("B"), vec!["last"])?;
        same("C", value("C"), vec!["x=y z\u{2603}"])?;
        same("EMPTY", value("EMPTY"), vec![""])?;
        same("PATH", value("PATH"), vec!["/bin"])?;
        same("HOME", value("HOME"), vec!["/root"])?;
        same("HOSTNAME", value("HOSTNAME").len(), 1)?;
        ensure!(value("TERM").is_empty(), "TERM without a terminal");
        let count = text.lines().count();
        same("number of variables", count, 7)
    });
}

#[test]
fn a_path_is_there_where_the_image_has_none() {
    test(async |cx| {
        let image = cx.busybox_with(&[("Env", json!([]))]).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let text =
            cx.output(&pod, &ContainerBuilder::new(&image).command(&["probe", "env"])).await?;
        let path = text.lines().find_map(|line| line.strip_prefix("PATH=")).context("no PATH")?;
        same("PATH", path, e2e::image::base::PATH)
    });
}

/// Creates a container by the newest API.
async fn create(cx: &Cx, pod: &Pod, config: newer::ContainerConfig) -> Result<String> {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let sandbox = newer::PodSandboxConfig {
        metadata: Some(newer::PodSandboxMetadata {
            name: metadata.name,
            uid: metadata.uid,
            namespace: metadata.namespace,
            attempt: metadata.attempt,
        }),
        log_directory: pod.config.log_directory.clone(),
        linux: Some(Default::default()),
        ..Default::default()
    };
    let request = newer::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(newer::ContainerConfig { linux: Some(Default::default()), ..config }),
        sandbox_config: Some(sandbox),
    };
    Ok(cx.cri().newer().create_container(request).await?.into_inner().container_id)
}

#[test]
fn bytes_that_are_no_text_reach_the_environment() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).idle();
        let metadata = newer::ContainerMetadata { name: "bytes".into(), attempt: 0 };
        let config = newer::ContainerConfig {
            metadata: Some(metadata),
            image: Some(newer::ImageSpec { image: image.clone(), ..Default::default() }),
            command: container.config.command.clone(),
            envs: vec![newer::KeyValue { key: "RAW".into(), value: vec![0xff, b'a', 0xfe] }],
            ..Default::default()
        };
        let id = create(cx, &pod, config).await?;
        cx.cri().start(&id).await?;
        let environment = cx.cri().exec_sync(&id, &["probe", "env"], 10).await?.stdout;
        ensure!(environment.windows(8).any(|part| part == b"RAW=\xffa\xfe\n"), "{environment:?}");
        Ok(())
    });
}

#[test]
fn the_working_directory_is_made_where_it_is_missing() {
    test(async |cx| {
        let image = cx.busybox_with(&[("WorkingDir", json!("/srv/of/image"))]).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let pwd = |dir: &str| {
            let dir = dir.to_owned();
            ContainerBuilder::new(&image)
                .shell("pwd; id -u; stat -c '%u:%a' .")
                .with(|config| config.working_dir = dir)
        };
        same("the image's", cx.output(&pod, &pwd("")).await?, "/srv/of/image\n0\n0:755\n")?;
        same("the pod's", cx.output(&pod, &pwd("/a/b/../c")).await?, "/a/c\n0\n0:755\n")?;
        same("one that is there", cx.output(&pod, &pwd("/tmp")).await?, "/tmp\n0\n0:1777\n")
    });
}

#[test]
fn users_and_groups_are_those_of_the_image() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        // passwd and group of the image: alice is 1000:1000 and in users and extra, bob is 1001:100.
        for (user, expected) in [
            ("", "uid=0 gid=0 groups=0"),
            ("alice", "uid=1000 gid=1000 groups=100,101,1000"),
            ("1000", "uid=1000 gid=1000 groups=100,101,1000"),
            ("alice:users", "uid=1000 gid=100 groups=100,101"),
            ("alice:5", "uid=1000 gid=5 groups=5,100,101"),
            ("1234", "uid=1234 gid=0 groups=0"),
            ("1234:4321", "uid=1234 gid=4321 groups=4321"),
            ("bob", "uid=1001 gid=100 groups=100"),
        ] {
            let image = cx.busybox_with(&[("User", json!(user))]).await?;
            let text = cx
                .output(&pod, &ContainerBuilder::new(&image).shell("cat /proc/self/status"))
                .await?;
            same(&format!("USER {user:?}"), identity(&text)?, expected)?;
        }
        Ok(())
    });
}

/// Effective user, group and groups out of /proc/self/status.
fn identity(status: &str) -> Result<String> {
    let fields = |name: &str| -> Result<Vec<&str>> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .context("a field is missing")?;
        Ok(line.split_whitespace().collect())
    };
    let mut groups: Vec<u32> =
        fields("Groups:")?.iter().map(|group| group.parse()).collect::<Result<_, _>>()?;
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    Ok(format!("uid={} gid={} groups={}", fields("Uid:")?[1], fields("Gid:")?[1], groups.join(",")))
}

#[test]
fn the_pod_may_choose_user_and_groups() {
    test(async |cx| {
        let image = cx.busybox_with(&[("User", json!("bob"))]).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = || ContainerBuilder::new(&image).shell("cat /proc/self/status");
        let value = |value| Some(Int64Value { value });
        for (what, container, expected) in [
            ("a number", container().user(1000, None), "uid=1000 gid=1000 groups=100,101,1000"),
            (
                "a number and a group",
                container().user(1000, Some(7)),
                "uid=1000 gid=7 groups=7,100,101",
            ),
            (
                "a name",
                container().security(|security| security.run_as_username = "alice".into()),
                "uid=1000 gid=1000 groups=100,101,1000",
            ),
            (
                "groups besides",
                container().security(|security| {
                    security.run_as_user = value(1234);
                    security.supplemental_groups = vec![50, 60];
                }),
                "uid=1234 gid=0 groups=0,50,60",
            ),
            (
                "groups alone",
                container().security(|security| {
                    security.run_as_user = value(1000);
                    security.supplemental_groups = vec![50];
                    security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
                }),
                "uid=1000 gid=1000 groups=50,1000",
            ),
        ] {
            let (status, log) = cx.run_to_end(&pod, &container).await?;
            let got = identity(&String::from_utf8(log_text(&log, "stdout"))?)?;
            same(what, got.as_str(), expected)?;
            let user = status.user.and_then(|user| user.linux).context("no user in the status")?;
            let mut groups: Vec<i64> = user.supplemental_groups;
            groups.sort_unstable();
            let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
            let shown = format!("uid={} gid={} groups={}", user.uid, user.gid, groups.join(","));
            same(&format!("{what} in the status"), shown.as_str(), expected)?;
        }
        Ok(())
    });
}

#[test]
fn exit_codes_are_reported_exactly() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for code in [0, 1, 2, 3, 126, 127, 128, 137, 200, 254, 255] {
            let container =
                ContainerBuilder::new(&image).command(&["probe", "exit", &code.to_string()]);
            let (status, _) = cx.run_to_end(&pod, &container).await?;
            let reason = if code == 0 { "Completed" } else { "Error" };
            same("end", (status.exit_code, status.reason.as_str()), (code, reason))?;
        }
        Ok(())
    });
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    test(async |cx| {
        let image = cx.busybox().await?;
        // Where a container's first process is pid 1 it cannot be killed by its own signals.
        let pod = cx.run_pod(cx.pod().pid(NamespaceMode::Pod)).await?;
        for signal in [1, 2, 6, 8, 9, 11, 13, 15] {
            let container = ContainerBuilder::new(&image).pid(NamespaceMode::Pod);
            let (status, _) = cx
                .run_to_end(&pod, &container.command(&["probe", "die", &signal.to_string()]))
                .await?;
            same(
                &format!("signal {signal}"),
                (status.exit_code, status.reason.as_str()),
                (128 + signal, "Error"),
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_stop_that_is_ignored_ends_in_a_kill_in_time() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = || ContainerBuilder::new(&image).command(&["probe", "ignore-term"]);
        let id = cx.run(&pod, &container()).await?;
        let began = Instant::now();
        cx.cri().stop(&id, 1).await?;
        ensure!(
            began.elapsed() >= Duration::from_secs(1),
            "killed before its time: {:?}",
            began.elapsed()
        );
        let status = cx.status(&id).await?;
        same("end", (status.state(), status.exit_code), (ContainerState::ContainerExited, 137))?;
        // Without a grace period it dies at once: far before the time of a usual stop.
        let id = cx.run(&pod, &container()).await?;
        cx.cri().stop(&id, 0).await?;
        same("end", cx.status(&id).await?.exit_code, 137)
    });
}

#[test]
fn of_two_stops_the_shorter_one_wins() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id =
            cx.run(&pod, &ContainerBuilder::new(&image).command(&["probe", "ignore-term"])).await?;
        let began = Instant::now();
        let long = cx.cri().stop(&id, 600);
        let short = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            cx.cri().stop(&id, 1).await
        };
        let (long, short) = tokio::join!(long, short);
        long?;
        short?;
        ensure!(
            began.elapsed() < e2e::scaled(Duration::from_secs(60)),
            "the longer one won: {:?}",
            began.elapsed()
        );
        same("end", cx.status(&id).await?.exit_code, 137)
    });
}

/// Runs the container's stop and returns which signal arrived first.
async fn signal_of_stop(cx: &Cx, id: &str, log: &std::path::Path) -> Result<String> {
    let ready = async || Ok(std::fs::read_to_string(log)?.contains("ready"));
    e2e::eventually(10, "the container is ready", ready).await?;
    cx.cri().stop(id, 10).await?;
    let text = String::from_utf8(log_text(&parse_log(&std::fs::read(log)?)?, "stdout"))?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn several_stops_send_one_signal() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let script = "trap 'echo told' TERM; echo ready; while :; do sleep 0.05; done";
        let container = ContainerBuilder::new(&image).shell(script);
        let id = cx.run(&pod, &container).await?;
        let log = pod.log(&container.config);
        let text = || -> Result<String> {
            let records = e2e::pod::parse_log(&std::fs::read(&log)?)?;
            Ok(String::from_utf8(e2e::pod::log_text(&records, "stdout"))?)
        };
        e2e::eventually(30, "the trap is set", async || Ok(text()?.contains("ready"))).await?;
        let cri = cx.cri();
        let ended = tokio::join!(
            cri.stop(&id, 300),
            cri.stop(&id, 2),
            cri.stop(&id, 100),
            cri.stop(&id, 3)
        );
        ended.0.and(ended.1).and(ended.2).and(ended.3)?;
        same("what the container was told", text()?, "ready\ntold\n".to_owned())
    });
}

#[test]
fn the_stop_signal_is_the_pods_or_the_images_or_sigterm() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        for (of_image, expected) in [
            (json!(null), 15),
            (json!("SIGUSR1"), 10),
            (json!("QUIT"), 3),
            (json!("37"), 37),
            (json!("SIGRTMIN+3"), 37),
        ] {
            let image = cx.busybox_with(&[("StopSignal", of_image)]).await?;
            let container = ContainerBuilder::new(&image).command(&["probe", "signal"]);
            let id = cx.run(&pod, &container).await?;
            // The signal was noted when the container was made: the image may go.
            cx.cri().remove_image(&image).await?;
            let got = signal_of_stop(cx, &id, &pod.log(&container.config)).await?;
            same("signal", got, format!("signal {expected}"))?;
        }
        Ok(())
    });
}

#[test]
fn a_stop_signal_of_the_pod_wins() {
    test(async |cx| {
        let image = cx.busybox_with(&[("StopSignal", json!("SIGUSR1"))]).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let config = newer::ContainerConfig {
            metadata: Some(newer::ContainerMetadata { name: "signal".into(), attempt: 0 }),
            image: Some(newer::ImageSpec { image, ..Default::default() }),
            command: vec!["probe".into(), "signal".into()],
            log_path: "signal_0.log".into(),
            stop_signal: newer::Signal::Sigint.into(),
            ..Default::default()
        };
        let id = create(cx, &pod, config).await?;
        cx.cri().start(&id).await?;
        let request = newer::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status = cx
            .cri()
            .newer()
            .container_status(request)
            .await?
            .into_inner()
            .status
            .context("no status")?;
        same("signal in the status", status.stop_signal(), newer::Signal::Sigint)?;
        let log = std::path::Path::new(&pod.config.log_directory).join("signal_0.log");
        same("signal", signal_of_stop(cx, &id, &log).await?, "signal 2".to_owned())
    });
}

#[test]
fn a_stop_leaves_no_process_of_the_container() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().pid(NamespaceMode::Pod)).await?;
        let container = ContainerBuilder::new(&image).pid(NamespaceMode::Pod);
        let id = cx
            .run(&pod, &container.shell("setsid sleep 1000 & probe ignore-term & exec probe idle"))
            .await?;
        let other =
            cx.run(&pod, &ContainerBuilder::new(&image).pid(NamespaceMode::Pod).idle()).await?;
        cx.exec(&id, &["sh", "-c", "setsid sleep 2000 </dev/null >/dev/null 2>&1 &"]).await?;
        e2e::eventually(5, "all run", async || {
            Ok(cx.exec(&other, &["ps"]).await?.contains("sleep 2000"))
        })
        .await?;
        cx.cri().stop(&id, 2).await?;
        let left = cx.exec(&other, &["ps"]).await?;
        // One that the pod's init has yet to collect is dead, and has no arguments any more.
        ensure!(!left.contains("sleep ") && !left.contains("ignore-term"), "{left}");
        Ok(())
    });
}

#[test]
fn a_frozen_container_is_stopped() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let pid = cx.cri().pid(&id).await?;
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let (controller, top, file, value) = if e2e::cgroup::is_v2() {
            ("0::", "/sys/fs/cgroup", "cgroup.freeze", "1")
        } else {
            (":freezer:", "/sys/fs/cgroup/freezer", "freezer.state", "FROZEN")
        };
        let path = cgroups
            .lines()
            .find_map(|line| Some(line.split_once(controller)?.1))
            .context("no freezer")?;
        std::fs::write(format!("{top}{path}/{file}"), value)?;
        cx.cri().stop(&id, 2).await?;
        same("state", cx.status(&id).await?.state(), ContainerState::ContainerExited)
    });
}
