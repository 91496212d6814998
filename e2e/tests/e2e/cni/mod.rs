//! CNI: real plugins of two versions, a plugin of ours that does everything wrong, and the choice of the network.

mod real;
mod wrong;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use e2e::daemon::Options;
use e2e::netns::success;
use e2e::pod::Pod;
use e2e::{Cx, Setup};
use k8s_cri::v1::{PodSandboxState, PodSandboxStatus};
use serde_json::{Value, json};

/// What Debian 12 and 13 have; it speaks CNI 1.0.
const DEBIAN: &str = "/usr/lib/cni";

/// The newest plugins, which speak CNI 1.1; built once.
fn newest() -> Result<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || -> Result<PathBuf> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/cni-plugins");
        let printed =
            success(script, Command::new(script).output().context("run hack/cni-plugins")?)?;
        Ok(printed.trim().into())
    };
    let dir = DIR.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    dir.clone().map_err(|error| anyhow::anyhow!(error))
}

/// A daemon whose configurations and plugins are in directories of the test.
fn setup(mode: &str) -> Setup {
    let config = format!(
        "[network]\nmode = \"{mode}\"\ncni_timeout = \"5s\"\n\
         cni_conf_dirs = [\"{{disk}}/cni/net.d\"]\ncni_bin_dirs = [\"{{disk}}/bin\", \"{{disk}}/own\"]\n"
    );
    let daemon = Options { config: Some(config), ..Options::default() };
    Setup { cold: true, daemon, ..Setup::default() }
}

/// Puts a configuration into its place, as an installer does.
fn install(cx: &Cx, file: &str, network: &Value) -> Result<()> {
    let dir = cx.dir("cni/net.d")?;
    std::fs::write(dir.join(".new"), network.to_string())?;
    Ok(std::fs::rename(dir.join(".new"), dir.join(file))?)
}

/// Makes a directory with plugins the one that is searched.
fn plugins(cx: &Cx, dir: &Path) -> Result<()> {
    Ok(std::os::unix::fs::symlink(dir, cx.scratch.disk.join("bin"))?)
}

/// Whether the network is ready, and what is said of it.
async fn network_status(cx: &Cx) -> Result<(bool, String)> {
    let status = cx.cri().status().await?.status.context("no status")?;
    let condition = status.conditions.into_iter().find(|one| one.r#type == "NetworkReady");
    let condition = condition.context("no condition NetworkReady")?;
    Ok((condition.status, format!("{}: {}", condition.reason, condition.message)))
}

async fn network_is(cx: &Cx, ready: bool, words: &str) -> Result<()> {
    let last = std::sync::Mutex::new(String::new());
    let is = async || {
        let (now, text) = network_status(cx).await?;
        let found = now == ready && text.contains(words);
        *e2e::case::lock(&last) = format!("{now}, {text}");
        Ok(found)
    };
    let outcome = e2e::eventually(20, &format!("NetworkReady is {ready} with {words:?}"), is).await;
    outcome.with_context(|| e2e::case::lock(&last).clone())
}

async fn status(cx: &Cx, pod: &str) -> Result<PodSandboxStatus> {
    cx.cri().pod_status(pod).await?.status.context("no status")
}

fn is_ready(status: &PodSandboxStatus) -> bool {
    status.state() == PodSandboxState::SandboxReady
}

/// All addresses of a pod, in the order in which they are told.
async fn addresses(cx: &Cx, pod: &Pod) -> Result<Vec<String>> {
    let network = status(cx, &pod.id).await?.network.context("no network")?;
    let more = network.additional_ips.into_iter().map(|one| one.ip);
    Ok(std::iter::once(network.ip).chain(more).collect())
}

/// The address management of real plugins, in a directory of the test.
fn host_local(cx: &Cx, subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let routes: Vec<Value> = subnets
        .iter()
        .map(|subnet| json!({"dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }}))
        .collect();
    json!({"type": "host-local", "dataDir": cx.scratch.disk.join("ipam"), "ranges": ranges, "routes": routes})
}

/// Addresses that are taken in a network.
fn taken(cx: &Cx, network: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(cx.scratch.disk.join("ipam").join(network));
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    Ok(names
        .filter(|name| name.starts_with(|first: char| first.is_ascii_hexdigit()) && name != "lock")
        .collect())
}

/// Intents that the daemon has on its disk.
fn intents(cx: &Cx) -> Vec<String> {
    let entries = std::fs::read_dir(cx.daemon.root.join("network/cni"));
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Plugins of ours, by a script that a process of its own has written: one that is being written cannot be run.
fn own_plugins(cx: &Cx, names: &[&str]) -> Result<()> {
    let dir = cx.dir("own")?;
    let here = &cx.scratch.disk;
    std::fs::create_dir_all(here.join("held"))?;
    let text = include_str!("plugin.sh").replace("@DIR@", &here.to_string_lossy());
    std::fs::write(here.join("plugin.txt"), text)?;
    for name in names {
        let copy = Command::new("cp").arg(here.join("plugin.txt")).arg(dir.join(name)).status()?;
        ensure!(copy.success(), "copy a plugin");
        std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o755))?;
    }
    let network = json!({
        "cniVersion": "1.1.0", "name": "own",
        "plugins": names.iter().map(|name| json!({"type": name})).collect::<Vec<_>>(),
    });
    install(cx, "10-own.conflist", &network)
}

/// What a plugin of ours does from now on; empty: what it should.
fn misbehave(cx: &Cx, plugin: &str, mode: &str) -> Result<()> {
    Ok(std::fs::write(cx.scratch.disk.join(format!("mode-{plugin}")), mode)?)
}

/// Calls of plugins of ours so far, as "plugin VERB sandbox netns".
fn calls(cx: &Cx) -> Vec<String> {
    let text = std::fs::read_to_string(cx.scratch.disk.join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn count(cx: &Cx, what: &str) -> usize {
    calls(cx).iter().filter(|call| call.starts_with(what)).count()
}

/// What plugins of ours have given to sandboxes and not taken back.
fn held(cx: &Cx) -> Result<usize> {
    Ok(std::fs::read_dir(cx.scratch.disk.join("held"))?.count())
}

/// Nothing is left of any attachment.
async fn all_given_back(cx: &Cx) -> Result<()> {
    let what = "all attachments are given back";
    let outcome =
        e2e::eventually(60, what, async || Ok(held(cx)? == 0 && intents(cx).is_empty())).await;
    if let Err(error) = outcome {
        bail!("{error}: {:?}, calls {:#?}", intents(cx), calls(cx));
    }
    Ok(())
}
