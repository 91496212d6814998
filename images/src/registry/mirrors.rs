//! Which hosts serve a registry, in which order: containerd's directory of `hosts.toml`
//! files and docker's directories of certificates, read afresh for every pull.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::hosts_file::{self, Capabilities, Entry, HostsFile, TlsPaths};
use super::tls::Material;
use super::url::Base;
use crate::error::{Doing as _, Result};
use crate::limits::Limits;

/// A host to ask, with all that is needed to ask it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) base: Base,
    pub(crate) capabilities: Capabilities,
    /// Sent to this very host and to nobody it redirects to.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) tls: Material,
    pub(crate) dial_timeout: Option<Duration>,
    /// Whether it is the registry itself and no mirror of it.
    pub(crate) is_upstream: bool,
}

/// The hosts of a registry, and where that is written.
#[derive(Debug)]
pub(crate) struct Route {
    /// The file or directory that decided, where there is one.
    pub(crate) source: Option<PathBuf>,
    /// In the order in which they are asked; the registry itself is last.
    pub(crate) hosts: Vec<Host>,
    /// What a reader of the configuration should know, such as keys without effect.
    pub(crate) notes: Vec<String>,
}

/// Finds and reads what the directories say about a registry. Blocks.
///
/// A directory of the registry's own name, in any of `dirs`, comes before any `_default`.
/// The name is `host:port` or, as containerd also has it, `host_port_`.
///
/// # Errors
/// A file that cannot be read, is too long, or says what cannot be.
pub(crate) fn load(dirs: &[PathBuf], registry: &str, limits: &Limits) -> Result<Route> {
    let Some(dir) = find(dirs, registry)? else {
        return route(None, HostsFile::of(Entry::plain()), registry, limits);
    };
    let path = dir.join("hosts.toml");
    match read(&path, limits) {
        Ok(bytes) if !bytes.trim_ascii().is_empty() => {
            let text = String::from_utf8_lossy(&bytes);
            let file = hosts_file::parse(&text, &path, limits)?;
            route(Some(path), file, registry, limits)
        }
        Err(crate::Error::Io { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
            Err(source).doing(|| format!("read {}", path.display()))
        }
        Err(error @ crate::Error::Limit { .. }) => Err(error),
        // Without the file, or with an empty one, the directory is one of docker's.
        Ok(_) | Err(_) => {
            let upstream = Entry { tls: docker_certificates(&dir)?, ..Entry::plain() };
            route(Some(dir), HostsFile::of(upstream), registry, limits)
        }
    }
}

impl HostsFile {
    fn of(upstream: Entry) -> HostsFile {
        HostsFile { mirrors: Vec::new(), upstream, unknown: Vec::new() }
    }
}

fn find(dirs: &[PathBuf], registry: &str) -> Result<Option<PathBuf>> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    let own = dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name)));
    let default = dirs.iter().map(|dir| dir.join("_default"));
    for path in own.chain(default) {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Ok(Some(path)),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(error).doing(|| format!("look at {}", path.display())),
        }
    }
    Ok(None)
}

/// Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` are the client's.
fn docker_certificates(dir: &Path) -> Result<TlsPaths> {
    let mut tls = TlsPaths::default();
    let doing = || format!("list {}", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).doing(doing)? {
        paths.push(entry.doing(doing)?.path());
    }
    paths.sort();
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(path.clone()),
            Some("cert") => {
                let key = path.with_extension("key");
                tls.client.push((path.clone(), paths.contains(&key).then_some(key)));
            }
            _ => {}
        }
    }
    Ok(tls)
}

fn route(
    source: Option<PathBuf>,
    file: HostsFile,
    registry: &str,
    limits: &Limits,
) -> Result<Route> {
    let mut notes: Vec<String> = file
        .unknown
        .iter()
        .map(|key| format!("the key {key} is not known and has no effect"))
        .collect();
    let host = |entry: Entry, is_upstream: bool, notes: &mut Vec<String>| -> Result<Host> {
        let base = entry.base.unwrap_or_else(|| Base::of_registry(registry));
        if !base.origin.is_tls && entry.tls != TlsPaths::default() {
            notes.push(format!(
                "{base} is plain HTTP, so its ca, client and skip_verify have no effect"
            ));
        }
        if !entry.capabilities.pull && !entry.capabilities.resolve {
            notes.push(format!("{base} may neither pull nor resolve and is never asked"));
        }
        let tls = material(&entry.tls, limits)?;
        let Entry { capabilities, headers, dial_timeout, .. } = entry;
        Ok(Host { base, capabilities, headers, tls, dial_timeout, is_upstream })
    };
    let mut hosts = Vec::new();
    for entry in file.mirrors {
        hosts.push(host(entry, false, &mut notes)?);
    }
    hosts.push(host(file.upstream, true, &mut notes)?);
    Ok(Route { source, hosts, notes })
}

