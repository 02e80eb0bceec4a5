//! Files on simulated time, before a table in memory: the disk is a real one.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::item::{Item, Key, Value, attr};
use crate::reader::Settings;
use crate::secret::Secret;
use crate::store::MemoryStore;
use crate::time::testing::Simulated;

struct World {
    store: MemoryStore,
    clock: Arc<Simulated>,
    folder: TempDir,
    missing: Arc<AtomicUsize>,
    drain: CancellationToken,
}

impl World {
    /// One file, `token`, is kept.
    fn new(form: Form) -> Self {
        let (store, clock) = (MemoryStore::new(), Arc::new(Simulated::new()));
        let folder = tempfile::tempdir().expect("a folder");
        let overlaps = Box::new(|_: &str| None);
        let vitals = Arc::clone(store.vitals());
        let reader =
            Reader::new(store.clone(), vitals, Arc::clone(&clock) as _, overlaps, Settings::default());
        let file = File {
            name: "token".into(),
            client: acme(),
            path: folder.path().join("token"),
            form,
            mode: 0o600,
            group: None,
            on_change: Vec::new(),
            timeout: LOOK,
        };
        let sink =
            Sink::open(reader.clone(), Arc::clone(&clock) as _, vec![file], Vec::new()).expect("a place");
        let (missing, drain) = (Arc::clone(&sink.missing), CancellationToken::new());
        tokio::spawn(async move { reader.keep().await });
        tokio::spawn(sink.run(drain.clone()));
        Self { store, clock, folder, missing, drain }
    }

    fn put(&self, generation: i64, text: &str, life: Duration) {
        let now = self.clock.now();
        let item = Item::default()
            .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new(text)))
            .with(attr::EXPIRES_AT, Value::N(now.plus(life).as_secs()))
            .with(attr::REFRESH_AT, Value::N(now.plus(life / 2).as_millis()))
            .with(attr::TOK_GEN, Value::N(generation));
        self.store.put_raw(&Key::partition(&acme()), "TOKEN#ACCESS", item);
    }

    async fn pass(&self, secs: u64) {
        self.clock.sleep(Duration::from_secs(secs)).await;
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    fn holds(&self, text: &str) -> bool {
        fs::read_to_string(self.path()).is_ok_and(|content| content.contains(text))
    }

    fn missing(&self) -> usize {
        self.missing.load(Ordering::Relaxed)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

fn acme() -> ClientId {
    ClientId::new("acme").expect("an id")
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_goes_also_where_its_successor_cannot_be_written() {
    let world = World::new(Form::Env);
    world.put(1, "first", Duration::from_secs(100));
    world.pass(10).await;
    assert!(world.holds("first") && world.missing() == 0);
    world.put(2, "no variable can hold this", Duration::from_secs(3600));
    world.pass(85).await;
    assert!(world.holds("first"), "it is good still");
    world.pass(7).await;
    assert!(!world.path().exists(), "it has expired");
    assert_eq!(world.missing(), 1);
    world.put(3, "third", Duration::from_secs(3600));
    world.pass(400).await;
    assert!(world.holds("third") && world.missing() == 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_is_tried_again_and_goes_as_soon_as_it_can() {
    let world = World::new(Form::Token);
    world.put(1, "first", Duration::from_secs(100));
    world.pass(10).await;
    assert!(world.holds("first"));
    replace_by_link(&world.path());
    world.pass(120).await;
    assert!(world.path().is_symlink(), "what is not ours is left alone");
    fs::remove_file(world.path()).expect("a link");
    world.pass(60).await;
    assert_eq!(world.missing(), 1);
    world.put(2, "second", Duration::from_secs(3600));
    world.pass(60).await;
    assert!(world.holds("second") && world.missing() == 0);
}

fn replace_by_link(path: &Path) {
    fs::remove_file(path).expect("a file");
    std::os::unix::fs::symlink("elsewhere", path).expect("a link");
}
