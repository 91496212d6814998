//! Seccomp profiles as programs, compiled once and kept in sealed memory that is passed to shims.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use runtime::seccomp::{self, Arch};

use crate::container::spec::Profile;
use crate::error::{Error, Result};

/// A program, ready to be passed on.
#[derive(Debug)]
pub struct Filter {
    /// Sealed memory with the program.
    pub memory: OwnedFd,
    /// Flags of seccomp(2).
    pub flags: u32,
}

/// Programs by what they are made of.
#[derive(Debug, Default)]
pub struct Filters {
    cache: Mutex<HashMap<Key, Arc<Filter>>>,
}

/// The digest of a file's content, or none for the built-in profile; and the capabilities granted.
type Key = (Option<[u8; 32]>, u64);

/// Programs that are kept: more profiles than this are compiled each time.
const MAX_KEPT: usize = 64;

impl Filters {
    /// The program of a profile for a container that is granted these capabilities. None where
    /// nothing is filtered. Blocks: a profile of the node is read each time, so that a change counts.
    ///
    /// # Errors
    /// The file is missing or is no profile.
    pub fn get(
        &self,
        profile: &Profile,
        capabilities: u64,
        kernel: (u32, u32),
    ) -> Result<Option<Arc<Filter>>> {
        let content = match profile {
            Profile::Unset | Profile::Unconfined => return Ok(None),
            Profile::Default => None,
            Profile::Localhost(path) => Some(load(path)?),
        };
        let key = (content.as_ref().map(|(digest, _)| *digest), capabilities);
        if let Some(kept) = self.cache.lock().expect("nobody panics with this lock").get(&key) {
            return Ok(Some(kept.clone()));
        }
        let profile = content.map_or_else(seccomp::default_profile, |(_, profile)| profile);
        let filter = Arc::new(compile(&profile, capabilities, kernel)?);
        let mut cache = self.cache.lock().expect("nobody panics with this lock");
        if cache.len() < MAX_KEPT {
            cache.insert(key, filter.clone());
        }
        Ok(Some(filter))
    }
}

fn load(path: &str) -> Result<([u8; 32], seccomp::Profile)> {
    let field = "security_context.seccomp.localhost_ref";
    if !path.starts_with('/') {
        return Err(Error::invalid(
            field,
            format!("{path:?} is not the absolute path of a profile on the node"),
        ));
    }
    let failed =
        |error| Error::Failed { doing: format!("{field} {path}"), source: Box::new(error) };
    let content = seccomp::Profile::read(Path::new(path)).map_err(failed)?;
    let profile = seccomp::Profile::parse(&content).map_err(failed)?;
    if profile.listener_path.is_some() {
        return Err(Error::invalid(
            field,
            format!("{path} notifies a listener, which this version of berth does not serve"),
        ));
    }
    if !profile.unknown_syscalls.is_empty() || !profile.ignored_fields.is_empty() {
        tracing::debug!(
            path,
            unknown_syscalls = ?profile.unknown_syscalls,
            ignored_fields = ?profile.ignored_fields,
            "parts of a seccomp profile have no effect here"
        );
    }
    use sha2::Digest as _;
    Ok((sha2::Sha256::digest(&content).into(), profile))
}

fn compile(profile: &seccomp::Profile, capabilities: u64, kernel: (u32, u32)) -> Result<Filter> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Failed {
        doing: "compile the seccomp profile".into(),
        source,
    };
    let native = Arch::NATIVE.ok_or_else(|| {
        failed("berth knows no system calls of this machine's architecture".into())
    })?;
    let filter = profile.resolve(capabilities, native, kernel);
    let program = seccomp::compile(&filter).map_err(|error| failed(Box::new(error)))?;
    let memory = runtime::shim::protocol::sealed(c"berth-seccomp", &program.to_bytes())
        .map_err(|error| failed(Box::new(error)))?;
    Ok(Filter { memory, flags: filter.flags })
}
