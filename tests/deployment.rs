//! The CloudFormation template, against what it is said to be: created in an emulator, its table and its role used by
//! the real program, its alarms held against the metrics and the runbook.
//!
//! Nothing here reads the template itself: `scripts/emulate-stack.py` has moto create it, and tells each resource as
//! its creation saw it.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;
use support::stack::{Stack, list, text, words};
use support::{ACCESS_DENIED, Auth, DynamoLocal, Front, Process, StrictProvider, part, wait_until};
use tempfile::TempDir;

const SEALING: &str = "arn:aws:kms:us-east-1:123456789012:key/66666666-7777-8888-9999-000000000000";
const EVERYTHING: [&str; 6] = [
    "CreateSpillBucket=true",
    "CreateVpcEndpoints=true",
    "AutoScaling=true",
    "AlarmEmail=on-call@example.org",
    "SealingKeySecretArn=arn:aws:secretsmanager:us-east-1:123456789012:secret:sealing",
    "SealingKmsKeyArn=arn:aws:kms:us-east-1:123456789012:key/66666666-7777-8888-9999-000000000000",
];

/// A task's role before DynamoDB Local: it refuses what the role does not allow, as IAM does, and keeps account.
struct Role {
    front: Front,
    account: Arc<Mutex<Account>>,
}

#[derive(Default)]
struct Account {
    used: BTreeSet<String>,
    refused: BTreeSet<String>,
}

impl Role {
    async fn before(server: &str, allowed: BTreeSet<String>) -> Self {
        let account = Arc::<Mutex<Account>>::default();
        let kept = Arc::clone(&account);
        let front = Front::before(server, move |call| {
            let needed = actions(call.operation(), &call.body);
            let missing: Vec<_> = needed.difference(&allowed).cloned().collect();
            let refused = !missing.is_empty();
            let mut account = kept.lock().unwrap_or_else(PoisonError::into_inner);
            account.used.extend(needed);
            account.refused.extend(missing);
            refused.then_some(ACCESS_DENIED)
        });
        Self { front: front.await, account }
    }

    fn used(&self) -> BTreeSet<String> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).used.clone()
    }

    fn refused(&self) -> BTreeSet<String> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }
}

/// The actions that IAM asks for: a transaction needs those of its parts.
fn actions(operation: &str, body: &[u8]) -> BTreeSet<String> {
    if operation != "TransactWriteItems" {
        return BTreeSet::from([operation.to_owned()]);
    }
    let body: Value = serde_json::from_slice(body).expect("JSON");
    let parts = list(&body["TransactItems"]).iter().flat_map(|item| item.as_object().expect("a part").keys());
    parts.map(|part| format!("{part}Item")).collect()
}

/// The program with a task's environment, as ECS would start it.
struct Task {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Task {
    fn new(environment: Vec<(String, String)>, others: &[(&str, &str)]) -> Self {
        let others = others.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        // The address serves nothing: that it is there says that this is ECS.
        let ecs = ("ECS_CONTAINER_METADATA_URI_V4".to_owned(), "http://127.0.0.1:9/v4".to_owned());
        let variables = environment.into_iter().chain(others).chain([ecs]).collect();
        Self { folder: TempDir::new().expect("a folder"), variables }
    }

