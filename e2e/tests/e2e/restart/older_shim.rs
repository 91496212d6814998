//! A newer daemon and the shims of an older one: pods outlive an upgrade.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Options;
use e2e::pod::ContainerBuilder;
use e2e::{Cx, Setup, same, test_with};

use super::{COUNT, counted};

/// The shim of the first protocol, as `hack/first-shim` builds it.
fn first_shim() -> Result<PathBuf> {
    let path = std::env::var_os("BERTH_FIRST_SHIM");
    Ok(path.context("BERTH_FIRST_SHIM is not set: run this test by hack/e2e")?.into())
}

/// The shim's programs that the daemon has installed so far.
fn installed(cx: &Cx) -> Result<usize> {
    Ok(std::fs::read_dir(cx.daemon.root.join("bin"))?.count())
}

#[test]
fn a_pod_of_the_first_shim_outlives_the_upgrade() {
    let path = first_shim().expect("the first shim");
    let config = "[runtime]\nshim = \"{disk}/shim\"\n".to_owned();
    let daemon =
        Options { config: Some(config), files: vec![("shim", path)], ..Options::default() };
    test_with(Setup { daemon, ..Setup::default() }, async |cx| {
        let image = cx.busybox().await?;
        same("shims", installed(cx)?, 1)?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let counting = ContainerBuilder::new(&image).shell(COUNT);
        let id = cx.run(&pod, &counting).await?;
        let ends = ContainerBuilder::new(&image).shell("usleep 700000; exit 9");
        let ends = cx.run(&pod, &ends).await?;
        let pid = cx.cri().pid(&id).await?;
        // The upgrade: another daemon, another shim on the disk.
        cx.daemon.kill()?;
        std::fs::copy(e2e::bin_dir().join("berth-shim"), cx.scratch.disk.join("shim"))?;
        cx.daemon.restart().await?;
        same("shims", installed(cx)?, 2)?;
        same("pid", cx.cri().pid(&id).await?, pid)?;
        same("exit code", cx.wait(&ends).await?.exit_code, 9)?;
        same("exec", cx.exec(&id, &["echo", "x"]).await?.as_str(), "x\n")?;
        ensure!(cx.cri().stats(&id).await?.is_some());
        // The old shim takes new containers, and the new one new pods.
        let late = ContainerBuilder::new(&image).shell("echo late; exit 4");
        same("exit code", cx.run_to_end(&pod, &late).await?.0.exit_code, 4)?;
        let young = cx.run_pod(cx.pod().network()).await?;
        same(
            "young",
            cx.output(&young, &ContainerBuilder::new(&image).shell("echo y")).await?.as_str(),
            "y\n",
        )?;
        let log = pod.log(&counting.config);
        std::fs::rename(&log, cx.logs().join("old"))?;
        cx.cri().reopen_log(&id).await?;
        cx.cri().stop(&id, 2).await?;
        let whole = [std::fs::read(cx.logs().join("old"))?, std::fs::read(&log)?].concat();
        std::fs::write(cx.logs().join("whole"), whole)?;
        ensure!(counted(&cx.logs().join("whole"))? > 0);
        cx.cri().remove(&id).await?;
        cx.cri().stop_pod(&pod.id).await?;
        cx.cri().remove_pod(&pod.id).await?;
        Ok(())
    });
}
