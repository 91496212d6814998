//! The image config: what to run by default, and the diff ids of the layers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Platform, or_default, parse_json};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;

/// What an image says about its containers (config.md). Fields that a document leaves out are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// When the image was made, as RFC 3339 text that nobody has checked.
    pub created: Option<String>,
    /// What the image was built for; empty words where the document has none.
    pub platform: Platform,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// Comes before the arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Where the process starts; empty means `/`.
    pub working_dir: String,
    /// Paths that get a volume.
    pub volumes: Vec<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// The signal that stops the container: `SIGQUIT` or a number.
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// How the layers came about, for show.
    pub history: Vec<History>,
    /// Digests of the plain tars, lowest layer first.
    pub diff_ids: Vec<Digest>,
}

/// One step of the making of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct History {
    /// When.
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(deserialize_with = "or_default")]
    pub empty_layer: bool,
}

/// The document as it is written. Unknown fields are other tools' business.
#[derive(Deserialize)]
struct Raw {
    created: Option<String>,
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: RawConfig,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RawRootfs,
    #[serde(default, deserialize_with = "or_default")]
    history: Vec<History>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, Option<String>>>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// Docker took a lone string for a list of one, so old images have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRootfs {
    r#type: Option<String>,
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Reads a config. `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Limit`] for one that is too long, [`Error::Invalid`] for one that is no image config.
    pub fn parse(bytes: &[u8], what: &str, limits: &Limits) -> Result<ImageConfig> {
        if bytes.len() as u64 > limits.config_bytes.0 {
            return Err(limits.passed(what, "config_bytes"));
        }
        let raw: Raw = parse_json(bytes, what)?;
        if raw.rootfs.r#type.as_deref().is_some_and(|kind| kind != "layers") {
            return Err(Error::invalid(what, "rootfs.type must be \"layers\""));
        }
        let words = |words: Option<Words>| match words {
            Some(Words::One(word)) => vec![word],
            Some(Words::Many(words)) => words,
            None => Vec::new(),
        };
        let config = ImageConfig {
            created: raw.created,
            platform: Platform {
                os: raw.os.unwrap_or_default(),
                architecture: raw.architecture.unwrap_or_default(),
                variant: raw.variant.unwrap_or_default(),
            },
            user: raw.config.user.unwrap_or_default(),
            env: raw.config.env.unwrap_or_default(),
            entrypoint: words(raw.config.entrypoint),
            cmd: words(raw.config.cmd),
            working_dir: raw.config.working_dir.unwrap_or_default(),
            volumes: raw.config.volumes.unwrap_or_default().into_keys().collect(),
            labels: raw
                .config
                .labels
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.unwrap_or_default()))
                .collect(),
            stop_signal: raw.config.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: raw.config.exposed_ports.unwrap_or_default().into_keys().collect(),
            history: raw.history,
            diff_ids: raw.rootfs.diff_ids.unwrap_or_default(),
        };
        config.without_nul(what)?;
        Ok(config)
    }

    /// What goes to execve or names a path cannot hold a NUL; better said here than when a container starts.
    fn without_nul(&self, what: &str) -> Result<()> {
        let texts = [("User", &self.user), ("WorkingDir", &self.working_dir)];
        let lists = [
            ("Env", &self.env),
            ("Entrypoint", &self.entrypoint),
            ("Cmd", &self.cmd),
            ("Volumes", &self.volumes),
        ];
        let fields = texts
            .into_iter()
            .chain(lists.into_iter().flat_map(|(name, list)| list.iter().map(move |v| (name, v))));
        for (name, value) in fields {
            if value.contains('\0') {
                return Err(Error::invalid(what, format!("config.{name} must not hold a NUL")));
            }
        }
        Ok(())
    }

    /// Whether containers of the image can run on a machine. Words that the config leaves out do not matter.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names both platforms.
    pub fn runs_on(&self, host: &Platform, what: &str) -> Result<()> {
        let or_host = |word: &str, host: &str| if word.is_empty() { host } else { word }.to_owned();
        let mut platform = Platform {
            os: or_host(&self.platform.os, &host.os),
            architecture: or_host(&self.platform.architecture, &host.architecture),
            variant: self.platform.variant.clone(),
        };
        if host.rank(&platform).is_some() {
            return Ok(());
        }
        // Configs are careless with variants: only the architecture is taken at its word.
        platform.variant.clear();
        if host.rank(&platform).is_some() {
            return Ok(());
        }
        Err(Error::invalid(
            what,
            format!(
                "is for {}, and this machine is {host}",
                crate::error::shown(&self.platform.to_string(), 60)
            ),
        ))
    }
}
