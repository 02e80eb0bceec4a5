//! A file at its path: changed in one step, or not at all.
//!
//! The new content is written beside it, under a name that nobody else has, with its permissions before its first byte,
//! and renamed over it. Renaming follows no link: what stands at the path is replaced, never what it points to. A link is
//! refused all the same, since whoever made it expects otherwise.
//!
//! Beside the file stands a note of which token it holds, so that the next process knows until when what it finds is good,
//! and whether that was told. The note of a file that was removed stays until the removal is told.
//!
//! File and note are two renames. The note of what is to come is therefore laid ready before the file is renamed, under
//! another name, and takes the old note's place after that: wherever a process is killed, one of the two vouches for
//! what stands in the file.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::hook::Change;
use crate::bounded;
use crate::entropy::Entropy;
use crate::record::Gen;
use crate::time::Timestamp;

/// What an unfinished file's name has besides its own.
const PART: &str = ".part-";
/// ... that of a note,
const NOTE: &str = ".perennial";
/// ... and that of the note of what is about to be written.
const NEXT: &str = ".perennial-next";
/// No file of ours is larger, in bytes: an item of the table is of 400 KB at most.
const LARGEST: u64 = 4 << 20;

/// Why a file cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The path ends in no file's name.
    #[error("this is no path of a file")]
    NoName,
    /// Something else than a file is there.
    #[error(
        "there is something that is no regular file: a symbolic link, perhaps; remove it, or name what it leads to"
    )]
    NotAFile,
    /// Its folder is missing, or cannot be written to.
    #[error("its folder must be there, and the agent's user must be able to write to it: {0}")]
    Folder(io::Error),
    /// It cannot be given to its group.
    #[error("it cannot be given to group {0}: the agent's user has to be a member of it, see `group`: {1}")]
    Group(u32, io::Error),
    /// Writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Which token a file holds. No secret: of a token's digest nobody can make the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) client: String,
    pub(super) form: String,
    pub(super) generation: Gen,
    pub(super) expires_at: Timestamp,
    /// Of the file's content, in hexadecimal.
    pub(super) sha256: String,
    /// Whether nobody has to be told of it any more.
    pub(super) told: bool,
}

/// What an earlier process has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) note: Note,
    /// Whether it has the permissions and the group that it should have.
    pub(super) is_as_wanted: bool,
}

/// Where a file is kept.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    folder: PathBuf,
    name: OsString,
    mode: u32,
    group: Option<u32>,
    entropy: Arc<Entropy>,
    /// File and note change together.
    changing: Mutex<()>,
}

impl Place {
    /// Tries whether a file can be written here, and sweeps away what was never finished.
    pub(super) fn open(
        path: &Path,
        (mode, group): (u32, Option<u32>),
        entropy: Arc<Entropy>,
    ) -> Result<Self, PlaceError> {
        let name = path.file_name().ok_or(PlaceError::NoName)?.to_owned();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let place =
            Self { path: path.to_owned(), folder, name, mode, group, entropy, changing: Mutex::default() };
        place.check()?;
        place.sweep().map_err(PlaceError::Folder)?;
        let probe = place.part();
        drop(place.create(&probe, mode).map_err(|error| match error {
            PlaceError::Io(error) => PlaceError::Folder(error),
            other => other,
        })?);
        fs::remove_file(&probe).map_err(PlaceError::Folder)?;
        Ok(place)
    }

    /// Replaces the file. Its note's digest is filled in.
    pub(super) fn write(&self, content: &str, note: Note) -> Result<(), PlaceError> {
        let _alone = self.alone();
        self.check()?;
        self.begin(content, note)?;
        let replaced = self.replace(&self.path, self.mode, content.as_bytes());
        replaced.inspect_err(|_| drop(fs::remove_file(self.next())))?;
        // Whoever notes that it was told would look for its note in vain.
        self.finish().inspect_err(|_| drop(fs::remove_file(&self.path)))
    }

