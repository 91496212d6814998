//! Images and mounts that lead to the host: working directory, users, programs, sources.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::image::{Entry, ImageBuilder, LayerBuilder, base};
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, same, test};
use proto::cri as newer;
use serde_json::json;

use super::{Siege, attempt_image, over_busybox};

#[test]
fn a_13_the_working_directory_goes_through_a_link() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let siege = Siege::begin(cx, &[])?;
        for link in [cx.canary.w(), format!("../../../../../..{}", cx.canary.w())] {
            for user in ["", "1000"] {
                let image = base::busybox()?.layer(LayerBuilder::new().symlink("link", &link))?;
                let image = image
                    .config("WorkingDir", json!("/link/new/dir"))
                    .config("User", json!(user))
                    .build();
                attempt_image(cx, &pod, &image, |id| {
                    ContainerBuilder::new(id).shell("pwd; touch x")
                })
                .await?;
            }
        }
        siege.end()
    });
}

#[test]
fn a_14_the_users_of_the_image_are_no_file() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        // The layers below are here already and stay: each attack is one small layer.
        cx.busybox().await?;
        let siege = Siege::begin(cx, &[])?;
        let secret = format!("{}/passwd", cx.canary.r());
        for name in ["etc/passwd", "etc/group"] {
            let huge =
                Entry::file(name, "").pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
            let huge = Entry {
                path: b"GNUSparseFile.0/x".to_vec(),
                data: format!("{:\0<512}", "0\n").into_bytes(),
                ..huge
            };
            let huge = huge
                .pax("GNU.sparse.name", name)
                .pax("GNU.sparse.realsize", (2u64 << 30).to_string());
            for (what, entry) in [
                ("a link to /dev/zero", Entry::symlink(name, "/dev/zero")),
                ("a named pipe", Entry::fifo(name)),
                ("a link to /proc/kmsg", Entry::symlink(name, "/proc/kmsg")),
                ("a link to itself", Entry::symlink(name, format!("/{name}"))),
                ("a link to the host", Entry::symlink(name, secret.as_str())),
                ("a device", Entry::char_device(name, 1, 5)),
                ("a directory", Entry::dir(name)),
                ("two gigabytes", huge),
            ] {
                let image = over_busybox(vec![entry])?.config("User", json!("alice:users")).build();
                let run =
                    attempt_image(cx, &pod, &image, |id| ContainerBuilder::new(id).shell("id -u"));
                let text = tokio::time::timeout(e2e::scaled(Duration::from_secs(20)), run).await;
                let text = text.with_context(|| format!("{name} is {what}: no answer"))??;
                ensure!(
                    !text.unwrap_or_default().contains("stdout F 0"),
                    "{name} is {what}: it runs as root"
                );
            }
        }
        siege.end()
    });
}

/// Files of a container's image that a process of the node's mount namespace has mapped or runs.
fn mapped_by_the_node(cx: &Cx) -> Vec<String> {
    let node = std::fs::read_link("/proc/self/ns/mnt").ok();
    let root = cx.daemon.root.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let proc = entry.path();
        if std::fs::read_link(proc.join("ns/mnt")).ok() != node {
            continue;
        }
        let maps = std::fs::read_to_string(proc.join("maps")).unwrap_or_default();
        let program = std::fs::read_link(proc.join("exe"))
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default();
        let files = maps
            .lines()
            .filter_map(|line| line.find('/').map(|at| &line[at..]))
            .chain([program.as_str()]);
        let bad = |file: &&str| {
            let below = file.starts_with(&root) && !file.starts_with(&format!("{root}/bin/"));
            below || file.starts_with("/bin/busybox") || file.starts_with("/bin/probe")
        };
        found.extend(files.filter(bad).map(|file| format!("{}: {file}", proc.display())));
    }
    found
}

#[test]
fn a_15_nothing_of_an_image_runs_on_the_node() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let watching = async {
            let mut found = Vec::new();
            loop {
                found.extend(mapped_by_the_node(cx));
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(Duration::from_millis(3)) => {}
                }
                if !found.is_empty() {
                    return found;
                }
            }
        };
        let working = async {
            for _ in 0..e2e::count(40, 1000) {
                let id = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
                cx.exec(&id, &["sh", "-c", "true"]).await?;
                cx.cri().stats(&id).await?;
                cx.cri().stop(&id, 1).await?;
                cx.cri().remove(&id).await?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            found = watching => anyhow::bail!("{}", found.join("\n")),
            outcome = working => outcome,
        }
    });
}

