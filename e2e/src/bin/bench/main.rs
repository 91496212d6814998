//! Measures a CRI server from outside: the same calls, the same pods, whatever runs behind the socket.
//!
//! `bench --socket PATH --image IMAGE` prints one line per figure: name, value, unit. Times are medians.
//! What a kubelet would ask is asked: limits for CPU and memory, the default seccomp profile.

mod measure;
mod memory;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use measure::{Plan, Target};

const USAGE: &str = "bench --socket PATH --image IMAGE [--pods N] [--execs N] [--idle N] [--at-once N] [--handler NAME] \
    [--network node|pod] [--process NAME]... [--command WORD]...";

fn main() -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.context("start").and_then(|runtime| runtime.block_on(run()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let (target, plan, processes) = parse(std::env::args().skip(1))?;
    let clients = measure::connect(&target).await?;
    measure::clean(&clients).await?;
    let result = async {
        measure::lives(&clients, &target, &plan).await?;
        if plan.at_once > 1 {
            measure::at_once(&clients, &target, &plan).await?;
        }
        if plan.idle > 0 {
            measure::idle(&clients, &target, &plan, &processes).await?;
        }
        Ok(())
    }
    .await;
    measure::clean(&clients).await?;
    result
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(Target, Plan, Vec<String>)> {
    let mut target = Target::default();
    let mut plan = Plan {
        pods: 30,
        execs: 100,
        idle: 0,
        at_once: 1,
        warm_up: 3,
        pause: Duration::from_millis(20),
    };
    let mut processes = Vec::new();
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option} needs a value; {USAGE}"))?;
        let number = || value.parse::<usize>().with_context(|| format!("{option} {value}"));
        match option.as_str() {
            "--socket" => target.socket = value.into(),
            "--image" => target.image = value,
            "--handler" => target.handler = value,
            "--network" if value == "node" || value == "pod" => target.pod_network = value == "pod",
            "--command" => target.command.push(value),
            "--process" => processes.push(value),
            "--pods" => plan.pods = number()?,
            "--execs" => plan.execs = number()?,
            "--idle" => plan.idle = number()?,
            "--at-once" => plan.at_once = number()?,
            _ => bail!("{option} {value}: {USAGE}"),
        }
    }
    if target.socket.as_os_str().is_empty() || target.image.is_empty() {
        bail!("{USAGE}");
    }
    if target.command.is_empty() {
        target.command = ["sleep", "1000000"].map(str::to_owned).into();
    }
    Ok((target, plan, processes))
}
