//! The registry client: the only HTTP of this crate.
//!
//! ```text
//! Client ── session(reference, credentials) ──> Session: one pull
//!   Session::resolve  index, manifest and config, each checked against its digest
//!   Session::layer    a BlobReader: the bytes of a layer for a blocking reader
//!   Client::explain   which hosts would be asked, and why
//!
//! mirrors.rs  hosts_file.rs  docker_config.rs  credentials.rs   what files and requests say
//! auth.rs  challenge.rs                                         who may see which secret
//! client.rs  connect.rs  tls.rs  url.rs                         one request, with its redirects
//! resolve.rs  content.rs  blob.rs  fetch.rs                     documents and layers
//! failure.rs  retry.rs                                          what went wrong, and when to ask again
//! ```
//!
//! Invariants: a credential is seen by the hosts that [`Credentials`] is for and by the
//! token service that one of them names, never by a redirect's target. A byte that does
//! not match its digest or size is never part of a document. Every read has a cap and
//! every wait an end, both in [`crate::limits`].

mod auth;
mod blob;
mod challenge;
mod client;
mod connect;
mod content;
mod credentials;
pub mod docker_config;
mod explain;
mod failure;
mod fetch;
mod hosts_file;
mod mirrors;
mod resolve;
mod retry;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod url;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

pub use blob::{BlobReader, from_io};
pub use connect::ProxySettings;
pub use content::RawDoc;
pub use credentials::{AuthConfig, Credentials, Secret};
pub use explain::{Explanation, HostLine};
pub use resolve::{Known, Resolved};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::reference::Reference;
use auth::{Access, State, Tokens};
use client::Http;
use mirrors::Host;

/// Connections for one blob that are more than any registry would like.
const MOST_RANGES: u64 = 16;

/// What the client is told by the daemon's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directories with a subdirectory for each registry, searched in this order at every
    /// pull: containerd's `certs.d` with `hosts.toml`, docker's with certificates.
    pub hosts_dirs: Vec<PathBuf>,
    /// Proxies.
    pub proxy: ProxySettings,
    /// Connections for one large blob: that many parts of it are under way at once. 1 or
    /// more. Stores behind registries limit each connection; three of 80 MB/s each, at a
    /// distance of 20 ms, brought 260 MB/s where one brought 84.
    pub ranges: u64,
    /// The same for a registry on this machine, where one connection brings 1.6 GB/s and
    /// more of them only cost time of the processor.
    pub local_ranges: u64,
    /// Caps and deadlines.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            hosts_dirs: ["/etc/berth/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
            proxy: ProxySettings::from_env(),
            ranges: 3,
            local_ranges: 1,
            limits: Limits::default(),
        }
    }
}

/// The client of all registries. Clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    hosts_dirs: Vec<PathBuf>,
    ranges: u64,
    local_ranges: u64,
    http: Http,
    tokens: Tokens,
    /// One permit for each part of a blob that is fetched ahead of its reader.
    read_ahead: Arc<Semaphore>,
}

/// One pull: the hosts are read once, and what is learnt about them is kept.
#[derive(Clone)]
pub struct Session {
    pull: Arc<Pull>,
}

struct Pull {
    shared: Arc<Shared>,
    reference: Reference,
    credentials: Credentials,
    hosts: Vec<HostState>,
    /// Hosts that sent wrong bytes for a digest: they are not asked for it again.
    distrusted: Mutex<HashSet<(Digest, usize)>>,
}

struct HostState {
    host: Host,
    auth: State,
    /// Whether it could not be reached: then it is asked after the others.
    is_down: AtomicBool,
}

impl Client {
    /// A client; it opens nothing before it is used.
    pub fn new(config: Config) -> Client {
        let parts = config.limits.read_ahead_bytes.0 / config.limits.part_bytes.0.max(1);
        let parts = usize::try_from(parts).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Client {
            shared: Arc::new(Shared {
                hosts_dirs: config.hosts_dirs,
                ranges: config.ranges.clamp(1, MOST_RANGES),
                local_ranges: config.local_ranges.clamp(1, MOST_RANGES),
                http: Http::new(config.limits, config.proxy.matcher()),
                tokens: Tokens::default(),
                read_ahead: Arc::new(Semaphore::new(parts)),
            }),
        }
    }

