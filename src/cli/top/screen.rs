//! The terminal: keys in, frames out, and the table read meanwhile, so that no key waits for an answer.
//!
//! However it ends, by a key, a signal, an error or a panic, the terminal is as it was.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::sync::mpsc;

use super::draw::{self, Screen};
use super::feed::{Reader, Round, Table};
use super::view::{View, Wish};
use crate::client::ClientId;
use crate::shutdown::Shutdown;

/// Ages are told to the second.
const TICK: Duration = Duration::from_secs(1);

/// What comes of reading.
enum News {
    Round(Box<Result<Round, String>>),
    Story(ClientId, Result<String, String>),
}

/// Shows the view until a key or a signal ends it.
pub(super) async fn live(table: &Table<'_>, most: usize, view: View) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("installing signal handlers")?;
    // One round at a time: a wish for another while one is under way is met by that one.
    let (round, rounds) = mpsc::channel(1);
    let (story, stories) = mpsc::channel(1);
    let (sender, news) = mpsc::channel(1);
    let terminal = Screened::open().context("opening the terminal")?;
    let shown = interact(terminal, view, table, Asks { round, story }, news, &shutdown);
    tokio::select! {
        ended = shown => ended.context("using the terminal"),
        () = read_rounds(Reader::new(table, most), rounds, sender.clone()) => Ok(()),
        () = read_stories(table, stories, sender) => Ok(()),
    }
}

async fn read_rounds(mut reader: Reader<'_>, mut asks: mpsc::Receiver<()>, news: mpsc::Sender<News>) {
    while asks.recv().await.is_some() {
        let round = reader.round().await.map_err(|problem| format!("{problem:#}"));
        if news.send(News::Round(Box::new(round))).await.is_err() {
            return;
        }
    }
}

async fn read_stories(table: &Table<'_>, mut asks: mpsc::Receiver<ClientId>, news: mpsc::Sender<News>) {
    while let Some(id) = asks.recv().await {
        let story = table.story(&id).await.map_err(|problem| format!("{problem:#}"));
        if news.send(News::Story(id, story)).await.is_err() {
            return;
        }
    }
}

/// What may be asked for.
struct Asks {
    round: mpsc::Sender<()>,
    story: mpsc::Sender<ClientId>,
}

impl Asks {
    fn round(&self, view: &mut View) {
        if !view.reading {
            self.round.try_send(()).ok();
            view.reading = true;
        }
    }

    fn story(&self, id: ClientId) {
        // Full: the table is slow, and the next round asks again.
        self.story.try_send(id).ok();
    }
}

async fn interact(
    mut terminal: Screened,
    mut view: View,
    table: &Table<'_>,
    asks: Asks,
    mut news: mpsc::Receiver<News>,
    shutdown: &Shutdown,
) -> io::Result<()> {
    let clock = table.clock();
    let mut events = EventStream::new();
    let mut next = clock.sleep(Duration::ZERO);
    loop {
        view.now = table.now();
        terminal.draw(&mut view)?;
        tokio::select! {
            () = shutdown.drain.cancelled() => return Ok(()),
            event = events.next() => {
                let Some(event) = event else { return Ok(()) };
                match pressed(&mut view, &event?) {
                    Some(Wish::Quit) => return Ok(()),
                    Some(Wish::Read) => asks.round(&mut view),
                    Some(Wish::Story(id)) => asks.story(id),
                    Some(Wish::Pace) => next = clock.sleep(view.every),
                    None => {}
                }
            }
            Some(news) = news.recv() => match news {
                News::Story(id, story) => view.told(&id, story),
                News::Round(round) => {
                    view.heard(*round);
                    next = clock.sleep(view.every);
                    if let Some(id) = view.reading_of() {
                        asks.story(id.clone());
                    }
                }
            },
            () = &mut next, if !view.reading => asks.round(&mut view),
            () = clock.sleep(TICK) => {}
        }
    }
}

fn pressed(view: &mut View, event: &Event) -> Option<Wish> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => view.key(*key),
        _ => None,
    }
}

/// A terminal in raw mode, on its other screen, for as long as this lives. A panic's message comes after, too: ratatui
/// sets a hook for that.
struct Screened(DefaultTerminal);

impl Screened {
    fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self).inspect_err(|_| ratatui::restore())
    }

    fn draw(&mut self, view: &mut View) -> io::Result<()> {
        self.0.draw(|frame| {
            draw::fit(view, frame.area());
            frame.render_widget(Screen(view), frame.area());
        })?;
        Ok(())
    }
}

impl Drop for Screened {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
