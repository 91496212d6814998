//! The node: ready, its statistics, drained, its kubelet and its daemon killed and upgraded.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::netns::success;
use e2e::same;
use serde_json::{Value, json};

use crate::space::{
    AGNHOST, SERVE, Space, cluster, eventually, has, kubectl, pod, server, shell, test, with,
    workload,
};

fn node() -> Result<Value> {
    Ok(serde_json::from_str(&kubectl(&["get", "node", "node", "--output", "json"])?)?)
}

#[test]
fn the_node_is_ready_and_says_what_it_is() {
    let check = || -> Result<()> {
        let status = &node()?["status"];
        let conditions = status["conditions"].as_array().context("no conditions")?;
        for condition in conditions {
            let expected = if condition["type"] == "Ready" { "True" } else { "False" };
            ensure!(condition["status"] == expected, "{condition}");
        }
        let version = &status["nodeInfo"]["containerRuntimeVersion"];
        has(version.as_str().context("no version")?, "berth://")?;
        let images = status["images"].to_string();
        has(&images, AGNHOST)?;
        let handlers = status["runtimeHandlers"].as_array().context("no handlers")?;
        ensure!(handlers.iter().any(|handler| handler["name"] == "berth"), "{handlers:?}");
        Ok(())
    };
    check().unwrap();
}

#[test]
fn the_kubelet_knows_what_a_pod_uses() {
    test(|space| {
        let line = format!("head -c 30000000 /dev/zero >/file; {SERVE}");
        space.run(&pod("user", &[shell("main", &line)]))?;
        let summary = || -> Result<Value> {
            let text = kubectl(&["get", "--raw", "/api/v1/nodes/node/proxy/stats/summary"])?;
            let all: Value = serde_json::from_str(&text)?;
            let mut pods = all["pods"].as_array().into_iter().flatten();
            let own = |pod: &&Value| pod["podRef"]["namespace"] == space.name.as_str();
            Ok(pods.find(own).cloned().unwrap_or_default())
        };
        let whole = || {
            let pod = summary()?;
            let main = &pod["containers"][0];
            Ok(pod["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0)
                && pod["memory"]["workingSetBytes"].as_u64() > Some(0)
                && main["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0)
                && main["memory"]["workingSetBytes"].as_u64() > Some(0)
                && main["rootfs"]["usedBytes"].as_u64() >= Some(30_000_000))
        };
        let outcome = eventually(60, "all is known", whole);
        outcome.with_context(|| summary().unwrap_or_default().to_string())
    });
}

/// Ids of all containers of the namespace, and how often each was restarted.
fn lives(space: &Space) -> Result<Vec<String>> {
    let mut lives = Vec::new();
    for pod in space.list("pods", "")? {
        for kind in ["initContainerStatuses", "containerStatuses"] {
            for status in pod["status"][kind].as_array().into_iter().flatten() {
                lives.push(format!(
                    "{} {} {} {} {}",
                    pod["metadata"]["name"],
                    status["name"],
                    status["containerID"],
                    status["restartCount"],
                    status["ready"]
                ));
            }
        }
    }
    lives.sort();
    Ok(lives)
}

/// A Deployment whose probes must not fail, a pod with a sidecar, and one that writes all the time.
fn some_pods(space: &Space) -> Result<()> {
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 10});
    let web = with(server("web"), &json!({"livenessProbe": probe}));
    let sidecar = with(shell("sidecar", SERVE), &json!({"restartPolicy": "Always"}));
    let mut count =
        pod("count", &[shell("main", "i=0; while sleep 0.02; do i=$((i + 1)); echo $i; done")]);
    count["spec"]["initContainers"] = json!([sidecar]);
    space.apply(&[workload("Deployment", "web", &web, &json!({"replicas": 3})), count])?;
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout", "90s"])?;
    space.wait("pod/count", "condition=Ready")
}

/// That all works as before and nobody was restarted.
fn check_pods(space: &Space, before: &[String]) -> Result<()> {
    eventually(60, "the node is ready and takes pods", || {
        let ready =
            |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        Ok(node()?["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(ready)))
    })?;
    // Some rounds of every probe, and of the kubelet's own list.
    std::thread::sleep(Duration::from_secs(5));
    same("lives", lives(space)?, before)?;
    same("an exec", space.exec("count", "echo here")?.as_str(), "here\n")?;
    let log = space.kubectl(&["logs", "count", "--container", "main"])?;
    let numbers: Vec<usize> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(numbers == (1..=numbers.len()).collect::<Vec<_>>(), "a line is missing or there twice");
    let name = format!("later-{}", log.lines().count());
    space.run(&pod(&name, &[shell("main", SERVE)]))?;
    space.kubectl(&["delete", "pod", &name]).map(drop)
}

fn restart(program: &str) -> Result<()> {
    success(program, cluster(&["restart", program]).output()?).map(drop)
}

#[test]
fn a_daemon_that_is_killed_and_upgraded_restarts_no_container() {
    test(|space| {
        some_pods(space)?;
        let before = lives(space)?;
        for _ in 0..3 {
            restart("berth")?;
            check_pods(space, &before)?;
        }
        Ok(())
    });
}

#[test]
fn a_kubelet_that_is_killed_restarts_no_container() {
    test(|space| {
        some_pods(space)?;
        let before = lives(space)?;
        restart("kubelet")?;
        check_pods(space, &before)?;
        // Both at once.
        restart("berth")?;
        restart("kubelet")?;
        check_pods(space, &before)
    });
}

#[test]
fn a_node_that_is_drained_is_empty() {
    test(|space| {
        some_pods(space)?;
        let drain = "drain node --ignore-daemonsets --delete-emptydir-data --force --timeout 90s";
        let outcome = kubectl(&drain.split(' ').collect::<Vec<_>>());
        let outcome = outcome.and_then(|_| {
            let pods = space.list("pods", "")?;
            ensure!(pods.iter().all(|pod| pod["status"]["phase"] == "Pending"), "{pods:?}");
            // Of the pods that were there nothing is left in the runtime either.
            eventually(60, "the sandboxes are gone", || {
                let list =
                    success("berth pods", cluster(&["exec", "berth", "pods", "--json"]).output()?)?;
                Ok(!list.contains(&space.name))
            })
        });
        kubectl(&["uncordon", "node"])?;
        outcome?;
        space.kubectl(&["rollout", "status", "deployment/web", "--timeout", "90s"])?;
        kubectl(&[
            "--namespace",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout",
            "90s",
        ])
        .map(drop)
    });
}
