//! What a container sees as files: its root, mounts, devices, /proc and /sys.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::image::{Entry, LayerBuilder, base};
use e2e::pod::{ContainerBuilder, MASKED_PATHS, READONLY_PATHS, log_text, parse_log};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;

#[test]
fn the_root_is_the_image_and_writes_stay_in_the_container() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let one = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let two = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        cx.exec(
            &one,
            &["sh", "-c", "echo one > /etc/passwd; rm /bin/vi; mkdir /new; echo x > /new/file"],
        )
        .await?;
        same("its own", cx.exec(&one, &["cat", "/etc/passwd"]).await?, "one\n")?;
        ensure!(
            cx.exec(&two, &["cat", "/etc/passwd"]).await?.contains("alice"),
            "the other sees the change"
        );
        cx.exec(&two, &["test", "-e", "/bin/vi"]).await?;
        ensure!(
            cx.exec(&two, &["test", "-e", "/new"]).await.is_err(),
            "the other sees the directory"
        );
        let three = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        ensure!(
            cx.exec(&three, &["cat", "/etc/passwd"]).await?.contains("alice"),
            "the image has changed"
        );
        Ok(())
    });
}

#[test]
fn a_read_only_root_is_read_only() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("volume")?;
        let container = ContainerBuilder::new(&image).idle().mount(&volume, "/new/data", false);
        let id =
            cx.run(&pod, &container.security(|security| security.readonly_rootfs = true)).await?;
        let write = "for f in /file /etc/passwd /tmp/x /new/x; do touch $f 2>/dev/null && echo $f; done; true";
        same("writable", cx.exec(&id, &["sh", "-c", write]).await?, "")?;
        // Volumes and the pod's memory are not the root.
        cx.exec(
            &id,
            &["sh", "-c", "echo 1 > /new/data/x; echo 1 > /dev/shm/x; echo 1 > /dev/null"],
        )
        .await?;
        ensure!(volume.join("x").exists(), "the volume");
        Ok(())
    });
}

#[test]
fn mounts_are_there_and_read_only_where_asked_for() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let (dir, file) = (cx.dir("volume/dir")?, cx.dir("volume")?.join("file"));
        std::fs::write(&file, "from the host\n")?;
        std::fs::write(dir.join("x"), "x\n")?;
        let container = ContainerBuilder::new(&image).idle();
        let container = container.mount(&dir, "/rw", false).mount(&dir, "/ro", true);
        // One over a file of the image, one at a place that is not there, one below another.
        let container = container
            .mount(&file, "/etc/group", true)
            .mount(&file, "/a/b/c", false)
            .mount(&dir, "/rw/below", true);
        let id = cx.run(&pod, &container).await?;
        same("a file over a file", cx.exec(&id, &["cat", "/etc/group"]).await?, "from the host\n")?;
        same("a new place", cx.exec(&id, &["cat", "/a/b/c"]).await?, "from the host\n")?;
        same("below", cx.exec(&id, &["cat", "/rw/below/x"]).await?, "x\n")?;
        cx.exec(&id, &["sh", "-c", "echo new > /rw/new; echo 2 >> /a/b/c"]).await?;
        same("written", std::fs::read_to_string(dir.join("new"))?, "new\n")?;
        same("appended", std::fs::read_to_string(&file)?, "from the host\n2\n")?;
        for path in ["/ro/y", "/rw/below/y"] {
            ensure!(cx.exec(&id, &["touch", path]).await.is_err(), "{path} can be written");
        }
        ensure!(
            cx.exec(&id, &["sh", "-c", "echo 3 >> /etc/group"]).await.is_err(),
            "/etc/group can be written"
        );
        Ok(())
    });
}

