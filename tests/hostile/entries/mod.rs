//! What strangers may send, and what has to hold whatever they send.
//!
//! Each entry takes bytes, makes of them what a stranger could send, brings it in by the door that production uses, and
//! asserts more than that nothing panics. The fuzz targets in `fuzz/` and the tests in `tests/hostile.rs` call the same
//! functions: what the one finds, the other keeps.

pub(crate) mod answers;
pub(crate) mod configuration;
pub(crate) mod items;
pub(crate) mod requests;
pub(crate) mod sealed;

mod bytes;

use std::time::Duration;

use perennial::time::{Clock, Moment, Sleep, Timestamp};
use tokio::runtime::{Builder, Runtime};

/// An entry and its name, which is that of its fuzz target and of its folder under `fuzz/corpus`.
pub(crate) type Entry = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const ENTRIES: [Entry; 6] = [
    ("token_response", answers::token_response),
    ("error_body", answers::error_body),
    ("table_item", items::table_item),
    ("configuration", configuration::configuration),
    ("jwe", sealed::jwe),
    ("http_request", requests::http_request),
];

/// Runs to the end, on this thread.
fn run<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime without I/O and timers");
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}

/// Time stands still, and whoever waits for it has it once everybody else has had thousands of turns: what depends on a
/// deadline gets there at once, and always in the same way.
#[derive(Clone, Copy)]
struct Still;

/// Turns that everybody else has before a sleep is over: more than the longest exchange takes.
const TURNS: usize = 20_000;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_800_000_000)
    }

    fn moment(&self) -> Moment {
        Moment::default()
    }

    fn sleep(&self, _: Duration) -> Sleep {
        Box::pin(turns(TURNS))
    }
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}
