//! `berth pull`: an image from its registry.

use std::process::ExitCode;
use std::time::Duration;

use proto::control::pull_response::Message;
use proto::control::{PullDone, PullRequest};
use serde_json::{Value, json};

use super::connect::{Socket, connect};
use super::credentials::{self, Credential};
use super::failure::{Failure, Outcome};
use super::progress::Progress;
use super::table::{Table, print, print_json, print_line};

/// The flags of `berth pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// No progress; print the image's id alone
    #[arg(short, long)]
    quiet: bool,
    /// Image for another machine: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", default_value = "", hide_default_value = true)]
    platform: String,
    /// Show what each step took
    #[arg(long)]
    timeline: bool,
    /// One JSON document, no progress
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    #[command(flatten)]
    socket: Socket,
    /// The image: [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
    image: String,
}

pub(super) async fn run(args: Args) -> Outcome {
    let mut client = connect(&args.socket).await?;
    let auth = match credentials::for_image(&args.image)? {
        Credential::None => None,
        Credential::Known(auth) => Some(auth),
        Credential::Helper(helper) => helper.ask().await?,
    };
    let request = PullRequest { image: args.image.clone(), auth, platform: args.platform.clone() };
    let mut answers = client.pull(request).await?.into_inner();
    let mut progress = (!args.quiet && !args.json).then(Progress::standard);
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(Message::Progress(now)) => {
                if let Some(progress) = &mut progress {
                    progress.update(&now);
                }
            }
            Some(Message::Done(done)) => return tell(&args, &done),
            None => {}
        }
    }
    Err(Failure::new(format!(
        "the daemon ended the pull of {} without an answer; see its log, or pull again",
        args.image
    )))
}

fn tell(args: &Args, done: &PullDone) -> Outcome {
    if args.json {
        print_json(&json(done))?;
    } else if args.quiet {
        print_line(&done.image_id)?;
    } else {
        print(&format!("image: {}\ndigest: {}\n", done.image_id, done.digest))?;
        if args.timeline {
            print(&timeline(done).render())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn timeline(done: &PullDone) -> Table {
    let mut table = Table::new(&["STEP", "TIME"]);
    for step in &done.timeline {
        table.row([step.name.clone(), format!("{:.1?}", Duration::from_nanos(step.nanoseconds))]);
    }
    table
}

fn json(done: &PullDone) -> Value {
    let steps: Vec<Value> = done
        .timeline
        .iter()
        .map(|step| json!({ "name": step.name, "nanoseconds": step.nanoseconds }))
        .collect();
    json!({ "imageId": done.image_id, "digest": done.digest, "timeline": steps })
}

#[cfg(test)]
mod tests {
    use proto::control::Step;

    use super::*;

    #[test]
    fn the_timeline_has_a_row_for_each_step() {
        let step = |name: &str, nanoseconds| Step { name: name.into(), nanoseconds };
        let done = PullDone {
            image_id: "sha256:00".into(),
            digest: "sha256:01".into(),
            timeline: vec![step("resolve", 12_340_000), step("fetch and unpack", 1_500_000_000)],
        };
        assert_eq!(
            timeline(&done).render(),
            "STEP               TIME\nresolve            12.3ms\nfetch and unpack   1.5s\n"
        );
        assert_eq!(
            json(&done)["timeline"][0],
            json!({"name": "resolve", "nanoseconds": 12_340_000})
        );
    }
}
