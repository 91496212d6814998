//! Why a pull goes where it goes: for `berth doctor` and people who look for an error.

use std::path::PathBuf;

use http::Method;
use http::header::{ACCEPT, HeaderMap, HeaderValue};

use super::auth::{self, Get};
use super::connect::{Lane, proxy_for};
use super::{Client, Credentials};
use crate::error::Result;
use crate::reference::Reference;

/// What would be asked for an image, and where that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The file or directory that decides; nothing where none does.
    pub source: Option<PathBuf>,
    /// The hosts in the order in which they are asked.
    pub hosts: Vec<HostLine>,
    /// Settings without effect and the like.
    pub notes: Vec<String>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLine {
    /// The URL that the manifest is asked at.
    pub url: String,
    /// Whether it is the registry itself; all others are mirrors.
    pub is_upstream: bool,
    /// `pull`, `resolve` or both.
    pub capabilities: Vec<&'static str>,
    /// Which credential it sees, in words, without it.
    pub credential: String,
    /// Files of certificates, and whether verification is off.
    pub tls: Vec<String>,
    /// The proxy between us and the host, without its password.
    pub proxy: Option<String>,
    /// What it answered, where it was asked.
    pub answer: Option<String>,
}

impl Client {
    /// Says which hosts a pull would ask. With `probe`, each is asked for the head of the manifest.
    ///
    /// # Errors
    /// What stops a pull at the same place: configuration that cannot be read.
    pub async fn explain(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        probe: bool,
    ) -> Result<Explanation> {
        let route = self.route(reference.registry()).await?;
        let session = self.session(reference, credentials).await?;
        let pull = &session.pull;
        let mut hosts = Vec::new();
        for (position, state) in pull.hosts.iter().enumerate() {
            let host = &state.host;
            let named = match (reference.digest(), reference.tag()) {
                (Some(digest), _) => digest.to_string(),
                (None, tag) => tag.unwrap_or("latest").to_owned(),
            };
            let uri = pull.url(host, &format!("manifests/{named}"));
            let has = |word: &'static str, has: bool| has.then_some(word);
            let words =
                [has("pull", host.capabilities.pull), has("resolve", host.capabilities.resolve)];
            let own_header =
                host.headers.iter().any(|(name, _)| name == http::header::AUTHORIZATION);
            let credential = match own_header {
                true => "the Authorization header of the file".to_owned(),
                false => pull.credential(host).describe(),
            };
            let proxy = proxy_for(&self.shared.http.proxy, &uri);
            let mut tls: Vec<String> =
                host.tls.ca.iter().map(|(path, _)| format!("ca {}", path.display())).collect();
            tls.extend(
                host.tls.client.iter().map(|(path, _, _)| format!("client {}", path.display())),
            );
            tls.extend(host.tls.skip_verify.then(|| "skip_verify".to_owned()));
            hosts.push(HostLine {
                url: uri.to_string(),
                is_upstream: host.is_upstream,
                capabilities: words.into_iter().flatten().collect(),
                credential,
                tls,
                proxy: proxy.map(|proxy| proxy.uri().to_string()),
                answer: match probe {
                    true => Some(answer(pull, position, &uri).await),
                    false => None,
                },
            });
        }
        Ok(Explanation { source: route.source, hosts, notes: route.notes })
    }
}

async fn answer(pull: &super::Pull, position: usize, uri: &http::Uri) -> String {
    let access = pull.access(position);
    let accept = HeaderValue::from_static(super::content::MANIFEST_TYPES);
    let get = Get {
        method: Method::HEAD,
        uri,
        headers: HeaderMap::from_iter([(ACCEPT, accept)]),
        lane: Lane::Shared,
    };
    match auth::send(&access, &get).await {
        Ok(answer) => answer.status().to_string(),
        Err(failure) => failure.text,
    }
}
