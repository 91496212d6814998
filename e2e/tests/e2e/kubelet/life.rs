//! From the manifest to the end of a pod: order, restarts, messages, hooks, grace, shared processes.

use anyhow::{Context, Result, ensure};
use e2e::kubelet::{Kubelet, container, pod};
use e2e::{same, test};
use serde_json::{Value, json};

use super::{SERVE, busybox, lives, with, with_spec};

#[test]
fn containers_of_a_pod_start_in_order() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/work"}]});
        let step = async |name: &str, line: &str| -> Result<Value> {
            Ok(with(busybox(name, line).await?, &mount))
        };
        let sidecar = with(
            step("sidecar", &format!("echo sidecar >>/work/order; {SERVE}")).await?,
            &json!({
                "restartPolicy": "Always",
                "startupProbe": {"exec": {"command": ["grep", "sidecar", "/work/order"]}, "periodSeconds": 1},
            }),
        );
        let main =
            step("main", &format!("echo main >>/work/order; cat /work/order; {SERVE}")).await?;
        let pod = with_spec(
            pod("order", &[main]),
            &json!({
                "initContainers": [
                    step("first", "sleep 0.2; echo first >>/work/order").await?,
                    sidecar,
                    step("second", "sleep 0.2; echo second >>/work/order").await?,
                ],
                "volumes": [{"name": "work", "emptyDir": {}}],
            }),
        );
        kubelet.add(&pod)?;
        let pod = kubelet.ready("order").await?;
        let log = kubelet.logs("order", "main", "").await?;
        same("the order", log.as_str(), "first\nsidecar\nsecond\nmain\n")?;
        let state = &container(&pod, "first")["state"]["terminated"];
        ensure!(state["exitCode"] == 0 && state["reason"] == "Completed", "{state}");
        ensure!(container(&pod, "sidecar")["state"]["running"].is_object(), "{}", pod["status"]);
        same("restarts", lives(&pod)[0].1, 0)?;
        kubelet.finish(cx).await
    });
}

#[test]
fn a_pod_ends_with_its_main_containers_and_takes_its_sidecar_along() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let sidecar = with(busybox("sidecar", SERVE).await?, &json!({"restartPolicy": "Always"}));
        let main = busybox("main", "echo -n done >/dev/termination-log").await?;
        kubelet.add(&with_spec(
            pod("job", &[main]),
            &json!({"restartPolicy": "Never", "initContainers": [sidecar]}),
        ))?;
        let ended = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        let pod = kubelet.until("job", "the pod has succeeded", ended).await?;
        let main = &container(&pod, "main")["state"]["terminated"];
        ensure!(main["exitCode"] == 0 && main["message"] == "done", "{main}");
        let sidecar = &container(&pod, "sidecar")["state"]["terminated"];
        ensure!(sidecar["exitCode"] == 0, "{sidecar}");
        kubelet.finish(cx).await
    });
}

#[test]
fn how_a_container_ended_decides_whether_it_starts_again() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        // The first process of a namespace is deaf to its own signals: so the namespace is shared.
        for (name, policy, line) in [
            ("always", "Always", "exit 0"),
            ("failed", "OnFailure", "echo -n why >/dev/termination-log; exit 3"),
            ("done", "OnFailure", "exit 0"),
            ("never", "Never", "echo the last words; exit 4"),
            ("killed", "Never", "exec probe die 11"),
        ] {
            let main = with(
                busybox("main", line).await?,
                &json!({"terminationMessagePolicy": "FallbackToLogsOnError"}),
            );
            kubelet.add(&with_spec(
                pod(name, &[main]),
                &json!({"restartPolicy": policy, "shareProcessNamespace": true}),
            ))?;
        }
        let again = |pod: &Value| container(pod, "main")["restartCount"].as_i64() >= Some(2);
        let pod = kubelet.until("always", "it was started three times", again).await?;
        ensure!(
            container(&pod, "main")["lastState"]["terminated"]["exitCode"] == 0,
            "{}",
            pod["status"]
        );
        let pod = kubelet.until("failed", "it was started three times", again).await?;
        let last = &container(&pod, "main")["lastState"]["terminated"];
        ensure!(last["exitCode"] == 3 && last["reason"] == "Error", "{last}");
        ensure!(last["message"] == "why", "{last}");

        for (name, phase, code, message) in [
            ("done", "Succeeded", 0, Value::Null),
            ("never", "Failed", 4, json!("the last words\n")),
            ("killed", "Failed", 139, Value::Null),
        ] {
            let ended = |pod: &Value| pod["status"]["phase"] == phase;
            let pod = kubelet.until(name, phase, ended).await?;
            let status = container(&pod, "main");
            ensure!(status["restartCount"] == 0, "{name}: {status}");
            let state = &status["state"]["terminated"];
            ensure!(state["exitCode"] == code && state["message"] == message, "{name}: {state}");
        }
        kubelet.finish(cx).await
    });
}

