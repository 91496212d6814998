//! GetContainerEvents: events as long as the client listens.

use proto::cri as v1;
use tonic::codegen::BoxStream;

use super::control::{Answer, send, stream};
use super::{Backend, reply};

/// The place among the subscribers is taken before the answer begins: whoever has its header misses nothing.
pub(super) fn events(backend: &Backend) -> Answer<BoxStream<v1::ContainerEventResponse>> {
    let mut subscription = backend.app.events.subscribe();
    let app = backend.app.clone();
    stream(backend, |sink| async move {
        loop {
            let event = subscription.next().await?;
            send(&sink, reply::event(&app, &event)).await?;
        }
    })
}