#[test]
fn a_mount_source_that_is_a_link_is_followed_on_the_node() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let dir = cx.dir("volume")?;
        std::fs::write(dir.join("x"), "x\n")?;
        let link = cx.scratch.disk.join("link");
        std::os::unix::fs::symlink(&dir, &link)?;
        let container = ContainerBuilder::new(&image).idle().mount(&link, "/data", false);
        let id = cx.run(&pod, &container).await?;
        same("content", cx.exec(&id, &["cat", "/data/x"]).await?, "x\n")?;
        // kubelet looks for the very path that it gave.
        let shown = &cx.status(&id).await?.mounts[0].host_path;
        same("host path", Path::new(shown), link.as_path())
    });
}

#[test]
fn a_mount_target_that_is_a_link_is_followed_in_the_container() {
    test(async |cx| {
        let layer = base::busybox_layer()?
            .dir("real")
            .symlink("link", "/real")
            .symlink("up", "../../../../real");
        let image = cx.pull_image(&e2e::image::ImageBuilder::new().layer(layer)?.build()).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let dir = cx.dir("volume")?;
        std::fs::write(dir.join("x"), "x\n")?;
        for target in ["/link", "/up"] {
            let container = ContainerBuilder::new(&image).idle().mount(&dir, target, false);
            let id = cx.run(&pod, &container).await?;
            same(target, cx.exec(&id, &["/bin/cat", "/real/x"]).await?, "x\n")?;
        }
        Ok(())
    });
}

/// A volume with a file system of its own in a shared mount, and a container on it.
async fn propagation(cx: &Cx, mode: MountPropagation) -> Result<(String, std::path::PathBuf)> {
    let image = cx.busybox().await?;
    let pod = cx.run_pod(cx.pod().privileged()).await?;
    let volume = cx.dir(&format!("volume-{mode:?}"))?;
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("e2e"), &volume, Some("tmpfs"), flags, None::<&str>)?;
    nix::mount::mount(
        None::<&str>,
        &volume,
        None::<&str>,
        nix::mount::MsFlags::MS_SHARED,
        None::<&str>,
    )?;
    std::fs::create_dir(volume.join("host"))?;
    std::fs::create_dir(volume.join("container"))?;
    let container =
        ContainerBuilder::new(&image).idle().privileged().mount(&volume, "/data", false);
    let container = container.with(|config| config.mounts[0].propagation = mode.into());
    let id = cx.run(&pod, &container).await?;
    nix::mount::mount(Some("e2e"), &volume.join("host"), Some("tmpfs"), flags, None::<&str>)?;
    std::fs::write(volume.join("host/x"), "x")?;
    cx.exec(&id, &["mount", "-t", "tmpfs", "t", "/data/container"]).await?;
    cx.exec(&id, &["touch", "/data/container/y"]).await?;
    Ok((id, volume))
}

#[test]
fn mounts_travel_as_the_propagation_says() {
    test(async |cx| {
        for (mode, inwards, outwards) in [
            (MountPropagation::PropagationPrivate, false, false),
            (MountPropagation::PropagationHostToContainer, true, false),
            (MountPropagation::PropagationBidirectional, true, true),
        ] {
            let (id, volume) = propagation(cx, mode).await?;
            let seen = cx.exec(&id, &["test", "-e", "/data/host/x"]).await.is_ok();
            let shown = volume.join("container/y").exists();
            cx.cri().remove(&id).await?;
            e2e::daemon::unmount_below(&volume);
            same(
                &format!("{mode:?}: into the container, out of it"),
                (seen, shown),
                (inwards, outwards),
            )?;
        }
        Ok(())
    });
}

#[test]
fn propagation_from_a_private_mount_is_refused() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().privileged()).await?;
        let volume = cx.dir("volume")?;
        nix::mount::mount(
            Some("e2e"),
            &volume,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?;
        nix::mount::mount(
            None::<&str>,
            &volume,
            None::<&str>,
            nix::mount::MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        for mode in [
            MountPropagation::PropagationHostToContainer,
            MountPropagation::PropagationBidirectional,
        ] {
            let container =
                ContainerBuilder::new(&image).idle().privileged().mount(&volume, "/data", false);
            let container = container.with(|config| config.mounts[0].propagation = mode.into());
            let outcome = cx.cri().create(&pod.id, &container.config, &pod.config).await;
            e2e::cri::refused(
                &format!("{mode:?}"),
                outcome,
                &[&volume.to_string_lossy(), "shared"],
            );
        }
        e2e::daemon::unmount_below(&volume);
        Ok(())
    });
}

