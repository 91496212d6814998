//! The one table of caps on everything that comes from outside, each with its reason.
//!
//! A registry, a mirror, an archive and every byte of an image are untrusted. Whatever
//! reads them takes its cap from here, and every error about a cap names the row.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};

/// One row of the table, for the configuration and for `berth doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The name of the field, which is also the key in the configuration.
    pub name: &'static str,
    /// The value.
    pub setting: Setting,
    /// Why there is a cap, and why this one.
    pub reason: &'static str,
}

/// The value of a row, with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// A number of bytes.
    Bytes(u64),
    /// A number of things.
    Count(u64),
    /// A time.
    Time(Duration),
}

impl fmt::Display for Setting {
    /// For an error: `4 MiB`, `500`, `60 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match self {
            Setting::Bytes(bytes) => {
                let whole = |unit: &&(u64, &str)| *bytes >= unit.0 && bytes.is_multiple_of(unit.0);
                match units.iter().find(whole) {
                    Some((unit, name)) => write!(f, "{} {name}", bytes / unit),
                    None => write!(f, "{bytes} bytes"),
                }
            }
            Setting::Count(count) => write!(f, "{count}"),
            Setting::Time(time) if time.subsec_millis() == 0 => write!(f, "{} s", time.as_secs()),
            Setting::Time(time) => write!(f, "{} ms", time.as_millis()),
        }
    }
}

/// What a field of the table may be.
trait Value: Sized {
    fn setting(&self) -> Setting;
    fn from_setting(setting: Setting) -> Option<Self>;
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The cap as a length in memory.
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Value for Bytes {
    fn setting(&self) -> Setting {
        Setting::Bytes(self.0)
    }

    fn from_setting(setting: Setting) -> Option<Bytes> {
        if let Setting::Bytes(bytes) = setting { Some(Bytes(bytes)) } else { None }
    }
}

impl Value for u64 {
    fn setting(&self) -> Setting {
        Setting::Count(*self)
    }

    fn from_setting(setting: Setting) -> Option<u64> {
        if let Setting::Count(count) = setting { Some(count) } else { None }
    }
}

impl Value for Duration {
    fn setting(&self) -> Setting {
        Setting::Time(*self)
    }

    fn from_setting(setting: Setting) -> Option<Duration> {
        if let Setting::Time(time) = setting { Some(time) } else { None }
    }
}

/// Writes the table once: the struct, its defaults and its rows cannot drift apart.
macro_rules! limits {
    ($($name:ident: $type:ty = $default:expr, $reason:literal;)*) => {
        /// Every cap and deadline. Fields are public, so a test can make a small one.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Limits {
            $(#[doc = $reason] pub $name: $type,)*
        }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($name: $default,)* }
            }
        }

        impl Limits {
            /// All rows, in the order of the source.
            pub fn table(&self) -> Vec<Row> {
                vec![$(Row {
                    name: stringify!($name),
                    setting: Value::setting(&self.$name),
                    reason: $reason.trim(),
                },)*]
            }

            /// Sets the row of that name.
            ///
            /// # Errors
            /// [`Error::Invalid`] when there is no such row or it has another unit, for nothing
            /// at all, which would stop every pull, and for more layers than the kernel stacks.
            pub fn set(&mut self, name: &str, setting: Setting) -> Result<()> {
                let wrong = |problem: &str| Error::invalid(format!("limit {name}"), problem);
                let nothing =
                    [Setting::Bytes(0), Setting::Count(0), Setting::Time(Duration::ZERO)];
                if nothing.contains(&setting) {
                    return Err(wrong("must be more than nothing"));
                }
                match name {
                    $(stringify!($name) => {
                        let value = Value::from_setting(setting);
                        self.$name = value.ok_or_else(|| wrong("is of another unit"))?;
                    })*
                    _ => return Err(wrong("there is no limit of that name")),
                }
                if self.layers > MOST_LAYERS {
                    self.layers = MOST_LAYERS;
                    return Err(wrong("must be at most 500: overlay takes no more lower directories"));
                }
                Ok(())
            }
        }
    };
}

/// OVL_MAX_STACK of the kernel's fs/overlayfs.
const MOST_LAYERS: u64 = 500;

