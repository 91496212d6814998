//! The verbs of kubectl that reach into a container.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use e2e::netns::success;
use e2e::same;
use serde_json::json;

use crate::space::{
    BUSYBOX, SERVE, cluster, eventually, feed, has, pod, server, shell, test, with,
};

#[test]
fn logs_are_followed_to_their_end() {
    test(|space| {
        let line =
            "until test -e /go; do sleep 0.1; done; for i in $(seq 5000); do echo line $i; done";
        let mut talk = pod("talk", &[shell("main", line)]);
        talk["spec"]["restartPolicy"] = json!("Never");
        space.run(&talk)?;
        let mut follow = space.command(&["logs", "--follow", "talk"]);
        let mut follow = follow.stdout(Stdio::piped()).spawn()?;
        let mut text = String::new();
        let mut output = follow.stdout.take().context("an output was asked for")?;
        space.exec("talk", "touch /go")?;
        output.read_to_string(&mut text)?;
        ensure!(follow.wait()?.success(), "kubectl logs failed");
        let expected: String = (1..=5000).map(|number| format!("line {number}\n")).collect();
        ensure!(text == expected, "{} lines: {:?}", text.lines().count(), text.lines().last());
        Ok(())
    });
}

#[test]
fn exec_has_input_exit_code_and_terminal() {
    test(|space| {
        space.run(&pod("box", &[shell("main", SERVE)]))?;
        let input: String = (0..20_000).map(|number| format!("{number}\n")).collect();
        let output = feed(space.command(&["exec", "--stdin", "box", "--", "cat"]), &input)?;
        ensure!(success("exec", output)? == input, "the input did not come back whole");
        let line = "cat; echo problem >&2; exit 7";
        let output =
            feed(space.command(&["exec", "--stdin", "box", "--", "sh", "-c", line]), "given")?;
        same("exit code", output.status.code(), Some(7))?;
        same("stdout", String::from_utf8_lossy(&output.stdout).into_owned(), "given")?;
        has(&String::from_utf8_lossy(&output.stderr), "problem")?;
        let text = space.with_terminal("exec -it box -- sh -c 'tty; stty size'")?;
        has(&text, "/dev/pts/")?;
        has(&text, "31 97")
    });
}

#[test]
fn attach_talks_to_the_first_process() {
    test(|space| {
        let line = "while read word; do echo got $word; done; echo closed";
        let main = with(shell("main", line), &json!({"stdin": true, "stdinOnce": true}));
        let mut echo = pod("echo", &[main]);
        echo["spec"]["restartPolicy"] = json!("Never");
        space.run(&echo)?;
        let mut attach = space.command(&["attach", "--stdin", "echo"]);
        let mut attach = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = attach.stdin.take().context("an input was asked for")?;
        let mut output =
            BufReader::new(attach.stdout.take().context("an output was asked for")?).lines();
        for word in ["one", "two"] {
            writeln!(input, "{word}")?;
            let answer = output.next().context("the stream has ended")??;
            same("the answer", answer, format!("got {word}"))?;
        }
        drop(input);
        same("the end", output.next().context("the stream has ended")??.as_str(), "closed")?;
        ensure!(attach.wait()?.success(), "kubectl attach failed");
        space.wait("pod/echo", "jsonpath={.status.phase}=Succeeded")
    });
}

#[test]
fn files_are_copied_in_both_directions() {
    test(|space| {
        space.run(&pod("box", &[shell("main", SERVE)]))?;
        // Outside the node this is another file; all of this happens inside.
        let line = format!(
            "mkdir -p /run/{0}/d && cd /run/{0} && head -c 5000000 /dev/urandom >d/data && echo small >d/small && \
             kubectl -n {0} cp d box:/tmp && kubectl -n {0} cp box:/tmp/d back && cmp d/data back/data && cmp d/small back/small",
            space.name
        );
        success("cp", cluster(&["exec", "timeout", "60", "sh", "-euc", &line]).output()?).map(drop)
    });
}

#[test]
fn a_port_is_forwarded() {
    test(|space| {
        space.run(&pod("web", &[server("web")]))?;
        let mut forward = space.command(&["port-forward", "pod/web", "18080:8080"]);
        let mut forward = forward.stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(forward.stdout.take().context("an output was asked for")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        has(&line, "Forwarding from")?;
        let ask = |path: &str| {
            let url = format!("http://127.0.0.1:18080/{path}");
            success(&url, cluster(&["exec", "busybox", "wget", "-q", "-O", "-", &url]).output()?)
        };
        let answers: Result<Vec<String>> = (0..20).map(|_| ask("hostname")).collect();
        let large = ask(&format!("echo?msg={}", "x".repeat(6000)));
        // What holds it is inside the node, and would stay there.
        success("kill", cluster(&["exec", "sh", "-c", "kill $(pidof kubectl)"]).output()?)?;
        forward.wait()?;
        ensure!(answers?.iter().all(|answer| answer == "web"), "another answer");
        same("length", large?.len(), 6000)
    });
}

#[test]
fn a_container_that_runs_is_debugged() {
    test(|space| {
        space.run(&pod("web", &[server("web")]))?;
        let line = format!(
            "debug web --image {BUSYBOX} --target web --container tool --profile general -- sleep 1000"
        );
        space.kubectl(&line.split(' ').collect::<Vec<_>>())?;
        let runs = || -> Result<bool> {
            let status = &space.get("pod", "web")?["status"];
            Ok(status["ephemeralContainerStatuses"][0]["state"]["running"].is_object())
        };
        eventually(30, "the ephemeral container runs", runs)?;
        let list = space.kubectl(&["exec", "web", "--container", "tool", "--", "ps"])?;
        has(&list, "/agnhost netexec")?;
        has(&list, "sleep 1000")
    });
}
