//! A change in DynamoDB's expression language: pure.
//!
//! Every attribute name goes through ExpressionAttributeNames, since ours are among the reserved words (`of`,
//! `scope`, `ttl`) and the list grows; every value goes through ExpressionAttributeValues.

use std::collections::HashMap;

use aws_sdk_dynamodb::error::BuildError;
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, Delete, KeysAndAttributes, Put, ReturnValuesOnConditionCheckFailure,
    TransactWriteItem, Update,
};

use super::super::item::{Raw, encode, encode_key, encode_value, raw_key};
use super::super::rules::always;
use super::super::{ShardQuery, StoreError, View};
use super::refusal;
use crate::item::{Action, Assignment, Condition, Key, Value, Write, attr};

/// A failed condition brings the item that stood in its way, without a further read.
pub(super) const ALL_OLD: ReturnValuesOnConditionCheckFailure = ReturnValuesOnConditionCheckFailure::AllOld;

/// A write's expressions and what they refer to.
#[derive(Debug, PartialEq)]
pub(super) struct Rendered {
    pub(super) key: Raw,
    pub(super) item: Option<Raw>,
    pub(super) update: Option<String>,
    pub(super) condition: Option<String>,
    pub(super) names: Option<HashMap<String, String>>,
    pub(super) values: Option<HashMap<String, AttributeValue>>,
}

/// Renders a write.
pub(super) fn render(write: &Write) -> Result<Rendered, StoreError> {
    let mut terms = Terms::default();
    let update = match &write.action {
        Action::Update(assignments) => Some(terms.update(assignments)?),
        Action::Put(_) | Action::Delete | Action::Check => None,
    };
    let condition = terms.condition(&write.condition)?;
    let item = match &write.action {
        Action::Put(item) => Some(encode(&write.key, item)?),
        Action::Update(_) | Action::Delete | Action::Check => None,
    };
    // An empty map of names or values is refused by DynamoDB.
    let names = (!terms.names.is_empty()).then_some(terms.names);
    let values = (!terms.values.is_empty()).then_some(terms.values);
    Ok(Rendered { key: encode_key(&write.key), item, update, condition, names, values })
}

/// Renders a write of a transaction.
pub(super) fn transact(write: &Write, table: &str) -> Result<TransactWriteItem, StoreError> {
    let rendered = render(write)?;
    let built = match &write.action {
        Action::Update(_) => update(rendered, table),
        Action::Put(_) => put(rendered, table),
        Action::Delete => delete(rendered, table),
        Action::Check => check(rendered, table),
    };
    built.map_err(|error| refusal(&error))
}

fn update(rendered: Rendered, table: &str) -> Result<TransactWriteItem, BuildError> {
    let update = Update::builder()
        .table_name(table)
        .set_key(Some(rendered.key))
        .set_update_expression(rendered.update)
        .set_condition_expression(rendered.condition)
        .set_expression_attribute_names(rendered.names)
        .set_expression_attribute_values(rendered.values)
        .return_values_on_condition_check_failure(ALL_OLD)
        .build()?;
    Ok(TransactWriteItem::builder().update(update).build())
}

fn put(rendered: Rendered, table: &str) -> Result<TransactWriteItem, BuildError> {
    let put = Put::builder()
        .table_name(table)
        .set_item(rendered.item)
        .set_condition_expression(rendered.condition)
        .set_expression_attribute_names(rendered.names)
        .set_expression_attribute_values(rendered.values)
        .return_values_on_condition_check_failure(ALL_OLD)
        .build()?;
    Ok(TransactWriteItem::builder().put(put).build())
}

fn delete(rendered: Rendered, table: &str) -> Result<TransactWriteItem, BuildError> {
    let delete = Delete::builder()
        .table_name(table)
        .set_key(Some(rendered.key))
        .set_condition_expression(rendered.condition)
        .set_expression_attribute_names(rendered.names)
        .set_expression_attribute_values(rendered.values)
        .return_values_on_condition_check_failure(ALL_OLD)
        .build()?;
    Ok(TransactWriteItem::builder().delete(delete).build())
}

fn check(rendered: Rendered, table: &str) -> Result<TransactWriteItem, BuildError> {
    let check = ConditionCheck::builder()
        .table_name(table)
        .set_key(Some(rendered.key))
        .set_condition_expression(rendered.condition)
        .set_expression_attribute_names(rendered.names)
        .set_expression_attribute_values(rendered.values)
        .return_values_on_condition_check_failure(ALL_OLD)
        .build()?;
    Ok(TransactWriteItem::builder().condition_check(check).build())
}

