//! A kubelet without an API server on the daemon of a test: it runs the pods whose manifests lie in a directory.
//!
//! It has the network namespace of the daemon and a mount namespace of its own, in which its fixed directories are
//! empty ones, and the sysctls that it would set for the whole machine seem to be set. What it mounts for volumes
//! reaches the daemon, as on a node. Its cgroups lie below the one that the harness makes for the test's pods.

mod http;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use ::http::Method;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

pub use self::http::Client;
use crate::case::lock;
use crate::daemon::unmount_below;
use crate::fault::tls::Authority;
use crate::{Cx, cgroup};

/// The name of the node: the end of the name of every pod that comes from a manifest.
pub const NODE: &str = "node";

/// Address of the node. Its link has both ends in the namespace: a kubelet wants an address that is not loopback.
const ADDRESS: &str = "10.77.0.2";

const PORT: u16 = 10250;

/// What a kubelet wants of the whole machine (kubelet's setupKernelTunables).
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Where the kubelet's directories are is $1, what remains is its command line. What is mounted here outside that
/// directory must not be seen by anybody else.
const ENTER: &str = r#"
for place in / /proc /var /var/lib /var/log; do mount --make-private $place 2>/dev/null || :; done
mount -t tmpfs -o mode=755 kubelet /var/lib
mount -t tmpfs -o mode=755 kubelet /var/log
for sysctl in $(cd "$1/sysctl" && find . -type f); do mount --bind "$1/sysctl/$sysctl" "/proc/sys/$sysctl"; done
shift
exec "$@"
"#;

/// A kubelet under test.
#[derive(Debug)]
pub struct Kubelet {
    /// Requests to its port.
    pub http: Client,
    dir: PathBuf,
    cgroup: String,
    child: Mutex<Option<Child>>,
}

/// A program of Kubernetes: hack/e2e builds what the tests need and names the directory.
pub fn program(name: &str) -> Result<PathBuf> {
    let dir = std::env::var_os("BERTH_KUBE_DIR")
        .context("BERTH_KUBE_DIR is not set: hack/e2e sets it, `hack/kube` prints it")?;
    let path = Path::new(&dir).join(name);
    ensure!(path.exists(), "{} is missing: `hack/kube {name}` builds it", path.display());
    Ok(path)
}

impl Kubelet {
    /// Starts a kubelet with fields of its configuration as a test wants them, and waits until it answers.
    pub async fn start(cx: &Cx, fields: Value) -> Result<Kubelet> {
        for step in [
            "link add e2e0 type veth peer name e2e1",
            &format!("addr add {ADDRESS}/24 dev e2e0"),
            "link set e2e0 up",
            "link set e2e1 up",
        ] {
            cx.netns.ip(step)?;
        }
        let dir = cx.dir("kubelet")?;
        for name in ["root", "manifests", "logs", "plugins"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        // Volumes are mounted below, for the daemon too.
        let none = None::<&str>;
        mount(Some(&dir), &dir, none, MsFlags::MS_BIND, none)?;
        mount(none, &dir, none, MsFlags::MS_SHARED, none)?;
        for (name, value) in SYSCTLS {
            let file = dir.join("sysctl").join(name);
            std::fs::create_dir_all(file.parent().context("a file has a parent")?)?;
            std::fs::write(file, format!("{value}\n"))?;
        }
        let authority = Authority::new()?;
        authority.write_server(&dir.join("server.crt"), &dir.join("server.key"))?;
        authority.write(&dir.join("ca.crt"))?;
        let kubelet = Kubelet {
            http: Client {
                netns: cx.netns.clone(),
                address: SocketAddr::from(([127, 0, 0, 1], PORT)),
                tls: Arc::new(authority.client()?),
            },
            cgroup: lock(&cx.cgroup).parent.clone(),
            child: Mutex::default(),
            dir,
        };
        kubelet.configure(&cx.daemon.socket, &fields)?;
        kubelet.restart().await?;
        Ok(kubelet)
    }

    fn configure(&self, socket: &Path, fields: &Value) -> Result<()> {
        let at = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        std::fs::write(at("resolv.conf"), format!("nameserver {ADDRESS}\n"))?;
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
            "staticPodPath": at("manifests"),
            "podLogsDir": at("logs"),
            "volumePluginDir": at("plugins"),
            "resolvConf": at("resolv.conf"),
            "tlsCertFile": at("server.crt"),
            "tlsPrivateKeyFile": at("server.key"),
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "failCgroupV1": false,
            "failSwapOn": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup,
            "makeIPTablesUtilChains": false,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "50Mi"},
            "imageGCHighThresholdPercent": 100,
            "serializeImagePulls": false,
            "syncFrequency": "2s",
            // Without it a container that ends again is started after 10, 20, 40 s and so on.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        });
        std::fs::write(at("config"), config.to_string())?;
        self.change(fields)
    }

    /// Changes fields of its configuration.
    fn change(&self, fields: &Value) -> Result<()> {
        let file = self.dir.join("config");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        let all = config.as_object_mut().context("a configuration is an object")?;
        all.extend(fields.as_object().cloned().unwrap_or_default());
        Ok(std::fs::write(file, config.to_string())?)
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.http.netns.command("unshare");
        command.args(["--mount", "--propagation", "unchanged", "sh", "-euc", ENTER, "sh"]);
        command.arg(&self.dir).arg(program("kubelet")?);
        command.arg("--config").arg(self.dir.join("config"));
        command.arg("--root-dir").arg(self.dir.join("root"));
        command.args(["--hostname-override", NODE, "--node-ip", ADDRESS, "--v", "2"]);
        Ok(command)
    }

