//! A: path work inside a root file system or volume that the attacker has made.

use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use e2e::cri::refused;
use e2e::image::{Entry, LayerBuilder, base};
use e2e::pod::{ContainerBuilder, MASKED_PATHS};
use e2e::{Cx, same, test};
use serde_json::json;

use super::{Siege, attempt, attempt_image, busybox_with, over_busybox};

#[test]
fn a_01_mounts_over_proc_and_sys() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("volume")?;
        let siege = Siege::begin(cx, &[])?;
        for target in [
            "/proc",
            "/proc/",
            "//proc/.",
            "/x/../proc",
            "/proc/self/attr",
            "/proc/1",
            "/proc/sys",
            "/sys",
            "/../sys",
        ] {
            let container = ContainerBuilder::new(&image).idle().mount(&volume, target, false);
            refused(
                target,
                cx.cri().create(&pod.id, &container.config, &pod.config).await,
                &["container_path"],
            );
        }
        for target in ["/proc", "/proc/self/attr", "//proc/.", "/x/../proc", "/sys"] {
            let image = base::busybox()?.config("Volumes", json!({target: {}})).build();
            let show = |id: &str| {
                ContainerBuilder::new(id)
                    .seccomp_default()
                    .shell("probe statfs /proc; grep Seccomp: /proc/self/status")
            };
            if let Some(text) = attempt_image(cx, &pod, &image, show).await? {
                ensure!(
                    text.contains("0x9fa0") && text.contains("Seccomp:\t2"),
                    "{target}: {text}"
                );
            }
        }
        siege.end()
    });
}

#[test]
fn a_02_proc_or_sys_of_the_image_is_a_link() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let siege = Siege::begin(cx, &[])?;
        let w = cx.canary.w();
        for (name, target) in [
            ("proc", "/bad"),
            ("proc", "/"),
            ("proc", w.as_str()),
            ("sys", "/x"),
            ("sys", "../../.."),
            ("proc", "proc"),
        ] {
            let at_once = busybox_with(vec![Entry::symlink(name, target)])?.build();
            let later = base::busybox()?.layer(LayerBuilder::new().symlink(name, target))?.build();
            for image in [at_once, later] {
                let text = attempt_image(cx, &pod, &image, |id| {
                    ContainerBuilder::new(id).shell("probe statfs /proc; probe statfs /sys")
                })
                .await?;
                if let Some(text) = text {
                    ensure!(
                        text.contains("0x9fa0") && text.contains("0x62656572"),
                        "/{name} -> {target}: {text}"
                    );
                }
            }
        }
        siege.end()
    });
}

#[test]
fn a_03_a_mount_target_through_a_link_to_the_root() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("volume")?;
        std::fs::write(volume.join("mine"), "mine")?;
        let siege = Siege::begin(cx, &[])?;
        let target = format!("/data{}/x", cx.canary.w());
        for link in ["/", "../../../..", "/proc/1/root", "/proc/self/cwd"] {
            let image = base::busybox()?.layer(LayerBuilder::new().symlink("data", link))?.build();
            let text = attempt_image(cx, &pod, &image, |id| {
                ContainerBuilder::new(id)
                    .shell(&format!("cat {target}/mine; cat {}/x", cx.canary.w()))
                    .mount(&volume, &target, false)
            });
            cx.canary.not_in(link, &text.await?.unwrap_or_default())?;
        }
        siege.end()
    });
}

/// A container that exchanges a directory and a link to / in a volume, and siblings whose mount targets go through it.
async fn race(cx: &Cx, below: &str) -> Result<()> {
    let image = cx.busybox().await?;
    let pod = cx.run_pod(cx.pod()).await?;
    let volume = cx.dir("volume")?;
    let other = cx.dir("other")?;
    std::fs::create_dir(volume.join("d"))?;
    symlink("/", volume.join("l"))?;
    let siege = Siege::begin(cx, &[&volume])?;
    let racer = ContainerBuilder::new(&image)
        .command(&["/bin/probe", "race", "/vol/d", "/vol/l"])
        .mount(&volume, "/vol", false);
    let racer = cx.run(&pod, &racer).await?;
    let target = format!("/vol/d{}{below}", cx.canary.w());
    let mut won = 0;
    for number in 0..e2e::count(150, 2000) {
        let container = ContainerBuilder::new(&image)
            .name(&format!("s{number}"))
            .shell(&format!("cat {}/r/secret", cx.canary.dir.display()));
        let container = container.mount(&volume, "/vol", false).mount(&other, &target, false);
        if let Some((text, _)) = attempt(cx, &pod, &container).await {
            cx.canary.not_in("a sibling", &text)?;
            won += 1;
        }
    }
    same("the racer", cx.status(&racer).await?.state, 1)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&cx.canary.w()), "a mount on the canary:\n{mounts}");
    ensure!(won > 0, "no sibling ever ran: the race was not on");
    siege.end()
}

