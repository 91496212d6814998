//! Published ports: `[[IP:]HOST:]CONTAINER[/PROTOCOL]`, each port a range or one.

use std::fmt::Write as _;
use std::net::IpAddr;

use proto::control::{PortMapping, Protocol};

/// The ports of one `--publish`.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct Ports(pub(in crate::cli) Vec<PortMapping>);

/// Reads one `--publish`: `80`, `8080:80`, `127.0.0.1:8080:80/udp`, `[::1]::80`, `8000-8010:80-90`.
pub(in crate::cli) fn ports(text: &str) -> Result<Ports, String> {
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, name)) => (rest, protocol(name)?),
        None => (text, Protocol::Tcp),
    };
    let (host_ip, rest) = split_address(rest)?;
    let (host, container) = match rest.rsplit_once(':') {
        Some((host, container)) => (host, container),
        None if host_ip.is_empty() => ("", rest),
        None => return Err("write IP:HOST:CONTAINER; HOST may be empty".to_owned()),
    };
    let (first, last) = range(container, "the container's port")?;
    let hosts = match host {
        "" | "0" => None,
        host => Some(range(host, "the host's port")?),
    };
    if let Some((host_first, host_last)) = hosts
        && host_last - host_first != last - first
    {
        return Err(format!(
            "{} ports of the host for {} of the container; give as many",
            host_last - host_first + 1,
            last - first + 1
        ));
    }
    let mapping = |offset: u32| PortMapping {
        protocol: protocol.into(),
        container_port: first + offset,
        host_port: hosts.map_or(0, |(host_first, _)| host_first + offset),
        host_ip: host_ip.clone(),
    };
    Ok(Ports((0..=last - first).map(mapping).collect()))
}

fn protocol(name: &str) -> Result<Protocol, String> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(format!("{name:?} is no protocol; write tcp, udp or sctp")),
    }
}

/// The address in front, or nothing, and the rest. One of IPv6 stands in brackets.
fn split_address(text: &str) -> Result<(String, &str), String> {
    let (address, rest) = if let Some(inner) = text.strip_prefix('[') {
        inner.split_once("]:").ok_or("write [ADDRESS]:HOST:CONTAINER")?
    } else {
        match text.splitn(3, ':').collect::<Vec<_>>()[..] {
            [address, host, rest] if !rest.contains(':') => {
                (address, &text[text.len() - host.len() - rest.len() - 1..])
            }
            [_, _, _] => {
                return Err("write an IPv6 address in brackets, as in [::1]:8080:80".into());
            }
            _ => return Ok((String::new(), text)),
        }
    };
    match address.parse::<IpAddr>() {
        Ok(address) => Ok((address.to_string(), rest)),
        Err(_) if address.is_empty() => Ok((String::new(), rest)),
        Err(_) => {
            Err(format!("{address:?} is no IP address; write one of this machine's, or none"))
        }
    }
}

/// `80` or `80-90`.
fn range(text: &str, what: &str) -> Result<(u32, u32), String> {
    let port = |text: &str| -> Result<u32, String> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u16>() {
            Ok(port) if port > 0 && digits => Ok(port.into()),
            _ => Err(format!("{what} {text:?} must be 1 to 65535")),
        }
    };
    let Some((first, last)) = text.split_once('-') else {
        return port(text).map(|port| (port, port));
    };
    match (port(first)?, port(last)?) {
        (first, last) if first <= last => Ok((first, last)),
        (first, last) => Err(format!("{what}: the range {first}-{last} runs backwards")),
    }
}

/// Ports as a table shows them; neighbours are put together: `0.0.0.0:8000-8001->80-81/tcp`.
pub(in crate::cli) fn show_ports(ports: &[PortMapping]) -> String {
    let mut sorted: Vec<&PortMapping> = ports.iter().collect();
    sorted.sort_by_key(|port| (port.protocol, &port.host_ip, port.container_port, port.host_port));
    let follows = |before: &PortMapping, port: &PortMapping, distance: u32| {
        (before.protocol, &before.host_ip) == (port.protocol, &port.host_ip)
            && before.container_port + distance == port.container_port
            && before.host_port + distance == port.host_port
            && before.host_port > 0
    };
    let mut text = String::new();
    let mut rest = sorted.as_slice();
    while let Some(first) = rest.first() {
        let count = (1..)
            .zip(&rest[1..])
            .take_while(|(distance, port)| follows(first, port, *distance))
            .count();
        let last = rest[count];
        let comma = if text.is_empty() { "" } else { ", " };
        write!(text, "{comma}{}", show(first, last)).expect("a string takes everything");
        rest = &rest[count + 1..];
    }
    text
}

