//! `perennial iam print`: the policy of a role.

use std::process::ExitCode;

use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};

use super::{App, UsageError, client_id, output};
use crate::client::ClientId;
use crate::config::{StoreKind, check};
use crate::iam::{Estate, Home, Policy, References, Role, Sealing, Spill};

/// What each role may do.
#[derive(Debug, Subcommand)]
pub(super) enum IamCommand {
    Print(Box<Print>),
}

/// Print the IAM policy of a role, as JSON: what its commands call, on these resources, and nothing else.
///
/// The names are the configuration's, where no option says otherwise. Nothing is asked of AWS.
#[derive(Debug, Args)]
#[command(after_help = "\
Roles:
  daemon              `perennial run`, and `table create` on a table that is there: the role of the task
  reader              a program that uses access tokens; `perennial get`
  agent               `perennial agent`: reads access tokens, and asks for another where one was refused
  operator            who registers clients and looks after them: every other command on clients, tasks and the spill
  key-administrator   who makes and retires keys: `perennial keys`. Opens no secret

A reader gets no more than what belongs to the access token, and has to ask for it: requests name the attributes that they want
(ProjectionExpression), as `perennial get` and the examples do. For readers that ask for whole items there is --whole-items: such
a reader sees refresh tokens and client secrets, too, unless they are sealed.

Client secrets that are kept elsewhere are looked up by daemons and by `perennial clients secret check`: name them for both roles, by
--secret-arn, --parameter-arn and --secret-key-arn. For an operator who never checks, name none.

Examples:
  perennial iam print reader --account 111122223333 --region eu-central-1 > reader.json
  aws iam put-role-policy --role-name crm --policy-name tokens --policy-document file://reader.json
  perennial iam print daemon --table-arn $TABLE_ARN --table-key-arn $KEY_ARN --kms-key-arn $SEALING_KEY_ARN
  perennial iam print operator --table-arn $TABLE_ARN --parameter-arn $PARAMETER_ARN")]
pub(super) struct Print {
    /// Who it is for.
    role: Role,
    /// The table; the configuration's without.
    #[arg(long, value_name = "NAME", value_parser = named("a table", check::table), conflicts_with = "table_arn")]
    table: Option<String>,
    /// The table's ARN, in place of --table, --region, --account and --partition.
    #[arg(long, value_name = "ARN", value_parser = arn(Kind::Table), conflicts_with_all = ["region", "account", "partition"])]
    table_arn: Option<Arn>,
    /// The table's region; store.region without.
    #[arg(long, value_parser = named("a region", check::region))]
    region: Option<String>,
    /// The account that the table is in: twelve digits.
    #[arg(long, value_parser = account)]
    account: Option<String>,
    /// aws, aws-cn or aws-us-gov.
    #[arg(long, default_value = "aws", value_parser = PARTITIONS)]
    partition: String,
    /// The customer key that DynamoDB encrypts the table with; store.kms_key without, where that is an ARN.
    #[arg(long, value_name = "ARN", value_parser = arn(Kind::Key))]
    table_key_arn: Option<Arn>,
    /// The customer master key that wraps the keys of sealing; sealing.kms_key without, where that is an ARN.
    #[arg(long, value_name = "ARN", value_parser = arn(Kind::Key))]
    kms_key_arn: Option<Arn>,
    /// The table of wrapped keys; the configuration's without, or the table's name and -keys.
    #[arg(long, value_name = "NAME", value_parser = named("a table", check::table))]
    key_table: Option<String>,
    /// The table's name in what is sealed; sealing.name without, or the table's.
    #[arg(long, value_name = "NAME", value_parser = named("a table", check::table))]
    sealing_name: Option<String>,
    /// The spill's bucket; spill.s3_bucket without. Its records' keys begin with spill.s3_prefix.
    #[arg(long, value_name = "NAME", value_parser = named("a bucket", check::bucket))]
    bucket: Option<String>,
    /// The customer key that S3 encrypts the bucket with.
    #[arg(long, value_name = "ARN", value_parser = arn(Kind::Key))]
    bucket_key_arn: Option<Arn>,
    /// daemon: the ECS cluster that it runs in; its task may then protect itself from scale-in.
    #[arg(long, value_name = "NAME", value_parser = named("a cluster", check::cluster))]
    cluster: Option<String>,
    /// daemon, operator: a secret of Secrets Manager with a client secret; may be repeated.
    #[arg(long, value_name = "ARN", value_parser = arn(Kind::Secret))]
    secret_arn: Vec<Arn>,
    /// daemon, operator: a parameter of Systems Manager with a client secret; may be repeated.
    #[arg(long, value_name = "ARN", value_parser = arn(Kind::Parameter))]
    parameter_arn: Vec<Arn>,
    /// daemon, operator: a customer key that these are encrypted with; may be repeated.
    #[arg(long, value_name = "ARN", value_parser = arn(Kind::Key))]
    secret_key_arn: Vec<Arn>,
    /// reader: for this client alone; may be repeated.
    #[arg(long, value_name = "ID", value_parser = client_id)]
    client: Vec<ClientId>,
    /// reader: it may ask for whole items.
    #[arg(long)]
    whole_items: bool,
    /// operator: it makes the table, by `table create`.
    #[arg(long)]
    create_table: bool,
    /// Print it on one line.
    #[arg(long)]
    json: bool,
}

