//! Volumes that come from the API server: configMap, secret, projected.

use anyhow::ensure;
use e2e::same;
use serde_json::json;

use crate::space::{SERVE, eventually, has, pod, shell, test, with};

#[test]
fn what_the_api_server_keeps_is_in_the_pod() {
    test(|space| {
        space.apply(&[
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
                "data": {"shade": "green", "size": "7"},
            }),
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"},
                "stringData": {"password": "s3cret"},
            }),
        ])?;
        let sources = json!([
            {"configMap": {"name": "settings", "items": [{"key": "shade", "path": "a/shade"}]}},
            {"secret": {"name": "login"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "token", "audience": "berth", "expirationSeconds": 600}},
        ]);
        let main = with(
            shell("main", SERVE),
            &json!({
                "env": [{"name": "SIZE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "size"}}}],
                "envFrom": [{"secretRef": {"name": "login"}}],
                "volumeMounts": [
                    {"name": "settings", "mountPath": "/settings"},
                    {"name": "login", "mountPath": "/login", "readOnly": true},
                    {"name": "all", "mountPath": "/all"},
                    {"name": "settings", "mountPath": "/etc/shade", "subPath": "shade"},
                ],
            }),
        );
        let mut pod = pod("user", &[main]);
        pod["spec"]["volumes"] = json!([
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "login", "secret": {"secretName": "login", "defaultMode": 0o400}},
            {"name": "all", "projected": {"sources": sources}},
        ]);
        space.run(&pod)?;
        for (file, text) in [
            ("/settings/shade", "green"),
            ("/settings/size", "7"),
            ("/login/password", "s3cret"),
            ("/etc/shade", "green"),
            ("/all/a/shade", "green"),
            ("/all/password", "s3cret"),
            ("/all/name", "user"),
        ] {
            same(file, space.exec("user", &format!("cat {file}"))?.as_str(), text)?;
        }
        same("environment", space.exec("user", "echo $SIZE $password")?.as_str(), "7 s3cret\n")?;
        same("mode", space.exec("user", "stat -L -c %a /login/password")?.as_str(), "400\n")?;
        same("memory", space.exec("user", "stat -f -c %T /login")?.as_str(), "tmpfs\n")?;
        ensure!(
            space.exec("user", "echo no >/settings/shade").is_err(),
            "a configMap can be written"
        );
        // A token has three parts; the one for the API server itself is there without being asked for.
        for token in ["/all/token", "/var/run/secrets/kubernetes.io/serviceaccount/token"] {
            let text = space.exec("user", &format!("cat {token}"))?;
            same(token, text.split('.').count(), 3)?;
        }
        has(
            &space.exec("user", "cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt")?,
            "BEGIN CERTIFICATE",
        )?;

        // The kubelet replaces a link; a mount of one file keeps what it had.
        space.kubectl(&[
            "patch",
            "configmap",
            "settings",
            "--patch",
            r#"{"data":{"shade":"blue"}}"#,
        ])?;
        eventually(90, "the change is in the pod", || {
            Ok(space.exec("user", "cat /settings/shade /all/a/shade")? == "blueblue")
        })?;
        same("one file", space.exec("user", "cat /etc/shade")?.as_str(), "green")
    });
}