#[test]
fn a_read_only_mount_may_be_so_all_the_way_down() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("volume")?;
        std::fs::create_dir(volume.join("below"))?;
        nix::mount::mount(
            Some("e2e"),
            &volume.join("below"),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?;
        let container = || ContainerBuilder::new(&image).idle().mount(&volume, "/data", true);
        let plain = cx.run(&pod, &container()).await?;
        let recursive = container().with(|config| config.mounts[0].recursive_read_only = true);
        let recursive_id = cx.run(&pod, &recursive).await?;
        let write = ["touch", "/data/below/x"];
        let outcome =
            (cx.exec(&plain, &write).await.is_ok(), cx.exec(&recursive_id, &write).await.is_ok());
        let writable =
            recursive.clone().name("writable").with(|config| config.mounts[0].readonly = false);
        let refused_one = cx.cri().create(&pod.id, &writable.config, &pod.config).await;
        let slave = recursive.name("slave").with(|config| config.mounts[0].propagation = 1);
        let refused_two = cx.cri().create(&pod.id, &slave.config, &pod.config).await;
        for id in [&plain, &recursive_id] {
            cx.cri().remove(id).await?;
        }
        e2e::daemon::unmount_below(&volume);
        same("plain and recursive: writable below", outcome, (true, false))?;
        e2e::cri::refused("recursive without read-only", refused_one, &["recursive_read_only"]);
        e2e::cri::refused("recursive with propagation", refused_two, &["recursive_read_only"]);
        Ok(())
    });
}

#[test]
fn dev_has_what_every_program_expects_and_no_more() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let listing = cx.exec(&id, &["sh", "-c", "ls -1 /dev"]).await?;
        // A link to /proc/kcore where the kernel has one.
        let mut names: Vec<&str> = listing.lines().filter(|name| *name != "core").collect();
        names.sort_unstable();
        let expected = [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
            "stdout", "tty", "urandom", "zero",
        ];
        same("/dev", names, expected.to_vec())?;
        let modes = cx
            .exec(
                &id,
                &[
                    "stat",
                    "-c",
                    "%a %t:%T",
                    "/dev/null",
                    "/dev/zero",
                    "/dev/full",
                    "/dev/random",
                    "/dev/urandom",
                    "/dev/tty",
                ],
            )
            .await?;
        same("devices", modes.as_str(), "666 1:3\n666 1:5\n666 1:7\n666 1:8\n666 1:9\n666 5:0\n")?;
        cx.exec(
            &id,
            &["sh", "-c", "echo x > /dev/null; head -c 4 /dev/zero /dev/urandom > /dev/null"],
        )
        .await?;
        ensure!(
            cx.exec(&id, &["sh", "-c", "mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda"])
                .await
                .is_err(),
            "a disk"
        );
        Ok(())
    });
}

#[test]
fn devices_are_there_with_the_permissions_asked_for() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let device = |path: &str, permissions: &str| {
            let device = Device {
                container_path: path.into(),
                host_path: "/dev/fuse".into(),
                permissions: permissions.into(),
            };
            ContainerBuilder::new(&image).idle().with(|config| config.devices.push(device))
        };
        let id = cx.run(&pod, &device("/dev/sub/fuse", "r")).await?;
        cx.exec(&id, &["sh", "-c", "test -c /dev/sub/fuse && exec 3</dev/sub/fuse"]).await?;
        ensure!(
            cx.exec(&id, &["sh", "-c", "exec 3>/dev/sub/fuse"]).await.is_err(),
            "written without permission"
        );
        let id = cx.run(&pod, &device("/dev/sub/fuse", "rw")).await?;
        cx.exec(&id, &["sh", "-c", "exec 3<>/dev/sub/fuse"]).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        ensure!(
            cx.exec(&id, &["sh", "-c", "mknod /tmp/k c 10 229; exec 3</tmp/k"]).await.is_err(),
            "read without permission"
        );
        Ok(())
    });
}