    fn settle(&self, command: &mut Command) {
        command.current_dir(self.folder.path()).env_clear();
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
        self.settle(&mut command);
        command.args(arguments).env("APP_SECRET", "s").output().expect("the program runs")
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {errors}{}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8(output.stdout).expect("text")
    }
}

#[test]
fn the_stack_is_created_in_each_of_its_forms() {
    let service = Stack::emulate(&[]);
    assert_eq!((service.count("AWS::ECS::Service"), service.count("AWS::Scheduler::Schedule")), (1, 0));
    for off in ["AWS::S3::Bucket", "AWS::EC2::VPCEndpoint", "AWS::ApplicationAutoScaling::ScalableTarget"] {
        assert_eq!(service.count(off), 0, "{off} is not asked for");
    }
    let scheduled = Stack::emulate(&["Mode=Scheduled"]);
    assert_eq!((scheduled.count("AWS::ECS::Service"), scheduled.count("AWS::Scheduler::Schedule")), (0, 1));
    let run = scheduled.container("perennial");
    assert_eq!(words(&run["Command"]), ["run", "--once"]);
    assert!(run["HealthCheck"].is_null(), "a run that ends answers no health check");
    let everything = Stack::emulate(&EVERYTHING);
    assert_eq!((everything.count("AWS::S3::Bucket"), everything.count("AWS::SNS::Subscription")), (1, 1));
    // Two gateways; logs, two of the registry, the one for the sealing key's secret, and KMS.
    assert_eq!(everything.count("AWS::EC2::VPCEndpoint"), 7);
    assert_eq!(everything.only("AWS::ApplicationAutoScaling::ScalableTarget")["MaxCapacity"], 6);
    // What the emulator does not know must not hide that the rest of it was made.
    for stack in [&service, &scheduled, &everything] {
        let unsupported = words(&stack.0["unsupported"]).into_iter();
        let unsupported: BTreeSet<_> =
            unsupported.map(|name| text(&stack.0["resources"][&name]["type"]).to_owned()).collect();
        let known = [
            "AWS::ApplicationAutoScaling::ScalableTarget",
            "AWS::ApplicationAutoScaling::ScalingPolicy",
            "AWS::CloudWatch::Alarm",
            "AWS::S3::BucketPolicy",
            "AWS::SNS::Subscription",
            "AWS::SNS::TopicPolicy",
            "AWS::Scheduler::Schedule",
            "AWS::Scheduler::ScheduleGroup",
        ];
        assert!(unsupported.iter().all(|kind| known.contains(&kind.as_str())), "{unsupported:?}");
        assert_eq!(list(&stack.0["alarms"]).len(), stack.count("AWS::CloudWatch::Alarm"));
    }
}

#[test]
fn the_table_is_kept_and_protected() {
    let stack = Stack::emulate(&[]);
    let table = stack.only("AWS::DynamoDB::Table");
    assert_eq!(table["BillingMode"], "PAY_PER_REQUEST");
    assert_eq!(table["DeletionProtectionEnabled"], true);
    assert_eq!(table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], true);
    let key = &stack.0["outputs"]["KeyArn"];
    assert_eq!(table["SSESpecification"]["KMSMasterKeyId"], *key);
    assert_eq!(table["SSESpecification"]["SSEEnabled"], true);
    let environment: BTreeMap<_, _> = stack.environment("perennial").into_iter().collect();
    assert_eq!(environment["PERENNIAL__STORE__KMS_KEY"], text(key), "`table check` asks for that key");
    // What the emulator made of it has the keys and the index; DynamoDB Local is asked for the rest below.
    let made = list(&stack.0["tables"]);
    assert!(matches!(made, [one] if one["DeletionProtectionEnabled"] == true), "{made:?}");
    let metadata = |name: &str, of: &str| stack.0["resources"][name][of].clone();
    for kept in ["DeletionPolicy", "UpdateReplacePolicy"] {
        assert_eq!(
            (metadata("Table", kept), metadata("Key", kept)),
            ("Retain".into(), "Retain".into()),
            "{kept}"
        );
    }
}

#[test]
fn a_restored_table_takes_the_place_of_the_stacks_own() {
    let stack = Stack::emulate(&["ExistingTableName=restored"]);
    assert_eq!((stack.count("AWS::DynamoDB::Table"), list(&stack.0["tables"]).len()), (0, 0));
    let arn = text(&stack.0["outputs"]["TableArn"]);
    assert!(arn.ends_with(":table/restored"), "{arn}");
    for (action, resources) in stack.grants().iter().filter(|(action, _)| action.starts_with("dynamodb:")) {
        assert!(resources.iter().all(|resource| resource.starts_with(arn)), "{action} on {resources:?}");
    }
    for container in ["table", "perennial"] {
        let named = ("PERENNIAL__STORE__TABLE".to_owned(), "restored".to_owned());
        assert!(stack.environment(container).contains(&named), "{container}");
    }
}

