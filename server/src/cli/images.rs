//! `berth images`: images, a row for each of their names.

use std::collections::BTreeSet;
use std::process::ExitCode;

use proto::control::{ImageSummary, ListImagesRequest};
use serde_json::{Value, json};

use super::connect::{Socket, connect};
use super::failure::{Outcome, within};
use super::human::{self, ago, size};
use super::ps::LIST_DEADLINE;
use super::table::{Table, print, print_json};
use crate::app::now;
use crate::shown;

/// Stands where docker writes it.
const NONE: &str = "<none>";

/// The flags of `berth images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// One JSON document
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

pub(super) async fn run(args: Args) -> Outcome {
    let mut client = connect(&args.socket).await?;
    let request = ListImagesRequest {};
    let images = within(LIST_DEADLINE, client.list_images(request)).await?.into_inner().images;
    if args.json {
        let images: Vec<Value> = images.iter().map(json).collect();
        print_json(&json!({ "images": images }))?;
    } else if args.quiet {
        let ids: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        let ids = ids.into_iter().map(|id| human::id(id, args.no_trunc) + "\n");
        print(&ids.collect::<String>())?;
    } else {
        print(&table(&images, args.no_trunc, now()).render())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(images: &[ImageSummary], whole: bool, now: i64) -> Table {
    let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "CONTAINERS"]);
    for image in images {
        for (repository, tag) in names(image) {
            table.row([
                repository.to_owned(),
                tag.to_owned(),
                human::id(&image.id, whole),
                ago(image.created_at, now),
                size(image.size),
                image.containers.to_string(),
            ]);
        }
    }
    table
}

/// Repositories with tags; one that is known by digest only has none.
fn names(image: &ImageSummary) -> Vec<(&str, &str)> {
    // A colon before the last slash is a port's.
    let tagged = |name: &str| name.rfind(':').filter(|at| !name[*at..].contains('/'));
    if !image.tags.is_empty() {
        let split = |name| match tagged(name) {
            Some(at) => (&name[..at], &name[at + 1..]),
            None => (name, NONE),
        };
        return image.tags.iter().map(|name| split(name.as_str())).collect();
    }
    let repositories: BTreeSet<&str> =
        image.digests.iter().filter_map(|name| Some(name.split_once('@')?.0)).collect();
    if repositories.is_empty() {
        return vec![(NONE, NONE)];
    }
    repositories.into_iter().map(|repository| (repository, NONE)).collect()
}

pub(super) fn json(image: &ImageSummary) -> Value {
    json!({
        "id": image.id,
        "repoTags": image.tags,
        "repoDigests": image.digests,
        "size": image.size,
        "createdAt": shown::time(image.created_at),
        "pinned": image.pinned,
        "containers": image.containers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], digests: &[&str]) -> ImageSummary {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ImageSummary {
            id: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            tags: owned(tags),
            digests: owned(digests),
            size: 142_000_000,
            created_at: 1_000_000_000,
            pinned: true,
            containers: 2,
        }
    }

    #[track_caller]
    fn check(tags: &[&str], digests: &[&str], expected: &[(&str, &str)]) {
        assert_eq!(names(&image(tags, digests)), expected);
    }

    #[test]
    fn names_are_split_at_the_tag() {
        check(&["docker.io/library/nginx:1.27"], &[], &[("docker.io/library/nginx", "1.27")]);
        check(&["r.io:5000/web"], &[], &[("r.io:5000/web", "<none>")]);
        check(&["r.io:5000/web:1"], &["r.io:5000/web@sha256:00"], &[("r.io:5000/web", "1")]);
        check(&["a:1", "a:2"], &[], &[("a", "1"), ("a", "2")]);
        check(&[], &["r.io/a@sha256:00", "r.io/a@sha256:01"], &[("r.io/a", "<none>")]);
        check(&[], &[], &[("<none>", "<none>")]);
    }

    #[test]
    fn an_image_has_a_row_for_each_name() {
        assert_eq!(
            table(&[image(&["r.io/a:1", "r.io/long:2"], &[])], false, 121_000_000_000).render(),
            "REPOSITORY   TAG   IMAGE ID       CREATED         SIZE    CONTAINERS\n\
             r.io/a       1     0123456789ab   2 minutes ago   142MB   2\n\
             r.io/long    2     0123456789ab   2 minutes ago   142MB   2\n"
        );
    }

    #[test]
    fn json_has_names_as_the_cri_has_them() {
        let found = json(&image(&["a:1"], &[]));
        assert_eq!(found["repoTags"], json!(["a:1"]));
        assert_eq!(found["size"], 142_000_000);
    }
}
