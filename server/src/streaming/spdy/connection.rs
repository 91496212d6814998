//! A SPDY connection: its tasks, its streams, its bounds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::frame::{Decoder, Encoder, Event, MAX_PART, Reset};
use super::headers::{Headers, Malformed};
use crate::streaming::channel::{Gone, Incoming, Piece};
use crate::streaming::hangup::Hangup;
use crate::streaming::idle::Activity;

/// Streams at once: 500 forwarded connections.
const MAX_STREAMS: usize = 1000;
/// Parts of one stream that nobody has read yet.
const PARTS: usize = 16;
/// Bytes of all streams that nobody has read yet.
const BUDGET: usize = 4 << 20;
/// What a part takes of it at least: its buffer is not free.
const LEAST: usize = 1 << 10;
/// Answers that a client lets wait. More is a flood.
const ANSWERS: usize = 1024;
/// Data frames that wait for the socket, of all streams together.
const FRAMES: usize = 8;
/// A client has so long to close its side once all is said.
const LINGER: Duration = Duration::from_secs(10);
/// So long a client is told what it did wrong.
const GOODBYE: Duration = Duration::from_secs(2);
/// While nothing can be read, the socket is looked at so often.
const LOOK: Duration = Duration::from_secs(2);

/// How a connection is run.
#[derive(Debug, Clone)]
pub(in crate::streaming) struct Settings {
    /// It is closed when nothing has come or gone for so long.
    pub(in crate::streaming) idle: Duration,
    /// Whether a stream with these headers is taken.
    pub(in crate::streaming) acceptable: fn(&Headers) -> bool,
    /// Tells whether the client has gone while nothing is read.
    pub(in crate::streaming) hangup: Hangup,
}

/// The server's side of a connection.
#[derive(Debug)]
pub(in crate::streaming) struct Connection {
    accepted: mpsc::Receiver<Stream>,
    shared: Arc<Shared>,
}

/// A stream that the client has opened.
#[derive(Debug)]
pub(in crate::streaming) struct Stream {
    pub(in crate::streaming) id: u32,
    pub(in crate::streaming) headers: Headers,
    pub(in crate::streaming) incoming: Incoming,
    pub(in crate::streaming) outgoing: Writer,
}

/// What an answer to the client is. They go before data.
#[derive(Debug)]
enum Answer {
    Reply(u32),
    Ping(u32),
    Reset(u32, Reset),
    /// The last word, to a client that did wrong.
    Malformed,
}

/// What is sent in order.
#[derive(Debug)]
enum Said {
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset(u32, Reset),
    /// The last word.
    GoAway,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    table: Mutex<Table>,
    activity: Activity,
    budget: Arc<Semaphore>,
    answers: mpsc::Sender<Answer>,
    said: mpsc::Sender<Said>,
    /// Nothing comes or goes any more.
    closed: CancellationToken,
}

#[derive(Debug)]
struct Table {
    streams: HashMap<u32, Slot>,
    /// The last stream that was opened.
    last: u32,
    going_away: bool,
}

/// An open stream.
#[derive(Debug)]
struct Slot {
    /// None once the client has closed it.
    incoming: Option<mpsc::Sender<Piece>>,
    /// We have closed it.
    closed: bool,
    /// The client has given it up.
    reset: CancellationToken,
}

impl Connection {
    /// Takes a connection that has been upgraded. Must be called in the runtime.
    pub(in crate::streaming) fn start<T>(io: T, settings: Settings) -> Connection
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (answers, answers_of) = mpsc::channel(ANSWERS);
        let (said, said_of) = mpsc::channel(FRAMES);
        let (opened, accepted) = mpsc::channel(MAX_STREAMS);
        let table = Table { streams: HashMap::new(), last: 0, going_away: false };
        let shared = Arc::new(Shared {
            settings,
            table: Mutex::new(table),
            activity: Activity::new(),
            budget: Arc::new(Semaphore::new(BUDGET)),
            answers,
            said,
            closed: CancellationToken::new(),
        });
        let run = run(shared.clone(), io, opened, answers_of, said_of);
        let closed = shared.closed.clone();
        tokio::spawn(async move { closed.run_until_cancelled_owned(run).await });
        Connection { accepted, shared }
    }

    /// The next stream that the client opens; none when there will be no more.
    pub(in crate::streaming) async fn accept(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }

    /// Is cancelled when the client has gone.
    pub(in crate::streaming) fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// Says goodbye after all that was written, and gives the client time to read it.
    pub(in crate::streaming) async fn finish(mut self) {
        self.accepted.close();
        self.shared.table().going_away = true;
        if self.shared.said.send(Said::GoAway).await.is_ok() {
            self.shared.closed.cancelled().await;
        }
    }
}

