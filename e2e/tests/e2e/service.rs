//! The socket: what answers from the first moment, who may connect, which clients are understood.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cri::info;
use e2e::daemon::{Daemon, Options};
use e2e::{Cx, test};
use k8s_cri::v1::*;
use tonic::Code;

#[test]
fn the_questions_of_a_kubelet_are_answered_at_once() {
    test(async |cx| {
        let version = cx.cri().version().await?;
        ensure!(version.version == "0.1.0" && version.runtime_api_version == "v1", "{version:?}");
        ensure!(version.runtime_name == "berth", "{version:?}");
        let parts: Vec<&str> = version.runtime_version.trim_start_matches('v').split('.').collect();
        ensure!(
            parts.len() == 3 && parts[0].parse::<u32>().is_ok(),
            "no semantic version: {version:?}"
        );

        let status = cx.cri().status().await?;
        let conditions = status.status.context("no status")?.conditions;
        for name in ["RuntimeReady", "NetworkReady"] {
            let condition = conditions.iter().find(|condition| condition.r#type == name);
            ensure!(condition.is_some_and(|condition| condition.status), "{name}: {condition:?}");
        }

        let images = cx.cri().fs_info().await?.image_filesystems;
        let place = images.first().context("no image file system")?;
        let mountpoint = place.fs_id.clone().context("no fs_id")?.mountpoint;
        ensure!(std::path::Path::new(&mountpoint).starts_with(&cx.daemon.root), "{mountpoint}");
        ensure!(place.timestamp > 0, "{place:?}");

        let config = cx.cri().raw().0.runtime_config(RuntimeConfigRequest {}).await?.into_inner();
        let driver = config.linux.context("no linux configuration")?.cgroup_driver();
        ensure!(driver == CgroupDriver::Cgroupfs, "{driver:?}");
        Ok(())
    });
}

#[test]
fn every_handler_is_named_with_its_features() {
    test(async |cx| {
        let mut client = cx.cri().newer();
        let status = client.status(proto::cri::StatusRequest { verbose: true }).await?.into_inner();
        let mut names: Vec<String> =
            status.runtime_handlers.into_iter().map(|handler| handler.name).collect();
        names.sort();
        ensure!(
            names.iter().any(String::is_empty) && names.iter().any(|name| name == "berth"),
            "{names:?}"
        );
        let count = names.len();
        names.dedup();
        ensure!(names.len() == count, "a handler is named twice: {names:?}");
        Ok(())
    });
}

#[test]
fn what_comes_later_says_so() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let (mut runtime, _) = cx.cri().raw();
        let exec = ExecRequest {
            container_id: "none".into(),
            cmd: vec!["true".into()],
            stdout: true,
            ..Default::default()
        };
        let checkpoint =
            CheckpointContainerRequest { container_id: "none".into(), ..Default::default() };
        for (call, status) in [
            ("Exec", runtime.exec(exec).await.err()),
            ("CheckpointContainer", runtime.checkpoint_container(checkpoint).await.err()),
        ] {
            let status = status.with_context(|| format!("{call} was answered"))?;
            ensure!(
                [Code::Unimplemented, Code::NotFound].contains(&status.code()),
                "{call}: {status:?}"
            );
            ensure!(!status.message().is_empty(), "{call} gives no reason");
        }
        ensure!(cx.cri().pod_status(&pod.id).await.is_ok(), "the daemon answers no more");
        Ok(())
    });
}

#[test]
fn the_socket_is_for_root_and_its_group() {
    test(async |cx| {
        let meta = std::fs::metadata(&cx.daemon.socket)?;
        ensure!(meta.file_type().is_socket(), "no socket");
        ensure!(meta.mode() & 0o777 == 0o660, "mode {:o}", meta.mode() & 0o777);
        ensure!(meta.uid() == 0, "owner {}", meta.uid());
        let sockets = std::fs::read_to_string("/proc/net/unix")?;
        ensure!(
            !sockets.contains('@') || !sockets.lines().any(|line| line.contains("@berth")),
            "an abstract socket"
        );
        Ok(())
    });
}