/// Makes a container with an image as a volume, by the newest API.
async fn with_image_volume(
    cx: &Cx,
    pod: &Pod,
    image: &str,
    volume: &str,
    path: &str,
) -> Result<String> {
    let config = newer::ContainerConfig {
        metadata: Some(newer::ContainerMetadata {
            name: format!("v{}", cx.unique().replace(['/', ':'], "-")),
            attempt: 0,
        }),
        image: Some(newer::ImageSpec { image: image.into(), ..Default::default() }),
        command: vec!["/bin/probe".into(), "idle".into()],
        linux: Some(Default::default()),
        mounts: vec![newer::Mount {
            container_path: "/volume".into(),
            image: Some(newer::ImageSpec { image: volume.into(), ..Default::default() }),
            image_sub_path: path.into(),
            readonly: true,
            ..Default::default()
        }],
        ..Default::default()
    };
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let metadata = newer::PodSandboxMetadata {
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        attempt: metadata.attempt,
    };
    let sandbox = newer::PodSandboxConfig {
        metadata: Some(metadata),
        linux: Some(Default::default()),
        ..Default::default()
    };
    let request = newer::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox),
    };
    let id = cx.cri().newer().create_container(request).await?.into_inner().container_id;
    cx.cri().start(&id).await?;
    Ok(id)
}

#[test]
fn a_16_a_mount_source_exchanged_or_leading_out() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let volume = cx.dir("volume")?;
        std::fs::create_dir(volume.join("d"))?;
        std::fs::write(volume.join("d/secret"), "mine\n")?;
        // A link on the node is the operator's: it is followed, once.
        symlink("d", volume.join("l"))?;
        let siege = Siege::begin(cx, &[&volume])?;
        let container = ContainerBuilder::new(&image).shell("cat /data/secret").mount(
            &volume.join("l"),
            "/data",
            true,
        );
        same("through a link", cx.output(&pod, &container).await?.as_str(), "mine\n")?;
        let inside = LayerBuilder::new()
            .file("dir/file", "inside")
            .symlink("out", &cx.canary.r())
            .symlink("up", &format!("../../../../../../..{}", cx.canary.r()));
        let chain = inside
            .symlink("chain", "chain2")
            .symlink("chain2", "/chain3")
            .symlink("chain3", "../../..");
        let volume_image = cx.pull_image(&ImageBuilder::new().layer(chain)?.build()).await?;
        if let Ok(id) = with_image_volume(cx, &pod, &image, &volume_image, "dir").await {
            same("a good path", cx.exec(&id, &["cat", "/volume/file"]).await?.as_str(), "inside")?;
        }
        for path in
            ["..", "../..", "dir/../../..", "/", "out", "up", "chain", "chain/etc", "/proc/1/root"]
        {
            if let Ok(id) = with_image_volume(cx, &pod, &image, &volume_image, path).await {
                let text = cx
                    .exec(&id, &["sh", "-c", "cat /volume/secret /volume/etc/shadow; find /volume"])
                    .await
                    .unwrap_or_default();
                cx.canary.not_in(path, &text)?;
                ensure!(!text.contains("/volume/etc"), "{path} shows another root: {text}");
            }
        }
        siege.end()
    });
}

#[test]
fn a_17_images_without_a_root() {
    test(async |cx| {
        let pod = cx.run_pod(cx.pod()).await?;
        let siege = Siege::begin(cx, &[])?;
        let layer = LayerBuilder::new;
        for (what, layers) in [
            ("no layer", vec![]),
            ("an empty layer", vec![layer()]),
            ("only whiteouts", vec![layer().whiteout("a").whiteout("b/c").opaque("d")]),
            (
                "a root that is a link",
                vec![base::busybox_layer()?, layer().entry(Entry::symlink(".", cx.canary.w()))],
            ),
            (
                "a root that is a file",
                vec![base::busybox_layer()?, layer().entry(Entry::file("/", "x"))],
            ),
            (
                "a root that nobody may enter",
                vec![base::busybox_layer()?, layer().entry(Entry::dir("./").mode(0))],
            ),
        ] {
            let image =
                layers.into_iter().try_fold(ImageBuilder::new(), ImageBuilder::layer)?.build();
            let run = attempt_image(cx, &pod, &image, |id| ContainerBuilder::new(id).shell("ls /"));
            tokio::time::timeout(e2e::scaled(Duration::from_secs(20)), run)
                .await
                .with_context(|| format!("{what}: no answer"))??;
            ensure!(Path::new(&cx.canary.w()).is_dir(), "{what}: the canary");
        }
        siege.end()
    });
}
