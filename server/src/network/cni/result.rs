//! What plugins answer: results of every version, and errors (CNI 1.1, section 5).

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::Version;

/// The longest text of a plugin that is told on.
const MAX_TEXT: usize = 1000;

/// An error as a plugin prints it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{}", self.text())]
pub struct PluginError {
    /// See [`code`].
    pub code: u64,
    /// Short.
    #[serde(default)]
    pub msg: String,
    /// Long; may be empty.
    #[serde(default)]
    pub details: String,
}

/// Codes of errors that mean something to a runtime.
pub mod code {
    /// Nothing is known of the container, and nothing need be cleaned up.
    pub const UNKNOWN_CONTAINER: u64 = 3;
    /// The same call may succeed later.
    pub const TRY_AGAIN: u64 = 11;
    /// The plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u64 = 50;
    /// Besides that, what is attached already has less than it should.
    pub const LIMITED: u64 = 51;
}

impl PluginError {
    /// What a plugin printed before it failed; None where that is no error.
    pub fn parse(output: &[u8]) -> Option<PluginError> {
        let mut error: PluginError = serde_json::from_slice(output).ok()?;
        for text in [&mut error.msg, &mut error.details] {
            *text = plain(text);
        }
        Some(error)
    }

    fn text(&self) -> String {
        let details =
            if self.details.is_empty() { String::new() } else { format!("; {}", self.details) };
        format!("code {}: {}{details}", self.code, self.msg)
    }
}

/// A text of a plugin as one line of bounded length.
pub fn plain(text: &str) -> String {
    let line: String =
        text.chars().map(|one| if one.is_control() { ' ' } else { one }).take(MAX_TEXT).collect();
    line.trim().to_owned()
}

/// Takes what a plugin printed after an ADD, in any version, and writes it in the version that is spoken.
///
/// # Errors
/// It is no result; the text says why.
pub fn parse(output: &[u8], spoken: Version) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(output).map_err(|error| {
        format!("it printed no JSON ({error}): {:?}", plain(&String::from_utf8_lossy(output)))
    })?;
    let Value::Object(result) = value else {
        return Err("it printed no object".into());
    };
    let version = match result.get("cniVersion") {
        None => spoken,
        Some(Value::String(text)) if text.is_empty() => spoken,
        Some(Value::String(text)) => Version::parse(text)
            .ok_or_else(|| format!("its result has the unknown version {:?}", plain(text)))?,
        Some(_) => return Err("its result has a version that is no text".into()),
    };
    let result = convert(result, version, spoken);
    addresses(&Value::Object(result.clone()), "")?;
    Ok(Value::Object(result))
}

fn convert(mut result: Map<String, Value>, from: Version, to: Version) -> Map<String, Value> {
    if from < Version::INTERFACES && to >= Version::INTERFACES {
        result = from_legacy(&result);
    } else if from >= Version::INTERFACES && to < Version::INTERFACES {
        result = to_legacy(&result);
    }
    if let (true, Some(Value::Array(ips))) = (to >= Version::INTERFACES, result.get_mut("ips")) {
        for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
            let is_ipv6 = text(ip, "address").contains(':');
            if to >= Version::V1 {
                ip.remove("version");
            } else {
                ip.insert("version".into(), if is_ipv6 { "6" } else { "4" }.into());
            }
        }
    }
    result.insert("cniVersion".into(), to.text().into());
    result
}

/// Results of CNI 0.1 and 0.2 have one address of each family, and no interfaces.
fn from_legacy(old: &Map<String, Value>) -> Map<String, Value> {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for family in ["ip4", "ip6"] {
        let Some(ip) = old.get(family).and_then(Value::as_object) else { continue };
        let mut new = Map::from_iter([("address".to_owned(), Value::from(text(ip, "ip")))]);
        new.extend(ip.get("gateway").map(|gateway| ("gateway".to_owned(), gateway.clone())));
        ips.push(Value::Object(new));
        routes.extend(ip.get("routes").and_then(Value::as_array).into_iter().flatten().cloned());
    }
    let mut new =
        Map::from_iter([("ips".to_owned(), ips.into()), ("routes".to_owned(), routes.into())]);
    new.extend(old.get("dns").map(|dns| ("dns".to_owned(), dns.clone())));
    new
}

