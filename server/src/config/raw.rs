//! The configuration file as it was written: each key with its line, nothing judged yet.
//!
//! The file is walked by hand, not by serde, because serde stops at the first error and
//! an operator should see all of them at once. What a section takes is what it knows;
//! whatever is left over is an unknown key.

use std::ops::Range;
use std::path::Path;

use images::limits::Setting;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem, did_you_mean};

/// A value and the line where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    /// Counted from 1.
    pub(super) line: usize,
}

/// A key of the file: missing, or a value of the right TOML type.
pub(super) type Raw<T> = Option<Located<T>>;

/// The whole file. The fields are the keys; their meaning is with the same field of
/// [`super::Config`], their form in `hack/config.toml`.
#[derive(Debug, Default)]
pub(super) struct RawConfig {
    pub(super) root: Raw<String>,
    pub(super) state: Raw<String>,
    pub(super) socket: Raw<String>,
    pub(super) socket_group: Raw<String>,
    pub(super) log: RawLog,
    pub(super) cgroup: RawCgroup,
    pub(super) network: RawNetwork,
    pub(super) images: RawImages,
    pub(super) limits: RawLimits,
    pub(super) runtime: RawRuntime,
    pub(super) streaming: RawStreaming,
}

#[derive(Debug, Default)]
pub(super) struct RawLog {
    pub(super) level: Raw<String>,
    pub(super) format: Raw<String>,
}

#[derive(Debug, Default)]
pub(super) struct RawCgroup {
    pub(super) driver: Raw<String>,
}

#[derive(Debug, Default)]
pub(super) struct RawNetwork {
    pub(super) mode: Raw<String>,
    pub(super) bridge_subnet: Raw<String>,
    pub(super) cni_conf_dirs: Raw<Vec<String>>,
    pub(super) cni_bin_dirs: Raw<Vec<String>>,
    pub(super) cni_timeout: Raw<String>,
    pub(super) ip_preference: Raw<String>,
}

#[derive(Debug, Default)]
pub(super) struct RawImages {
    pub(super) hosts_dirs: Raw<Vec<String>>,
}

#[derive(Debug, Default)]
pub(super) struct RawLimits {
    pub(super) request: Raw<String>,
    pub(super) exec_output: Raw<String>,
    /// Rows of the table of images that the file has.
    pub(super) images: Vec<(&'static str, RawLimit)>,
}

/// A row of the table of images: sizes and times are text, counts are numbers.
#[derive(Debug)]
pub(super) enum RawLimit {
    Size(Located<String>),
    Count(Located<u64>),
    Time(Located<String>),
}

#[derive(Debug, Default)]
pub(super) struct RawRuntime {
    pub(super) shim: Raw<String>,
    pub(super) run_log_size: Raw<String>,
    pub(super) run_log_files: Raw<u64>,
    pub(super) stop_timeout: Raw<String>,
    pub(super) drain_deadline: Raw<String>,
    pub(super) unset_seccomp_profile: Raw<String>,
    pub(super) enable_unprivileged_ports: Raw<bool>,
    pub(super) enable_unprivileged_icmp: Raw<bool>,
}

#[derive(Debug, Default)]
pub(super) struct RawStreaming {
    pub(super) address: Raw<String>,
    pub(super) port: Raw<u64>,
    pub(super) idle_timeout: Raw<String>,
    pub(super) stream_creation_timeout: Raw<String>,
}

/// Reads the text of a configuration file. Returns what could be read and everything
/// that is wrong with its form: syntax, unknown keys, values of another type.
pub(super) fn read(file: &Path, text: &str) -> (RawConfig, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut walk =
        Walk { file, text, problems: Vec::new(), known: Vec::new(), unknown: Vec::new() };
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        walk.report(&span, "", format!("this is not TOML: {}", error.message()));
    }
    let raw = walk.config(table.into_inner());
    walk.report_unknown();
    (raw, walk.problems)
}

