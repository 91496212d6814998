//! B: descriptors, programs and helpers of the runtime that a container could get hold of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::image::{Entry, LayerBuilder, base, digest_of};
use e2e::pod::ContainerBuilder;
use e2e::{Cx, same, test};
use serde_json::json;

use super::{Siege, attempt, attempt_image, over_busybox};

#[test]
fn b_01_a_container_looks_for_the_host_in_every_exec() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let secret = format!("{}/secret", cx.canary.r());
        let seconds = e2e::count(8, 60).to_string();
        let hunt = ["probe", "hunt", &seconds, &secret];
        let hunt = cx.exec(&id, &hunt);
        let mut hunt = std::pin::pin!(hunt);
        let mut execs = 0;
        let found = loop {
            tokio::select! {
                found = hunt.as_mut() => break found?,
                reply = cx.cri().exec_sync(&id, &["/bin/probe", "exit", "0"], 30) => {
                    same("an exec", reply?.exit_code, 0)?;
                    execs += 1;
                }
            }
        };
        let mut lines = found.lines();
        let looked = lines.next().unwrap_or_default();
        let times: u64 = looked.split(' ').nth(1).context("no count")?.parse()?;
        ensure!(times > 100 && execs > 20, "{looked} in {execs} execs: the hunt was not on");
        let rest: Vec<&str> = lines.collect();
        ensure!(rest.is_empty(), "found in {execs} execs:\n{}", rest.join("\n"));
        Ok(())
    });
}

/// Digests of the programs that run on the node: berth, berth-shim, and what the daemon has made of it.
fn programs(cx: &Cx) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = vec![e2e::bin_dir().join("berth"), e2e::bin_dir().join("berth-shim")];
    for entry in std::fs::read_dir(cx.daemon.root.join("bin")).into_iter().flatten() {
        files.push(entry?.path());
    }
    files.into_iter().map(|file| Ok((file.clone(), digest_of(&std::fs::read(file)?)))).collect()
}

#[test]
fn b_02_a_container_writes_to_the_program_of_the_runtime() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let before = programs(cx)?;
        let siege = Siege::begin(cx, &[])?;
        let layer = vec![
            Entry::file("script", "#!/proc/self/exe\n").mode(0o755),
            Entry::file("with-argument", "#!/proc/self/exe overwrite /proc/self/exe\n").mode(0o755),
            Entry::symlink("link", "/proc/self/exe"),
        ];
        let hostile = cx.pull_image(&over_busybox(layer)?.build()).await?;
        // While these start, others of the pod try to write to whatever they see of them.
        let overwrite =
            "for n in $(seq 2000); do for p in /proc/[0-9]*; do probe overwrite $p/exe; done; done";
        cx.run(&pod, &ContainerBuilder::new(&image).shell(overwrite)).await?;
        for _ in 0..e2e::count(10, 125) {
            for program in ["/script", "/with-argument", "/link", "/proc/self/exe"] {
                let container = ContainerBuilder::new(&hostile).command(&[
                    program,
                    "overwrite",
                    "/proc/self/exe",
                ]);
                attempt(cx, &pod, &container).await;
            }
        }
        let id =
            cx.run(&pod, &ContainerBuilder::new(&hostile).command(&["/bin/probe", "idle"])).await?;
        for program in ["/script", "/with-argument", "/link", "/proc/self/exe"] {
            cx.cri().exec_sync(&id, &[program, "overwrite", "/proc/self/exe"], 5).await.ok();
        }
        same("programs", programs(cx)?, before)?;
        siege.end()
    });
}

#[test]
fn b_03_a_working_directory_that_is_a_descriptor() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let siege = Siege::begin(cx, &[])?;
        let secret = format!("../../../../../../../..{}/secret", cx.canary.r());
        let paths = (3..64).map(|fd| format!("/proc/self/fd/{fd}"));
        let paths = paths.chain((3..16).map(|fd| format!("/proc/thread-self/fd/{fd}")));
        for path in paths.chain(["/proc/1/cwd".into(), "/proc/1/root".into(), "/dev/fd/7".into()]) {
            let container = ContainerBuilder::new(&image).command(&["/bin/cat", &secret]);
            let container = container.with(|config| config.working_dir = path.clone());
            if let Some((text, code)) = attempt(cx, &pod, &container).await {
                cx.canary.not_in(&path, &text)?;
                ensure!(code != 0, "{path}: the host's file was there");
            }
        }
        let image = base::busybox()?.config("WorkingDir", json!("/proc/self/fd/8")).build();
        let text = attempt_image(cx, &pod, &image, |id| {
            ContainerBuilder::new(id).command(&["/bin/cat", &secret])
        })
        .await?;
        cx.canary.not_in("a directory of the image", &text.unwrap_or_default())?;
        siege.end()
    });
}

/// What the descriptors of a process lead to, besides pipes, memory and the like.
fn files_of(pid: i32) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = std::fs::read_link(entry?.path())?.to_string_lossy().into_owned();
        let harmless = ["/dev/null", "/dev/pts/", "/dev/ptmx", "/proc", "/memfd:"]
            .iter()
            .any(|start| target.starts_with(start));
        if target.starts_with('/') && !harmless
            || target.starts_with("mnt:")
            || target.starts_with("net:")
        {
            files.push(target);
        }
    }
    Ok(files)
}

