//! The jobs of a client: a refresh, or a look.

use std::sync::Arc;

use super::Scheduler;
use super::census::note_lateness;
use super::gate::Pass;
use super::slot::{Done, Phase};
use crate::provider::TokenEndpoint;
use crate::refresh::Known;
use crate::store::Store;

impl<S: Store, E: TokenEndpoint> Scheduler<S, E> {
    /// Begins a refresh.
    pub(super) fn start(&mut self, slot: u32, pass: Pass) {
        self.leave_lane(slot);
        let Some(place) = self.slots[slot as usize].as_mut() else { return };
        let Some(provider) = self.providers.get(&place.known.client.provider) else { return };
        place.phase = Phase::Running;
        note_lateness(&place.known, provider, self.clock.now());
        let (refresher, known) = (Arc::clone(&self.refresher), place.known.clone());
        let provider = Arc::clone(provider);
        let (permit, clock, draining) = (self.permit.clone(), Arc::clone(&self.clock), self.draining.clone());
        let job = async move {
            refresher.warm(&known, &provider).await;
            // By now the shard may be another's, or this process may be about to end.
            if draining.is_cancelled() || *permit.borrow() <= clock.moment() {
                return Done::NotBegun;
            }
            Done::Refreshed(Box::new(refresher.refresh(&known, &provider).await))
        };
        let handle = self.jobs.spawn(job);
        self.running.insert(handle.id(), (slot, Some(pass)));
    }

    /// Reads a client again.
    pub(super) fn look(&mut self, slot: u32) {
        if self.draining.is_cancelled() {
            return;
        }
        let Some(place) = self.slots[slot as usize].as_mut() else { return };
        place.phase = Phase::Running;
        let (store, id) = (Arc::clone(&self.store), place.known.client.id.clone());
        let job = async move {
            let looked = match store.read(&id).await {
                Ok(partition) => partition.decode(&id).map_err(|malformed| malformed.to_string()),
                Err(error) => Err(error.to_string()),
            };
            Done::Looked(looked.map(|snapshot| Known::of(snapshot).map(Box::new)))
        };
        let handle = self.jobs.spawn(job);
        self.running.insert(handle.id(), (slot, None));
    }
}
