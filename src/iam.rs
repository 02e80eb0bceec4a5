//! IAM policies: what each role may do, as documents that a role can be given.
//!
//! Pure: what there is comes in as an [`Estate`], a [`Policy`] goes out. `perennial iam print` prints it, `ecs/iam/` holds
//! what it prints for an example, and the task role of `ecs/perennial.yaml` follows it. `tests/iam.rs` runs every command
//! against it, both ways: a right that is missing fails, and so does one that nobody uses.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::item::attr;
use crate::seal::{Family, PURPOSE};

/// Keys of IAM's conditions that are used more than once.
const VIA: &str = "kms:ViaService";
const LEADING_KEYS: &str = "dynamodb:LeadingKeys";

/// Who a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `perennial run`: the task's role.
    Daemon,
    /// A program that uses access tokens.
    Reader,
    /// `perennial agent`: tokens for the programs of a machine.
    Agent,
    /// Who registers clients and looks after them.
    Operator,
    /// Who makes and retires the keys that seal secrets; opens none of them.
    KeyAdministrator,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::Daemon, Self::Reader, Self::Agent, Self::Operator, Self::KeyAdministrator];

    /// As it is written on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Reader => "reader",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::KeyAdministrator => "key-administrator",
        }
    }
}

/// Where a table is: what every ARN in a policy begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub partition: String,
    /// As in `eu-central-1`.
    pub region: String,
    /// Twelve digits.
    pub account: String,
}

/// What there is. What is not there is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estate {
    /// Of the table.
    pub home: Home,
    /// The table's name.
    pub table: String,
    /// ARN of the customer key that DynamoDB encrypts the table with.
    pub table_key: Option<String>,
    /// Sealing by KMS.
    pub sealing: Option<Sealing>,
    /// The spill's bucket.
    pub spill: Option<Spill>,
    /// Name of the ECS cluster that the daemon runs in.
    pub cluster: Option<String>,
    /// Secrets Manager's secrets and SSM's parameters with client secrets.
    pub references: References,
    /// The reader is for these clients alone; none: for all.
    pub clients: Vec<String>,
    /// The reader may read whole items.
    pub whole_items: bool,
    /// The operator makes the table.
    pub makes_table: bool,
}

/// Sealing by KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealing {
    /// ARN of the customer master key.
    pub master_key: String,
    /// The table of wrapped keys.
    pub key_table: String,
    /// The table's name in what is sealed.
    pub name: String,
}

/// The spill's bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// Its name.
    pub bucket: String,
    /// What the keys of its objects begin with.
    pub prefix: String,
    /// ARN of the customer key that S3 encrypts it with.
    pub key: Option<String>,
}

/// Where client secrets are that the table only names. ARNs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Secrets of Secrets Manager.
    pub secrets: Vec<String>,
    /// Parameters of Systems Manager.
    pub parameters: Vec<String>,
    /// The customer keys that these are encrypted with.
    pub keys: Vec<String>,
}

/// A policy document (IAM User Guide, "IAM JSON policy elements reference").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    /// Of the policy language.
    pub version: &'static str,
    /// What is allowed. Nothing is denied: another policy may allow more.
    pub statement: Vec<Statement>,
}

/// Operator, then key, then the values of which one has to fit.
pub type Conditions = BTreeMap<&'static str, BTreeMap<String, Vec<String>>>;

/// One purpose, and what it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    /// Its name.
    pub sid: &'static str,
    /// `Allow`.
    pub effect: &'static str,
    /// Actions, sorted.
    pub action: Vec<&'static str>,
    /// ARNs.
    pub resource: Vec<String>,
    /// All of them have to hold.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub condition: Conditions,
    /// Why the role needs it. JSON has no comments.
    #[serde(skip)]
    pub why: &'static str,
}