fn show(first: &PortMapping, last: &PortMapping) -> String {
    let range = |first: u32, last: u32| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let host = match first.host_ip.as_str() {
        "" => "0.0.0.0".to_owned(),
        ip if ip.contains(':') => format!("[{ip}]"),
        ip => ip.to_owned(),
    };
    let container = range(first.container_port, last.container_port);
    let protocol = first.protocol().as_str_name().trim_start_matches("PROTOCOL_").to_lowercase();
    match first.host_port {
        0 => format!("{container}/{protocol}"),
        port => format!("{host}:{}->{container}/{protocol}", range(port, last.host_port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mappings in short: `host_ip host_port container_port protocol`.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let Ports(found) = ports(text).unwrap();
        let found: Vec<String> = found
            .iter()
            .map(|port| {
                let protocol = port.protocol().as_str_name();
                format!("{} {} {} {protocol}", port.host_ip, port.host_port, port.container_port)
            })
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn every_form_of_dockers_is_understood() {
        check("80", &[" 0 80 PROTOCOL_TCP"]);
        check("8080:80", &[" 8080 80 PROTOCOL_TCP"]);
        check("8080:80/udp", &[" 8080 80 PROTOCOL_UDP"]);
        check("8080:80/SCTP", &[" 8080 80 PROTOCOL_SCTP"]);
        check(":80", &[" 0 80 PROTOCOL_TCP"]);
        check("0:80", &[" 0 80 PROTOCOL_TCP"]);
        check("127.0.0.1:8080:80", &["127.0.0.1 8080 80 PROTOCOL_TCP"]);
        check("127.0.0.1::80", &["127.0.0.1 0 80 PROTOCOL_TCP"]);
        check("[::1]:8080:80/tcp", &["::1 8080 80 PROTOCOL_TCP"]);
        check("[::]::80", &[":: 0 80 PROTOCOL_TCP"]);
        check(
            "8000-8002:80-82",
            &[" 8000 80 PROTOCOL_TCP", " 8001 81 PROTOCOL_TCP", " 8002 82 PROTOCOL_TCP"],
        );
        check("80-81/udp", &[" 0 80 PROTOCOL_UDP", " 0 81 PROTOCOL_UDP"]);
        check("1.2.3.4:53-53:53-53", &["1.2.3.4 53 53 PROTOCOL_TCP"]);
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = ports(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_the_fix() {
        refused("", "1 to 65535");
        refused("http", "\"http\" must be 1 to 65535");
        refused("0", "the container's port \"0\"");
        refused("8080:0", "the container's port \"0\"");
        refused("65536:80", "the host's port \"65536\"");
        refused("+80", "must be 1 to 65535");
        refused("8080:80/icmp", "write tcp, udp or sctp");
        refused("8080:80/", "write tcp, udp or sctp");
        refused("::1:8080:80", "brackets");
        refused("[::1]", "write [ADDRESS]:HOST:CONTAINER");
        refused("[::1]:80", "write IP:HOST:CONTAINER");
        refused("[::z]:80:80", "is no IP address");
        refused("localhost:8080:80", "\"localhost\" is no IP address");
        refused("8000-8010:80", "11 ports of the host for 1 of the container");
        refused("8000:80-90", "1 ports of the host for 11 of the container");
        refused("90-80", "runs backwards");
        refused("80-", "must be 1 to 65535");
        refused("-80", "must be 1 to 65535");
    }

    #[track_caller]
    fn check_shown(texts: &[&str], expected: &str) {
        let all: Vec<PortMapping> = texts.iter().flat_map(|text| ports(text).unwrap().0).collect();
        assert_eq!(show_ports(&all), expected);
    }

    #[test]
    fn neighbours_are_shown_together() {
        check_shown(&[], "");
        check_shown(&["8080:80"], "0.0.0.0:8080->80/tcp");
        check_shown(&["80"], "80/tcp");
        check_shown(&["80-81"], "80/tcp, 81/tcp");
        check_shown(&["[::1]:8080:80/udp"], "[::1]:8080->80/udp");
        check_shown(
            &["8001:81", "8000:80", "9000:82", "8000:80/udp"],
            "0.0.0.0:8000-8001->80-81/tcp, 0.0.0.0:9000->82/tcp, 0.0.0.0:8000->80/udp",
        );
        check_shown(
            &["8080:80", "127.0.0.1:8081:81"],
            "0.0.0.0:8080->80/tcp, 127.0.0.1:8081->81/tcp",
        );
        check_shown(&["1-65535:1-65535"], "0.0.0.0:1-65535->1-65535/tcp");
    }
}
