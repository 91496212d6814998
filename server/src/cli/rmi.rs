//! `berth rmi`: names of images, and images that have none left.

use proto::control::{RemoveImageRequest, RemoveImageResponse};

use super::connect::{Socket, connect};
use super::failure::{FAILED, Failure, Outcome};
use super::table::print;
use std::process::ExitCode;

/// The flags of `berth rmi`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Even where a container needs it
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    socket: Socket,
    /// Images, by name, id or beginning of an id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(super) async fn run(args: Args) -> Outcome {
    let mut client = connect(&args.socket).await?;
    let mut code = ExitCode::SUCCESS;
    // One after the other: a name and an id of the same image may both be among them.
    for image in args.images {
        let request = RemoveImageRequest { image, force: args.force };
        match client.remove_image(request).await {
            Ok(answer) => print(&told(answer.get_ref()))?,
            Err(status) => {
                Failure::from(status).tell();
                code = ExitCode::from(FAILED);
            }
        }
    }
    Ok(code)
}

fn told(answer: &RemoveImageResponse) -> String {
    let mut text = String::new();
    for name in &answer.untagged {
        text.push_str(&format!("untagged: {name}\n"));
    }
    if !answer.deleted.is_empty() {
        text.push_str(&format!("deleted: {}\n", answer.deleted));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_that_went_has_a_line() {
        let answer = |untagged: &[&str], deleted: &str| RemoveImageResponse {
            untagged: untagged.iter().map(|name| (*name).to_owned()).collect(),
            deleted: deleted.into(),
        };
        assert_eq!(
            told(&answer(&["a:1", "b:2"], "sha256:3f")),
            "untagged: a:1\nuntagged: b:2\ndeleted: sha256:3f\n"
        );
        assert_eq!(told(&answer(&["a:1"], "")), "untagged: a:1\n");
    }
}