#[test]
fn b_04_a_process_has_no_descriptor_but_its_own() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for tty in [false, true] {
            let container = ContainerBuilder::new(&image).idle();
            let container = if tty { container.tty() } else { container };
            let id = cx.create(&pod, &container).await?;
            let waiting = cx.cri().pid(&id).await?;
            if waiting > 0 {
                same("of a created container", files_of(waiting)?, Vec::<String>::new())?;
            }
            cx.cri().start(&id).await?;
            let mut numbers: Vec<String> = Vec::new();
            for entry in std::fs::read_dir(format!("/proc/{}/fd", cx.cri().pid(&id).await?))? {
                numbers.push(entry?.file_name().to_string_lossy().into_owned());
            }
            numbers.sort();
            same("of a running container", numbers, vec!["0", "1", "2"])?;
            let exec = cx.exec(&id, &["probe", "fds"]).await?;
            let numbers: Vec<&str> =
                exec.lines().filter_map(|line| line.split(' ').next()).collect();
            same("of an exec", numbers, vec!["0", "1", "2"])?;
        }
        Ok(())
    });
}

#[test]
fn b_05_programs_of_the_image_are_traps() {
    test(async |cx| {
        let trap = format!(
            "#!/bin/busybox sh\necho trapped > {0}/trapped-${{0##*/}} && echo $0 >> {0}/x\nexec /bin/busybox ${{0##*/}} \"$@\"\n",
            cx.canary.w()
        );
        let mut layer = LayerBuilder::new();
        for name in [
            "sh",
            "bash",
            "ps",
            "nsenter",
            "socat",
            "tar",
            "gzip",
            "gunzip",
            "unpigz",
            "pigz",
            "xz",
            "zstd",
            "ip",
            "nft",
            "iptables",
            "mount",
            "umount",
            "modprobe",
            "runc",
            "conmon",
            "newuidmap",
            "getent",
            "id",
            "cat",
            "true",
        ] {
            for dir in ["bin", "usr/bin", "usr/sbin", "usr/local/bin"] {
                layer = layer.program(&format!("{dir}/{name}"), trap.as_str());
            }
        }
        let image =
            base::busybox()?.layer(layer)?.config("Env", json!(["PATH=/bin:/usr/bin"])).build();
        let siege = Siege::begin(cx, &[])?;
        let id = cx.pull_image(&image).await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let container = cx.run(&pod, &ContainerBuilder::new(&id).network().idle()).await?;
        same("an exec", cx.exec(&container, &["sh", "-c", "echo x"]).await?.as_str(), "x\n")?;
        cx.cri().stats(&container).await?;
        cx.cri()
            .update(
                &container,
                k8s_cri::v1::LinuxContainerResources { cpu_shares: 77, ..Default::default() },
            )
            .await?;
        cx.cri().reopen_log(&container).await?;
        cx.cri().stop(&container, 2).await?;
        cx.cri().remove(&container).await?;
        cx.cri().stop_pod(&pod.id).await?;
        siege.end()
    });
}

#[test]
fn b_06_files_that_a_runtime_drops_into_a_root_are_links() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod().network()).await?;
        cx.busybox().await?;
        let siege = Siege::begin(cx, &[])?;
        let w = cx.canary.w();
        let names = [
            ".krun_config.json",
            ".dockerenv",
            ".dockerinit",
            "run/.containerenv",
            "etc/mtab",
            "etc/hosts",
            "etc/hostname",
            "etc/resolv.conf",
            "etc/passwd",
            "etc/group",
            ".wh..wh..opq-",
            "dev/ptmx",
            "dev/fd",
            "dev/stdin",
            "dev/core",
        ];
        for (what, target) in [
            ("a file", format!("{w}/x")),
            ("a new file", format!("{w}/new")),
            ("a directory", w.clone()),
        ] {
            let links = names
                .iter()
                .filter(|name| !name.starts_with(".wh."))
                .map(|name| Entry::symlink(*name, target.as_str()));
            let image = over_busybox(links.collect())?.build();
            let run = |id: &str| {
                ContainerBuilder::new(id).network().shell("ls -la / /etc /dev; cat /etc/hosts")
            };
            let text = attempt_image(cx, &pod, &image, run).await?;
            cx.canary.not_in(what, &text.unwrap_or_default())?;
        }
        siege.end()
    });
}

#[test]
fn b_07_the_default_profile_keeps_dangerous_sockets_away() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let sockets = [
            "af_alg",
            "af_vsock",
            if cfg!(target_arch = "x86_64") { "af_alg_i386" } else { "af_alg" },
        ];
        let command = [&["probe", "try"], &sockets[..]].concat();
        let text = cx
            .output(&pod, &ContainerBuilder::new(&image).seccomp_default().command(&command))
            .await?;
        for (line, name) in text.lines().zip(sockets) {
            let outcome = line.strip_prefix(&format!("{name}: ")).context("another line")?;
            ensure!(["EPERM", "EAFNOSUPPORT", "EACCES", "ENOSYS"].contains(&outcome), "{text}");
        }
        same("lines", text.lines().count(), sockets.len())?;
        // The same without the profile: the kernel has at least one of these, or the test shows nothing.
        let open = cx.output(&pod, &ContainerBuilder::new(&image).command(&command)).await?;
        ensure!(open.contains(": ok"), "this kernel has none of these sockets: {open}");
        Ok(())
    });
}
