//! Attach.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use e2e::pod::ContainerBuilder;
use e2e::streams::spawn;
use e2e::{Cx, same, test};
use k8s_cri::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout};

async fn attach_url(cx: &Cx, id: &str, stdin: bool, tty: bool) -> Result<String> {
    let request =
        AttachRequest { container_id: id.into(), stdin, stdout: true, stderr: false, tty };
    Ok(cx.cri().raw().0.attach(request).await.context("Attach")?.into_inner().url)
}

/// What a client has heard so far.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<String>>);

impl Heard {
    fn of(mut output: ChildStdout) -> Heard {
        let heard = Heard::default();
        let text = heard.clone();
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok(count) = output.read(&mut bytes).await {
                if count == 0 {
                    break;
                }
                let part = String::from_utf8_lossy(&bytes[..count]).into_owned();
                text.0.lock().expect("no reader panics").push_str(&part);
            }
        });
        heard
    }

    fn text(&self) -> String {
        self.0.lock().expect("no reader panics").clone()
    }

    async fn until(&self, word: &str) -> Result<()> {
        e2e::eventually(20, &format!("{word:?} is heard"), async || Ok(self.text().contains(word)))
            .await
            .with_context(|| format!("heard {:?}", self.text()))
    }
}

fn listen(cx: &Cx, url: &str, flags: &[&str]) -> Result<(Child, Heard)> {
    let mut client = spawn(&cx.netns, &[&["command"], flags, &[url]].concat())?;
    let heard = Heard::of(client.stdout.take().context("stdout")?);
    Ok((client, heard))
}

#[test]
fn several_hear_what_comes_from_now_on_and_the_first_input_closes_with_its_client() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let line = "echo early; while read a; do echo \"got $a\"; done; echo bye; exec probe idle";
        let container = ContainerBuilder::new(&image).shell(line);
        let container = container.with(|config| (config.stdin, config.stdin_once) = (true, true));
        let id = cx.run(&pod, &container).await?;
        let log = pod.log(&container.config);
        e2e::eventually(10, "the program writes", async || {
            Ok(std::fs::read_to_string(&log)?.contains("early"))
        })
        .await?;
        let url = attach_url(cx, &id, false, false).await?;
        let (mut listener, heard) = listen(cx, &url, &[])?;
        let url = attach_url(cx, &id, true, false).await?;
        let (mut talker, answers) = listen(cx, &url, &["-transport", "websocket", "-stdin"])?;
        let mut input = talker.stdin.take().context("stdin")?;
        // Both are attached once both have heard an answer.
        for number in 0.. {
            input.write_all(format!("{number}\n").as_bytes()).await?;
            answers.until(&format!("got {number}\n")).await?;
            if heard.text().contains("got") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        talker.kill().await?;
        heard.until("bye").await?;
        for heard in [&heard, &answers] {
            ensure!(!heard.text().contains("early"), "replayed: {:?}", heard.text());
        }
        let state = cx.status(&id).await?.state();
        same("the container", state, ContainerState::ContainerRunning)?;
        ensure!(listener.try_wait()?.is_none(), "the listener was cut off");
        cx.cri().stop(&id, 5).await?;
        same("the listener's end", listener.wait().await?.code(), Some(0))
    });
}

#[test]
fn a_terminal_is_attached_again_and_again() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = ContainerBuilder::new(&image).command(&["sh"]).tty();
        let id = cx.run(&pod, &container.with(|config| config.stdin = true)).await?;
        for (number, transport) in ["spdy", "websocket", "spdy"].into_iter().enumerate() {
            let url = attach_url(cx, &id, true, true).await?;
            let flags = ["-transport", transport, "-stdin", "-tty", "-sizes", "31x97"];
            let (mut client, heard) = listen(cx, &url, &flags)?;
            let mut input = client.stdin.take().context("stdin")?;
            let line = format!(
                "until [ \"$(stty size)\" = '31 97' ]; do sleep 0.02; done; echo n$(({number}+40))\n"
            );
            input.write_all(line.as_bytes()).await?;
            heard.until(&format!("n{}\r\n", number + 40)).await?;
            client.kill().await?;
        }
        let state = cx.status(&id).await?.state();
        same("the container", state, ContainerState::ContainerRunning)?;
        let url = attach_url(cx, &id, true, true).await?;
        let (mut client, _) = listen(cx, &url, &["-stdin", "-tty"])?;
        client.stdin.take().context("stdin")?.write_all(b"exit 5\n").await?;
        same("the client's end", client.wait().await?.code(), Some(0))?;
        same("the container's code", cx.wait(&id).await?.exit_code, 5)
    });
}