/// The placeholders of one request.
#[derive(Default)]
struct Terms {
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
}

impl Terms {
    fn name(&mut self, name: &str) -> String {
        let known =
            self.names.iter().find(|(_, known)| *known == name).map(|(placeholder, _)| placeholder.clone());
        known.unwrap_or_else(|| {
            let placeholder = format!("#n{}", self.names.len());
            self.names.insert(placeholder.clone(), name.to_owned());
            placeholder
        })
    }

    fn value(&mut self, name: &str, value: &Value) -> Result<String, StoreError> {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), encode_value(name, value)?);
        Ok(placeholder)
    }

    /// `None` where the condition always holds.
    fn condition(&mut self, condition: &Condition) -> Result<Option<String>, StoreError> {
        if always(condition) {
            return Ok(None);
        }
        Ok(Some(match condition {
            Condition::Exists => format!("attribute_exists({})", self.name(attr::PK)),
            Condition::Absent => format!("attribute_not_exists({})", self.name(attr::PK)),
            Condition::Has(name) => format!("attribute_exists({})", self.name(name)),
            Condition::Lacks(name) => format!("attribute_not_exists({})", self.name(name)),
            Condition::Equals(name, value) => format!("{} = {}", self.name(name), self.value(name, value)?),
            Condition::Below(name, bound) => {
                format!("{} < {}", self.name(name), self.value(name, &Value::N(*bound))?)
            }
            Condition::All(list) => self.joined(list, " AND ")?,
            Condition::Any(list) => self.joined(list, " OR ")?,
        }))
    }

    fn joined(&mut self, list: &[Condition], by: &str) -> Result<String, StoreError> {
        let mut parts = Vec::new();
        for condition in list {
            parts.extend(self.condition(condition)?);
        }
        Ok(match parts.as_slice() {
            [only] => only.clone(),
            parts => format!("({})", parts.join(by)),
        })
    }

    fn update(&mut self, assignments: &[Assignment]) -> Result<String, StoreError> {
        let (mut sets, mut adds, mut removes) = (Vec::new(), Vec::new(), Vec::new());
        for assignment in assignments {
            match assignment {
                Assignment::Set(name, value) => {
                    sets.push(format!("{} = {}", self.name(name), self.value(name, value)?));
                }
                Assignment::Add(name, amount) => {
                    adds.push(format!("{} {}", self.name(name), self.value(name, &Value::N(*amount))?));
                }
                Assignment::Remove(name) => removes.push(self.name(name)),
            }
        }
        let clauses = [("SET", sets), ("ADD", adds), ("REMOVE", removes)];
        let clauses = clauses.iter().filter(|(_, parts)| !parts.is_empty());
        let clauses: Vec<_> = clauses.map(|(verb, parts)| format!("{verb} {}", parts.join(", "))).collect();
        Ok(clauses.join(" "))
    }
}

/// A query of the index.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) condition: &'static str,
    pub(super) names: HashMap<String, String>,
    pub(super) values: HashMap<String, AttributeValue>,
    pub(super) start: Option<Raw>,
}

/// Renders a query of the index.
pub(super) fn shard_query(query: &ShardQuery) -> Asked {
    let number = |number: i64| AttributeValue::N(number.to_string());
    let mut names = HashMap::from([("#vs".to_owned(), attr::VS.to_owned())]);
    let mut values = HashMap::from([(":vs".to_owned(), number(query.shard.into()))]);
    let mut condition = "#vs = :vs";
    if let Some(after) = query.joined_after {
        condition = "#vs = :vs AND #jn > :jn";
        names.insert("#jn".to_owned(), attr::JN.to_owned());
        values.insert(":jn".to_owned(), number(after.as_millis()));
    }
    let start = query.after.as_ref().map(|row| {
        let mut key = raw_key(&row.pk, &row.sk);
        key.insert(attr::VS.to_owned(), number(query.shard.into()));
        key.insert(attr::JN.to_owned(), number(row.joined.as_millis()));
        key
    });
    Asked { condition, names, values, start }
}

