//! What becomes of pods and containers, told to whoever listens: a kubelet's evented PLEG, `crictl events`.
//!
//! An event follows from what the records say, never from what a call is about to do: whoever has changed an object calls
//! [`sandbox`] or [`container`], and what the record has come to and has not been told yet is told, in order. So an
//! event is never ahead of the lists, none comes twice, and none out of order, whichever task is the faster.
//!
//! There is one ring for all subscribers. Whoever tells never waits: a subscriber that falls behind by more than the ring
//! holds loses its place, and is told so. While nobody listens, nothing is made.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};

use crate::app::{App, now};
use crate::container::{self, Container};
use crate::error::{Error, Result};
use crate::sandbox::{self, Sandbox};

/// Events that a subscriber may be behind; a kubelet takes in as many before it looks at them.
const BEHIND: usize = 1024;

/// What became of an object, in the order of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It is listed.
    Created,
    /// Its program runs; a sandbox is ready.
    Started,
    /// It has ended.
    Stopped,
    /// It is listed no more.
    Deleted,
}

/// Something that became of a container, or of a sandbox itself.
#[derive(Debug)]
pub struct Event {
    /// Of the container, or of the sandbox.
    pub id: String,
    /// What it was.
    pub kind: Kind,
    /// Nanoseconds since 1970; later for a later event, as far as the node's clock goes on.
    pub at: i64,
    /// The pod at that time.
    pub pod: Pod,
}

/// A sandbox and its containers as they all were at one moment.
#[derive(Debug)]
pub struct Pod {
    /// The sandbox.
    pub sandbox: sandbox::Record,
    /// Those of its containers that clients know of.
    pub containers: Vec<container::Record>,
}

/// Whoever listens.
#[derive(Debug, Default)]
pub struct Events {
    /// None until somebody subscribes for the first time. The lock is what brings events into an order.
    ring: Mutex<Option<Sender<Arc<Event>>>>,
}

/// How far the story of one object has been told.
#[derive(Debug, Default)]
pub struct Story(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Kind>,
    /// Somebody is at work on the object and tells all of it at once.
    held: bool,
}

/// The story of an object stands still.
#[derive(Debug)]
pub struct Hold<'a>(&'a Story);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.told().held = false;
    }
}

impl Story {
    /// Of an object that an earlier daemon has made: what that one told is not told again.
    pub fn up_to(last: Option<Kind>) -> Story {
        Story(Mutex::new(Told { last, held: false }))
    }

    /// Nothing is told before this is dropped: for whoever learns in two parts, from two sources, what belongs
    /// together, and tells it then.
    pub fn hold(&self) -> Hold<'_> {
        self.told().held = true;
        Hold(self)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("nobody panics with this lock")
    }

    /// What is to be told now that the object has come so far. `ran`: it had a program that ran.
    fn advance(&self, to: Option<Kind>, ran: bool) -> Vec<Kind> {
        let mut told = self.told();
        if told.held && to != Some(Kind::Deleted) {
            return Vec::new();
        }
        let all = [Kind::Created, Kind::Started, Kind::Stopped, Kind::Deleted];
        let new = all.into_iter().filter(|kind| Some(*kind) > told.last && Some(*kind) <= to);
        let new = new.filter(|kind| *kind != Kind::Started || ran).collect();
        told.last = told.last.max(to);
        new
    }
}

/// How far a sandbox has come.
pub fn of_sandbox(record: &sandbox::Record) -> Option<Kind> {
    match record.state {
        sandbox::State::Creating => None,
        sandbox::State::Ready => Some(Kind::Started),
        sandbox::State::NotReady => Some(Kind::Stopped),
    }
}

/// How far a container has come.
pub fn of_container(record: &container::Record) -> Option<Kind> {
    match record.state {
        container::State::Creating => None,
        // Nobody knows of it yet.
        _ if !record.delivered => None,
        container::State::Created => Some(Kind::Created),
        container::State::Running => Some(Kind::Started),
        container::State::Exited => Some(Kind::Stopped),
    }
}

/// A sandbox has changed. Holds no lock of a record.
pub fn sandbox(app: &App, sandbox: &Sandbox) {
    let ring = app.events.ring();
    let (to, ready) = {
        let record = sandbox.record();
        (of_sandbox(&record), record.state == sandbox::State::Ready)
    };
    tell(app, &ring, sandbox, sandbox.id.as_str(), sandbox.story.advance(to, ready));
}

