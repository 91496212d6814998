//! Volumes that a kubelet makes without an API server, as a container sees them.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::kubelet::{Kubelet, container, pod};
use e2e::{same, test};
use serde_json::{Value, json};

use super::{SERVE, busybox, with, with_spec};

/// Runs a container to its end in a pod with volumes; returns what it wrote.
async fn output(kubelet: &Kubelet, name: &str, main: Value, spec: &Value) -> Result<String> {
    let pod = with_spec(with_spec(pod(name, &[main]), &json!({"restartPolicy": "Never"})), spec);
    kubelet.add(&pod)?;
    let ended =
        |pod: &Value| ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
    let pod = kubelet.until(name, "the pod has ended", ended).await?;
    let log = kubelet.logs(name, "main", "").await?;
    ensure!(pod["status"]["phase"] == "Succeeded", "{}: {log}", pod["status"]);
    Ok(log)
}

fn mounts(list: &[(&str, &str, Value)]) -> Value {
    let all = list
        .iter()
        .map(|(name, path, fields)| with(json!({"name": name, "mountPath": path}), fields));
    json!({"volumeMounts": all.collect::<Vec<_>>()})
}

#[test]
fn directories_of_a_pod_are_empty_and_shared() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let volumes = json!([
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        ]);
        let both = mounts(&[("disk", "/disk", json!({})), ("memory", "/memory", json!({}))]);
        let first = "ls -A /disk /memory; echo from init >/disk/file; echo from init >/memory/file; \
             mkdir -p /disk/sub/dir; echo sub >/disk/sub/dir/file";
        let init = with(busybox("init", first).await?, &both);
        let main = "cat /disk/file /memory/file /sub/file /expr/file; stat -f -c %T /memory; \
             df -m /memory | tail -n 1 | awk '{print $2}'; id -G; stat -c '%g %a' /disk; \
             (echo no >/read/file) 2>/dev/null || echo read-only";
        let main = with(
            busybox("main", main).await?,
            &with(
                mounts(&[
                    ("disk", "/disk", json!({})),
                    ("memory", "/memory", json!({})),
                    ("disk", "/sub", json!({"subPath": "sub/dir"})),
                    ("disk", "/expr", json!({"subPathExpr": "$(PART)/dir"})),
                    ("disk", "/read", json!({"readOnly": true})),
                ]),
                &json!({"env": [{"name": "PART", "value": "sub"}]}),
            ),
        );
        let spec = json!({
            "initContainers": [init], "volumes": volumes,
            "securityContext": {"fsGroup": 4321, "supplementalGroups": [1234]},
        });
        let text = output(&kubelet, "dirs", main, &spec).await?;
        let expected = "from init\nfrom init\nsub\nsub\ntmpfs\n8\n";
        let rest = text.strip_prefix(expected).ok_or_else(|| anyhow::anyhow!("{text}"))?;
        let lines: Vec<&str> = rest.lines().collect();
        ensure!(lines[0].contains("4321") && lines[0].contains("1234"), "{rest}");
        same("group and mode", &lines[1..], ["4321 2777", "read-only"])?;
        kubelet.finish(cx).await
    });
}

#[test]
fn paths_of_the_host_are_what_they_are_said_to_be() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let dir = cx.dir("host")?;
        std::fs::write(dir.join("file"), "from the host\n")?;
        std::fs::create_dir(dir.join("directory"))?;
        std::fs::set_permissions(dir.join("directory"), PermissionsExt::from_mode(0o711))?;
        let _socket = UnixListener::bind(dir.join("socket"))?;
        let types = [
            ("any", "directory", ""),
            ("directory", "directory", "Directory"),
            ("made", "made", "DirectoryOrCreate"),
            ("file", "file", "File"),
            ("new", "new", "FileOrCreate"),
            ("socket", "socket", "Socket"),
        ];
        let mut volumes: Vec<Value> = types
            .iter()
            .map(|(name, path, kind)| json!({"name": name, "hostPath": {"path": dir.join(path), "type": kind}}))
            .collect();
        volumes
            .push(json!({"name": "null", "hostPath": {"path": "/dev/null", "type": "CharDevice"}}));
        let mut list: Vec<(&str, String, Value)> =
            types.iter().map(|(name, _, _)| (*name, format!("/v/{name}"), json!({}))).collect();
        list.push(("null", "/v/null".into(), json!({})));
        let list: Vec<(&str, &str, Value)> = list
            .iter()
            .map(|(name, path, fields)| (*name, path.as_str(), fields.clone()))
            .collect();
        let line =
            "cat /v/file; stat -c '%n %F %a' /v/*; echo written >/v/new; echo inside >/v/made/file";
        let main = with(busybox("main", line).await?, &mounts(&list));
        let text = output(&kubelet, "host", main, &json!({"volumes": volumes})).await?;
        for line in [
            "from the host",
            "/v/any directory 711",
            "/v/directory directory 711",
            "/v/made directory 755",
            "/v/new regular empty file 644",
            "/v/socket socket 755",
            "/v/null character special file 666",
        ] {
            ensure!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
        same("a new file", std::fs::read_to_string(dir.join("new"))?, "written\n")?;
        same("a new directory", std::fs::read_to_string(dir.join("made/file"))?, "inside\n")?;

        // What is not what it should be keeps the pod from starting, and can be mended.
        let wrong = json!([{"name": "wrong", "hostPath": {"path": dir.join("later"), "type": "Directory"}}]);
        let main = with(busybox("main", SERVE).await?, &mounts(&[("wrong", "/wrong", json!({}))]));
        kubelet.add(&with_spec(pod("wrong", &[main]), &json!({"volumes": wrong})))?;
        let known = |pod: &Value| pod["status"]["phase"] == "Pending";
        kubelet.until("wrong", "the pod is known", known).await?;
        std::fs::create_dir(dir.join("later"))?;
        kubelet.ready("wrong").await?;
        kubelet.finish(cx).await
    });
}