#[test]
fn a_master_key_has_the_tasks_seal_under_the_name_that_the_role_may_open() {
    let parameter = format!("SealingKmsKeyArn={SEALING}");
    for (more, table) in [(None, "client-credentials"), (Some("ExistingTableName=restored"), "restored")] {
        let parameters: Vec<_> = more.into_iter().chain([parameter.as_str()]).collect();
        let task = Task::new(Stack::emulate(&parameters).environment("perennial"), &[]);
        let settings: Value = serde_json::from_str(&task.ok(&["config", "show", "--json"])).expect("JSON");
        let setting = |key: &str| {
            let found = list(&settings).iter().find(|setting| setting["key"] == key);
            text(&found.unwrap_or_else(|| panic!("{key} is not set"))["value"]).to_owned()
        };
        assert_eq!((setting("sealing.mode"), setting("sealing.kms_key")), ("kms".into(), SEALING.into()));
        // The role's own are held against these in `tests/iam`.
        assert_eq!(
            (setting("store.table").as_str(), setting("sealing.name")),
            (table, "client-credentials".into())
        );
        assert_eq!(setting("sealing.key_table"), "client-credentials-keys");
    }
    // The rights without the sealing: before it is turned on, and while it is turned off.
    let off = Stack::emulate(&[parameter.as_str(), "SealingMode=off"]);
    let environment: BTreeMap<_, _> = off.environment("perennial").into_iter().collect();
    assert_eq!(environment["PERENNIAL__SEALING__MODE"], "off");
    assert!(off.grants().iter().any(|(action, on)| action == "kms:Decrypt" && *on == [SEALING]));
    let plain: BTreeMap<_, _> = Stack::emulate(&[]).environment("perennial").into_iter().collect();
    assert!(plain.keys().all(|name| !name.starts_with("PERENNIAL__SEALING__")), "{plain:?}");
}

/// A removed stack, or a first one that failed, leaves its table and its key: the next one takes both.
#[test]
fn a_kept_table_is_taken_over_with_its_key() {
    const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";
    let key = format!("ExistingKeyArn={KEY}");
    let parameters = ["ExistingTableName=client-credentials", key.as_str()];
    let stack = Stack::emulate(&[&parameters[..], &EVERYTHING[..]].concat());
    assert_eq!((stack.count("AWS::KMS::Key"), stack.count("AWS::DynamoDB::Table")), (0, 0));
    assert_eq!(stack.0["outputs"]["KeyArn"], KEY);
    for (action, resources) in stack.grants().iter().filter(|(action, _)| action.starts_with("kms:")) {
        assert!(
            *resources == [KEY] || (*resources == [SEALING] && action == "kms:Decrypt"),
            "{action} on {resources:?}"
        );
    }
    for container in ["table", "perennial"] {
        let named = ("PERENNIAL__STORE__KMS_KEY".to_owned(), KEY.to_owned());
        assert!(stack.environment(container).contains(&named), "{container}");
    }
    assert_eq!(stack.only("AWS::SNS::Topic")["KmsMasterKeyId"], KEY);
    assert_eq!(stack.only("AWS::Logs::LogGroup")["KmsKeyId"], KEY);
    let bucket = &stack.only("AWS::S3::Bucket")["BucketEncryption"]["ServerSideEncryptionConfiguration"];
    assert_eq!(bucket[0]["ServerSideEncryptionByDefault"]["KMSMasterKeyID"], KEY);
}