impl ValueEnum for Role {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.as_str()))
    }
}

impl IamCommand {
    pub(super) fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        match self {
            Self::Print(options) => options.print(app),
        }
    }
}

impl Print {
    fn print(&self, app: &App) -> anyhow::Result<ExitCode> {
        self.fits()?;
        let estate = self.estate(app)?;
        if self.role == Role::KeyAdministrator && estate.sealing.is_none() {
            return Err(usage(
                "there are no keys without sealing: say --kms-key-arn, or set sealing.kms_key",
            )
            .into());
        }
        let policy = Policy::of(self.role, &estate);
        let text =
            if self.json { serde_json::to_string(&policy) } else { serde_json::to_string_pretty(&policy) };
        output::line(text?)?;
        Ok(ExitCode::SUCCESS)
    }

    /// An option that changes nothing would be taken for a restriction.
    fn fits(&self) -> Result<(), UsageError> {
        const FOLLOWERS: &[Role] = &[Role::Daemon, Role::Operator];
        let given = [
            (&[Role::Daemon][..], "--cluster", self.cluster.is_some()),
            (FOLLOWERS, "--secret-arn", !self.secret_arn.is_empty()),
            (FOLLOWERS, "--parameter-arn", !self.parameter_arn.is_empty()),
            (FOLLOWERS, "--secret-key-arn", !self.secret_key_arn.is_empty()),
            (&[Role::Reader], "--client", !self.client.is_empty()),
            (&[Role::Reader], "--whole-items", self.whole_items),
            (&[Role::Operator], "--create-table", self.create_table),
        ];
        let astray = given.into_iter().find(|(roles, _, given)| *given && !roles.contains(&self.role));
        if let Some((roles, option, _)) = astray {
            let roles: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
            return Err(usage(&format!("{option} is for the role {} alone", roles.join(" or "))));
        }
        let named = !self.secret_arn.is_empty() || !self.parameter_arn.is_empty();
        if self.secret_key_arn.is_empty() || named {
            return Ok(());
        }
        Err(usage("--secret-key-arn needs --secret-arn or --parameter-arn"))
    }

    fn estate(&self, app: &App) -> Result<Estate, UsageError> {
        let config = app.config();
        let (home, table) = self.table(app)?;
        let given = |arn: &Option<Arn>| arn.as_ref().map(|arn| arn.0.clone());
        let bucket = match &self.bucket {
            Some(bucket) => Some(bucket.clone()),
            None => bucket(config.spill.bucket.as_ref())?,
        };
        Ok(Estate {
            sealing: self.sealing(app, &table)?,
            home,
            table,
            table_key: match given(&self.table_key_arn) {
                Some(key) => Some(key),
                None => configured("store.kms_key", "--table-key-arn", config.store.kms_key.as_ref())?,
            },
            spill: bucket.map(|bucket| Spill {
                bucket,
                prefix: config.spill.prefix.clone(),
                key: given(&self.bucket_key_arn),
            }),
            cluster: self.cluster.clone(),
            references: References {
                secrets: texts(&self.secret_arn),
                parameters: texts(&self.parameter_arn),
                keys: texts(&self.secret_key_arn),
            },
            clients: self.client.iter().map(ToString::to_string).collect(),
            whole_items: self.whole_items,
            makes_table: self.create_table,
        })
    }

