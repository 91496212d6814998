//! CNI configuration files: which one is the network, and what it asks of each plugin (CNI 1.1, section 1).

use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Doing, Error, Result};

/// Versions of CNI that berth speaks, in rising order.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A file without a version means the first one (CNI 0.1).
const UNSAID: &str = VERSIONS[0];
/// A configuration is a page of text; more than this is a mistake.
const MAX_FILE: u64 = 1 << 20;
/// Plugins of one network.
const MAX_PLUGINS: usize = 64;
/// Entries of a directory with configurations.
const MAX_ENTRIES: usize = 1000;

/// A version of CNI that berth speaks, as an index into [`VERSIONS`]: they compare as they follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version(usize);

impl Version {
    /// The first with CHECK.
    pub const CHECK: Version = Version(4);
    /// The first whose addresses do not say of which family they are.
    pub const V1: Version = Version(5);
    /// The first with GC and STATUS.
    pub const V1_1: Version = Version(6);
    /// The first whose results have interfaces.
    pub const INTERFACES: Version = Version(2);

    /// None for a version that berth does not speak.
    pub fn parse(text: &str) -> Option<Version> {
        VERSIONS.iter().position(|known| *known == text).map(Version)
    }

    /// As files and plugins write it.
    pub fn text(self) -> &'static str {
        VERSIONS[self.0]
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.text().into()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Version, String> {
        Version::parse(&text).ok_or_else(|| format!("CNI version {text:?} is not known"))
    }
}

/// A network, as its file describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version that is spoken with its plugins.
    pub version: Version,
    /// What is said to each plugin, in the order of ADD; keys that berth does not know are kept.
    pub plugins: Vec<Map<String, Value>>,
    /// The plugins cannot be asked whether an attachment is as it was made.
    pub disable_check: bool,
    /// The plugins must not be told which attachments are valid: others use the network, too.
    pub disable_gc: bool,
    /// The file that it came from.
    pub source: PathBuf,
}

impl Network {
    /// For errors: the network and its file.
    pub fn shown(&self) -> String {
        format!("network {} ({})", self.name, self.source.display())
    }
}

/// The program of a plugin, without a directory. A network that was loaded has one for each plugin.
pub fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a plugin wants to be told of something.
pub fn has_capability(plugin: &Map<String, Value>, name: &str) -> bool {
    plugin.get("capabilities").and_then(|all| all.get(name)).and_then(Value::as_bool) == Some(true)
}

/// The network of these directories: the first file by name, of the first directory that has any. None where there is
/// no file. Blocks.
///
/// # Errors
/// That file cannot be read or understood. The next one is then not taken in its place: pods would be on another
/// network than the one that was meant.
pub fn load(directories: &[PathBuf]) -> Result<Option<Network>> {
    for directory in directories {
        if let Some(file) = files(directory, &["conf", "conflist", "json"])?.first() {
            return network(file).map(Some);
        }
    }
    Ok(None)
}

/// Files of a directory with one of these endings, in the order of their names. A directory that is not there has none.
fn files(directory: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let doing = || format!("list {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.doing(doing)?,
    };
    let mut found = Vec::new();
    for (count, entry) in entries.enumerate() {
        if count >= MAX_ENTRIES {
            let problem = format!("has more than {MAX_ENTRIES} entries");
            return Err(Error::invalid(directory.display().to_string(), problem));
        }
        let path = entry.doing(doing)?.path();
        let fits = path
            .extension()
            .is_some_and(|found| endings.iter().any(|ending| found.to_str() == Some(*ending)));
        if fits {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads one file; `.conf` and `.json` hold one plugin, `.conflist` a list. Blocks.
///
/// # Errors
/// `Invalid` names the file and the key.
pub fn network(file: &Path) -> Result<Network> {
    let is_list = file.extension().is_some_and(|ending| ending == "conflist");
    let content = object(file)?;
    if is_list {
        return list(file, &content);
    }
    if !content.contains_key("type") {
        // A list with the wrong ending is meant as a list.
        if content.contains_key("plugins") {
            return list(file, &content);
        }
        return Err(invalid(file, "type", "is missing; name the plugin"));
    }
    judge(file, &content, vec![content.clone()])
}

fn list(file: &Path, content: &Map<String, Value>) -> Result<Network> {
    let inlined = match content.get("plugins") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(plugins)) => plugins
            .iter()
            .map(|plugin| plugin.as_object().cloned())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| invalid(file, "plugins", "must be a list of objects"))?,
        Some(_) => return Err(invalid(file, "plugins", "must be a list of objects")),
    };
    let mut network = judge(file, content, inlined)?;
    if !flag(file, content, "loadOnlyInlinedPlugins")? {
        let directory = file.parent().unwrap_or(Path::new("/")).join(&network.name);
        for more in files(&directory, &["conf"])? {
            let plugin = object(&more)?;
            check_kind(&more, &plugin)?;
            network.plugins.push(plugin);
        }
    }
    match network.plugins.len() {
        0 => Err(invalid(file, "plugins", "names no plugin")),
        1..=MAX_PLUGINS => Ok(network),
        count => {
            Err(invalid(file, "plugins", &format!("has {count} plugins, {MAX_PLUGINS} at most")))
        }
    }
}

