//! ListPodSandbox: from memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Record, Sandbox, State};
use crate::app::App;

/// Which sandboxes are meant: all that fit every part.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// An id or the beginning of some; empty for any.
    pub id: String,
    /// None for any.
    pub ready: Option<bool>,
    /// Labels that must be there with these values.
    pub labels: BTreeMap<String, String>,
}

/// The sandboxes that a filter selects. `local` shows those of `berth run` too.
pub fn list(app: &App, filter: &Filter, local: bool) -> Vec<Arc<Sandbox>> {
    let mut found = app.store.sandboxes();
    found.retain(|sandbox| selects(filter, &sandbox.record(), local));
    found
}

fn selects(filter: &Filter, record: &Record, local: bool) -> bool {
    let ready = record.state == State::Ready;
    record.state != State::Creating
        && (local || !record.spec.local)
        && record.id.as_str().starts_with(&filter.id)
        && filter.ready.is_none_or(|wanted| wanted == ready)
        && has_labels(&record.spec.labels, &filter.labels)
}

/// Whether all wanted labels are there.
pub fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}
