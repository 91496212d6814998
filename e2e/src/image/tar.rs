//! Tar entries written byte by byte, so that a test can put any lie into any field.

use std::ops::Range;

/// Size of a header and unit of padding (POSIX.1 pax, "ustar Interchange Format").
pub const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;

/// How a name that does not fit into its field is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LongNames {
    /// A pax header with `path` and `linkpath`.
    #[default]
    Pax,
    /// GNU entries of type `L` and `K` in front.
    Gnu,
    /// Cut to the field, for tests that want it so.
    Cut,
}

/// One entry as it will stand in the file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name, raw.
    pub path: Vec<u8>,
    /// Type flag: `0` file, `1` hard link, `2` symlink, `3` char, `4` block, `5` directory, `6` fifo.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Target of a link, raw.
    pub link: Vec<u8>,
    /// Content.
    pub data: Vec<u8>,
    /// Major and minor of a device.
    pub device: (u32, u32),
    /// Records of a pax header in front of the entry.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size that the header claims; the length of `data` where not set.
    pub claimed_size: Option<u64>,
    /// What to do with long names.
    pub long_names: LongNames,
}

impl Entry {
    /// An entry of a type flag, without content, owned by root, mode 0644.
    pub fn new(kind: u8, path: impl Into<Vec<u8>>) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            link: Vec::new(),
            data: Vec::new(),
            device: (0, 0),
            pax: Vec::new(),
            claimed_size: None,
            long_names: LongNames::default(),
        }
    }

    /// A regular file, mode 0644.
    pub fn file(path: impl Into<Vec<u8>>, data: impl Into<Vec<u8>>) -> Entry {
        Entry { data: data.into(), ..Entry::new(b'0', path) }
    }

    /// A directory, mode 0755.
    pub fn dir(path: impl Into<Vec<u8>>) -> Entry {
        Entry { mode: 0o755, ..Entry::new(b'5', path) }
    }

    /// A symbolic link.
    pub fn symlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Entry {
        Entry { mode: 0o777, link: target.into(), ..Entry::new(b'2', path) }
    }

    /// A hard link to an entry of this or a lower layer.
    pub fn hardlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Entry {
        Entry { link: target.into(), ..Entry::new(b'1', path) }
    }

    /// A character device.
    pub fn char_device(path: impl Into<Vec<u8>>, major: u32, minor: u32) -> Entry {
        Entry { device: (major, minor), ..Entry::new(b'3', path) }
    }

    /// A named pipe.
    pub fn fifo(path: impl Into<Vec<u8>>) -> Entry {
        Entry::new(b'6', path)
    }

    /// Sets the permission bits.
    pub fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    /// Sets owner and group.
    pub fn owner(self, uid: u64, gid: u64) -> Entry {
        Entry { uid, gid, ..self }
    }

    /// Sets the time of the last change, seconds since 1970.
    pub fn mtime(self, mtime: u64) -> Entry {
        Entry { mtime, ..self }
    }

    /// Adds a record to the pax header of this entry.
    pub fn pax(mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Entry {
        self.pax.push((key.into(), value.into()));
        self
    }

    /// Adds an extended attribute, as GNU tar and the Go library write it.
    pub fn xattr(self, name: &str, value: impl Into<Vec<u8>>) -> Entry {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    /// Makes the header claim another size than the content has.
    pub fn claimed_size(self, size: u64) -> Entry {
        Entry { claimed_size: Some(size), ..self }
    }

    /// Chooses how long names are written.
    pub fn long_names(self, long_names: LongNames) -> Entry {
        Entry { long_names, ..self }
    }

    /// Appends the entry to a tar: extension headers, header, content, padding.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut records = self.pax.clone();
        for (field, range, key, gnu) in
            [(&self.path, NAME, "path", b'L'), (&self.link, LINK, "linkpath", b'K')]
        {
            if field.len() > range.len() {
                match self.long_names {
                    LongNames::Pax => records.push((key.into(), field.clone())),
                    LongNames::Gnu => {
                        let data = [field.as_slice(), &[0]].concat();
                        Entry { data, ..Entry::new(gnu, "././@LongLink") }.write_plain(out);
                    }
                    LongNames::Cut => {}
                }
            }
        }
        if !records.is_empty() {
            Entry { data: pax_records(&records), ..Entry::new(b'x', "PaxHeaders/entry") }
                .write_plain(out);
        }
        self.write_plain(out);
    }

    fn write_plain(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header());
        out.extend_from_slice(&self.data);
        pad(out);
    }

    /// The 512 bytes of the header alone.
    pub fn header(&self) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        text(&mut header[NAME], &self.path);
        octal(&mut header[MODE], u64::from(self.mode));
        octal(&mut header[UID], self.uid);
        octal(&mut header[GID], self.gid);
        octal(&mut header[SIZE], self.claimed_size.unwrap_or(self.data.len() as u64));
        octal(&mut header[MTIME], self.mtime);
        header[KIND] = self.kind;
        text(&mut header[LINK], &self.link);
        text(&mut header[MAGIC], b"ustar\x0000");
        octal(&mut header[DEVICE_MAJOR], u64::from(self.device.0));
        octal(&mut header[DEVICE_MINOR], u64::from(self.device.1));
        set_checksum(&mut header);
        header
    }
}

