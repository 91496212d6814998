//! What a test is handed: a namespace of the cluster, and kubectl.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::netns::success;
use serde_json::{Value, json};

/// Images that hack/cluster makes.
pub(crate) const BUSYBOX: &str = "berth.test/busybox:1";
pub(crate) const AGNHOST: &str = "berth.test/agnhost:1";

/// A shell that ends at SIGTERM as a good server does, and until then does nothing.
pub(crate) const SERVE: &str = "trap 'exit 0' TERM; sleep 100000 & wait";

/// hack/cluster with a subcommand.
pub(crate) fn cluster(args: &[&str]) -> Command {
    let mut command =
        Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../hack/cluster"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs kubectl, which must end well, and returns what it printed.
pub(crate) fn kubectl(args: &[&str]) -> Result<String> {
    // Nothing that is asked here takes longer; a stream that hangs must not hang the test.
    let output = cluster(&["exec", "timeout", "120", "kubectl"]).args(args).output();
    success(&format!("kubectl {}", args.join(" ")), output.context("run hack/cluster")?)
}

/// A namespace that goes with the test.
#[derive(Debug)]
pub(crate) struct Space {
    /// Its name.
    pub(crate) name: String,
}

/// Runs a test in a new namespace; panics with the reason and what the namespace looks like when it fails.
#[track_caller]
pub(crate) fn test(body: impl FnOnce(&Space) -> Result<()>) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let space = Space { name: format!("test-{}-{number}", std::process::id()) };
    let outcome = space.begin().and_then(|()| body(&space));
    let state = match &outcome {
        Ok(()) => String::new(),
        Err(_) => space.kubectl(&["describe", "pods"]).unwrap_or_default(),
    };
    let ended = kubectl(&["delete", "namespace", &space.name, "--timeout", "90s"]);
    if let Err(error) = outcome.and(ended.map(drop)) {
        panic!("{error:#}\n\n{state}");
    }
}

impl Space {
    /// Pods may be made once the namespace has its service account.
    fn begin(&self) -> Result<()> {
        kubectl(&["create", "namespace", &self.name])?;
        eventually(30, "the namespace has its service account", || {
            Ok(self.kubectl(&["get", "serviceaccount", "default"]).is_ok())
        })
    }

    /// kubectl in this namespace.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        kubectl(&[&["--namespace", &self.name], args].concat())
    }

    /// kubectl in this namespace as a command that hangs at most a minute.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command =
            cluster(&["exec", "timeout", "60", "kubectl", "--namespace", self.name.as_str()]);
        command.args(args);
        command
    }

    /// kubectl in this namespace with a terminal. The words must need no quotes.
    pub(crate) fn with_terminal(&self, args: &str) -> Result<String> {
        let line = format!("stty rows 31 columns 97; kubectl --namespace {} {args}", self.name);
        let mut command = cluster(&["exec", "timeout", "60", "script", "--quiet", "--return"]);
        command.args(["--command", &line, "/dev/null"]);
        success(args, command.output()?)
    }

    /// Makes objects.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let output = feed(self.command(&["apply", "--filename", "-"]), &list.to_string())?;
        success(&format!("kubectl apply {list}"), output).map(drop)
    }

    /// An object as the API server has it.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", kind, name, "--output", "json"])?)?)
    }

    /// All objects of a kind, of which `selector` may name some.
    pub(crate) fn list(&self, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let text = self.kubectl(&["get", kind, "--selector", selector, "--output", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits for a condition of an object.
    pub(crate) fn wait(&self, object: &str, condition: &str) -> Result<()> {
        let condition = format!("--for={condition}");
        self.kubectl(&["wait", object, &condition, "--timeout", "90s"]).map(drop)
    }

    /// Makes a pod and waits until it is ready.
    pub(crate) fn run(&self, pod: &Value) -> Result<()> {
        self.apply(std::slice::from_ref(pod))?;
        let name = pod["metadata"]["name"].as_str().context("a pod without name")?;
        self.wait(&format!("pod/{name}"), "condition=Ready")
    }

    /// Runs a line of shell in the first container of a pod, which must end well.
    pub(crate) fn exec(&self, pod: &str, line: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", line])
    }
}

/// Runs a command with an input.
pub(crate) fn feed(mut command: Command, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("an input was asked for")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

/// Asks again and again until the answer is true, for at most so many seconds.
pub(crate) fn eventually(seconds: u64, what: &str, ask: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + e2e::scaled(Duration::from_secs(seconds));
    while !ask()? {
        if Instant::now() > deadline {
            bail!("not within {seconds} s: {what}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// A pod of containers with a short grace.
pub(crate) fn pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 3, "containers": containers},
    })
}

/// A container that runs a line of shell.
pub(crate) fn shell(name: &str, line: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "command": ["sh", "-c", line]})
}

/// A container that answers HTTP on port 8080, and is ready when it does.
pub(crate) fn server(name: &str) -> Value {
    json!({
        "name": name, "image": AGNHOST, "command": ["/agnhost", "netexec", "--http-port", "8080"],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/hostname", "port": 8080}, "periodSeconds": 1},
    })
}

/// Adds fields to an object.
pub(crate) fn with(mut object: Value, fields: &Value) -> Value {
    if let (Some(object), Some(fields)) = (object.as_object_mut(), fields.as_object()) {
        object.extend(fields.clone());
    }
    object
}

/// A Deployment, a DaemonSet or a Job of a container.
pub(crate) fn workload(kind: &str, name: &str, container: &Value, fields: &Value) -> Value {
    let labels = json!({"app": name});
    let mut template = pod(name, std::slice::from_ref(container));
    template["metadata"] = json!({"labels": labels});
    let spec = json!({"template": {"metadata": template["metadata"], "spec": template["spec"]}});
    let group = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    let mut object =
        json!({"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec});
    if kind != "Job" {
        object["spec"]["selector"] = json!({"matchLabels": labels});
    }
    object["spec"] = with(object["spec"].take(), fields);
    object
}

/// That something is in a text.
pub(crate) fn has(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{part:?} is not in {text:?}");
    Ok(())
}