#[test]
fn a_04_a_mount_target_exchanged_while_it_is_mounted() {
    test(async |cx| race(cx, "/bin").await);
}

#[test]
fn a_05_a_missing_mount_target_exchanged_while_it_is_made() {
    test(async |cx| race(cx, "/not/there").await);
}

#[test]
fn a_06_dev_null_of_the_image_is_another_file() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("dev")?;
        symlink("/proc/sys/kernel/core_pattern", volume.join("null"))?;
        let siege = Siege::begin(cx, &[&volume])?;
        let image = busybox_with(vec![
            Entry::dir("dev"),
            Entry::symlink("dev/null", "/proc/sys/kernel/core_pattern"),
        ])?
        .build();
        let script: String = MASKED_PATHS
            .iter()
            .map(|path| format!("head -c 1 {path} 2>/dev/zero | od -An -c; "))
            .collect();
        let script =
            script + "echo x > /proc/sys/kernel/core_pattern; echo y > /dev/null; echo end";
        for over_dev in [false, true] {
            let text = attempt_image(cx, &pod, &image, |id| {
                let container = ContainerBuilder::new(id).shell(&script);
                if over_dev { container.mount(&volume, "/dev", false) } else { container }
            });
            if let Some(text) = text.await? {
                let shown: Vec<&str> =
                    text.lines().filter(|line| line.contains("stdout")).collect();
                same(&format!("what masked paths show ({over_dev})"), shown.len(), 1)?;
                ensure!(shown[0].ends_with("end"), "{text}");
            }
        }
        siege.end()
    });
}

#[test]
fn a_07_the_terminal_of_the_image_is_another_file() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("dev")?;
        for name in ["console", "pts", "ptmx", "tty"] {
            symlink("/proc/sys/kernel/core_pattern", volume.join(name))?;
        }
        std::fs::create_dir(volume.join("d"))?;
        let siege = Siege::begin(cx, &[&volume])?;
        let links = ["console", "pts", "ptmx"]
            .map(|name| Entry::symlink(format!("dev/{name}"), "/proc/sys/kernel/core_pattern"));
        let hostile = busybox_with([vec![Entry::dir("dev")], links.to_vec()].concat())?.build();
        let script = "echo x > /dev/console; echo x > /proc/sys/kernel/core_pattern; tty";
        attempt_image(cx, &pod, &hostile, |id| ContainerBuilder::new(id).tty().shell(script))
            .await?;
        let racer = ContainerBuilder::new(&image).command(&[
            "/bin/probe",
            "race",
            "/vol/console",
            "/vol/d",
        ]);
        cx.run(&pod, &racer.mount(&volume, "/vol", false)).await?;
        for _ in 0..e2e::count(50, 1000) {
            let container =
                ContainerBuilder::new(&image).tty().shell(script).mount(&volume, "/dev", false);
            attempt(cx, &pod, &container).await;
        }
        siege.end()
    });
}

#[test]
fn a_08_writes_to_proc_reach_the_real_one() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let volume = cx.dir("volume")?;
        let siege = Siege::begin(cx, &[&volume])?;
        // One container may mount over its own /proc as it likes.
        let privileged =
            cx.run_pod(cx.pod().privileged().pid(k8s_cri::v1::NamespaceMode::Pod)).await?;
        let container = || ContainerBuilder::new(&image).pid(k8s_cri::v1::NamespaceMode::Pod);
        let script = "while true; do mount -t tmpfs t /proc/sys; mount -t tmpfs t /proc/self/attr; umount /proc/sys /proc/self/attr; done 2>/dev/null";
        cx.run(&privileged, &container().privileged().shell(script)).await?;
        let show = "cat /proc/self/oom_score_adj; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; probe statfs /proc/sys";
        for _ in 0..e2e::count(30, 500) {
            let sibling = container()
                .seccomp_default()
                .shell(show)
                .resources(|resources| resources.oom_score_adj = 777);
            let sibling = sibling.security(|security| security.no_new_privs = true);
            let text = cx.output(&privileged, &sibling).await?;
            same("what was written", text.as_str(), "777\nNoNewPrivs:\t1\nSeccomp:\t2\n0x9fa0\n")?;
        }
        // And what a pod's sysctl writes is the pod's.
        let pod = cx.run_pod(cx.pod().network().sysctl("kernel.shm_rmid_forced", "1")).await?;
        let text = cx
            .output(
                &pod,
                &ContainerBuilder::new(&image)
                    .network()
                    .shell("cat /proc/sys/kernel/shm_rmid_forced"),
            )
            .await?;
        same("sysctl", text.as_str(), "1\n")?;
        siege.end()
    });
}