fn material(paths: &TlsPaths, limits: &Limits) -> Result<Material> {
    let mut material = Material { skip_verify: paths.skip_verify, ..Material::default() };
    for path in &paths.ca {
        material.ca.push((path.clone(), read(path, limits)?));
    }
    for (cert, key) in &paths.client {
        let key = key.as_ref().unwrap_or(cert);
        material.client.push((cert.clone(), read(cert, limits)?, read(key, limits)?));
    }
    Ok(material)
}

/// Reads a file of the configuration, up to its cap.
fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let cap = limits.hosts_file_bytes.0;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(cap + 1).read_to_end(&mut bytes))
        .doing(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > cap {
        return Err(limits.passed(path.display().to_string(), "hosts_file_bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes files below a directory and says which hosts a registry gets; `$D` stands for the directory.
    #[track_caller]
    fn check(files: &[(&str, &str)], registry: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let dirs = ["one", "two", "absent"].map(|name| dir.path().join(name));
        let found = match load(&dirs, registry, &Limits::default()) {
            Ok(route) => {
                let mut lines: Vec<String> = route
                    .hosts
                    .iter()
                    .map(|host| {
                        let files = host.tls.ca.len() + host.tls.client.len();
                        format!(
                            "{}{}",
                            host.base,
                            if files > 0 { format!(" {files} files") } else { String::new() }
                        )
                    })
                    .collect();
                lines.extend(route.source.map(|source| format!("by {}", source.display())));
                lines.extend(route.notes);
                lines.join(", ")
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(found.replace(dir.path().to_str().unwrap(), "$D"), expected);
    }

    const MIRROR: &str = "[host.\"https://m.io\"]";

    #[test]
    fn no_directory_means_the_registry_itself() {
        check(&[], "docker.io", "https://registry-1.docker.io/v2");
        check(&[("one/other.io/hosts.toml", MIRROR)], "r.io", "https://r.io/v2");
        check(&[("one/r.io", "a file")], "r.io", "https://r.io/v2");
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        check(
            &[("one/docker.io/hosts.toml", MIRROR)],
            "docker.io",
            "https://m.io/v2, https://registry-1.docker.io/v2, by $D/one/docker.io/hosts.toml",
        );
        check(
            &[("two/localhost:5000/hosts.toml", MIRROR)],
            "localhost:5000",
            "https://m.io/v2, http://localhost:5000/v2, by $D/two/localhost:5000/hosts.toml",
        );
        check(
            &[("two/r.io_5000_/hosts.toml", MIRROR)],
            "r.io:5000",
            "https://m.io/v2, https://r.io:5000/v2, by $D/two/r.io_5000_/hosts.toml",
        );
    }

    #[test]
    fn a_name_of_its_own_comes_before_the_default() {
        let files =
            [("one/_default/hosts.toml", MIRROR), ("two/r.io/hosts.toml", "server = \"s.io\"")];
        check(&files, "r.io", "https://s.io/v2, by $D/two/r.io/hosts.toml");
        check(&files, "q.io", "https://m.io/v2, https://q.io/v2, by $D/one/_default/hosts.toml");
    }

    #[test]
    fn docker_directories_hold_certificates() {
        check(
            &[
                ("one/r.io/ca.crt", "x"),
                ("one/r.io/client.cert", "x"),
                ("one/r.io/client.key", "x"),
                ("one/r.io/README", "x"),
            ],
            "r.io",
            "https://r.io/v2 2 files, by $D/one/r.io",
        );
        check(
            &[("one/r.io/hosts.toml", " \n"), ("one/r.io/ca.crt", "x")],
            "r.io",
            "https://r.io/v2 1 files, by $D/one/r.io",
        );
    }

    #[test]
    fn what_has_no_effect_is_noted() {
        check(
            &[(
                "one/r.io/hosts.toml",
                "servr = \"x\"\n[host.\"http://m\"]\nskip_verify = true\ncapabilities = [\"push\"]",
            )],
            "r.io",
            "http://m/v2, https://r.io/v2, by $D/one/r.io/hosts.toml, \
             the key servr is not known and has no effect, \
             http://m/v2 is plain HTTP, so its ca, client and skip_verify have no effect, \
             http://m/v2 may neither pull nor resolve and is never asked",
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        check(&[("one/r.io/hosts.toml", "ca = \"none.pem\"")], "r.io", "read $D/one/r.io/none.pem");
        check(
            &[("one/r.io/hosts.toml", &" ".repeat(300 << 10))],
            "r.io",
            "$D/one/r.io/hosts.toml is over the limit of 256 KiB (limits.hosts_file_bytes)",
        );
        check(
            &[("one/r.io/hosts.toml/x", "the file is a directory")],
            "r.io",
            "read $D/one/r.io/hosts.toml",
        );
        check(
            &[("one/r.io/hosts.toml", "=")],
            "r.io",
            "$D/one/r.io/hosts.toml: line 1: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`",
        );
    }
}
