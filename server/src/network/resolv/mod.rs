//! Names in a pod: what its resolv.conf, hosts and hostname files say.
//!
//! All of it becomes lines of line-oriented files that root's programs read, so every text that
//! came from outside is checked for what it may hold, never escaped.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::{Error, Result, files};

/// Where a node's name servers are listed.
pub const HOST_FILE: &str = "/etc/resolv.conf";
/// Where resolvers that put themselves on a loopback address keep what they ask.
const UPSTREAM_FILES: [&str; 3] = [
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
    "/run/dnsmasq/resolv.conf",
];

/// More than the resolvers of any libc read (glibc and musl: 3 servers), and than Kubernetes
/// allows (3 servers, 32 search domains of 2048 bytes together).
const SERVER_CAP: usize = 16;
const SEARCH_CAP: usize = 64;
const OPTION_CAP: usize = 64;
/// A domain name (RFC 1035 section 2.3.4), an option, a host name (sethostname(2)).
const DOMAIN_LENGTH: usize = 253;
const OPTION_LENGTH: usize = 128;
const HOSTNAME_LENGTH: usize = 64;
const LABEL_LENGTH: usize = 63;

/// A resolv.conf for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The text of the file.
    pub content: String,
    /// What of the node's the pod does not get, a sentence each.
    pub warnings: Vec<String>,
}

/// Name service as the CRI's DNSConfig asks for it, not checked yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DnsConfig {
    /// IP addresses.
    pub servers: Vec<String>,
    /// Domains that are tried behind a name.
    pub searches: Vec<String>,
    /// As in resolv.conf(5): "ndots:5".
    pub options: Vec<String>,
}

/// The node's resolv.conf as it is, for a pod on the node's network. Empty where there is none.
///
/// # Errors
///
/// When it cannot be read.
pub fn for_host_network() -> Result<String> {
    let text = files::read_small(Path::new(HOST_FILE))?;
    Ok(text.map_or_else(String::new, |text| format!("{text}\n")))
}

/// The node's resolv.conf for a pod with a network of its own, where the node's loopback is out
/// of reach.
///
/// # Errors
///
/// When a file is there and cannot be read.
pub fn for_bridge() -> Result<ResolvConf> {
    let host = files::read_small(Path::new(HOST_FILE))?.unwrap_or_default();
    let mut upstreams = Vec::new();
    if only_loopback(&host) {
        for path in UPSTREAM_FILES {
            upstreams.extend(files::read_small(Path::new(path))?.map(|text| (path, text)));
        }
    }
    Ok(adapt(&host, &upstreams))
}

/// Makes a pod's file of the node's, and of the upstream files (path, text) of resolvers in the
/// order of preference.
fn adapt(host: &str, upstreams: &[(&str, String)]) -> ResolvConf {
    let mut source = (HOST_FILE, host);
    if only_loopback(host) {
        let upstream = upstreams.iter().find(|(_, text)| !ipv4_servers(text).is_empty());
        if let Some((path, text)) = upstream {
            source = (path, text);
        }
    }
    let (path, text) = source;
    let mut conf = ResolvConf { content: String::new(), warnings: Vec::new() };
    let mut reachable = false;
    for line in text.lines() {
        match server(line) {
            Some(server) if is_reachable(server) => reachable = true,
            Some(server) => {
                conf.warnings.push(format!("name server {server} of {path} {}", obstacle(server)));
                continue;
            }
            None => {}
        }
        conf.content.push_str(line);
        conf.content.push('\n');
    }
    if !reachable {
        conf.warnings.push(format!("{path} has no name server that a pod can reach"));
    }
    conf
}

fn obstacle(server: &str) -> &'static str {
    if is_loopback(server) {
        "is on the node's loopback, out of a pod's reach"
    } else {
        "is no IPv4 address, and pods of the built-in network have no IPv6"
    }
}

/// The IPv4 name servers of a resolv.conf that are not on the loopback.
pub(crate) fn ipv4_servers(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(server)
        .filter(|server| is_reachable(server))
        .filter_map(|server| server.parse().ok())
        .collect()
}

