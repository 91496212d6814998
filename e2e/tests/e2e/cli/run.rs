//! `berth run`: what docker means by its flags, streams, signals and exit codes.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use e2e::{Cx, Setup, same, test, test_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{bad, berth, detached, good, image, inspect, listed};

#[test]
fn streams_and_exit_codes_are_those_of_the_program() {
    test(async |cx| {
        let image = image().await?;
        good(cx, &["pull", "-q", &image])?;
        let run =
            |script: &str| berth(cx, &["run", "--rm", "--net", "host", &image, "sh", "-c", script]);
        let output = run("echo out; echo err >&2; exit 3")?;
        same(
            "streams",
            (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?),
            ("out\n".into(), "err\n".into()),
        )?;
        same("exit code", output.status.code(), Some(3))?;
        for (script, code) in
            [("exit 0", 0), ("exit 125", 125), ("exit 255", 255), ("kill -9 $$; sleep 5", 0)]
        {
            let got = run(script)?.status.code();
            ensure!(got == Some(code) || script.starts_with("kill"), "{script}: {got:?}");
        }
        let output = berth(
            cx,
            &["run", "--rm", "--net", "host", &image, "probe", "lines", "100000", "100"],
        )?;
        same("ten megabytes", output.stdout.len(), 10_100_000)?;
        ensure!(!listed(cx, &[&image])?, "a container with --rm is left");
        // From the first byte on, however soon it comes.
        for round in 0..e2e::count(30, 500) {
            let output = run("echo first")?;
            same(&format!("round {round}"), String::from_utf8(output.stdout)?.as_str(), "first\n")?;
            ensure!(!listed(cx, &[&image])?, "a container with --rm is left");
        }
        Ok(())
    });
}

#[test]
fn failures_have_the_codes_of_docker() {
    test(async |cx| {
        let image = image().await?;
        let run = |args: &[&str]| {
            [&["run", "--rm", "--net", "host"], args]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let missing = "127.0.0.1:1/none:1";
        for (args, code, word) in [
            (run(&[missing, "true"]), 125, missing),
            (run(&["--pull", "never", "none/none", "true"]), 125, "none/none"),
            (run(&["-m", "lots", &image, "true"]), 125, "lots"),
            (run(&["-v", "relative/path:/x", &image, "true"]), 125, "relative/path"),
            (run(&["-u", "mallory", &image, "true"]), 125, "mallory"),
            (run(&["-p", "99999:1", &image, "true"]), 125, "99999"),
            (run(&[&image, "no-such-program"]), 127, "no-such-program"),
            (run(&[&image, "/etc/passwd"]), 126, "/etc/passwd"),
        ] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let text = bad(cx, &args, code)?;
            ensure!(text.contains(word), "{args:?} does not name {word}: {text}");
        }
        ensure!(!listed(cx, &["none"])?, "something is left");
        Ok(())
    });
}

#[test]
fn flags_mean_what_they_mean_to_docker() {
    test(async |cx| {
        let image = image().await?;
        let show = |flags: &[&str], script: &str| {
            good(
                cx,
                &[&["run", "--rm", "--net", "host"], flags, &[image.as_str(), "sh", "-c", script]]
                    .concat(),
            )
        };
        same(
            "-e",
            show(&["-e", "A=b c", "-e", "PATH=/bin"], "echo $A:$PATH")?.as_str(),
            "b c:/bin\n",
        )?;
        same("-w", show(&["-w", "/new/dir"], "pwd")?.as_str(), "/new/dir\n")?;
        same(
            "-u",
            show(&["-u", "alice:users"], "echo $(id -u):$(id -g):$HOME")?.as_str(),
            "1000:100:/home/alice\n",
        )?;
        same("-u number", show(&["-u", "77:88"], "echo $(id -u):$(id -g)")?.as_str(), "77:88\n")?;
        same(
            "--read-only",
            show(&["--read-only"], "touch /x 2>/dev/null; echo $?")?.as_str(),
            "1\n",
        )?;
        same(
            "--entrypoint",
            good(
                cx,
                &["run", "--rm", "--net", "host", "--entrypoint", "/bin/echo", &image, "a", "b"],
            )?
            .as_str(),
            "a b\n",
        )?;
        ensure!(show(&[], "grep Seccomp: /proc/self/status")?.contains('2'), "no seccomp profile");
        let all = show(&["--privileged"], "grep -E 'Seccomp:|CapEff' /proc/self/status; ls /dev")?;
        ensure!(all.contains("Seccomp:\t0") && all.contains("kmsg"), "--privileged: {all}");
        let hostname = good(cx, &["run", "--rm", "--hostname", "box", &image, "hostname"])?;
        same("--hostname", hostname.as_str(), "box\n")?;
        let none = good(cx, &["run", "--rm", "--net", "none", &image, "ip", "-o", "link"])?;
        ensure!(none.lines().count() == 1 && none.contains("lo:"), "--net none: {none}");
        detached(
            cx,
            &["--name", "limited", "-m", "32m", "--cpus", "0.5", &image, "probe", "idle"],
        )?;
        let pid = i32::try_from(inspect(cx, "limited")?["pid"].as_i64().context("no pid")?)?;
        let limits = e2e::cgroup::Limits::of(pid)?;
        same("-m", limits.memory()?, 32 << 20)?;
        let (quota, period) = limits.cpu()?;
        same("--cpus", quota * 2, i64::try_from(period)?)?;
        ensure!(
            bad(cx, &["run", "-d", "--name", "limited", &image, "true"], 125)?.contains("limited"),
            "a name twice"
        );
        Ok(())
    });
}

