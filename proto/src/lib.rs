//! What berth says on its sockets: the CRI, its control API, and the shim protocol.
//!
//! This crate only includes what `build.rs` makes of the `.proto` files beside it;
//! they carry the documentation. Each part is a feature, so that the shim is built
//! without an RPC stack.

/// The Kubernetes Container Runtime Interface v1.
#[cfg(feature = "cri")]
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// berth's control API.
#[cfg(feature = "control")]
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod control {
    tonic::include_proto!("berth.v1");
}

/// Messages between the daemon and a shim.
#[cfg(feature = "shim")]
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod shim {
    include!(concat!(env!("OUT_DIR"), "/berth.shim.v1.rs"));
}

/// Shows that a secret is there, never what it is.
#[cfg(feature = "grpc")]
fn redact(secret: &str) -> &'static str {
    if secret.is_empty() { "" } else { "[redacted]" }
}

#[cfg(feature = "cri")]
impl std::fmt::Debug for cri::AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &redact(&self.password))
            .field("auth", &redact(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &redact(&self.identity_token))
            .field("registry_token", &redact(&self.registry_token))
            .finish()
    }
}

#[cfg(feature = "control")]
impl std::fmt::Debug for control::RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .field("password", &redact(&self.password))
            .field("identity_token", &redact(&self.identity_token))
            .field("registry_token", &redact(&self.registry_token))
            .finish()
    }
}

#[cfg(all(test, feature = "cri"))]
mod tests {
    #[test]
    fn debug_shows_no_credential() {
        let auth = super::cri::AuthConfig {
            username: "user".into(),
            password: "p4ss".into(),
            auth: "dXNlcg".into(),
            identity_token: "t0ken".into(),
            registry_token: "b3arer".into(),
            ..Default::default()
        };
        let text = format!(
            "{:?}",
            super::cri::PullImageRequest { auth: Some(auth), ..Default::default() }
        );
        assert!(text.contains("user"));
        for secret in ["p4ss", "dXNlcg", "t0ken", "b3arer"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
