//! Deployments, Services, Jobs, DaemonSets, sidecars, probes that fail.

use anyhow::{Context, Result, ensure};
use e2e::same;
use serde_json::{Value, json};

use crate::space::{
    SERVE, Space, cluster, eventually, has, pod, server, shell, test, with, workload,
};

fn service(name: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": kind, "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

/// Fetches a page from the node itself.
fn from_node(url: &str) -> Result<String> {
    let mut command = cluster(&["exec", "busybox", "wget", "-q", "-O", "-", url]);
    e2e::netns::success(url, command.output()?)
}

fn pods_of(space: &Space, name: &str) -> Result<Vec<String>> {
    let pods = space.list("pods", &format!("app={name}"))?;
    let name = |pod: &Value| Some(pod["metadata"]["name"].as_str()?.to_owned());
    pods.iter().map(name).collect::<Option<_>>().context("a pod without name")
}

#[test]
fn a_service_leads_to_the_pods_of_a_deployment() {
    test(|space| {
        space.apply(&[
            workload("Deployment", "web", &server("web"), &json!({"replicas": 2})),
            service("web", "NodePort"),
        ])?;
        space.kubectl(&["rollout", "status", "deployment/web", "--timeout", "90s"])?;
        space.run(&pod("client", &[shell("client", SERVE)]))?;
        let pods = pods_of(space, "web")?;
        let spec = &space.get("service", "web")?["spec"];
        let address = spec["clusterIP"].as_str().context("no address")?;
        let port = &spec["ports"][0]["nodePort"];

        // The rules follow the pods a moment later.
        let url = format!("http://{address}/hostname");
        eventually(20, "the service answers", || Ok(from_node(&url).is_ok()))?;
        ensure!(pods.contains(&from_node(&url)?), "{pods:?}");
        from_node(&format!("http://10.77.0.2:{port}/hostname"))?;
        for url in [
            url,
            format!("http://web.{}.svc.cluster.local/hostname", space.name),
            "http://web/hostname".into(),
            format!("http://10.77.0.2:{port}/hostname"),
        ] {
            let text = space.exec("client", &format!("wget -q -O - {url}")).context(url)?;
            ensure!(pods.contains(&text), "{text}: {pods:?}");
        }
        // Each pod answers sometimes, and comes to itself through the service as well.
        for pod in &pods {
            let line = "for i in $(seq 30); do wget -q -O - http://web/hostname; echo; done";
            let text = space.exec(pod, line)?;
            for name in &pods {
                has(&text, name)?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_new_version_rolls_over_the_old_one_without_a_gap() {
    test(|space| {
        let version = |value: &str| {
            let hook = json!({"exec": {"command": ["sleep", "2"]}});
            let server = with(
                server("web"),
                &json!({"env": [{"name": "VERSION", "value": value}], "lifecycle": {"preStop": hook}}),
            );
            let fields = json!({
                "replicas": 3, "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            });
            workload("Deployment", "web", &server, &fields)
        };
        space.apply(&[version("one"), service("web", "ClusterIP")])?;
        space.kubectl(&["rollout", "status", "deployment/web", "--timeout", "90s"])?;
        let line = "until wget -q -O - http://web/hostname >/dev/null; do :; done; touch /began; \
             until test -e /end; do wget -q -O - http://web/hostname >/dev/null || echo failed; done";
        space.run(&pod("client", &[shell("client", &format!("{line}; echo all; {SERVE}"))]))?;
        eventually(30, "the client asks", || Ok(space.exec("client", "test -e /began").is_ok()))?;

        space.apply(&[version("two")])?;
        space.kubectl(&["rollout", "status", "deployment/web", "--timeout", "120s"])?;
        eventually(60, "the old pods are gone", || Ok(pods_of(space, "web")?.len() == 3))?;
        for pod in pods_of(space, "web")? {
            same("version", space.exec(&pod, "echo $VERSION")?.as_str(), "two\n")?;
        }
        space.exec("client", "touch /end")?;
        eventually(30, "the client has ended", || {
            Ok(space.kubectl(&["logs", "client"])?.contains("all"))
        })?;
        same("what the client saw", space.kubectl(&["logs", "client"])?.as_str(), "all\n")
    });
}

#[test]
fn a_job_tries_until_it_is_done() {
    test(|space| {
        let disk = json!([{"name": "work", "hostPath": {"path": format!("/run/{}", space.name), "type": "DirectoryOrCreate"}}]);
        let step = with(
            shell("step", "mkdir /work/first 2>/dev/null && exit 3; echo done"),
            &json!({"volumeMounts": [{"name": "work", "mountPath": "/work"}]}),
        );
        let fields = json!({"completions": 3, "parallelism": 2, "backoffLimit": 3});
        let mut job = workload("Job", "work", &step, &fields);
        job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        job["spec"]["template"]["spec"]["volumes"] = disk;
        space.apply(&[job])?;
        space.wait("job/work", "condition=Complete")?;
        let status = &space.get("job", "work")?["status"];
        ensure!(status["succeeded"] == 3 && status["failed"] == 1, "{status}");
        Ok(())
    });
}

#[test]
fn a_daemon_set_has_its_pod_on_the_node() {
    test(|space| {
        let agent = shell("agent", &format!("ip -o address show eth0; {SERVE}"));
        let mut set = workload("DaemonSet", "agent", &agent, &json!({}));
        set["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
        space.apply(&[set])?;
        space.kubectl(&["rollout", "status", "daemonset/agent", "--timeout", "90s"])?;
        let pods = pods_of(space, "agent")?;
        same("pods", pods.len(), 1)?;
        has(&space.kubectl(&["logs", &pods[0]])?, "10.77.0.2/24")
    });
}

#[test]
fn a_pod_has_init_containers_and_sidecars() {
    test(|space| {
        let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/work"}]});
        let step = |name: &str, line: &str| with(shell(name, line), &mount);
        let sidecar = with(
            step("sidecar", "echo sidecar >>/work/order; tail -n +1 -f /work/order"),
            &json!({"restartPolicy": "Always"}),
        );
        let mut pod = pod("steps", &[step("main", "echo main >>/work/order; sleep 1")]);
        pod["spec"] = with(
            pod["spec"].take(),
            &json!({
                "restartPolicy": "Never",
                "initContainers": [step("first", "echo first >>/work/order"), sidecar],
                "volumes": [{"name": "work", "emptyDir": {}}],
            }),
        );
        space.apply(&[pod])?;
        space.wait("pod/steps", "jsonpath={.status.phase}=Succeeded")?;
        let log = space.kubectl(&["logs", "steps", "--container", "sidecar"])?;
        same("the order", log.as_str(), "first\nsidecar\nmain\n")
    });
}

#[test]
fn who_fails_its_probes_gets_no_requests_or_starts_again() {
    test(|space| {
        let ready = json!({"exec": {"command": ["test", "!", "-e", "/sick"]}, "periodSeconds": 1});
        let web = with(server("web"), &json!({"readinessProbe": ready}));
        space.apply(&[
            workload("Deployment", "web", &web, &json!({"replicas": 2})),
            service("web", "ClusterIP"),
        ])?;
        space.kubectl(&["rollout", "status", "deployment/web", "--timeout", "90s"])?;
        let served = || -> Result<usize> {
            let slices = space.list("endpointslices", "kubernetes.io/service-name=web")?;
            let all =
                slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
            Ok(all.filter(|endpoint| endpoint["conditions"]["ready"] == true).count())
        };
        eventually(20, "both pods are asked", || Ok(served()? == 2))?;
        let sick = with(
            shell("sick", SERVE),
            &json!({
                "livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1},
            }),
        );
        space.apply(&[pod("sick", &[sick])])?;
        let pods = pods_of(space, "web")?;
        space.exec(&pods[0], "touch /sick")?;
        eventually(30, "one pod is asked", || Ok(served()? == 1))?;
        let started = || -> Result<bool> {
            let status = &space.get("pod", "sick")?["status"];
            Ok(status["containerStatuses"][0]["restartCount"].as_i64() >= Some(1))
        };
        eventually(60, "the sick one was started again", started)
    });
}
