//! A small IAM: which actions a request needs, on what and under which context, and whether a policy allows them.
//!
//! Sources: "Actions, resources, and condition keys" of DynamoDB, KMS, S3, Secrets Manager and Systems Manager in AWS's Service Authorization Reference; the
//! IAM User Guide for conditions. What is not known here is a panic: an evaluator that guesses proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Call;
use super::stack::{list, text, words};

/// What a request has to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// As in `dynamodb:GetItem`.
    pub(crate) action: String,
    pub(crate) resource: String,
    context: BTreeMap<String, BTreeSet<String>>,
}

impl Need {
    pub(crate) fn new(action: &str, resource: &str) -> Self {
        Self { action: action.to_owned(), resource: resource.to_owned(), context: BTreeMap::new() }
    }

    pub(crate) fn with(mut self, key: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let values: BTreeSet<_> = values.into_iter().map(Into::into).collect();
        if !values.is_empty() {
            self.context.insert(key.to_owned(), values);
        }
        self
    }

    /// In AWS's words.
    pub(crate) fn refusal(&self) -> String {
        let Self { action, resource, .. } = self;
        format!(
            "User: arn:aws:sts::111122223333:assumed-role/tests/session is not authorized to perform: {action} on resource: \
             {resource} because no identity-based policy allows the {action} action"
        )
    }
}

/// A policy, as it was printed.
pub(crate) struct Policy(Vec<Statement>);

struct Statement {
    sid: String,
    actions: Vec<String>,
    resources: Vec<String>,
    conditions: Vec<Condition>,
}

struct Condition {
    operator: String,
    key: String,
    values: Vec<String>,
}

impl Policy {
    pub(crate) fn parse(json: &str) -> Self {
        let document: Value = serde_json::from_str(json).expect("a policy is JSON");
        assert_eq!(document["Version"], "2012-10-17");
        Self(list(&document["Statement"]).iter().map(Statement::parse).collect())
    }

    /// Nothing is allowed.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn without(mut self, sid: &str) -> Self {
        self.0.retain(|statement| statement.sid != sid);
        self
    }

    /// The statement that allows it, and its action as it stands there.
    pub(crate) fn allows(&self, need: &Need) -> Option<Grant> {
        self.0.iter().find_map(|statement| statement.allows(need))
    }

    /// Everything that it allows.
    pub(crate) fn grants(&self) -> BTreeSet<Grant> {
        let of = |statement: &Statement| {
            let sid = statement.sid.clone();
            statement.actions.clone().into_iter().map(move |action| Grant { sid: sid.clone(), action })
        };
        self.0.iter().flat_map(of).collect()
    }
}

/// One action of a statement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grant {
    pub(crate) sid: String,
    pub(crate) action: String,
}

impl Statement {
    fn parse(statement: &Value) -> Self {
        let known = ["Action", "Condition", "Effect", "Resource", "Sid"];
        let members = statement.as_object().expect("a statement").keys();
        assert!(members.clone().all(|member| known.contains(&member.as_str())), "{statement:#}");
        assert_eq!(statement["Effect"], "Allow");
        let operators = statement["Condition"].as_object().into_iter().flatten();
        let conditions = operators.flat_map(|(operator, keys)| {
            let keys = keys.as_object().expect("keys").iter();
            keys.map(|(key, values)| Condition {
                operator: operator.clone(),
                key: key.clone(),
                values: words(values),
            })
        });
        Self {
            sid: text(&statement["Sid"]).to_owned(),
            actions: words(&statement["Action"]),
            resources: words(&statement["Resource"]),
            conditions: conditions.collect(),
        }
    }

    fn allows(&self, need: &Need) -> Option<Grant> {
        let action = self.actions.iter().find(|action| like(action, &need.action))?;
        let fits = self.resources.iter().any(|resource| like(resource, &need.resource))
            && self.conditions.iter().all(|condition| condition.holds(need));
        fits.then(|| Grant { sid: self.sid.clone(), action: action.clone() })
    }
}