fn judge(
    file: &Path,
    content: &Map<String, Value>,
    plugins: Vec<Map<String, Value>>,
) -> Result<Network> {
    let name = match content.get("name") {
        Some(Value::String(name)) => name.clone(),
        None => return Err(invalid(file, "name", "is missing; give the network a name")),
        Some(_) => return Err(invalid(file, "name", "must be text")),
    };
    if !is_name(&name) {
        let problem = format!(
            "{name:?} must begin with a letter or digit and have only these, '_', '.' and '-'"
        );
        return Err(invalid(file, "name", &problem));
    }
    for plugin in &plugins {
        check_kind(file, plugin)?;
    }
    Ok(Network {
        name,
        version: version(file, content)?,
        plugins,
        disable_check: flag(file, content, "disableCheck")?,
        disable_gc: flag(file, content, "disableGC")?,
        source: file.into(),
    })
}

/// It becomes the name of a directory and of files of plugins.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.len() <= 255
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// It is looked for in directories, so it must not lead out of them.
fn check_kind(file: &Path, plugin: &Map<String, Value>) -> Result<()> {
    let kind = kind(plugin);
    if kind.is_empty() {
        return Err(invalid(file, "type", "is missing or no text; name the plugin"));
    }
    let leads_out = kind.contains('/') || kind == "." || kind == ".." || kind.contains('\0');
    if leads_out || kind.len() > 255 {
        return Err(invalid(file, "type", &format!("{kind:?} is no name of a program")));
    }
    Ok(())
}

/// The highest that both the file and berth know.
fn version(file: &Path, content: &Map<String, Value>) -> Result<Version> {
    let mut said: Vec<&str> = Vec::new();
    match content.get("cniVersion") {
        None => {}
        Some(Value::String(text)) => said.push(text),
        Some(_) => return Err(invalid(file, "cniVersion", "must be text, such as \"1.0.0\"")),
    }
    match content.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(versions)) => {
            for version in versions {
                let problem = "must be a list of texts";
                said.push(version.as_str().ok_or_else(|| invalid(file, "cniVersions", problem))?);
            }
        }
        Some(_) => return Err(invalid(file, "cniVersions", "must be a list of texts")),
    }
    said.retain(|text| !text.is_empty());
    if said.is_empty() {
        said.push(UNSAID);
    }
    said.iter().filter_map(|text| Version::parse(text)).max().ok_or_else(|| {
        let problem = format!(
            "{} is not spoken by this version of berth; write one of {}",
            said.join(", "),
            VERSIONS.join(", ")
        );
        invalid(file, "cniVersion", &problem)
    })
}

/// Some tools write flags as text.
fn flag(file: &Path, content: &Map<String, Value>, key: &str) -> Result<bool> {
    match content.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(_) => Err(invalid(file, key, "must be true or false")),
    }
}

fn object(file: &Path) -> Result<Map<String, Value>> {
    let text = read(file).doing(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::invalid(file.display().to_string(), format!("no JSON: {error}")))
}

/// A FIFO of this name does not hold the daemon up.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = std::fs::File::from(rustix::fs::open(file, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