/// A client's first request with any `:authority`: gRPC clients of C++ and Python send the path of the socket.
fn version_with_authority(cx: &Cx, authority: &str) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(&cx.daemon.socket)?;
    stream.set_read_timeout(Some(e2e::scaled(Duration::from_secs(3))))?;
    // HPACK, RFC 7541: an indexed field is 0x80 | index; a literal without indexing is 0x00 or its name's index, then
    // length and text.
    let literal = |out: &mut Vec<u8>, index: u8, value: &str| {
        out.push(index);
        out.push(u8::try_from(value.len()).expect("texts here are short"));
        out.extend_from_slice(value.as_bytes());
    };
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    literal(&mut block, 4, "/runtime.v1.RuntimeService/Version");
    literal(&mut block, 1, authority);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.push(0);
        block.push(u8::try_from(name.len())?);
        block.extend_from_slice(name.as_bytes());
        block.push(u8::try_from(value.len())?);
        block.extend_from_slice(value.as_bytes());
    }
    // RFC 9113: length (3), type, flags, stream (4).
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("frames here are short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&frame(4, 0, 0, &[]))?;
    stream.write_all(&frame(1, 4, 1, &block))?;
    stream.write_all(&frame(0, 1, 1, &[0, 0, 0, 0, 0]))?; // an empty message
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // Until the trailers: a HEADERS frame with END_STREAM (flags 5) on stream 1.
    while !answer.windows(6).any(|part| part == [1, 5, 0, 0, 0, 1]) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(answer)
}

#[test]
fn clients_of_every_authority_are_served() {
    test(async |cx| {
        for authority in [
            "localhost",
            "",
            "/run/berth/berth.sock",
            "unix:///run/berth/berth.sock",
            "%2Frun%2Fberth.sock",
            "[::1]:0",
        ] {
            let answer = version_with_authority(cx, authority)?;
            let shown = String::from_utf8_lossy(&answer).into_owned();
            ensure!(
                shown.contains("berth") && shown.contains("0.1.0"),
                "`:authority: {authority}` got {shown:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn two_daemons_live_side_by_side() {
    test(async |cx| {
        let other =
            Daemon::start(&cx.scratch, "other", cx.netns.clone(), Options::default()).await?;
        ensure!(other.instance != cx.daemon.instance, "both have one instance id");
        let pod = cx.run_pod(cx.pod()).await?;
        ensure!(other.cri().list_pods(None).await?.is_empty(), "one shows the pods of the other");
        other.stop().await?;
        ensure!(
            cx.cri().pod_status(&pod.id).await?.status.is_some_and(|status| status.state == 0),
            "the pod is gone"
        );
        Ok(())
    });
}

#[test]
fn a_second_daemon_on_the_same_directories_is_refused() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let output = cx.daemon.command().output()?;
        ensure!(!output.status.success(), "it started");
        let text =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        ensure!(
            text.contains(&*cx.daemon.root.to_string_lossy()) && text.contains("berth with pid"),
            "{text}"
        );
        ensure!(cx.cri().pod_status(&pod.id).await.is_ok(), "the first daemon was disturbed");
        Ok(())
    });
}

#[test]
fn a_daemon_that_is_stopped_leaves_pods_alone() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = e2e::pod::ContainerBuilder::new(&image).idle();
        let id = cx.run(&pod, &container).await?;
        let before = cx.status(&id).await?;
        let pid = cx.cri().pid(&id).await?;
        let status = cx.daemon.stop().await?;
        ensure!(status.success(), "the daemon ended with {status}");
        ensure!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "the container has ended");
        cx.daemon.restart().await?;
        let after = cx.status(&id).await?;
        ensure!(before == after, "{before:?}\n{after:?}");
        ensure!(cx.cri().pid(&id).await? == pid, "another process");
        ensure!(cx.exec(&id, &["echo", "still here"]).await? == "still here\n", "exec");
        let verbose = info(&cx.cri().pod_status(&pod.id).await?.info)?;
        ensure!(verbose["pid"].is_number(), "{verbose}");
        Ok(())
    });
}