    /// Removes the file, and its note where nobody `is_to_be_told`. They may be gone already.
    pub(super) fn remove(&self, is_to_be_told: bool) -> Result<(), PlaceError> {
        let _alone = self.alone();
        self.check()?;
        absent_is_fine(fs::remove_file(&self.path))?;
        if !is_to_be_told {
            absent_is_fine(fs::remove_file(self.note()))?;
        }
        self.sync()
    }

    /// Notes that a change was told, unless the file has changed again.
    pub(super) fn told(&self, change: Change) -> Result<(), PlaceError> {
        let _alone = self.alone();
        match (change, self.noted()) {
            (Change::Removed, Some(_)) if !self.is_there() => absent_is_fine(fs::remove_file(self.note()))?,
            (Change::Written(generation, expires_at), Some(note))
                if !note.told && (note.generation, note.expires_at) == (generation, expires_at) =>
            {
                self.write_note(&self.note(), &Note { told: true, ..note })?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether an earlier process has removed the file, or somebody else has, and nobody was told.
    pub(super) fn is_gone_untold(&self) -> bool {
        self.noted().is_some() && !self.is_there()
    }

    /// What an earlier process has left, where its note vouches for it. What was kept for another client, or in another form, is
    /// removed.
    pub(super) fn found(&self, client: &str, form: &str) -> Option<Found> {
        self.check().ok()?;
        let content = bounded::read(&self.path, LARGEST).ok()?;
        let found = fs::metadata(&self.path).ok()?;
        let note = self.vouching(&digest(&content))?;
        // Ours, and another client's or of another form: whoever reads it would take it for what it is not.
        if note.client != client || note.form != form {
            drop(self.remove(false));
            return None;
        }
        let is_as_wanted = found.permissions().mode() & 0o7777 == self.mode
            && self.group.is_none_or(|group| found.gid() == group);
        Some(Found { note, is_as_wanted })
    }

    /// Whether anything stands there.
    pub(super) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok()
    }

    /// Nothing is left half done by a panic that the next change would not mend.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The note of what is about to be written, on the disk before anything of the file is.
    fn begin(&self, content: &str, note: Note) -> Result<(), PlaceError> {
        let note = Note { sha256: digest(content.as_bytes()), ..note };
        self.write_note(&self.next(), &note)
    }

    fn finish(&self) -> Result<(), PlaceError> {
        fs::rename(self.next(), self.note())?;
        self.sync()
    }

    /// The note of what stands in the file. Where a process was killed on its way, its change is taken to its end, or back.
    fn vouching(&self, sha256: &str) -> Option<Note> {
        let is_of = |note: &Note| note.sha256 == sha256;
        if let Some(note) = read_note(&self.next()).filter(is_of) {
            // Where it does not take its place now, it does so with the next start.
            drop(self.finish());
            return Some(note);
        }
        // One that stays vouches for nothing, and gives way to the next.
        drop(fs::remove_file(self.next()));
        self.noted().filter(is_of)
    }

    fn noted(&self) -> Option<Note> {
        read_note(&self.note())
    }

    fn write_note(&self, path: &Path, note: &Note) -> Result<(), PlaceError> {
        self.replace(path, 0o600, note.to_text().as_bytes())?;
        self.sync()
    }

    fn sync(&self) -> Result<(), PlaceError> {
        Ok(File::open(&self.folder)?.sync_all()?)
    }

    fn check(&self) -> Result<(), PlaceError> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if !found.is_file() => Err(PlaceError::NotAFile),
            _ => Ok(()),
        }
    }