/// Renders a read of some items.
pub(super) fn batch(keys: &[&Key], view: View) -> Result<KeysAndAttributes, BuildError> {
    let asked = KeysAndAttributes::builder()
        .consistent_read(!view.is_eventual())
        .set_keys(Some(keys.iter().map(|key| encode_key(key)).collect()));
    let Some(names) = view.names() else { return asked.build() };
    let mut terms = Terms::default();
    let wanted = [attr::PK, attr::SK].iter().chain(names);
    let placeholders: Vec<_> = wanted.map(|name| terms.name(name)).collect();
    asked
        .projection_expression(placeholders.join(", "))
        .set_expression_attribute_names(Some(terms.names))
        .build()
}

#[cfg(test)]
mod tests {
    use super::super::super::PLAIN;
    use super::*;
    use crate::client::ClientId;
    use crate::item::Item;

    fn write(condition: Condition, action: Action) -> Write {
        Write { key: Key::Lease(ClientId::new("c").expect("a valid id")), condition, action }
    }

    /// The expressions with names and values put back in.
    fn spelt(rendered: &Rendered) -> (String, String) {
        let fill = |text: &Option<String>| {
            let mut text = text.clone().unwrap_or_default();
            for (placeholder, name) in rendered.names.iter().flatten() {
                text = text.replace(placeholder, &format!("<{name}>"));
            }
            for (placeholder, value) in rendered.values.iter().flatten() {
                text = text.replace(placeholder, &format!("{value:?}"));
            }
            text
        };
        (fill(&rendered.update), fill(&rendered.condition))
    }

    #[test]
    fn an_acquire_names_every_attribute_by_placeholder() {
        let condition = Condition::All(vec![
            Condition::Equals(attr::GEN, Value::N(3)),
            Condition::Any(vec![Condition::Lacks(attr::OF), Condition::Below(attr::OF, 2)]),
        ]);
        let assignments = vec![
            Assignment::Set(attr::GEN, Value::N(4)),
            Assignment::Remove(attr::OF),
            Assignment::Add(attr::FAILS, 1),
            Assignment::Set(attr::ST, Value::S("F".into())),
        ];
        let rendered = render(&write(condition, Action::Update(assignments))).expect("renders");
        let (update, condition) = spelt(&rendered);
        assert_eq!(update, r#"SET <gen> = N("4"), <st> = S("F") ADD <fails> N("1") REMOVE <of>"#);
        assert_eq!(condition, r#"(<gen> = N("3") AND (attribute_not_exists(<of>) OR <of> < N("2")))"#);
        for name in [attr::GEN, attr::OF, attr::FAILS, attr::ST] {
            assert!(
                !rendered.update.as_deref().unwrap_or_default().contains(name),
                "{name} stands there in the clear"
            );
        }
    }

    #[test]
    fn what_always_holds_is_left_out() {
        let condition = Condition::All(vec![Condition::All(vec![]), Condition::Exists]);
        let rendered = render(&write(condition, Action::Delete)).expect("renders");
        assert_eq!(spelt(&rendered).1, "attribute_exists(<PK>)");
        let rendered = render(&write(Condition::All(vec![]), Action::Put(Item::default()))).expect("renders");
        assert_eq!((rendered.condition, rendered.names, rendered.values), (None, None, None));
    }

    #[test]
    fn a_page_goes_on_after_the_last_row() {
        let row = super::super::IndexRow {
            joined: crate::time::Timestamp::from_millis(7),
            pk: "p".into(),
            sk: "s".into(),
        };
        let asked = shard_query(&ShardQuery { shard: 2, joined_after: None, after: Some(row) });
        assert_eq!(asked.condition, "#vs = :vs");
        let start = asked.start.expect("a start key");
        assert_eq!(start.len(), 4);
        assert_eq!(start.get(attr::JN), Some(&AttributeValue::N("7".into())));
    }

    #[test]
    fn a_view_without_secrets_asks_for_none() {
        let key = Key::Token(ClientId::new("c").expect("a valid id"));
        for (view, consistent) in [(View::WithoutSecrets, true), (View::Glance, false)] {
            let asked = batch(&[&key], view).expect("builds");
            let names: Vec<_> = asked.expression_attribute_names().expect("names").values().collect();
            for secret in attr::SECRETS {
                assert!(!names.iter().any(|name| *name == secret), "{secret}");
            }
            assert_eq!((names.len(), asked.consistent_read()), (PLAIN.len() + 2, Some(consistent)));
        }
    }
}
