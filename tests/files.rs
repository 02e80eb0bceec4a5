//! Files that the agent keeps, as the shipped program: a daemon refreshes, the table is DynamoDB Local, programs read files.

#![allow(clippy::disallowed_methods, reason = "tests look at their own clock")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::{
    Auth, Deployment, DynamoLocal, Process, Proxy, StrictProvider, agent_url, fetch, log_lines,
    quick_settings, wait_for, wait_until,
};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(60);
/// What it is told, a line a change, and all that is in its environment.
const HOOK: &str = "echo \"$TOKEN_CHANGE $TOKEN_GENERATION\" >>hook.log\nenv >hook.new\nmv hook.new hook.env\ncat \"$TOKEN_FILE\"\n";

/// A provider, a table that a daemon keeps, and the folder in which the agent is to keep files.
struct World {
    provider: StrictProvider,
    deployment: Deployment,
    daemon: Process,
}

impl World {
    /// `files` are sections `[agent.files.NAME]`, with paths in the deployment's folder.
    async fn new(lifetime_secs: &str, files: &str) -> Self {
        let provider = StrictProvider::start(&["--lifetime-secs", lifetime_secs]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let own = format!("[agent]\naddress = \"127.0.0.1:0\"\nmax_age = \"1s\"\n{files}");
        let settings = quick_settings(&provider, &own);
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        fs::write(deployment.path().join("hook.sh"), HOOK).expect("a fresh folder is writable");
        deployment.register(&provider, SECRET, ["acme-crm", "other"]).await;
        let daemon = deployment.daemon().await;
        Self { provider, deployment, daemon }
    }

    async fn agent(&self) -> Process {
        self.deployment.start(&["agent"], &[]).await
    }

    fn at(&self, name: &str) -> PathBuf {
        self.deployment.path().join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.at(name)).ok()
    }

    fn json(&self, name: &str) -> Option<Value> {
        self.read(name).map(|text| serde_json::from_str(&text).expect("a whole object"))
    }

    /// What the command was told, so far.
    fn told(&self) -> Vec<String> {
        self.read("hook.log").unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The same, where nothing was removed.
    fn told_generations(&self) -> Vec<i64> {
        let number = |line: &String| line.strip_prefix("written ")?.parse().ok();
        self.told().iter().map(|line| number(line).expect("written")).collect()
    }

    /// Has the token refreshed; the generation that a file of JSON holds then. Each that it held meanwhile was good.
    async fn rotated(&self, name: &str, last: i64) -> i64 {
        self.deployment.ok(&["clients", "refresh", "acme-crm"]);
        wait_for(SOON, "a rotation", async || {
            let token = self.json(name).expect("it is always there");
            assert!(
                self.provider.is_active(token["access_token"].as_str().expect("a token")).await,
                "{token}"
            );
            Some(generation(&token)).filter(|generation| *generation > last)
        })
        .await
    }

    /// Everything in the folder, hidden or not, that is the agent's.
    fn left(&self, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.deployment.path()).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        let mut names: Vec<_> =
            names.filter(|name| name.trim_start_matches('.').starts_with(prefix)).collect();
        names.sort();
        names
    }
}

fn generation(token: &Value) -> i64 {
    token["generation"].as_i64().expect("a number")
}

fn file(name: &str, more: &str) -> String {
    format!("[agent.files.{name}]\nclient = \"acme-crm\"\npath = \"{name}\"\n{more}\n")
}

/// Reads a file again and again: everything that it ever held.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<BTreeSet<String>>>,
}

impl Watcher {
    fn of(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let watch = move || {
            let mut seen = BTreeSet::new();
            while !asked.load(Ordering::Relaxed) {
                seen.insert(fs::read_to_string(&path).expect("it is always there"));
                std::thread::sleep(Duration::from_millis(1));
            }
            seen
        };
        Self { stop, thread: Some(std::thread::spawn(watch)) }
    }