impl Drop for Connection {
    /// Whoever does not say goodbye closes.
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

async fn run<T: AsyncRead + AsyncWrite>(
    shared: Arc<Shared>,
    io: T,
    opened: mpsc::Sender<Stream>,
    answers: mpsc::Receiver<Answer>,
    said: mpsc::Receiver<Said>,
) {
    let (read, write) = tokio::io::split(io);
    {
        let mut reading = std::pin::pin!(shared.read(read, opened));
        let mut writing = std::pin::pin!(shared.write(write, answers, said));
        tokio::select! {
            read = &mut reading => {
                if let Err(malformed) = read {
                    tracing::debug!("a SPDY client sent {malformed}");
                    if shared.answers.try_send(Answer::Malformed).is_ok() {
                        tokio::time::timeout(GOODBYE, writing).await.ok();
                    }
                }
            }
            written = &mut writing => {
                if written.is_ok() {
                    tokio::time::timeout(LINGER, reading).await.ok();
                }
            }
            () = shared.activity.idle(shared.settings.idle) => tracing::debug!("a streaming connection was idle for too long"),
        }
    }
    shared.closed.cancel();
    shared.table().streams.clear();
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nobody panics with this lock")
    }

    async fn read<R: AsyncRead>(
        self: &Arc<Shared>,
        read: R,
        opened: mpsc::Sender<Stream>,
    ) -> Result<(), Malformed> {
        let mut read = std::pin::pin!(read);
        let (mut decoder, mut input) = (Decoder::new(), BytesMut::new());
        loop {
            while let Some(event) = decoder.next(&mut input)? {
                self.activity.touch();
                if self.heed(event, &opened).await? == Goes::Nowhere {
                    return Ok(());
                }
            }
            input.reserve(MAX_PART);
            match read.read_buf(&mut input).await {
                Ok(count) if count > 0 => {}
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }

    async fn heed(
        self: &Arc<Shared>,
        event: Event,
        opened: &mpsc::Sender<Stream>,
    ) -> Result<Goes, Malformed> {
        match event {
            Event::Open { id, fin, unidirectional, headers } => {
                self.open(id, fin, unidirectional, headers, opened)?;
            }
            Event::Data { id, bytes, fin } => return self.data(id, bytes, fin).await,
            Event::Headers { id, fin } if fin => self.remote_end(id),
            Event::Headers { .. } | Event::Other => {}
            Event::Reset(id) => {
                if let Some(slot) = self.table().streams.remove(&id) {
                    slot.reset.cancel();
                }
            }
            // Even ones answer pings of ours, of which there are none.
            Event::Ping(id) if !id.is_multiple_of(2) => self.answer(Answer::Ping(id))?,
            Event::Ping(_) => {}
            Event::GoAway => self.table().going_away = true,
        }
        Ok(Goes::On)
    }

    /// Sends an answer, which waits for nobody: reading must go on while writing cannot.
    fn answer(&self, answer: Answer) -> Result<(), Malformed> {
        match self.answers.try_send(answer) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Malformed("more than it reads the answers to"))
            }
            // After the last word nobody needs one.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    fn open(
        self: &Arc<Shared>,
        id: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
        opened: &mpsc::Sender<Stream>,
    ) -> Result<(), Malformed> {
        let (sender, receiver) = mpsc::channel(PARTS);
        let reset = CancellationToken::new();
        let taken = {
            let mut table = self.table();
            if id.is_multiple_of(2) || id <= table.last {
                return Err(Malformed("a stream whose number is not the next"));
            }
            table.last = id;
            let room = !table.going_away && table.streams.len() < MAX_STREAMS && !unidirectional;
            let place = opened.try_reserve().ok();
            let place = place.filter(|_| room && (self.settings.acceptable)(&headers));
            if place.is_some() {
                let incoming = (!fin).then_some(sender);
                table.streams.insert(id, Slot { incoming, closed: false, reset: reset.clone() });
            }
            place
        };
        let Some(place) = taken else { return self.answer(Answer::Reset(id, Reset::Refused)) };
        self.answer(Answer::Reply(id))?;
        let outgoing = Writer { id, shared: self.clone(), reset, closed: AtomicBool::new(false) };
        place.send(Stream { id, headers, incoming: Incoming::new(receiver), outgoing });
        Ok(())
    }

    async fn data(&self, id: u32, bytes: Bytes, fin: bool) -> Result<Goes, Malformed> {
        let incoming = {
            let table = self.table();
            match table.streams.get(&id) {
                Some(slot) => slot.incoming.clone(),
                None if id > table.last => {
                    drop(table);
                    self.answer(Answer::Reset(id, Reset::Invalid))?;
                    return Ok(Goes::On);
                }
                // It has been given up, and what was under way still comes.
                None => None,
            }
        };
        if let Some(incoming) = incoming
            && !bytes.is_empty()
            && self.deliver(&incoming, bytes).await == Goes::Nowhere
        {
            return Ok(Goes::Nowhere);
        }
        if fin {
            self.remote_end(id);
        }
        Ok(Goes::On)
    }

