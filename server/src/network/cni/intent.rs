//! The log of intents: what was attached, or was going to be, by exactly which configuration.
//!
//! An intent is on the disk before the first plugin runs and until DEL has succeeded, so whatever happens to the
//! daemon, the machine or the configuration in between, DEL is called with what ADD was called with. It lies below the
//! root directory and outlives a reboot. It is written by rename and not synced: what a power cut tears is dropped, and
//! GC covers it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::Digest as _;

use super::config::Network;
use super::exec::RunFile;
use crate::error::{Doing, Error, Result};
use crate::id::SandboxId;
use crate::store::gone_is_fine;

/// First word of a file, with the version of its form.
const FORM: &str = "berth-cni-1";

/// One attachment of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// Of which sandbox.
    pub sandbox: SandboxId,
    /// Its pod, as namespace/name, for messages.
    pub pod: String,
    /// The network as it was configured then.
    pub network: Network,
    /// What CNI_ARGS was.
    pub args: String,
    /// What plugins were told that declared it.
    pub capabilities: Map<String, Value>,
    /// Where the network namespace is pinned.
    pub netns: PathBuf,
    /// Name of the pod's link.
    pub interface: String,
    /// The result of ADD; None where it has not succeeded, or not yet.
    pub result: Option<Value>,
    /// DELs that have failed.
    pub failures: u32,
    /// How the last of them failed.
    pub problem: String,
    /// Nobody but this log and the background cares for it any more.
    pub abandoned: bool,
}

/// The directory with the intents.
#[derive(Debug)]
pub struct Log(PathBuf);

impl Log {
    /// In a directory, which is made when there is something to write, or by [`Log::prepare`].
    pub fn new(directory: PathBuf) -> Log {
        Log(directory)
    }

    /// Makes the directory. Blocks.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare(&self) -> Result<()> {
        std::fs::create_dir_all(&self.0).doing(|| format!("make {}", self.0.display()))
    }

    /// All intents, in the order of their sandboxes. Damaged files are dropped with a warning. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load(&self) -> Result<Vec<Intent>> {
        let doing = || format!("list {}", self.0.display());
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.doing(doing)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.doing(doing)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(id) = name.and_then(|name| SandboxId::from_name(&name)) else { continue };
            match decode(&path).filter(|intent| intent.sandbox == id) {
                Some(intent) => found.push(intent),
                None => {
                    tracing::warn!(path = %path.display(), "a note of a CNI attachment is damaged: it is dropped");
                    gone_is_fine(std::fs::remove_file(&path))
                        .doing(|| format!("remove {}", path.display()))?;
                }
            }
        }
        found.sort_by(|one: &Intent, other| one.sandbox.cmp(&other.sandbox));
        Ok(found)
    }

    /// Writes an intent down. Blocks.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, intent: &Intent) -> Result<()> {
        let path = self.path(&intent.sandbox);
        let doing = || format!("write {}", path.display());
        let json = serde_json::to_vec(intent)
            .map_err(|error| Error::Failed { doing: doing(), source: Box::new(error) })?;
        let mut content = format!("{FORM} {}\n", checksum(&json)).into_bytes();
        content.extend(json);
        let temporary = self.0.join(format!(".{}", intent.sandbox));
        match std::fs::write(&temporary, &content) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.0).doing(doing)?;
                std::fs::write(&temporary, &content).doing(doing)?;
            }
            other => other.doing(doing)?,
        }
        std::fs::rename(&temporary, &path).doing(doing)
    }

    /// Forgets an intent. Blocks.
    ///
    /// # Errors
    /// Those of removing, but for one that is not there.
    pub fn erase(&self, sandbox: &SandboxId) -> Result<()> {
        let path = self.path(sandbox);
        gone_is_fine(std::fs::remove_file(&path)).doing(|| format!("remove {}", path.display()))
    }

    /// Where the plugins of a sandbox find their input.
    pub fn run_file(&self, sandbox: &SandboxId) -> RunFile {
        RunFile::new(self.0.join(format!("{sandbox}.run")))
    }

    /// The same for a verb that is about no sandbox.
    pub fn run_file_of(&self, verb: &str) -> RunFile {
        RunFile::new(self.0.join(format!("{verb}.run")))
    }

    fn path(&self, sandbox: &SandboxId) -> PathBuf {
        self.0.join(sandbox.as_str())
    }
}

fn decode(path: &Path) -> Option<Intent> {
    let content = std::fs::read(path).ok()?;
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let (header, json) = (std::str::from_utf8(&content[..end]).ok()?, &content[end + 1..]);
    let whole = header == format!("{FORM} {}", checksum(json));
    whole.then(|| serde_json::from_slice(json).ok()).flatten()
}

fn checksum(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::cni::config::Version;
    use serde_json::json;

    fn intent() -> Intent {
        Intent {
            sandbox: SandboxId::random(),
            pod: "default/web".into(),
            network: Network {
                name: "net".into(),
                version: Version::V1_1,
                plugins: vec![Map::from_iter([("type".to_owned(), json!("one"))])],
                disable_check: true,
                disable_gc: false,
                source: "/x.conflist".into(),
            },
            args: "A=B".into(),
            capabilities: Map::new(),
            netns: "/run/x".into(),
            interface: "eth0".into(),
            result: None,
            failures: 0,
            problem: String::new(),
            abandoned: false,
        }
    }

    #[test]
    fn an_intent_is_there_until_it_is_erased() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("cni"));
        assert_eq!(log.load().unwrap(), []);
        let mut one = intent();
        log.write(&one).unwrap();
        one.result = Some(json!({"ips": []}));
        log.write(&one).unwrap();
        assert_eq!(log.load().unwrap(), [one.clone()]);
        log.erase(&one.sandbox).unwrap();
        log.erase(&one.sandbox).unwrap();
        assert_eq!(log.load().unwrap(), []);
    }

    #[test]
    fn a_torn_intent_is_dropped_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().into());
        let (whole, torn) = (intent(), intent());
        log.write(&whole).unwrap();
        log.write(&torn).unwrap();
        let path = dir.path().join(torn.sandbox.as_str());
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert_eq!(log.load().unwrap(), [whole]);
        assert!(!path.exists());
    }
}