limits! {
    // Documents. They are kept in memory and parsed, so their size is our memory.
    manifest_bytes: Bytes = Bytes(4 << 20),
        " Longest manifest or index: the least that registries must take (distribution spec), and what others take.";
    config_bytes: Bytes = Bytes(8 << 20),
        " Longest image config: histories of a thousand long commands stay below 1 MiB.";
    token_bytes: Bytes = Bytes(1 << 20),
        " Longest answer of a token service: real tokens are some KiB.";
    error_bytes: Bytes = Bytes(64 << 10),
        " How much of the body of a failed answer is read for its message.";
    index_entries: u64 = 1000,
        " Manifests of one index: the widest real ones have some 60.";
    index_depth: u64 = 2,
        " How many indexes may lie above a manifest: the spec allows nesting, nobody needs more than one in another.";
    layers: u64 = 500,
        " Layers of one image: overlay takes 500 lower directories, docker writes at most 127.";
    layer_bytes: Bytes = Bytes(64 << 30),
        " Longest compressed layer: the size that its descriptor claims is refused before a byte is fetched.";

    // Layers. A layer is a stream: its size costs disk, its parts cost memory.
    tar_bytes: Bytes = Bytes(128 << 30),
        " Longest layer when inflated: 100 MB of gzip can become 100 GB.";
    tar_entries: u64 = 2_000_000,
        " Entries of one layer: the fullest real ones have some 400,000 files. Each costs an inode and some 50 bytes of memory.";
    path_bytes: Bytes = Bytes(4095),
        " Longest path in a layer: no system call takes a longer one (PATH_MAX).";
    path_depth: u64 = 512,
        " Directories above a file: trees made by mistake have some 100.";
    header_records: Bytes = Bytes(1 << 20),
        " Longest extended header, long name or sparse map of one entry, as in Go's archive/tar.";
    xattr_bytes: Bytes = Bytes(256 << 10),
        " Extended attributes of one file: the kernel takes 64 KiB for one, most disks 4 KiB for all.";
    sparse_extents: u64 = 1 << 18,
        " Pieces of one sparse file: as many as fit into header_records.";
    trailer_bytes: Bytes = Bytes(16 << 20),
        " What follows the end of an archive: writers fill up to 10 KiB, some to 1 MiB.";
    gzip_members: u64 = 1 << 22,
        " Members of one gzip stream: lazy-pull formats write one for each file.";
    zstd_window: Bytes = Bytes(128 << 20),
        " Largest window of a zstd frame, which is memory for as long as the layer lasts; the highest level of the zstd tool asks for this much.";

    // HTTP.
    header_bytes: Bytes = Bytes(256 << 10),
        " All header lines of one answer; signed redirects have some KiB.";
    header_count: u64 = 128,
        " Header lines of one answer.";
    redirects: u64 = 10,
        " Redirects followed for one request: registries need one or two.";
    read_ahead_bytes: Bytes = Bytes(64 << 20),
        " Memory for parts of large blobs that arrive before they can be unpacked, of all pulls together.";
    part_bytes: Bytes = Bytes(8 << 20),
        " Parts in which a large blob is fetched side by side: long enough that a request for each costs nothing.";
    hosts_file_bytes: Bytes = Bytes(256 << 10),
        " A hosts.toml, docker config.json or certificate file.";
    hosts: u64 = 32,
        " Hosts of one hosts.toml.";

    // Deadlines. None of them limits a whole pull: a large image on a slow line takes its time.
    connect_timeout: Duration = Duration::from_secs(15),
        " Name lookup, connection, proxy and TLS handshake together; dial_timeout of a hosts.toml comes first.";
    header_timeout: Duration = Duration::from_secs(60),
        " From the request to the head of the answer: some registries copy a blob from their own upstream first.";
    document_timeout: Duration = Duration::from_secs(120),
        " From the first to the last byte of a manifest, config or token.";
    progress_timeout: Duration = Duration::from_secs(60),
        " A body that brings less than progress_bytes in this time has stalled.";
    progress_bytes: Bytes = Bytes(16 << 10),
        " The least that counts as progress; without it one byte per minute would hold a pull for years.";
    retry_after: Duration = Duration::from_secs(60),
        " Longest pause that a registry may ask for with Retry-After; a longer one fails the pull and is told to the user.";
    retry_pause: Duration = Duration::from_millis(250),
        " The pause after a first failure, doubled after each further one up to 8 s.";
    retries: u64 = 5,
        " Attempts that may fail one after the other without progress before a transfer is given up.";
}

impl Limits {
    /// A row for an error: its value and what the configuration calls it.
    pub fn show(&self, name: &str) -> String {
        let row = self.table().into_iter().find(|row| row.name == name);
        format!("{} (limits.{name})", row.map_or(String::new(), |row| row.setting.to_string()))
    }

    /// The error for a row that was passed.
    pub fn passed(&self, what: impl Into<String>, name: &str) -> Error {
        Error::Limit { what: what.into(), limit: self.show(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: impl Value, expected: &str) {
        assert_eq!(value.setting().to_string(), expected);
    }

    #[test]
    fn values_show_their_unit() {
        check(Bytes(4 << 20), "4 MiB");
        check(Bytes(1000), "1000 bytes");
        check(Bytes(64 << 30), "64 GiB");
        check(Duration::from_secs(60), "60 s");
        check(Duration::from_millis(1500), "1500 ms");
    }

    #[test]
    fn every_row_has_a_name_of_its_own_and_a_reason() {
        let table = Limits::default().table();
        let mut names: Vec<_> = table.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table.len());
        assert!(table.iter().all(|row| row.reason.len() > 20));
    }

    #[test]
    fn rows_are_set_by_name() {
        let mut limits = Limits::default();
        limits.set("layers", Setting::Count(7)).unwrap();
        limits.set("header_timeout", Setting::Time(Duration::from_secs(3))).unwrap();
        assert_eq!(limits.layers, 7);
        assert_eq!(limits.header_timeout, Duration::from_secs(3));
        assert!(limits.set("layers", Setting::Count(0)).is_err());
        assert!(limits.set("layers", Setting::Bytes(1)).is_err());
        assert!(limits.set("layers", Setting::Count(501)).is_err());
        assert!(limits.set("nothing", Setting::Count(1)).is_err());
    }

    #[test]
    fn an_error_names_the_row_and_its_value() {
        assert_eq!(
            Limits::default().passed("manifest a/b", "manifest_bytes").to_string(),
            "manifest a/b is over the limit of 4 MiB (limits.manifest_bytes)"
        );
    }
}
