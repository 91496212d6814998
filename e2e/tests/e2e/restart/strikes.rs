//! A kill before each call by which the daemon changes anything, one after the other: the next daemon, asked the same
//! again, comes to the same end.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::lock;
use e2e::census::Census;
use e2e::cri::Reply;
use e2e::image::base;
use e2e::image::layer::LayerBuilder;
use e2e::pod::{ContainerBuilder, Pod, PodBuilder};
use e2e::{Cx, bin_dir, same, test};
use k8s_cri::v1::*;

use super::is_gone;

/// Of so many calls one is struck in a short run; which, differs from run to run.
const STRIDE: usize = 7;
/// Far more calls than anything here makes.
const MOST: usize = 5000;

/// The calls to strike, counted from 1.
fn strikes() -> impl Iterator<Item = usize> {
    let stride = e2e::count(STRIDE, 1);
    let first = 1 + usize::try_from(std::process::id()).unwrap_or_default() % stride;
    (first..MOST).step_by(stride)
}

/// What waits for a daemon's Nth call.
struct Strike {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Strike {
    fn arm(cx: &Cx, nth: usize) -> Result<Strike> {
        let mut child = Command::new(bin_dir().join("probe"))
            .args(["strike", &cx.daemon.pid()?.to_string(), &nth.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        same("the tracer", line.trim(), "attached")?;
        Ok(Strike { child, output })
    }

    /// The call before which the daemon was killed.
    fn done(mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        self.child.wait()?;
        Ok(line.trim().to_owned())
    }

    /// The daemon goes on, unseen.
    fn disarm(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// Runs `work` under strikes until it ends without having been struck. It returns false where the daemon has gone,
/// and goes on where it was when it is called again.
async fn struck<W>(
    cx: &Cx,
    begin: impl AsyncFn() -> Result<W>,
    go: impl AsyncFn(&mut W) -> Result<bool>,
    check: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    for (count, nth) in strikes().enumerate() {
        let mut work = begin().await?;
        let strike = Strike::arm(cx, nth)?;
        if go(&mut work).await? {
            strike.disarm()?;
            check().await?;
            ensure!(count >= 3, "only {count} calls were struck");
            return Ok(());
        }
        let call = strike.done()?;
        cx.daemon.kill()?;
        let mut again = async || -> Result<()> {
            cx.daemon.restart().await?;
            ensure!(go(&mut work).await?, "the second daemon has gone too");
            check().await
        };
        again().await.with_context(|| format!("after a kill before call {nth}, {call}"))?;
    }
    anyhow::bail!("{MOST} calls are not enough")
}

/// A census of a host on which nothing goes on in the background.
async fn quiet(cx: &Cx) -> Result<Census> {
    let last = Mutex::new(cx.census()?);
    e2e::eventually(20, "nothing changes any more", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = cx.census()?;
        Ok(std::mem::replace(&mut *lock(&last), now.clone()).difference(&now).is_empty())
    })
    .await?;
    cx.census()
}

/// A pod's life: what has been asked for, and what was answered.
struct Life {
    config: PodSandboxConfig,
    container: ContainerConfig,
    step: usize,
    pod: String,
    id: String,
    pid: i32,
}

impl Life {
    fn new(pod: PodBuilder, image: &str) -> Result<Life> {
        std::fs::create_dir_all(&pod.config.log_directory)?;
        let container = ContainerBuilder::new(image).idle().memory(64 << 20).seccomp_default();
        Ok(Life {
            config: pod.config,
            container: container.config,
            step: 0,
            pod: String::new(),
            id: String::new(),
            pid: 0,
        })
    }

    async fn go(&mut self, cx: &Cx) -> Result<bool> {
        while self.step < 8 {
            match self.one(cx).await {
                Ok(()) => self.step += 1,
                Err(status) if is_gone(&status) => return Ok(false),
                Err(status) => {
                    return Err(status).with_context(|| format!("step {} of a life", self.step));
                }
            }
        }
        Ok(true)
    }

    async fn one(&mut self, cx: &Cx) -> Reply<()> {
        let cri = cx.cri();
        match self.step {
            0 => self.pod = cri.run_pod(&self.config, "").await?,
            1 => self.id = cri.create(&self.pod, &self.container, &self.config).await?,
            2 => self.start(cx).await?,
            3 => {
                self.check_pid(cx).await?;
                cri.exec_sync(&self.id, &["true"], 10).await?;
            }
            4 => {
                if self.runs(cx).await? {
                    self.check_pid(cx).await?;
                }
                cri.stop(&self.id, 5).await?;
            }
            5 => cri.remove(&self.id).await?,
            6 => cri.stop_pod(&self.pod).await?,
            _ => cri.remove_pod(&self.pod).await?,
        }
        Ok(())
    }

    /// A start that was not answered may have happened; as a kubelet sees by the state.
    async fn start(&mut self, cx: &Cx) -> Reply<()> {
        if !self.runs(cx).await? {
            cx.cri().start(&self.id).await?;
        }
        Ok(())
    }

    async fn runs(&self, cx: &Cx) -> Reply<bool> {
        let status = cx.cri().container_status(&self.id).await?.status.unwrap_or_default();
        Ok(status.state() == ContainerState::ContainerRunning)
    }

    /// What was started stays the same process.
    async fn check_pid(&mut self, cx: &Cx) -> Reply<()> {
        let status = cx.cri().container_status(&self.id).await?;
        let pid = e2e::cri::info(&status.info).ok().and_then(|info| info["pid"].as_i64());
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        if pid == 0 || (self.pid != 0 && self.pid != pid) {
            return Err(tonic::Status::data_loss(format!("pid {} became {pid}", self.pid)));
        }
        self.pid = pid;
        Ok(())
    }
}

#[test]
fn a_life_of_a_pod_survives_a_kill_before_any_call() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let before = quiet(cx).await?;
        let begin = async || Life::new(cx.pod().network(), &image);
        let go = async |life: &mut Life| life.go(cx).await;
        struck(cx, begin, go, async || cx.check_same(&before).await).await
    });
}

#[test]
fn a_pull_survives_a_kill_before_any_call() {
    test(async |cx| {
        let layer = |name: &str| {
            let files = (0..4).map(|n| {
                e2e::image::tar::Entry::file(format!("{name}{n}"), format!("{name}{n}\n"))
            });
            LayerBuilder::new().entries(files)
        };
        let image = base::busybox()?.layer(layer("one"))?.layer(layer("two"))?.build();
        let name = cx.push(&cx.unique(), &image).await?;
        let pod: Pod = cx.run_pod(cx.pod()).await?;
        // The pod's writer of logs comes with the first log.
        let busybox = cx.busybox().await?;
        cx.output(&pod, &ContainerBuilder::new(&busybox).shell("echo log")).await?;
        for container in cx.cri().list(None).await? {
            cx.cri().remove(&container.id).await?;
        }
        cx.cri().remove_image(&busybox).await?;
        let before = quiet(cx).await?;
        let go = async |reference: &mut String| {
            match cx.cri().images().await {
                Ok(images) => {
                    for listed in images {
                        same("a listed image", listed.id.as_str(), image.id.as_str())?;
                        whole(cx, &pod, &listed.id).await?;
                    }
                }
                Err(status) if is_gone(&status) => return Ok(false),
                Err(status) => return Err(status.into()),
            }
            match cx.cri().pull(reference, None).await {
                Ok(id) => same("image id", id.as_str(), image.id.as_str()).map(|()| true),
                Err(status) if is_gone(&status) => Ok(false),
                Err(status) => Err(status).context("the pull"),
            }
        };
        let check = async || {
            whole(cx, &pod, &image.id).await?;
            cx.cri().remove_image(&image.id).await?;
            cx.check_same(&before).await
        };
        struck(cx, async || Ok(name.clone()), go, check).await
    });
}

/// An image that is listed has all its files.
async fn whole(cx: &Cx, pod: &Pod, image: &str) -> Result<()> {
    let line = "cat /one? /two? | tr '\\n' ' '; sha256sum /bin/busybox >/dev/null";
    let container = ContainerBuilder::new(image).shell(line);
    let (status, log) = cx.run_to_end(pod, &container).await?;
    same("code", status.exit_code, 0)?;
    let text = String::from_utf8(e2e::pod::log_text(&log, "stdout"))?;
    same("files", text.trim(), "one0 one1 one2 one3 two0 two1 two2 two3")?;
    cx.cri().remove(&status.id).await.context("remove")
}