    /// Starts it again on the same directories and waits until it answers.
    pub async fn restart(&self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *lock(&self.child) = Some(command.spawn().context("start kubelet")?);
        crate::eventually(60, "the kubelet answers", async || {
            let ended = match lock(&self.child).as_mut() {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if let Some(status) = ended {
                bail!("the kubelet has ended: {status}: {}", self.log_tail(20));
            }
            Ok(self.http.get("/healthz").await.is_ok())
        })
        .await
    }

    /// Kills it where it stands.
    pub fn kill(&self) -> Result<()> {
        let mut child = lock(&self.child).take().context("the kubelet does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Gives it a pod to run.
    pub fn add(&self, pod: &Value) -> Result<()> {
        let name = pod["metadata"]["name"].as_str().context("a pod without name")?;
        // A file that begins with a dot is not read.
        let part = self.dir.join("manifests").join(format!(".{name}"));
        std::fs::write(&part, pod.to_string())?;
        Ok(std::fs::rename(part, self.manifest(name))?)
    }

    /// Takes a pod away from it.
    pub fn take_away(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.manifest(name))?)
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{name}.json"))
    }

    /// A pod as it sees it, with its status; null while it knows none of that name.
    pub async fn pod(&self, name: &str) -> Result<Value> {
        let list: Value = serde_json::from_str(&self.http.get("/pods").await?)?;
        let name = format!("{name}-{NODE}");
        let mut pods = list["items"].as_array().into_iter().flatten();
        Ok(pods.find(|pod| pod["metadata"]["name"] == name).cloned().unwrap_or_default())
    }

    /// Waits until a pod is as wanted, and returns it.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let last = Mutex::new(Value::Null);
        let outcome = crate::eventually(90, what, async || {
            let pod = self.pod(name).await?;
            let done = wanted(&pod);
            *lock(&last) = pod;
            Ok(done)
        })
        .await;
        let last = lock(&last).take();
        outcome.with_context(|| {
            format!(
                "pod {name}: {}\n\nThe kubelet's log ends with:\n{}",
                last["status"],
                self.log_tail(30)
            )
        })?;
        Ok(last)
    }

    /// Waits until a pod is ready.
    pub async fn ready(&self, name: &str) -> Result<Value> {
        self.until(name, "the pod is ready", is_ready).await
    }

    /// What a container has logged, through the kubelet.
    pub async fn logs(&self, pod: &str, container: &str, query: &str) -> Result<String> {
        self.http.get(&format!("/containerLogs/default/{pod}-{NODE}/{container}?{query}")).await
    }

    /// Runs a command in a container by ExecSync, through the kubelet.
    pub async fn run(&self, pod: &str, container: &str, command: &str) -> Result<String> {
        let path = format!("/run/default/{pod}-{NODE}/{container}?cmd={}", escape(command));
        let (status, body) = self.http.answer(Method::POST, &path).await?;
        ensure!(status.is_success(), "{command}: {status}: {body}");
        Ok(body)
    }

    /// The URL of a verb on a container, or on a pod where `container` is empty.
    pub fn url(&self, verb: &str, pod: &str, container: &str, query: &str) -> String {
        let path = format!("{verb}/default/{pod}-{NODE}/{container}");
        format!("https://{}/{}?{query}", self.http.address, path.trim_end_matches('/'))
    }

    /// Whom a client of its port has to trust, a file.
    pub fn authority(&self) -> String {
        self.dir.join("ca.crt").to_string_lossy().into_owned()
    }

    /// Where it keeps the logs of pods.
    pub fn pod_logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A directory of a test's own on a mount that kubelet, daemon and containers share.
    pub fn shared_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("shared").join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// What it logs, of all its lives.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Takes all pods away, waits until the kubelet has removed them and their volumes, and ends it.
    pub async fn finish(self, cx: &Cx) -> Result<()> {
        for entry in std::fs::read_dir(self.dir.join("manifests"))? {
            std::fs::remove_file(entry?.path())?;
        }
        let containers = async || {
            let all = cx.cri().list(None).await?;
            Ok(all.iter().all(|container| container.state != 1))
        };
        let outcome =
            crate::eventually(60, "the kubelet has ended its containers", containers).await;
        outcome.with_context(|| format!("the kubelet's log ends with:\n{}", self.log_tail(30)))?;
        let pods = self.dir.join("root/pods");
        let volumes = async || Ok(mounts_below(&pods)?.is_empty());
        crate::eventually(60, "the kubelet has unmounted its volumes", volumes).await?;
        self.kill()?;
        // What a kubelet collects once a minute, and its own cgroups.
        cx.remove_all().await?;
        let needle = format!("{}/kubepods", self.cgroup);
        crate::eventually(10, "the kubelet's cgroups can be removed", async || {
            let dirs = cgroup::find(&needle)?;
            Ok(dirs.iter().rev().filter(|dir| std::fs::remove_dir(dir).is_err()).count() == 0)
        })
        .await
    }
}

impl Drop for Kubelet {
    /// The cgroups that a failed test has left go with the daemon's.
    fn drop(&mut self) {
        self.kill().ok();
        unmount_below(&self.dir);
    }
}

/// Mount points at or below a directory.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let at = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
    Ok(mounts.lines().filter_map(at).filter(|at| at.starts_with(dir)).collect())
}

/// A query parameter as a URL has it.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// A pod of containers, with a kubelet's defaults but a short grace.
pub fn pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 5, "containers": containers},
    })
}

/// Whether a pod says that it is ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.is_some_and(|all| all.iter().any(ready))
}

/// The status of a container of a pod, of any kind; null while there is none.
pub fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let kinds = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all =
        kinds.iter().flat_map(|kind| pod["status"][kind].as_array().into_iter().flatten());
    all.find(|status| status["name"] == name).unwrap_or(&Value::Null)
}
