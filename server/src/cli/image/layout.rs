//! The directory of an OCI layout as an OCI archive: a tar stream made while it is read.
//!
//! Only what a layout is made of goes in (image-spec, image-layout.md): `oci-layout`,
//! `index.json` and the blobs. So no link and no stray file of the directory is followed or sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Doing, Error, Result};

const BLOCK: usize = 512;
/// Algorithms of digests and the length of their digits.
const ALGORITHMS: [(&str, usize); 2] = [("sha256", 64), ("sha512", 128)];
/// What the size field of a header can say in octal digits.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// A tar stream of a layout.
#[derive(Debug)]
pub(super) struct Archive {
    directory: PathBuf,
    /// Names of files that are still to come.
    names: VecDeque<String>,
    /// Header or padding, to be read before the file.
    text: VecDeque<u8>,
    /// The file under way and what is left of it.
    file: Option<(File, u64)>,
    ended: bool,
}

/// Lists the layout; its files are opened when it is their turn.
///
/// # Errors
/// `Invalid` where the directory is no OCI layout; those of reading it.
pub(super) fn archive(directory: &Path) -> Result<Archive> {
    let invalid = |problem: &str| Err(Error::invalid(directory.display().to_string(), problem));
    let has = |name: &str| directory.join(name).is_file();
    if !has("index.json") || !has("oci-layout") {
        return invalid(
            "is not the directory of an OCI layout: it has no index.json and oci-layout; \
             to import a root file system, pipe a tar of it (tar -C DIR -c . | berth image import - NAME)",
        );
    }
    let mut names = VecDeque::from(["oci-layout".to_owned(), "index.json".to_owned()]);
    for (algorithm, length) in ALGORITHMS {
        let folder = directory.join("blobs").join(algorithm);
        let doing = || format!("list {}", folder.display());
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).doing(doing),
        };
        for entry in entries {
            let name = entry.doing(doing)?.file_name().to_string_lossy().into_owned();
            let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            if name.len() == length && name.bytes().all(digit) {
                names.push_back(format!("blobs/{algorithm}/{name}"));
            }
        }
    }
    names.make_contiguous()[2..].sort();
    Ok(Archive {
        directory: directory.to_owned(),
        names,
        text: VecDeque::new(),
        file: None,
        ended: false,
    })
}

impl Archive {
    /// Prepares the next file, or the two blocks of zeros at the end.
    fn next(&mut self) -> io::Result<()> {
        let Some(name) = self.names.pop_front() else {
            self.ended = true;
            self.text.extend([0; 2 * BLOCK]);
            return Ok(());
        };
        let path = self.directory.join(&name);
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| named(error.into()))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(named)?;
        if !metadata.is_file() {
            return Err(named(io::Error::other("is no regular file")));
        }
        self.text.extend(header(&name, metadata.len()));
        self.file = Some((file, metadata.len()));
        Ok(())
    }

    fn read_file(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((file, left)) = &mut self.file else { return Ok(0) };
        let want = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let count = file.read(&mut buffer[..want])?;
        if count == 0 && *left > 0 {
            return Err(io::Error::other(format!(
                "a file of {} became shorter while it was read",
                self.directory.display()
            )));
        }
        *left -= count as u64;
        if *left == 0 {
            let size = file.metadata()?.len();
            self.file = None;
            let beyond = usize::try_from(size % BLOCK as u64).unwrap_or(0);
            self.text.extend(vec![0; (BLOCK - beyond) % BLOCK]);
        }
        Ok(count)
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if buffer.is_empty() || (self.ended && self.text.is_empty()) {
                return Ok(0);
            }
            if !self.text.is_empty() {
                return self.text.read(buffer);
            }
            match self.file {
                Some(_) => match self.read_file(buffer)? {
                    0 => {}
                    count => return Ok(count),
                },
                None => self.next()?,
            }
        }
    }
}

/// A header as POSIX has it (ustar): owner root, mode 0644, time 0, so that the same layout is
/// always the same stream.
fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // blobs/sha512/ and 128 digits are more than the 100 bytes of a name: the folder goes into the prefix.
    let (prefix, short) = match name.rsplit_once('/') {
        Some((prefix, short)) if name.len() > 100 => (prefix, short),
        _ => ("", name),
    };
    put(0, &short.as_bytes()[..short.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size <= MAX_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU's form for larger files: a set first bit, then binary.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::{Command, Stdio};

    use super::*;

    fn layout(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        directory
    }

    /// What GNU tar makes of the stream.
    fn unpacked(stream: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let out = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar")
            .args(["-xf", "-", "-C"])
            .arg(out.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        io::Write::write_all(&mut tar.stdin.take().unwrap(), stream).unwrap();
        assert!(tar.wait().unwrap().success());
        let mut files = BTreeMap::new();
        let mut folders = vec![out.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(out.path()).unwrap().to_str().unwrap().to_owned();
                    files.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
        files
    }

    fn read(directory: &Path) -> io::Result<Vec<u8>> {
        let mut stream = Vec::new();
        archive(directory).unwrap().read_to_end(&mut stream).map(|_| stream)
    }

    #[test]
    fn a_layout_is_an_archive_that_tar_unpacks() {
        let blob = format!("blobs/sha256/{}", "0a".repeat(32));
        let files: [(&str, &[u8]); 5] = [
            ("oci-layout", b"{}"),
            ("index.json", &[b'x'; BLOCK]),
            (&blob, &[7; 3 * BLOCK + 5]),
            ("blobs/sha256/stray", b"stray"),
            ("notes.txt", b"stray"),
        ];
        let directory = layout(&files);
        let empty = format!("blobs/sha256/{}", "0b".repeat(32));
        std::fs::write(directory.path().join(&empty), "").unwrap();
        let stream = read(directory.path()).unwrap();
        assert_eq!(stream.len() % BLOCK, 0);
        let expected: BTreeMap<String, Vec<u8>> = files[..3]
            .iter()
            .map(|(name, content)| ((*name).to_owned(), content.to_vec()))
            .chain([(empty, Vec::new())])
            .collect();
        assert_eq!(unpacked(&stream), expected);
        assert_eq!(stream, read(directory.path()).unwrap());
    }

    #[test]
    fn long_names_and_sizes_have_their_own_form() {
        let name = format!("blobs/sha512/{}", "0".repeat(128));
        let block = header(&name, 5);
        assert_eq!(&block[..100], &[b'0'; 100]);
        let large = header("a", MAX_OCTAL + 1);
        assert_eq!(large[124], 0x80);
        assert_eq!(u64::from_be_bytes(large[128..136].try_into().unwrap()), MAX_OCTAL + 1);
    }

    #[test]
    fn another_directory_is_refused_with_a_way_out() {
        let directory = layout(&[("etc/passwd", b"")]);
        let error = archive(directory.path()).unwrap_err().to_string();
        assert!(error.contains("is not the directory of an OCI layout"), "{error}");
        assert!(error.contains("tar -C DIR"), "{error}");
    }

    #[test]
    fn a_link_in_a_layout_is_not_followed() {
        let directory = layout(&[("oci-layout", b"{}"), ("index.json", b"{}"), ("secret", b"s")]);
        std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        let blob = directory.path().join("blobs/sha256").join("0".repeat(64));
        std::os::unix::fs::symlink(directory.path().join("secret"), blob).unwrap();
        let error = read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("Too many levels of symbolic links"), "{error}");
    }
}