#[test]
fn the_task_is_locked_down_and_has_time_to_drain() {
    let stack = Stack::emulate(&EVERYTHING);
    for name in ["table", "perennial"] {
        let container = stack.container(name);
        assert_eq!(
            (&container["User"], &container["ReadonlyRootFilesystem"]),
            (&"65532:65532".into(), &true.into())
        );
        assert_eq!(words(&container["LinuxParameters"]["Capabilities"]["Drop"]), ["ALL"]);
        assert_eq!(
            container["LogConfiguration"]["Options"]["mode"], "blocking",
            "the default may drop lines"
        );
    }
    let container = stack.container("perennial");
    let program = ["CMD", "/usr/local/bin/perennial", "healthcheck"];
    assert_eq!(words(&container["HealthCheck"]["Command"]), program, "no shell, no curl");
    let service = &stack.only("AWS::ECS::Service")["DeploymentConfiguration"];
    assert_eq!((&service["MinimumHealthyPercent"], &service["MaximumPercent"]), (&100.into(), &200.into()));
    assert_eq!(service["DeploymentCircuitBreaker"]["Rollback"], true);

    // Its environment is a configuration without an error, under the production profile.
    let secrets = list(&container["Secrets"]).iter().map(|secret| text(&secret["Name"]));
    let key = "00".repeat(32);
    let secrets: Vec<_> = secrets.map(|name| (name, key.as_str())).collect();
    let task = Task::new(stack.environment("perennial"), &secrets);
    let checked = task.ok(&["config", "check"]);
    assert!(checked.starts_with("OK: profile production, "), "{checked}");
    let settings: Value = serde_json::from_str(&task.ok(&["config", "show", "--json"])).expect("JSON");
    let setting = |key: &str| {
        let found = list(&settings).iter().find(|setting| setting["key"] == key);
        found.unwrap_or_else(|| panic!("{key} is not set"))["value"].clone()
    };
    let patience = humantime::parse_duration(text(&setting("shutdown.timeout"))).expect("a duration");
    let granted = Duration::from_secs(container["StopTimeout"].as_u64().expect("seconds"));
    assert!(patience < granted, "ECS kills after {granted:?}, a drain may take {patience:?}");
    assert_eq!(granted, Duration::from_secs(120), "the most that Fargate grants");
    // The metrics go where the alarms look.
    for (name, alarm) in stack.of_type("AWS::CloudWatch::Alarm") {
        let nested = alarm["Metrics"].as_array().into_iter().flatten();
        let nested = nested.filter_map(|metric| metric.pointer("/MetricStat/Metric/Namespace"));
        for namespace in
            alarm.get("Namespace").into_iter().chain(nested).filter(|name| *name != "AWS/DynamoDB")
        {
            assert_eq!(*namespace, setting("metrics.namespace"), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_suffices_on_the_templates_table_and_grants_nothing_more() {
    let local = DynamoLocal::shared().await;
    let name = DynamoLocal::fresh_table_name();
    let stack = Stack::emulate(&["--table-at", local.endpoint(), &format!("TableName={name}")]);
    let arn = text(&stack.0["outputs"]["TableArn"]);
    for (action, resources) in stack.grants() {
        let ours =
            resources.iter().all(|resource| *resource == arn || *resource == format!("{arn}/index/by-shard"));
        assert!(ours || !action.starts_with("dynamodb:"), "{action} on {resources:?}");
    }
    let granted = stack.dynamodb_actions();
    let role = Role::before(local.endpoint(), granted.clone()).await;
    let provider = StrictProvider::start(&["--lifetime-secs", "3600"]).await;
    provider.register(Auth::Basic("app", "s")).await;
    let others = [
        ("PERENNIAL__STORE__ENDPOINT", role.front.url()),
        // DynamoDB Local has neither keys nor protection. An empty variable counts as not set.
        ("PERENNIAL__STORE__KMS_KEY", ""),
        ("PERENNIAL__STORE__DELETION_PROTECTION", "false"),
        ("PERENNIAL__HEALTH__ENABLED", "false"),
        // As the environment file has it.
        ("PERENNIAL__PROVIDERS__ACME__TOKEN_URL", &provider.token_url()),
        ("PERENNIAL__PROVIDERS__ACME__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    // The first container finishes the table, the next task's finds it finished.
    let first = Task::new(stack.environment("table"), &others);
    for _ in 0..2 {
        assert!(first.ok(&["table", "create"]).ends_with("is ready\n"));
    }
    let task = Task::new(stack.environment("perennial"), &others);
    let findings = task.ok(&["table", "check", "--json"]);
    assert!(findings.lines().all(|line| !line.contains("\"differs\"")), "{findings}");
    let add = ["--provider", "acme", "--grant", "client_credentials", "--client-id", "app"];
    for id in ["billing", "mail"] {
        let secret = ["--client-secret-env", "APP_SECRET"];
        task.ok(&[&["clients", "add", id][..], &add, &secret].concat());
    }
    // TTL may take the token item of a grant that can be minted again; then the commit checks the lease beside it.
    let key = |text: &str| AttributeValue::S(text.to_owned());
    let taken = local.client().delete_item().table_name(&name);
    let taken = taken.key("PK", key("CLIENT#mail")).key("SK", key("TOKEN#ACCESS"));
    taken.send().await.expect("deleted");
    task.ok(&["run", "--once"]);
    let mut daemon =
        Process::start(env!("CARGO_BIN_EXE_perennial"), ["run"], |command| task.settle(command)).await;
    task.ok(&["clients", "refresh", "billing"]);
    let before = task.ok(&["get", "billing"]);
    wait_until(Duration::from_secs(60), "the daemon refreshes billing", async || {
        task.ok(&["get", "billing"]) != before
    })
    .await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(Duration::from_secs(60)).await, 0, "{}", daemon.errors());
    task.ok(&["clients", "remove", "mail", "--yes"]);
    assert_eq!(role.refused(), BTreeSet::new(), "the role lacks these");
    assert_eq!(role.used(), granted, "the role grants what nobody uses, or the test uses too little");
}

fn read(path: &str) -> String {
    fs::read_to_string(part(path)).expect("readable")
}

/// The sections below a heading of the second level, by their headings of the third.
fn sections(page: &str, of: &str) -> BTreeMap<String, String> {
    let chapter = page.split("\n## ").find(|chapter| chapter.starts_with(&format!("{of}\n")));
    let chapter = chapter.unwrap_or_else(|| panic!("the runbook has no chapter {of}"));
    let sections =
        chapter.split("\n### ").skip(1).map(|section| section.split_once('\n').expect("a heading"));
    sections.map(|(heading, body)| (heading.to_owned(), body.to_owned())).collect()
}

/// `NoReadyTask` is `no-ready-task`.
fn kebab(id: &str) -> String {
    let mut kebab = String::new();
    for letter in id.chars() {
        if letter.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(letter.to_lowercase());
    }
    kebab
}

#[test]
fn every_alarm_has_its_entry_in_the_runbook() {
    let (stack, scheduled) = (Stack::emulate(&[]), Stack::emulate(&["Mode=Scheduled"]));
    let mut alarms = scheduled.of_type("AWS::CloudWatch::Alarm");
    alarms.extend(stack.of_type("AWS::CloudWatch::Alarm"));
    let page = read("docs/runbook.md");
    let entries = sections(&page, "Alarms of CloudWatch");
    let anchors: BTreeSet<_> = alarms.keys().map(|id| kebab(id)).collect();
    let headings: BTreeSet<_> =
        entries.keys().map(|heading| heading.to_lowercase().replace(' ', "-")).collect();
    assert_eq!(anchors, headings);
    for (id, alarm) in &alarms {
        let description = text(&alarm["AlarmDescription"]);
        assert!(description.ends_with(&format!(" Runbook: docs/runbook.md#{}", kebab(id))), "{description}");
        assert_eq!(text(&alarm["AlarmName"]), format!("perennial-{id}"));
        assert_eq!(
            words(&alarm["AlarmActions"]),
            [text(&stack.0["outputs"]["TopicArn"])],
            "{id} tells nobody"
        );
    }
    for (heading, entry) in entries {
        for part in ["**Meaning.**", "**First look.**", "**Remedy.**"] {
            assert!(entry.contains(part), "{heading} has no {part}");
        }
    }
}

/// A run sends its numbers once, every few minutes: an alarm that asks for more of them never comes.
#[test]
fn alarms_of_scheduled_runs_ask_for_one_run() {
    const SPAN: u64 = 1800;
    let stack = Stack::emulate(&["Mode=Scheduled", &format!("ScheduledAlarmPeriod={SPAN}")]);
    let alarms = stack.of_type("AWS::CloudWatch::Alarm");
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| text(value).parse().expect("a number"));
    for (id, alarm) in &alarms {
        let asked = ["EvaluationPeriods", "DatapointsToAlarm"].map(|key| number(&alarm[key]));
        assert_eq!(asked, [1, 1], "{id}");
        // Those that count what has happened need no run in each span.
        let counts = ["RefreshFailures", "DeadGrants"].contains(id);
        let period = alarm.get("Period").unwrap_or(&alarm["Metrics"][1]["MetricStat"]["Period"]);
        assert_eq!(number(period), if counts { 300 } else { SPAN }, "{id}");
    }
    assert_eq!(alarms["NoRun"]["TreatMissingData"], "breaching", "a run that is not there tells nothing");
    let group = &alarms["ScheduleErrors"]["Dimensions"][0]["Value"];
    assert_eq!(stack.only("AWS::Scheduler::Schedule")["GroupName"], *group);
    for of_a_task_that_stays in ["NoReadyTask", "ClockSkew", "SchedulerLag"] {
        assert!(!alarms.contains_key(of_a_task_that_stays), "no run sends what {of_a_task_that_stays} needs");
    }
}

#[test]
fn every_alarm_of_the_log_has_its_entry_in_the_runbook() {
    let mut said = BTreeSet::new();
    let mut folders = vec![part("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let source = fs::read_to_string(path).expect("text");
                let words = source.split("alarm = \"").skip(1).filter_map(|rest| rest.split('"').next());
                said.extend(words.map(str::to_owned));
            }
        }
    }
    let page = read("docs/runbook.md");
    let entries = sections(&page, "Alarms of the log").into_keys();
    let entries: BTreeSet<_> = entries.map(|heading| heading.trim_matches('`').to_owned()).collect();
    assert_eq!(said, entries);
}

/// The metrics that an alarm looks at: namespace, name, names of dimensions.
fn metrics_of(alarm: &Value) -> Vec<(String, String, Vec<String>)> {
    let nested = alarm["Metrics"].as_array().into_iter().flatten();
    let nested = nested.filter_map(|metric| metric.pointer("/MetricStat/Metric"));
    let whole = alarm.get("MetricName").map(|_| alarm);
    let named = |metric: &Value| {
        let dimensions = metric["Dimensions"].as_array().into_iter().flatten();
        let dimensions = dimensions.map(|dimension| text(&dimension["Name"]).to_owned()).collect();
        (text(&metric["Namespace"]).to_owned(), text(&metric["MetricName"]).to_owned(), dimensions)
    };
    nested.chain(whole).map(named).collect()
}

#[test]
fn every_alarm_looks_at_a_metric_that_is_sent() {
    // `| .. | .. | .. | `CloudWatch name` | provider and outcome; outcome | .. |`
    let page = read("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `perennial_"));
    let sent: BTreeMap<String, Vec<String>> = rows
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .map(|cells| {
            (cells[4].trim_matches('`').to_owned(), cells[5].split("; ").map(str::to_owned).collect())
        })
        .collect();
    assert!(sent.len() > 15, "the table of docs/metrics.md has another form: {sent:?}");
    let (stack, scheduled) = (Stack::emulate(&[]), Stack::emulate(&["Mode=Scheduled"]));
    let forms = [&stack, &scheduled].map(|stack| stack.of_type("AWS::CloudWatch::Alarm"));
    for (id, alarm) in forms.into_iter().flatten() {
        for (namespace, metric, dimensions) in metrics_of(alarm) {
            if namespace.starts_with("AWS/") {
                continue;
            }
            let sets = sent.get(&metric).unwrap_or_else(|| panic!("{id}: nobody sends {metric}"));
            let set = if dimensions.is_empty() { "nothing".into() } else { dimensions.join(" and ") };
            assert!(sets.contains(&set), "{id}: {metric} is not sent by {set}, but by {sets:?}");
        }
    }
}
