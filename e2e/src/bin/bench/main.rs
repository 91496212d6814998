//! Measures a CRI server from outside: the same calls, the same pods, whatever runs behind the socket.
//!
//! `bench --socket PATH --image IMAGE` prints one line per figure: name, value, unit. Times are medians, with
//! `--print samples` one line for each. `hack/bench` puts several of its runs side by side.
//! What a kubelet would ask is asked: limits for CPU and memory, the default seccomp profile.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for people")]

mod images;
mod measure;
mod memory;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use measure::{Plan, Target};
use report::Print;

const USAGE: &str = "bench --socket PATH --image IMAGE [--do pods|pull|remove] [--print medians|samples] [--pods N] \
    [--execs N] [--idle N] [--at-once N] [--handler NAME] [--network node|pod] [--cgroup-parent PATH] [--logs DIR] \
    [--process NAME]... [--command WORD]...";

/// Where containers log unless told.
const LOGS: &str = "/tmp/berth-bench-logs";

/// What is asked for.
#[derive(Debug, Clone, Copy, Default)]
enum Job {
    /// Lives of pods.
    #[default]
    Pods,
    /// One pull of the image.
    Pull,
    /// One removal of it.
    Remove,
}

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
    let arguments = parse(std::env::args().skip(1))?;
    let (target, plan) = (&arguments.target, &arguments.plan);
    match arguments.job {
        Job::Pods => pods(&arguments).await,
        Job::Pull => images::pull(target, plan.print).await,
        Job::Remove => images::remove(target, plan.print).await,
    }
}

async fn pods(arguments: &Arguments) -> Result<()> {
    let (target, plan) = (&arguments.target, &arguments.plan);
    std::fs::create_dir_all(&target.logs).context("make a directory for logs")?;
    let clients = measure::connect(target).await?;
    measure::clean(&clients).await?;
    let result = async {
        measure::lives(&clients, target, plan).await?;
        if plan.at_once > 1 {
            measure::at_once(&clients, target, plan).await?;
        }
        if plan.idle > 0 {
            measure::idle(&clients, target, plan, &arguments.processes).await?;
        }
        Ok(())
    }
    .await;
    measure::clean(&clients).await?;
    result
}

/// The command line.
#[derive(Debug)]
struct Arguments {
    job: Job,
    target: Target,
    plan: Plan,
    /// Names of the processes that a pod costs, besides its own.
    processes: Vec<String>,
}

impl Default for Arguments {
    fn default() -> Arguments {
        Arguments {
            job: Job::default(),
            target: Target { logs: LOGS.into(), ..Default::default() },
            plan: Plan {
                pods: 30,
                execs: 100,
                idle: 0,
                at_once: 1,
                warm_up: 3,
                pause: Duration::from_millis(20),
                print: Print::default(),
            },
            processes: Vec::new(),
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut arguments = Arguments::default();
    let Arguments { job, target, plan, processes } = &mut arguments;
    while let Some(option) = words.next() {
        let value = words.next().with_context(|| format!("{option} needs a value; {USAGE}"))?;
        let number = || value.parse::<usize>().with_context(|| format!("{option} {value}"));
        match (option.as_str(), value.as_str()) {
            ("--do", "pods") => *job = Job::Pods,
            ("--do", "pull") => *job = Job::Pull,
            ("--do", "remove") => *job = Job::Remove,
            ("--print", "medians") => plan.print = Print::Medians,
            ("--print", "samples") => plan.print = Print::Samples,
            ("--network", "node") => target.pod_network = false,
            ("--network", "pod") => target.pod_network = true,
            ("--socket", _) => target.socket = value.into(),
            ("--image", _) => target.image = value,
            ("--handler", _) => target.handler = value,
            ("--cgroup-parent", _) => target.cgroup_parent = value,
            ("--logs", _) => target.logs = value.into(),
            ("--command", _) => target.command.push(value),
            ("--process", _) => processes.push(value),
            ("--pods", _) => plan.pods = number()?,
            ("--execs", _) => plan.execs = number()?,
            ("--idle", _) => plan.idle = number()?,
            ("--at-once", _) => plan.at_once = number()?,
            _ => bail!("{option} {value}: {USAGE}"),
        }
    }
    if target.socket.as_os_str().is_empty() || target.image.is_empty() {
        bail!("{USAGE}");
    }
    if target.command.is_empty() {
        target.command = ["sleep", "1000000"].map(str::to_owned).into();
    }
    Ok(arguments)
}
