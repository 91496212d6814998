//! How long it takes to give a pod its network and take it back, beside what the kernel alone
//! needs for the same link. Prints medians in microseconds; run it as root:
//! `cargo bench -p server --features kernel-tests --bench network`.

#![allow(clippy::unwrap_used, reason = "a figure that cannot be had ends the program")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use server::network::{PortMapping, Protocol};

#[path = "../tests/network_kernel/nodes.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod nodes;

use nodes::{Node, Pod};

/// Pods that are there at once, and how often that is repeated.
const PODS: u16 = 100;
const ROUNDS: usize = 5;

fn main() -> std::io::Result<()> {
    let mut figures = Vec::new();
    for count in [0_u16, 1, 4] {
        let [attach, detach, tidy] = pods_with_ports(count);
        figures.push((format!("attach, {count} ports"), attach));
        figures.push((format!("detach, {count} ports"), detach));
        figures.push((format!("tidy after 100, {count} ports"), tidy));
    }
    figures.push(("counters of 100 pods".to_owned(), counters()));
    figures.push(("sync with 100 pods".to_owned(), sync()));
    let mut out = std::io::stdout().lock();
    for (what, mut times) in figures {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
        writeln!(out, "{what}: median {} us, 95 % {} us", at(50), at(95))?;
    }
    Ok(())
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let value = work();
    times.push(begin.elapsed());
    value
}

fn ports(pod: u16, count: u16) -> Vec<PortMapping> {
    let port = |number| PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80 + number,
        host_port: 10_000 + pod * 10 + number,
        host_ip: None,
    };
    (0..count).map(port).collect()
}

fn pods_with_ports(count: u16) -> [Vec<Duration>; 3] {
    let node = Node::new();
    let bridge = node.open(&[]);
    let [mut attach, mut detach, mut tidy] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let pods: Vec<Pod> = (0..PODS).map(|_| Pod::prepare()).collect();
        let mut attachments = Vec::new();
        for number in 0..PODS {
            let sandbox = format!("pod{number}");
            attachments.push(bridge.plan(&sandbox, &ports(number, count)).unwrap());
        }
        node.namespace.run(|| {
            for (pod, attachment) in pods.iter().zip(&attachments) {
                let (netns, route) = pod.descriptors();
                timed(&mut attach, || bridge.attach(attachment, netns, route).unwrap());
            }
            for attachment in &attachments {
                timed(&mut detach, || bridge.detach(attachment).unwrap());
            }
            timed(&mut tidy, || bridge.tidy().unwrap());
        });
    }
    [attach, detach, tidy]
}

fn counters() -> Vec<Duration> {
    let node = Node::new();
    let bridge = node.open(&[]);
    let _pods: Vec<Pod> =
        (0..PODS).map(|number| node.pod(&bridge, &format!("pod{number}"), &[])).collect();
    let mut times = Vec::new();
    node.namespace.run(|| {
        for _ in 0..100 {
            assert_eq!(timed(&mut times, || bridge.counters().unwrap()).len(), usize::from(PODS));
        }
    });
    times
}

fn sync() -> Vec<Duration> {
    let node = Node::new();
    let bridge = node.open(&[]);
    let _pods: Vec<Pod> = (0..PODS)
        .map(|number| node.pod(&bridge, &format!("pod{number}"), &ports(number, 2)))
        .collect();
    let mut times = Vec::new();
    node.namespace.run(|| {
        for _ in 0..30 {
            timed(&mut times, || bridge.sync().unwrap());
        }
    });
    times
}
