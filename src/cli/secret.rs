//! `perennial clients secret`: a second client secret beside the first, so that a provider can go over from one to the
//! other without a gap; and whether references lead anywhere.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use super::add::read_all;
use super::import_token::not_registered;
use super::source::{ClientSecretArgs, Given};
use super::walk::Listing;
use super::{App, UsageError, client_id, output};
use crate::client::credentials::{Credential, Credentials};
use crate::client::reference::Scheme;
use crate::client::{Client, ClientId};
use crate::entropy::Entropy;
use crate::item::Key;
use crate::plan::registry::Rotation;
use crate::record::Partition;
use crate::registrar::Outcome;
use crate::secrets::{Keeping, Machine, Secrets, ServiceAddress};
use crate::store::{DynamoVault, Store as _, View};

/// Rotate a client's secret without a gap: add the new one as a second, have the provider go over to it, promote it.
#[derive(Debug, Subcommand)]
pub(super) enum SecretCommand {
    /// Give a client a second secret. It is tried where the provider says invalid_client of the first, and nowhere else.
    Add(Add),
    /// Make the second secret the first, in one write; the first goes.
    Promote(Promote),
    /// Take the second secret away.
    Drop(DropSecond),
    /// Look up every secret that is kept elsewhere, from this machine; exit code 1 where one cannot be had.
    Check(Check),
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The client.
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
    #[command(flatten)]
    client_secret: ClientSecretArgs,
    /// In the place of the second secret that it has.
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
pub(super) struct Promote {
    /// The client.
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
    /// Keep the first as the second, for a provider that may go back to it.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
pub(super) struct DropSecond {
    /// The client.
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Clients; none means all.
    #[arg(value_name = "ID", value_parser = client_id)]
    ids: Vec<ClientId>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl SecretCommand {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        match self {
            Self::Add(command) => command.run(app).await,
            Self::Promote(Promote { id, keep }) => {
                let told = ["now sends the second secret", "is so already"];
                rotate(app, id, &Rotation::Promote { keep: *keep }, told).await
            }
            Self::Drop(DropSecond { id }) => {
                rotate(app, id, &Rotation::Drop, ["has one secret again", "has no second secret"]).await
            }
            Self::Check(command) => command.run(app).await,
        }
    }
}

impl Add {
    async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let given = self.client_secret.given()?;
        let [read] = read_all(app, &[Given::source(given.as_ref())])?;
        let credential = Given::credential(given, read).ok_or_else(|| {
            UsageError("say where the second secret is: --client-secret-stdin, -env, -file or -ref".into())
        })?;
        if let Some(reference) = credential.reference() {
            let store = app.store().await?;
            let read = app.registrar(&store).read(&self.id).await?;
            let client = read.client().ok_or_else(|| not_registered(&self.id))?;
            let admitted = app.config().secrets.allow.admit(reference, &self.id, &client.provider);
            admitted.map_err(|error| UsageError(error.to_string()))?;
        }
        let rotation = Rotation::Second { credential, replace: self.replace };
        rotate(app, &self.id, &rotation, ["has a second secret", "has that second secret already"]).await
    }
}

async fn rotate(
    app: &App,
    id: &ClientId,
    rotation: &Rotation,
    [done, unchanged]: [&str; 2],
) -> anyhow::Result<ExitCode> {
    let store = app.store().await?;
    match app.registrar(&store).rotate(id, rotation).await? {
        Outcome::Done => output::told(format_args!("{id} {done}")),
        Outcome::Unchanged => output::told(format_args!("{id} {unchanged}")),
    }
    Ok(ExitCode::SUCCESS)
}

/// What was found where references lead.
#[derive(Default)]
struct Tally {
    found: u64,
    missing: u64,
    /// Clients that are registered, or were meant to be.
    seen: BTreeSet<ClientId>,
}

impl Check {
    async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let secrets = follower(app, Arc::new(Entropy::from_system()));
        let mut tally = Tally::default();
        if self.ids.is_empty() {
            let mut listing = Listing::new(&store, app.config().store.shards);
            while let Some(page) = listing.next().await? {
                page.name_strangers();
                self.look_up(&store, &secrets, &page.ids, &mut tally).await?;
            }
        } else {
            self.look_up(&store, &secrets, &self.ids, &mut tally).await?;
        }
        for id in self.ids.iter().filter(|id| !tally.seen.contains(id)) {
            output::note(format_args!("error: client `{id}` is not registered"));
            tally.missing += 1;
        }
        let Tally { found, missing, .. } = tally;
        if !self.json {
            output::line(format_args!("summary found={found} missing={missing}"))?;
        }
        Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn look_up(
        &self,
        store: &DynamoVault,
        secrets: &Secrets,
        ids: &[ClientId],
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let keys: Vec<_> = ids.iter().cloned().map(Key::Config).collect();
        let mut loaded = store.load(&keys, View::WithoutSecrets).await?;
        loaded.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (key, item) in loaded {
            let Key::Config(id) = key else { continue };
            let read = Partition { config: Some(item), ..Partition::default() }.decode(&id);
            match read {
                Ok(read) => {
                    let Some(client) = read.client() else { continue };
                    tally.seen.insert(id);
                    self.of_client(client, secrets, tally).await?;
                }
                Err(malformed) => {
                    output::note(format_args!("error: {malformed}"));
                    tally.seen.insert(id);
                    tally.missing += 1;
                }
            }
        }
        Ok(())
    }

    async fn of_client(&self, client: &Client, secrets: &Secrets, tally: &mut Tally) -> anyhow::Result<()> {
        let Credentials { first, second } = &client.credentials;
        for (name, credential) in [("client_secret", first), ("second_client_secret", second)] {
            let Some(credential @ Credential::At(reference)) = credential else { continue };
            let looked = secrets.resolve(credential, client, &client.provider).await;
            let problem = looked.err().map(|error| error.to_string());
            *(if problem.is_none() { &mut tally.found } else { &mut tally.missing }) += 1;
            let (id, reference) = (client.id.as_str(), reference.as_str());
            if self.json {
                output::line(json!({"client": id, "attribute": name, "ref": reference, "problem": problem}))?;
            } else {
                let told = problem.as_deref().unwrap_or("found");
                output::line(format_args!("{id}  {name} {reference}: {told}"))?;
            }
        }
        Ok(())
    }
}

/// Whoever follows references, as this process's configuration allows. Nothing is asked for yet.
pub(super) fn follower(app: &App, entropy: Arc<Entropy>) -> Secrets {
    let (config, store) = (&app.config().secrets, &app.config().store);
    let environment = if config.allow.name_any(Scheme::Environment) {
        app.sources().foreign_variables()
    } else {
        Default::default()
    };
    let address = ServiceAddress { region: store.region.clone(), endpoint: config.endpoint.clone() };
    let mut own = app.sources().own_files();
    own.extend(app.config().sealing.key_file.clone());
    own.extend(app.config().agent.keys_file.clone());
    let machine = Machine::new(environment, own, address);
    let keeping = Keeping { fresh: config.fresh, stale: config.stale };
    Secrets::new(config.allow.clone(), keeping, Arc::new(machine), app.clock(), entropy)
}
