//! Work that blocks, on threads apart from those that serve: the only place where it is started.

use std::time::Duration;

use crate::error::{Error, Result};

/// Runs work that the disk or the kernel may hold up for a moment.
///
/// # Errors
/// Those of the work; a panic in it is told as a failure.
pub async fn run<T, F>(doing: &'static str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Failed { doing: doing.into(), source: Box::new(error) }),
    }
}

/// Runs work that may hang for good, such as looking at a dead volume: after the deadline
/// it is left alone, and its thread ends when the kernel lets it go.
///
/// # Errors
/// As [`run`]; [`Error::Timeout`].
pub async fn within<T, F>(deadline: Duration, doing: &'static str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::time::timeout(deadline, run(doing, work)).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout { doing: doing.into(), after: deadline }),
    }
}