impl Condition {
    fn holds(&self, need: &Need) -> bool {
        let found = need.context.get(&self.key);
        let equal = |value: &String| self.values.contains(value);
        let alike = |value: &String| self.values.iter().any(|pattern| like(pattern, value));
        let mut values = found.into_iter().flatten();
        match self.operator.as_str() {
            "StringEquals" => values.one_and(equal),
            "StringLike" => values.one_and(alike),
            "StringEqualsIfExists" => found.is_none() || values.one_and(equal),
            // Of no value at all, each one fits.
            "ForAllValues:StringEquals" => values.all(equal),
            "ForAllValues:StringLike" => values.all(alike),
            "Null" => self.values == [found.is_none().to_string()],
            other => panic!("a condition that is not known here: {other}"),
        }
    }
}

trait One<'a>: Iterator<Item = &'a String> + Sized {
    /// Keys with many values are for operators that say how many have to fit.
    fn one_and(mut self, fits: impl Fn(&String) -> bool) -> bool {
        let first = self.next();
        assert!(self.next().is_none(), "a key with many values needs ForAllValues or ForAnyValue");
        first.is_some_and(fits)
    }
}

impl<'a, I: Iterator<Item = &'a String>> One<'a> for I {}

/// `*` and `?` as IAM has them.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<_>, Vec<_>) = (pattern.chars().collect(), text.chars().collect());
    let mut reached: BTreeSet<usize> = BTreeSet::from([0]);
    for sign in pattern {
        reached = match sign {
            '*' => (*reached.first().unwrap_or(&usize::MAX)..=text.len()).collect(),
            '?' => reached.into_iter().filter(|at| *at < text.len()).map(|at| at + 1).collect(),
            sign => reached.into_iter().filter(|at| text.get(*at) == Some(&sign)).map(|at| at + 1).collect(),
        };
    }
    reached.contains(&text.len())
}

/// What a request needs. `home` is what the ARNs of tables begin with: `arn:aws:dynamodb:REGION:ACCOUNT`; parameters are
/// there, too.
pub(crate) fn needs(call: &Call, home: &str) -> Vec<Need> {
    let target = call.header("x-amz-target");
    let body = || serde_json::from_slice::<Value>(&call.body).expect("JSON");
    match target.split_once('.') {
        Some(("DynamoDB_20120810", operation)) => of_dynamodb(operation, &body(), home),
        Some(("TrentService", operation)) => vec![of_kms(operation, &body())],
        Some(("secretsmanager", "GetSecretValue")) => vec![of_secrets_manager(&body())],
        Some(("AmazonSSM", "GetParameter")) => vec![of_parameters(&body(), home)],
        Some(_) => panic!("a service that is not known here: {target}"),
        None => vec![of_s3(call)],
    }
}

fn of_dynamodb(operation: &str, body: &Value, home: &str) -> Vec<Need> {
    let table = |name: &Value| format!("{home}:table/{}", text(name));
    let partition = |place: &Value| place["PK"]["S"].as_str().map(str::to_owned);
    match operation {
        "TransactWriteItems" => {
            let parts =
                list(&body["TransactItems"]).iter().flat_map(|item| item.as_object().expect("a part"));
            let need = |(kind, part): (&String, &Value)| {
                let action = if kind == "ConditionCheck" {
                    "ConditionCheckItem".to_owned()
                } else {
                    format!("{kind}Item")
                };
                let place = if kind == "Put" { &part["Item"] } else { &part["Key"] };
                Need::new(&format!("dynamodb:{action}"), &table(&part["TableName"]))
                    .with("dynamodb:LeadingKeys", partition(place))
            };
            parts.map(need).collect()
        }
        "BatchGetItem" => {
            let asked = body["RequestItems"].as_object().expect("tables");
            let need = |(name, asked): (&String, &Value)| {
                let need = Need::new("dynamodb:BatchGetItem", &format!("{home}:table/{name}"));
                let keys = list(&asked["Keys"]).iter().filter_map(partition);
                reading(need.with("dynamodb:LeadingKeys", keys), asked)
            };
            asked.iter().map(need).collect()
        }
        _ => {
            let index =
                body["IndexName"].as_str().map_or_else(String::new, |index| format!("/index/{index}"));
            let resource = format!("{}{index}", table(&body["TableName"]));
            let place = if body["Key"].is_object() { &body["Key"] } else { &body["Item"] };
            let need = Need::new(&format!("dynamodb:{operation}"), &resource);
            let need = need.with("dynamodb:LeadingKeys", partition(place));
            vec![match operation {
                "GetItem" | "Query" | "Scan" => reading(need, body),
                // Whatever stands in its expressions; every name of ours is a placeholder there.
                "UpdateItem" => {
                    let names = body["ExpressionAttributeNames"].as_object().into_iter().flatten();
                    need.with("dynamodb:Attributes", names.map(|(_, name)| text(name)))
                }
                _ => need,
            }]
        }
    }
}