    fn table(&self, app: &App) -> Result<(Home, String), UsageError> {
        if let Some(arn) = &self.table_arn {
            let table = arn.name(Kind::Table).to_owned();
            return Ok((arn.home(), table));
        }
        let store = &app.config().store;
        let table = match (&self.table, store.kind) {
            (Some(table), _) => table.clone(),
            (None, StoreKind::Dynamodb) => store.table.clone(),
            (None, StoreKind::Embedded) => {
                return Err(usage("which table? say --table or --table-arn, or set store.table"));
            }
        };
        let region = self.region.clone().or_else(|| store.region.clone());
        let region = region.ok_or_else(|| usage("in which region? say --region, or set store.region"))?;
        // A placeholder would look like a policy, and allow nothing.
        let account = self.account.clone();
        let account = account
            .ok_or_else(|| usage("in which account? say --account, or --table-arn in place of the name"))?;
        Ok((Home { partition: self.partition.clone(), region, account }, table))
    }

    fn sealing(&self, app: &App, table: &str) -> Result<Option<Sealing>, UsageError> {
        let sealing = &app.config().sealing;
        let master_key = match &self.kms_key_arn {
            Some(arn) => Some(arn.0.clone()),
            None => configured("sealing.kms_key", "--kms-key-arn", sealing.kms_key.as_ref())?,
        };
        // Another table than the configured one has names of its own.
        let own = table == app.config().store.table;
        let configured = if own { sealing.name.as_str() } else { table };
        let name = self.sealing_name.as_deref().unwrap_or(configured).to_owned();
        let key_table = match &self.key_table {
            Some(key_table) => key_table.clone(),
            None if name == sealing.name => sealing.key_table.clone(),
            None => format!("{name}-keys"),
        };
        Ok(master_key.map(|master_key| Sealing { master_key, key_table, name }))
    }
}

fn usage(text: &str) -> UsageError {
    UsageError(text.to_owned())
}

/// A key that the configuration names. IAM knows keys by their ARNs alone: an alias is no resource.
fn configured(key: &str, option: &str, value: Option<&String>) -> Result<Option<String>, UsageError> {
    let Some(value) = value else { return Ok(None) };
    let found = Arn::parse(value, Kind::Key);
    let remedy = format!("{key} = {value:?} is no ARN of a key, and a policy needs one: say {option}");
    found.map(|arn| Some(arn.0)).map_err(|_| UsageError(remedy))
}

/// The bucket that the configuration names. It may do so by the ARN of an access point, which is no part of a bucket's ARN.
fn bucket(configured: Option<&String>) -> Result<Option<String>, UsageError> {
    let Some(name) = configured else { return Ok(None) };
    let remedy = |problem| usage(&format!("spill.s3_bucket = {name:?} {problem}: say --bucket"));
    check::bucket(name).map(|()| Some(name.clone())).map_err(remedy)
}

fn texts(arns: &[Arn]) -> Vec<String> {
    arns.iter().map(|arn| arn.0.clone()).collect()
}

/// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, without a wildcard: a policy that this prints says what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arn(String);

impl Arn {
    fn parse(text: &str, kind: Kind) -> Result<Self, String> {
        let parts: Vec<_> = text.splitn(6, ':').collect();
        let fits = matches!(parts.as_slice(), ["arn", partition, service, region, owner, rest]
            if PARTITIONS.contains(partition) && *service == kind.service() && check::region(region).is_ok()
                && account(owner).is_ok() && rest.strip_prefix(kind.before()).is_some_and(|name| kind.names(name)));
        if fits {
            return Ok(Self(text.to_owned()));
        }
        let (service, before) = (kind.service(), kind.before());
        Err(format!(
            "write it as arn:aws:{service}:REGION:ACCOUNT:{before}..., of one resource and without a wildcard"
        ))
    }

    fn home(&self) -> Home {
        let mut parts = self.0.splitn(6, ':').map(str::to_owned);
        let mut part = |at| parts.nth(at).expect("it was parsed");
        Home { partition: part(1), region: part(1), account: part(0) }
    }

