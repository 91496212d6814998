//! Names in a layer: which path an entry means, and what OCI's whiteout names say.
//!
//! OCI image spec, layer.md: `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq`
//! hides all that the layers below have in its directory. Other names that begin with
//! `.wh..wh.` are notes of AUFS to itself, which every other runtime skips too.

use crate::limits::Limits;

/// A path inside a layer: parts joined by `/`, none of them empty, `.` or `..`. The root is the empty path.
pub(crate) type LayerPath = Vec<u8>;

/// What an entry is for, told by its name alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A file, directory or anything else at this path.
    Entry(LayerPath),
    /// The name in this directory is hidden.
    Whiteout { dir: LayerPath, name: Vec<u8> },
    /// All that layers below have in this directory is hidden.
    Opaque { dir: LayerPath },
    /// A note of AUFS; nothing of it goes to disk.
    Note,
}

const WHITEOUT: &[u8] = b".wh.";
const NOTE: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Longest name of one file (NAME_MAX of Linux).
const NAME_MAX: usize = 255;

/// Reads the name of an entry.
pub(super) fn meaning(name: &[u8], limits: &Limits) -> Result<Meaning, String> {
    let path = clean(name, limits)?;
    let Some(first) = path.split(|byte| *byte == b'/').position(|part| part.starts_with(WHITEOUT))
    else {
        return Ok(Meaning::Entry(path));
    };
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let (dir, part) = (parts[..first].join(&b'/'), parts[first]);
    let is_last = first + 1 == parts.len();
    match &part[WHITEOUT.len()..] {
        _ if part == OPAQUE && is_last => Ok(Meaning::Opaque { dir }),
        _ if part.starts_with(NOTE) => Ok(Meaning::Note),
        b"" | b"." | b".." => Err(format!("{} hides nothing that can exist", shown(name))),
        hidden if is_last => Ok(Meaning::Whiteout { dir, name: hidden.to_vec() }),
        _ => Err(format!("{} lies below a whiteout", shown(name))),
    }
}

/// The path that a name means. Absolute names start at the root of the layer, as everywhere.
pub(crate) fn clean(name: &[u8], limits: &Limits) -> Result<LayerPath, String> {
    let mut path = Vec::with_capacity(name.len());
    let mut depth: u64 = 0;
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(format!("{} has a part \"..\"", shown(name))),
            _ => {}
        }
        if part.len() > NAME_MAX {
            return Err(format!("{} has a part of more than {NAME_MAX} bytes", shown(name)));
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
        depth += 1;
    }
    if path.contains(&0) {
        return Err(format!("{} has a NUL in its name", shown(name)));
    }
    if path.len() as u64 > limits.path_bytes.0 || depth > limits.path_depth {
        return Err(format!(
            "{} is longer than {} bytes (limits.path_bytes) or deeper than {} (limits.path_depth)",
            shown(name),
            limits.path_bytes.0,
            limits.path_depth
        ));
    }
    Ok(path)
}

/// A name as an error may show it: quoted, and cut where it is long.
pub(crate) fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(&name[..name.len().min(LONGEST)]);
    let cut = if name.len() > LONGEST { ".." } else { "" };
    format!("{text:?}{cut}")
}

/// Splits a path into the directory and the last part. The root has no last part.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// A path below a directory.
pub(super) fn join(dir: &[u8], name: &[u8]) -> LayerPath {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Option<Meaning>) {
        assert_eq!(meaning(name.as_bytes(), &Limits::default()).ok(), expected, "{name}");
    }

    fn entry(path: &str) -> Option<Meaning> {
        Some(Meaning::Entry(path.into()))
    }

    #[test]
    fn every_spelling_of_a_path_means_the_same() {
        for name in ["a/b", "./a/b", "/a/b", "//a//b//", "a/./b/", "././/a/b/."] {
            check(name, entry("a/b"));
        }
        for name in ["", "/", ".", "./", "//."] {
            check(name, entry(""));
        }
    }

    #[test]
    fn nothing_leads_up() {
        for name in ["..", "../a", "a/..", "a/../b", "/../a", "a/../../b"] {
            check(name, None);
        }
        check("..a/b..", entry("..a/b.."));
    }

    #[test]
    fn names_have_a_longest_length_and_depth() {
        check(&"a".repeat(255), entry(&"a".repeat(255)));
        check(&"a".repeat(256), None);
        check(&"a/".repeat(200), entry(&"a/".repeat(200)[..399]));
        check(&"a/".repeat(2000), None);
        check(&format!("{}/b", "a".repeat(200)).repeat(30), None);
        check("a\0b", None);
    }

    #[test]
    fn whiteouts_hide_a_name_or_a_whole_directory() {
        check("a/.wh.b", Some(Meaning::Whiteout { dir: "a".into(), name: "b".into() }));
        check(".wh.b", Some(Meaning::Whiteout { dir: "".into(), name: "b".into() }));
        check("a/.wh..wh..opq", Some(Meaning::Opaque { dir: "a".into() }));
        check(".wh..wh.plnk/1.2", Some(Meaning::Note));
        check(".wh..wh.aufs", Some(Meaning::Note));
        check("a.wh.b", entry("a.wh.b"));
    }

    #[test]
    fn malformed_whiteouts_are_refused() {
        for name in [".wh.", "a/.wh..", "a/.wh...", ".wh.a/b", "a/.wh.b/c"] {
            check(name, None);
        }
    }
}