#[test]
fn who_takes_too_much_memory_is_told_so() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let main = with(
            busybox("main", "exec probe alloc 100").await?,
            &json!({"resources": {"limits": {"memory": "32Mi"}}}),
        );
        kubelet.add(&with_spec(pod("greedy", &[main]), &json!({"restartPolicy": "Never"})))?;
        let ended = |pod: &Value| pod["status"]["phase"] == "Failed";
        let pod = kubelet.until("greedy", "the pod has failed", ended).await?;
        let state = &container(&pod, "main")["state"]["terminated"];
        ensure!(state["exitCode"] == 137 && state["reason"] == "OOMKilled", "{state}");
        kubelet.finish(cx).await
    });
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let work = kubelet.shared_dir("hooks")?;
        let main = with(
            busybox("main", "trap 'echo term >>/work/order; exit 0' TERM; sleep 100000 & wait")
                .await?,
            &json!({
                "volumeMounts": [{"name": "work", "mountPath": "/work"}],
                "lifecycle": {
                    "postStart": {"exec": {"command": ["sh", "-c", "echo started >>/work/order"]}},
                    "preStop": {"exec": {"command": ["sh", "-c", "sleep 1; echo stopping >>/work/order"]}},
                },
            }),
        );
        let volumes = json!([{"name": "work", "hostPath": {"path": work}}]);
        kubelet.add(&with_spec(pod("hooks", &[main]), &json!({"volumes": volumes})))?;
        kubelet.ready("hooks").await?;
        same("after the start", std::fs::read_to_string(work.join("order"))?, "started\n")?;

        let failing = with(
            busybox("main", SERVE).await?,
            &json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "exit 5"]}}}}),
        );
        kubelet.add(&with_spec(pod("refused", &[failing]), &json!({"restartPolicy": "Never"})))?;
        let ended = |pod: &Value| container(pod, "main")["state"]["terminated"].is_object();
        kubelet.until("refused", "the container has ended with its hook", ended).await?;

        kubelet.take_away("hooks")?;
        let order = || std::fs::read_to_string(work.join("order"));
        e2e::eventually(30, "it was told", async || Ok(order()?.contains("term"))).await?;
        same("after the end", order()?, "started\nstopping\nterm\n")?;
        kubelet.finish(cx).await
    });
}

#[test]
fn who_does_not_listen_is_killed_when_the_grace_is_over() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let main = busybox("main", "exec probe ignore-term").await?;
        kubelet
            .add(&with_spec(pod("deaf", &[main]), &json!({"terminationGracePeriodSeconds": 2})))?;
        let pod = kubelet.ready("deaf").await?;
        let id = lives(&pod)[0].0.replace("berth://", "");
        ensure!(!id.is_empty(), "no id: {}", pod["status"]);
        let process = format!("/proc/{}/exe", cx.cri().pid(&id).await?);
        kubelet.take_away("deaf")?;
        let gone = async || Ok(!std::path::Path::new(&process).exists());
        e2e::eventually(30, "the process is gone", gone).await?;
        let state = cx.status(&id).await?;
        same("exit code", state.exit_code, 137)?;
        kubelet.finish(cx).await
    });
}

#[test]
fn containers_can_share_their_processes() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let first = busybox("first", "exec sleep 54321").await?;
        let second = busybox("second", SERVE).await?;
        let spec = json!({"shareProcessNamespace": true});
        kubelet.add(&with_spec(pod("shared", &[first, second]), &spec))?;
        kubelet.ready("shared").await?;
        // The end of a container whose process is not the first of its namespace, by a neighbour's hand.
        let list = kubelet.run("shared", "second", "ps").await?;
        let line = list.lines().find(|line| line.ends_with("sleep 54321"));
        let pid = line.and_then(|line| line.split_whitespace().next()).context(list.clone())?;
        ensure!(pid != "1", "{list}");
        kubelet.run("shared", "second", &format!("kill {pid}")).await?;
        let again = |pod: &Value| container(pod, "first")["restartCount"] == 1;
        let pod = kubelet.until("shared", "the other container was started again", again).await?;
        ensure!(container(&pod, "second")["restartCount"] == 0, "{}", pod["status"]);
        kubelet.finish(cx).await
    });
}
