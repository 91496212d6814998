//! ExecSync: commands in a running container.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cri::refused;
use e2e::pod::ContainerBuilder;
use e2e::{Cx, same, test};
use k8s_cri::v1::*;
use tonic::Code;

async fn idle(cx: &Cx) -> Result<String> {
    let image = cx.busybox().await?;
    let pod = cx.run_pod(cx.pod()).await?;
    cx.run(&pod, &ContainerBuilder::new(&image).idle()).await
}

#[test]
fn output_and_exit_code_come_back() {
    test(async |cx| {
        let id = idle(cx).await?;
        for code in [0, 1, 2, 77, 126, 127, 255] {
            let script = format!("echo out {code}; echo err {code} >&2; exit {code}");
            let reply = cx.cri().exec_sync(&id, &["sh", "-c", &script], 0).await?;
            same("stdout", String::from_utf8(reply.stdout)?, format!("out {code}\n"))?;
            same("stderr", String::from_utf8(reply.stderr)?, format!("err {code}\n"))?;
            same("exit code", reply.exit_code, code)?;
        }
        let reply = cx.cri().exec_sync(&id, &["probe", "die", "9"], 0).await?;
        same("a signal", reply.exit_code, 137)
    });
}

#[test]
fn an_exec_lives_as_its_container_does() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).idle().env("A", "b c").user(1000, Some(7));
        let container = container.with(|config| config.working_dir = "/var/tmp".into());
        let id =
            cx.run(&pod, &container.resources(|resources| resources.oom_score_adj = 321)).await?;
        same("directory", cx.exec(&id, &["pwd"]).await?, "/var/tmp\n")?;
        same(
            "environment",
            cx.exec(&id, &["sh", "-c", "echo $A:$HOME"]).await?,
            "b c:/home/alice\n",
        )?;
        same("user", cx.exec(&id, &["sh", "-c", "echo $(id -u):$(id -g)"]).await?, "1000:7\n")?;
        same("OOM score", cx.exec(&id, &["cat", "/proc/self/oom_score_adj"]).await?, "321\n")?;
        let namespaces = "for n in cgroup ipc mnt net pid uts; do readlink /proc/$0/ns/$n; done";
        let own = cx.exec(&id, &["sh", "-c", namespaces, "self"]).await?;
        // pid 1 is the container's program, whose links a user may read as its owner.
        let init = cx.exec(&id, &["sh", "-c", namespaces, "1"]).await?;
        same("namespaces", own, init)
    });
}

#[test]
fn an_exec_has_three_descriptors_and_nothing_to_read() {
    test(async |cx| {
        let id = idle(cx).await?;
        let text = cx.exec(&id, &["probe", "fds"]).await?;
        let lines: Vec<&str> = text.lines().collect();
        same("number", lines.len(), 3)?;
        ensure!(
            lines[0] == "0 /dev/null"
                && lines[1].starts_with("1 pipe:")
                && lines[2].starts_with("2 pipe:"),
            "{text}"
        );
        same("stdin", cx.exec(&id, &["cat"]).await?, "")
    });
}

#[test]
fn what_takes_too_long_is_killed_with_its_children() {
    test(async |cx| {
        let id = idle(cx).await?;
        let began = Instant::now();
        let script = "setsid sleep 4321 & sleep 4321 & trap '' TERM; sleep 4321; sleep 4321";
        let reply = cx.cri().exec_sync(&id, &["sh", "-c", script], 1).await;
        same("code", refused("a slow exec", reply, &[]), Code::DeadlineExceeded)?;
        ensure!(began.elapsed() >= Duration::from_secs(1), "too early: {:?}", began.elapsed());
        let left = cx.exec(&id, &["ps"]).await?;
        ensure!(!left.contains("4321"), "{left}");
        same("the container", cx.status(&id).await?.state(), ContainerState::ContainerRunning)
    });
}

#[test]
fn a_child_that_holds_the_output_does_not_hold_the_answer() {
    test(async |cx| {
        let id = idle(cx).await?;
        let began = Instant::now();
        let reply =
            cx.cri().exec_sync(&id, &["sh", "-c", "sleep 600 & echo started; exit 3"], 0).await?;
        same(
            "answer",
            (reply.exit_code, String::from_utf8(reply.stdout)?),
            (3, "started\n".to_owned()),
        )?;
        ensure!(began.elapsed() < e2e::scaled(Duration::from_secs(60)), "{:?}", began.elapsed());
        Ok(())
    });
}

