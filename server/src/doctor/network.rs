//! The network: whether the built-in one can be made, what forwards and filters, who resolves names.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

use super::{Check, Verdict, read_number};
use crate::error::{self, Doing, chain};
use crate::id::random_hex;
use crate::network::resolv::{self, ResolvConf};
use crate::network::{Bridge, Config, ForeignDrop};

const AREA: &str = "network";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
/// Instance of the network that is made to see whether one can be; no daemon has it, for theirs are hashes.
const PROBE: &str = "d0c70000";

pub(super) fn check() -> Vec<Check> {
    let is_root = rustix::process::geteuid().is_root();
    let resolver = resolv::for_bridge().map_err(|error| chain(&error));
    vec![
        judge_builtin(is_root.then(probe)),
        judge_forwarding(
            read_number(FORWARD).map(|on| on != 0),
            !is_root || rustix::fs::access(FORWARD, Access::WRITE_OK).is_ok(),
        ),
        judge_bridge_filter(read_number(BRIDGE_FILTER).map(|on| on != 0)),
        judge_resolver(resolver),
    ]
}

/// Makes the built-in network with one pod in namespaces of its own, which go with the thread:
/// the one way to know whether the kernel has bridge, veth, nf_tables, address translation and
/// connection tracking, as modules or built in.
fn probe() -> Result<(), String> {
    let directory = std::env::temp_dir().join(format!("berth-doctor-{}", random_hex(8)));
    let config = Config { instance: PROBE.to_owned(), directory: directory.clone(), subnet: None };
    let tried = std::thread::spawn(move || make_network(&config)).join();
    // Made with a name of its own; whatever cannot be removed is a few bytes.
    std::fs::remove_dir_all(&directory).ok();
    match tried {
        Ok(made) => made.map_err(|error| chain(&error)),
        Err(_) => Err("the probe panicked".to_owned()),
    }
}

fn make_network(config: &Config) -> error::Result<()> {
    let (netns, route) = new_namespace()?;
    new_namespace()?;
    let make = |path: &Path| std::fs::create_dir(path).doing(|| format!("make {}", path.display()));
    make(&config.directory)?;
    let bridge = Bridge::open(config, &[])?;
    let attachment = bridge.plan("doctor", &[])?;
    Ok(bridge.attach(&attachment, netns.as_fd(), route.as_fd())?)
}

/// Takes this thread into a new network namespace: a descriptor of it, and a netlink socket in it.
fn new_namespace() -> error::Result<(OwnedFd, OwnedFd)> {
    runtime::sys::clone::unshare(UnshareFlags::NEWNET).doing(|| "make a network namespace")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let netns = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
        .doing(|| "open a network namespace")?;
    // NETLINK_ROUTE is 0, which is what no protocol means.
    let route = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    );
    Ok((netns, route.doing(|| "open a netlink socket")?))
}

/// None where nobody could try.
fn judge_builtin(tried: Option<Result<(), String>>) -> Check {
    let name = "built-in network";
    match tried {
        Some(Ok(())) => Check::ok(AREA, name, "bridge, veth and nf_tables work"),
        None => Check::ok(AREA, name, "not tried, for it takes root"),
        Some(Err(error)) => Check::gap(
            Verdict::Failed,
            (AREA, name),
            error,
            "modprobe -a bridge veth nf_tables nft_chain_nat nft_masq nf_conntrack; \
             until then only containers with --net host or none work",
        ),
    }
}

fn judge_forwarding(on: Option<bool>, writable: bool) -> Check {
    let name = "ip_forward";
    match (on, writable) {
        (Some(true), _) => Check::ok(AREA, name, "on"),
        (Some(false), true) => Check::ok(AREA, name, "off; berth turns it on with the first pod"),
        (Some(false), false) => Check::gap(
            Verdict::Failed,
            (AREA, name),
            "off, and /proc/sys is read-only",
            "sysctl -w net.ipv4.ip_forward=1 where it can be written",
        ),
        (None, _) => Check::gap(
            Verdict::Failed,
            (AREA, name),
            "the kernel has no IPv4, or /proc/sys is not mounted",
            "mount /proc, and use a kernel with CONFIG_INET",
        ),
    }
}