/// Which attributes are asked for.
fn reading(need: Need, asked: &Value) -> Need {
    let Some(projection) = asked["ProjectionExpression"].as_str() else {
        return need.with("dynamodb:Select", ["ALL_ATTRIBUTES"]);
    };
    let names = &asked["ExpressionAttributeNames"];
    let named = projection.split(',').map(str::trim);
    let named = named.map(|name| names[name].as_str().unwrap_or(name));
    need.with("dynamodb:Attributes", named).with("dynamodb:Select", ["SPECIFIC_ATTRIBUTES"])
}

fn of_kms(operation: &str, body: &Value) -> Need {
    let key = text(&body["KeyId"]);
    assert!(key.starts_with("arn:"), "IAM knows keys by their ARNs: {key}");
    let context = body["EncryptionContext"].as_object().into_iter().flatten();
    context.fold(Need::new(&format!("kms:{operation}"), key), |need, (name, value)| {
        need.with(&format!("kms:EncryptionContext:{name}"), [text(value)])
    })
}

fn of_secrets_manager(body: &Value) -> Need {
    let secret = text(&body["SecretId"]);
    assert!(
        secret.starts_with("arn:"),
        "IAM knows secrets by their ARNs, which end as nobody can guess: {secret}"
    );
    Need::new("secretsmanager:GetSecretValue", secret)
}

/// A parameter's name may begin with a slash, which its ARN has once.
fn of_parameters(body: &Value, home: &str) -> Need {
    let name = text(&body["Name"]).trim_start_matches('/');
    let home = home.replacen(":dynamodb:", ":ssm:", 1);
    Need::new("ssm:GetParameter", &format!("{home}:parameter/{name}"))
}

/// Addressed by paths.
fn of_s3(call: &Call) -> Need {
    let (query, path) = (call.uri.query().unwrap_or_default(), call.uri.path().trim_start_matches('/'));
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let bucket = format!("arn:aws:s3:::{bucket}");
    let asks =
        |name: &str| query.split('&').any(|part| part == name || part.starts_with(&format!("{name}=")));
    match (call.method.as_str(), key) {
        ("GET", "") if asks("versioning") => Need::new("s3:GetBucketVersioning", &bucket),
        ("GET", "") if asks("list-type") => {
            let query = url::form_urlencoded::parse(query.as_bytes());
            let prefix = query.filter(|(name, _)| name == "prefix").map(|(_, prefix)| prefix.into_owned());
            Need::new("s3:ListBucket", &bucket).with("s3:prefix", prefix)
        }
        ("GET", key) if !key.is_empty() => Need::new("s3:GetObject", &format!("{bucket}/{key}")),
        ("PUT", key) if !key.is_empty() => Need::new("s3:PutObject", &format!("{bucket}/{key}")),
        ("DELETE", key) if !key.is_empty() => Need::new("s3:DeleteObject", &format!("{bucket}/{key}")),
        (method, _) => panic!("a request to S3 that is not known here: {method} {}", call.uri),
    }
}
