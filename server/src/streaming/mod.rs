//! Streaming: exec, attach and port-forward over HTTP, for the kubelet and whoever has the URL of a call of the CRI.
//!
//! A call leaves what it allows under a token (`token`); the client comes with it within a minute, once. The request
//! (`http`) is upgraded to SPDY (`spdy`) or to a WebSocket (`websocket`); both give channels (`channel`), which
//! `remote_command` and `port_forward` connect with containers and sandboxes.
//!
//! The listener is on a loopback address only: the kubelet is on this node. Whoever has no token learns nothing.

mod channel;
mod hangup;
mod http;
mod idle;
mod port_forward;
mod remote_command;
mod serve;
mod spdy;
mod token;
mod websocket;

use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

pub use port_forward::Request as PortForward;
pub use remote_command::{Action, Request as RemoteCommand, Wants};
pub use serve::serve;

use crate::config;
use crate::error::{Doing, Result};
use token::Tokens;

/// What a token is good for.
#[derive(Debug)]
pub enum Wanted {
    /// Exec or attach.
    RemoteCommand(RemoteCommand),
    /// Port-forward.
    PortForward(PortForward),
}

impl Wanted {
    /// The first part of its path.
    fn kind(&self) -> &'static str {
        match self {
            Wanted::RemoteCommand(RemoteCommand { action: Action::Exec(_), .. }) => "exec",
            Wanted::RemoteCommand(RemoteCommand { action: Action::Attach, .. }) => "attach",
            Wanted::PortForward(_) => "portforward",
        }
    }
}

/// The streaming server, from the outside.
#[derive(Debug)]
pub struct Streaming {
    tokens: Tokens,
    address: SocketAddr,
    /// Until somebody serves it.
    listener: Mutex<Option<TcpListener>>,
    config: config::Streaming,
}

impl Streaming {
    /// Listens; connections wait until [`serve`] takes them.
    ///
    /// # Errors
    /// The address is taken, or not of this node.
    pub fn bind(config: &config::Streaming) -> Result<Streaming> {
        let wanted = SocketAddr::new(config.address, config.port);
        let doing = || {
            format!(
                "listen on {wanted} for streaming; streaming.address and streaming.port choose another"
            )
        };
        let listener = TcpListener::bind(wanted).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        Ok(Streaming {
            tokens: Tokens::default(),
            address: listener.local_addr().doing(doing)?,
            listener: Mutex::new(Some(listener)),
            config: config.clone(),
        })
    }

    /// The URL under which a client gets what it wants, once and within a minute.
    ///
    /// # Errors
    /// Too many are outstanding.
    pub fn url(&self, wanted: Wanted) -> Result<String> {
        let kind = wanted.kind();
        Ok(format!("http://{}/{kind}/{}", self.address, self.tokens.issue(wanted)?))
    }

    /// What is behind a path, which is used up by the question.
    fn take(&self, kind: &str, token: &str) -> Option<Wanted> {
        self.tokens.take(token).filter(|wanted| wanted.kind() == kind)
    }
}
