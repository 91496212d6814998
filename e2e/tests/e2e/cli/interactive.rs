//! Input and terminals: `run -it`, `exec -it`, `attach`, `cp` and `port-forward`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::image::tar::Entry;
use e2e::terminal::Terminal;
use e2e::{Cx, same, test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{bad, berth, detached, good, image, listed};

/// The command line in a terminal of 30 rows and 100 columns.
fn terminal(cx: &Cx, args: &[&str]) -> Result<Terminal> {
    Terminal::start(&cx.daemon.berth(args), 30, 100)
}

/// A command line with something to read.
fn with_input(cx: &Cx, args: &[&str], input: impl Into<Vec<u8>>) -> Result<Output> {
    let mut command = cx.daemon.berth(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.into();
    // Whoever does not read to the end is no fault here.
    let writing = std::thread::spawn(move || stdin.write_all(&input).ok());
    let output = child.wait_with_output()?;
    writing.join().ok();
    Ok(output)
}

#[test]
fn a_shell_in_a_terminal_has_its_size_and_its_code() {
    test(async |cx| {
        let image = image().await?;
        good(cx, &["pull", "-q", &image])?;
        let mut terminal = terminal(cx, &["run", "--rm", "-it", "--net", "host", &image, "sh"])?;
        terminal.expect("# ")?;
        ensure!(terminal.is_raw()?, "Ctrl-C would be ours");
        terminal.send("stty size; echo term $TERM\n")?;
        terminal.expect("30 100")?;
        terminal.expect("term xterm")?;
        terminal.resize(44, 155)?;
        terminal.send("until stty size | grep 155; do :; done\n")?;
        terminal.expect("44 155")?;
        // To the program, not to us.
        terminal.send("sh -c 'echo rea\"\"dy; sleep 1000'\n")?;
        terminal.expect("ready")?;
        terminal.send("\x03")?;
        terminal.expect("# ")?;
        terminal.send("exit 7\n")?;
        same("exit code", terminal.end()?, Some(7))?;
        ensure!(!listed(cx, &[&image])?, "a container with --rm is left");
        Ok(())
    });
}

#[test]
fn a_terminal_is_left_by_keys_and_joined_again() {
    test(async |cx| {
        let image = image().await?;
        good(cx, &["pull", "-q", &image])?;
        let mut first =
            terminal(cx, &["run", "-it", "--name", "shell", "--net", "host", &image, "sh"])?;
        first.expect("# ")?;
        first.send("KEPT=here\n")?;
        first.expect("# ")?;
        first.send("\x10\x11")?;
        first.expect("berth attach shell")?;
        same("exit code of who left", first.end()?, Some(0))?;
        for round in 0..3 {
            let mut again = terminal(cx, &["attach", "--detach-keys", "ctrl-a,d", "shell"])?;
            again.send(format!("echo {round} is $KEPT\n"))?;
            again.expect(&format!("{round} is here"))?;
            again.send("\x01d")?;
            same("exit code of who left", again.end()?, Some(0))?;
        }
        let mut last = terminal(cx, &["attach", "shell"])?;
        last.send("exit 9\n")?;
        same("exit code of attach", last.end()?, Some(9))?;
        ensure!(bad(cx, &["attach", "shell"], 1)?.contains("exited"), "attach to what has ended");
        good(cx, &["rm", "shell"]).map(drop)
    });
}

#[test]
fn the_terminal_comes_back_whatever_ends_the_client() {
    test(async |cx| {
        let image = image().await?;
        detached(cx, &["--name", "web", &image, "probe", "idle"])?;
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
            let mut terminal = terminal(cx, &["exec", "-it", "web", "sh"])?;
            terminal.expect("# ")?;
            ensure!(terminal.is_raw()?, "not raw");
            terminal.signal(signal)?;
            same(&format!("exit code after {signal}"), terminal.end()?, Some(128 + signal as i32))?;
        }
        // Its terminal has hung up, and its shell has ended with it.
        e2e::eventually(10, "the shells end", async || {
            Ok(!good(cx, &["exec", "web", "ps"])?.contains(" sh\n"))
        })
        .await?;
        let mut stays =
            terminal(cx, &["run", "-it", "--name", "stays", "--net", "host", &image, "sh"])?;
        stays.expect("# ")?;
        stays.signal(Signal::SIGTERM)?;
        same("exit code after SIGTERM", stays.end()?, Some(143))?;
        ensure!(listed(cx, &["stays", "Up"])?, "{}", good(cx, &["ps", "-a"])?);
        let mut lost = terminal(cx, &["attach", "stays"])?;
        lost.send("echo at'tached'\n")?;
        lost.expect("attached")?;
        cx.daemon.kill()?;
        same("exit code without a daemon", lost.end()?, Some(125))?;
        cx.daemon.restart().await?;
        let mut again = terminal(cx, &["attach", "stays"])?;
        again.send("exit 3\n")?;
        same("exit code", again.end()?, Some(3))?;
        good(cx, &["rm", "stays"]).map(drop)
    });
}

#[test]
fn a_command_gets_a_terminal_of_its_own() {
    test(async |cx| {
        let image = image().await?;
        detached(cx, &["--name", "web", &image, "probe", "idle"])?;
        let mut terminal = terminal(cx, &["exec", "-it", "web", "sh"])?;
        terminal.expect("# ")?;
        terminal.send("tty; stty size; exit 5\n")?;
        terminal.expect("/dev/pts/")?;
        terminal.expect("30 100")?;
        same("exit code", terminal.end()?, Some(5))?;
        let text = bad(cx, &["exec", "-it", "web", "sh"], 1)?;
        ensure!(text.contains("leave -t out"), "{text}");
        same("-t alone", good(cx, &["exec", "-t", "web", "echo", "x"])?.as_str(), "x\r\n")?;
        good(
            cx,
            &[
                "exec",
                "-d",
                "-t",
                "web",
                "sh",
                "-c",
                "tty > /tmp/tty; sleep 1; echo end >> /tmp/tty",
            ],
        )?;
        e2e::eventually(10, "a detached command keeps its terminal", async || {
            Ok(good(cx, &["exec", "web", "sh", "-c", "cat /tmp/tty || true"])?.ends_with("end\n"))
        })
        .await
    });
}

#[test]
fn input_is_passed_on_and_its_end_too() {
    test(async |cx| {
        let image = image().await?;
        good(cx, &["pull", "-q", &image])?;
        let run = ["run", "--rm", "-i", "--net", "host", &image];
        let output =
            with_input(cx, &[&run[..], &["sh", "-c", "cat; echo end"]].concat(), "text\n")?;
        same("half-close", String::from_utf8(output.stdout)?.as_str(), "text\nend\n")?;
        detached(
            cx,
            &["--name", "open", "-i", &image, "sh", "-c", "while read x; do echo got $x; done"],
        )?;
        let output = with_input(cx, &["exec", "-i", "open", "wc", "-c"], vec![b'x'; 3 << 20])?;
        same("what exec reads", String::from_utf8(output.stdout)?.trim(), "3145728")?;
        // A program that reads nothing keeps no signal waiting.
        let mut deaf = cx.daemon.berth(&[&run[..], &["probe", "idle"]].concat());
        let mut deaf = deaf.stdin(Stdio::from(std::fs::File::open("/dev/zero")?)).spawn()?;
        e2e::eventually(20, "it runs", async || listed(cx, &["probe idle"])).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill(Pid::from_raw(i32::try_from(deaf.id())?), Signal::SIGINT)?;
        same("a program that does not read", deaf.wait()?.code(), Some(0))?;
        // A container that was started detached keeps its input open for who comes.
        for word in ["one", "two"] {
            let mut attached = cx.daemon.berth(&["attach", "open"]);
            let mut attached = attached.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            attached
                .stdin
                .as_mut()
                .context("no stdin")?
                .write_all(format!("{word}\n").as_bytes())?;
            let mut answer = vec![0; format!("got {word}\n").len()];
            attached.stdout.as_mut().context("no stdout")?.read_exact(&mut answer)?;
            same("the answer", String::from_utf8(answer)?, format!("got {word}\n"))?;
            attached.kill()?;
            attached.wait()?;
        }
        good(cx, &["rm", "-f", "open"]).map(drop)
    });
}

#[test]
fn hundreds_of_megabytes_go_through_little_memory() {
    test(async |cx| {
        let image = image().await?;
        detached(cx, &["--name", "web", &image, "probe", "idle"])?;
        let before = cx.daemon.peak_memory()?;
        let script = "yes 0123456789abcde | head -c 300000000";
        let mut child = cx.daemon.berth(&["exec", "web", "sh", "-c", script]);
        let mut child = child.stdout(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        // A reader that is slow at first: nobody reads ahead for it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let read = std::io::copy(&mut stdout, &mut std::io::sink())?;
        same("bytes", (read, child.wait()?.code()), (300_000_000, Some(0)))?;
        let grown = cx.daemon.peak_memory()?.saturating_sub(before);
        ensure!(grown < 32 << 20, "the daemon's memory has grown by {grown} bytes");
        // Not the last byte is lost to a reader that is slow, though the container is removed.
        let mut child = cx.daemon.berth(&[
            "run",
            "--rm",
            "--net",
            "host",
            &image,
            "sh",
            "-c",
            "yes | head -c 200000",
        ]);
        let mut child = child.stdout(Stdio::piped()).spawn()?;
        e2e::eventually(20, "it ends", async || Ok(!good(cx, &["ps"])?.contains("head -c 200000")))
            .await?;
        let mut text = Vec::new();
        child.stdout.take().context("no stdout")?.read_to_end(&mut text)?;
        same("bytes of a slow reader", (text.len(), child.wait()?.code()), (200_000, Some(0)))
    });
}

#[test]
fn files_are_copied_both_ways() {
    test(async |cx| {
        let image = image().await?;
        detached(cx, &["--name", "web", &image, "probe", "idle"])?;
        let dir = cx.dir("copies")?;
        let at = |path: &str| dir.join(path).to_string_lossy().into_owned();
        let inside = |script: &str| good(cx, &["exec", "web", "sh", "-c", script]);
        std::fs::create_dir_all(dir.join("tree/deep"))?;
        std::fs::write(dir.join("tree/deep/file"), vec![b'x'; 5_000_000])?;
        std::fs::write(dir.join("tree").join("n".repeat(150)), "long")?;
        symlink("deep/file", dir.join("tree/link"))?;
        // Into a directory that is there, and under a new name.
        good(cx, &["cp", &at("tree"), "web:/tmp"])?;
        good(cx, &["cp", &at("tree"), "web:/tmp/other"])?;
        good(cx, &["cp", &at("tree/."), "web:/tmp/tree/deep"])?;
        for path in ["/tmp/tree", "/tmp/other", "/tmp/tree/deep"] {
            let script =
                format!("wc -c < {path}/deep/file; readlink {path}/link; stat -c %u {path}/link");
            same(path, inside(&script)?.as_str(), "5000000\ndeep/file\n0\n")?;
        }
        good(cx, &["cp", "web:/tmp/other", &at("back")])?;
        good(cx, &["cp", "web:/tmp/other", &at("tree")])?;
        good(cx, &["cp", "web:/tmp/other/.", &at("content")])?;
        for path in ["back", "tree/other", "content"] {
            same(path, std::fs::metadata(dir.join(path).join("deep/file"))?.len(), 5_000_000)?;
            same(path, std::fs::read(dir.join(path).join("n".repeat(150)))?, b"long".to_vec())?;
            same(
                path,
                std::fs::read_link(dir.join(path).join("link"))?.as_path(),
                Path::new("deep/file"),
            )?;
        }
        inside("echo text > /tmp/-f; chmod 4755 /tmp/-f")?;
        good(cx, &["cp", "web:/tmp/-f", &at("file")])?;
        same("a file", std::fs::read(dir.join("file"))?, b"text\n".to_vec())?;
        same("its mode", std::fs::metadata(dir.join("file"))?.mode() & 0o7777, 0o755)?;
        let archive = berth(cx, &["cp", "web:/tmp/other", "-"])?.stdout;
        inside("mkdir /tmp/third")?;
        let output = with_input(cx, &["cp", "-", "web:/tmp/third"], archive)?;
        ensure!(output.status.success(), "{output:?}");
        same("by a tar", inside("wc -c < /tmp/third/other/deep/file")?.as_str(), "5000000\n")?;
        for (args, word) in [
            (["web:/none", at("x").as_str()], "none"),
            (["web:/tmp/-f", at("no/x").as_str()], "no"),
            ([at("none").as_str(), "web:/tmp"], "none"),
            ([at("file").as_str(), "web:/tmp/none/"], "/tmp/none/"),
            ([at("file").as_str(), at("x").as_str()], "CONTAINER:PATH"),
        ] {
            let text = bad(cx, &["cp", args[0], args[1]], 1)?;
            ensure!(text.contains(word), "{args:?} does not name {word}: {text}");
        }
        inside("rm -f $(which -a tar)")?;
        let text = bad(cx, &["cp", "web:/tmp/-f", &at("x")], 1)?;
        ensure!(text.contains("no program tar"), "{text}");
        Ok(())
    });
}

#[test]
fn a_hostile_tar_stays_in_its_directory() {
    test(async |cx| {
        let image = image().await?;
        let evil = cx.dir("evil")?;
        let mount = format!("{}:/evil:ro", evil.display());
        detached(cx, &["--name", "web", "-v", &mount, &image, "probe", "idle"])?;
        let script =
            "p=$(which tar); rm -f $p; printf '#!/bin/sh\\ncat /evil/tar\\n' > $p; chmod 755 $p";
        good(cx, &["exec", "web", "sh", "-c", script])?;
        let (target, outside) = (cx.dir("target")?, cx.dir("outside")?);
        std::fs::write(outside.join("file"), "untouched")?;
        symlink(&outside, target.join("there"))?;
        let out = format!("{}/file", outside.display());
        let archives: [&[Entry]; 8] = [
            &[Entry::file("../outside/file", "x")],
            &[Entry::file("a/../../outside/file", "x")],
            &[
                Entry::symlink("a", outside.to_string_lossy().as_bytes()),
                Entry::file("a/file", "x"),
            ],
            &[Entry::symlink("a", "../outside"), Entry::dir("a"), Entry::file("a/new", "x")],
            &[Entry::hardlink("a", "../outside/file"), Entry::file("a", "x")],
            &[
                Entry::symlink("b", out.as_bytes()),
                Entry::hardlink("a", "b"),
                Entry::file("a", "x"),
            ],
            &[Entry::file("there/file", "x")],
            &[Entry::dir("there"), Entry::file("there/new", "x")],
        ];
        for entries in archives {
            write_tar(&evil.join("tar"), entries)?;
            bad(cx, &["cp", "web:/tmp/.", &target.to_string_lossy()], 1)?;
        }
        // Names that were not asked for, and what is no file.
        write_tar(&evil.join("tar"), &[Entry::file("a", "x"), Entry::file(".bashrc", "x")])?;
        bad(cx, &["cp", "web:/tmp/a", &target.to_string_lossy()], 1)?;
        let odd = [
            Entry::file(out.as_bytes(), "inside"),
            Entry::char_device("device", 1, 3),
            Entry::fifo("pipe"),
        ];
        write_tar(&evil.join("tar"), &odd)?;
        let output = berth(cx, &["cp", "web:/tmp/.", &target.to_string_lossy()])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && text.contains("2 devices"), "{text}");
        same("an absolute name", std::fs::read(target.join(&out[1..]))?, b"inside".to_vec())?;
        ensure!(!target.join("device").exists() && !target.join("pipe").exists(), "a device");
        ensure!(!target.join(".bashrc").exists(), "what was not asked for");
        same("outside", std::fs::read(outside.join("file"))?, b"untouched".to_vec())?;
        same("files outside", std::fs::read_dir(&outside)?.count(), 1)?;
        same("links to it", std::fs::metadata(outside.join("file"))?.nlink(), 1)
    });
}

fn write_tar(path: &Path, entries: &[Entry]) -> Result<()> {
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut bytes));
    bytes.extend([0; 1024]);
    std::fs::write(path, bytes).context("write an archive")
}

