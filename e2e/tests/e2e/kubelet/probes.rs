//! Probes of every kind that succeed, and what happens when they fail.

use anyhow::{Result, ensure};
use e2e::kubelet::{Kubelet, container, is_ready, pod};
use e2e::test;
use serde_json::{Value, json};

use super::{SERVE, agnhost, busybox, lives, with, with_spec};

#[test]
fn probes_of_every_kind_find_who_is_well() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let image = agnhost(cx).await?;
        let probed = |name: &str, args: Value, probe: Value| {
            let probe = with(probe, &json!({"periodSeconds": 1}));
            json!({
                "name": name, "image": image, "command": ["/agnhost"], "args": args,
                "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe,
            })
        };
        let web =
            |port: u16| json!(["netexec", "--http-port", port.to_string(), "--udp-port", "-1"]);
        let containers = [
            probed("exec", web(8080), json!({"exec": {"command": ["cat", "/etc/passwd"]}})),
            probed("http", web(8081), json!({"httpGet": {"path": "/hostname", "port": 8081}})),
            probed("tcp", web(8082), json!({"tcpSocket": {"port": 8082}})),
            probed(
                "grpc",
                json!(["grpc-health-checking", "--port", "5000", "--http-port", "8083"]),
                json!({"grpc": {"port": 5000}}),
            ),
        ];
        kubelet.add(&pod("well", &containers))?;
        let pod = kubelet.ready("well").await?;
        // Some more rounds of each.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        let later = kubelet.pod("well").await?;
        ensure!(is_ready(&later), "{}", later["status"]);
        ensure!(lives(&pod) == lives(&later), "{:?} became {:?}", lives(&pod), lives(&later));
        kubelet.finish(cx).await
    });
}

#[test]
fn who_fails_a_probe_is_started_again_or_not_asked() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let probe = |command: &str| {
            json!({
                "exec": {"command": ["sh", "-c", command]}, "periodSeconds": 1, "failureThreshold": 1,
                "terminationGracePeriodSeconds": 1,
            })
        };
        let readiness =
            |command: &str| json!({"exec": {"command": ["sh", "-c", command]}, "periodSeconds": 1});
        let sick = with(busybox("sick", SERVE).await?, &json!({"livenessProbe": probe("exit 1")}));
        let late = with(busybox("late", SERVE).await?, &json!({"startupProbe": probe("exit 1")}));
        let deaf = json!({"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1});
        let deaf = with(busybox("deaf", SERVE).await?, &json!({"livenessProbe": deaf}));
        let busy = with(
            busybox("busy", SERVE).await?,
            &json!({"readinessProbe": readiness("test -e /ready")}),
        );
        kubelet.add(&pod("ill", &[sick, late, deaf, busy]))?;

        for name in ["sick", "late", "deaf"] {
            let again = |pod: &Value| container(pod, name)["restartCount"].as_i64() >= Some(1);
            kubelet.until("ill", &format!("{name} was started again"), again).await?;
        }
        let pod = kubelet.pod("ill").await?;
        let busy = container(&pod, "busy");
        ensure!(busy["restartCount"] == 0 && busy["ready"] == false, "{busy}");
        kubelet.run("ill", "busy", "touch /ready").await?;
        let ready = |pod: &Value| container(pod, "busy")["ready"] == true;
        kubelet.until("ill", "busy is ready", ready).await?;
        kubelet.run("ill", "busy", "rm /ready").await?;
        let busy = |pod: &Value| container(pod, "busy")["ready"] == false;
        kubelet.until("ill", "busy is ready no more", busy).await?;
        kubelet.finish(cx).await
    });
}

#[test]
fn a_probe_that_hangs_is_given_up() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let probe = json!({
            "exec": {"command": ["sleep", "31415"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1,
        });
        let main = with(busybox("main", SERVE).await?, &json!({"readinessProbe": probe}));
        kubelet.add(&with_spec(pod("slow", &[main]), &json!({"shareProcessNamespace": true})))?;
        let runs = |pod: &Value| container(pod, "main")["started"] == true;
        kubelet.until("slow", "the container runs", runs).await?;
        let count = async || -> Result<usize> {
            let list = kubelet.run("slow", "main", "ps").await?;
            Ok(list.lines().filter(|line| line.contains("sleep 31415")).count())
        };
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        let left = count().await?;
        ensure!(left <= 2, "{left} processes of probes are left");
        ensure!(container(&kubelet.pod("slow").await?, "main")["ready"] == false, "it is ready");
        kubelet.finish(cx).await
    });
}