#[test]
fn memory_that_runs_out_is_137() {
    test(async |cx| {
        let image = image().await?;
        let output = berth(
            cx,
            &[
                "run", "--net", "host", "--name", "oom", "-m", "16m", &image, "probe", "alloc",
                "100",
            ],
        )?;
        same("exit code", output.status.code(), Some(137))?;
        ensure!(good(cx, &["inspect", "oom"])?.contains("OOMKilled"), "the reason is not told");
        Ok(())
    });
}

#[test]
fn signals_go_through_to_the_program() {
    test(async |cx| {
        let image = image().await?;
        for (signal, number) in [(Signal::SIGTERM, 15), (Signal::SIGINT, 2), (Signal::SIGHUP, 1)] {
            let mut command =
                cx.daemon.berth(&["run", "--rm", "--net", "host", &image, "probe", "signal"]);
            let mut child = command.stdout(Stdio::piped()).spawn()?;
            let mut output = BufReader::new(child.stdout.take().context("no stdout")?);
            let mut line = String::new();
            output.read_line(&mut line)?;
            same("first line", line.as_str(), "ready\n")?;
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
            let mut rest = String::new();
            output.read_to_string(&mut rest)?;
            same("the signal", rest, format!("signal {number}\n"))?;
            same("exit code", child.wait()?.code(), Some(0))?;
        }
        Ok(())
    });
}

#[test]
fn volumes_are_host_paths_or_names_or_the_images() {
    // A volume with a name is kept until somebody removes it.
    test_with(Setup { may_stay: vec!["volumes"], ..Setup::default() }, async |cx| {
        let image = image().await?;
        let dir = cx.dir("volume")?;
        std::fs::write(dir.join("x"), "from the host\n")?;
        let path = dir.to_string_lossy();
        let run = |flags: &[&str], script: &str| {
            good(
                cx,
                &[&["run", "--rm", "--net", "host"], flags, &[image.as_str(), "sh", "-c", script]]
                    .concat(),
            )
        };
        same(
            "a path",
            run(&["-v", &format!("{path}:/data")], "cat /data/x; echo y > /data/y")?.as_str(),
            "from the host\n",
        )?;
        same("written", std::fs::read_to_string(dir.join("y"))?.as_str(), "y\n")?;
        same(
            "read-only",
            run(&["-v", &format!("{path}:/data:ro")], "touch /data/z 2>/dev/null; echo $?")?
                .as_str(),
            "1\n",
        )?;
        run(&["-v", "named:/data"], "echo kept > /data/file")?;
        same("a name", run(&["-v", "named:/other"], "cat /other/file")?.as_str(), "kept\n")?;
        // A volume of an image starts with what the image has there, and goes with its container.
        let layer = e2e::image::LayerBuilder::new().dir("data").file("data/file", "of the image\n");
        let with_volume = e2e::image::base::busybox()?
            .layer(layer)?
            .config("Volumes", serde_json::json!({"/data": {}}));
        let reference = cx.push(&cx.unique(), &with_volume.build()).await?;
        let text = good(
            cx,
            &[
                "run",
                "--rm",
                "--net",
                "host",
                &reference,
                "sh",
                "-c",
                "cat /data/file; grep -c ' /data ' /proc/self/mountinfo",
            ],
        )?;
        same("a volume of the image", text.as_str(), "of the image\n1\n")?;
        Ok(())
    });
}

