//! Tests of the pure half: texts in, texts out.

use super::*;
use proptest::prelude::*;

#[track_caller]
fn check_adapt(host: &str, upstreams: &[(&str, &str)], content: &str, warnings: &[&str]) {
    let upstreams: Vec<(&str, String)> =
        upstreams.iter().map(|&(path, text)| (path, text.to_owned())).collect();
    let conf = adapt(host, &upstreams);
    assert_eq!(conf.content, content);
    assert_eq!(conf.warnings, warnings);
}

const STUB: &str = "# by systemd\nnameserver 127.0.0.53\noptions edns0\nsearch lan";

#[test]
fn a_plain_file_is_taken_as_it_is() {
    let text = "# mine\nsearch a.example b.example\nnameserver 192.0.2.53\noptions ndots:2\n";
    check_adapt(text, &[], text, &[]);
    let tabs = "nameserver\t192.0.2.53 # the first\nnameservers 127.0.0.1\n";
    check_adapt(tabs, &[], tabs, &[]);
}

#[test]
fn a_loopback_stub_is_replaced_by_what_it_asks() {
    let upstream = "nameserver 192.0.2.53\nsearch lan\n";
    let resolved = "/run/systemd/resolve/resolv.conf";
    check_adapt(STUB, &[(resolved, upstream)], upstream, &[]);
    let useless = "nameserver 127.0.0.1\n";
    check_adapt(STUB, &[("/run/a", useless), ("/run/b", upstream)], upstream, &[]);
}

#[test]
fn a_stub_without_an_upstream_file_leaves_no_server_and_says_so() {
    check_adapt(
        STUB,
        &[],
        "# by systemd\noptions edns0\nsearch lan\n",
        &[
            "name server 127.0.0.53 of /etc/resolv.conf is on the node's loopback, out of a pod's reach",
            "/etc/resolv.conf has no name server that a pod can reach",
        ],
    );
    check_adapt("", &[], "", &["/etc/resolv.conf has no name server that a pod can reach"]);
}

#[test]
fn a_loopback_server_beside_others_is_dropped() {
    check_adapt(
        "nameserver 127.0.0.1\nnameserver 192.0.2.53\nnameserver ::1\n",
        &[("/run/systemd/resolve/resolv.conf", "nameserver 198.51.100.1\n")],
        "nameserver 192.0.2.53\n",
        &[
            "name server 127.0.0.1 of /etc/resolv.conf is on the node's loopback, out of a pod's reach",
            "name server ::1 of /etc/resolv.conf is on the node's loopback, out of a pod's reach",
        ],
    );
}

#[test]
fn an_ipv6_server_is_dropped() {
    check_adapt(
        "nameserver fe80::1%eth0\nnameserver 2001:db8::53\nnameserver 192.0.2.53\n",
        &[],
        "nameserver 192.0.2.53\n",
        &[
            "name server fe80::1%eth0 of /etc/resolv.conf is no IPv4 address, and pods of the \
             built-in network have no IPv6",
            "name server 2001:db8::53 of /etc/resolv.conf is no IPv4 address, and pods of the \
             built-in network have no IPv6",
        ],
    );
}

#[track_caller]
fn check_config(
    servers: &[&str],
    searches: &[&str],
    options: &[&str],
    expected: Result<&str, &str>,
) {
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    let dns =
        DnsConfig { servers: texts(servers), searches: texts(searches), options: texts(options) };
    let got = from_config(&dns).map_err(|error| error.to_string());
    assert_eq!(got.as_deref().map_err(String::as_str), expected);
}

#[test]
fn a_config_becomes_a_file() {
    check_config(
        &["10.10.10.10", "2001:db8::1"],
        &["k8s.io", "svc.cluster.local.", "."],
        &["ndots:8", "edns0"],
        Ok("search k8s.io svc.cluster.local. .\nnameserver 10.10.10.10\n\
            nameserver 2001:db8::1\noptions ndots:8 edns0\n"),
    );
    check_config(&[], &[], &[], Ok(""));
}

