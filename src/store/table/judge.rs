//! What a table's description says against what is needed: pure, so that tables which no local store can be
//! (replicas, foreign keys, KMS) are tested from built descriptions.

use aws_sdk_dynamodb::types::{
    BillingMode, GlobalSecondaryIndexDescription, IndexStatus, KeySchemaElement, MultiRegionConsistency,
    ProjectionType, SseStatus, SseType, TableDescription,
};

use super::{BY_SHARD, Finding, SCHEMA_VERSION, Schema, TableSpec, TimeToLive, Verdict};
use crate::item::attr;

const ANOTHER_TABLE: &str = "set `table` to another name and run `perennial table create`";

/// The points that safety depends on: keys, index, replicas.
pub(super) fn structure(table: &TableDescription) -> Vec<Finding> {
    vec![keys(table), index(table), replicas(table)]
}

/// Whether our items can be asked for at all: a table with other keys refuses the question.
pub(super) fn can_be_read(table: &TableDescription) -> bool {
    keys(table).verdict == Verdict::Ok
}

/// The points that an operator chooses: billing, encryption, protection.
pub(super) fn settings(table: &TableDescription, spec: &TableSpec) -> Vec<Finding> {
    vec![billing(table), encryption(table, spec), protection(table, spec)]
}

fn finding(
    what: &'static str,
    needed: impl Into<String>,
    found: impl Into<String>,
    fits: bool,
    remedy: &str,
) -> Finding {
    let verdict = if fits { Verdict::Ok } else { Verdict::Differs };
    Finding { what, needed: needed.into(), found: found.into(), verdict, remedy: remedy.to_owned() }
}

fn unsupported(what: &'static str, needed: impl Into<String>) -> Finding {
    let found = "not known to this endpoint".to_owned();
    Finding { what, needed: needed.into(), found, verdict: Verdict::Unsupported, remedy: String::new() }
}

fn keys(table: &TableDescription) -> Finding {
    let (needed, found) = ("PK (S HASH), SK (S RANGE)", spelt(table, table.key_schema()));
    finding("key schema", needed, &*found, found == needed, ANOTHER_TABLE)
}