/// A sandbox is listed no more.
pub fn sandbox_removed(app: &App, sandbox: &Sandbox) {
    let ring = app.events.ring();
    let new = sandbox.story.advance(Some(Kind::Deleted), false);
    tell(app, &ring, sandbox, sandbox.id.as_str(), new);
}

/// A container has changed. Holds no lock of a record.
pub fn container(app: &App, container: &Container) {
    let to = |record: &container::Record| of_container(record);
    tell_container(app, container, to);
}

/// A container is listed no more.
pub fn container_removed(app: &App, container: &Container) {
    let to = |record: &container::Record| record.delivered.then_some(Kind::Deleted);
    tell_container(app, container, to);
}

fn tell_container(
    app: &App,
    container: &Container,
    to: impl FnOnce(&container::Record) -> Option<Kind>,
) {
    let ring = app.events.ring();
    let (to, ran) = {
        let record = container.record();
        (to(&record), record.started_at != 0)
    };
    let new = container.story.advance(to, ran);
    // Its sandbox is forgotten after it.
    let Ok(sandbox) = app.sandbox_of(container) else { return };
    tell(app, &ring, &sandbox, container.id.as_str(), new);
}

fn tell(
    app: &App,
    ring: &Option<Sender<Arc<Event>>>,
    sandbox: &Sandbox,
    id: &str,
    kinds: Vec<Kind>,
) {
    let Some(ring) = ring.as_ref().filter(|ring| ring.receiver_count() > 0) else { return };
    // A kubelet must not hear of the pods of `berth run`.
    if kinds.is_empty() || sandbox.record().spec.local {
        return;
    }
    for kind in kinds {
        let event = Event { id: id.into(), kind, at: now(), pod: app.store.pod_at_once(sandbox) };
        // The last subscriber may have gone meanwhile.
        ring.send(Arc::new(event)).ok();
    }
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Option<Sender<Arc<Event>>>> {
        self.ring.lock().expect("nobody panics with this lock")
    }

    /// Everything that is told from now on.
    pub fn subscribe(&self) -> Subscription {
        let mut ring = self.ring();
        Subscription(ring.get_or_insert_with(|| Sender::new(BEHIND)).subscribe())
    }
}

/// The place of one subscriber.
#[derive(Debug)]
pub struct Subscription(Receiver<Arc<Event>>);

impl Subscription {
    /// The next event. May be dropped while it waits: nothing is lost by that.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the subscriber was too slow: some events are lost to it.
    pub async fn next(&mut self) -> Result<Arc<Event>> {
        self.0.recv().await.map_err(|error| match error {
            RecvError::Closed => Error::ending(),
            RecvError::Lagged(lost) => Error::Unavailable {
                what: "the stream of events".into(),
                problem: format!(
                    "its client fell behind by more than {BEHIND} events and has lost {lost}; list again, then subscribe again"
                ),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Created, Deleted, Started, Stopped};

    #[test]
    fn what_was_not_told_is_told_in_order_and_once() {
        let check = |steps: &[(Option<Kind>, bool)], expected: &[Kind]| {
            let story = Story::default();
            let told: Vec<Kind> =
                steps.iter().flat_map(|(to, ran)| story.advance(*to, *ran)).collect();
            assert_eq!(told, expected, "{steps:?}");
        };
        let whole = [Created, Started, Stopped, Deleted];
        check(&[(Some(Created), false), (Some(Started), true), (Some(Stopped), true)], &whole[..3]);
        check(&[(None, false), (Some(Deleted), true)], &whole);
        // The end of a short program is heard of before its start has returned.
        check(&[(Some(Created), false), (Some(Stopped), true), (Some(Started), true)], &whole[..3]);
        check(&[(Some(Stopped), true), (Some(Stopped), true), (Some(Created), true)], &whole[..3]);
        // A program that could not be run.
        check(&[(Some(Created), false), (Some(Stopped), false)], &[Created, Stopped]);
    }

    #[test]
    fn a_story_that_is_held_waits() {
        let story = Story::up_to(Some(Created));
        let hold = story.hold();
        assert_eq!(story.advance(Some(Stopped), false), []);
        drop(hold);
        assert_eq!(story.advance(Some(Stopped), true), [Started, Stopped]);
    }

    #[test]
    fn nothing_of_an_earlier_daemon_is_told_again() {
        let story = Story::up_to(Some(Stopped));
        assert_eq!(story.advance(Some(Stopped), true), []);
        assert_eq!(story.advance(Some(Deleted), true), [Deleted]);
    }
}
