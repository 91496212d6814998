//! The verbs of CNI for a whole network: each plugin in its turn (CNI 1.1, section 3).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::config::{Network, Version, has_capability, kind};
use super::exec::{Run, RunFile, last_line, run};
use super::result::{self, PluginError, code, plain};
use crate::error::{Error, Result};

/// Where plugins are, and how long one may take.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// Directories, searched in order.
    pub directories: Vec<PathBuf>,
    /// For each run.
    pub deadline: Duration,
}

/// What a plugin is told of the attachment that it is about.
#[derive(Debug)]
pub struct Target<'a> {
    /// The sandbox's id.
    pub container: &'a str,
    /// Path of its network namespace; None where that is gone.
    pub netns: Option<&'a Path>,
    /// Name of the pod's link.
    pub interface: &'a str,
    /// Names and values with semicolons between.
    pub args: &'a str,
    /// For plugins that declare them.
    pub capabilities: &'a Map<String, Value>,
    /// Of this attachment.
    pub file: &'a RunFile,
}

/// An attachment that GC must leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Valid {
    /// The sandbox's id.
    pub container: String,
    /// Name of the pod's link.
    pub interface: String,
}

impl Plugins {
    /// The program of a plugin.
    ///
    /// # Errors
    /// `NotFound` names the directories.
    pub fn find(&self, kind: &str) -> Result<PathBuf> {
        let paths = self.directories.iter().map(|directory| directory.join(kind));
        paths.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            let directories: Vec<_> =
                self.directories.iter().map(|one| one.display().to_string()).collect();
            let what = format!("CNI plugin {kind} in any of {}", directories.join(", "));
            Error::NotFound { what }
        })
    }

    /// That all plugins of a network are there.
    ///
    /// # Errors
    /// The first that is not.
    pub fn find_all(&self, network: &Network) -> Result<()> {
        network.plugins.iter().try_for_each(|plugin| self.find(kind(plugin)).map(drop))
    }

    /// Attaches: the result of the last plugin. Blocks, for at most the deadline for each plugin.
    ///
    /// # Errors
    /// The first plugin that fails; what those before it have made is there until DEL.
    pub fn add(&self, network: &Network, target: &Target<'_>) -> Result<Value> {
        let mut previous = None;
        for plugin in &network.plugins {
            let call = Call { network, plugin, verb: "ADD", target: Some(target) };
            let output = self.call(&call, call.request(previous.as_ref()))?;
            let parsed = result::parse(&output, network.version);
            previous = Some(parsed.map_err(|problem| call.failed(problem.into()))?);
        }
        Ok(previous.unwrap_or_else(|| json!({"cniVersion": network.version.text()})))
    }

    /// Detaches, with the result that ADD had if it had one. May be repeated. Blocks as [`Plugins::add`].
    ///
    /// # Errors
    /// The first plugin that fails. Those before it in the list are not asked then: what they would give away, such
    /// as the address, what is left of this one's work still refers to.
    pub fn del(&self, network: &Network, target: &Target<'_>, added: Option<&Value>) -> Result<()> {
        let added = added.filter(|_| network.version >= Version::CHECK);
        for plugin in network.plugins.iter().rev() {
            let call = Call { network, plugin, verb: "DEL", target: Some(target) };
            match self.call(&call, call.request(added)) {
                Err(error) if is_code(&error, code::UNKNOWN_CONTAINER) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Asks whether an attachment is as ADD left it. True without asking where that cannot be asked. Blocks.
    ///
    /// # Errors
    /// The first plugin that finds a difference, or fails.
    pub fn check(&self, network: &Network, target: &Target<'_>, added: &Value) -> Result<()> {
        if network.disable_check || network.version < Version::CHECK {
            return Ok(());
        }
        for plugin in &network.plugins {
            let call = Call { network, plugin, verb: "CHECK", target: Some(target) };
            self.call(&call, call.request(Some(added)))?;
        }
        Ok(())
    }

    /// Has plugins give back whatever is not of a valid attachment. No ADD or DEL may run meanwhile. Blocks.
    ///
    /// # Errors
    /// The first plugin that fails; all are asked.
    pub fn gc(&self, network: &Network, valid: &[Valid], file: &RunFile) -> Result<()> {
        if network.disable_gc || network.version < Version::V1_1 {
            return Ok(());
        }
        let valid: Vec<Value> = valid
            .iter()
            .map(|one| json!({"containerID": one.container, "ifname": one.interface}))
            .collect();
        let mut first = Ok(());
        for plugin in &network.plugins {
            let call = Call { network, plugin, verb: "GC", target: None };
            let mut request = call.bare_request();
            request.insert("cni.dev/valid-attachments".into(), valid.clone().into());
            // The name that an early text of the specification had (libcni sends both).
            request.insert("cni.dev/attachments".into(), valid.clone().into());
            first = first.and(self.call_with(&call, &request, file).map(drop));
        }
        first
    }

    /// Asks whether the plugins can serve. Ok without asking where that cannot be asked. Blocks.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn status(&self, network: &Network, file: &RunFile) -> Result<()> {
        self.find_all(network)?;
        if network.version < Version::V1_1 {
            return Ok(());
        }
        for plugin in &network.plugins {
            let call = Call { network, plugin, verb: "STATUS", target: None };
            self.call_with(&call, &call.bare_request(), file)?;
        }
        Ok(())
    }

    /// The versions of CNI that a plugin speaks. Blocks.
    ///
    /// # Errors
    /// It is not there, or does not say.
    pub fn versions(&self, plugin: &str, file: &RunFile) -> Result<Vec<String>> {
        let program = self.find(plugin)?;
        let variables = [("CNI_COMMAND", "VERSION".to_owned()), ("CNI_PATH", self.path())];
        let input = json!({"cniVersion": Version::V1_1.text()}).to_string();
        let ended = run(&Run {
            program: &program,
            variables: &variables,
            input: input.as_bytes(),
            file,
            deadline: self.deadline,
        })?;
        let answer: Value = serde_json::from_slice(&ended.output).unwrap_or_default();
        let versions = answer["supportedVersions"].as_array().map(|versions| {
            versions.iter().filter_map(Value::as_str).map(plain).collect::<Vec<_>>()
        });
        versions.ok_or_else(|| Error::Failed {
            doing: format!("ask {} for its versions", program.display()),
            source: format!("it printed {:?}", plain(&String::from_utf8_lossy(&ended.output)))
                .into(),
        })
    }

    fn path(&self) -> String {
        let directories: Vec<_> =
            self.directories.iter().map(|one| one.display().to_string()).collect();
        directories.join(":")
    }

    fn call(&self, call: &Call<'_>, request: Map<String, Value>) -> Result<Vec<u8>> {
        match call.target {
            Some(target) => self.call_with(call, &request, target.file),
            None => Ok(Vec::new()),
        }
    }

    fn call_with(
        &self,
        call: &Call<'_>,
        request: &Map<String, Value>,
        file: &RunFile,
    ) -> Result<Vec<u8>> {
        let program = self.find(kind(call.plugin)).map_err(|error| call.failed(error.into()))?;
        let input = serde_json::to_vec(request).map_err(|error| call.failed(error.into()))?;
        let mut variables = vec![("CNI_COMMAND", call.verb.to_owned()), ("CNI_PATH", self.path())];
        if let Some(target) = call.target {
            let netns = target.netns.map(|path| path.display().to_string()).unwrap_or_default();
            variables.extend([
                ("CNI_CONTAINERID", target.container.to_owned()),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", target.interface.to_owned()),
                ("CNI_ARGS", target.args.to_owned()),
            ]);
        }
        let ended = run(&Run {
            program: &program,
            variables: &variables,
            input: &input,
            file,
            deadline: self.deadline,
        })
        .map_err(|error| call.failed(error.into()))?;
        if ended.status.success() {
            return Ok(ended.output);
        }
        let error = PluginError::parse(&ended.output);
        Err(call.failed(match error {
            Some(error) => error.into(),
            None => unexplained(&ended.status.to_string(), &ended.output, &ended.log).into(),
        }))
    }
}

/// What there is to say of a plugin that failed without an error of CNI.
fn unexplained(status: &str, output: &[u8], log: &str) -> String {
    let said = if log.is_empty() { String::from_utf8_lossy(output) } else { last_line(log).into() };
    match plain(&said) {
        said if said.is_empty() => format!("it ended with {status} and said nothing"),
        said => format!("it ended with {status}: {said}"),
    }
}

/// One plugin in its turn.
struct Call<'a> {
    network: &'a Network,
    plugin: &'a Map<String, Value>,
    verb: &'static str,
    target: Option<&'a Target<'a>>,
}

