//! The start: records are read, and what they do not name is swept.

use std::time::Instant;

use super::record::ImageRecord;
use super::state::{LayerState, State};
use crate::digest::Digest;
use crate::disk::{Disk, Place, Sync};
use crate::error::{Doing, Result};
use crate::limits::Limits;
use crate::snapshot::{Layer, Number};

/// Reads all records. What contradicts itself is left out, and what nobody names goes to the trash.
pub(super) fn load(disk: &Disk, limits: &Limits, boot: &str) -> Result<State> {
    for name in disk.names(Place::Work)? {
        disk.discard(Place::Work, &name).doing(|| format!("sweep work in progress {name}"))?;
    }
    let mut state = State::default();
    for name in disk.names(Place::LayerRecords)? {
        let record: Option<Layer> = disk.read_record(Place::LayerRecords, &name)?;
        if let Some(layer) = record.filter(|layer| layer.number.to_string() == name) {
            add_found(&mut state, disk, layer, boot);
        }
    }
    let mut records = Vec::new();
    for name in disk.names(Place::ImageRecords)? {
        let record: Option<ImageRecord> = disk.read_record(Place::ImageRecords, &name)?;
        records.extend(record.filter(|record| record.id.digest().hex() == name));
    }
    for mut record in records {
        // The record of a layer may be gone where that of its image is not.
        for layer in &record.layers {
            if !state.layers.contains_key(&layer.number)
                && add_found(&mut state, disk, layer.clone(), boot)
            {
                disk.write_record(
                    Place::LayerRecords,
                    &layer.number.to_string(),
                    layer,
                    Sync::Later,
                )?;
            }
        }
        trust(&mut state, &record);
        if let Some(problem) = problem_of(&record, &state, disk, limits) {
            tracing::warn!(image = %record.id, problem, "an image is not whole and not listed; pull it again");
            disk.set_aside(Place::ImageRecords, &record.id.digest().hex())?;
            continue;
        }
        record.tags.retain(|tag| {
            let other = state.tags.get(&tag.reference).and_then(|id| state.images.get(id));
            let other = other.and_then(|record| {
                record.tags.iter().find(|other| other.reference == tag.reference)
            });
            other.is_none_or(|other| other.stamp < tag.stamp)
        });
        state.stamp = record.tags.iter().map(|tag| tag.stamp).max().unwrap_or(0).max(state.stamp);
        drop(state.insert(record));
    }
    discard_unknown(&mut state, disk)?;
    Ok(state)
}

/// Takes a layer from a record, if its tree is there; false where it is not.
fn add_found(state: &mut State, disk: &Disk, layer: Layer, boot: &str) -> bool {
    let number = layer.number;
    if disk.directory(Place::Layers, &number.to_string()).is_err() {
        return false;
    }
    let trusted = layer.boot == boot;
    if trusted || !state.chains.contains_key(&layer.chain_id) {
        state.chains.insert(layer.chain_id, number);
    }
    let found =
        LayerState { layer, images: 0, holders: 0, trusted, unclaimed: Some(Instant::now()) };
    state.layers.insert(number, found);
    true
}

/// The record of an image is written after all that it names: those layers are on the disk.
fn trust(state: &mut State, record: &ImageRecord) {
    for named in &record.layers {
        if let Some(found) =
            state.layers.get_mut(&named.number).filter(|found| found.layer == *named)
        {
            found.trusted = true;
            state.chains.insert(named.chain_id, named.number);
        }
    }
}

/// Why an image cannot be used, if it cannot.
fn problem_of(record: &ImageRecord, state: &State, disk: &Disk, limits: &Limits) -> Option<String> {
    for layer in &record.layers {
        let found = state.layers.get(&layer.number).map(|state| state.layer.chain_id);
        if found != Some(layer.chain_id) {
            return Some(format!("layer {} is not here", layer.number));
        }
    }
    let config = disk.read(Place::Blobs, &record.id.digest().hex(), limits.config_bytes.0);
    match config.ok().flatten().map(|bytes| Digest::of(&bytes)) {
        Some(digest) if digest == record.id.digest() => None,
        _ => Some("its config is damaged".to_owned()),
    }
}

/// Clears away what records do not name: layers half committed or half deleted, and documents.
fn discard_unknown(state: &mut State, disk: &Disk) -> Result<()> {
    let doing = || "clear away what no record names";
    for place in [Place::Layers, Place::Recipes, Place::Kept] {
        for name in disk.names(place)? {
            let number = name.parse().ok();
            state.next_layer = state.next_layer.max(number.unwrap_or(0));
            if !number.is_some_and(|number| state.layers.contains_key(&number)) {
                disk.discard(place, &name).doing(doing)?;
            }
        }
    }
    for name in disk.names(Place::LayerRecords)? {
        if !name.parse().is_ok_and(|number: Number| state.layers.contains_key(&number)) {
            disk.unlink(Place::LayerRecords, &name).doing(doing)?;
        }
    }
    for name in disk.names(Place::Blobs)? {
        let digest: Option<Digest> = format!("sha256:{name}").parse().ok();
        if !digest.is_some_and(|digest| state.needs_document(&digest)) {
            disk.unlink(Place::Blobs, &name).doing(doing)?;
        }
    }
    Ok(())
}
