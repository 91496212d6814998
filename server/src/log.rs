//! The daemon's log on standard error: text or JSON, and never a reason to stand still.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Format, Level, Log};
use crate::error::{Error, Result, panic_text};

/// The environment variable that wins over the configured level. Its form is that of
/// tracing-subscriber: "debug" or "info,server::network=trace".
pub const VARIABLE: &str = "BERTH_LOG";

/// How long a line waits for a reader that does not read, such as a frozen journal.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a pipe that is ready for writing takes at once (PIPE_BUF).
const PIECE: usize = 4096;

/// Begins to log, for the whole process. A panic becomes an event.
///
/// # Errors
///
/// [`Error::Invalid`] when BERTH_LOG does not say levels.
pub fn init(config: &Log) -> Result<()> {
    let filter = filter(config.level, std::env::var(VARIABLE).ok().as_deref())?;
    let layer = layer(config.format, to_journal(), Writer::default());
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    subscriber.try_init().map_err(|source| Error::Failed {
        doing: "begin to log".to_owned(),
        source: source.into(),
    })?;
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic_text(panic.payload());
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(at, text, %backtrace, "panic");
    }));
    Ok(())
}

/// What is logged: what the variable says, else what the level means.
fn filter(level: Level, variable: Option<&str>) -> Result<EnvFilter> {
    let Some(directives) = variable.filter(|text| !text.is_empty()) else {
        return Ok(EnvFilter::new(directives(level)));
    };
    let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
    if let Some(level) = levels.into_iter().find(|level| level.to_string() == directives) {
        return Ok(EnvFilter::new(self::directives(level)));
    }
    EnvFilter::try_new(directives).map_err(|error| {
        let problem =
            format!("{directives:?} does not say levels ({error}); write one such as \"debug\"");
        Error::invalid(VARIABLE, problem)
    })
}

/// What a level means: our own details and, unless everything is asked for, not those of
/// libraries, which log each frame.
fn directives(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "info,server=debug,images=debug,runtime=debug",
        Level::Trace => "trace",
    }
}

/// The form of a line. The journal has times and colours of its own.
fn layer<S, W>(format: Format, journal: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    match (format, journal) {
        (Format::Text, false) => layer.boxed(),
        (Format::Text, true) => layer.without_time().boxed(),
        (Format::Json, _) => layer.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

/// Whether standard error is the stream that systemd made for us: JOURNAL_STREAM has its
/// device and inode (systemd.exec(5)).
fn to_journal() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    std::env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes lines where somebody reads them, and drops them where nobody does: a log that is
/// not read must not hold up the daemon.
#[derive(Debug, Default)]
struct Writer {
    /// None is standard error; tests have a file.
    file: Option<File>,
    /// How many lines were dropped since the last that was not.
    dropped: Mutex<u64>,
}

impl Writer {
    fn line(&self, line: &[u8]) -> io::Result<()> {
        let Ok(mut dropped) = self.dropped.lock() else { return Ok(()) };
        // Whoever was waited for once is not waited for again until he reads.
        let patience = if *dropped == 0 { PATIENCE } else { Duration::ZERO };
        if !self.is_ready(patience)? {
            *dropped += 1;
            return Ok(());
        }
        if *dropped > 0 {
            let note =
                format!("{} lines of the log were dropped, for nobody read them\n", *dropped);
            *dropped = 0;
            self.write(note.as_bytes())?;
        }
        for piece in line.chunks(PIECE) {
            if !self.is_ready(PATIENCE)? {
                break;
            }
            self.write(piece)?;
        }
        Ok(())
    }

    fn is_ready(&self, patience: Duration) -> io::Result<bool> {
        let stderr = io::stderr();
        let fd = self.file.as_ref().map_or_else(|| stderr.as_fd(), AsFd::as_fd);
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
        poll(&mut fds, Some(&timeout))?;
        Ok(fds[0].revents().contains(PollFlags::OUT))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => (&*file).write_all(bytes),
            None => io::stderr().write_all(bytes),
        }
    }
}

impl<'w> MakeWriter<'w> for Writer {
    type Writer = Lines<'w>;

    fn make_writer(&'w self) -> Lines<'w> {
        Lines(self)
    }
}

/// One event on its way; it comes in one piece.
struct Lines<'w>(&'w Writer);

impl Write for Lines<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.line(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pipe() -> (File, Writer) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (File::from(reader), Writer { file: Some(File::from(writer)), dropped: Mutex::new(0) })
    }

    /// What the events of `act` look like.
    #[track_caller]
    fn check_lines(format: Format, journal: bool, act: impl FnOnce(), expected: &[&str]) {
        let (mut reader, writer) = pipe();
        let subscriber = tracing_subscriber::registry()
            .with(filter(Level::Debug, None).unwrap())
            .with(layer(format, journal, writer));
        tracing::subscriber::with_default(subscriber, act);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.ends_with(expected), "{line}");
        }
    }

    fn events() {
        let _span = tracing::info_span!("rpc", method = "Version").entered();
        tracing::debug!(count = 3, "read");
        tracing::debug!(target: "h2::codec", "a library's");
        tracing::warn!(target: "h2::codec", "a library's");
    }

    #[test]
    fn text_has_the_span_and_libraries_are_quiet() {
        check_lines(
            Format::Text,
            true,
            events,
            &[
                "DEBUG rpc{method=\"Version\"}: server::log::tests: read count=3",
                " WARN rpc{method=\"Version\"}: h2::codec: a library's",
            ],
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        let expected =
            "\"level\":\"INFO\",\"message\":\"up\",\"port\":7,\"target\":\"server::log::tests\"}";
        check_lines(Format::Json, false, || tracing::info!(port = 7, "up"), &[expected]);
    }

    #[test]
    fn the_variable_wins_and_must_be_right() {
        assert_eq!(filter(Level::Info, Some("server=trace")).unwrap().to_string(), "server=trace");
        assert_eq!(filter(Level::Warn, Some("")).unwrap().to_string(), "warn");
        let debug = filter(Level::Info, Some("debug")).unwrap().to_string();
        assert_eq!(debug, filter(Level::Debug, None).unwrap().to_string());
        let error = filter(Level::Info, Some("a=b=c")).unwrap_err().to_string();
        assert!(error.starts_with("BERTH_LOG: \"a=b=c\" does not say levels"), "{error}");
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up() {
        let (mut reader, writer) = pipe();
        let line = [b'x'; 1000];
        for _ in 0..200 {
            writer.line(&line).unwrap();
        }
        let dropped = *writer.dropped.lock().unwrap();
        assert!(dropped > 100, "a pipe holds 64 KiB: {dropped} of 200 lines dropped");
        let mut read = vec![0; 1 << 20];
        let length = reader.read(&mut read).unwrap();
        assert!(read[..length].iter().all(|byte| *byte == b'x'));
        writer.line(b"after\n").unwrap();
        let length = reader.read(&mut read).unwrap();
        let expected =
            format!("{dropped} lines of the log were dropped, for nobody read them\nafter\n");
        assert_eq!(String::from_utf8_lossy(&read[..length]), expected);
    }

    #[test]
    fn a_long_line_is_written_whole() {
        let (mut reader, writer) = pipe();
        let line = [b'x'; 3 * PIECE + 1];
        writer.line(&line).unwrap();
        drop(writer);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, line);
    }
}