    /// The resource's name, where it is of this kind.
    fn name(&self, kind: Kind) -> &str {
        let found = self.0.splitn(6, ':').last().and_then(|rest| rest.strip_prefix(kind.before()));
        found.expect("it was parsed")
    }
}

/// What an ARN is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Table,
    Key,
    Secret,
    Parameter,
}

impl Kind {
    const fn service(self) -> &'static str {
        match self {
            Self::Table => "dynamodb",
            Self::Key => "kms",
            Self::Secret => "secretsmanager",
            Self::Parameter => "ssm",
        }
    }

    /// What stands before the name.
    const fn before(self) -> &'static str {
        match self {
            Self::Table => "table/",
            Self::Key => "key/",
            Self::Secret => "secret:",
            Self::Parameter => "parameter/",
        }
    }

    fn names(self, name: &str) -> bool {
        let of = |signs: &[u8]| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || signs.contains(&byte))
        };
        match self {
            Self::Table => check::table(name).is_ok(),
            // An id, or mrk- and an id (AWS KMS Developer Guide, "Key identifiers").
            Self::Key => of(b"-"),
            // As in references; an ARN ends in a hyphen and six characters besides.
            Self::Secret => of(b"/_+=.@-!"),
            // The slash that a name may begin with is the ARN's own.
            Self::Parameter => of(b"/_.-") && !name.starts_with('/'),
        }
    }
}

const PARTITIONS: [&str; 3] = ["aws", "aws-cn", "aws-us-gov"];

fn arn(kind: Kind) -> impl Fn(&str) -> Result<Arn, String> + Clone {
    move |text| Arn::parse(text, kind)
}

/// A name as the configuration checks it, too: what is no name would be a pattern, or a resource that there is not.
fn named(what: &'static str, check: check::Check) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| match check(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(problem) => Err(format!("as the name of {what} it {problem}")),
    }
}

fn account(text: &str) -> Result<String, String> {
    let fits = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if fits { Ok(text.to_owned()) } else { Err("an account is twelve digits".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_names_one_resource_of_its_service() {
        let table = "arn:aws-cn:dynamodb:cn-north-1:111122223333:table/tokens";
        let arn = Arn::parse(table, Kind::Table).expect("an ARN");
        let home =
            Home { partition: "aws-cn".into(), region: "cn-north-1".into(), account: "111122223333".into() };
        assert_eq!((arn.home(), arn.name(Kind::Table)), (home, "tokens"));
        for no in [
            "tokens",
            "arn:aws:dynamodb:cn-north-1:111122223333:table/",
            "arn:aws:dynamodb:cn-north-1:111122223333:table/*",
            "arn:aws:dynamodb:cn-north-1::table/tokens",
            "arn:aws:dynamodb:cn-north-1:${AWS::AccountId}:table/tokens",
            "arn:aws:kms:cn-north-1:111122223333:table/tokens",
            "arn:aws:dynamodb:cn-north-1:111122223333:index/tokens",
            "arn:aws:dynamodb:cn-north-1:111122223333:table/tokens/index/by-shard",
            "arn:aws:dynamodb:*:111122223333:table/tokens",
            "arn:aws-moon:dynamodb:cn-north-1:111122223333:table/tokens",
        ] {
            assert!(Arn::parse(no, Kind::Table).is_err(), "{no}");
        }
    }

    #[test]
    fn each_kind_of_resource_has_names_of_its_own() {
        for (kind, good, bad) in [
            (Kind::Key, "key/mrk-1234abcd12ab34cd56ef1234567890ab", "key/a/b"),
            (Kind::Key, "key/11111111-2222-3333-4444-555555555555", "key/*"),
            (Kind::Secret, "secret:oauth/acme@eu-AbCdEf", "secret:oauth/${aws:username}"),
            (Kind::Secret, "secret:rds!cluster-1-AbCdEf", "secret:a?"),
            (Kind::Parameter, "parameter/oauth/acme", "parameter//oauth/acme"),
            (Kind::Parameter, "parameter/acme", "parameter/oauth/*"),
        ] {
            let at = |rest: &str| format!("arn:aws:{}:eu-central-1:111122223333:{rest}", kind.service());
            assert!(Arn::parse(&at(good), kind).is_ok(), "{good}");
            assert!(Arn::parse(&at(bad), kind).is_err(), "{bad}");
        }
    }
}
