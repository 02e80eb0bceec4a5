//! What a change must be to be carried out at all: checked before any store looks at the table.
//!
//! DynamoDB would refuse most of these itself; refusing them here makes every store refuse the same ones, with
//! a text that names the attribute.

use std::collections::BTreeSet;

use super::StoreError;
use crate::item::{Action, Assignment, Change, Condition, Value, Write, attr};

/// The most writes that DynamoDB takes in one transaction.
const MAX_WRITES: usize = 100;

/// Refuses a change that is a programming error.
pub(super) fn check(change: &Change) -> Result<(), StoreError> {
    let writes = &change.0;
    if writes.is_empty() || writes.len() > MAX_WRITES {
        return refuse(format!("a change has 1 to {MAX_WRITES} writes, not {}", writes.len()));
    }
    if let [Write { key, action: Action::Check, .. }] = writes.as_slice() {
        return refuse(format!("{key}: a check alone writes nothing: read the item"));
    }
    let mut keys = BTreeSet::new();
    for write in writes {
        if !keys.insert(&write.key) {
            return refuse(format!("{}: two writes of one item in one change", write.key));
        }
        check_write(write)?;
    }
    Ok(())
}

fn check_write(write: &Write) -> Result<(), StoreError> {
    check_condition(&write.condition)?;
    match &write.action {
        Action::Update(nothing) if nothing.is_empty() => {
            refuse(format!("{}: an update of nothing", write.key))
        }
        Action::Update(assignments) => check_assignments(assignments),
        Action::Put(item) => item.0.iter().try_for_each(|(name, value)| check_value(name, value)),
        Action::Check if always(&write.condition) => refuse(format!("{}: a check of nothing", write.key)),
        Action::Delete | Action::Check => Ok(()),
    }
}

/// Whether the condition holds for every item: it is left out of the request then.
pub(super) fn always(condition: &Condition) -> bool {
    match condition {
        Condition::All(list) => list.iter().all(always),
        Condition::Any(list) => list.iter().any(always),
        _ => false,
    }
}

fn check_condition(condition: &Condition) -> Result<(), StoreError> {
    match condition {
        Condition::Any(list) if list.is_empty() => refuse("a condition that never holds".to_owned()),
        Condition::All(list) | Condition::Any(list) => list.iter().try_for_each(check_condition),
        Condition::Equals(name, value) => check_foreign(name, value),
        _ => Ok(()),
    }
}

fn check_assignments(assignments: &[Assignment]) -> Result<(), StoreError> {
    let mut names = BTreeSet::new();
    for assignment in assignments {
        let (Assignment::Set(name, _) | Assignment::Add(name, _) | Assignment::Remove(name)) = assignment;
        if !names.insert(name) {
            return refuse(format!("attribute `{name}` is assigned twice"));
        }
        match assignment {
            Assignment::Set(name, value) => check_value(name, value)?,
            Assignment::Add(..) | Assignment::Remove(_) => check_name(name)?,
        }
    }
    Ok(())
}

fn check_value(name: &str, value: &Value) -> Result<(), StoreError> {
    check_name(name)?;
    if matches!(name, attr::VS | attr::JN) && !matches!(value, Value::N(_)) {
        return refuse(format!(
            "attribute `{name}` is a key of the index and needs type N, not {}",
            value.type_name()
        ));
    }
    check_foreign(name, value)
}

fn check_name(name: &str) -> Result<(), StoreError> {
    match name {
        "" => refuse("an attribute without a name".to_owned()),
        attr::PK | attr::SK => refuse(format!("attribute `{name}` is the item's key and never changes")),
        _ => Ok(()),
    }
}

/// Refuses what [`super::item::encode_value`] cannot write.
fn check_foreign(name: &str, value: &Value) -> Result<(), StoreError> {
    super::item::encode_value(name, value).map(drop)
}

fn refuse(why: String) -> Result<(), StoreError> {
    Err(StoreError::Refused(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientId;
    use crate::item::{Item, Key};

    fn key() -> Key {
        Key::Lease(ClientId::new("c").expect("a valid id"))
    }

    fn of(condition: Condition, action: Action) -> Result<(), StoreError> {
        check(&Change::one(key(), condition, action))
    }

    #[test]
    fn programming_errors_are_refused_by_name() {
        let update = |assignments| of(Condition::Exists, Action::Update(assignments));
        let cases = [
            (update(vec![]), "an update of nothing"),
            (of(Condition::Exists, Action::Check), "a check alone"),
            (of(Condition::Any(vec![]), Action::Delete), "never holds"),
            (update(vec![Assignment::Set("x", Value::Other("B"))]), "`x` holds a B"),
            (update(vec![Assignment::Set(attr::PK, Value::N(1))]), "`PK` is the item's key"),
            (update(vec![Assignment::Set(attr::VS, Value::S("1".into()))]), "`vs` is a key of the index"),
            (update(vec![Assignment::Remove("x"), Assignment::Add("x", 1)]), "`x` is assigned twice"),
            (check(&Change(vec![])), "1 to 100 writes"),
            (
                check(&Change::one(key(), Condition::Exists, Action::Delete).and(
                    key(),
                    Condition::Exists,
                    Action::Check,
                )),
                "two writes of one item",
            ),
        ];
        for (outcome, part) in cases {
            let error = outcome.expect_err(part);
            assert!(error.to_string().contains(part), "{error} lacks {part}");
        }
    }

    #[test]
    fn a_condition_of_no_parts_always_holds() {
        assert!(always(&Condition::All(vec![])));
        assert!(always(&Condition::Any(vec![Condition::Exists, Condition::All(vec![])])));
        assert!(!always(&Condition::All(vec![Condition::Exists])));
        assert_eq!(of(Condition::All(vec![]), Action::Put(Item::default())), Ok(()));
    }
}
