//! The power goes, again and again, on the same disk: `hack/vm power-cut` runs this in a machine that it kills.

#![allow(clippy::print_stdout)] // The script that kills the machine reads it.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Options;
use e2e::image::layer::LayerBuilder;
use e2e::image::{base, digest_of, noise};
use e2e::pod::ContainerBuilder;
use e2e::registry::Registry;
use e2e::{Cx, Setup, same, test_with};
use k8s_cri::v1::*;

/// Images, and files in a layer of each.
const IMAGES: usize = 3;
const FILES: usize = 80;

/// An image by its reference, and what sha256sum says of its files.
struct Expected {
    reference: String,
    sums: String,
}

async fn push_all() -> Result<HashMap<String, Expected>> {
    let mut images = HashMap::new();
    for number in 0..IMAGES {
        let mut layer = LayerBuilder::new().dir("data");
        let mut sums = String::new();
        for file in 0..FILES {
            let content = noise(1000 + (number * FILES + file) * 97);
            let sum = digest_of(&content);
            sums += &format!("{}  f{file:03}\n", sum.trim_start_matches("sha256:"));
            layer = layer.file(&format!("data/f{file:03}"), content);
        }
        let image = base::busybox()?.layer(layer)?.build();
        let reference = Registry::shared()?.push(&format!("power/{number}:1"), &image).await?;
        images.insert(image.id.clone(), Expected { reference, sums });
    }
    Ok(images)
}

/// What an earlier life of the machine has left: pods that are over, images that are whole.
async fn check(cx: &Cx, images: &HashMap<String, Expected>) -> Result<usize> {
    for pod in cx.cri().list_pods(None).await? {
        same("state of a pod", pod.state(), PodSandboxState::SandboxNotready)?;
        cx.cri().stop_pod(&pod.id).await?;
        cx.cri().remove_pod(&pod.id).await?;
    }
    let pod = cx.run_pod(cx.pod()).await?;
    let listed = cx.cri().images().await?;
    for image in &listed {
        let expected = images.get(&image.id).with_context(|| format!("what is {image:?}?"))?;
        let sums = ContainerBuilder::new(&image.id).shell("cd /data && sha256sum *");
        same("files", cx.output(&pod, &sums).await?, expected.sums.clone())?;
    }
    for image in &listed {
        // Half of them, so that pulls have something to do.
        if image.id.as_bytes()[10] % 2 == 0 {
            cx.cri().remove_image(&image.id).await?;
        }
    }
    cx.cri().stop_pod(&pod.id).await?;
    cx.cri().remove_pod(&pod.id).await?;
    Ok(listed.len())
}

async fn churn(cx: &Cx, images: &HashMap<String, Expected>) -> Result<()> {
    loop {
        let pulls: Vec<_> = images
            .values()
            .map(|image| {
                let (cri, reference) = (cx.cri().clone(), image.reference.clone());
                tokio::spawn(async move { cri.pull(&reference, None).await })
            })
            .collect();
        for pull in pulls {
            let id = pull.await??;
            ensure!(images.contains_key(&id), "{id} is none of ours");
        }
        let pod = cx.run_pod(cx.pod().network()).await?;
        let first = images.keys().next().context("no image")?;
        cx.run(&pod, &ContainerBuilder::new(first).idle()).await?;
        println!("power: pulled");
        for id in images.keys().skip(1) {
            cx.cri().remove_image(id).await?;
        }
    }
}

#[test]
#[ignore = "the machine is killed while it runs: hack/vm power-cut"]
fn a_power_cut_leaves_no_image_that_is_not_whole() {
    let disk: PathBuf = std::env::var_os("E2E_POWER_DISK").expect("E2E_POWER_DISK").into();
    // The same paths in each life of the machine, as a service has them.
    let (root, state) = (Some(disk.join("root")), Some(PathBuf::from("/run/power")));
    let daemon = Options { root, state, ..Options::default() };
    let setup = Setup { daemon, cold: true, ..Setup::default() };
    test_with(setup, async |cx| {
        let images = push_all().await?;
        let whole = check(cx, &images).await?;
        println!("power: {whole} images are whole");
        churn(cx, &images).await
    });
}