fn reach(cx: &Cx, port: u16) -> Result<String> {
    let stream: std::io::Result<TcpStream> = cx.netns.connect(
        SocketAddr::from(([127, 0, 0, 1], port)),
        e2e::scaled(std::time::Duration::from_secs(3)),
    )?;
    let mut stream = stream?;
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn ports_are_published_single_in_ranges_and_by_chance() {
    test(async |cx| {
        let image = image().await?;
        let run = |name: &str, flag: &str, port: &str| {
            good(
                cx,
                &[
                    "run",
                    "-d",
                    "--name",
                    name,
                    "-p",
                    flag,
                    &image,
                    "probe",
                    "http",
                    port,
                    &format!("I am {name}"),
                ],
            )
        };
        run("first", "18090:80", "80")?;
        let answers = |port: u16, name: &str| {
            let text = format!("I am {name}");
            async move {
                e2e::eventually(10, "it answers", async || {
                    Ok(reach(cx, port).is_ok_and(|answer| answer.ends_with(&text)))
                })
                .await
            }
        };
        answers(18090, "first").await?;
        run("second", "127.0.0.1:18091-18092:80-81", "81")?;
        answers(18092, "second").await?;
        run("third", "80", "80")?;
        let ports = inspect(cx, "third")?["ports"].clone();
        let port =
            ports[0]["hostPort"].as_u64().with_context(|| format!("no host port: {ports}"))?;
        answers(u16::try_from(port)?, "third").await?;
        ensure!(
            good(cx, &["ps"])?.contains("18090"),
            "ps does not show the port: {}",
            good(cx, &["ps"])?
        );
        ensure!(
            bad(cx, &["run", "-d", "-p", "18090:80", &image, "probe", "idle"], 125)?
                .contains("18090"),
            "a port twice"
        );
        bad(cx, &["run", "-d", "-p", "18093-18095:80-81", &image, "probe", "idle"], 125)?;
        for name in ["first", "second", "third"] {
            good(cx, &["rm", "-f", name])?;
        }
        ensure!(reach(cx, 18090).is_err(), "the port answers without its container");
        Ok(())
    });
}

#[test]
fn what_shall_restart_restarts() {
    test(async |cx| {
        let image = image().await?;
        let restarts = |name: &str| -> Result<u64> {
            Ok(inspect(cx, name)?["restarts"].as_u64().unwrap_or(0))
        };
        detached(
            cx,
            &["--name", "always", "--restart", "always", &image, "sh", "-c", "sleep 0.1; exit 0"],
        )?;
        detached(
            cx,
            &["--name", "thrice", "--restart", "on-failure:3", &image, "sh", "-c", "exit 5"],
        )?;
        detached(cx, &["--name", "never", &image, "sh", "-c", "exit 5"])?;
        detached(cx, &["--name", "good", "--restart", "on-failure", &image, "true"])?;
        e2e::eventually(
            60,
            "it has started again and again",
            async || Ok(restarts("always")? >= 2),
        )
        .await?;
        e2e::eventually(60, "it has failed four times", async || {
            let state = inspect(cx, "thrice")?;
            Ok(state["state"] == "exited" && restarts("thrice")? == 3)
        })
        .await?;
        same("a failure without a policy", restarts("never")?, 0)?;
        same("an end that is none to repair", restarts("good")?, 0)?;
        // Over the daemon's death.
        let before = restarts("always")?;
        cx.daemon.kill()?;
        cx.daemon.restart().await?;
        e2e::eventually(60, "it goes on with the next daemon", async || {
            Ok(restarts("always")? > before)
        })
        .await?;
        good(cx, &["stop", "always"])?;
        let stopped = restarts("always")?;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        same("restarts after a stop", restarts("always")?, stopped)
    });
}

#[test]
fn the_logs_of_run_are_kept_small() {
    let config = "[runtime]\nrun_log_size = \"64KiB\"\nrun_log_files = 2\n";
    let daemon = e2e::daemon::Options { config: Some(config.into()), ..Default::default() };
    test_with(Setup { daemon, ..Setup::default() }, async |cx| {
        let image = image().await?;
        let output = berth(
            cx,
            &["run", "--net", "host", "--name", "chatty", &image, "probe", "lines", "20000", "100"],
        )?;
        same("all went through", output.stdout.len(), 20_000 * 101)?;
        let log = good(cx, &["logs", "chatty"])?;
        ensure!(log.len() < 200 << 10, "{} bytes are kept", log.len());
        ensure!(
            log.lines().last().is_some_and(|line| line.starts_with("0000019999 ")),
            "the end is lost"
        );
        let numbers: Vec<u32> =
            log.lines().filter_map(|line| line.get(..10)?.parse().ok()).collect();
        ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a hole in the log");
        Ok(())
    });
}

#[test]
fn a_client_that_goes_leaves_its_container() {
    test(async |cx| {
        let image = image().await?;
        let mut command =
            cx.daemon.berth(&["run", "--net", "host", "--name", "left", &image, "probe", "idle"]);
        let mut child = command.stdout(Stdio::null()).spawn()?;
        e2e::eventually(20, "it runs", async || listed(cx, &["left"])).await?;
        child.kill()?;
        child.wait()?;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        same("exec", good(cx, &["exec", "left", "echo", "here"])?.as_str(), "here\n")
    });
}
