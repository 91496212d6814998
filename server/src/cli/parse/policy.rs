//! Flags that choose: restart policy, network, security options, labels, limits.

use std::path::Path;

use proto::control::{NetworkMode, RestartCondition, RestartPolicy};

/// A label's name and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Label(pub(in crate::cli) String, pub(in crate::cli) String);

/// `NAME=value`, or `NAME` for an empty value.
pub(in crate::cli) fn label(text: &str) -> Result<Label, String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("the name is empty; write NAME=value".to_owned());
    }
    Ok(Label(name.to_owned(), value.to_owned()))
}

/// `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:N`.
pub(in crate::cli) fn restart(text: &str) -> Result<RestartPolicy, String> {
    let (name, retries) = match text.split_once(':') {
        Some((name, retries)) => (name, Some(retries)),
        None => (text, None),
    };
    let condition = match name {
        "no" => RestartCondition::No,
        "always" => RestartCondition::Always,
        "unless-stopped" => RestartCondition::UnlessStopped,
        "on-failure" => RestartCondition::OnFailure,
        _ => return Err("write no, always, unless-stopped, on-failure or on-failure:N".to_owned()),
    };
    let maximum_retries = match retries {
        None => 0,
        Some(_) if condition != RestartCondition::OnFailure => {
            return Err("only on-failure takes a number of tries, as in on-failure:3".to_owned());
        }
        Some(count) => count
            .parse()
            .map_err(|_| format!("{count:?} is no number of tries; write on-failure:3"))?,
    };
    Ok(RestartPolicy { condition: condition.into(), maximum_retries })
}

/// `host`, `none`, `bridge` or `default`.
pub(in crate::cli) fn network(text: &str) -> Result<NetworkMode, String> {
    match text {
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        "bridge" | "default" => Ok(NetworkMode::Default),
        _ => Err("is no network that berth has; write host, none or bridge".to_owned()),
    }
}

/// `seccomp=unconfined`, `seccomp=default` or `seccomp=FILE`: what stands behind the sign, the file's path absolute.
pub(in crate::cli) fn security(text: &str) -> Result<String, String> {
    let served =
        "write seccomp=unconfined, seccomp=default or seccomp=FILE; no other option is served";
    let value = text.strip_prefix("seccomp").and_then(|rest| rest.strip_prefix(['=', ':']));
    match value {
        None | Some("") => Err(served.to_owned()),
        Some("builtin") => Ok("default".to_owned()),
        Some(word @ ("unconfined" | "default")) => Ok(word.to_owned()),
        Some(file) => {
            let path = std::path::absolute(Path::new(file))
                .map_err(|error| format!("find the working directory: {error}"))?;
            Ok(path.to_string_lossy().into_owned())
        }
    }
}

/// A capability with or without CAP_, in any case, or ALL: as the kernel's headers name it.
pub(in crate::cli) fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let word = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    if name.is_empty() || !name.bytes().all(word) {
        return Err("is no capability; write one such as NET_ADMIN, or ALL".to_owned());
    }
    Ok(name.to_owned())
}

/// A number of processes; 0 and -1 are no limit.
pub(in crate::cli) fn pids_limit(text: &str) -> Result<i64, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(0),
        Ok(count) if count >= 0 => Ok(count),
        _ => Err("write a number of processes, or -1 for no limit".to_owned()),
    }
}

/// A number of lines, or `all`, which is None.
pub(in crate::cli) fn tail(text: &str) -> Result<Option<u64>, String> {
    if text == "all" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "write a number of lines, or all".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_restart(text: &str, condition: RestartCondition, maximum_retries: u32) {
        let expected = RestartPolicy { condition: condition.into(), maximum_retries };
        assert_eq!(restart(text), Ok(expected), "{text}");
    }

    #[test]
    fn restart_policies_are_dockers() {
        check_restart("no", RestartCondition::No, 0);
        check_restart("always", RestartCondition::Always, 0);
        check_restart("unless-stopped", RestartCondition::UnlessStopped, 0);
        check_restart("on-failure", RestartCondition::OnFailure, 0);
        check_restart("on-failure:5", RestartCondition::OnFailure, 5);
        for (bad, expected) in [
            ("", "write no, always"),
            ("never", "write no, always"),
            ("always:3", "only on-failure"),
            ("on-failure:", "no number of tries"),
            ("on-failure:-1", "no number of tries"),
            ("on-failure:x", "no number of tries"),
        ] {
            let error = restart(bad).unwrap_err();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn networks_are_the_three() {
        assert_eq!(network("host"), Ok(NetworkMode::Host));
        assert_eq!(network("none"), Ok(NetworkMode::None));
        assert_eq!(network("bridge"), Ok(NetworkMode::Default));
        assert_eq!(network("default"), Ok(NetworkMode::Default));
        for bad in ["", "Host", "container:web", "mynet"] {
            assert!(network(bad).unwrap_err().contains("host, none or bridge"), "{bad}");
        }
    }

    #[test]
    fn seccomp_is_the_security_option() {
        assert_eq!(security("seccomp=unconfined").as_deref(), Ok("unconfined"));
        assert_eq!(security("seccomp:unconfined").as_deref(), Ok("unconfined"));
        assert_eq!(security("seccomp=builtin").as_deref(), Ok("default"));
        assert_eq!(security("seccomp=/etc/p.json").as_deref(), Ok("/etc/p.json"));
        let relative = security("seccomp=p.json").unwrap();
        assert!(relative.starts_with('/') && relative.ends_with("/p.json"), "{relative}");
        for bad in ["", "seccomp", "seccomp=", "apparmor=x", "no-new-privileges"] {
            assert!(security(bad).unwrap_err().contains("no other option"), "{bad}");
        }
    }

    #[test]
    fn labels_and_capabilities_have_names() {
        assert_eq!(label("a=b=c"), Ok(Label("a".into(), "b=c".into())));
        assert_eq!(label("a"), Ok(Label("a".into(), String::new())));
        assert!(label("=b").is_err());
        assert_eq!(capability("net_admin").as_deref(), Ok("NET_ADMIN"));
        assert_eq!(capability("CAP_SYS_ADMIN").as_deref(), Ok("SYS_ADMIN"));
        assert_eq!(capability("all").as_deref(), Ok("ALL"));
        for bad in ["", "CAP_", "NET ADMIN", "21"] {
            assert!(capability(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_have_a_word_for_no_limit() {
        assert_eq!(pids_limit("100"), Ok(100));
        assert_eq!(pids_limit("-1"), Ok(0));
        assert_eq!(pids_limit("0"), Ok(0));
        assert!(pids_limit("-2").is_err() && pids_limit("many").is_err());
        assert_eq!(tail("all"), Ok(None));
        assert_eq!(tail("0"), Ok(Some(0)));
        assert_eq!(tail("10"), Ok(Some(10)));
        assert!(tail("-1").is_err() && tail("").is_err());
    }
}
