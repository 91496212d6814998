//! `berth run`: a container in a pod of its own, with docker's flags.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use images::Reference;
use proto::control::run_request::Message as Say;
use proto::control::run_response::Message;
use proto::control::{
    ListImagesRequest, NetworkMode, PullPolicy, RegistryAuth, RestartPolicy, RunRequest,
    RunResponse, RunSpec, Volume,
};
use tokio_stream::StreamExt;

use super::attach::{
    Ask, Keys, Output, Told, Until, Wanted, follow, requests, require_terminal, window_size,
};
use super::connect::{Client, Socket, connect};
use super::credentials::{self, Credential};
use super::failure::{CALL_FAILED, Failure, Outcome, within};
use super::parse::{self, Label, Ports, Variable};
use super::ps::LIST_DEADLINE;
use super::signals::Signals;

/// The flags of `berth run`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "berth run [OPTIONS] IMAGE [COMMAND] [ARG]...",
    disable_help_flag = true
)]
pub struct Args {
    /// Do not wait for the container; print its id
    #[arg(short, long)]
    detach: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    rm: bool,
    /// Name of the container
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Publish a port: [[IP:]HOST:]CONTAINER[/udp|/sctp]; a port may be a range
    #[arg(short, long, value_name = "PORTS", value_parser = parse::ports)]
    publish: Vec<Ports>,
    /// Mount a host path or a named volume: [SOURCE:]TARGET[:ro]
    #[arg(short, long, value_name = "VOLUME", value_parser = parse::volume)]
    volume: Vec<Volume>,
    /// Set a variable: NAME=value, or NAME to pass one on
    #[arg(short, long, value_name = "VARIABLE", value_parser = OsStringValueParser::new().try_map(parse::variable))]
    env: Vec<Variable>,
    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    env_file: Vec<PathBuf>,
    /// Limit of memory, such as 512m or 2g
    #[arg(short, long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = parse::size)]
    memory: u64,
    /// Limit of processors, such as 1.5
    #[arg(long, value_name = "NUMBER", default_value = "0", hide_default_value = true, value_parser = parse::cpus)]
    cpus: u64,
    /// Limit of processes
    #[arg(long, value_name = "NUMBER", default_value = "0", hide_default_value = true, allow_hyphen_values = true, value_parser = parse::pids_limit)]
    pids_limit: i64,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = parse::size)]
    shm_size: u64,
    /// User, or user:group, by name or number
    #[arg(short, long, default_value = "", hide_default_value = true)]
    user: String,
    /// Working directory in the container
    #[arg(short, long, value_name = "PATH", default_value = "", hide_default_value = true)]
    workdir: String,
    /// Host name of the container
    #[arg(short = 'h', long, value_name = "NAME", default_value = "", hide_default_value = true)]
    hostname: String,
    /// Network: host, none or bridge
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "bridge", value_parser = parse::network)]
    network: NetworkMode,
    /// Program in place of the image's
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// When to start again: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = parse::restart)]
    restart: RestartPolicy,
    /// Label: NAME=value
    #[arg(short, long, value_name = "LABEL", value_parser = parse::label)]
    label: Vec<Label>,
    /// All capabilities and devices, no filter
    #[arg(long)]
    privileged: bool,
    /// Mount the image read-only
    #[arg(long)]
    read_only: bool,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY", value_parser = parse::capability)]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY", value_parser = parse::capability)]
    cap_drop: Vec<String>,
    /// seccomp=unconfined, seccomp=default or seccomp=FILE
    #[arg(long, value_name = "OPTION", value_parser = parse::security)]
    security_opt: Vec<String>,
    /// Signal that `berth stop` sends
    #[arg(long, value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    stop_signal: String,
    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: Pull,
    /// Keep its input open, and pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Keys that leave a terminal, such as ctrl-a,d [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", value_parser = Keys::parse)]
    detach_keys: Option<Keys>,
    #[command(flatten)]
    socket: Socket,
    // Without the letter, which is docker's for the host name.
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,
    // One argument for both: what follows the image is never a flag of ours.
    /// The image, and the command in place of the image's
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_name = "IMAGE", hide = true)]
    words: Vec<String>,
}

/// Values of `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pull {
    Missing,
    Always,
    Never,
}

/// Variables of files, then of flags, which win.
pub(super) fn environment(files: &[PathBuf], flags: &[Variable]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut variables = Vec::new();
    for file in files {
        let read = parse::read_file(file);
        variables.extend(
            read.map_err(|problem| Failure { code: CALL_FAILED, ..Failure::new(problem) })?,
        );
    }
    variables.extend(flags.iter().cloned());
    Ok(parse::collect(variables, |name| std::env::var_os(name)))
}

