//! `berth port-forward`: one connection to a port inside a pod.

use std::sync::Arc;

use proto::control as v1;
use proto::control::port_forward_request::Message as Asked;
use proto::control::port_forward_response::Message as Told;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tonic::Streaming;

use super::{Sink, find, send};
use crate::app::App;
use crate::container::stream::CHUNK;
use crate::error::{Doing, Error, Result};
use crate::sandbox::{Sandbox, port_forward};

pub(super) async fn forward(
    app: Arc<App>,
    mut requests: Streaming<v1::PortForwardRequest>,
    sink: Sink<v1::PortForwardResponse>,
) -> Result<()> {
    let first = requests.message().await.ok().flatten().and_then(|request| request.message);
    let Some(Asked::Spec(spec)) = first else {
        return Err(Error::invalid("message", "the first one must be the spec"));
    };
    let port = u16::try_from(spec.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Error::invalid("port", "must be 1 to 65535"))?;
    let sandbox = find_sandbox(&app, &spec.name)?;
    let stream = port_forward::connect(&app, &sandbox, port).await?;
    let connected = v1::PortForwardConnected { pod_id: sandbox.id.to_string() };
    send(&sink, told(Told::Connected(connected))).await?;
    let (reader, writer) = stream.into_split();
    // Each side ends by itself, and the connection with both: half of it may be closed for long.
    tokio::try_join!(send_on(requests, writer), tell_on(reader, &sink)).map(drop)
}

/// The pod of a container, or a pod by itself.
fn find_sandbox(app: &App, name: &str) -> Result<Arc<Sandbox>> {
    let missing = match find(app, name) {
        Ok(container) => return app.sandbox_of(&container),
        Err(error) => error,
    };
    if let Ok(sandbox) = app.store.sandbox(name) {
        return Ok(sandbox);
    }
    let mut named = app.store.sandboxes();
    named.retain(|sandbox| sandbox.record().spec.name.name == name);
    match (named.pop(), named.is_empty()) {
        (Some(sandbox), true) => Ok(sandbox),
        (Some(_), false) => {
            Err(Error::invalid("name", format!("several pods are called {name}; give an id")))
        }
        (None, _) => Err(missing),
    }
}

/// From the client to the program, until the client has no more.
async fn send_on(
    mut requests: Streaming<v1::PortForwardRequest>,
    mut writer: OwnedWriteHalf,
) -> Result<()> {
    loop {
        let request = requests.message().await.map_err(|status| Error::Unavailable {
            what: "the client".into(),
            problem: status.message().to_owned(),
        })?;
        match request.map(|request| request.message) {
            Some(Some(Asked::Data(bytes))) => {
                writer.write_all(&bytes).await.doing(|| "write to a forwarded port")?;
            }
            Some(Some(Asked::Closed(true))) | None => {
                return writer.shutdown().await.doing(|| "close a forwarded connection");
            }
            Some(Some(Asked::Spec(_) | Asked::Closed(false)) | None) => {}
        }
    }
}

/// From the program to the client, until the program has no more.
async fn tell_on(mut reader: OwnedReadHalf, sink: &Sink<v1::PortForwardResponse>) -> Result<()> {
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        match reader.read_buf(&mut bytes).await.doing(|| "read from a forwarded port")? {
            0 => return send(sink, told(Told::Closed(true))).await,
            _ => send(sink, told(Told::Data(bytes))).await?,
        }
    }
}

fn told(message: Told) -> v1::PortForwardResponse {
    v1::PortForwardResponse { message: Some(message) }
}