    /// Begins a pull: reads what the directories say about the registry now.
    ///
    /// # Errors
    /// A `hosts.toml` or certificate that is wrong or cannot be read.
    pub async fn session(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Session> {
        let hosts = self.route(reference.registry()).await?.hosts.into_iter().map(|host| {
            HostState { host, auth: State::default(), is_down: AtomicBool::new(false) }
        });
        Ok(Session {
            pull: Arc::new(Pull {
                shared: Arc::clone(&self.shared),
                reference: reference.clone(),
                credentials: credentials.clone(),
                hosts: hosts.collect(),
                distrusted: Mutex::default(),
            }),
        })
    }

    /// The hosts of a registry. The directories may be on a disk that hangs, so the wait has an end.
    async fn route(&self, registry: &str) -> Result<mirrors::Route> {
        let shared = Arc::clone(&self.shared);
        let name = registry.to_owned();
        let load = tokio::task::spawn_blocking(move || {
            mirrors::load(&shared.hosts_dirs, &name, &shared.http.limits)
        });
        let unavailable = |problem: &str| Error::Unavailable {
            what: format!("the hosts of registry {registry}"),
            problem: problem.to_owned(),
            source: None,
        };
        match tokio::time::timeout(self.shared.http.limits.connect_timeout, load).await {
            Ok(Ok(route)) => route,
            Ok(Err(_)) => Err(unavailable("reading their configuration was broken off")),
            Err(_) => Err(unavailable("reading their configuration takes too long")),
        }
    }
}

impl Session {
    /// The limits of the client.
    pub fn limits(&self) -> &Limits {
        &self.pull.shared.http.limits
    }

    /// The image that is pulled.
    pub fn reference(&self) -> &Reference {
        &self.pull.reference
    }
}

impl Pull {
    fn limits(&self) -> &Limits {
        &self.shared.http.limits
    }

    /// Connections for one blob: the host that is asked first decides.
    fn ranges(&self) -> u64 {
        let first = self.order(|host| host.capabilities.pull).first().copied();
        let is_local = first.is_some_and(|first| self.hosts[first].host.base.origin.is_loopback());
        if is_local { self.shared.local_ranges } else { self.shared.ranges }
    }

    /// Positions of the hosts to ask, best first: as the file has them, those that could not be reached last.
    fn order(&self, may: impl Fn(&Host) -> bool) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..self.hosts.len()).filter(|position| may(&self.hosts[*position].host)).collect();
        order.sort_by_key(|position| self.hosts[*position].is_down.load(Ordering::Relaxed));
        order
    }

    /// A host with what it may see.
    fn access(&self, position: usize) -> Access<'_> {
        let state = &self.hosts[position];
        Access {
            http: &self.shared.http,
            tokens: &self.shared.tokens,
            host: &state.host,
            repository: self.reference.repository(),
            credential: self.credential(&state.host),
            state: &state.auth,
        }
    }

    fn credential(&self, host: &Host) -> &credentials::Credential {
        let origin = host.base.origin.to_string();
        self.credentials.for_host(&origin, host.is_upstream, self.reference.registry())
    }

    /// The URL of something of the repository at a host. Mirrors of several registries are
    /// told which one is meant, as containerd tells them.
    fn url(&self, host: &Host, path: &str) -> http::Uri {
        let registry = self.reference.registry();
        let own = url::Base::of_registry(registry).origin;
        let is_own = (own.host == host.base.origin.host) && (own.port == host.base.origin.port);
        let query = match is_own {
            true => String::new(),
            false => format!("?{}", url::encode(&[("ns", registry)])),
        };
        host.base.join(&format!("{}/{path}{query}", self.reference.repository()))
    }

    fn distrust(&self, digest: Digest, position: usize) {
        let mut distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        distrusted.insert((digest, position));
    }

    fn trusts(&self, digest: Digest, position: usize) -> bool {
        let distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        !distrusted.contains(&(digest, position))
    }
}