#[test]
fn a_09_dev_of_the_image_is_a_link() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let siege = Siege::begin(cx, &[])?;
        let w = cx.canary.w();
        for target in
            [w.clone(), format!("../../../../../../..{w}"), "/".into(), "proc".into(), "dev".into()]
        {
            let image = busybox_with(vec![Entry::symlink("dev", target.as_str())])?.build();
            for tty in [false, true] {
                let run = |id: &str| {
                    let container = ContainerBuilder::new(id)
                        .shell("echo x > /dev/null; ls -la /dev/ptmx /dev/fd");
                    if tty { container.tty() } else { container }
                };
                attempt_image(cx, &pod, &image, run).await?;
            }
        }
        siege.end()
    });
}

#[test]
fn a_10_etc_of_the_image_is_a_link() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod().network()).await?;
        // The layers below are here already and stay: each attack is one small layer.
        cx.busybox().await?;
        let siege = Siege::begin(cx, &[])?;
        let w = cx.canary.w();
        for target in [w.clone(), format!("../../../../../../..{w}"), "/proc/1/root".into()] {
            let image = over_busybox(vec![Entry::symlink("etc", target.as_str())])?.build();
            let show =
                |id: &str| ContainerBuilder::new(id).network().shell("cat /etc/* 2>/dev/null");
            let text = attempt_image(cx, &pod, &image, show).await?;
            cx.canary.not_in(&target, &text.unwrap_or_default())?;
        }
        siege.end()
    });
}

#[test]
fn a_11_a_volume_of_the_image_is_a_path_of_the_host() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let siege = Siege::begin(cx, &[])?;
        let r = cx.canary.r();
        let dir = cx.canary.dir.to_string_lossy().into_owned();
        for volume in [
            format!("/../../../..{r}"),
            r.clone(),
            "/link/r".into(),
            "/up/r".into(),
            "relative/r".into(),
            "/".into(),
        ] {
            let links = LayerBuilder::new()
                .symlink("link", &dir)
                .symlink("up", &format!("../../../../../..{dir}"));
            let image = base::busybox()?
                .layer(links)?
                .config("Volumes", json!({volume.as_str(): {}}))
                .build();
            let search = format!(
                "grep -r {} / --exclude-dir=proc --exclude-dir=sys 2>/dev/null; cat /link/r/secret {r}/secret",
                "canary-"
            );
            let text =
                attempt_image(cx, &pod, &image, |id| ContainerBuilder::new(id).shell(&search))
                    .await?;
            cx.canary.not_in(&volume, &text.unwrap_or_default())?;
        }
        siege.end()
    });
}

#[test]
fn a_12_what_the_runtime_mounts_by_itself_lands_in_the_container() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod().network()).await?;
        // The layers below are here already and stay: each attack is one small layer.
        cx.busybox().await?;
        let siege = Siege::begin(cx, &[])?;
        let (w, r) = (cx.canary.w(), cx.canary.r());
        for destination in [
            "etc/hosts",
            "etc/hostname",
            "etc/resolv.conf",
            "dev/shm",
            "dev/termination-log",
            "run/secrets",
            "run/.containerenv",
            "sys/fs/cgroup",
            "dev/mqueue",
            "var/run",
            "proc/self",
        ] {
            let parent = destination.rsplit_once('/').map_or(destination, |(parent, _)| parent);
            for place in [destination, parent] {
                for target in [&w, &r] {
                    let image = over_busybox(vec![Entry::symlink(place, target.as_str())])?.build();
                    let log = cx.dir("log")?.join("termination");
                    std::fs::write(&log, "")?;
                    let text = attempt_image(cx, &pod, &image, |id| {
                        let container = ContainerBuilder::new(id).network();
                        container
                            .shell(&format!("cat /{place}/secret; echo x > /dev/termination-log"))
                            .mount(&log, "/dev/termination-log", false)
                    });
                    cx.canary.not_in(place, &text.await?.unwrap_or_default())?;
                }
            }
        }
        siege.end()
    });
}
