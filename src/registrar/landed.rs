//! Whether a write whose answer was lost has happened: it is told by its own traces, and never done twice.

use crate::item::{Action, Assignment, Change, Item, Key};
use crate::record::Partition;

/// Whether a change has been written after all. `CONFIG` tells where the change has a part in it: operators alone
/// write it, each with a stamp of their own. The other items may have moved on meanwhile.
pub(super) fn landed(change: &Change, read: &Partition) -> bool {
    let of_config = change.0.iter().find(|write| matches!(write.key, Key::Config(_)));
    let Some(write) = of_config.or(change.0.first()) else { return false };
    let found = match &write.key {
        Key::Config(_) => &read.config,
        Key::Lease(_) => &read.lease,
        Key::Token(_) => &read.token,
        Key::Member(_) | Key::Schema => return false,
    };
    found.as_ref().is_some_and(|item| shows(item, &write.action))
}

fn shows(item: &Item, action: &Action) -> bool {
    match action {
        Action::Put(put) => item == put,
        Action::Update(assignments) => assignments.iter().all(|assignment| match assignment {
            Assignment::Set(name, value) => item.get(name) == Some(value),
            Assignment::Remove(name) => item.get(name).is_none(),
            Assignment::Add(..) => false,
        }),
        Action::Delete | Action::Check => false,
    }
}