impl Policy {
    /// What a role may do.
    pub fn of(role: Role, estate: &Estate) -> Self {
        let statement = match role {
            Role::Daemon => daemon(estate),
            Role::Reader => reader(estate),
            Role::Agent => agent(estate),
            Role::Operator => operator(estate),
            Role::KeyAdministrator => key_administrator(estate),
        };
        Self { version: "2012-10-17", statement }
    }
}

impl Statement {
    fn allow(sid: &'static str, action: &[&'static str], why: &'static str) -> Self {
        let (action, resource, condition) = (action.to_vec(), Vec::new(), Conditions::new());
        Self { sid, effect: "Allow", action, resource, condition, why }
    }

    fn on(mut self, resource: impl Into<String>) -> Self {
        self.resource.push(resource.into());
        self
    }

    fn on_each(self, resources: &[String]) -> Self {
        resources.iter().fold(self, |statement, resource| statement.on(resource))
    }

    fn when(mut self, operator: &'static str, key: &str, values: impl IntoIterator<Item = String>) -> Self {
        let keys = self.condition.entry(operator).or_default();
        keys.insert(key.to_owned(), values.into_iter().collect());
        self
    }

    /// Requests have to name their attributes, and these are the ones.
    fn of_attributes(self, names: impl IntoIterator<Item = &'static str>) -> Self {
        let names = [attr::PK, attr::SK].into_iter().chain(names);
        let names: BTreeSet<_> = names.map(str::to_owned).collect();
        self.when("ForAllValues:StringEquals", "dynamodb:Attributes", names)
    }

    /// Reads of these attributes and no other. A request that names none would fit every list, and a transaction may name them
    /// elsewhere.
    fn reading(self, names: impl IntoIterator<Item = &'static str>) -> Self {
        self.of_attributes(names)
            .when("StringEqualsIfExists", "dynamodb:Select", ["SPECIFIC_ATTRIBUTES".to_owned()])
            .when("Null", "dynamodb:Attributes", ["false".to_owned()])
            .when("Null", "dynamodb:EnclosingOperation", ["true".to_owned()])
    }

    /// Every item that is asked for has one of these partition keys. Without any key "each of them" would hold, too: so
    /// there must be some (IAM User Guide, "Multivalued context keys").
    fn of_partitions(self, operator: &'static str, keys: impl IntoIterator<Item = String>) -> Self {
        self.when(operator, LEADING_KEYS, keys).when("Null", LEADING_KEYS, ["false".to_owned()])
    }

    fn via(self, service: &str, home: &Home) -> Self {
        self.when("StringEquals", VIA, [home.service(service)])
    }

    /// Keys of this table's secrets, of these families: [`crate::seal`] sends such a context with each request.
    fn of_families(self, name: &str, families: &[Family]) -> Self {
        let families = families.iter().map(|family| family.as_str().to_owned());
        self.when("StringEquals", "kms:EncryptionContext:purpose", [PURPOSE.to_owned()])
            .when("StringEquals", "kms:EncryptionContext:table", [name.to_owned()])
            .when("StringEquals", "kms:EncryptionContext:family", families)
    }
}

impl Home {
    fn arn(&self, service: &str, resource: &str) -> String {
        let Self { partition, region, account } = self;
        format!("arn:{partition}:{service}:{region}:{account}:{resource}")
    }

    /// The name by which KMS knows a service that asks for somebody.
    fn service(&self, service: &str) -> String {
        let suffix = if self.partition == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" };
        format!("{service}.{}.{suffix}", self.region)
    }
}

impl Estate {
    fn table(&self) -> String {
        self.home.arn("dynamodb", &format!("table/{}", self.table))
    }

    fn key_table(&self, sealing: &Sealing) -> String {
        self.home.arn("dynamodb", &format!("table/{}", sealing.key_table))
    }

    fn bucket(&self, spill: &Spill) -> String {
        format!("arn:{}:s3:::{}", self.home.partition, spill.bucket)
    }