    /// Hands bytes over once there is room for them.
    async fn deliver(&self, incoming: &mpsc::Sender<Piece>, bytes: Bytes) -> Goes {
        // A few bytes must not keep a whole buffer.
        let bytes = if bytes.len() < LEAST { Bytes::copy_from_slice(&bytes) } else { bytes };
        let room = u32::try_from(bytes.len().max(LEAST)).unwrap_or(u32::MAX);
        let delivery = async {
            let Ok(room) = self.budget.clone().acquire_many_owned(room).await else { return };
            // Whoever read it may have stopped.
            let _unread = incoming.send(Piece { bytes, _room: room }).await;
        };
        let mut delivery = std::pin::pin!(delivery);
        loop {
            tokio::select! {
                () = &mut delivery => return Goes::On,
                () = tokio::time::sleep(LOOK) => {
                    if self.settings.hangup.happened() {
                        return Goes::Nowhere;
                    }
                }
            }
        }
    }

    fn remote_end(&self, id: u32) {
        let mut table = self.table();
        if let Some(slot) = table.streams.get_mut(&id) {
            slot.incoming = None;
            if slot.closed {
                table.streams.remove(&id);
            }
        }
    }

    fn local_end(&self, id: u32, whole: bool) {
        let mut table = self.table();
        if let Some(slot) = table.streams.get_mut(&id) {
            slot.closed = true;
            if whole || slot.incoming.is_none() {
                table.streams.remove(&id);
            }
        }
    }

    async fn write<W: AsyncWrite>(
        &self,
        write: W,
        mut answers: mpsc::Receiver<Answer>,
        mut said: mpsc::Receiver<Said>,
    ) -> std::io::Result<()> {
        let mut write = std::pin::pin!(write);
        let mut encoder = Encoder::new().map_err(std::io::Error::other)?;
        let mut out = Vec::new();
        loop {
            let last = tokio::select! {
                biased;
                Some(answer) = answers.recv() => self.put_answer(&mut encoder, &mut out, &answer)?,
                Some(next) = said.recv() => {
                    self.put(&mut out, &next);
                    if let Said::Data { bytes, .. } = &next {
                        write.write_all(&out).await?;
                        out.clear();
                        write.write_all(bytes).await?;
                    }
                    matches!(next, Said::GoAway)
                }
                else => true,
            };
            if last || answers.is_empty() {
                write.write_all(&out).await?;
                out.clear();
                if last || said.is_empty() {
                    write.flush().await?;
                }
            }
            self.activity.touch();
            if last {
                return write.shutdown().await;
            }
        }
    }

    /// Whether it was the last word.
    fn put_answer(
        &self,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
        answer: &Answer,
    ) -> std::io::Result<bool> {
        match *answer {
            Answer::Reply(id) => encoder.reply(out, id).map_err(std::io::Error::other)?,
            Answer::Ping(id) => Encoder::ping(out, id),
            Answer::Reset(id, why) => Encoder::reset(out, id, why),
            Answer::Malformed => Encoder::go_away(out, self.table().last, true),
        }
        Ok(matches!(answer, Answer::Malformed))
    }

    fn put(&self, out: &mut Vec<u8>, said: &Said) {
        match said {
            Said::Data { id, bytes, fin } => {
                out.extend_from_slice(&Encoder::data_head(*id, bytes.len(), *fin));
            }
            Said::Reset(id, why) => Encoder::reset(out, *id, *why),
            Said::GoAway => Encoder::go_away(out, self.table().last, false),
        }
    }
}

/// Whether a connection has a future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    Nowhere,
}

/// Our side of a stream.
#[derive(Debug)]
pub(in crate::streaming) struct Writer {
    id: u32,
    shared: Arc<Shared>,
    reset: CancellationToken,
    closed: AtomicBool,
}

impl Writer {
    /// Sends bytes (less than 16 MiB), once there is room.
    ///
    /// # Errors
    /// The client has given the stream up, or is gone.
    pub(in crate::streaming) async fn write(&self, bytes: Bytes) -> Result<(), Gone> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.say(Said::Data { id: self.id, bytes, fin: false }).await
    }

    /// Says that nothing more will come.
    pub(in crate::streaming) async fn close(&self) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            let _gone = self.say(Said::Data { id: self.id, bytes: Bytes::new(), fin: true }).await;
            self.shared.local_end(self.id, false);
        }
    }

    /// Gives the stream up, in both directions.
    pub(in crate::streaming) async fn reset(self, why: Reset) {
        self.closed.store(true, Ordering::Relaxed);
        let _gone = self.say(Said::Reset(self.id, why)).await;
        self.shared.local_end(self.id, true);
    }

    /// Returns when the client has given the stream up, or is gone.
    pub(in crate::streaming) async fn gone(&self) {
        tokio::select! {
            () = self.reset.cancelled() => {}
            () = self.shared.closed.cancelled() => {}
        }
    }

    async fn say(&self, said: Said) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.gone() => Err(Gone),
            sent = self.shared.said.send(said) => sent.map_err(|_| Gone),
        }
    }
}

impl Drop for Writer {
    /// A stream that nobody serves any more is given up.
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Relaxed) {
            // Where the client does not read its answers, the connection ends anyway.
            let _flooded = self.shared.answers.try_send(Answer::Reset(self.id, Reset::Cancel));
            self.shared.local_end(self.id, true);
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