impl Call<'_> {
    fn failed(&self, source: crate::error::BoxError) -> Error {
        let doing = format!(
            "CNI {} with plugin {} of {}",
            self.verb,
            kind(self.plugin),
            self.network.shown()
        );
        Error::Failed { doing, source }
    }

    /// The plugin's own configuration with what belongs to the network.
    fn bare_request(&self) -> Map<String, Value> {
        let mut request = self.plugin.clone();
        request.insert("name".into(), self.network.name.clone().into());
        request.insert("cniVersion".into(), self.network.version.text().into());
        request
    }

    fn request(&self, previous: Option<&Value>) -> Map<String, Value> {
        let mut request = self.bare_request();
        if let Some(previous) = previous {
            request.insert("prevResult".into(), previous.clone());
        }
        let all = self.target.into_iter().flat_map(|target| target.capabilities);
        let wanted = all.filter(|(name, _)| has_capability(self.plugin, name));
        let wanted: Map<String, Value> =
            wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !wanted.is_empty() {
            request.insert("runtimeConfig".into(), wanted.into());
        }
        request
    }
}

/// Whether a plugin failed with this code.
pub fn is_code(error: &(dyn std::error::Error + 'static), wanted: u64) -> bool {
    let found = error.downcast_ref::<PluginError>().map(|error| error.code == wanted);
    found.unwrap_or_else(|| error.source().is_some_and(|source| is_code(source, wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let plugins = json!([
            {"type": "first", "capabilities": {"dns": true, "portMappings": false}, "own": {"x": 1}},
            {"type": "second"},
        ]);
        Network {
            name: "net".into(),
            version: Version::V1,
            plugins: plugins
                .as_array()
                .unwrap()
                .iter()
                .map(|plugin| plugin.as_object().unwrap().clone())
                .collect(),
            disable_check: false,
            disable_gc: false,
            source: "/etc/cni/net.d/1.conflist".into(),
        }
    }

    #[test]
    fn a_plugin_is_told_what_it_declares() {
        let network = network();
        let capabilities = json!({"dns": {"servers": ["1.1.1.1"]}, "portMappings": [], "mac": "x"});
        let file = RunFile::new("/nowhere".into());
        let target = Target {
            container: "id",
            netns: None,
            interface: "eth0",
            args: "",
            capabilities: capabilities.as_object().unwrap(),
            file: &file,
        };
        let request = |plugin: usize, previous: Option<&Value>| {
            let plugin = &network.plugins[plugin];
            let call = Call { network: &network, plugin, verb: "ADD", target: Some(&target) };
            Value::Object(call.request(previous))
        };
        let expected = json!({
            "type": "first", "capabilities": {"dns": true, "portMappings": false}, "own": {"x": 1},
            "name": "net", "cniVersion": "1.0.0", "runtimeConfig": {"dns": {"servers": ["1.1.1.1"]}},
        });
        assert_eq!(request(0, None), expected);
        let previous = json!({"ips": []});
        let expected = json!({"type": "second", "name": "net", "cniVersion": "1.0.0", "prevResult": {"ips": []}});
        assert_eq!(request(1, Some(&previous)), expected);
    }

    #[test]
    fn an_error_names_plugin_network_and_file() {
        let plugins = Plugins { directories: vec!["/no/dir".into()], deadline: Duration::MAX };
        let file = RunFile::new("/nowhere".into());
        let error = plugins.status(&network(), &file).unwrap_err();
        assert_eq!(error.to_string(), "CNI plugin first in any of /no/dir does not exist");
        let network = network();
        let call =
            Call { network: &network, plugin: &network.plugins[1], verb: "DEL", target: None };
        let inner = PluginError { code: 3, msg: "gone".into(), details: String::new() };
        let error = call.failed(inner.into());
        let text = crate::error::chain(&error);
        assert_eq!(
            text,
            "CNI DEL with plugin second of network net (/etc/cni/net.d/1.conflist): code 3: gone"
        );
        assert!(is_code(&error, code::UNKNOWN_CONTAINER) && !is_code(&error, code::TRY_AGAIN));
    }

    #[test]
    fn a_silent_failure_is_told_as_it_was() {
        assert_eq!(unexplained("signal: 9", b"", ""), "it ended with signal: 9 and said nothing");
        assert_eq!(unexplained("exit 1", b"{", "a\nb\n"), "it ended with exit 1: b");
        assert_eq!(unexplained("exit 1", b"x\0", ""), "it ended with exit 1: x");
    }
}