#[test]
fn proc_is_masked_as_the_kubelet_says() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        for path in MASKED_PATHS {
            let look = format!(
                "[ ! -e {path} ] || [ -z \"$(ls -A {path} 2>/dev/null | grep -v ^{path}$)\" -a ! -s {path} ] || [ -z \"$(head -c 1 {path} 2>/dev/null)\" ]"
            );
            cx.exec(&id, &["sh", "-c", &look])
                .await
                .with_context(|| format!("{path} can be read"))?;
        }
        for path in READONLY_PATHS {
            if Path::new(path).exists() {
                let options =
                    cx.exec(&id, &["grep", &format!(" {path} "), "/proc/self/mountinfo"]).await?;
                ensure!(options.contains(" ro,"), "{path} is not read-only: {options}");
            }
        }
        let outcome = cx.exec(&id, &["sh", "-c", "echo x > /proc/sys/kernel/core_pattern"]).await;
        ensure!(outcome.is_err(), "core_pattern can be written");
        same("/proc", cx.exec(&id, &["probe", "statfs", "/proc"]).await?.trim(), "0x9fa0")?;
        same("/sys", cx.exec(&id, &["probe", "statfs", "/sys"]).await?.trim(), "0x62656572")?;
        ensure!(
            cx.exec(&id, &["mkdir", "/sys/fs/cgroup/x"]).await.is_err(),
            "cgroups can be written"
        );
        ensure!(
            cx.exec(&id, &["sh", "-c", "echo 1 > /sys/kernel/mm/transparent_hugepage/enabled"])
                .await
                .is_err(),
            "/sys can be written"
        );
        Ok(())
    });
}

#[test]
fn paths_of_the_image_can_be_masked_and_an_empty_list_masks_nothing() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let masked = ContainerBuilder::new(&image).idle().security(|security| {
            security.masked_paths =
                vec!["/etc/group".into(), "/home".into(), "/no/such/path".into()];
            security.readonly_paths = vec!["/var".into(), "/no/such/path".into()];
        });
        let id = cx.run(&pod, &masked).await?;
        same("a masked file", cx.exec(&id, &["cat", "/etc/group"]).await?, "")?;
        same("a masked directory", cx.exec(&id, &["ls", "-A", "/home"]).await?, "")?;
        ensure!(
            cx.exec(&id, &["touch", "/var/x"]).await.is_err(),
            "a read-only path can be written"
        );
        ensure!(cx.exec(&id, &["touch", "/home/x"]).await.is_err(), "a masked path can be written");
        let open = ContainerBuilder::new(&image).idle().security(|security| {
            security.masked_paths.clear();
            security.readonly_paths.clear();
        });
        let id = cx.run(&pod, &open).await?;
        let mounts = cx.exec(&id, &["cat", "/proc/self/mountinfo"]).await?;
        ensure!(
            !mounts.lines().any(|line| line.contains(" /proc/")),
            "something is masked:\n{mounts}"
        );
        Ok(())
    });
}

