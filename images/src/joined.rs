//! Work that several callers want: done once, given up when the last of them goes.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::error::{Error, Result};

type Outcome<T> = Option<std::result::Result<T, Arc<Error>>>;
type Jobs<K, T, I> = Vec<(K, Weak<Job<T, I>>)>;

/// Work under way, by what it is for.
#[derive(Debug)]
pub(crate) struct Joined<K, T, I> {
    jobs: Mutex<Jobs<K, T, I>>,
}

/// One piece of work. It goes on while somebody has one of these; `info` tells how far it is.
#[derive(Debug)]
pub(crate) struct Job<T, I> {
    pub(crate) info: I,
    outcome: watch::Receiver<Outcome<T>>,
    cancel: Cancel,
    task: AbortHandle,
}

/// Tells threads that block that nobody waits for them any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The flag itself: true once the work is given up.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }
}

impl<K, T, I> Default for Joined<K, T, I> {
    fn default() -> Joined<K, T, I> {
        Joined { jobs: Mutex::default() }
    }
}

impl<K: PartialEq, T, I> Joined<K, T, I>
where
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work for `key`, or starts it. True where it was started. Must be called on the runtime.
    pub(crate) fn join<F>(
        &self,
        key: K,
        start: impl FnOnce(Cancel) -> (I, F),
    ) -> (Arc<Job<T, I>>, bool)
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut jobs = self.jobs();
        let running =
            jobs.iter().find(|(other, _)| *other == key).and_then(|(_, job)| job.upgrade());
        if let Some(job) = running {
            return (job, false);
        }
        let cancel = Cancel::default();
        let (info, work) = start(cancel.clone());
        let (sender, outcome) = watch::channel(None);
        let task = tokio::spawn(async move {
            let share =
                |error| if let Error::Shared(error) = error { error } else { Arc::new(error) };
            let done = work.await.map_err(share);
            sender.send_replace(Some(done));
        });
        let job = Arc::new(Job { info, outcome, cancel, task: task.abort_handle() });
        jobs.push((key, Arc::downgrade(&job)));
        (job, true)
    }

    /// Forgets what has ended or was given up: who comes now starts anew.
    fn jobs(&self) -> MutexGuard<'_, Jobs<K, T, I>> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|(_, job)| job.upgrade().is_some_and(|job| job.outcome.borrow().is_none()));
        jobs
    }

    /// Forgets the keys of work that has ended; they may hold secrets.
    pub(crate) fn tidy(&self) {
        drop(self.jobs());
    }
}

impl<T: Clone, I> Job<T, I> {
    /// Waits for the end.
    ///
    /// # Errors
    /// That of the work, which others get too.
    pub(crate) async fn wait(&self) -> Result<T> {
        let mut outcome = self.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.ok().and_then(|outcome| outcome.clone()) {
            Some(done) => done.map_err(Error::Shared),
            None => Err(Error::Unavailable {
                what: "shared work".to_owned(),
                problem: "was broken off".to_owned(),
                source: None,
            }),
        }
    }

    /// What came out, if it has ended well.
    pub(crate) fn result(&self) -> Option<T> {
        self.outcome.borrow().as_ref()?.as_ref().ok().cloned()
    }
}

impl<T, I> Drop for Job<T, I> {
    fn drop(&mut self) {
        self.cancel.0.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[tokio::test]
    async fn two_callers_share_one_piece_of_work() {
        let joined: Joined<u32, u32, ()> = Joined::default();
        let count = Arc::new(AtomicU32::new(0));
        let start = |_| {
            let count = Arc::clone(&count);
            ((), async move {
                tokio::task::yield_now().await;
                Ok(count.fetch_add(1, Ordering::Relaxed) + 1)
            })
        };
        let (first, is_new) = joined.join(7, start);
        assert!(is_new);
        let (second, is_new) = joined.join(7, start);
        assert!(!is_new);
        let (other, is_new) = joined.join(8, start);
        assert!(is_new);
        let values = (
            first.wait().await.unwrap(),
            second.wait().await.unwrap(),
            other.wait().await.unwrap(),
        );
        assert!(values.0 == values.1 && values.0 != values.2);
        assert_eq!(count.load(Ordering::Relaxed), 2);
        let (again, is_new) = joined.join(7, start);
        assert!(is_new, "work that has ended is not joined");
        assert_eq!(again.wait().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn work_is_given_up_when_the_last_caller_goes() {
        let joined: Joined<(), (), Cancel> = Joined::default();
        let start = |cancel: Cancel| (cancel.clone(), std::future::pending());
        let (first, _) = joined.join((), start);
        let (second, _) = joined.join((), start);
        let cancel = first.info.clone();
        drop(first);
        assert!(!cancel.flag().load(Ordering::Relaxed));
        drop(second);
        assert!(cancel.flag().load(Ordering::Relaxed));
        let (_third, is_new) = joined.join((), start);
        assert!(is_new);
    }

    #[tokio::test]
    async fn an_error_reaches_everybody() {
        let joined: Joined<(), (), ()> = Joined::default();
        let start = |_| ((), async { Err(Error::NotFound { what: "it".to_owned() }) });
        let (first, _) = joined.join((), start);
        let (second, _) = joined.join((), start);
        for job in [first, second] {
            assert_eq!(job.wait().await.unwrap_err().to_string(), "it does not exist");
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_for_those_who_wait() {
        let joined: Joined<(), (), ()> = Joined::default();
        let (job, _) = joined.join((), |_| ((), async { panic!("on purpose") }));
        assert!(job.wait().await.unwrap_err().to_string().contains("broken off"));
    }
}