/// Whether there are name servers, all of them on the loopback.
fn only_loopback(text: &str) -> bool {
    let mut servers = text.lines().filter_map(server).peekable();
    servers.peek().is_some() && servers.all(is_loopback)
}

/// What a "nameserver" line names (resolv.conf(5): the keyword begins the line).
fn server(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("nameserver")?;
    rest.starts_with([' ', '\t']).then(|| rest.split_whitespace().next())?
}

fn is_loopback(server: &str) -> bool {
    match server.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => false,
    }
}

fn is_reachable(server: &str) -> bool {
    !is_loopback(server) && server.parse::<Ipv4Addr>().is_ok()
}

/// A resolv.conf from what a client asked for.
///
/// # Errors
///
/// [`Error::Invalid`] names the field and what may be in it: nothing that could become another
/// line or word of the file, and no more than a resolver would read.
pub fn from_config(dns: &DnsConfig) -> Result<String> {
    let DnsConfig { servers, searches, options } = dns;
    cap("servers", servers, SERVER_CAP)?;
    cap("searches", searches, SEARCH_CAP)?;
    cap("options", options, OPTION_CAP)?;
    for (index, server) in servers.iter().enumerate() {
        let expected = "must be an IP address";
        check_field("servers", index, server, server.parse::<IpAddr>().is_ok(), expected)?;
    }
    for (index, search) in searches.iter().enumerate() {
        let expected = "must be a domain name: letters, digits, '-', '_' and '.'";
        check_field("searches", index, search, is_domain(search), expected)?;
    }
    for (index, option) in options.iter().enumerate() {
        let expected = "must be one word of printable ASCII, such as ndots:5";
        check_field("options", index, option, is_option(option), expected)?;
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    Ok(text)
}

fn cap(field: &str, values: &[String], cap: usize) -> Result<()> {
    if values.len() > cap {
        let count = values.len();
        return Err(Error::Invalid(format!("dns_config.{field}: {count}, at most {cap} can be")));
    }
    Ok(())
}

fn check_field(field: &str, index: usize, value: &str, good: bool, expected: &str) -> Result<()> {
    if good {
        return Ok(());
    }
    let shown: String = value.chars().take(64).collect();
    Err(Error::Invalid(format!("dns_config.{field}[{index}] {shown:?} {expected}")))
}

/// A search domain; "." alone is one, and a dot at the end is usual.
fn is_domain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=DOMAIN_LENGTH).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_option(text: &str) -> bool {
    (1..=OPTION_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Checks the name of a pod's host.
///
/// # Errors
///
/// [`Error::Invalid`] unless it has 1 to 64 letters, digits, '-', '_' and '.', with a letter or
/// digit at both ends of each part of at most 63.
pub fn check_hostname(hostname: &str) -> Result<()> {
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let ends = [label.bytes().next(), label.bytes().last()];
        label.len() <= LABEL_LENGTH
            && label.bytes().all(allowed)
            && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
    };
    if hostname.len() <= HOSTNAME_LENGTH && hostname.split('.').all(label) {
        return Ok(());
    }
    let shown: String = hostname.chars().take(80).collect();
    Err(Error::Invalid(format!(
        "hostname {shown:?} must be 1 to {HOSTNAME_LENGTH} letters, digits, '-', '_' and '.', \
         parts of at most {LABEL_LENGTH}"
    )))
}

/// The hosts file of a pod: the loopback by its usual names, and the pod's own addresses.
///
/// # Errors
///
/// As [`check_hostname`].
pub fn hosts(hostname: &str, addresses: &[IpAddr]) -> Result<String> {
    check_hostname(hostname)?;
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for address in addresses {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    Ok(text)
}

/// The hostname file of a pod.
///
/// # Errors
///
/// As [`check_hostname`].
pub fn hostname(hostname: &str) -> Result<String> {
    check_hostname(hostname)?;
    Ok(format!("{hostname}\n"))
}
