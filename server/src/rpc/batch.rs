//! Lists as streams: everything as it was at one moment, in batches, then the end. They are for nodes whose lists are
//! larger than one message may be.

use prost::Message;
use tonic::Response;
use tonic::codegen::BoxStream;

use super::control::Answer;
use crate::error::Result;

/// A batch is sent when it has so many items,
const ITEMS: usize = 256;
/// or so many bytes. Clients take messages of 4 MiB by default; one item is always sent.
const BYTES: usize = 1 << 20;

/// A stream of all items; `message` makes a message of some.
pub(super) fn stream<I: Message, T: Send + 'static>(
    items: Result<Vec<I>>,
    message: impl Fn(Vec<I>) -> T,
) -> Answer<BoxStream<T>> {
    let messages: Vec<_> = batches(items?).into_iter().map(|batch| Ok(message(batch))).collect();
    Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
}

fn batches<I: Message>(items: Vec<I>) -> Vec<Vec<I>> {
    let mut batches: Vec<Vec<I>> = Vec::new();
    let mut room = 0;
    for item in items {
        let size = item.encoded_len();
        match batches.last_mut().filter(|batch| batch.len() < ITEMS && size <= room) {
            Some(batch) => {
                room -= size;
                batch.push(item);
            }
            None => {
                room = BYTES.saturating_sub(size);
                batches.push(vec![item]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cri::Int64Value;

    #[test]
    fn every_item_is_in_one_batch_and_none_is_too_large() {
        let check = |sizes: &[usize], expected: &[usize]| {
            let texts: Vec<String> = sizes.iter().map(|size| "x".repeat(*size)).collect();
            let batches = batches(texts.clone());
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert_eq!(batches.concat(), texts);
        };
        check(&[], &[]);
        check(&[1; ITEMS], &[ITEMS]);
        check(&[1; ITEMS + 1], &[ITEMS, 1]);
        check(&[BYTES / 2, BYTES / 2, BYTES * 3, 1], &[1, 1, 1, 1]);
        check(&[BYTES / 3, BYTES / 3, 10, BYTES / 3], &[3, 1]);
        assert_eq!(batches(vec![Int64Value::default(); 3]).len(), 1);
    }
}
