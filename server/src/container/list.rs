//! ListContainers: from memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Container, Record, State};
use crate::app::App;
use crate::sandbox::list::has_labels;

/// Which containers are meant: all that fit every part.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// An id or the beginning of some; empty for any.
    pub id: String,
    /// An id of a sandbox or the beginning of some; empty for any.
    pub sandbox: String,
    /// None for any.
    pub state: Option<State>,
    /// Labels that must be there with these values.
    pub labels: BTreeMap<String, String>,
}

/// The containers that a filter selects. `local` shows those of `berth run` too.
pub fn list(app: &App, filter: &Filter, local: bool) -> Vec<Arc<Container>> {
    let mut found = app.store.containers();
    found.retain(|container| selects(filter, &container.record(), local));
    found
}

fn selects(filter: &Filter, record: &Record, local: bool) -> bool {
    record.state != State::Creating
        && record.delivered
        && (local || record.spec.local.is_none())
        && record.id.as_str().starts_with(&filter.id)
        && record.sandbox.as_str().starts_with(&filter.sandbox)
        && filter.state.is_none_or(|state| state == record.state)
        && has_labels(&record.spec.labels, &filter.labels)
}
