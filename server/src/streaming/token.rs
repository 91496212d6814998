//! What a call of the CRI has allowed, until the client comes for it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::Wanted;
use crate::error::{Error, Result};
use crate::id::random_hex;

/// Bytes of randomness in a token.
const BYTES: usize = 16;
/// How long a token is good.
const LIFE: Duration = Duration::from_secs(60);
/// Tokens that nobody has come for.
const MAX_OUTSTANDING: usize = 1000;

/// The tokens that are good.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// With the end of their life, on a clock that no one sets.
    outstanding: Mutex<HashMap<String, (Instant, Wanted)>>,
}

impl Tokens {
    /// A token for one use within a minute.
    ///
    /// # Errors
    /// [`Error::Exhausted`] where too many are outstanding.
    pub(super) fn issue(&self, wanted: Wanted) -> Result<String> {
        let mut outstanding = self.outstanding.lock().expect("nobody panics with this lock");
        let now = Instant::now();
        outstanding.retain(|_, (end, _)| *end > now);
        if outstanding.len() >= MAX_OUTSTANDING {
            return Err(Error::Exhausted {
                what: "streaming".into(),
                problem: format!(
                    "{MAX_OUTSTANDING} URLs are waiting for their clients; they end after {} s",
                    LIFE.as_secs()
                ),
            });
        }
        let token = random_hex(BYTES);
        outstanding.insert(token.clone(), (now + LIFE, wanted));
        Ok(token)
    }

    /// What the token is good for, once.
    pub(super) fn take(&self, token: &str) -> Option<Wanted> {
        let mut outstanding = self.outstanding.lock().expect("nobody panics with this lock");
        let (end, wanted) = outstanding.remove(token)?;
        (end > Instant::now()).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SandboxId;
    use crate::streaming::port_forward;

    fn wanted() -> Wanted {
        Wanted::PortForward(port_forward::Request { sandbox: SandboxId::random(), ports: vec![] })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let token = tokens.issue(wanted()).unwrap();
        assert_eq!(token.len(), 32);
        assert!(tokens.take("").is_none());
        assert!(tokens.take(&token).is_some());
        assert!(tokens.take(&token).is_none());
        let late = tokens.issue(wanted()).unwrap();
        tokio::time::advance(LIFE).await;
        assert!(tokens.take(&late).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_and_no_more_until_they_expire() {
        let tokens = Tokens::default();
        for _ in 0..MAX_OUTSTANDING {
            tokens.issue(wanted()).unwrap();
        }
        assert!(matches!(tokens.issue(wanted()), Err(Error::Exhausted { .. })));
        tokio::time::advance(LIFE).await;
        tokens.issue(wanted()).unwrap();
    }
}