/// Every key that a file may have, with its section, such as `log.level`.
#[cfg(test)]
pub(super) fn known_keys() -> Vec<String> {
    let mut walk = Walk {
        file: Path::new(""),
        text: "",
        problems: Vec::new(),
        known: Vec::new(),
        unknown: Vec::new(),
    };
    walk.config(DeTable::new());
    walk.known
}

/// The state of one walk over the file.
struct Walk<'f> {
    file: &'f Path,
    text: &'f str,
    problems: Vec<Problem>,
    /// The keys that were asked for, with their sections.
    known: Vec<String>,
    /// The keys that nobody asked for, and where they stand.
    unknown: Vec<(Range<usize>, String)>,
}

/// What is left of one table of the file.
struct Section<'i> {
    name: &'static str,
    table: DeTable<'i>,
}

impl Walk<'_> {
    fn config(&mut self, top: DeTable<'_>) -> RawConfig {
        let mut top = Section { name: "", table: top };
        let raw = RawConfig {
            root: self.take(&mut top, "root"),
            state: self.take(&mut top, "state"),
            socket: self.take(&mut top, "socket"),
            socket_group: self.take(&mut top, "socket_group"),
            log: self.log(&mut top),
            cgroup: self.cgroup(&mut top),
            network: self.network(&mut top),
            images: self.images(&mut top),
            limits: self.limits(&mut top),
            runtime: self.runtime(&mut top),
            streaming: self.streaming(&mut top),
        };
        self.finish(top);
        raw
    }

    fn log(&mut self, top: &mut Section<'_>) -> RawLog {
        let mut section = self.section(top, "log");
        let raw = RawLog {
            level: self.take(&mut section, "level"),
            format: self.take(&mut section, "format"),
        };
        self.finish(section);
        raw
    }

    fn cgroup(&mut self, top: &mut Section<'_>) -> RawCgroup {
        let mut section = self.section(top, "cgroup");
        let raw = RawCgroup { driver: self.take(&mut section, "driver") };
        self.finish(section);
        raw
    }

    fn network(&mut self, top: &mut Section<'_>) -> RawNetwork {
        let mut section = self.section(top, "network");
        let raw = RawNetwork {
            mode: self.take(&mut section, "mode"),
            bridge_subnet: self.take(&mut section, "bridge_subnet"),
            cni_conf_dirs: self.take(&mut section, "cni_conf_dirs"),
            cni_bin_dirs: self.take(&mut section, "cni_bin_dirs"),
            cni_timeout: self.take(&mut section, "cni_timeout"),
            ip_preference: self.take(&mut section, "ip_preference"),
        };
        self.finish(section);
        raw
    }

    fn images(&mut self, top: &mut Section<'_>) -> RawImages {
        let mut section = self.section(top, "images");
        let raw = RawImages { hosts_dirs: self.take(&mut section, "hosts_dirs") };
        self.finish(section);
        raw
    }

    fn limits(&mut self, top: &mut Section<'_>) -> RawLimits {
        let mut section = self.section(top, "limits");
        let mut raw = RawLimits {
            request: self.take(&mut section, "request"),
            exec_output: self.take(&mut section, "exec_output"),
            images: Vec::new(),
        };
        for row in images::Limits::default().table() {
            let limit = match row.setting {
                Setting::Bytes(_) => self.take(&mut section, row.name).map(RawLimit::Size),
                Setting::Count(_) => self.take(&mut section, row.name).map(RawLimit::Count),
                Setting::Time(_) => self.take(&mut section, row.name).map(RawLimit::Time),
            };
            raw.images.extend(limit.map(|limit| (row.name, limit)));
        }
        self.finish(section);
        raw
    }

    fn runtime(&mut self, top: &mut Section<'_>) -> RawRuntime {
        let mut section = self.section(top, "runtime");
        let raw = RawRuntime {
            shim: self.take(&mut section, "shim"),
            run_log_size: self.take(&mut section, "run_log_size"),
            run_log_files: self.take(&mut section, "run_log_files"),
            stop_timeout: self.take(&mut section, "stop_timeout"),
            drain_deadline: self.take(&mut section, "drain_deadline"),
            unset_seccomp_profile: self.take(&mut section, "unset_seccomp_profile"),
            enable_unprivileged_ports: self.take(&mut section, "enable_unprivileged_ports"),
            enable_unprivileged_icmp: self.take(&mut section, "enable_unprivileged_icmp"),
        };
        self.finish(section);
        raw
    }

    fn streaming(&mut self, top: &mut Section<'_>) -> RawStreaming {
        let mut section = self.section(top, "streaming");
        let raw = RawStreaming {
            address: self.take(&mut section, "address"),
            port: self.take(&mut section, "port"),
            idle_timeout: self.take(&mut section, "idle_timeout"),
            stream_creation_timeout: self.take(&mut section, "stream_creation_timeout"),
        };
        self.finish(section);
        raw
    }

    /// Takes a key out of its section; a value of another type is reported.
    fn take<T: FromToml>(&mut self, section: &mut Section<'_>, key: &'static str) -> Raw<T> {
        let path = path_of(section.name, key);
        self.known.push(path.clone());
        let value = section.table.remove(key)?;
        match T::from_toml(value.get_ref()) {
            Some(read) => Some(Located { value: read, line: self.line(&value.span()) }),
            None => {
                let found = value.get_ref().type_str();
                self.report(
                    &value.span(),
                    &path,
                    format!("this is of type {found}; write {}", T::FORM),
                );
                None
            }
        }
    }

    /// Takes a section out of the top table; a missing one is empty.
    fn section<'i>(&mut self, top: &mut Section<'i>, name: &'static str) -> Section<'i> {
        self.known.push(name.to_owned());
        let Some(value) = top.table.remove(name) else {
            return Section { name, table: DeTable::new() };
        };
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Section { name, table },
            other @ (DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)) => {
                let found = other.type_str();
                self.report(
                    &span,
                    name,
                    format!("this is of type {found}; write a section, [{name}]"),
                );
                Section { name, table: DeTable::new() }
            }
        }
    }

    /// Notes what is left in a section once all its keys were taken.
    fn finish(&mut self, section: Section<'_>) {
        let left =
            section.table.keys().map(|key| (key.span(), path_of(section.name, key.get_ref())));
        self.unknown.extend(left);
    }

    fn report_unknown(&mut self) {
        for (span, key) in std::mem::take(&mut self.unknown) {
            let text = match did_you_mean(&key, &self.known) {
                Some(known) => format!("there is no such key; did you mean {known}?"),
                None => "there is no such key; hack/config.toml has all of them".to_owned(),
            };
            self.report(&span, &key, text);
        }
    }

    fn report(&mut self, span: &Range<usize>, key: &str, text: String) {
        let place = Place::Line(self.file.to_owned(), self.line(span));
        self.problems.push(Problem { place, key: key.to_owned(), text });
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

fn path_of(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// The TOML types that keys have.
trait FromToml: Sized {
    /// How to write a value of this type, for the error message.
    const FORM: &'static str;

    /// `None` when the value is of another type.
    fn from_toml(value: &DeValue<'_>) -> Option<Self>;
}

impl FromToml for String {
    const FORM: &'static str = "text in quotes";

    fn from_toml(value: &DeValue<'_>) -> Option<String> {
        value.as_str().map(str::to_owned)
    }
}

impl FromToml for bool {
    const FORM: &'static str = "true or false";

    fn from_toml(value: &DeValue<'_>) -> Option<bool> {
        value.as_bool()
    }
}

impl FromToml for u64 {
    const FORM: &'static str = "a whole number, not negative";

    fn from_toml(value: &DeValue<'_>) -> Option<u64> {
        let integer = value.as_integer()?;
        u64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }
}

impl FromToml for Vec<String> {
    const FORM: &'static str = "a list of texts, [\"a\", \"b\"]";

    fn from_toml(value: &DeValue<'_>) -> Option<Vec<String>> {
        let text = |item: &Spanned<DeValue<'_>>| String::from_toml(item.get_ref());
        value.as_array()?.iter().map(text).collect()
    }
}