    fn seen(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("asked once").join().expect("it was always there, and whole")
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_holds_one_whole_token_after_the_other_and_each_is_told_once() {
    let hung = "format = \"env\"\non_change = [\"sleep\", \"1000\"]\non_change_timeout = \"200ms\"";
    let files = [
        file("kept", "format = \"json\"\nmode = \"0640\"\non_change = [\"sh\", \"hook.sh\"]"),
        file("plain", ""),
        file("hung", hung),
    ];
    let world = World::new("60", &files.concat()).await;
    let agent = world.agent().await;
    let first = wait_for(SOON, "the first file", async || world.json("kept")).await;
    let watcher = Watcher::of(world.at("kept"));
    let mut last = generation(&first);
    for _ in 0..3 {
        last = world.rotated("kept", last).await;
    }
    let seen = watcher.seen();
    let whole: Vec<Value> = seen.iter().map(|text| serde_json::from_str(text).expect("whole")).collect();
    assert!((3..20).contains(&whole.len()), "{whole:?}");
    for token in &whole {
        assert_eq!(
            token["authorization"],
            format!("Bearer {}", token["access_token"].as_str().expect("a token"))
        );
    }
    let mode = |name: &str| fs::metadata(world.at(name)).expect("a file").permissions().mode() & 0o7777;
    assert_eq!((mode("kept"), mode("plain"), mode(".kept.perennial")), (0o640, 0o600, 0o600));
    wait_until(SOON, "the file without a word too many", async || {
        let last = world.json("kept").expect("it is there");
        world.read("plain").expect("it is there") == last["access_token"].as_str().expect("a token")
            && world.read("hung").expect("it is there").starts_with(&format!(
                "ACCESS_TOKEN={}\nTOKEN_TYPE=Bearer\nEXPIRES_AT={}\n",
                last["access_token"].as_str().expect("a token"),
                last["expires_at"]
            ))
    })
    .await;

    let stood: BTreeSet<_> = whole.iter().map(generation).collect();
    wait_until(SOON, "all that stood there are told", async || {
        stood.is_subset(&world.told_generations().into_iter().collect())
    })
    .await;
    let told = world.told_generations();
    assert!(told.is_sorted_by(|one, next| one < next), "each once, in their order: {told:?}");
    let killed = |line: &Value| line["why"].as_str().is_some_and(|why| why.contains("did not end in 200ms"));
    wait_until(SOON, "what hangs is killed, time and again", async || {
        log_lines(&agent.errors()).iter().filter(|line| killed(line)).count() >= 2
    })
    .await;
    let (environment, log) = (world.read("hook.env").expect("its environment"), agent.errors());
    for token in &whole {
        let secret = token["access_token"].as_str().expect("a token");
        assert!(!log.contains(secret) && !environment.contains(secret));
    }
    assert!(!environment.contains("AWS") && environment.contains("PATH="), "{environment}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_outlives_the_table_and_an_expired_one_does_not_stay() {
    let proxy = Proxy::before(DynamoLocal::shared().await.endpoint()).await;
    let world = World::new("10", &file("kept", "format = \"json\"\non_change = [\"sh\", \"hook.sh\"]")).await;
    let agent = world.deployment.start(&["agent"], &[("PERENNIAL__STORE__ENDPOINT", proxy.url())]).await;
    let url = agent_url(&agent).await;
    let missing = async || {
        let metrics = fetch(&format!("{url}/metrics")).await.expect("metrics").body;
        metrics
            .lines()
            .find_map(|line| line.strip_prefix("perennial_agent_files_missing ")?.parse::<f64>().ok())
    };
    wait_for(SOON, "the first file", async || world.json("kept")).await;
    proxy.cut();
    let mut gone_from = world.json("kept").expect("it stays");
    wait_until(SOON, "its token expires", async || match world.json("kept") {
        Some(token) => {
            gone_from = token;
            false
        }
        None => true,
    })
    .await;
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let expired_at = gone_from["expires_at"].as_u64().expect("a number");
    // The table's clock is known to the second.
    assert!(expired_at <= now + 1, "it was good until {expired_at}, and gone at {now}");
    wait_until(SOON, "nothing of it is left", async || world.left("kept").is_empty()).await;
    wait_until(SOON, "that is told", async || world.told().last().is_some_and(|line| line == "removed "))
        .await;
    assert_eq!(missing().await, Some(1.0));
    proxy.mend();
    let next = wait_for(SOON, "another token", async || world.json("kept")).await;
    assert!(next["generation"].as_i64() > gone_from["generation"].as_i64());
    wait_until(SOON, "none is missing", async || missing().await == Some(0.0)).await;

    // A client that is removed takes its file with it.
    world.deployment.ok(&["clients", "remove", "acme-crm", "--yes"]);
    wait_until(SOON, "its file goes", async || world.left("kept").is_empty()).await;
    assert!(!world.daemon.errors().is_empty(), "the daemon was there all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_leaves_behind_the_next_one_knows() {
    let world = World::new("600", &file("kept", "on_change = [\"sh\", \"hook.sh\"]")).await;
    let settled = async |agent: &Process| {
        let url = agent_url(agent).await;
        wait_until(SOON, "it knows its file", async || {
            let metrics = fetch(&format!("{url}/metrics")).await.expect("metrics").body;
            metrics.contains("\nperennial_agent_files_missing 0")
        })
        .await;
    };
    let stop = async |mut agent: Process| {
        agent.signal("TERM");
        assert_eq!(agent.exit_code(SOON).await, 0, "{}", agent.errors());
    };
    let agent = world.agent().await;
    settled(&agent).await;
    wait_until(SOON, "the first is told", async || world.told().len() == 1).await;
    stop(agent).await;
    let token = world.read("kept").expect("a drain leaves it");

    let agent = world.agent().await;
    settled(&agent).await;
    stop(agent).await;
    assert_eq!((world.read("kept"), world.told().len()), (Some(token.clone()), 1), "nothing has changed");

    fs::write(world.at("kept"), "somebody else's").expect("writable");
    fs::write(world.at(".kept.part-0123"), "half a token").expect("writable");
    let agent = world.agent().await;
    wait_until(SOON, "it is replaced", async || world.read("kept").as_ref() == Some(&token)).await;
    wait_until(SOON, "and told", async || world.told().len() == 2).await;
    assert!(!world.at(".kept.part-0123").exists());
    // Somebody clears the folder.
    fs::remove_file(world.at("kept")).expect("it was there");
    wait_until(SOON, "it comes back", async || world.read("kept").as_ref() == Some(&token)).await;
    stop(agent).await;
    assert_eq!(world.provider.stats().await.granted, 2, "none of it asked for a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_was_telling_when_it_was_ended_the_next_one_tells() {
    let world = World::new("600", &file("kept", "on_change = [\"sh\", \"slow.sh\"]")).await;
    let slow = "echo begun >>begun.log\nwhile [ ! -e go ]; do sleep 0.05; done\necho ended >>ended.log\n";
    fs::write(world.at("slow.sh"), slow).expect("writable");
    let lines = |name: &str| world.read(name).unwrap_or_default().lines().count();
    let noted = || world.json(".kept.perennial").is_some_and(|note| note["told"] == json!(true));
    let mut agent = world.agent().await;
    wait_until(SOON, "it is being told", async || lines("begun.log") == 1).await;
    // It waits for a while, and no longer.
    agent.signal("TERM");
    assert_eq!(agent.exit_code(SOON).await, 0, "{}", agent.errors());
    assert!(world.read("kept").is_some() && !noted());

    let mut agent = world.agent().await;
    wait_until(SOON, "it is told again", async || lines("begun.log") == 2).await;
    fs::write(world.at("go"), "").expect("writable");
    wait_until(SOON, "that is noted", async || noted()).await;
    agent.signal("TERM");
    assert_eq!(agent.exit_code(SOON).await, 0, "{}", agent.errors());

    let agent = world.agent().await;
    let url = agent_url(&agent).await;
    wait_until(SOON, "it knows its file", async || {
        let metrics = fetch(&format!("{url}/metrics")).await.expect("metrics").body;
        metrics.contains("\nperennial_agent_files_missing 0")
    })
    .await;
    assert_eq!(lines("begun.log"), 2, "all is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_file_can_be_kept_the_agent_does_not_start_and_says_which() {
    let world = World::new("600", &(file("link", "") + &file("lost", ""))).await;
    let refused = async |path: &str| {
        let variables = [("PERENNIAL__AGENT__FILES__LOST__PATH", path)];
        let mut agent = world.deployment.start(&["agent"], &variables).await;
        assert_eq!(agent.exit_code(SOON).await, 2, "{}", agent.errors());
        agent.errors()
    };
    let said = refused("missing/lost").await;
    assert!(said.contains("agent.files.lost.path") && said.contains("its folder must be there"), "{said}");
    fs::write(world.at("precious"), "precious").expect("writable");
    std::os::unix::fs::symlink("precious", world.at("link")).expect("a link");
    let said = refused("lost").await;
    assert!(said.contains("agent.files.link.path") && said.contains("no regular file"), "{said}");
    assert_eq!(world.read("precious"), Some("precious".to_owned()));

    // One that is put there later is not followed either.
    fs::remove_file(world.at("link")).expect("it was there");
    let agent = world.agent().await;
    wait_until(SOON, "the file", async || world.read("link").is_some()).await;
    std::os::unix::fs::symlink("precious", world.at("new")).expect("a link");
    fs::rename(world.at("new"), world.at("link")).expect("it takes the file's place");
    world.deployment.ok(&["clients", "refresh", "acme-crm"]);
    wait_until(SOON, "it is refused", async || agent.errors().contains("could not be changed")).await;
    assert_eq!(world.read("precious"), Some("precious".to_owned()));
    assert_eq!(json!(world.read("lost").is_some()), json!(true), "the other file is kept");
}