/// C-08: text of a pod must not become a line of its own.
#[test]
fn a_config_with_a_line_end_or_a_space_is_refused() {
    let server = "must be an IP address";
    let search = "must be a domain name: letters, digits, '-', '_' and '.'";
    let option = "must be one word of printable ASCII, such as ndots:5";
    let bad = |field: &str, value: &str, expected: &str| {
        format!("dns_config.{field}[0] {value:?} {expected}")
    };
    for value in ["", "1.2.3", "10.0.0.1\nsearch evil", " 10.0.0.1", "10.0.0.1 ", "dns.example"] {
        check_config(&[value], &[], &[], Err(&bad("servers", value, server)));
    }
    for value in ["", "a b", "a\nnameserver 6.6.6.6", "a\r", "a\0", "a;b", "a#b", "ä.example"] {
        check_config(&[], &[value], &[], Err(&bad("searches", value, search)));
    }
    for value in ["", "ndots:5 rotate", "ndots:5\n", "x\u{7f}", "\u{2028}"] {
        check_config(&[], &[], &[value], Err(&bad("options", value, option)));
    }
}

#[test]
fn a_config_is_bounded() {
    let many = ["10.0.0.1"; 17];
    check_config(&many, &[], &[], Err("dns_config.servers: 17, at most 16 can be"));
    let many = ["a"; 65];
    check_config(&[], &many, &[], Err("dns_config.searches: 65, at most 64 can be"));
    check_config(&[], &[], &many, Err("dns_config.options: 65, at most 64 can be"));
    let long = "a".repeat(254);
    let shown = "a".repeat(64);
    check_config(
        &[],
        &[&long],
        &[],
        Err(&format!(
            "dns_config.searches[0] {shown:?} must be a domain name: letters, digits, '-', '_' \
             and '.'"
        )),
    );
}

#[track_caller]
fn check_name(name: &str, good: bool) {
    assert_eq!(check_hostname(name).is_ok(), good, "{name:?}");
}

#[test]
fn a_hostname_is_a_host_name() {
    for good in ["a", "web-1", "web_1", "a.b.example", "0", &"a".repeat(63)] {
        check_name(good, true);
    }
    let long = "a".repeat(64);
    for bad in ["", ".", "a.", ".a", "a..b", "-a", "a-", "_a", "a b", "a\n", "a:b", "ä", &long] {
        check_name(bad, false);
    }
    check_name(&format!("{}.b", "a".repeat(63)), false);
    check_name(&format!("{}.b", "a".repeat(62)), true);
}

#[test]
fn the_hosts_file_has_the_pod_by_name() {
    let text = hosts("web", &["10.64.0.2".parse().unwrap()]).unwrap();
    assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost "), "{text}");
    assert!(text.ends_with("\n10.64.0.2\tweb\n"), "{text}");
    assert_eq!(hostname("web").unwrap(), "web\n");
    assert!(hosts("web\n6.6.6.6 bank", &[]).is_err());
    assert!(hostname("web\n").is_err());
}

proptest! {
    #[test]
    fn every_accepted_config_has_exactly_the_lines_that_were_asked_for(
        servers in proptest::collection::vec(".{0,20}", 0..4),
        searches in proptest::collection::vec(".{0,20}", 0..4),
        options in proptest::collection::vec("\\PC{0,20}", 0..4),
    ) {
        let lines = servers.len()
            + usize::from(!searches.is_empty()) + usize::from(!options.is_empty());
        let dns = DnsConfig { servers, searches, options };
        if let Ok(text) = from_config(&dns) {
            prop_assert_eq!(text.lines().count(), lines);
            prop_assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn adapting_leaves_no_server_out_of_reach(host in "(nameserver [0-9a-f:.]{2,12}\n|.{0,9}\n){0,6}") {
        let conf = adapt(&host, &[]);
        for line in conf.content.lines().filter_map(server) {
            prop_assert!(is_reachable(line));
        }
    }
}