    fn replace(&self, path: &Path, mode: u32, content: &[u8]) -> Result<(), PlaceError> {
        let part = self.part();
        let written = self.create(&part, mode).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()?;
            Ok(fs::rename(&part, path)?)
        });
        written.inspect_err(|_| drop(fs::remove_file(&part)))
    }

    /// An empty file that is ours alone, and then whose it is to be.
    fn create(&self, path: &Path, mode: u32) -> Result<File, PlaceError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let settle = || {
            if let Some(group) = self.group {
                fchown(&file, None, Some(group)).map_err(|error| PlaceError::Group(group, error))?;
            }
            // The mask of the process has no say.
            Ok(file.set_permissions(Permissions::from_mode(mode))?)
        };
        settle().inspect_err(|_: &PlaceError| drop(fs::remove_file(path)))?;
        Ok(file)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(suffix);
        self.folder.join(name)
    }

    fn part(&self) -> PathBuf {
        self.beside(&format!("{PART}{}", self.entropy.nonce()))
    }

    fn note(&self) -> PathBuf {
        self.beside(NOTE)
    }

    fn next(&self) -> PathBuf {
        self.beside(NEXT)
    }

    /// A process that was killed may have left a part, with a token in it.
    fn sweep(&self) -> io::Result<()> {
        let ours = self.beside(PART);
        let ours = ours.file_name().unwrap_or_default().as_encoded_bytes();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(ours) {
                absent_is_fine(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }
}

impl Note {
    fn to_text(&self) -> String {
        let note = json!({
            "client": self.client,
            "format": self.form,
            "generation": self.generation.0,
            "expires_at": self.expires_at.as_secs(),
            "sha256": self.sha256,
            "told": self.told,
        });
        format!("{note}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let note: Value = serde_json::from_str(text).ok()?;
        let word = |name: &str| note[name].as_str().map(str::to_owned);
        Some(Self {
            client: word("client")?,
            form: word("format")?,
            generation: Gen(note["generation"].as_i64()?),
            expires_at: Timestamp::from_secs(note["expires_at"].as_i64()?),
            sha256: word("sha256")?,
            told: note["told"].as_bool()?,
        })
    }
}

fn read_note(path: &Path) -> Option<Note> {
    Note::parse(&fs::read_to_string(path).ok()?)
}

fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &Path, mode: u32) -> Result<Place, PlaceError> {
        Place::open(path, (mode, None), Arc::new(Entropy::from_seed(1)))
    }

    fn note() -> Note {
        let (client, form) = ("acme".to_owned(), "token".to_owned());
        let (generation, expires_at) = (Gen(3), Timestamp::from_secs(9));
        Note { client, form, generation, expires_at, sha256: String::new(), told: false }
    }

    #[test]
    fn a_file_has_its_permissions_and_its_note_vouches_for_it_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let place = place(&path, 0o640).expect("a place");
        assert_eq!(place.found("acme", "token"), None);
        place.write("one", note()).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "one");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o7777, 0o640);
        let found = |place: &Place| {
            let Found { note, is_as_wanted } = place.found("acme", "token").expect("ours");
            (note.generation, note.expires_at, is_as_wanted)
        };
        assert_eq!(found(&place), (Gen(3), Timestamp::from_secs(9), true));
        fs::write(&path, "two").expect("written");
        assert_eq!(place.found("acme", "token"), None, "somebody else wrote it");
        assert!(path.exists(), "and it is theirs");
        // Kept for another client, or in another form, it would be taken for what it is not.
        for (client, form) in [("other", "token"), ("acme", "json")] {
            place.write("one", note()).expect("written");
            assert_eq!(place.found(client, form), None);
            assert!(!path.exists(), "{client} {form}");
        }
        place.write("one", note()).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
        assert_eq!(found(&place), (Gen(3), Timestamp::from_secs(9), false), "good for as long as it was");
        place.remove(false).expect("removed");
        place.remove(false).expect("removed already");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn what_was_not_told_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let place = place(&path, 0o600).expect("a place");
        let is_told = || place.found("acme", "token").expect("ours").note.told;
        place.write("one", note()).expect("written");
        place.told(Change::Written(Gen(2), Timestamp::from_secs(9))).expect("noted");
        place.told(Change::Removed).expect("noted");
        assert!(!is_told(), "that was an earlier change");
        place.told(Change::Written(Gen(3), Timestamp::from_secs(9))).expect("noted");
        assert!(is_told() && !place.is_gone_untold());
        place.remove(true).expect("removed");
        assert!(place.is_gone_untold() && !path.exists());
        place.told(Change::Removed).expect("noted");
        assert!(!place.is_gone_untold());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    /// Of the second token's three steps so many were made.
    #[test]
    fn wherever_a_process_is_killed_the_next_one_knows_what_stands_in_the_file() {
        for (steps, generation) in [(0, 3), (1, 3), (2, 4), (3, 4)] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("token");
            let killed = place(&path, 0o600).expect("a place");
            killed.write("one", note()).expect("written");
            let second = Note { generation: Gen(4), ..note() };
            type Step<'a> = &'a dyn Fn() -> Result<(), PlaceError>;
            let (begin, replace, finish): (Step<'_>, Step<'_>, Step<'_>) =
                (&|| killed.begin("two", second.clone()), &|| killed.replace(&path, 0o600, b"two"), &|| {
                    killed.finish()
                });
            [begin, replace, finish].iter().take(steps).for_each(|step| step().expect("it works"));
            let next = place(&path, 0o600).expect("a place");
            assert!(!next.is_gone_untold(), "{steps}");
            let found = next.found("acme", "token").expect("it is known");
            assert_eq!((found.note.generation, found.note.told), (Gen(generation), false), "{steps}");
            next.told(Change::Written(found.note.generation, found.note.expires_at)).expect("noted");
            assert!(next.found("acme", "token").expect("ours").note.told, "{steps}");
            assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2, "{steps}");
        }
    }

    #[test]
    fn a_first_token_that_was_never_written_is_not_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        place(&path, 0o600).expect("a place").begin("one", note()).expect("begun");
        let next = place(&path, 0o600).expect("a place");
        assert_eq!((next.found("acme", "token"), next.is_gone_untold()), (None, false));
        next.write("one", note()).expect("written");
        assert_eq!(next.found("acme", "token").expect("ours").note.generation, Gen(3));
    }

    #[test]
    fn a_file_of_another_group_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let of = |group| Place::open(&path, (0o600, group), Arc::new(Entropy::from_seed(1)));
        let place = of(None).expect("a place");
        place.write("one", note()).expect("written");
        let group = fs::metadata(&path).expect("a file").gid();
        let own = of(Some(group)).expect("our own group");
        let is_as_wanted = |place: &Place| place.found("acme", "token").expect("ours").is_as_wanted;
        assert!(is_as_wanted(&own));
        // Nobody who is not root can give a file to another group: it is looked at as if that had been asked for.
        let other = Place { group: Some(group + 1), ..own };
        assert!(!is_as_wanted(&other));
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        let ours = place(&link, 0o600).expect("nothing is there yet");
        fs::write(&target, "precious").expect("written");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        assert!(matches!(place(&link, 0o600), Err(PlaceError::NotAFile)));
        assert!(matches!(ours.write("token", note()), Err(PlaceError::NotAFile)));
        assert!(matches!(ours.remove(false), Err(PlaceError::NotAFile)));
        assert_eq!(fs::read_to_string(&target).expect("a file"), "precious");
        assert!(matches!(place(folder.path(), 0o600), Err(PlaceError::NotAFile)));
        let missing = folder.path().join("missing/token");
        assert!(matches!(place(&missing, 0o600), Err(PlaceError::Folder(_))));
        assert!(matches!(place(Path::new("/"), 0o600), Err(PlaceError::NoName)));
    }

    #[test]
    fn what_a_killed_process_left_unfinished_is_swept_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let (part, other) = (folder.path().join(".token.part-00ff"), folder.path().join(".tok.part-00ff"));
        fs::write(&part, "half a tok").expect("written");
        fs::write(&other, "another file's").expect("written");
        place(&folder.path().join("token"), 0o600).expect("a place");
        assert!(!part.exists() && other.exists());
    }
}
