//! Streaming URLs driven by the clients that users have: `e2e/kube/streams`, a program on client-go.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use crate::netns::{NetNs, success};

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code of the program at the other end; 250 for a failure of the client.
    pub code: i32,
    /// What came.
    pub stdout: Vec<u8>,
    /// See `stdout`.
    pub stderr: String,
}

/// The program, built once; Go's own cache makes that short.
pub fn program() -> Result<&'static Path> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("build e2e/kube/streams: {error}"),
    }
}

fn build() -> Result<PathBuf> {
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/kube");
    let out = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/streams"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/go");
    let go = success(script, Command::new(script).output().context("run hack/go")?)?;
    let mut command = Command::new(go.trim());
    command.current_dir(module).env("CGO_ENABLED", "0").args(["build", "-buildvcs=false", "-o"]);
    let output = command.arg(&out).arg("./streams").output().context("run go build")?;
    success("go build", output)?;
    Ok(out)
}

/// Starts the program in a network namespace, with pipes.
pub fn spawn(netns: &NetNs, args: &[&str]) -> Result<Child> {
    let mut command = tokio::process::Command::from(netns.command(program()?));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true).spawn().context("start the streaming client")
}

/// Runs the program to its end, which comes within a minute or two; `stdin` is closed after it was written.
pub async fn run(netns: &NetNs, args: &[&str], stdin: &[u8]) -> Result<Ran> {
    let mut child = spawn(netns, args)?;
    let mut input = child.stdin.take().context("no stdin")?;
    let write = async {
        // A program that does not read it is no failure.
        input.write_all(stdin).await.ok();
        drop(input);
    };
    let limit = crate::scaled(Duration::from_secs(120));
    let ended = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = tokio::time::timeout(limit, ended)
        .await
        .with_context(|| format!("streams {args:?} did not end within {limit:?}"))??;
    Ok(Ran {
        code: output.status.code().context("the streaming client was killed")?,
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
