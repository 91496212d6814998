//! The log writer: a child of the shim that reads what containers write, makes CRI
//! records of it and copies it to whoever is attached.
//!
//! It is a process of its own so that a slow or frozen log disk holds up nothing but
//! the output itself: the shim goes on serving execs, exits and stops. It ends when
//! the shim's side of its socket closes and every stream is at its end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::ClockId;

use super::poll::Poll;
use super::protocol::{self, Received};
use super::record::{Records, format_time};
use crate::spec::{LogAnswer, LogAttach, LogCommand, LogOpen, log_command::Command};

/// Bytes read from a stream at once; also the size of a pipe.
const CHUNK: usize = 64 << 10;
/// Rounds of reading for one stream before the others have their turn.
const ROUNDS: usize = 16;
/// Rounds in which the rest of a container's output is read, whether its readers take it or not: a pipe of a MiB, the
/// largest there is without privileges, and more.
const LAST_ROUNDS: usize = 64;
const COMMANDS: u64 = 0;

/// Runs the writer to its end. Call it in a process cloned for it.
pub(super) fn run(socket: OwnedFd) -> ! {
    let code = match Writer::new(socket).and_then(|mut writer| writer.serve()) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    crate::sys::clone::exit_now(code)
}

struct Writer {
    poll: Poll,
    /// None once the shim has gone.
    commands: Option<OwnedFd>,
    containers: BTreeMap<String, Container>,
    /// Who attached before the container was opened, to have its output from the first byte on.
    early: BTreeMap<String, Vec<(LogAttach, Vec<OwnedFd>)>>,
    /// What readers of containers that are closed have not taken yet.
    leftovers: BTreeMap<u64, Sink>,
    /// Which stream or sink a token of the poll means.
    tokens: BTreeMap<u64, Token>,
    next_token: u64,
    buffer: Vec<u8>,
    records: Vec<u8>,
}

#[derive(Clone)]
enum Token {
    Stream(String, usize),
    Sink(String, usize, u64),
    Leftover(u64),
}

struct Container {
    streams: Vec<Stream>,
    log: Option<Log>,
}

struct Stream {
    /// None at its end.
    source: Option<OwnedFd>,
    token: u64,
    records: Records,
    sinks: Vec<Sink>,
}

/// A copy of a stream for somebody who is attached. While it has bytes that do not fit, the stream is not read, but for
/// the last of it.
struct Sink {
    pipe: OwnedFd,
    token: u64,
    waiting: Vec<u8>,
}

struct Log {
    file: File,
    size: u64,
    rotation: Option<Rotation>,
}

struct Rotation {
    directory: OwnedFd,
    name: String,
    size: u64,
    files: u32,
}

