//! Checks of CNI: whether the configuration can be used, and the plugins that it names are there.

use std::time::Duration;

use super::{Check, Verdict};
use crate::config::{self, NetworkMode};
use crate::error::{Result, chain};
use crate::network::cni::chain::Plugins;
use crate::network::cni::config::Network;

const PLACE: (&str, &str) = ("network", "CNI");

/// Looks at the configuration. Blocks.
pub fn cni(config: &config::Network) -> Check {
    if config.mode == NetworkMode::Bridge {
        return Check::ok(PLACE.0, PLACE.1, "not used: network.mode is \"bridge\"");
    }
    let loaded = crate::network::cni::config::load(&config.cni_conf_dirs);
    let plugins =
        Plugins { directories: config.cni_bin_dirs.clone(), deadline: Duration::from_secs(1) };
    let missing = match &loaded {
        Ok(Some(network)) => plugins.find_all(network).err().map(|error| chain(&error)),
        Ok(None) | Err(_) => None,
    };
    judge(config, &loaded, missing)
}

fn judge(
    config: &config::Network,
    loaded: &Result<Option<Network>>,
    missing: Option<String>,
) -> Check {
    let directories: Vec<_> =
        config.cni_conf_dirs.iter().map(|one| one.display().to_string()).collect();
    let directories = directories.join(", ");
    match (loaded, missing) {
        (Err(error), _) => {
            let advice = "mend the file, or remove it; it is read at once";
            Check::gap(Verdict::Failed, PLACE, chain(error), advice)
        }
        (Ok(Some(network)), Some(missing)) => Check::gap(
            Verdict::Failed,
            PLACE,
            format!("{}: {missing}", network.shown()),
            "install the plugin (Debian's package containernetworking-plugins has the usual ones), \
             or name its directory in network.cni_bin_dirs",
        ),
        (Ok(Some(network)), None) => {
            let version = network.version.text();
            Check::ok(PLACE.0, PLACE.1, format!("{}, version {version}", network.shown()))
        }
        (Ok(None), _) if config.mode == NetworkMode::Cni => Check::gap(
            Verdict::Failed,
            PLACE,
            format!("no configuration in {directories}, and network.mode is \"cni\""),
            "install the cluster's network, or set network.mode to \"bridge\"",
        ),
        (Ok(None), _) => {
            let found = format!("no configuration in {directories}: the built-in network serves");
            Check::ok(PLACE.0, PLACE.1, found)
        }
    }
}

/// What CNI plugins have not taken back yet; only a daemon knows.
pub fn leaving(told: &[String]) -> Check {
    let name = "CNI attachments";
    if told.is_empty() {
        return Check::ok(PLACE.0, name, "none waits to be given back");
    }
    let advice = "put right what is said of the plugin; berth tries again by itself, every five minutes at least";
    Check::gap(Verdict::Warning, (PLACE.0, name), told.join("; "), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], mode: NetworkMode, verdict: Verdict, words: &str) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let config = config::Network {
            mode,
            cni_conf_dirs: vec![dir.path().into()],
            cni_bin_dirs: vec![dir.path().into()],
            ..config::Config::default().network
        };
        let check = cni(&config);
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.found.contains(words), "{check:?}");
        assert_eq!(check.advice.is_empty(), verdict == Verdict::Ok, "{check:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        use NetworkMode::{Auto, Bridge, Cni};
        let good = ("a.conf", r#"{"cniVersion":"1.0.0","name":"net","type":"one"}"#);
        check(&[good, ("one", "")], Auto, Verdict::Ok, "network net");
        check(&[good], Auto, Verdict::Failed, "CNI plugin one in any of");
        check(&[("a.conf", "{")], Auto, Verdict::Failed, "a.conf: no JSON");
        check(&[("a.conf", "{")], Bridge, Verdict::Ok, "not used");
        check(&[], Auto, Verdict::Ok, "the built-in network serves");
        check(&[], Cni, Verdict::Failed, "no configuration in");
        assert_eq!(leaving(&[]).verdict, Verdict::Ok);
        assert_eq!(leaving(&["address".into()]).verdict, Verdict::Warning);
    }
}
