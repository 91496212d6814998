//! `berth attach`: the input and output of a container that runs.

use proto::control::attach_request::Message as Say;
use proto::control::attach_response::Message;
use proto::control::{AttachRequest, AttachResponse, AttachSpec};
use tokio_stream::StreamExt;

use super::attach::{Ask, Keys, Output, Told, Until, Wanted, follow, requests};
use super::connect::{Socket, connect};
use super::failure::Outcome;
use super::signals::Signals;

/// The flags of `berth attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "A terminal is left with ctrl-p ctrl-q; the container goes on.")]
pub struct Args {
    /// Show output only
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    /// Keys that leave a terminal, such as ctrl-a,d [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", value_parser = Keys::parse)]
    detach_keys: Option<Keys>,
    #[command(flatten)]
    socket: Socket,
    /// Id or name of the container
    container: String,
}

/// Attaches until the container's end, whose code is ours.
pub(super) async fn run(args: Args) -> Outcome {
    let mut client = connect(&args.socket).await?;
    let signals = Signals::catch()?;
    let message = |message| AttachRequest { message: Some(message) };
    let spec = AttachSpec { container: args.container, stdin: !args.no_stdin };
    let (asked, ask) = requests(message(Say::Spec(spec)), move |ask| {
        message(match ask {
            Ask::Signal(number) => Say::Signal(number),
            Ask::Stdin(bytes) => Say::Stdin(bytes),
            Ask::StdinClosed => Say::StdinClosed(true),
            Ask::Resize(size) => Say::Resize(size),
        })
    });
    let answers = client.attach(asked).await?.into_inner();
    let messages = answers.map(|answer| answer.map(told));
    let wanted = Wanted {
        until: Until::Exit,
        proxy: args.sig_proxy,
        keys: Some(args.detach_keys.unwrap_or_default()),
    };
    follow(messages, signals, ask, &Output::standard()?, wanted).await
}

fn told(answer: AttachResponse) -> Told {
    match answer.message {
        Some(Message::Started(started)) => Told::Started(started),
        Some(Message::Stdout(bytes)) => Told::Stdout(bytes),
        Some(Message::Stderr(bytes)) => Told::Stderr(bytes),
        Some(Message::StdinTaken(count)) => Told::StdinTaken(count),
        Some(Message::Exited(exited)) => Told::Exited(exited),
        None => Told::Unknown,
    }
}