impl Writer {
    fn new(socket: OwnedFd) -> io::Result<Writer> {
        let poll = Poll::new()?;
        poll.add_reader(&socket, COMMANDS)?;
        Ok(Writer {
            poll,
            commands: Some(socket),
            containers: BTreeMap::new(),
            early: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: COMMANDS + 1,
            buffer: vec![0; CHUNK],
            records: Vec::new(),
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        while self.commands.is_some()
            || !self.leftovers.is_empty()
            || self.containers.values().any(Container::is_open)
        {
            for token in self.poll.wait(None)? {
                if token == COMMANDS {
                    self.take_commands()?;
                    continue;
                }
                match self.tokens.get(&token).cloned() {
                    Some(Token::Stream(id, index)) => self.read_stream(&id, index)?,
                    Some(Token::Sink(id, index, token)) => self.flush_sink(&id, index, token)?,
                    Some(Token::Leftover(token)) => self.flush_leftover(token),
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn take_commands(&mut self) -> io::Result<()> {
        while let Some(socket) = &self.commands {
            match protocol::receive::<LogCommand>(socket.as_fd(), RecvFlags::DONTWAIT) {
                Ok(Received::Message(command, fds)) => {
                    let id = command.id;
                    let errno = match self.obey(command, fds) {
                        Ok(()) => 0,
                        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
                    };
                    self.answer(LogAnswer { id, errno });
                }
                Ok(Received::End) => {
                    self.poll.remove(socket.as_fd());
                    self.commands = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn answer(&self, answer: LogAnswer) {
        if let Some(socket) = &self.commands {
            // A shim that has gone is seen by the next read.
            let _gone = protocol::send(socket.as_fd(), &answer, &[], SendFlags::empty());
        }
    }

    fn obey(&mut self, command: LogCommand, fds: Vec<OwnedFd>) -> io::Result<()> {
        match command.command {
            Some(Command::Open(open)) => self.open(open, fds),
            Some(Command::Reopen(reopen)) => self.reopen(&reopen.container_id, fds),
            Some(Command::Drain(drain)) => self.drain(&drain.container_id),
            Some(Command::Attach(attach)) => self.attach(attach, fds),
            Some(Command::Close(close)) => {
                self.early.remove(&close.container_id);
                self.close(&close.container_id);
                Ok(())
            }
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn open(&mut self, open: LogOpen, fds: Vec<OwnedFd>) -> io::Result<()> {
        self.close(&open.container_id);
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or(io::Error::from(io::ErrorKind::InvalidInput));
        let names: &[&'static str] =
            if open.terminal { &["stdout"] } else { &["stdout", "stderr"] };
        let mut streams = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let source = next()?;
            let token = self.token(Token::Stream(open.container_id.clone(), index));
            self.poll.add_reader(&source, token)?;
            streams.push(Stream {
                source: Some(source),
                token,
                records: Records::new(name),
                sinks: Vec::new(),
            });
        }
        let log = if open.has_file {
            let file = File::from(next()?);
            let rotation = if open.has_directory && open.rotate_size > 0 {
                let (size, files) = (open.rotate_size, open.rotate_files);
                Some(Rotation { directory: next()?, name: open.log_name, size, files })
            } else {
                None
            };
            Some(Log { size: file.metadata()?.len(), file, rotation })
        } else {
            None
        };
        let id = open.container_id;
        let early = self.early.remove(&id).unwrap_or_default();
        self.containers.insert(id, Container { streams, log });
        early.into_iter().try_for_each(|(attach, fds)| self.attach_now(&attach, fds))
    }

    fn token(&mut self, token: Token) -> u64 {
        let number = self.next_token;
        self.next_token += 1;
        self.tokens.insert(number, token);
        number
    }

    fn reopen(&mut self, id: &str, fds: Vec<OwnedFd>) -> io::Result<()> {
        let container = self.containers.get_mut(id).ok_or(io::ErrorKind::NotFound)?;
        let file = File::from(fds.into_iter().next().ok_or(io::ErrorKind::InvalidInput)?);
        let rotation = container.log.take().and_then(|log| log.rotation);
        container.log = Some(Log { size: file.metadata()?.len(), file, rotation });
        Ok(())
    }

    fn attach(&mut self, attach: LogAttach, fds: Vec<OwnedFd>) -> io::Result<()> {
        if self.containers.contains_key(&attach.container_id) {
            return self.attach_now(&attach, fds);
        }
        self.early.entry(attach.container_id.clone()).or_default().push((attach, fds));
        Ok(())
    }

    fn attach_now(&mut self, attach: &LogAttach, fds: Vec<OwnedFd>) -> io::Result<()> {
        let mut fds = fds.into_iter();
        for (index, wanted) in [attach.stdout, attach.stderr].into_iter().enumerate() {
            if !wanted {
                continue;
            }
            let pipe = fds.next().ok_or(io::ErrorKind::InvalidInput)?;
            rustix::io::ioctl_fionbio(&pipe, true)?;
            let container =
                self.containers.get_mut(&attach.container_id).ok_or(io::ErrorKind::NotFound)?;
            // A stream that is at its end has nothing more to tell: the reader sees the end.
            let Some(stream) =
                container.streams.get_mut(index).filter(|stream| stream.source.is_some())
            else {
                continue;
            };
            let token = self.next_token;
            self.poll.add_writer(&pipe, token)?;
            stream.sinks.push(Sink { pipe, token, waiting: Vec::new() });
            self.token(Token::Sink(attach.container_id.clone(), index, token));
        }
        Ok(())
    }

    /// Takes what the streams hold: nobody writes any more. The log has all of it then, and those who are attached have
    /// it or will, as fast as they read.
    fn drain(&mut self, id: &str) -> io::Result<()> {
        let count = self.containers.get(id).ok_or(io::ErrorKind::NotFound)?.streams.len();
        for index in 0..count {
            for _ in 0..LAST_ROUNDS {
                if !self.read_once(id, index, true)? {
                    break;
                }
            }
        }
        Ok(())
    }

    fn close(&mut self, id: &str) {
        let Some(container) = self.containers.remove(id) else { return };
        for stream in container.streams {
            self.tokens.remove(&stream.token);
            for sink in stream.sinks {
                if sink.waiting.is_empty() {
                    self.poll.remove(sink.pipe.as_fd());
                    self.tokens.remove(&sink.token);
                } else {
                    self.tokens.insert(sink.token, Token::Leftover(sink.token));
                    self.leftovers.insert(sink.token, sink);
                }
            }
            if let Some(source) = &stream.source {
                self.poll.remove(source.as_fd());
            }
        }
    }

    fn read_stream(&mut self, id: &str, index: usize) -> io::Result<()> {
        for _ in 0..ROUNDS {
            if !self.read_once(id, index, false)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads and writes once. False where there is nothing to read now, or no room for it, unless it is the last.
    fn read_once(&mut self, id: &str, index: usize, last: bool) -> io::Result<bool> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(false) };
        let Some(stream) = container.streams.get_mut(index) else { return Ok(false) };
        let Some(source) = stream
            .source
            .as_ref()
            .filter(|_| last || stream.sinks.iter().all(|sink| sink.waiting.is_empty()))
        else {
            return Ok(false);
        };
        self.records.clear();
        let now = rustix::time::clock_gettime(ClockId::Realtime);
        let time = format_time(now.tv_sec, now.tv_nsec);
        let length = match rustix::io::read(source, &mut self.buffer) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(rustix::io::Errno::INTR) => return Ok(true),
            // A terminal whose last user has gone answers EIO.
            Err(_) => 0,
        };
        let bytes = &self.buffer[..length];
        if length == 0 {
            stream.records.finish(time.as_bytes(), &mut self.records);
            self.poll.remove(source.as_fd());
            stream.source = None;
            for sink in stream.sinks.extract_if(.., |sink| sink.waiting.is_empty()) {
                self.poll.remove(sink.pipe.as_fd());
                self.tokens.remove(&sink.token);
            }
        } else {
            stream.records.push(time.as_bytes(), bytes, &mut self.records);
        }
        if let Some(log) = &mut container.log {
            log.write(&self.records);
        }
        copy_to_sinks(&self.poll, &mut self.tokens, stream, &self.buffer[..length])?;
        Ok(length != 0)
    }

    fn flush_sink(&mut self, id: &str, index: usize, token: u64) -> io::Result<()> {
        let Some(stream) =
            self.containers.get_mut(id).and_then(|container| container.streams.get_mut(index))
        else {
            return Ok(());
        };
        let Some(position) = stream.sinks.iter().position(|sink| sink.token == token) else {
            return Ok(());
        };
        // Without room to wait for, the event is the end of the reader.
        let sink = &mut stream.sinks[position];
        let is_gone = sink.waiting.is_empty() || !sink.flush();
        if is_gone || (sink.waiting.is_empty() && stream.source.is_none()) {
            self.poll.remove(sink.pipe.as_fd());
            self.tokens.remove(&token);
            stream.sinks.remove(position);
        } else if sink.waiting.is_empty() {
            self.poll.want_room(&sink.pipe, token, false)?;
        }
        if let Some(source) = stream
            .source
            .as_ref()
            .filter(|_| stream.sinks.iter().all(|sink| sink.waiting.is_empty()))
        {
            self.poll.remove(source.as_fd());
            self.poll.add_reader(source, stream.token)?;
        }
        Ok(())
    }
}

impl Writer {
    fn flush_leftover(&mut self, token: u64) {
        let Some(sink) = self.leftovers.get_mut(&token) else { return };
        if !sink.flush() || sink.waiting.is_empty() {
            self.poll.remove(sink.pipe.as_fd());
            self.leftovers.remove(&token);
            self.tokens.remove(&token);
        }
    }
}

fn copy_to_sinks(
    poll: &Poll,
    tokens: &mut BTreeMap<u64, Token>,
    stream: &mut Stream,
    bytes: &[u8],
) -> io::Result<()> {
    let mut full = false;
    let mut index = 0;
    while index < stream.sinks.len() {
        let sink = &mut stream.sinks[index];
        let written = match sink.waiting.is_empty() {
            true => write_some(sink.pipe.as_fd(), bytes),
            // In their order.
            false => Written::Bytes(0),
        };
        match written {
            Written::Bytes(count) => {
                if count < bytes.len() {
                    sink.waiting.extend_from_slice(&bytes[count..]);
                    poll.want_room(&sink.pipe, sink.token, true)?;
                    full = true;
                }
                index += 1;
            }
            Written::Gone => {
                poll.remove(sink.pipe.as_fd());
                tokens.remove(&sink.token);
                stream.sinks.remove(index);
            }
        }
    }
    if let (true, Some(source)) = (full, &stream.source) {
        poll.remove(source.as_fd());
    }
    Ok(())
}

impl Sink {
    /// Writes what fits. False where nobody reads any more.
    fn flush(&mut self) -> bool {
        match write_some(self.pipe.as_fd(), &self.waiting) {
            Written::Bytes(count) => {
                self.waiting.drain(..count);
                true
            }
            Written::Gone => false,
        }
    }
}

enum Written {
    /// So many; fewer than all where the pipe is full.
    Bytes(usize),
    /// Nobody reads any more.
    Gone,
}

fn write_some(pipe: BorrowedFd<'_>, bytes: &[u8]) -> Written {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::write(pipe, &bytes[done..]) {
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => break,
            Err(_) => return Written::Gone,
        }
    }
    Written::Bytes(done)
}

impl Container {
    fn is_open(&self) -> bool {
        self.streams.iter().any(|stream| stream.source.is_some())
    }
}

impl Log {
    /// Writes whole records, or none: what a full disk cut off is taken back. Output that cannot be
    /// written is lost, for a container must not hang on its log.
    fn write(&mut self, records: &[u8]) {
        let mut done = 0;
        while done < records.len() {
            match self.file.write(&records[done..]) {
                Ok(count) if count > 0 => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    if done > 0 && self.file.set_len(self.size).is_err() {
                        self.size += done as u64;
                    }
                    return;
                }
            }
        }
        self.size += done as u64;
        if self.rotation.as_ref().is_some_and(|rotation| self.size >= rotation.size) {
            self.rotate();
        }
    }

    /// `log` becomes `log.1`, and so on. Where that fails, the log goes on growing until it works.
    fn rotate(&mut self) {
        let Some(rotation) = &self.rotation else { return };
        let Rotation { directory, name, files, .. } = rotation;
        let old = |number: u32| format!("{name}.{number}");
        for number in (1..*files).rev() {
            match rustix::fs::renameat(directory, old(number), directory, old(number + 1)) {
                Ok(()) | Err(_) => {}
            }
        }
        let away = if *files == 0 {
            rustix::fs::unlinkat(directory, name.as_str(), rustix::fs::AtFlags::empty())
        } else {
            rustix::fs::renameat(directory, name.as_str(), directory, old(1))
        };
        let flags = OFlags::CREATE
            | OFlags::EXCL
            | OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW;
        let new = away.and_then(|()| {
            rustix::fs::openat(directory, name.as_str(), flags, Mode::from_raw_mode(0o640))
        });
        if let Ok(file) = new {
            self.file = File::from(file);
            self.size = 0;
        }
    }
}
