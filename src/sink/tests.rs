//! Files on simulated time, before a table in memory: the disk is a real one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
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
        let file = file(&folder.path().join("token"), form);
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

fn file(path: &Path, form: Form) -> File {
    File {
        name: "token".into(),
        client: acme(),
        path: path.to_owned(),
        form,
        mode: 0o600,
        group: None,
        on_change: Vec::new(),
        timeout: LOOK,
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

/// An earlier process has written it, and told nobody; then somebody has changed its permissions.
#[tokio::test]
async fn what_was_not_told_is_told_by_its_own_generation_whatever_its_permissions() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = File { on_change: vec!["true".into()], ..file(&folder.path().join("token"), Form::Token) };
    let (store, clock) = (MemoryStore::new(), Arc::new(Simulated::new()));
    let place = Place::open(&file.path, (0o600, None), Arc::new(Entropy::from_seed(1))).expect("a place");
    let expires_at = clock.now().plus(Duration::from_secs(3600));
    let note = Note {
        client: "acme".into(),
        form: "token".into(),
        generation: Gen(3),
        expires_at,
        sha256: String::new(),
        told: false,
    };
    place.write("one", note).expect("written");
    fs::set_permissions(&file.path, fs::Permissions::from_mode(0o644)).expect("it is ours");

    let (overlaps, vitals) = (Box::new(|_: &str| None), Arc::clone(store.vitals()));
    let (changes, told) = watch::channel(None);
    let mut keeper = Keeper {
        reader: Reader::new(store, vitals, clock, overlaps, Settings::default()),
        file,
        place: Arc::new(place),
        held: None,
        writes: Tries::default(),
        removals: Tries::default(),
        changes,
        missing: Arc::default(),
    };
    keeper.missing.store(1, Ordering::Relaxed);
    keeper.adopt().await;
    let change = told.borrow().expect("it is told");
    assert_eq!(change, Change::Written(Gen(3), expires_at));
    let held = keeper.held.expect("it is known");
    let same = News::Good(Gen(3), expires_at);
    assert_eq!(decision::decide(Some(&held), &same, keeper.reader.now()), Step::Write, "it is written anew");
    keeper.place.told(change).expect("noted");
    assert!(keeper.place.found("acme", "token").expect("ours").note.told);
}
