//! Volumes: `[SOURCE:]TARGET[:OPTIONS]`, the source a path of the host or the name of a volume.

use std::path::Path;

use proto::control::Volume;

/// Reads one `--volume`. A source that begins with a dot is a path from the working directory.
pub(in crate::cli) fn volume(text: &str) -> Result<Volume, String> {
    if !text.starts_with('.') {
        return volume_at(text, Path::new("/"));
    }
    let here = std::env::current_dir()
        .map_err(|error| format!("find the working directory: {error}; write an absolute path"))?;
    volume_at(text, &here)
}

fn volume_at(text: &str, here: &Path) -> Result<Volume, String> {
    let (source, target, options) = match text.split(':').collect::<Vec<_>>()[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err("has too many colons; write SOURCE:TARGET or SOURCE:TARGET:ro".to_owned()),
    };
    if !target.starts_with('/') {
        return Err(format!("the target {target:?} must be an absolute path in the container"));
    }
    let source = if source.is_empty() && text.contains(':') {
        return Err(
            "the source is empty; write a path, the name of a volume, or TARGET alone".to_owned()
        );
    } else if source.starts_with(['/', '.']) {
        absolute(source, here)?
    } else if source.contains('/') || source.starts_with('~') {
        return Err(format!(
            "{source:?} is neither a path nor the name of a volume; write ./{source} or an absolute path"
        ));
    } else {
        source.to_owned()
    };
    Ok(Volume { source, target: target.to_owned(), readonly: is_readonly(options)? })
}

fn is_readonly(options: &str) -> Result<bool, String> {
    let mut readonly = None;
    for option in options.split(',').filter(|_| !options.is_empty()) {
        let wanted = match option {
            "ro" => true,
            "rw" => false,
            _ => return Err(format!("{option:?} is no option that is served; write ro or rw")),
        };
        if readonly.replace(wanted).is_some_and(|before| before != wanted) {
            return Err("has both ro and rw; write one".to_owned());
        }
    }
    Ok(readonly.unwrap_or(false))
}

/// The path from the root, without dots, as docker makes it: by the text alone.
fn absolute(path: &str, here: &Path) -> Result<String, String> {
    let mut parts: Vec<&str> = Vec::new();
    let here = if path.starts_with('/') { Path::new("/") } else { here };
    let here = here.to_str().ok_or("the working directory is not UTF-8; write an absolute path")?;
    for part in here.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, source: &str, target: &str, readonly: bool) {
        let expected = Volume { source: source.into(), target: target.into(), readonly };
        assert_eq!(volume_at(text, Path::new("/home/me")), Ok(expected), "{text}");
    }

    #[test]
    fn paths_and_names_are_told_apart() {
        check("/data", "", "/data", false);
        check("/srv/www:/data", "/srv/www", "/data", false);
        check("/srv/www/:/data:ro", "/srv/www", "/data", true);
        check("/srv/../www:/data:rw", "/www", "/data", false);
        check("web:/data", "web", "/data", false);
        check("web:/data:ro,ro", "web", "/data", true);
        check(".:/data", "/home/me", "/data", false);
        check("./www:/data", "/home/me/www", "/data", false);
        check("../www/./x:/data", "/home/www/x", "/data", false);
        check("../../../..:/data", "/", "/data", false);
        check("./a b:/data:", "/home/me/a b", "/data", false);
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = volume_at(text, Path::new("/home/me")).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_the_fix() {
        refused("", "must be an absolute path");
        refused("data", "must be an absolute path");
        refused("web:data", "the target \"data\"");
        refused("/data:ro", "the target \"ro\"");
        refused(":/data", "the source is empty");
        refused("a/b:/data", "write ./a/b");
        refused("~/x:/data", "write ./~/x or an absolute path");
        refused("web:/data:z", "\"z\" is no option that is served; write ro or rw");
        refused("web:/data:ro,", "\"\" is no option");
        refused("web:/data:ro,rw", "both ro and rw");
        refused("a:/b:ro:x", "too many colons");
    }
}
