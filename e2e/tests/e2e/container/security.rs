//! What a container may do: capabilities, no_new_privs, seccomp, privileged.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::image::{Entry, LayerBuilder, base};
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;

/// The capabilities that a container gets where nobody says anything: those of docker and containerd.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// /proc/self/status of a container's process.
async fn status(
    cx: &Cx,
    pod: &Pod,
    container: &ContainerBuilder,
) -> Result<BTreeMap<String, String>> {
    let text = cx.output(pod, &container.clone().command(&["cat", "/proc/self/status"])).await?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    Ok(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
}

/// The five sets: inheritable, permitted, effective, bounding, ambient.
fn sets(status: &BTreeMap<String, String>) -> Result<[u64; 5]> {
    let set = |name: &str| -> Result<u64> {
        Ok(u64::from_str_radix(status.get(name).context("no such set")?, 16)?)
    };
    Ok([set("CapInh")?, set("CapPrm")?, set("CapEff")?, set("CapBnd")?, set("CapAmb")?])
}

/// What this machine can give at all.
fn possible() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
    Ok(u64::from_str_radix(line.trim(), 16)?)
}

fn capability(number: u32) -> u64 {
    1 << number
}

const CHOWN: u32 = 0;
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;

fn capabilities(
    container: ContainerBuilder,
    add: &[&str],
    drop: &[&str],
    ambient: &[&str],
) -> ContainerBuilder {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    container.security(|security| {
        security.capabilities = Some(Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            add_ambient_capabilities: owned(ambient),
        });
    })
}

#[test]
fn capabilities_are_the_default_ones_with_what_is_added_and_dropped() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let possible = possible()?;
        let default = DEFAULT_CAPABILITIES & possible;
        let plain = || ContainerBuilder::new(&image);
        for (what, container, set) in [
            ("nothing said", plain(), default),
            (
                "one added",
                capabilities(plain(), &["NET_ADMIN"], &[], &[]),
                default | capability(NET_ADMIN),
            ),
            (
                "one dropped",
                capabilities(plain(), &[], &["CHOWN"], &[]),
                default & !capability(CHOWN),
            ),
            ("all dropped", capabilities(plain(), &[], &["ALL"], &[]), 0),
            (
                "all dropped, one added",
                capabilities(plain(), &["CHOWN"], &["ALL"], &[]),
                capability(CHOWN),
            ),
            ("all added", capabilities(plain(), &["ALL"], &[], &[]), possible),
            (
                "all added, one dropped",
                capabilities(plain(), &["ALL"], &["SYS_ADMIN"], &[]),
                possible & !capability(SYS_ADMIN),
            ),
        ] {
            same(what, sets(&status(cx, &pod, &container).await?)?, [0, set, set, set, 0])?;
        }
        Ok(())
    });
}

#[test]
fn a_user_has_capabilities_only_where_they_are_ambient() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let default = DEFAULT_CAPABILITIES & possible()?;
        let user = || ContainerBuilder::new(&image).user(1000, None);
        same("a user", sets(&status(cx, &pod, &user()).await?)?, [0, 0, 0, default, 0])?;
        let one = capability(NET_BIND_SERVICE);
        let ambient = capabilities(user(), &["NET_BIND_SERVICE"], &[], &["NET_BIND_SERVICE"]);
        same("ambient", sets(&status(cx, &pod, &ambient).await?)?, [one, one, one, default, one])
    });
}

#[test]
fn no_new_privs_makes_setuid_programs_inert() {
    test(async |cx| {
        let program = std::fs::read(base::probe_path()?)?;
        let layer = LayerBuilder::new().entry(Entry::file("bin/suid", program).mode(0o4755));
        let image = cx.pull_image(&base::busybox()?.layer(layer)?.build()).await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for (no_new_privs, expected) in [(false, "0\n"), (true, "1000\n")] {
            let container = ContainerBuilder::new(&image).user(1000, None);
            let container = container.security(|security| security.no_new_privs = no_new_privs);
            let text = cx.output(&pod, &container.clone().command(&["/bin/suid", "euid"])).await?;
            same("effective user", text.as_str(), expected)?;
            let flag = &status(cx, &pod, &container.name(&format!("status-{no_new_privs}")))
                .await?["NoNewPrivs"];
            same("NoNewPrivs", flag.as_str(), if no_new_privs { "1" } else { "0" })?;
        }
        Ok(())
    });
}

