use super::*;
use crate::id::{ContainerId, SandboxId};
use crate::streaming::{Action, PortForward, RemoteCommand, Wants};

fn exec() -> Wanted {
    let wanted = Wants { stdin: true, stdout: true, stderr: true, tty: false };
    Wanted::RemoteCommand(RemoteCommand {
        container: ContainerId::random(),
        action: Action::Attach,
        wanted,
    })
}

fn forward(ports: &[u16]) -> Wanted {
    Wanted::PortForward(PortForward { sandbox: SandboxId::random(), ports: ports.to_vec() })
}

fn request(method: &str, headers: &[(&str, &str)]) -> request::Parts {
    let builder = http::Request::builder().method(method).uri("/exec/token");
    let builder =
        headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(()).unwrap().into_parts().0
}

const SPDY: [(&str, &str); 2] = [("connection", "keep-alive, upgrade"), ("upgrade", "spdy/3.1")];
const SOCKET: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "WebSocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// The upgrade, and the headers of the answer that name the protocol, or the status of the refusal.
fn judged(parts: &request::Parts, wanted: &Wanted) -> Result<(Upgrade, String), u16> {
    let (upgrade, response) =
        upgrade_of(parts, wanted).map_err(|refusal| refusal.status.as_u16())?;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()[CONNECTION], "Upgrade");
    let names = [STREAM_PROTOCOL, SEC_WEBSOCKET_PROTOCOL];
    let named = names.iter().find_map(|name| response.headers().get(name));
    Ok((upgrade, named.map(|name| name.to_str().unwrap().to_owned()).unwrap_or_default()))
}

#[test]
fn over_spdy_the_first_of_the_clients_protocols_that_we_have_wins() {
    let check = |offers: &[&str], wanted: &Wanted| {
        let mut headers = SPDY.to_vec();
        headers.extend(offers.iter().map(|offer| ("X-Stream-Protocol-Version", *offer)));
        judged(&request("POST", &headers), wanted)
    };
    let v4 = Upgrade::Spdy(SpdyVersion { resize: true, form: Form::Json });
    let v2 = Upgrade::Spdy(SpdyVersion { resize: false, form: Form::Text });
    let name = |name: &str| name.to_owned();
    let all = "v5.channel.k8s.io,v4.channel.k8s.io, v3.channel.k8s.io";
    assert_eq!(check(&[all], &exec()), Ok((v4, name("v4.channel.k8s.io"))));
    let split = ["v5.channel.k8s.io", "v2.channel.k8s.io", "v4.channel.k8s.io"];
    assert_eq!(check(&split, &exec()), Ok((v2, name("v2.channel.k8s.io"))));
    assert_eq!(check(&["channel.k8s.io"], &exec()), Ok((v2, name("channel.k8s.io"))));
    assert_eq!(check(&["v5.channel.k8s.io"], &exec()), Err(403));
    assert_eq!(check(&[], &exec()), Err(400));
    let port_forward = Ok((Upgrade::SpdyPortForward, name("portforward.k8s.io")));
    assert_eq!(check(&["portforward.k8s.io"], &forward(&[])), port_forward);
    assert_eq!(check(&["v4.channel.k8s.io"], &forward(&[])), Err(403));
}

#[test]
fn in_a_websocket_too_and_ports_without_a_tunnel_must_be_known() {
    let check = |offers: &str, wanted: &Wanted| {
        let mut headers = SOCKET.to_vec();
        if !offers.is_empty() {
            headers.push(("sec-websocket-protocol", offers));
        }
        judged(&request("GET", &headers), wanted)
    };
    for (name, protocol) in PROTOCOLS {
        let expected = (Upgrade::WebSocket(*protocol), (*name).to_owned());
        assert_eq!(check(name, &exec()), Ok(expected));
    }
    let (_, chosen) = check("v9, v4.channel.k8s.io, v5.channel.k8s.io", &exec()).unwrap();
    assert_eq!(chosen, "v4.channel.k8s.io");
    let tunnel = Ok((Upgrade::Tunnel, TUNNEL_PROTOCOL.to_owned()));
    assert_eq!(check(TUNNEL_PROTOCOL, &forward(&[])), tunnel);
    assert_eq!(check("v4.channel.k8s.io", &forward(&[])), Err(403));
    assert!(check("v4.channel.k8s.io", &forward(&[80])).is_ok());
    assert_eq!(check("v5.channel.k8s.io", &forward(&[80])), Err(403));
    assert_eq!(check(TUNNEL_PROTOCOL, &exec()), Err(403));
    assert_eq!(judged(&request("POST", &SOCKET), &exec()), Err(400));
}

#[test]
fn the_proof_of_a_websocket_is_that_of_the_rfc() {
    assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn paths_have_a_kind_and_a_token() {
    let path = |uri: &str| {
        let parts = http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
        path_of(&parts).map(|(kind, token)| (kind.to_owned(), token.to_owned())).ok()
    };
    let exec = Some(("exec".to_owned(), "abc".to_owned()));
    assert_eq!(path("/exec/abc?command=rm"), exec);
    assert_eq!(path("http://127.0.0.1:1/exec/abc"), exec);
    assert_eq!(path("/exec"), None);
    assert_eq!(path("*"), None);
}
