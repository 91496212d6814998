//! Values as all JSON that berth shows has them.

use proto::control::PortMapping;
use runtime::shim::record::format_time;
use serde_json::{Value, json};

const NANOSECONDS: i64 = 1_000_000_000;

/// A time in nanoseconds since 1970 as RFC 3339; nothing for 0.
pub fn time(time: i64) -> Option<String> {
    (time != 0).then(|| format_time(time.div_euclid(NANOSECONDS), time.rem_euclid(NANOSECONDS)))
}

/// A port of the node that leads to one of a pod.
pub fn port(port: &PortMapping) -> Value {
    json!({
        "protocol": port.protocol().as_str_name().trim_start_matches("PROTOCOL_"),
        "containerPort": port.container_port,
        "hostPort": port.host_port,
        "hostIp": port.host_ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(0), None);
        assert_eq!(
            time(1_764_001_646_000_000_001).as_deref(),
            Some("2025-11-24T16:27:26.000000001Z")
        );
    }
}