#[test]
fn links_times_and_attributes_of_the_image_are_kept() {
    test(async |cx| {
        let layer = LayerBuilder::new()
            .entry(Entry::dir("data").mode(0o2750).owner(7, 8).mtime(1_500_000_000))
            .entry(Entry::file("data/a", "content").mode(0o4711).owner(1, 2).mtime(1_400_000_000))
            .entry(
                Entry::hardlink("data/b", "data/a").mode(0o4711).owner(1, 2).mtime(1_400_000_000),
            )
            .entry(Entry::symlink("data/l", "../no/where").owner(3, 4))
            .entry(Entry::fifo("data/p").mode(0o620))
            .entry(Entry::file(format!("data/{}", "long-name/".repeat(30) + "f"), "deep"));
        let image = cx.pull_image(&base::busybox()?.layer(layer)?.build()).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let script = "cd /data; stat -c '%n %a %u:%g %Y %h %F' . a b; stat -c '%n %u:%g %N' l; stat -c '%n %a %F' p; \
            cat $(find . -name f)";
        let text = cx.output(&pod, &ContainerBuilder::new(&image).shell(script)).await?;
        let expected = ". 2750 7:8 1500000000 3 directory\na 4711 1:2 1400000000 2 regular file\n\
            b 4711 1:2 1400000000 2 regular file\nl 3:4 'l' -> '../no/where'\np 620 fifo\ndeep";
        same("what stat says", text.trim_end(), expected)
    });
}

#[test]
fn volumes_are_as_a_kubelet_makes_them() {
    test(async |cx| {
        use nix::mount::{MsFlags, mount};
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volumes = cx.dir("volumes")?;
        let dir = |name: &str| -> Result<PathBuf> {
            let path = volumes.join(name);
            std::fs::create_dir_all(&path)?;
            Ok(path)
        };
        // A secret: files that are links into a directory that is swapped for another, on a tmpfs.
        let secret = dir("secret")?;
        mount(Some("e2e"), &secret, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        let write = |version: &str| -> Result<()> {
            std::fs::create_dir(secret.join(version))?;
            std::fs::write(secret.join(version).join("key"), version)?;
            std::os::unix::fs::symlink(version, secret.join("..data_tmp"))?;
            Ok(std::fs::rename(secret.join("..data_tmp"), secret.join("..data"))?)
        };
        write("..one")?;
        std::os::unix::fs::symlink("..data/key", secret.join("key"))?;
        // A subPath: the kubelet binds the part itself, a file or a directory, and names its own mount.
        let (sub, empty) = (volumes.join("sub"), dir("empty")?);
        std::fs::write(&sub, "")?;
        mount(Some(&secret.join("..one/key")), &sub, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        // A termination message is a file, and where the container writes it is what the kubelet reads.
        let message = volumes.join("message");
        std::fs::write(&message, "")?;
        let container = ContainerBuilder::new(&image)
            .mount(&secret, "/secret", true)
            .mount(&sub, "/etc/app/key", true)
            .mount(&empty, "/empty", false)
            .mount(&message, "/dev/termination-log", false)
            .shell("cat /etc/app/key /secret/key; echo; touch /empty/made; echo bye > /dev/termination-log; sleep 1000");
        let id = cx.run(&pod, &container).await?;
        e2e::eventually(30, "the message is written", async || {
            Ok(std::fs::read_to_string(&message)? == "bye\n")
        })
        .await?;
        let log = log_text(&parse_log(&std::fs::read(pod.log(&container.config))?)?, "stdout");
        same("what it read", String::from_utf8(log)?, "..one..one\n".to_owned())?;
        ensure!(empty.join("made").exists(), "an emptyDir is not the node's directory");
        write("..two")?;
        same("after an update", cx.exec(&id, &["cat", "/secret/key"]).await?, "..two".to_owned())?;
        let paths: Vec<String> =
            cx.status(&id).await?.mounts.into_iter().map(|mount| mount.host_path).collect();
        let given = container.config.mounts.iter().map(|mount| mount.host_path.clone());
        same("paths in the status", paths, given.collect::<Vec<_>>())?;
        // The kubelet takes its own mounts away while the container may still hold them.
        for path in [&sub, &secret] {
            nix::mount::umount(path)?;
        }
        cx.cri().remove(&id).await?;
        Ok(())
    });
}
