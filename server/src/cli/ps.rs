//! `berth ps`: containers, those of `berth run` and those of Kubernetes.

use std::process::ExitCode;
use std::time::Duration;

use proto::control::{ContainerSummary, ListContainersRequest};
use serde_json::{Value, json};

use super::connect::{Socket, connect};
use super::failure::{Outcome, within};
use super::human::{self, ago, between, span};
use super::parse::show_ports;
use super::table::{Table, print, print_json};
use crate::app::now;
use crate::shown;

/// A list comes from memory.
pub(super) const LIST_DEADLINE: Duration = Duration::from_secs(30);

/// The flags of `berth ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids and commands
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
    let request = ListContainersRequest { all: args.all };
    let answer = within(LIST_DEADLINE, client.list_containers(request)).await?.into_inner();
    if args.json {
        let containers: Vec<Value> = answer.containers.iter().map(json).collect();
        print_json(&json!({ "containers": containers }))?;
    } else if args.quiet {
        let ids = answer.containers.iter().map(|c| human::id(&c.id, args.no_trunc) + "\n");
        print(&ids.collect::<String>())?;
    } else {
        print(&table(&answer.containers, args.no_trunc, now()).render())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(containers: &[ContainerSummary], whole: bool, now: i64) -> Table {
    let mut table = Table::new(&[
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAME",
        "POD",
    ]);
    for container in containers {
        table.row([
            human::id(&container.id, whole),
            container.image.clone(),
            human::command(&container.command, whole),
            ago(container.created_at, now),
            status(container, now),
            show_ports(&container.ports),
            container.name.clone(),
            pod(container),
        ]);
    }
    table
}

/// The pod of Kubernetes; one of `berth run` says no more than the container's name.
fn pod(container: &ContainerSummary) -> String {
    if container.local {
        String::new()
    } else {
        format!("{}/{}", container.pod_namespace, container.pod_name)
    }
}

/// State and time in docker's words, and what docker does not tell: why it ended, how often it began anew.
fn status(container: &ContainerSummary, now: i64) -> String {
    let up = || format!("Up {}", span(between(container.started_at, now)));
    let restarts = match container.restarts {
        0 => String::new(),
        1 => ", restarted once".to_owned(),
        count => format!(", restarted {count} times"),
    };
    let text = match container.state.as_str() {
        "running" => up(),
        "paused" => format!("{} (paused)", up()),
        "created" => "Created".to_owned(),
        "restarting" => format!("Restarting ({})", container.exit_code),
        "exited" => {
            let reason = match container.reason.as_str() {
                "" | "Completed" | "Error" => String::new(),
                reason => format!(", {reason}"),
            };
            let code = container.exit_code;
            format!("Exited ({code}) {}{reason}", ago(container.finished_at, now))
        }
        other => other.to_owned(),
    };
    text + &restarts
}

fn json(container: &ContainerSummary) -> Value {
    json!({
        "id": container.id,
        "name": container.name,
        "podSandboxId": container.pod_id,
        "podName": container.pod_name,
        "podNamespace": container.pod_namespace,
        "image": container.image,
        "imageId": container.image_id,
        "state": container.state,
        "createdAt": shown::time(container.created_at),
        "startedAt": shown::time(container.started_at),
        "finishedAt": shown::time(container.finished_at),
        "exitCode": container.exit_code,
        "reason": container.reason,
        "command": container.command,
        "ports": container.ports.iter().map(shown::port).collect::<Vec<_>>(),
        "ip": container.ip,
        "local": container.local,
        "restarts": container.restarts,
        "labels": container.labels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const NOW: i64 = 1_764_001_646 * SECOND;

    fn container() -> ContainerSummary {
        ContainerSummary {
            id: "0123456789abcdef".repeat(4),
            name: "web".into(),
            pod_id: "fedcba9876543210".repeat(4),
            pod_name: "web".into(),
            pod_namespace: "berth".into(),
            image: "nginx".into(),
            image_id: "sha256:00".into(),
            state: "running".into(),
            created_at: NOW - 180 * SECOND,
            started_at: NOW - 179 * SECOND,
            command: vec!["nginx".into(), "-g".into(), "daemon off;".into()],
            ports: vec![proto::control::PortMapping {
                container_port: 80,
                host_port: 8080,
                ..Default::default()
            }],
            ip: "10.88.0.2".into(),
            local: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_container_has_a_row_as_docker_shows_it() {
        let pod = ContainerSummary {
            local: false,
            pod_namespace: "kube-system".into(),
            pod_name: "dns".into(),
            ports: vec![],
            ..container()
        };
        assert_eq!(
            table(&[container(), pod], false, NOW).render(),
            "CONTAINER ID   IMAGE   COMMAND                  CREATED         STATUS         PORTS                  NAME   POD\n\
             0123456789ab   nginx   \"nginx -g daemon off;\"   3 minutes ago   Up 2 minutes   0.0.0.0:8080->80/tcp   web\n\
             0123456789ab   nginx   \"nginx -g daemon off;\"   3 minutes ago   Up 2 minutes                          web    kube-system/dns\n"
        );
    }

    #[track_caller]
    fn check_status(change: impl FnOnce(&mut ContainerSummary), expected: &str) {
        let mut container = container();
        change(&mut container);
        assert_eq!(status(&container, NOW), expected);
    }

    #[test]
    fn a_state_has_dockers_words() {
        check_status(|_| (), "Up 2 minutes");
        check_status(|c| c.state = "paused".into(), "Up 2 minutes (paused)");
        check_status(|c| c.state = "created".into(), "Created");
        check_status(|c| c.restarts = 3, "Up 2 minutes, restarted 3 times");
        let exited = |c: &mut ContainerSummary, code, reason: &str| {
            c.state = "exited".into();
            c.finished_at = NOW - 5 * SECOND;
            c.exit_code = code;
            c.reason = reason.into();
        };
        check_status(|c| exited(c, 0, "Completed"), "Exited (0) 5 seconds ago");
        check_status(|c| exited(c, 1, "Error"), "Exited (1) 5 seconds ago");
        check_status(|c| exited(c, 137, "OOMKilled"), "Exited (137) 5 seconds ago, OOMKilled");
        check_status(
            |c| {
                c.state = "restarting".into();
                c.exit_code = 1;
                c.restarts = 1;
            },
            "Restarting (1), restarted once",
        );
        check_status(|c| c.state = "unknown".into(), "unknown");
    }

    #[test]
    fn json_has_names_as_the_cri_has_them() {
        let found = json(&container());
        assert_eq!(found["podSandboxId"], "fedcba9876543210".repeat(4));
        assert_eq!(found["createdAt"], "2025-11-24T16:24:26.000000000Z");
        assert_eq!(found["finishedAt"], Value::Null);
        assert_eq!(
            found["ports"],
            json!([{"protocol": "TCP", "containerPort": 80, "hostPort": 8080, "hostIp": ""}])
        );
    }
}