fn invalid(file: &Path, key: &str, problem: &str) -> Error {
    Error::invalid(format!("{}: {key}", file.display()), problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new(files: &[(&str, &str)]) -> Dir {
            let dir = Dir(tempfile::tempdir().unwrap());
            for (name, text) in files {
                let path = dir.0.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            dir
        }

        fn load(&self) -> Result<Option<Network>> {
            load(&[self.0.path().join("missing"), self.0.path().into()])
        }

        fn network(&self) -> Network {
            self.load().unwrap().unwrap()
        }
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"one","x":{"y":[1]}},{"type":"two"}]}"#;

    #[track_caller]
    fn check_refused(name: &str, text: &str, words: &str) {
        let error = Dir::new(&[(name, text)]).load().unwrap_err();
        let error = chain(&error);
        assert!(error.contains(words) && error.contains(name), "{error}");
    }

    #[test]
    fn the_first_file_by_name_is_the_network() {
        let single = r#"{"name":"single","type":"one"}"#;
        let dir = Dir::new(&[("20-b.conflist", LIST), ("10-a.conf", single), ("05.txt", "x")]);
        assert_eq!(dir.network().name, "single");
        assert_eq!(dir.network().version.text(), "0.1.0");
        let dir = Dir::new(&[("20-b.conflist", LIST), ("30-a.conf", single)]);
        assert_eq!(dir.network().name, "net");
        assert_eq!(Dir::new(&[("readme", "x")]).load().unwrap(), None);
    }

    #[test]
    fn what_is_not_known_is_kept() {
        let network = Dir::new(&[("a.conflist", LIST)]).network();
        assert_eq!(network.plugins[0]["x"]["y"][0], 1);
        let back: Network =
            serde_json::from_str(&serde_json::to_string(&network).unwrap()).unwrap();
        assert_eq!(back, network);
    }

    #[test]
    fn the_highest_common_version_is_spoken() {
        let check = |versions: &str, expected: &str| {
            let text = format!(r#"{{{versions}"name":"n","plugins":[{{"type":"p"}}]}}"#);
            let network = Dir::new(&[("a.conflist", &text)]).network();
            assert_eq!(network.version.text(), expected, "{versions}");
        };
        check(r#""cniVersion":"0.3.1","#, "0.3.1");
        check(r#""cniVersion":"0.3.1","cniVersions":["1.0.0","1.1.0","2.0.0"],"#, "1.1.0");
        check(r#""cniVersion":"1.1.0","cniVersions":["0.4.0"],"#, "1.1.0");
        check("", "0.1.0");
        assert!(Version::V1 < Version::V1_1 && Version::CHECK < Version::V1);
        assert_eq!(Version::CHECK.text(), "0.4.0");
        assert_eq!(Version::INTERFACES.text(), "0.3.0");
    }

    #[test]
    fn plugins_of_the_networks_directory_come_after_those_of_the_list() {
        let more = r#"{"type":"three"}"#;
        let kinds = |text: &str| {
            let dir = Dir::new(&[("a.conflist", text), ("net/9.conf", more), ("net/1.conf", more)]);
            let network = dir.network();
            network.plugins.iter().map(|plugin| kind(plugin).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(LIST), ["one", "two", "three", "three"]);
        let inlined = LIST.replacen('{', r#"{"loadOnlyInlinedPlugins":true,"#, 1);
        assert_eq!(kinds(&inlined), ["one", "two"]);
    }

    #[test]
    fn a_bad_file_is_named_with_its_key() {
        check_refused("a.conflist", "{", "no JSON");
        check_refused("a.conflist", "[]", "no JSON");
        check_refused("a.conflist", r#"{"plugins":[{"type":"x"}]}"#, "name: is missing");
        check_refused("a.conflist", r#"{"name":"../x","plugins":[{"type":"x"}]}"#, "name: ");
        check_refused("a.conflist", r#"{"name":"x"}"#, "plugins: names no plugin");
        check_refused("a.conflist", r#"{"name":"x","plugins":[{}]}"#, "type: is missing");
        check_refused("a.conflist", r#"{"name":"x","plugins":[{"type":"../sh"}]}"#, "no name of");
        check_refused("a.conf", r#"{"name":"x"}"#, "type: is missing");
        let future = r#"{"cniVersion":"2.0.0","name":"x","plugins":[{"type":"x"}]}"#;
        check_refused("a.conflist", future, "2.0.0 is not spoken");
        check_refused("a.json", &" ".repeat(2 << 20), "larger than 1 MiB");
    }

    #[test]
    fn capabilities_are_what_a_plugin_declares() {
        let plugin: Map<String, Value> =
            serde_json::from_str(r#"{"capabilities":{"dns":true,"bandwidth":false}}"#).unwrap();
        assert!(has_capability(&plugin, "dns"));
        assert!(!has_capability(&plugin, "bandwidth") && !has_capability(&plugin, "mac"));
    }
}
