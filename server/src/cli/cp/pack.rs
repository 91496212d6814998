//! Files of this machine as a tar for the program `tar` of a container: ustar, with PAX records (POSIX pax(1)) for what
//! does not fit into it.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::super::failure::tell;

const BLOCK: usize = 512;
/// Directories deeper than this are an error: a link that is followed may lead into itself.
const MAX_DEPTH: usize = 256;

/// How files are packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// Follow links.
    pub(super) follow: bool,
    /// Owners as they are here; else all is root's.
    pub(super) owners: bool,
}

/// Writes a file, or a directory with all that is in it, under a name, and the end of the archive.
///
/// # Errors
/// Those of reading and writing, with the path.
pub(super) fn pack(path: &Path, name: &[u8], style: Style, out: &mut impl Write) -> io::Result<()> {
    // The path itself was chosen by whoever asks: its own link is followed where it says so only.
    add(path, name, style, 0, out)?;
    out.write_all(&[0; 2 * BLOCK])?;
    out.flush()
}

fn add(
    path: &Path,
    name: &[u8],
    style: Style,
    depth: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let about =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if depth > MAX_DEPTH {
        return Err(about(io::Error::other("deeper than 256 directories")));
    }
    let metadata = if style.follow { path.metadata() } else { path.symlink_metadata() };
    let metadata = metadata.map_err(about)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        // Of a directory whose content alone is wanted nothing is told.
        if name != b"." {
            out.write_all(&header(&[name, b"/"].concat(), b"", b'5', 0, &metadata, style))?;
        }
        let mut inside: Vec<_> =
            path.read_dir().map_err(about)?.collect::<Result<_, _>>().map_err(about)?;
        inside.sort_by_key(std::fs::DirEntry::file_name);
        for entry in inside {
            let below = [name, b"/", entry.file_name().as_bytes()].concat();
            add(&entry.path(), &below, style, depth + 1, out)?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        let link = path.read_link().map_err(about)?;
        return out.write_all(&header(
            name,
            link.as_os_str().as_bytes(),
            b'2',
            0,
            &metadata,
            style,
        ));
    }
    if !kind.is_file() {
        tell(&format!("{}: neither a file nor a directory nor a link; left out", path.display()));
        return Ok(());
    }
    let file = File::open(path).map_err(about)?;
    // As it is now that it is open: it may have been exchanged.
    let metadata = file.metadata().map_err(about)?;
    let size = metadata.len();
    out.write_all(&header(name, b"", b'0', size, &metadata, style))?;
    let copied = io::copy(&mut file.take(size), out)?;
    // One that shrinks meanwhile is filled up, as tar does: the archive must go on.
    io::copy(&mut io::repeat(0).take(size - copied), out)?;
    let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    out.write_all(&[0; BLOCK][..padding])
}

/// A header, with one of PAX records in front where something does not fit.
fn header(name: &[u8], link: &[u8], kind: u8, size: u64, of: &Metadata, style: Style) -> Vec<u8> {
    let (uid, gid) = if style.owners { (of.uid(), of.gid()) } else { (0, 0) };
    let mut records = Vec::new();
    let mut record = |key: &str, value: &[u8]| {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend_from_slice(format!("{length} {key}=").as_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    };
    for (key, value) in [("path", name), ("linkpath", link)] {
        if value.len() > 100 {
            record(key, value);
        }
    }
    for (key, value, digits) in [("size", size, 11), ("uid", uid.into(), 7), ("gid", gid.into(), 7)]
    {
        if value >= 1 << (3 * digits) {
            record(key, value.to_string().as_bytes());
        }
    }
    let mut all = Vec::new();
    if !records.is_empty() {
        all.extend(block(b"pax", b"", b'x', (0o644, 0, 0), records.len() as u64, 0));
        all.extend_from_slice(&records);
        all.resize(all.len().next_multiple_of(BLOCK), 0);
    }
    all.extend(block(name, link, kind, (of.mode() & 0o7777, uid, gid), size, of.mtime().max(0)));
    all
}

fn block(
    name: &[u8],
    link: &[u8],
    kind: u8,
    (mode, uid, gid): (u32, u32, u32),
    size: u64,
    mtime: i64,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |start: usize, text: &[u8]| {
        block[start..start + text.len()].copy_from_slice(text);
    };
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{mode:07o}").as_bytes());
    // What does not fit is in a record, which wins.
    put(108, format!("{:07o}", uid & 0o7_777_777).as_bytes());
    put(116, format!("{:07o}", gid & 0o7_777_777).as_bytes());
    put(124, format!("{:011o}", size & ((1 << 33) - 1)).as_bytes());
    put(136, format!("{mtime:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The last part of a path; none where it ends with `/`, `.` or `..`.
pub(super) fn base(path: &Path) -> Option<&OsStr> {
    let ends_so = |end: &[u8]| path.as_os_str().as_bytes().ends_with(end);
    if ends_so(b"/.") { None } else { path.file_name() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_read_by_the_extractor_as_it_was() {
        let temp = tempfile::tempdir().unwrap();
        let source = temp.path().join("source");
        let long = "n".repeat(200);
        std::fs::create_dir_all(source.join("empty")).unwrap();
        std::fs::write(source.join("a"), "text").unwrap();
        std::fs::write(source.join(&long), vec![b'x'; 1000]).unwrap();
        symlink("l".repeat(150), source.join("link")).unwrap();
        let mut archive = Vec::new();
        let style = Style { follow: false, owners: false };
        pack(&source, b"copy", style, &mut archive).unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        let into = File::open(temp.path()).unwrap();
        let copy = images::Copy { name: Some(b"copy".to_vec()), ..images::Copy::default() };
        let copied = copy.unpack(&archive[..], into.into(), "the archive").unwrap();
        assert_eq!(copied.entries, 5);
        let copy = temp.path().join("copy");
        assert_eq!(std::fs::read(copy.join("a")).unwrap(), b"text");
        assert_eq!(std::fs::read(copy.join(&long)).unwrap().len(), 1000);
        assert_eq!(copy.join("link").read_link().unwrap().as_os_str().len(), 150);
        assert!(copy.join("empty").is_dir());
        let time = |path: &Path| path.join("a").metadata().unwrap().mtime();
        assert_eq!(time(&copy), time(&source));
    }
}
