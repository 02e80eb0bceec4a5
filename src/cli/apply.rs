//! `perennial clients apply`: make the table what a clients file says.
//!
//! Everything is read, resolved and compared before the first write, so that a file with an error in it changes
//! nothing. Each client is one transaction. What fails leaves its client as it was and the others untouched by it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use zeroize::Zeroizing;

use super::source::{Source, imported};
use super::spec::{self, Entry, Format, Problem};
use super::walk::Listing;
use super::{App, UsageError, client_id, confirm, output};
use crate::client::credentials::Credential;
use crate::client::{ClientId, Provider};
use crate::item::{Key, attr};
use crate::plan::registry::{Imported, Refusal};
use crate::record::Snapshot;
use crate::registrar::{Field, Registrar, RegistrarError, Step, diff};
use crate::store::{DynamoVault, Store as _, View};

/// Clients that are read or written at once.
const AT_ONCE: usize = 16;

/// Register and change clients as a file says; what is so already is left alone.
///
/// A refresh token in the file is used to create a client, and never again: a second run does not put a spent one
/// back. To replace the grant of a client, say --replace with its id.
#[derive(Debug, Args)]
#[command(after_help = "Example of a file:
  [[clients]]
  id = \"billing\"
  provider = \"acme\"
  grant = \"client_credentials\"
  client_id = \"app-1\"
  client_secret = { env = \"ACME_SECRET\" }    # or { file = \"path\" }, { stdin = true }, { ref = \"ssm:/oauth/acme\" }

Exit code 2 if the file has errors (all are reported), 1 if anything was refused or failed.")]
pub(super) struct Apply {
    /// Clients file, .toml or .json; - is standard input (with --format).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How the file is written, where its name does not say.
    #[arg(long)]
    format: Option<Format>,
    /// Say what would be done, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove the clients that the file lacks.
    #[arg(long)]
    prune: bool,
    /// Do not ask before clients are removed.
    #[arg(long)]
    yes: bool,
    /// Put the file's tokens in the place of this client's; may be repeated.
    #[arg(long, value_name = "ID", value_parser = client_id)]
    replace: Vec<ClientId>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// What is to be done about a client of the file.
struct Task<'a> {
    entry: Entry,
    provider: &'a Provider,
    tokens: Imported,
    replace: bool,
    step: Step,
}

/// What is to be done about the clients of the file.
#[derive(Default)]
struct Plan<'a> {
    tasks: Vec<Task<'a>>,
    /// Clients that cannot be understood as they stand, and why. They hold up nobody else.
    malformed: Vec<(ClientId, RegistrarError)>,
    /// What keeps the whole file from being applied.
    refused: Vec<String>,
}