fn to_legacy(new: &Map<String, Value>) -> Map<String, Value> {
    let list = |key: &str| new.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut old = Map::new();
    for (family, is_ipv6) in [("ip4", false), ("ip6", true)] {
        let fits = |value: &Value, key: &str| {
            value.as_object().is_some_and(|value| text(value, key).contains(':') == is_ipv6)
        };
        let ips = list("ips");
        let Some(ip) = ips.iter().find(|ip| fits(ip, "address")) else { continue };
        let routes: Vec<Value> =
            list("routes").into_iter().filter(|route| fits(route, "dst")).collect();
        let mut entry = json!({"ip": ip["address"], "routes": routes});
        if !ip["gateway"].is_null() {
            entry["gateway"] = ip["gateway"].clone();
        }
        old.insert(family.into(), entry);
    }
    old.extend(new.get("dns").map(|dns| ("dns".to_owned(), dns.clone())));
    old
}

fn text<'m>(map: &'m Map<String, Value>, key: &str) -> &'m str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The addresses that a result gives an interface, in its order; those that name no interface are the pod's, too.
///
/// # Errors
/// An address is none.
pub fn addresses(result: &Value, interface: &str) -> Result<Vec<IpAddr>, String> {
    let empty = Vec::new();
    let list = |key: &str| result[key].as_array().unwrap_or(&empty);
    let legacy = ["ip4", "ip6"].into_iter().map(|family| &result[family]["ip"]);
    let legacy = legacy.filter(|ip| !ip.is_null()).map(|ip| (ip, None));
    let ips = list("ips").iter().map(|ip| (&ip["address"], ip["interface"].as_u64()));
    let mut found = Vec::new();
    for (address, index) in ips.chain(legacy) {
        let written = address.as_str().unwrap_or_default();
        let bare = written.split_once('/').map_or(written, |(address, _)| address);
        let parsed = bare.parse::<IpAddr>().map_err(|_| {
            format!("its result has the address {:?}, which is none", plain(written))
        })?;
        let named = index.and_then(|index| list("interfaces").get(usize::try_from(index).ok()?));
        let is_pods = named.is_none_or(|named| {
            named["name"].as_str() == Some(interface)
                && named["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
        });
        if is_pods {
            found.push(parsed);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[track_caller]
    fn check(printed: Value, spoken: &str, expected: Value) {
        let got = parse(printed.to_string().as_bytes(), version(spoken)).unwrap();
        assert_eq!(got, expected);
    }

    #[test]
    fn results_are_told_in_the_version_that_is_spoken() {
        let v1 = json!({
            "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 0}, {"address": "fd00::2/64"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}], "dns": {}, "more": 1,
        });
        let mut newer = v1.clone();
        newer["cniVersion"] = "1.1.0".into();
        check(v1.clone(), "1.1.0", newer);
        let mut older = v1.clone();
        older["cniVersion"] = "0.4.0".into();
        older["ips"][0]["version"] = "4".into();
        older["ips"][1]["version"] = "6".into();
        check(v1.clone(), "0.4.0", older.clone());
        check(older, "1.0.0", v1.clone());
        let legacy = json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "10.1.0.2/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]}, "dns": {},
        });
        check(v1, "0.2.0", legacy.clone());
        let back = parse(legacy.to_string().as_bytes(), version("1.0.0")).unwrap();
        assert_eq!(back["ips"][0]["address"], "10.1.0.2/16");
        assert_eq!(back["routes"][1]["dst"], "::/0");
        // Without a version it is the one that was asked for.
        check(json!({}), "0.4.0", json!({"cniVersion": "0.4.0"}));
    }

    #[test]
    fn what_is_no_result_is_told_so() {
        let check = |printed: &str, words: &str| {
            let error = parse(printed.as_bytes(), version("1.0.0")).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        check("garbage\u{1}", "no JSON (expected value at line 1 column 1): \"garbage\"");
        check("[]", "no object");
        check("", "no JSON");
        check(r#"{"cniVersion":"9.0.0"}"#, "unknown version");
        check(r#"{"ips":[{"address":"10.0.0.300/8"}]}"#, "10.0.0.300/8");
    }

    #[test]
    fn addresses_are_those_of_the_pods_interface() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": "10.1.0.1/16", "interface": 0}, {"address": "10.1.0.2/16", "interface": 2},
                    {"address": "fd00::2/64"}],
        });
        let expected: Vec<IpAddr> = vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result, "eth0"), Ok(expected));
        let legacy = json!({"ip4": {"ip": "10.1.0.2/16"}});
        assert_eq!(addresses(&legacy, "eth0").unwrap().len(), 1);
    }

    #[test]
    fn an_error_is_one_line() {
        let error =
            PluginError::parse(br#"{"code":7,"msg":"no\nroom","details":"at all"}"#).unwrap();
        assert_eq!(error.to_string(), "code 7: no room; at all");
        assert_eq!(PluginError::parse(b"{}"), None);
        assert_eq!(plain(&"x".repeat(5000)).len(), 1000);
    }
}