    /// DynamoDB uses the table's key for whoever asks it: the role needs the right, and never speaks with KMS for it.
    fn by_the_tables_key(&self, action: &[&'static str]) -> Option<Statement> {
        const WHY: &str = "DynamoDB uses the table's key in the name of whoever asks it";
        let key = self.table_key.as_ref()?;
        Some(Statement::allow("TheTablesKey", action, WHY).on(key).via("dynamodb", &self.home))
    }
}

fn daemon(estate: &Estate) -> Vec<Statement> {
    const ITEMS: [&str; 6] = [
        "dynamodb:BatchGetItem",
        "dynamodb:ConditionCheckItem",
        "dynamodb:DeleteItem",
        "dynamodb:PutItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
    ];
    let mut statements = vec![
        Statement::allow("Items", &ITEMS, "leases, tokens, heartbeats").on(estate.table()),
        index(estate),
        checks(estate, "`table create` before it, and the checks at its start"),
    ];
    statements.extend(estate.by_the_tables_key(&USE_OF_A_TABLES_KEY));
    statements.extend(opening(estate));
    statements.extend(spill(estate, &["s3:DeleteObject", "s3:GetObject", "s3:PutObject"], true));
    statements.extend(scale_in(estate));
    statements.extend(references(estate));
    statements
}

fn operator(estate: &Estate) -> Vec<Statement> {
    const ITEMS: [&str; 5] = [
        "dynamodb:BatchGetItem",
        "dynamodb:DeleteItem",
        "dynamodb:PutItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
    ];
    let mut statements = vec![
        Statement::allow("Items", &ITEMS, "registrations, imports and removals").on(estate.table()),
        index(estate),
        checks(estate, "`table check`"),
    ];
    statements.extend(making(estate));
    statements.extend(estate.by_the_tables_key(&USE_OF_A_TABLES_KEY));
    statements.extend(opening(estate));
    statements.extend(spill(estate, &["s3:DeleteObject", "s3:GetObject"], false));
    // `clients secret check` looks where the daemon looks.
    statements.extend(references(estate));
    statements
}

/// What DynamoDB asks for at a key that is not its own (Amazon DynamoDB Developer Guide, "Encryption at rest usage notes").
const USE_OF_A_TABLES_KEY: [&str; 5] =
    ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"];

fn index(estate: &Estate) -> Statement {
    let index = format!("{}/index/by-shard", estate.table());
    Statement::allow("TheIndex", &["dynamodb:Query"], "which clients there are, by shard").on(index)
}

fn checks(estate: &Estate, why: &'static str) -> Statement {
    const CHECKS: [&str; 3] =
        ["dynamodb:DescribeContinuousBackups", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive"];
    Statement::allow("TheChecks", &CHECKS, why).on(estate.table())
}

/// `table create`, where it is this role that makes the table.
fn making(estate: &Estate) -> Vec<Statement> {
    const TABLE: [&str; 3] =
        ["dynamodb:CreateTable", "dynamodb:UpdateContinuousBackups", "dynamodb:UpdateTimeToLive"];
    if !estate.makes_table {
        return Vec::new();
    }
    let make = Statement::allow("MakesTheTable", &TABLE, "`table create`").on(estate.table());
    let grant = estate.table_key.as_ref().map(|key| {
        let why = "a table that is made with a customer key takes a grant on it for DynamoDB";
        let grant = Statement::allow("GivesDynamoDbTheTablesKey", &["kms:CreateGrant"], why).on(key);
        grant.via("dynamodb", &estate.home).when("Bool", "kms:GrantIsForAWSResource", ["true".to_owned()])
    });
    std::iter::once(make).chain(grant).collect()
}

/// The keys of both families: who refreshes, or changes registrations, opens and seals every secret.
fn opening(estate: &Estate) -> Vec<Statement> {
    let Some(sealing) = &estate.sealing else { return Vec::new() };
    let keys = Statement::allow(
        "TheTableOfKeys",
        &["dynamodb:GetItem", "dynamodb:Query"],
        "the wrapped keys that secrets are sealed with",
    );
    let unwrap =
        Statement::allow("OpensSecrets", &["kms:Decrypt"], "unwraps them, by their encryption context");
    vec![
        keys.on(estate.key_table(sealing)),
        unwrap.on(&sealing.master_key).of_families(&sealing.name, &Family::ALL),
    ]
}

fn spill(estate: &Estate, objects: &[&'static str], writes: bool) -> Vec<Statement> {
    let Some(spill) = &estate.spill else { return Vec::new() };
    let (bucket, below) = (estate.bucket(spill), format!("{}*", literal(&spill.prefix)));
    let records = Statement::allow("TheSpillsRecords", objects, "answers that the table did not take");
    let mut statements = vec![records.on(format!("{bucket}/{below}")), finds(spill, &bucket, below)];
    if writes {
        let why = "asks at its start whether removals can be undone";
        let asks = Statement::allow("TheSpillsBucket", &["s3:GetBucketVersioning"], why);
        statements.push(asks.on(bucket));
    }
    let encrypted: &[_] = if writes { &["kms:Decrypt", "kms:GenerateDataKey"] } else { &["kms:Decrypt"] };
    statements.extend(spill.key.as_ref().map(|key| {
        let why = "S3 uses the bucket's key in the name of whoever asks it";
        Statement::allow("TheSpillsKey", encrypted, why).on(key).via("s3", &estate.home)
    }));
    statements
}

/// The names below the prefix and no others, which may be another's: keys of objects name clients. Where a record is gone meanwhile,
/// S3 says so only to those who may list its name.
fn finds(spill: &Spill, bucket: &str, below: String) -> Statement {
    let lists = Statement::allow("FindsTheSpillsRecords", &["s3:ListBucket"], "finds them").on(bucket);
    if spill.prefix.is_empty() { lists } else { lists.when("StringLike", "s3:prefix", [below]) }
}

/// Text in a pattern that stands for itself (IAM User Guide, "IAM policy elements: Variables and tags").
fn literal(text: &str) -> String {
    let spelt = |sign| match sign {
        '*' | '?' | '$' => format!("${{{sign}}}"),
        sign => sign.to_string(),
    };
    text.chars().map(spelt).collect()
}

fn scale_in(estate: &Estate) -> Option<Statement> {
    let tasks = estate.home.arn("ecs", &format!("task/{}/*", estate.cluster.as_ref()?));
    let why = "the task protects itself, through its agent, while a refresh is in flight";
    Some(Statement::allow("ScaleInProtection", &["ecs:UpdateTaskProtection"], why).on(tasks))
}

fn references(estate: &Estate) -> Vec<Statement> {
    let References { secrets, parameters, keys } = &estate.references;
    let services = [("secretsmanager", secrets), ("ssm", parameters)];
    let services = services.into_iter().filter(|(_, named)| !named.is_empty());
    let services = services.map(|(service, _)| estate.home.service(service));
    let statements = [
        Statement::allow(
            "ClientSecrets",
            &["secretsmanager:GetSecretValue"],
            "client secrets that the table names",
        )
        .on_each(secrets),
        Statement::allow(
            "ClientSecretsInParameters",
            &["ssm:GetParameter"],
            "client secrets that the table names",
        )
        .on_each(parameters),
        Statement::allow("ClientSecretsKeys", &["kms:Decrypt"], "the keys that these are encrypted with")
            .on_each(keys)
            .when("StringEquals", VIA, services),
    ];
    statements.into_iter().filter(|statement| !statement.resource.is_empty()).collect()
}

fn reader(estate: &Estate) -> Vec<Statement> {
    std::iter::once(access_tokens(estate)).chain(opens_access_tokens(estate)).collect()
}

/// A reader that also sees why there is no token, and asks for another: of the registration it may write when.
fn agent(estate: &Estate) -> Vec<Statement> {
    let names = attr::READER.into_iter().chain(attr::STANDING);
    let why = "access tokens, and how clients stand that have none";
    let read = Statement::allow("AccessTokens", &["dynamodb:BatchGetItem"], why);
    let read = read.on(estate.table()).reading(names);
    let why = "asks for another token where a reader's was refused";
    let ask = Statement::allow("AsksForRefreshes", &["dynamodb:UpdateItem"], why);
    let ask = ask.on(estate.table()).of_attributes([attr::RF, attr::JN, attr::GONE]);
    [read, ask].into_iter().chain(opens_access_tokens(estate)).collect()
}

fn opens_access_tokens(estate: &Estate) -> Vec<Statement> {
    let mut statements = Vec::new();
    statements.extend(estate.by_the_tables_key(&["kms:Decrypt"]));
    let Some(sealing) = &estate.sealing else { return statements };
    let series = format!("{}/{}/*", sealing.name, Family::Access.as_str());
    let keys = Statement::allow("TheTableOfKeys", &["dynamodb:GetItem"], "the wrapped keys of access tokens");
    let unwrap = Statement::allow("OpensAccessTokens", &["kms:Decrypt"], "unwraps these keys and no other");
    statements.push(keys.on(estate.key_table(sealing)).of_partitions("ForAllValues:StringLike", [series]));
    statements.push(unwrap.on(&sealing.master_key).of_families(&sealing.name, &[Family::Access]));
    statements
}

/// Of the items, what is no secret but the access token: with the conditions a request has to name the attributes that it
/// wants (Amazon DynamoDB Developer Guide, "Using IAM policy conditions for fine-grained access control").
fn access_tokens(estate: &Estate) -> Statement {
    const READ: [&str; 2] = ["dynamodb:BatchGetItem", "dynamodb:GetItem"];
    let why = "access tokens; `perennial get` reads the table's schema, too";
    let mut statement = Statement::allow("AccessTokens", &READ, why).on(estate.table());
    if !estate.whole_items {
        statement = statement.reading(attr::READER);
    }
    if estate.clients.is_empty() {
        return statement;
    }
    let partitions = estate.clients.iter().map(|id| format!("CLIENT#{id}"));
    statement.of_partitions("ForAllValues:StringEquals", partitions.chain(["META".to_owned()]))
}

fn key_administrator(estate: &Estate) -> Vec<Statement> {
    const KEYS: [&str; 7] = [
        "dynamodb:CreateTable",
        "dynamodb:DeleteItem",
        "dynamodb:DescribeTable",
        "dynamodb:PutItem",
        "dynamodb:Scan",
        "dynamodb:UpdateContinuousBackups",
        "dynamodb:UpdateItem",
    ];
    let Some(sealing) = &estate.sealing else { return Vec::new() };
    let keys = Statement::allow("TheTableOfKeys", &KEYS, "makes, lists, retires and destroys wrapped keys");
    let wrap = Statement::allow(
        "MakesKeys",
        &["kms:GenerateDataKeyWithoutPlaintext"],
        "makes keys that it never sees unwrapped",
    );
    let why =
        "`keys retire --destroy` looks whether a secret is sealed with it still; sealed, it cannot open them";
    let looks = Statement::allow("LooksForTheKeysUse", &["dynamodb:Scan"], why);
    let schema =
        Statement::allow("TheSchema", &["dynamodb:BatchGetItem"], "whether the table is one of ours");
    let mut statements = vec![
        keys.on(estate.key_table(sealing)),
        wrap.on(&sealing.master_key).of_families(&sealing.name, &Family::ALL),
        looks.on(estate.table()),
        schema.on(estate.table()).of_partitions("ForAllValues:StringEquals", ["META".to_owned()]),
    ];
    statements.extend(estate.by_the_tables_key(&["kms:Decrypt"]));
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(literal("perennial/spill/"), "perennial/spill/");
        assert_eq!(literal("a*b?${c}"), "a${*}b${?}${$}{c}");
    }
}