#[test]
fn seccomp_is_off_by_default_and_on_where_asked_for() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().privileged()).await?;
        let profile = |kind: i32, path: &str| {
            Some(SecurityProfile { profile_type: kind, localhost_ref: path.into() })
        };
        let file = cx.scratch.disk.join("profile.json");
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname", "mkdir", "mkdirat"],
            "action": "SCMP_ACT_ERRNO", "errnoRet": 42}]}"#;
        std::fs::write(&file, text)?;
        let path = file.to_string_lossy();
        for (what, profile, privileged, mode) in [
            ("nothing", None, false, "0"),
            ("the default", profile(0, ""), false, "2"),
            ("unconfined", profile(1, ""), false, "0"),
            ("a file", profile(2, &path), false, "2"),
            ("a file by the old prefix", profile(2, &format!("localhost/{path}")), false, "2"),
            ("a file for a privileged container", profile(2, &path), true, "0"),
        ] {
            let container =
                ContainerBuilder::new(&image).security(|security| security.seccomp = profile);
            let container = if privileged { container.privileged() } else { container };
            same(what, status(cx, &pod, &container).await?["Seccomp"].as_str(), mode)?;
        }
        let container =
            ContainerBuilder::new(&image).security(|security| security.seccomp = profile(2, &path));
        let container = capabilities(container, &["SYS_ADMIN"], &[], &[]);
        let outcome = cx.output(&pod, &container.command(&["probe", "try", "sethostname"])).await?;
        same("a call that the file forbids", outcome.as_str(), "sethostname: errno 42\n")
    });
}

#[test]
fn the_default_profile_follows_the_capabilities() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let container = || {
            ContainerBuilder::new(&image).seccomp_default().command(&[
                "probe",
                "try",
                "sethostname",
                "bpf",
                "unshare_user",
            ])
        };
        let text = cx.output(&pod, &container()).await?;
        same(
            "without SYS_ADMIN",
            text.as_str(),
            "sethostname: EPERM\nbpf: EPERM\nunshare_user: EPERM\n",
        )?;
        let with = capabilities(container(), &["SYS_ADMIN"], &[], &[]);
        let text = cx.output(&pod, &with).await?;
        ensure!(text.contains("sethostname: ok\n"), "with SYS_ADMIN: {text}");
        Ok(())
    });
}

#[test]
fn a_privileged_container_may_do_everything() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().privileged()).await?;
        let container = ContainerBuilder::new(&image).privileged();
        let all = possible()?;
        same("capabilities", sets(&status(cx, &pod, &container).await?)?, [0, all, all, all, 0])?;
        let id = cx.run(&pod, &container.name("idle").idle()).await?;
        let devices = cx.exec(&id, &["ls", "/dev"]).await?;
        ensure!(devices.lines().any(|name| name == "kmsg"), "no devices of the host: {devices}");
        cx.exec(&id, &["mount", "-t", "tmpfs", "t", "/mnt"])
            .await
            .or(cx.exec(&id, &["sh", "-c", "mkdir /mnt; mount -t tmpfs t /mnt"]).await)?;
        let mounts = cx.exec(&id, &["cat", "/proc/self/mountinfo"]).await?;
        let sys = mounts.lines().find(|line| line.contains(" /sys ")).context("no /sys")?;
        ensure!(sys.contains(" rw,"), "{sys}");
        ensure!(
            !mounts.lines().any(|line| line.contains(" /proc/")),
            "something of /proc is masked:\n{mounts}"
        );
        Ok(())
    });
}

#[test]
fn init_and_exec_have_the_same_identity() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        for uid in [0, 1, 1000, 65534, (1 << 31) - 1] {
            let container = ContainerBuilder::new(&image).user(uid, None).seccomp_default();
            let container = container.security(|security| security.no_new_privs = true).idle();
            let id = cx.run(&pod, &container).await?;
            let fields = |text: &str| -> Vec<String> {
                let wanted = [
                    "Umask",
                    "Uid",
                    "Gid",
                    "Groups",
                    "CapInh",
                    "CapPrm",
                    "CapEff",
                    "CapBnd",
                    "CapAmb",
                    "NoNewPrivs",
                    "Seccomp:",
                ];
                let lines =
                    text.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
                lines.map(|line| line.trim_end().to_owned()).collect()
            };
            let init = fields(&std::fs::read_to_string(format!(
                "/proc/{}/status",
                cx.cri().pid(&id).await?
            ))?);
            let exec = fields(&cx.exec(&id, &["cat", "/proc/self/status"]).await?);
            same(&format!("user {uid}"), exec, init.clone())?;
            ensure!(init.contains(&"Umask:\t0022".to_owned()), "{init:?}");
        }
        Ok(())
    });
}