#[test]
fn what_the_pod_is_stands_in_a_volume() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let item =
            |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
        let items = json!([item("name", "metadata.name"), item("labels", "metadata.labels")]);
        let volumes =
            json!([{"name": "plain", "downwardAPI": {"defaultMode": 0o400, "items": items}}]);
        let line = "cat /plain/name /plain/labels; echo; stat -Lc %a /plain/name; \
             touch /plain/x 2>/dev/null || echo read-only; cat /one; echo; env | grep ^WHERE";
        let volume =
            [("plain", "/plain", json!({})), ("plain", "/one", json!({"subPath": "name"}))];
        let main = with(
            with(busybox("main", line).await?, &mounts(&volume)),
            &json!({"env": [{"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}),
        );
        let mut pod =
            with_spec(pod("self", &[main]), &json!({"restartPolicy": "Never", "volumes": volumes}));
        pod["metadata"]["labels"] = json!({"shade": "green"});
        kubelet.add(&pod)?;
        let ended = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        kubelet.until("self", "the pod has succeeded", ended).await?;
        let log = kubelet.logs("self", "main", "").await?;
        same(
            "what it saw",
            log.as_str(),
            "self-nodeshade=\"green\"\n400\nread-only\nself-node\nWHERE=node\n",
        )?;
        kubelet.finish(cx).await
    });
}

/// Whether something is mounted at a place of the host.
fn is_mounted(place: &Path) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == place)))
}

#[test]
fn mounts_pass_as_far_as_the_pod_says() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let shared = kubelet.shared_dir("propagation")?;
        let volumes = json!([{"name": "shared", "hostPath": {"path": shared}}]);
        let mount = |propagation: &str| {
            mounts(&[("shared", "/shared", json!({"mountPropagation": propagation}))])
        };
        let maker =
            "mkdir -p /shared/made; mount -t tmpfs made /shared/made; echo here >/shared/made/file";
        let maker = with(
            with(busybox("maker", &format!("{maker}; {SERVE}")).await?, &mount("Bidirectional")),
            &json!({"securityContext": {"privileged": true}}),
        );
        let seer = with(busybox("seer", SERVE).await?, &mount("HostToContainer"));
        let blind = with(busybox("blind", SERVE).await?, &mount("None"));
        // All three see the directory before anything is mounted there.
        kubelet.add(&with_spec(pod("seers", &[seer, blind]), &json!({"volumes": volumes})))?;
        kubelet.ready("seers").await?;
        kubelet.add(&with_spec(pod("maker", &[maker]), &json!({"volumes": volumes})))?;
        kubelet.ready("maker").await?;
        let made = shared.join("made");
        e2e::eventually(20, "the mount reaches the host", async || is_mounted(&made)).await?;
        same(
            "seer",
            kubelet.run("seers", "seer", "cat /shared/made/file").await?.as_str(),
            "here\n",
        )?;
        let blind = kubelet.run("seers", "blind", "ls /shared/made").await?;
        ensure!(blind.is_empty(), "{blind}");
        kubelet.run("maker", "maker", "umount /shared/made").await?;
        ensure!(!is_mounted(&made)?, "the host still has the mount");
        let pod = kubelet.pod("maker").await?;
        ensure!(container(&pod, "maker")["restartCount"] == 0, "{}", pod["status"]);
        kubelet.finish(cx).await
    });
}
