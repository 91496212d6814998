//! `berth pods`: pods, those of `berth run` and those of Kubernetes.

use std::process::ExitCode;

use proto::control::{ListPodsRequest, PodSummary};
use serde_json::{Value, json};

use super::connect::{Socket, connect};
use super::failure::{Outcome, within};
use super::human::{self, ago};
use super::ps::LIST_DEADLINE;
use super::table::{Table, print, print_json};
use crate::app::now;
use crate::shown;

/// The flags of `berth pods`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that are not ready, too
    #[arg(short, long)]
    all: bool,
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
    let request = ListPodsRequest { all: args.all };
    let pods = within(LIST_DEADLINE, client.list_pods(request)).await?.into_inner().pods;
    if args.json {
        let pods: Vec<Value> = pods.iter().map(json).collect();
        print_json(&json!({ "pods": pods }))?;
    } else if args.quiet {
        let ids = pods.iter().map(|pod| human::id(&pod.id, args.no_trunc) + "\n");
        print(&ids.collect::<String>())?;
    } else {
        print(&table(&pods, args.no_trunc, now()).render())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(pods: &[PodSummary], whole: bool, now: i64) -> Table {
    let mut table = Table::new(&[
        "POD ID",
        "CREATED",
        "STATE",
        "NAME",
        "NAMESPACE",
        "ATTEMPT",
        "CONTAINERS",
        "IP",
        "HANDLER",
    ]);
    for pod in pods {
        table.row([
            human::id(&pod.id, whole),
            ago(pod.created_at, now),
            pod.state.clone(),
            pod.name.clone(),
            pod.namespace.clone(),
            pod.attempt.to_string(),
            pod.containers.to_string(),
            pod.ip.clone(),
            if pod.handler.is_empty() { "berth".to_owned() } else { pod.handler.clone() },
        ]);
    }
    table
}

fn json(pod: &PodSummary) -> Value {
    json!({
        "id": pod.id,
        "name": pod.name,
        "namespace": pod.namespace,
        "attempt": pod.attempt,
        "state": pod.state,
        "createdAt": shown::time(pod.created_at),
        "ip": pod.ip,
        "containers": pod.containers,
        "local": pod.local,
        "runtimeHandler": pod.handler,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_a_row() {
        let pod = PodSummary {
            id: "0123456789abcdef".repeat(4),
            name: "dns".into(),
            namespace: "kube-system".into(),
            attempt: 2,
            state: "ready".into(),
            created_at: 1_000_000_000,
            ip: "10.0.0.2".into(),
            containers: 1,
            local: false,
            handler: String::new(),
        };
        assert_eq!(
            table(std::slice::from_ref(&pod), false, 121_000_000_000).render(),
            "POD ID         CREATED         STATE   NAME   NAMESPACE     ATTEMPT   CONTAINERS   IP         HANDLER\n\
             0123456789ab   2 minutes ago   ready   dns    kube-system   2         1            10.0.0.2   berth\n"
        );
        assert_eq!(json(&pod)["createdAt"], "1970-01-01T00:00:01.000000000Z");
    }
}
