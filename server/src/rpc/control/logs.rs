//! `berth logs`: the records of a log, told as the program wrote them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::control as v1;
use runtime::shim::record::format_time;

use super::{Sink, find};
use crate::app::App;
use crate::blocking;
use crate::container::{self, Container, State};
use crate::error::{Doing, Error, Result};

/// How often a log that is followed is looked at for more.
const POLL: Duration = Duration::from_millis(100);
/// Bytes in one message.
const MESSAGE: usize = 64 << 10;
/// Longest line that is taken for a record.
const MAX_LINE: u64 = 1 << 20;
/// Old files of a log that is rotated.
const MAX_FILES: u32 = 1000;

pub(super) async fn logs(
    app: Arc<App>,
    request: v1::LogsRequest,
    sink: Sink<v1::LogsResponse>,
) -> Result<()> {
    let container = find(&app, &request.container)?;
    let path = container::log::path(&app, &container).ok_or_else(|| {
        Error::invalid(
            "container",
            format!("{} has no log: its client asked for none", container.id),
        )
    })?;
    blocking::run("read a log", move || Reader::new(&request, sink).run(&path, &container)).await
}

struct Reader {
    follow: bool,
    timestamps: bool,
    tail: Option<usize>,
    /// Records with an earlier time are passed over; times of our records compare as text.
    since: String,
    sink: Sink<v1::LogsResponse>,
    out: v1::LogsResponse,
}

/// A record of a CRI log.
struct Record<'a> {
    time: &'a [u8],
    stderr: bool,
    /// The line goes on in the next record.
    partial: bool,
    content: &'a [u8],
}

impl Reader {
    fn new(request: &v1::LogsRequest, sink: Sink<v1::LogsResponse>) -> Reader {
        let since = match request.since {
            0 => String::new(),
            since => format_time(since.div_euclid(1_000_000_000), since.rem_euclid(1_000_000_000)),
        };
        let tail = request.tail.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX));
        Reader {
            follow: request.follow,
            timestamps: request.timestamps,
            tail,
            since,
            sink,
            out: v1::LogsResponse::default(),
        }
    }

    fn run(mut self, path: &Path, container: &Arc<Container>) -> Result<()> {
        let mut files = old_files(path);
        let current = open(path)?;
        let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
        files.extend(current);
        let count = files.len();
        let mut last = None;
        for (index, file) in files.into_iter().enumerate() {
            let mut reader = BufReader::new(file);
            while let Some(line) = next_line(&mut reader)? {
                match self.tail {
                    Some(tail) => keep(&mut kept, line, tail),
                    None => self.tell(&line)?,
                }
            }
            if index + 1 == count {
                last = Some(reader);
            }
        }
        for line in kept {
            self.tell(&line)?;
        }
        self.flush()?;
        if self.follow { self.follow_file(path, last, container) } else { Ok(()) }
    }

    /// Goes on until the container has ended and all it wrote is told.
    fn follow_file(
        &mut self,
        path: &Path,
        mut reader: Option<BufReader<File>>,
        container: &Arc<Container>,
    ) -> Result<()> {
        loop {
            // Before the last look: what is written before the end is seen after it.
            let ended = container.record().state == State::Exited && !will_restart(container);
            if let Some(reader) = &mut reader {
                while let Some(line) = next_line(reader)? {
                    self.tell(&line)?;
                }
            }
            self.flush()?;
            let replaced = reader.as_ref().is_none_or(|reader| is_replaced(reader.get_ref(), path));
            match open(path)? {
                Some(file) if replaced => {
                    reader = Some(BufReader::new(file));
                    continue;
                }
                _ => {}
            }
            if ended || self.sink.is_closed() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }

    fn tell(&mut self, line: &[u8]) -> Result<()> {
        let Some(record) = parse(line) else { return Ok(()) };
        if record.time < self.since.as_bytes() {
            return Ok(());
        }
        let timestamps = self.timestamps;
        let out = if record.stderr { &mut self.out.stderr } else { &mut self.out.stdout };
        if timestamps {
            out.extend_from_slice(record.time);
            out.push(b' ');
        }
        out.extend_from_slice(record.content);
        if !record.partial {
            out.push(b'\n');
        }
        if self.out.stdout.len() + self.out.stderr.len() >= MESSAGE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.out.stdout.is_empty() && self.out.stderr.is_empty() {
            return Ok(());
        }
        let gone =
            |_| Error::Unavailable { what: "the client".into(), problem: "it has gone".into() };
        self.sink.blocking_send(Ok(std::mem::take(&mut self.out))).map_err(gone)
    }
}

fn will_restart(container: &Container) -> bool {
    use crate::container::spec::Restart;
    let record = container.record();
    let restarts = record.spec.local.as_ref().is_some_and(|local| local.restart != Restart::No);
    restarts && !record.stopped
}

/// Keeps the last records that make up `tail` lines; parts of a line count with its last.
fn keep(kept: &mut VecDeque<Vec<u8>>, line: Vec<u8>, tail: usize) {
    kept.push_back(line);
    let whole = |line: &Vec<u8>| parse(line).is_some_and(|record| !record.partial);
    while kept.iter().filter(|line| whole(line)).count() > tail {
        while let Some(first) = kept.pop_front() {
            if whole(&first) {
                break;
            }
        }
    }
}

/// `TIME STREAM TAG CONTENT`
fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag, content) = (words.next()?, words.next()?, words.next()?, words.next()?);
    Some(Record { time, stderr: stream == b"stderr", partial: tag.first() == Some(&b'P'), content })
}

/// The next whole line, without its end. What has no end yet stays for later.
fn next_line(reader: &mut BufReader<File>) -> Result<Option<Vec<u8>>> {
    let doing = || "read a log";
    let mut line = Vec::new();
    let length = (&mut *reader).take(MAX_LINE).read_until(b'\n', &mut line).doing(doing)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(line));
    }
    let back = i64::try_from(length).unwrap_or(0);
    if back > 0 && length as u64 == MAX_LINE {
        return Ok(Some(line));
    }
    reader.seek_relative(-back).doing(doing)?;
    Ok(None)
}

/// `log.3`, `log.2`, `log.1`: the oldest first.
fn old_files(path: &Path) -> Vec<File> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let mut files: Vec<File> =
        (1..=MAX_FILES).map_while(|number| File::open(numbered(number)).ok()).collect();
    files.reverse();
    files
}

/// None before the container has been started.
fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(|| format!("open {}", path.display())),
    }
}

/// The log has been rotated since the file was opened.
fn is_replaced(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    open.ino() != there.ino()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart() {
        let record = parse(b"2026-01-01T00:00:00.000000000Z stderr P a b").unwrap();
        assert!(record.stderr && record.partial);
        assert_eq!(record.content, b"a b");
        assert!(parse(b"T stdout F ").unwrap().content.is_empty());
        assert!(parse(b"rubbish").is_none());
    }

    #[test]
    fn the_last_lines_are_kept_with_all_their_parts() {
        let mut kept = VecDeque::new();
        for line in
            ["T stdout F 1", "T stdout P 2a", "T stdout F 2b", "T stdout P 3a", "T stdout F 3b"]
        {
            keep(&mut kept, line.into(), 2);
        }
        let kept: Vec<String> =
            kept.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
        assert_eq!(kept, ["T stdout P 2a", "T stdout F 2b", "T stdout P 3a", "T stdout F 3b"]);
    }
}
