//! Platforms: what an image was built for, and which of several fits a machine best.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, quoted};

/// Operating system, architecture and variant, in Go's words (image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default, deserialize_with = "super::or_default")]
    pub os: String,
    /// `amd64`, `arm64`, `arm`, ...
    #[serde(default, deserialize_with = "super::or_default")]
    pub architecture: String,
    /// `v7`; empty where the architecture has none.
    #[serde(
        default,
        deserialize_with = "super::or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
}

impl Platform {
    /// The machine we run on.
    pub fn host() -> Platform {
        let architecture = oci_spec::image::Arch::default().to_string();
        let variant = match architecture.as_str() {
            "amd64" => amd64_level(),
            // What we were built for is the least that the machine has; v7 is what Debian's armhf needs.
            "arm" => "v7",
            _ => "",
        };
        Platform { os: "linux".to_owned(), architecture, variant: variant.to_owned() }
    }

    /// How well an image for `other` fits this machine: lower is better, nothing is not at all.
    ///
    /// The machine's own architecture comes first, its highest variant that the machine
    /// has before lower ones; then the 32-bit architecture that the same kernel runs.
    pub fn rank(&self, other: &Platform) -> Option<usize> {
        let (this, other) = (self.normal(), other.normal());
        if this.os != other.os {
            return None;
        }
        let mut accepted = levels(&this.architecture, &this.variant);
        match this.architecture.as_str() {
            "amd64" => accepted.push(("386".to_owned(), String::new())),
            "arm64" => accepted.extend(levels("arm", "v8")),
            _ => {}
        }
        accepted.iter().position(|(architecture, variant)| {
            *architecture == other.architecture && *variant == other.variant
        })
    }

    /// One spelling of each: Debian's and the kernel's names for Go's, implied variants left out or put in.
    fn normal(&self) -> Platform {
        let lower = |text: &str| text.to_ascii_lowercase();
        let variant = lower(&self.variant);
        let (architecture, variant) = match (lower(&self.architecture).as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", _) => ("amd64", variant.as_str()),
            ("i386" | "i686", _) => ("386", ""),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64", _) => ("arm64", variant.as_str()),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (other, variant) => {
                return Platform {
                    os: lower(&self.os),
                    architecture: other.to_owned(),
                    variant: variant.to_owned(),
                };
            }
        };
        Platform {
            os: lower(&self.os),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }
}

/// An architecture at its variant and all that lie below it, best first.
fn levels(architecture: &str, variant: &str) -> Vec<(String, String)> {
    let below: &[&str] = match architecture {
        "amd64" => &["v4", "v3", "v2", ""],
        "arm" => &["v8", "v7", "v6", "v5"],
        "arm64" => &["v9", ""],
        _ => &[""],
    };
    let from = below.iter().position(|level| *level == variant);
    let mut levels: Vec<_> = below[from.unwrap_or(below.len() - 1)..]
        .iter()
        .map(|level| (architecture.to_owned(), (*level).to_owned()))
        .collect();
    if from.is_none() {
        levels.insert(0, (architecture.to_owned(), variant.to_owned()));
    }
    levels
}

/// The x86-64 level of the psABI that this processor has.
fn amd64_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
        let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma");
        let v3 = v3 && has!("f16c") && has!("lzcnt") && has!("movbe");
        let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd");
        let v4 = v4 && has!("avx512dq") && has!("avx512vl");
        match (v4, v3, v2) {
            (true, _, _) => "v4",
            (_, true, _) => "v3",
            (_, _, true) => "v2",
            _ => "",
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    ""
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `os/architecture[/variant]`.
    fn from_str(text: &str) -> Result<Platform, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() < 2 && parts.iter().all(word) => {
                Ok(Platform {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: variant.first().map_or(String::new(), |v| (*v).to_owned()),
                })
            }
            _ => Err(Error::invalid(
                format!("platform {}", quoted(text, 60)),
                "must be os/architecture or os/architecture/variant, such as linux/arm/v7",
            )),
        }
    }
}