impl Args {
    /// The request, but for the environment and the credential.
    fn spec(&self) -> RunSpec {
        let (image, args) = self.words.split_first().expect("clap wants one word at least");
        RunSpec {
            image: image.clone(),
            args: args.to_vec(),
            name: self.name.clone(),
            detach: self.detach,
            remove: self.rm,
            ports: self.publish.iter().flat_map(|Ports(ports)| ports.clone()).collect(),
            volumes: self.volume.clone(),
            memory: self.memory,
            nano_cpus: self.cpus,
            user: self.user.clone(),
            working_directory: self.workdir.clone(),
            hostname: self.hostname.clone(),
            network: self.network.into(),
            privileged: self.privileged,
            readonly_rootfs: self.read_only,
            entrypoint: self.entrypoint.clone(),
            restart: Some(self.restart),
            labels: self
                .label
                .iter()
                .map(|Label(name, value)| (name.clone(), value.clone()))
                .collect(),
            pull: self.pull.policy().into(),
            add_capabilities: self.cap_add.clone(),
            drop_capabilities: self.cap_drop.clone(),
            seccomp: self.security_opt.last().cloned().unwrap_or_default(),
            stop_signal: self.stop_signal.clone(),
            shm_size: self.shm_size,
            pids_limit: self.pids_limit,
            terminal: self.tty,
            interactive: self.interactive,
            ..RunSpec::default()
        }
    }
}

impl Pull {
    fn policy(self) -> PullPolicy {
        match self {
            Pull::Missing => PullPolicy::Missing,
            Pull::Always => PullPolicy::Always,
            Pull::Never => PullPolicy::Never,
        }
    }
}

/// Runs a container.
pub(super) async fn run(args: Args) -> Outcome {
    run_image(args).await.map_err(Failure::of_run)
}

async fn run_image(args: Args) -> Outcome {
    require_terminal(args.interactive && !args.detach, args.tty)?;
    let mut spec = args.spec();
    spec.terminal_size = window_size().filter(|_| args.tty);
    spec.env = environment(&args.env_file, &args.env)?;
    let mut client = connect(&args.socket).await?;
    if args.pull != Pull::Never {
        spec.auth = credential(&mut client, &spec.image, args.pull).await?;
    }
    let until = if args.detach { Until::StartWithId } else { Until::Exit };
    let keys = Some(args.detach_keys.unwrap_or_default());
    attempt(client, spec, Wanted { until, proxy: true, keys }).await
}

/// What the image's registry may want to see.
async fn credential(
    client: &mut Client,
    image: &str,
    pull: Pull,
) -> Result<Option<RegistryAuth>, Failure> {
    match credentials::for_image(image)? {
        Credential::None => Ok(None),
        Credential::Known(auth) => Ok(Some(auth)),
        // A helper may take long, or ask its user something: only where there is something to pull.
        Credential::Helper(_) if pull == Pull::Missing && is_here(client, image).await? => Ok(None),
        Credential::Helper(helper) => helper.ask().await,
    }
}

/// Whether the daemon has an image under this name.
async fn is_here(client: &mut Client, image: &str) -> Result<bool, Failure> {
    let Ok(reference) = image.parse::<Reference>() else { return Ok(false) };
    let name = reference.to_string();
    let images =
        within(LIST_DEADLINE, client.list_images(ListImagesRequest {})).await?.into_inner().images;
    Ok(images.iter().any(|image| image.tags.contains(&name) || image.digests.contains(&name)))
}

async fn attempt(mut client: Client, spec: RunSpec, wanted: Wanted) -> Outcome {
    let signals = Signals::catch()?;
    let message = |message| RunRequest { message: Some(message) };
    let (asked, ask) = requests(message(Say::Spec(spec)), move |ask| {
        message(match ask {
            Ask::Signal(number) => Say::Signal(number),
            Ask::Stdin(bytes) => Say::Stdin(bytes),
            Ask::StdinClosed => Say::StdinClosed(true),
            Ask::Resize(size) => Say::Resize(size),
        })
    });
    let answers = client.run(asked).await?.into_inner();
    let messages = answers.map(|answer| answer.map(told));
    follow(messages, signals, ask, &Output::standard()?, wanted).await
}

fn told(answer: RunResponse) -> Told {
    match answer.message {
        Some(Message::Progress(progress)) => Told::Progress(progress),
        Some(Message::Started(started)) => Told::Started(started),
        Some(Message::Stdout(bytes)) => Told::Stdout(bytes),
        Some(Message::Stderr(bytes)) => Told::Stderr(bytes),
        Some(Message::StdinTaken(count)) => Told::StdinTaken(count),
        Some(Message::Exited(exited)) => Told::Exited(exited),
        Some(Message::Warning(text)) => Told::Warning(text),
        None => Told::Unknown,
    }
}

#[cfg(test)]
mod tests;