/// Forwards a port, and tells where it can be reached in the test's network namespace.
fn forward(cx: &Cx, name: &str, remote: u16) -> Result<(std::process::Child, SocketAddr)> {
    use std::io::{BufRead as _, BufReader};
    let mut command: Command = cx.daemon.berth(&["port-forward", name, &format!("0:{remote}")]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let address = line.split(' ').next().context("no address")?;
    Ok((child, address.parse().with_context(|| line.clone())?))
}

fn connect(cx: &Cx, address: SocketAddr) -> Result<TcpStream> {
    let stream = cx.netns.connect(address, Duration::from_secs(10))??;
    stream.set_read_timeout(Some(e2e::scaled(Duration::from_secs(20))))?;
    Ok(stream)
}

#[test]
fn a_port_leads_into_the_pod() {
    test(async |cx| {
        let image = image().await?;
        // Without a network there is loopback only.
        good(
            cx,
            &["run", "-d", "--net", "none", "--name", "echo", &image, "probe", "tcp-echo", "7000"],
        )?;
        e2e::eventually(10, "it listens", async || {
            Ok(good(cx, &["logs", "echo"])?.contains("listening"))
        })
        .await?;
        let (mut forwarding, address) = forward(cx, "echo", 7000)?;
        // It answers when it has read the end: half of the connection is closed by then.
        let mut streams = Vec::new();
        for number in 0..20 {
            let mut stream = connect(cx, address)?;
            stream.write_all(format!("number {number}").as_bytes())?;
            streams.push(stream);
        }
        // The server takes one after the other, in whatever order they come.
        for stream in &streams {
            stream.shutdown(Shutdown::Write)?;
        }
        for (number, mut stream) in streams.into_iter().enumerate() {
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            same("the answer", answer, format!("127.0.0.1 number {number}"))?;
        }
        let mut stream = connect(cx, address)?;
        stream.write_all(&vec![b'x'; 900_000])?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        same("a long answer", answer.len(), "127.0.0.1 ".len() + 900_000)?;
        let (mut closed, nobody) = forward(cx, "echo", 7001)?;
        let mut stream = connect(cx, nobody)?;
        same("where nobody listens", stream.read(&mut [0; 1]).unwrap_or(0), 0)?;
        for child in [&mut forwarding, &mut closed] {
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
            same("exit code", child.wait()?.code(), Some(130))?;
        }
        Ok(())
    });
}