/// Makes the checksum of a header right again after a test has changed a byte of it.
pub fn set_checksum(header: &mut [u8; BLOCK]) {
    header[CHECKSUM].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Fills the last block with zeros.
pub fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// The body of a pax header: `LENGTH KEY=VALUE\n` for each record, where LENGTH counts itself.
pub fn pax_records(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        out.extend_from_slice(format!("{length} ").as_bytes());
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

fn text(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// Octal with a closing zero, or GNU's base 256 where the number is too large for that.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let octal = format!("{value:0digits$o}");
    if octal.len() == digits {
        field[..digits].copy_from_slice(octal.as_bytes());
        return;
    }
    let start = field.len() - 8;
    field[0] = 0x80;
    field[start..].copy_from_slice(&value.to_be_bytes());
    field[0] |= 0x80;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(entries: &[Entry], expected: &str) {
        let mut tar = Vec::new();
        entries.iter().for_each(|entry| entry.write(&mut tar));
        tar.resize(tar.len() + 2 * BLOCK, 0);
        let path =
            std::env::temp_dir().join(format!("e2e-tar-{}-{}", std::process::id(), expected.len()));
        std::fs::write(&path, tar).unwrap();
        let output = std::process::Command::new("tar")
            .args(["--numeric-owner", "-tvf"])
            .arg(&path)
            .output()
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let words: Vec<Vec<&str>> =
            listing.lines().map(|line| line.split_whitespace().collect()).collect();
        let short: Vec<String> =
            words.iter().map(|w| [w[0], w[1], w[2], &w[5..].join(" ")].join(" ")).collect();
        assert_eq!(short.join("\n"), expected);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn another_tar_reads_what_is_written() {
        let long = "d/".repeat(80) + "name";
        check(
            &[
                Entry::dir("etc/"),
                Entry::file("etc/a", "hello").mode(0o4755).owner(5, 3_000_000),
                Entry::symlink("l", "etc/a"),
                Entry::hardlink("h", "etc/a"),
                Entry::file(long.as_str(), "1"),
                Entry::file(format!("{long}2"), "22").long_names(LongNames::Gnu),
            ],
            &format!(
                "drwxr-xr-x 0/0 0 etc/\n-rwsr-xr-x 5/3000000 5 etc/a\nlrwxrwxrwx 0/0 0 l -> etc/a\n\
                 hrw-r--r-- 0/0 0 h link to etc/a\n-rw-r--r-- 0/0 1 {long}\n-rw-r--r-- 0/0 2 {long}2"
            ),
        );
    }
}