fn judge_bridge_filter(on: Option<bool>) -> Check {
    let found = match on {
        Some(true) => "on: what pods of a bridge send each other passes iptables' FORWARD",
        Some(false) | None => "off; turn it on for a kube-proxy in iptables mode",
    };
    Check::ok(AREA, "bridge-nf-call-iptables", found)
}

fn judge_resolver(resolver: Result<ResolvConf, String>) -> Check {
    let name = "name servers";
    let advice = "name a server that is not on the loopback in /etc/resolv.conf, or let the resolver \
                  write its own to /run/systemd/resolve/resolv.conf";
    match resolver {
        Ok(conf) => {
            let reachable: Vec<&str> = conf
                .content
                .lines()
                .filter_map(|line| line.trim().strip_prefix("nameserver"))
                .map(str::trim)
                .collect();
            if reachable.is_empty() {
                Check::gap(Verdict::Warning, (AREA, name), conf.warnings.join("; "), advice)
            } else {
                Check::ok(AREA, name, reachable.join(" "))
            }
        }
        Err(error) => Check::gap(Verdict::Warning, (AREA, name), error, advice),
    }
}

/// Firewalls of others that drop packets of pods; only a daemon whose bridge is there knows.
pub fn foreign(drops: &[ForeignDrop]) -> Check {
    let name = "other firewalls";
    if drops.is_empty() {
        return Check::ok(AREA, name, "none drops packets of pods");
    }
    let list =
        |text: fn(&ForeignDrop) -> String| drops.iter().map(text).collect::<Vec<_>>().join("; ");
    Check::gap(
        Verdict::Warning,
        (AREA, name),
        format!("packets of pods are dropped by {}", list(ForeignDrop::place)),
        list(|drop| drop.why.clone()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_one(check: &Check, verdict: Verdict, found: &str, advice: &str) {
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.found.contains(found) && check.advice.contains(advice), "{check:?}");
    }

    #[test]
    fn the_built_in_network_is_tried() {
        check_one(&judge_builtin(Some(Ok(()))), Verdict::Ok, "work", "");
        check_one(&judge_builtin(None), Verdict::Ok, "takes root", "");
        let failed = judge_builtin(Some(Err("make link: Operation not supported".into())));
        check_one(&failed, Verdict::Failed, "not supported", "modprobe -a bridge");
    }

    #[test]
    fn forwarding_is_no_gap_where_berth_can_turn_it_on() {
        check_one(&judge_forwarding(Some(true), false), Verdict::Ok, "on", "");
        check_one(&judge_forwarding(Some(false), true), Verdict::Ok, "first pod", "");
        check_one(&judge_forwarding(Some(false), false), Verdict::Failed, "read-only", "sysctl -w");
        check_one(&judge_forwarding(None, true), Verdict::Failed, "no IPv4", "CONFIG_INET");
        check_one(&judge_bridge_filter(None), Verdict::Ok, "off", "");
        check_one(&judge_bridge_filter(Some(true)), Verdict::Ok, "on", "");
    }

    #[test]
    fn a_resolver_on_the_loopback_alone_is_a_gap() {
        let conf = |content: &str, warnings: &[&str]| {
            let warnings = warnings.iter().map(|text| (*text).to_owned()).collect();
            Ok(ResolvConf { content: content.to_owned(), warnings })
        };
        let good =
            judge_resolver(conf("search x\nnameserver 9.9.9.9\nnameserver 1.1.1.1\n", &["one"]));
        check_one(&good, Verdict::Ok, "9.9.9.9 1.1.1.1", "");
        let stub = judge_resolver(conf("search x\n", &["127.0.0.53 is on the loopback"]));
        check_one(&stub, Verdict::Warning, "127.0.0.53", "not on the loopback");
        check_one(
            &judge_resolver(Err("read it".into())),
            Verdict::Warning,
            "read it",
            "/etc/resolv.conf",
        );
    }

    #[test]
    fn firewalls_that_drop_are_named() {
        check_one(&foreign(&[]), Verdict::Ok, "none", "");
        let drop = ForeignDrop {
            family: "ip".into(),
            table: "filter".into(),
            chain: "FORWARD".into(),
            why: "run: ufw route allow in on berth0".into(),
        };
        check_one(
            &foreign(&[drop]),
            Verdict::Warning,
            "table ip filter, chain FORWARD",
            "ufw route",
        );
    }
}