#[test]
fn what_cannot_be_run_is_an_error() {
    test(async |cx| {
        let id = idle(cx).await?;
        refused(
            "a missing program",
            cx.cri().exec_sync(&id, &["no-such-program"], 5).await,
            &["no-such-program"],
        );
        refused("no program", cx.cri().exec_sync(&id, &[], 5).await, &["cmd"]);
        refused(
            "an argument with NUL",
            cx.cri().exec_sync(&id, &["echo", "a\0b"], 5).await,
            &["cmd"],
        );
        same("the next one", cx.exec(&id, &["echo", "x"]).await?, "x\n")
    });
}

#[test]
fn only_a_running_container_takes_an_exec() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.create(&pod, &ContainerBuilder::new(&image).idle()).await?;
        refused("a created one", cx.cri().exec_sync(&id, &["true"], 5).await, &["created"]);
        cx.cri().start(&id).await?;
        cx.cri().stop(&id, 5).await?;
        refused("one that has ended", cx.cri().exec_sync(&id, &["true"], 5).await, &["exited"]);
        Ok(())
    });
}

#[test]
fn an_exec_ends_with_its_container() {
    test(async |cx| {
        let id = idle(cx).await?;
        let (exec, stop) = tokio::join!(
            cx.cri().exec_sync(&id, &["sh", "-c", "trap '' TERM; sleep 600"], 0),
            async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                cx.cri().stop(&id, 1).await
            }
        );
        stop?;
        // A code or an error, but an end.
        ensure!(exec.as_ref().map_or(true, |reply| reply.exit_code != 0), "{exec:?}");
        Ok(())
    });
}

#[test]
fn output_is_kept_up_to_a_limit_and_the_process_goes_on() {
    test(async |cx| {
        let id = idle(cx).await?;
        let size = 5_000_000;
        let reply =
            cx.cri().exec_sync(&id, &["head", "-c", &size.to_string(), "/dev/zero"], 60).await?;
        same("size", reply.stdout.len(), size)?;
        // More than is kept: the end is cut, the process is drained to its own end.
        let script = "head -c 60000000 /dev/zero; echo done >&2; exit 4";
        let reply = cx.cri().exec_sync(&id, &["sh", "-c", script], 120).await?;
        same("end", (reply.exit_code, String::from_utf8(reply.stderr)?), (4, "done\n".to_owned()))?;
        ensure!(
            reply.stdout.len() >= 8 << 20 && reply.stdout.len() <= 16 << 20,
            "kept {}",
            reply.stdout.len()
        );
        ensure!(
            cx.daemon.peak_memory()? < 256 << 20,
            "the daemon took {} bytes",
            cx.daemon.peak_memory()?
        );
        Ok(())
    });
}

#[test]
fn many_execs_at_once_and_one_after_another_leave_nothing() {
    test(async |cx| {
        let id = idle(cx).await?;
        let pid = cx.cri().pid(&id).await?;
        for _ in 0..e2e::count(20, 200) {
            let mut all = tokio::task::JoinSet::new();
            for number in 0..16 {
                let (cri, id) = (cx.cri().clone(), id.clone());
                all.spawn(async move {
                    let text = number.to_string();
                    let reply = cri.exec_sync(&id, &["echo", &text], 30).await?;
                    same("answer", String::from_utf8(reply.stdout)?, format!("{text}\n"))
                });
            }
            all.join_all().await.into_iter().collect::<Result<Vec<()>>>()?;
        }
        let processes = cx.exec(&id, &["sh", "-c", "ls -d /proc/[0-9]* | wc -l"]).await?;
        ensure!(processes.trim().parse::<u32>()? <= 4, "{processes} processes are left");
        let shim = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let parent =
            shim.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?.trim();
        let open = std::fs::read_dir(format!("/proc/{parent}/fd"))?.count();
        ensure!(open < 64, "the shim has {open} descriptors open");
        Ok(())
    });
}

#[test]
fn an_exec_is_not_in_the_log() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).shell("echo mine; exec probe idle");
        let id = cx.run(&pod, &container).await?;
        cx.exec(&id, &["sh", "-c", "echo other; echo other >&2"]).await?;
        let log = pod.log(&container.config);
        e2e::eventually(5, "the log has a line", async || Ok(std::fs::metadata(&log)?.len() > 0))
            .await?;
        ensure!(
            !std::fs::read_to_string(&log)?.contains("other"),
            "the exec's output is in the log"
        );
        Ok(())
    });
}
