//! What is committed and what is printed: `ecs/iam/`, the stack's task role, `docs/security.md`, and what is refused.

use std::collections::BTreeMap;
use std::fs;

use perennial::iam::{Estate, Home, Policy, References, Role, Sealing, Spill};
use serde_json::Value;

use super::world::COMMANDS;
use crate::support::stack::{Stack, list, text, words};
use crate::support::{Deployment, part};

const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555";
const SECRET: &str = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:acme-AbCdEf";
const PARAMETER: &str = "arn:aws:ssm:eu-central-1:111122223333:parameter/oauth/acme";
const SEALING: &str = "arn:aws:kms:eu-central-1:111122223333:key/66666666-7777-8888-9999-000000000000";

fn print(arguments: &[&str]) -> std::process::Output {
    Deployment::embedded("").run(&[&["iam", "print"][..], arguments].concat())
}

#[track_caller]
fn printed(arguments: &[&str]) -> String {
    let output = print(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The options of the example in `ecs/iam/`.
fn example(role: Role) -> Vec<&'static str> {
    let of_all = [
        role.as_str(),
        "--table=client-credentials",
        "--region=eu-central-1",
        "--account=111122223333",
        "--table-key-arn=arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555",
        "--kms-key-arn=arn:aws:kms:eu-central-1:111122223333:key/66666666-7777-8888-9999-000000000000",
        "--bucket=perennial-spill",
    ];
    let cluster = (role == Role::Daemon).then_some("--cluster=perennial");
    of_all.into_iter().chain(cluster).collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests look at their own environment")]
fn the_examples_are_what_the_command_prints() {
    for role in Role::ALL {
        let path = format!("{}/ecs/iam/{}.json", env!("CARGO_MANIFEST_DIR"), role.as_str());
        let printed = printed(&example(role));
        if std::env::var_os("PERENNIAL_BLESS").is_some() {
            fs::write(&path, &printed).expect("ecs/iam/ is writable");
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(kept, printed, "{path}: PERENNIAL_BLESS=1 renews it; then look at what has changed");
        let compact = printed.split_whitespace().collect::<String>().len();
        assert!(compact <= 6144, "{path}: a managed policy takes 6144 characters, these are {compact}");
    }
}

/// Statements by their names, in one spelling.
fn statements<'a>(of: impl IntoIterator<Item = &'a Value>) -> BTreeMap<String, String> {
    let sorted = |value: &Value| {
        let mut words = words(value);
        words.sort();
        words
    };
    let spelt = |statement: &Value| {
        let operators = statement["Condition"].as_object().into_iter().flatten();
        let conditions: Vec<_> = operators
            .flat_map(|(operator, keys)| {
                let keys = keys.as_object().expect("keys").iter();
                keys.map(move |(key, values)| format!("{operator} {key} {:?}", sorted(values)))
            })
            .collect();
        format!(
            "{:?} on {:?} when {conditions:?}",
            sorted(&statement["Action"]),
            sorted(&statement["Resource"])
        )
    };
    of.into_iter().map(|statement| (text(&statement["Sid"]).to_owned(), spelt(statement))).collect()
}

#[test]
fn the_stacks_task_role_is_what_the_command_prints_for_a_daemon() {
    let sealing = format!("SealingKmsKeyArn={SEALING}");
    let spill = "SealingKeySecretArn=arn:aws:secretsmanager:us-east-1:123456789012:secret:sealing";
    for (parameters, sealed, spilled) in [
        (vec![], false, false),
        (vec![sealing.as_str()], true, false),
        (vec![sealing.as_str(), spill, "CreateSpillBucket=true"], true, true),
        (vec!["ExistingTableName=restored", sealing.as_str()], true, false),
    ] {
        let stack = Stack::emulate(&parameters);
        let role = stack.of_type("AWS::IAM::Role")["TaskRole"].clone();
        let granted =
            list(&role["Policies"]).iter().flat_map(|policy| list(&policy["PolicyDocument"]["Statement"]));
        let output = |name: &str| text(&stack.0["outputs"][name]).to_owned();
        let (table, key, cluster) = (output("TableArn"), output("KeyArn"), output("ClusterName"));
        let mut options =
            vec!["daemon", "--table-arn", &table, "--table-key-arn", &key, "--cluster", &cluster];
        if sealed {
            options.extend(["--kms-key-arn", SEALING, "--sealing-name", "client-credentials"]);
        }
        let bucket = if spilled { output("SpillBucketName") } else { String::new() };
        if spilled {
            options.extend(["--bucket", &bucket, "--bucket-key-arn", &key]);
        }
        let printed: Value = serde_json::from_str(&printed(&options)).expect("JSON");
        assert_eq!(statements(granted), statements(list(&printed["Statement"])), "{parameters:?}");
    }
}

#[test]
fn a_policy_that_would_allow_nothing_or_too_much_is_not_printed() {
    let table = "--table-arn=arn:aws:dynamodb:eu-central-1:111122223333:table/tokens";
    let placed = ["--region=eu-central-1", "--account=111122223333"];
    for (arguments, says) in [
        (vec!["daemon", "--region=eu-central-1", "--table=t-1"], "--account"),
        (vec!["daemon", "--account=111122223333", "--table=t-1"], "--region"),
        (vec!["daemon", placed[0], placed[1]], "--table"),
        (vec!["daemon", table, "--kms-key-arn=alias/perennial"], "arn:aws:kms"),
        (
            vec!["daemon", "--table-arn=arn:aws:dynamodb:eu-central-1:111122223333:table/*"],
            "arn:aws:dynamodb",
        ),
        (
            vec!["daemon", "--table-arn=arn:aws:dynamodb:eu-central-1:${AWS::AccountId}:table/t"],
            "arn:aws:dynamodb",
        ),
        (vec!["key-administrator", table], "--kms-key-arn"),
        (vec!["operator", table, "--client=crm"], "reader"),
        (vec!["daemon", table, "--whole-items"], "reader"),
        (vec!["reader", table, "--create-table"], "operator"),
        (vec!["reader", table, "--secret-arn", SECRET], "daemon or operator"),
        (vec!["agent", table, "--parameter-arn", PARAMETER], "daemon or operator"),
        (vec!["operator", table, "--secret-key-arn", KEY], "--secret-arn"),
        (vec!["daemon", placed[0], placed[1], "--table=t*"], "--table"),
        (vec!["daemon", placed[0], placed[1], "--table=t/index/x"], "--table"),
        (vec!["daemon", "--region=eu-*", placed[1], "--table=t-1"], "--region"),
        (vec!["daemon", table, "--bucket=Acme Spill"], "--bucket"),
        (vec!["daemon", table, "--bucket=spill/*"], "--bucket"),
        (vec!["daemon", table, "--key-table=k*"], "--key-table"),
        (vec!["daemon", table, "--sealing-name=*"], "--sealing-name"),
        (vec!["daemon", table, "--cluster=fleet/*"], "--cluster"),
        (
            vec!["daemon", table, "--table-key-arn=arn:aws:kms:eu-central-1:111122223333:key/*"],
            "--table-key-arn",
        ),
        (vec!["daemon", table, "--kms-key-arn=arn:aws:kms:*:111122223333:key/1"], "--kms-key-arn"),
        (vec!["daemon", table, "--bucket-key-arn=key/1"], "--bucket-key-arn"),
        (vec!["daemon", table, "--secret-arn=oauth/acme"], "--secret-arn"),
        (vec!["operator", table, "--parameter-arn=/oauth/acme"], "--parameter-arn"),
        (vec!["operator", table, "--secret-arn", SECRET, "--secret-key-arn", SECRET], "--secret-key-arn"),
        (vec!["daemon", table, "--secret-key-arn", KEY], "--secret-arn"),
        (vec!["owner", table], "key-administrator"),
    ] {
        let output = print(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}: {errors}");
        assert!(errors.contains(says), "{arguments:?}: {errors}");
    }
}

#[test]
fn an_alias_in_the_configuration_is_no_resource() {
    let settings = "[sealing]\nkms_key = \"alias/perennial-sealing\"\n";
    let table = "--table-arn=arn:aws:dynamodb:eu-central-1:111122223333:table/tokens";
    let output = Deployment::embedded(settings).run(&["iam", "print", "daemon", table]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && errors.contains("--kms-key-arn"), "{errors}");
}

#[test]
fn an_access_point_in_the_configuration_is_no_bucket_of_a_policy() {
    let settings = "[spill]\ns3_bucket = \"arn:aws:s3:eu-central-1:111122223333:accesspoint/spill\"\n[sealing]\nkey = \"".to_owned();
    let settings = settings + &"07".repeat(32) + "\"\n";
    let table = "--table-arn=arn:aws:dynamodb:eu-central-1:111122223333:table/tokens";
    let run = |more: &[&str]| {
        Deployment::embedded(&settings).run(&[&["iam", "print", "daemon", table], more].concat())
    };
    let errors = String::from_utf8_lossy(&run(&[]).stderr).into_owned();
    assert!(errors.contains("spill.s3_bucket") && errors.contains("--bucket"), "{errors}");
    assert!(run(&["--bucket=acme-spill"]).status.success());
}

#[test]
fn other_partitions_and_secrets_elsewhere() {
    let secret = "arn:aws-cn:secretsmanager:cn-north-1:111122223333:secret:acme-AbCdEf";
    let key = "arn:aws-cn:kms:cn-north-1:111122223333:key/11111111-2222-3333-4444-555555555555";
    let of = |role| {
        printed(&[
            role,
            "--table=tokens",
            "--region=cn-north-1",
            "--account=111122223333",
            "--partition=aws-cn",
            "--table-key-arn",
            key,
            "--secret-arn",
            secret,
            "--secret-key-arn",
            key,
            "--json",
        ])
    };
    let policy = of("daemon");
    assert_eq!(policy.lines().count(), 1);
    let elsewhere = |policy: &str| {
        let policy: Value = serde_json::from_str(policy).expect("JSON");
        let mut statements = statements(list(&policy["Statement"]));
        statements.retain(|sid, _| sid.starts_with("ClientSecrets"));
        statements
    };
    assert_eq!(elsewhere(&of("operator")), elsewhere(&policy), "operators look where daemons look");
    for part in [
        "\"arn:aws-cn:dynamodb:cn-north-1:111122223333:table/tokens\"",
        "\"dynamodb.cn-north-1.amazonaws.com.cn\"",
        "\"secretsmanager:GetSecretValue\"",
        "{\"kms:ViaService\":[\"secretsmanager.cn-north-1.amazonaws.com.cn\"]}",
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
}

/// The rows of `docs/security.md`: whose a command is, and what each statement is for.
fn rows() -> Vec<String> {
    let estate = Estate {
        home: Home { partition: "aws".into(), region: "eu-central-1".into(), account: "111122223333".into() },
        table: "client-credentials".into(),
        table_key: Some(KEY.into()),
        sealing: Some(Sealing {
            master_key: SEALING.into(),
            key_table: "client-credentials-keys".into(),
            name: "client-credentials".into(),
        }),
        spill: Some(Spill { bucket: "spill".into(), prefix: String::new(), key: Some(KEY.into()) }),
        cluster: Some("fleet".into()),
        references: References {
            secrets: vec![KEY.into()],
            parameters: vec![KEY.into()],
            keys: vec![KEY.into()],
        },
        clients: Vec::new(),
        whole_items: false,
        makes_table: true,
    };
    let mut rows = Vec::new();
    for role in Role::ALL {
        let name = role.as_str();
        let of_role = COMMANDS.iter().filter(|(_, roles)| roles.contains(&role));
        let commands: Vec<_> = of_role.map(|(command, _)| format!("`{command}`")).collect();
        rows.push(format!("| **{name}** | {} |", commands.join(", ")));
        for statement in Policy::of(role, &estate).statement {
            let actions: Vec<_> = statement.action.iter().map(|action| format!("`{action}`")).collect();
            rows.push(format!("| {name} | {} | {} | {} |", statement.sid, actions.join(", "), statement.why));
        }
    }
    rows
}

#[test]
fn the_documentation_has_every_role_and_statement() {
    let page = fs::read_to_string(part("docs/security.md")).expect("readable");
    let (rows, lines) = (rows(), page.lines().collect::<Vec<_>>());
    let missing: Vec<_> = rows.iter().filter(|row| !lines.contains(&row.as_str())).cloned().collect();
    assert!(missing.is_empty(), "docs/security.md lacks these rows:\n{}", missing.join("\n"));
    let of_roles =
        |line: &&&str| Role::ALL.iter().any(|role| line.starts_with(&format!("| {} |", role.as_str())));
    let kept = lines.iter().filter(of_roles).filter(|line| !rows.contains(&(**line).to_string()));
    assert_eq!(kept.collect::<Vec<_>>(), Vec::<&&str>::new(), "docs/security.md has rows of nothing");
}