/// `name (type role), ...`
fn spelt(table: &TableDescription, schema: &[KeySchemaElement]) -> String {
    let kind = |name: &str| {
        let definition =
            table.attribute_definitions().iter().find(|definition| definition.attribute_name() == name);
        definition.map_or("?", |definition| definition.attribute_type().as_str())
    };
    let part = |key: &KeySchemaElement| {
        format!("{} ({} {})", key.attribute_name(), kind(key.attribute_name()), key.key_type().as_str())
    };
    schema.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn by_shard(table: &TableDescription) -> Option<&GlobalSecondaryIndexDescription> {
    table.global_secondary_indexes().iter().find(|index| index.index_name() == Some(BY_SHARD))
}

fn index(table: &TableDescription) -> Finding {
    const REMEDY: &str =
        "add the index `by-shard` (vs N, jn N, KEYS_ONLY) to the table and wait until it is ACTIVE";
    let needed = "vs (N HASH), jn (N RANGE), KEYS_ONLY, ACTIVE";
    let Some(index) = by_shard(table) else {
        return finding("index by-shard", needed, "none", false, REMEDY);
    };
    let projection = index.projection().and_then(|projection| projection.projection_type());
    // A local store may not report a status; one that is reported must be ACTIVE.
    let status = index.index_status().unwrap_or(&IndexStatus::Active);
    let keys = spelt(table, index.key_schema());
    let found = format!("{keys}, {}, {status}", projection.map_or("?", ProjectionType::as_str));
    // A wider projection costs more and does no harm.
    let fits = needed.starts_with(&keys)
        && !keys.is_empty()
        && projection.is_some()
        && *status == IndexStatus::Active;
    finding("index by-shard", needed, found, fits, REMEDY)
}

/// Whether no index is still being built.
pub(super) fn indexes_active(table: &TableDescription) -> bool {
    let building =
        |index: &GlobalSecondaryIndexDescription| index.index_status() == Some(&IndexStatus::Creating);
    !table.global_secondary_indexes().iter().any(building)
}

fn replicas(table: &TableDescription) -> Finding {
    const REMEDY: &str = "eventually consistent replicas void every condition, and two regions would refresh one \
                          client at once: remove the replicas, or use a global table with strong consistency";
    let regions: Vec<_> = table.replicas().iter().filter_map(|replica| replica.region_name()).collect();
    let strong = table.multi_region_consistency() == Some(&MultiRegionConsistency::Strong);
    let found = match (table.replicas(), strong) {
        ([], _) => "none".to_owned(),
        (_, true) => format!("strongly consistent, in {}", regions.join(", ")),
        (_, false) => format!("eventually consistent, in {}", regions.join(", ")),
    };
    finding("replicas", "none, or strongly consistent", found, table.replicas().is_empty() || strong, REMEDY)
}

fn billing(table: &TableDescription) -> Finding {
    let mode = table.billing_mode_summary().and_then(|summary| summary.billing_mode());
    // A table that never was on demand has no summary.
    let mode = mode.unwrap_or(&BillingMode::Provisioned);
    let fits = *mode == BillingMode::PayPerRequest;
    finding("billing mode", "PAY_PER_REQUEST", mode.as_str(), fits, "switch the table to on-demand capacity")
}

fn encryption(table: &TableDescription, spec: &TableSpec) -> Finding {
    const REMEDY: &str = "set the table's encryption to that KMS key";
    let used = table.sse_description().filter(|sse| {
        sse.sse_type() == Some(&SseType::Kms)
            && matches!(sse.status(), Some(SseStatus::Enabled | SseStatus::Enabling | SseStatus::Updating))
    });
    let found = match used {
        Some(sse) => format!("KMS key {}", sse.kms_master_key_arn().unwrap_or("of DynamoDB")),
        None => "a key that AWS owns".to_owned(),
    };
    match &spec.kms_key {
        None => finding("encryption", "any", found, true, REMEDY),
        Some(key) => {
            let fits = used.is_some_and(|sse| same_key(key, sse.kms_master_key_arn().unwrap_or_default()));
            finding("encryption", format!("KMS key {key}"), found, fits, REMEDY)
        }
    }
}

/// An alias cannot be compared with the key's ARN: any customer key will do then.
fn same_key(wanted: &str, arn: &str) -> bool {
    wanted.contains("alias/") || wanted == arn || arn.ends_with(&format!("/{wanted}"))
}

fn protection(table: &TableDescription, spec: &TableSpec) -> Finding {
    let word = |on: bool| if on { "on" } else { "off" };
    let on = table.deletion_protection_enabled() == Some(true);
    let fits = on || !spec.deletion_protection;
    finding("deletion protection", word(spec.deletion_protection), word(on), fits, "switch it on")
}

pub(super) fn ttl(found: Option<&TimeToLive>) -> Finding {
    const REMEDY: &str = "switch TTL on, on `ttl` alone: on `expires_at` it would delete live refresh tokens";
    let needed = format!("on `{}`", attr::TTL);
    match found {
        None => unsupported("time to live", needed),
        Some(TimeToLive { attribute: None }) => finding("time to live", needed, "off", false, REMEDY),
        Some(TimeToLive { attribute: Some(name) }) => {
            finding("time to live", needed, format!("on `{name}`"), name == attr::TTL, REMEDY)
        }
    }
}

/// As [`ttl`], but without TTL nothing is lost: removed clients merely stay.
pub(super) fn ttl_harm(found: Option<&TimeToLive>) -> Finding {
    let finding = ttl(found);
    match found {
        Some(TimeToLive { attribute: None }) => Finding { verdict: Verdict::Ok, ..finding },
        _ => finding,
    }
}

pub(super) fn backups(found: Option<bool>, spec: &TableSpec) -> Finding {
    const WHAT: &str = "point-in-time recovery";
    let word = |on: bool| if on { "on" } else { "off" };
    let needed = word(spec.point_in_time_recovery);
    match found {
        None => unsupported(WHAT, needed),
        Some(on) => finding(WHAT, needed, word(on), on || !spec.point_in_time_recovery, "switch it on"),
    }
}

pub(super) fn schema(found: Option<Schema>, shards: u32) -> Finding {
    const WHAT: &str = "META/SCHEMA";
    let needed = format!("{shards} virtual shards, readable by version {SCHEMA_VERSION}");
    let Some(schema) = found else {
        return finding(
            WHAT,
            needed,
            "none",
            false,
            "run `perennial table create`, which finishes the table",
        );
    };
    let found = format!("{} virtual shards, readable from version {}", schema.shards, schema.min_reader);
    if schema.min_reader > SCHEMA_VERSION {
        return finding(WHAT, needed, found, false, "a newer perennial wrote this table: upgrade this one");
    }
    let remedy = format!("set `shards` to {}: resharding needs the whole fleet stopped", schema.shards);
    finding(WHAT, needed, found, schema.shards == shards, &remedy)
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::builders::TableDescriptionBuilder;
    use aws_sdk_dynamodb::types::{
        AttributeDefinition, BillingModeSummary, KeyType, Projection, ReplicaDescription,
        ScalarAttributeType, SseDescription,
    };

    use super::*;

    const SPEC: TableSpec =
        TableSpec { kms_key: None, shards: 16, deletion_protection: true, point_in_time_recovery: true };

    fn key(name: &str, of: KeyType) -> KeySchemaElement {
        KeySchemaElement::builder().attribute_name(name).key_type(of).build().expect("complete")
    }

    fn by_shard(projection: ProjectionType, status: IndexStatus) -> GlobalSecondaryIndexDescription {
        GlobalSecondaryIndexDescription::builder()
            .index_name(BY_SHARD)
            .key_schema(key(attr::VS, KeyType::Hash))
            .key_schema(key(attr::JN, KeyType::Range))
            .projection(Projection::builder().projection_type(projection).build())
            .index_status(status)
            .build()
    }

    /// A table as needed, but for its index.
    fn bare() -> TableDescriptionBuilder {
        use ScalarAttributeType::{N, S};
        let attribute = |name, of| {
            AttributeDefinition::builder().attribute_name(name).attribute_type(of).build().expect("complete")
        };
        TableDescription::builder()
            .set_attribute_definitions(Some(vec![
                attribute(attr::PK, S),
                attribute(attr::SK, S),
                attribute(attr::VS, N),
                attribute(attr::JN, N),
            ]))
            .key_schema(key(attr::PK, KeyType::Hash))
            .key_schema(key(attr::SK, KeyType::Range))
            .billing_mode_summary(
                BillingModeSummary::builder().billing_mode(BillingMode::PayPerRequest).build(),
            )
            .deletion_protection_enabled(true)
    }

    fn good() -> TableDescriptionBuilder {
        bare().global_secondary_indexes(by_shard(ProjectionType::KeysOnly, IndexStatus::Active))
    }

    fn differences(table: TableDescriptionBuilder, spec: &TableSpec) -> Vec<String> {
        let table = table.build();
        let all = structure(&table).into_iter().chain(settings(&table, spec));
        all.filter(|finding| finding.verdict == Verdict::Differs).map(|finding| finding.to_string()).collect()
    }

    fn only(table: TableDescriptionBuilder, part: &str) {
        let found = differences(table, &SPEC);
        assert!(found.len() == 1 && found[0].contains(part), "{found:?} is not {part} alone");
    }

    #[test]
    fn a_table_as_needed_has_no_differences() {
        assert_eq!(differences(good(), &SPEC), Vec::<String>::new());
        let wider = bare().global_secondary_indexes(by_shard(ProjectionType::All, IndexStatus::Active));
        assert_eq!(differences(wider, &SPEC), Vec::<String>::new());
    }

    #[test]
    fn eventually_consistent_replicas_are_refused_and_strong_ones_are_not() {
        let replica = || ReplicaDescription::builder().region_name("eu-west-1").build();
        let weak = good().replicas(replica());
        only(weak.clone(), "eventually consistent, in eu-west-1");
        only(
            weak.clone().multi_region_consistency(MultiRegionConsistency::Eventual),
            "eventually consistent",
        );
        let strong = weak.multi_region_consistency(MultiRegionConsistency::Strong);
        assert_eq!(differences(strong, &SPEC), Vec::<String>::new());
    }

    #[test]
    fn foreign_keys_and_a_missing_or_unfinished_index_are_named() {
        let foreign = good().set_key_schema(Some(vec![key(attr::VS, KeyType::Hash)]));
        only(foreign, "needs PK (S HASH), SK (S RANGE), found vs (N HASH)");
        only(bare(), "index by-shard: needs vs (N HASH), jn (N RANGE), KEYS_ONLY, ACTIVE, found none");
        let building =
            bare().global_secondary_indexes(by_shard(ProjectionType::KeysOnly, IndexStatus::Creating));
        assert!(!indexes_active(&building.clone().build()));
        only(building, "CREATING");
    }

    #[test]
    fn an_operators_settings_are_compared() {
        only(good().deletion_protection_enabled(false), "deletion protection: needs on, found off");
        only(good().set_billing_mode_summary(None), "billing mode: needs PAY_PER_REQUEST, found PROVISIONED");
        let spec = TableSpec { kms_key: Some("1-2".into()), ..SPEC };
        assert_eq!(differences(good(), &spec).len(), 1);
        let sse = |arn| {
            SseDescription::builder()
                .status(SseStatus::Enabled)
                .sse_type(SseType::Kms)
                .kms_master_key_arn(arn)
                .build()
        };
        assert_eq!(
            differences(good().sse_description(sse("arn:aws:kms:r:a:key/1-2")), &spec),
            Vec::<String>::new()
        );
        assert_eq!(differences(good().sse_description(sse("arn:aws:kms:r:a:key/11-2")), &spec).len(), 1);
    }

    #[test]
    fn ttl_on_the_tokens_expiry_is_refused() {
        let on = |name: &str| TimeToLive { attribute: Some(name.to_owned()) };
        assert_eq!(ttl(Some(&on(attr::TTL))).verdict, Verdict::Ok);
        let wrong = ttl(Some(&on(attr::EXPIRES_AT)));
        assert!(
            wrong.verdict == Verdict::Differs && wrong.to_string().contains("delete live refresh tokens")
        );
        assert_eq!(ttl(None).verdict, Verdict::Unsupported);

        assert_eq!(ttl_harm(Some(&on(attr::EXPIRES_AT))).verdict, Verdict::Differs);
        let off = TimeToLive { attribute: None };
        assert_eq!((ttl(Some(&off)).verdict, ttl_harm(Some(&off)).verdict), (Verdict::Differs, Verdict::Ok));
    }

    #[test]
    fn a_schema_of_other_shards_or_of_a_newer_program_is_refused() {
        let of = |shards, min_reader| schema(Some(Schema { shards, version: min_reader, min_reader }), 16);
        assert_eq!(of(16, SCHEMA_VERSION).verdict, Verdict::Ok);
        assert!(of(256, SCHEMA_VERSION).to_string().contains("set `shards` to 256"));
        assert!(of(16, SCHEMA_VERSION + 1).to_string().contains("upgrade"));
        assert_eq!(schema(None, 16).verdict, Verdict::Differs);
    }
}
