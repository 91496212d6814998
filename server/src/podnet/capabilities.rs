//! What CNI plugins are told of a pod, if they ask: the arguments, and the capabilities by their conventional keys
//! (CONVENTIONS.md of the CNI specification, and containerd's for what is Kubernetes' own).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::spec::{PodName, SandboxSpec};

/// Annotations of a pod by which Kubernetes asks for a bandwidth, bits per second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What Kubernetes allows there: 1k to 1P.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// No limit is set for bursts, as containerd does not either.
const BURST: u32 = u32::MAX;

/// The text of CNI_ARGS, as containerd and others have it.
///
/// # Errors
/// A name has a character that separates arguments.
pub(super) fn args(sandbox: &SandboxId, name: &PodName) -> Result<String> {
    let pairs = [
        ("K8S_POD_NAMESPACE", name.namespace.as_str(), "config.metadata.namespace"),
        ("K8S_POD_NAME", &name.name, "config.metadata.name"),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox.as_str(), "id"),
        ("K8S_POD_UID", &name.uid, "config.metadata.uid"),
    ];
    let mut text = "IgnoreUnknown=1".to_owned();
    for (key, value, field) in pairs {
        if value.contains([';', '=']) {
            let problem = "has ';' or '=' in it, which separate the arguments of CNI plugins";
            return Err(Error::invalid(field, problem));
        }
        text.push_str(&format!(";{key}={value}"));
    }
    Ok(text)
}

/// What plugins may ask for. `cgroup` is the pod's cgroup, `ranges` the node's share of the cluster's addresses.
///
/// # Errors
/// An annotation asks for a bandwidth that cannot be.
pub(super) fn of(
    spec: &SandboxSpec,
    cgroup: &str,
    ranges: &[String],
) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            let host_ip = port.host_ip.map(|address| address.to_string()).unwrap_or_default();
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.name(),
                "hostIP": host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    if let Some(bandwidth) = bandwidth(&spec.annotations)? {
        all.insert("bandwidth".into(), bandwidth);
    }
    if let Some(dns) = &spec.dns {
        let dns = json!({
            "servers": dns.servers, "searches": dns.searches, "options": dns.options,
        });
        all.insert("dns".into(), dns);
    }
    if !ranges.is_empty() {
        let ranges: Vec<Value> =
            ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        all.insert("ipRanges".into(), ranges.into());
    }
    all.insert("aliases".into(), json!([spec.name.name]));
    all.insert("cgroupPath".into(), cgroup.into());
    all.insert("io.kubernetes.cri.pod-annotations".into(), json!(spec.annotations));
    Ok(all)
}

fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>> {
    let mut wanted = Map::new();
    for (annotation, direction) in [(INGRESS, "ingress"), (EGRESS, "egress")] {
        let Some(text) = annotations.get(annotation) else { continue };
        let rate = quantity(text).filter(|rate| BANDWIDTH.contains(rate)).ok_or_else(|| {
            let problem = "must be bits per second from 1k to 1P, such as \"10M\"";
            Error::invalid(format!("config.annotations[{annotation:?}]"), problem)
        })?;
        wanted.insert(format!("{direction}Rate"), rate.into());
        wanted.insert(format!("{direction}Burst"), BURST.into());
    }
    Ok((!wanted.is_empty()).then(|| wanted.into()))
}

/// A quantity of Kubernetes, rounded up to a whole number: "10M", "1.5Gi", "1e6", "1500m".
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 20 || fraction.contains('.') {
        return None;
    }
    let mut value: u128 = digits.parse().ok()?;
    let mut exponent = -i32::try_from(fraction.len()).ok()?;
    match suffix {
        "" => {}
        "n" => exponent -= 9,
        "u" => exponent -= 6,
        "m" => exponent -= 3,
        "k" => exponent += 3,
        "M" => exponent += 6,
        "G" => exponent += 9,
        "T" => exponent += 12,
        "P" => exponent += 15,
        "E" => exponent += 18,
        "Ki" => value <<= 10,
        "Mi" => value <<= 20,
        "Gi" => value <<= 30,
        "Ti" => value <<= 40,
        "Pi" => value = value.checked_mul(1 << 50)?,
        "Ei" => value = value.checked_mul(1 << 60)?,
        other => exponent += other.strip_prefix(['e', 'E'])?.parse::<i8>().map(i32::from).ok()?,
    }
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    let value = if exponent >= 0 { value.checked_mul(power)? } else { value.div_ceil(power) };
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{PortMapping, Protocol};

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, expected) in [
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(3 << 29)),
            ("1e6", Some(1_000_000)),
            ("2E3", Some(2000)),
            ("1500m", Some(2)),
            ("100", Some(100)),
            (".5k", Some(500)),
            ("1P", Some(1_000_000_000_000_000)),
            ("", None),
            ("-1", None),
            ("1.2.3", None),
            ("10X", None),
            ("M", None),
            ("99999999999999999999E", None),
            ("1e99", None),
        ] {
            assert_eq!(quantity(text), expected, "{text:?}");
        }
    }

    fn name(text: &str) -> PodName {
        PodName { name: text.into(), namespace: "ns".into(), uid: "u".into(), attempt: 0 }
    }

    #[test]
    fn arguments_are_those_of_containerd() {
        let id = SandboxId::from_name(&"a".repeat(64)).unwrap();
        assert_eq!(
            args(&id, &name("web")).unwrap(),
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=u"
            )
        );
        let error = args(&id, &name("web;K8S_POD_UID=x")).unwrap_err();
        assert!(error.to_string().starts_with("config.metadata.name: "), "{error}");
    }

    #[test]
    fn plugins_are_told_what_the_pod_asks_for() {
        let spec = |annotation: &str| {
            let port = |host_port| PortMapping {
                protocol: Protocol::Udp,
                container_port: 53,
                host_port,
                host_ip: None,
            };
            SandboxSpec {
                name: name("web"),
                hostname: String::new(),
                log_directory: None,
                dns: None,
                ports: vec![port(5353), port(0)],
                labels: BTreeMap::new(),
                annotations: [(INGRESS.to_owned(), annotation.to_owned())].into(),
                cgroup_parent: String::new(),
                network: crate::sandbox::spec::NetworkMode::Pod,
                pid: crate::sandbox::spec::PidMode::Container,
                host_ipc: false,
                sysctls: BTreeMap::new(),
                privileged: false,
                handler: String::new(),
                shm_size: 0,
                local: false,
                overhead: None,
                resources: None,
            }
        };
        let all = of(&spec("10M"), "/pods/x", &["10.1.0.0/24".into()]).unwrap();
        let expected = json!({
            "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}],
            "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": u32::MAX},
            "ipRanges": [[{"subnet": "10.1.0.0/24"}]],
            "aliases": ["web"],
            "cgroupPath": "/pods/x",
            "io.kubernetes.cri.pod-annotations": {INGRESS: "10M"},
        });
        assert_eq!(Value::Object(all), expected);
        for bad in ["999", "2P", "fast"] {
            let error = of(&spec(bad), "", &[]).unwrap_err().to_string();
            assert!(error.contains(INGRESS) && error.contains("10M"), "{error}");
        }
    }
}
