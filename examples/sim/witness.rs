//! Reads the log as it is written: replays have to be announced before they are sent, and no secret may stand there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::clock::Origin;

/// What a refresh says before it sends a token that may have been redeemed.
const ORDER: &str = "as the provider's in-doubt policy orders";
/// What it says when an answer has gone to the spill.
const SPILLED: &str = "they are in the spill as well";
/// Part of every secret of the simulation.
const CANARY: &str = "canary";

#[derive(Default)]
struct Notes {
    /// Orders to send again, by client, since its tokens were last replaced.
    orders: BTreeMap<String, u64>,
    spilled: Vec<Spilled>,
    objections: Vec<String>,
    /// The log, where it is wanted.
    lines: Option<Vec<String>>,
}

/// An answer that went to the spill.
#[derive(Clone, Debug)]
pub(crate) struct Spilled {
    pub(crate) client: String,
    /// The process that had heard it.
    pub(crate) by: String,
    pub(crate) at: Duration,
}

/// What was read so far.
#[derive(Clone)]
pub(crate) struct Witness {
    origin: Origin,
    notes: Arc<Mutex<Notes>>,
}

impl Witness {
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, notes: Arc::default() }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the log as well.
    pub(crate) fn keep(&self) {
        self.notes().lines = Some(Vec::new());
    }

    /// Adds a line of the simulation's own to the log.
    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.notes().lines {
            lines.push(line());
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.notes().lines.clone().unwrap_or_default()
    }

    /// How often it was announced that this client's token is sent again.
    pub(crate) fn orders(&self, client: &str) -> u64 {
        self.notes().orders.get(client).copied().unwrap_or(0)
    }

    pub(crate) fn spilled(&self) -> Vec<Spilled> {
        self.notes().spilled.clone()
    }

    /// Other tokens are stored now.
    pub(crate) fn renewed(&self, client: &str) {
        self.notes().orders.remove(client);
    }

    pub(crate) fn objections(&self) -> Vec<String> {
        self.notes().objections.clone()
    }

    /// Has the log of this thread read, until the guard is dropped.
    pub(crate) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        use tracing_subscriber::layer::SubscriberExt as _;
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }
}

/// The client that a span speaks of, and the process.
#[derive(Clone)]
struct Of {
    client: String,
    by: String,
}

#[derive(Default)]
struct Text {
    message: String,
    client: Option<String>,
    attempt: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => {
                self.fields.push_str(&format!(" {name}={text}"));
                match name {
                    "client" => self.client = Some(text),
                    "attempt" => self.attempt = text,
                    _ => {}
                }
            }
        }
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Witness {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("perennial") && *metadata.level() <= Level::INFO
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut text = Text::default();
        attributes.record(&mut text);
        if let (Some(span), Some(client)) = (context.span(id), text.client) {
            let by = text.attempt.split('#').next().unwrap_or_default().to_owned();
            span.extensions_mut().insert(Of { client, by });
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let of = context.event_span(event).and_then(|span| span.extensions().get::<Of>().cloned());
        let mut notes = self.notes();
        if text.message.contains(CANARY) || text.fields.contains(CANARY) {
            notes.objections.push(format!("a secret in the log: {}{}", text.message, text.fields));
        }
        if let Some(Of { client, .. }) = of.as_ref().filter(|_| text.message.contains(ORDER)) {
            *notes.orders.entry(client.clone()).or_default() += 1;
        }
        if let Some(Of { client, by }) = of.as_ref().filter(|_| text.message.contains(SPILLED)) {
            let (client, by, at) = (client.clone(), by.clone(), self.origin.elapsed());
            notes.spilled.push(Spilled { client, by, at });
        }
        if let Some(lines) = &mut notes.lines {
            let client = of.map(|of| of.client).or(text.client).unwrap_or_default();
            lines.push(format!("  {} {client}: {}{}", event.metadata().level(), text.message, text.fields));
        }
    }
}