#[derive(Default)]
struct Tally(BTreeMap<&'static str, usize>);

impl Apply {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let (entries, mut wrong) = self.entries(app)?;
        let entries = with_secrets(app, entries, &mut wrong);
        let store = match app.store().await {
            Err(error) if !wrong.is_empty() => {
                output::note(format_args!("error: {error:#}"));
                return Ok(report(&wrong, &Plan::default()));
            }
            opened => opened?,
        };
        let registrar = app.registrar(&store);
        let plan = self.plan(app, &registrar, entries).await?;
        if !wrong.is_empty() || !plan.refused.is_empty() {
            return Ok(report(&wrong, &plan));
        }
        let surplus = if self.prune { surplus(&store, app, &plan).await? } else { Vec::new() };
        if self.dry_run {
            return Ok(self.rehearse(&plan, &surplus));
        }
        if !surplus.is_empty() && !confirm(self.yes, &removal(&surplus))? {
            return Ok(ExitCode::FAILURE);
        }
        Ok(self.carry_out(&registrar, &plan, &surplus).await)
    }

    fn entries(&self, app: &App) -> anyhow::Result<(Vec<Entry>, Vec<Problem>)> {
        let from_stdin = self.file == Path::new("-");
        let format = self.format.or_else(|| by_extension(&self.file)).ok_or_else(|| {
            UsageError(format!(
                "{}: say how it is written: --format toml or --format json",
                self.file.display()
            ))
        })?;
        let text = Zeroizing::new(if from_stdin {
            io::read_to_string(io::stdin().lock()).context("reading standard input")?
        } else {
            read_file(&self.file)?
        });
        let (entries, mut problems) =
            spec::parse(&text, format, &app.config().providers, &app.config().secrets.allow);
        let known: BTreeSet<&ClientId> = entries.iter().map(|entry| &entry.wanted.client.id).collect();
        if let Some(id) = self.replace.iter().find(|id| problems.is_empty() && !known.contains(id)) {
            return Err(UsageError(format!("--replace {id}: the file has no such client")).into());
        }
        for entry in entries.iter().filter(|entry| from_stdin && takes_stdin(entry)) {
            problems.push(problem(
                entry,
                "stdin = true",
                "cannot be: the clients file itself comes from there; name a file or env",
            ));
        }
        Ok((entries, problems))
    }

    /// Compares each entry with what stands, and reads the tokens that are needed for it.
    async fn plan<'a>(
        &self,
        app: &'a App,
        registrar: &Registrar<'_, DynamoVault>,
        entries: Vec<Entry>,
    ) -> anyhow::Result<Plan<'a>> {
        let reads = entries.into_iter().map(async |entry| {
            let read = registrar.read(&entry.wanted.client.id).await;
            (entry, read)
        });
        let mut reads = stream::iter(reads).buffered(AT_ONCE);
        let mut plan = Plan::default();
        while let Some((entry, read)) = reads.next().await {
            match read {
                Ok(read) => match self.task(app, entry, &read) {
                    Ok(task) => plan.tasks.push(task),
                    Err(why) => plan.refused.push(why),
                },
                Err(error @ RegistrarError::Malformed(_)) => {
                    plan.malformed.push((entry.wanted.client.id, error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(plan)
    }

    fn task<'a>(&self, app: &'a App, entry: Entry, read: &Snapshot) -> Result<Task<'a>, String> {
        let wanted = &entry.wanted;
        let provider = app.provider(&wanted.client.provider).map_err(|error| error.to_string())?;
        let replace = self.replace.contains(&wanted.client.id);
        let tokens = if replace || needs_tokens(&entry, read) {
            given_tokens(app, &entry)?
        } else {
            Imported::nothing()
        };
        let step =
            diff(wanted, read, &tokens, provider, replace).map_err(|refusal: Refusal| refusal.to_string())?;
        Ok(Task { entry, provider, tokens, replace, step })
    }

    fn rehearse(&self, plan: &Plan<'_>, surplus: &[ClientId]) -> ExitCode {
        let mut tally = Tally::default();
        for task in &plan.tasks {
            self.tell(&mut tally, &task.entry.wanted.client.id, &task.step);
        }
        for (id, error) in &plan.malformed {
            self.tell_failed(&mut tally, id, error);
        }
        for id in surplus {
            self.tell_pruned(&mut tally, id);
        }
        self.summarize(&tally);
        tally.code()
    }

    async fn carry_out(
        &self,
        registrar: &Registrar<'_, DynamoVault>,
        plan: &Plan<'_>,
        surplus: &[ClientId],
    ) -> ExitCode {
        let mut tally = Tally::default();
        let writes = plan.tasks.iter().map(async |task| {
            let Task { entry, provider, tokens, replace, step } = task;
            let written = match step {
                Step::Unchanged => Ok(Step::Unchanged),
                _ => registrar.put(&entry.wanted, tokens, provider, *replace).await,
            };
            (&entry.wanted.client.id, written)
        });
        let mut writes = stream::iter(writes).buffered(AT_ONCE);
        while let Some((id, written)) = writes.next().await {
            match written {
                Ok(step) => self.tell(&mut tally, id, &step),
                Err(error) => self.tell_failed(&mut tally, id, &error),
            }
        }
        for (id, error) in &plan.malformed {
            self.tell_failed(&mut tally, id, error);
        }
        for id in surplus {
            match registrar.remove(id).await {
                Ok(()) => self.tell_pruned(&mut tally, id),
                Err(error) => self.tell_failed(&mut tally, id, &error),
            }
        }
        self.summarize(&tally);
        tally.code()
    }

    fn tell(&self, tally: &mut Tally, id: &ClientId, step: &Step) {
        let (action, fields, note) = words(step);
        self.print(tally, action, id, fields, note);
    }

    fn tell_pruned(&self, tally: &mut Tally, id: &ClientId) {
        self.print(tally, "prune", id, &[], "");
    }

    fn tell_failed(&self, tally: &mut Tally, id: &ClientId, error: &RegistrarError) {
        output::note(format_args!("failed: {error}"));
        self.print(tally, "failed", id, &[], "left as it was");
    }

    fn print(&self, tally: &mut Tally, action: &'static str, id: &ClientId, fields: &[Field], note: &str) {
        *tally.0.entry(action).or_default() += 1;
        if self.json {
            let result =
                json!({ "client": id.as_str(), "action": action, "fields": fields, "dry_run": self.dry_run });
            output::told(result);
            return;
        }
        let changes = fields.iter().map(|field| format!("{}: {}", field.field, field.change));
        let details: Vec<String> = changes.chain((!note.is_empty()).then(|| note.to_owned())).collect();
        output::told(format!("{action:<9} {id}  {}", details.join("; ")).trim_end());
    }

    fn summarize(&self, tally: &Tally) {
        if self.json {
            return;
        }
        let actions = ["create", "update", "replace", "unchanged", "prune", "failed"];
        let counts: Vec<String> = actions
            .iter()
            .map(|action| format!("{action}={}", tally.0.get(action).copied().unwrap_or(0)))
            .collect();
        let rehearsal = if self.dry_run { " (dry run: nothing was written)" } else { "" };
        output::told(format_args!("summary {}{rehearsal}", counts.join(" ")));
    }
}

impl Tally {
    fn code(&self) -> ExitCode {
        if self.0.contains_key("failed") { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn words(step: &Step) -> (&'static str, &[Field], &'static str) {
    match step {
        Step::Create { adopts: true } => ("create", &[], "adopts the tokens that another tool stored"),
        Step::Create { adopts: false } => ("create", &[], ""),
        Step::Update { fields, mint_anew: true } => ("update", fields, "a new token will be minted"),
        Step::Update { fields, mint_anew: false } => ("update", fields, ""),
        Step::Replace { fields, minted: true } => {
            ("replace", fields, "its token is dropped, a new one will be minted")
        }
        Step::Replace { fields, minted: false } => ("replace", fields, "tokens: changed"),
        Step::Unchanged => ("unchanged", &[], ""),
    }
}

fn by_extension(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "toml" => Some(Format::Toml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

fn read_file(path: &Path) -> Result<String, UsageError> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(UsageError(format!("{} cannot be read: {error}", path.display()))),
    }
}

fn problem(entry: &Entry, key: &str, problem: impl Into<String>) -> Problem {
    Problem { at: format!("client `{}`", entry.wanted.client.id), key: key.into(), problem: problem.into() }
}

fn takes_stdin(entry: &Entry) -> bool {
    entry.sources().contains(&&Some(Source::Stdin))
}

/// Reads the client secrets, which every comparison needs. Standard input comes last, and is left alone where the
/// file is wrong already: somebody may have to type it again.
fn with_secrets(app: &App, mut entries: Vec<Entry>, wrong: &mut Vec<Problem>) -> Vec<Entry> {
    for stdin in [false, true] {
        if stdin && !wrong.is_empty() {
            entries.retain(|entry| !takes_stdin(entry));
        }
        entries.retain_mut(|entry| fill(app, entry, stdin, wrong));
    }
    entries
}

/// Reads an entry's client secrets, those alone that come from standard input or those alone that do not. False: one has no
/// value.
fn fill(app: &App, entry: &mut Entry, stdin: bool, wrong: &mut Vec<Problem>) -> bool {
    let due = |source: &Option<Source>| source.clone().filter(|of| (*of == Source::Stdin) == stdin);
    let read = |source: &Option<Source>| due(source).map(|source| source.read(app.sources())).transpose();
    let first = read(&entry.client_secret).map_err(|why| ("`client_secret`", why));
    let second = read(&entry.second_client_secret).map_err(|why| ("`second_client_secret`", why));
    match first.and_then(|first| Ok((first, second?))) {
        Ok((first, second)) => {
            let credentials = &mut entry.wanted.client.credentials;
            credentials.first = first.map(Credential::Stored).or(credentials.first.take());
            credentials.second = second.map(Credential::Stored).or(credentials.second.take());
            true
        }
        Err((key, why)) => {
            wrong.push(problem(entry, key, format!("has no value: {why}")));
            false
        }
    }
}

/// Whether the file's tokens are of any use: a grant that stands is left alone.
fn needs_tokens(entry: &Entry, read: &Snapshot) -> bool {
    read.client().is_none_or(|was| was.grant != entry.wanted.client.grant)
}

fn given_tokens(app: &App, entry: &Entry) -> Result<Imported, String> {
    let read = |key: &str, source: &Option<Source>| {
        let secret = source.as_ref().map(|source| source.read(app.sources())).transpose();
        secret.map_err(|why| problem(entry, key, format!("has no value: {why}")).to_string())
    };
    let refresh_token = read("`refresh_token`", &entry.refresh_token)?;
    let access_token = read("`access_token`", &entry.access_token)?;
    Ok(imported(app, refresh_token, access_token, entry.expiry))
}

/// Registered clients that the file lacks.
async fn surplus(store: &DynamoVault, app: &App, plan: &Plan<'_>) -> anyhow::Result<Vec<ClientId>> {
    let planned = plan.tasks.iter().map(|task| &task.entry.wanted.client.id);
    let kept: BTreeSet<&ClientId> = planned.chain(plan.malformed.iter().map(|(id, _)| id)).collect();
    let mut listing = Listing::new(store, app.config().store.shards);
    let mut surplus = Vec::new();
    while let Some(page) = listing.next().await? {
        page.name_strangers();
        let unwanted: Vec<_> = page.ids.into_iter().filter(|id| !kept.contains(id)).collect();
        surplus.extend(registered(store, unwanted).await?);
    }
    surplus.sort_unstable();
    Ok(surplus)
}

/// Those of these that are no tombstones: they stay in the index for a while.
async fn registered(store: &DynamoVault, ids: Vec<ClientId>) -> anyhow::Result<Vec<ClientId>> {
    let keys: Vec<_> = ids.into_iter().map(Key::Config).collect();
    let loaded = store.load(&keys, View::WithoutSecrets).await?;
    let live = loaded.into_iter().filter(|(_, item)| item.get(attr::GONE).is_none());
    Ok(live.filter_map(|(key, _)| if let Key::Config(id) = key { Some(id) } else { None }).collect())
}

fn removal(surplus: &[ClientId]) -> String {
    const NAMED: usize = 10;
    let named: Vec<&str> = surplus.iter().take(NAMED).map(ClientId::as_str).collect();
    let more = if surplus.len() > NAMED { ", ..." } else { "" };
    format!("{} clients and their tokens will be removed: {}{more}.", surplus.len(), named.join(", "))
}

/// Everything that keeps the file from being applied; nothing was written.
fn report(wrong: &[Problem], plan: &Plan<'_>) -> ExitCode {
    for problem in wrong {
        output::note(format_args!("error: {problem}"));
    }
    for refusal in &plan.refused {
        output::note(format_args!("error: {refusal}"));
    }
    for (_, error) in &plan.malformed {
        output::note(format_args!("error: {error}"));
    }
    output::note("nothing was written");
    if wrong.is_empty() { ExitCode::FAILURE } else { ExitCode::from(2) }
}
