//! Exec.

use anyhow::{Context, Result, ensure};
use e2e::streams::{Ran, run, spawn};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{exec_url, idle, request, shell_url};

/// Runs a line of shell through a transport, with flags of the client.
async fn shell(cx: &Cx, id: &str, line: &str, flags: &[&str], stdin: &[u8]) -> Result<Ran> {
    let mut request = request(id, &["sh", "-c", line]);
    request.stdin = flags.contains(&"-stdin");
    let url = exec_url(cx, request).await?;
    let mut args = vec!["command", "-stderr"];
    args.extend(flags);
    args.push(&url);
    run(&cx.netns, &args, stdin).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn input_output_errors_and_code_pass_both_transports() {
    test(async |cx| {
        let id = idle(cx).await?;
        for transport in ["spdy", "websocket"] {
            let line = "cat; echo done; echo err >&2; exit 7";
            let flags = ["-transport", transport, "-stdin"];
            let ran = shell(cx, &id, line, &flags, b"some input\n").await?;
            same(transport, (ran.code, text(&ran.stdout)), (7, "some input\ndone\n".to_owned()))?;
            same(transport, ran.stderr, "err\n")?;
            let ran = shell(cx, &id, "echo fine", &["-transport", transport], b"").await?;
            same(transport, (ran.code, text(&ran.stdout)), (0, "fine\n".to_owned()))?;
        }
        Ok(())
    });
}

#[test]
fn older_versions_of_the_protocol_are_spoken() {
    test(async |cx| {
        let id = idle(cx).await?;
        let old = ["v3.channel.k8s.io", "v2.channel.k8s.io"];
        for (transport, protocol) in [("spdy", old[0]), ("spdy", old[1])] {
            let flags = ["-transport", transport, "-protocols", protocol];
            let ran = shell(cx, &id, "echo out; exit 7", &flags, b"").await?;
            same(protocol, text(&ran.stdout), "out\n")?;
            // Before v4 an exit code is only text.
            ensure!(ran.code == 250 && ran.stderr.contains("exit status 7"), "{protocol}: {ran:?}");
            let ran = shell(cx, &id, "echo out", &flags, b"").await?;
            same(protocol, (ran.code, text(&ran.stdout)), (0, "out\n".to_owned()))?;
        }
        let flags = ["-transport", "websocket", "-protocols", "v4.channel.k8s.io"];
        let ran = shell(cx, &id, "echo out; exit 7", &flags, b"").await?;
        same("v4 in a WebSocket", (ran.code, text(&ran.stdout)), (7, "out\n".to_owned()))
    });
}

#[test]
fn what_cannot_be_run_is_told_on_the_error_stream() {
    test(async |cx| {
        let id = idle(cx).await?;
        for transport in ["spdy", "websocket"] {
            let url = exec_url(cx, request(&id, &["no-such-program"])).await?;
            let args = ["command", "-transport", transport, "-stdin", "-stderr", &url];
            let ran = run(&cx.netns, &args, b"").await?;
            ensure!(ran.code == 250 && ran.stderr.contains("no-such-program"), "{ran:?}");
        }
        Ok(())
    });
}

#[test]
fn long_input_and_output_pass_in_bounded_memory() {
    test(async |cx| {
        let id = idle(cx).await?;
        shell(cx, &id, "true", &[], b"").await?;
        let before = cx.daemon.peak_memory()?;
        let size = 200_000_000;
        for transport in ["spdy", "websocket"] {
            let line = format!("head -c {size} /dev/zero; echo end >&2");
            let ran = shell(cx, &id, &line, &["-transport", transport], b"").await?;
            same(transport, (ran.code, ran.stdout.len(), ran.stderr), (0, size, "end\n".into()))?;
            let input = vec![b'x'; 20_000_000];
            let flags = ["-transport", transport, "-stdin"];
            let ran = shell(cx, &id, "wc -c", &flags, &input).await?;
            same(transport, text(&ran.stdout).trim(), "20000000")?;
        }
        let grown = cx.daemon.peak_memory()?.saturating_sub(before);
        ensure!(grown < 48 << 20, "the daemon grew by {grown} bytes");
        Ok(())
    });
}

#[test]
fn a_client_that_reads_nothing_stops_the_program_and_nobody_else() {
    test(async |cx| {
        let id = idle(cx).await?;
        let before = cx.daemon.peak_memory()?;
        let url = shell_url(cx, &id, "head -c 100000000 /dev/zero; touch /tmp/done").await?;
        let slow = spawn(&cx.netns, &["command", "-stderr", "-stdin", &url])?;
        for _ in 0..20 {
            let ran = shell(cx, &id, "echo other", &[], b"").await?;
            same("another client", text(&ran.stdout), "other\n")?;
        }
        let done = cx.exec(&id, &["sh", "-c", "ls /tmp/done 2>/dev/null; true"]).await?;
        same("what the slow client's program has done", done, "")?;
        let grown = cx.daemon.peak_memory()?.saturating_sub(before);
        ensure!(grown < 32 << 20, "the daemon grew by {grown} bytes");
        let ended = slow.wait_with_output().await?;
        same("size", ended.stdout.len(), 100_000_000)?;
        cx.exec(&id, &["ls", "/tmp/done"]).await.map(drop)
    });
}

/// An exec with a terminal and input.
async fn terminal_url(cx: &Cx, id: &str, line: &str) -> Result<String> {
    let mut request = request(id, &["sh", "-c", line]);
    (request.tty, request.stderr) = (true, false);
    exec_url(cx, request).await
}

#[test]
fn a_terminal_is_one_and_follows_the_sizes_of_the_client() {
    test(async |cx| {
        let id = idle(cx).await?;
        for transport in ["spdy", "websocket"] {
            let line = "until [ \"$(stty size)\" = '24 80' ]; do sleep 0.02; done; tty; echo $TERM
                until [ \"$(stty size)\" = '50 120' ]; do sleep 0.02; done; echo large >&2; exit 3";
            let url = terminal_url(cx, &id, line).await?;
            let flags = ["command", "-transport", transport, "-tty", "-stdin"];
            let args = [&flags[..], &["-sizes", "24x80,50x120", &url]].concat();
            let ran = run(&cx.netns, &args, b"").await?;
            let expected = "/dev/pts/0\r\nxterm\r\nlarge\r\n".to_owned();
            same(transport, (ran.code, text(&ran.stdout)), (3, expected))?;
        }
        Ok(())
    });
}

#[test]
fn a_terminal_hangs_up_when_its_client_goes() {
    test(async |cx| {
        let id = idle(cx).await?;
        for transport in ["spdy", "websocket"] {
            let url = terminal_url(cx, &id, "echo ready; sleep 4321; echo no >/tmp/no").await?;
            let args = ["command", "-transport", transport, "-tty", "-stdin", &url];
            let mut client = spawn(&cx.netns, &args)?;
            let mut lines = BufReader::new(client.stdout.take().context("stdout")?).lines();
            same("first line", lines.next_line().await?.as_deref(), Some("ready"))?;
            client.kill().await?;
            e2e::eventually(20, "the command is gone", async || {
                Ok(!cx.exec(&id, &["ps"]).await?.contains("4321"))
            })
            .await?;
        }
        let files = cx.exec(&id, &["ls", "/tmp"]).await?;
        ensure!(!files.contains("no"), "the shell went on: {files}");
        Ok(())
    });
}

#[test]
fn without_a_terminal_the_program_reads_the_end_and_goes_on() {
    test(async |cx| {
        let id = idle(cx).await?;
        for (transport, file) in [("spdy", "/tmp/a"), ("websocket", "/tmp/b")] {
            let line =
                format!("echo ready; cat >/dev/null; head -c 1000000 /dev/zero; touch {file}");
            let url = shell_url(cx, &id, &line).await?;
            let args = ["command", "-transport", transport, "-stdin", "-stderr", &url];
            let mut client = spawn(&cx.netns, &args)?;
            let mut lines = BufReader::new(client.stdout.take().context("stdout")?).lines();
            same("first line", lines.next_line().await?.as_deref(), Some("ready"))?;
            client.kill().await?;
            e2e::eventually(20, "the command has ended", async || {
                Ok(cx.exec(&id, &["ls", "/tmp"]).await?.contains(&file[5..]))
            })
            .await?;
        }
        Ok(())
    });
}

#[test]
fn a_conversation_goes_both_ways_and_what_it_leaves_running_does_not_hold_the_end() {
    test(async |cx| {
        let id = idle(cx).await?;
        for transport in ["spdy", "websocket"] {
            let url =
                shell_url(cx, &id, "while read a; do echo \"<$a>\"; done; sleep 300 &").await?;
            let args = ["command", "-transport", transport, "-stdin", "-stderr", &url];
            let mut client = spawn(&cx.netns, &args)?;
            let mut input = client.stdin.take().context("stdin")?;
            let mut output = client.stdout.take().context("stdout")?;
            for word in ["one", "two", "three"] {
                input.write_all(format!("{word}\n").as_bytes()).await?;
                let mut answer = vec![0; word.len() + 3];
                output.read_exact(&mut answer).await?;
                same("answer", text(&answer), format!("<{word}>\n"))?;
            }
            drop(input);
            let status = client.wait().await?;
            same(transport, status.code(), Some(0))?;
        }
        Ok(())
    });
}

#[test]
fn many_at_once_leave_nothing() {
    test(async |cx| {
        let id = idle(cx).await?;
        for _ in 0..e2e::count(2, 20) {
            let runs = (0..16).map(async |number| {
                let transport = if number % 2 == 0 { "spdy" } else { "websocket" };
                let flags = ["-transport", transport, "-stdin"];
                let input = format!("{number}\n");
                let ran = shell(cx, &id, "cat", &flags, input.as_bytes()).await?;
                same("answer", (ran.code, text(&ran.stdout)), (0, input))
            });
            for outcome in futures_all(runs).await {
                outcome?;
            }
        }
        let open = std::fs::read_dir(format!("/proc/{}/fd", cx.daemon.pid()?))?.count();
        ensure!(open < 64, "the daemon has {open} descriptors open");
        Ok(())
    });
}

/// Awaits all at once.
async fn futures_all<T>(all: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (future, slot) in all.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(done.drain(..).flatten().collect())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    test(async |cx| {
        use e2e::cri::refused;
        use tonic::Code;
        let id = idle(cx).await?;
        let ask = async |change: fn(&mut ExecRequest)| {
            let mut wanted = request(&id, &["true"]);
            change(&mut wanted);
            cx.cri().raw().0.exec(wanted).await.map(tonic::Response::into_inner)
        };
        let both = ask(|request| request.tty = true).await;
        same("tty and stderr", refused("tty", both, &["stderr"]), Code::InvalidArgument)?;
        let none = |request: &mut ExecRequest| {
            (request.stdin, request.stdout, request.stderr) = (false, false, false);
        };
        same("no stream", refused("none", ask(none).await, &["stdin"]), Code::InvalidArgument)?;
        let empty = ask(|request| request.cmd.clear()).await;
        same("no command", refused("empty", empty, &["cmd"]), Code::InvalidArgument)?;
        let missing = ask(|request| request.container_id = "f".repeat(64)).await;
        same("no container", refused("missing", missing, &["container"]), Code::NotFound)?;
        cx.cri().stop(&id, 5).await?;
        refused("one that has ended", ask(|_| {}).await, &["exited"]);
        Ok(())
    });
}
