//! The shared cache that the configuration describes.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::{App, UsageError};
use crate::reader::Copies;
use crate::shared_cache::{Link, Lookup, Password, Publisher, Queue, Settings};
use crate::store::{DynamoStore, DynamoVault};

/// How long the end waits until the last tokens are published.
const LAST: Duration = Duration::from_secs(2);

/// What publishes in the background.
pub(super) struct Publishing {
    publisher: Arc<Publisher<DynamoStore>>,
    tasks: [JoinHandle<()>; 2],
}

impl Publishing {
    /// The last tokens, for a short while, and then nothing any more.
    pub(super) async fn finish(self) {
        self.publisher.finish(LAST).await;
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A store whose new tokens are published, where that is configured.
pub(super) fn published(
    app: &App,
    store: DynamoVault,
) -> Result<(DynamoVault, Option<Publishing>), UsageError> {
    let Some(link) = link(app)? else { return Ok((store, None)) };
    let (queue, raw) = (Arc::new(Queue::default()), store.raw().clone());
    let publisher = Publisher::new(Arc::clone(&queue), Arc::clone(&link), raw, app.clock());
    let publisher = Arc::new(publisher);
    let publishes = Arc::clone(&publisher);
    let tasks =
        [tokio::spawn(async move { link.keep().await }), tokio::spawn(async move { publishes.run().await })];
    Ok((store.with_herald(queue), Some(Publishing { publisher, tasks })))
}

/// Where an agent looks before it asks the table. Connections are made for as long as this program runs.
pub(super) fn copies(app: &App, vault: &DynamoVault) -> Result<Option<Arc<dyn Copies>>, UsageError> {
    let Some(link) = link(app)? else { return Ok(None) };
    let lookup = Lookup::new(Arc::clone(&link), vault.clone(), app.clock());
    tokio::spawn(async move { link.keep().await });
    Ok(Some(Arc::new(lookup)))
}

fn link(app: &App) -> Result<Option<Arc<Link>>, UsageError> {
    let own = &app.config().shared_cache;
    let Some(url) = own.url.clone() else { return Ok(None) };
    let given = own.password.clone().map(Password::Given);
    let settings = Settings {
        url,
        user: own.user.clone(),
        password: given.or_else(|| own.password_file.clone().map(Password::File)),
        ca_file: own.ca_file.clone(),
        prefix: own.prefix.clone(),
        patience: own.patience,
    };
    let link =
        Link::new(settings, app.clock()).map_err(|error| UsageError(format!("shared_cache: {error}")))?;
    Ok(Some(Arc::new(link)))
}
