//! A file at its path: changed in one step, or not at all.
//!
//! The new content is written beside it, under a name that nobody else has, with its permissions before its first byte,
//! and renamed over it. Renaming follows no link: what stands at the path is replaced, never what it points to. A link is
//! refused all the same, since whoever made it expects otherwise.
//!
//! Beside the file stands a note of which token it holds, so that the next process knows until when what it finds is good,
//! and whether that was told. The note of a file that was removed stays until the removal is told.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::hook::Change;
use crate::entropy::Entropy;
use crate::record::Gen;
use crate::time::Timestamp;

/// What an unfinished file's name has besides its own.
const PART: &str = ".part-";
/// ... and that of a note.
const NOTE: &str = ".perennial";
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
        self.replace(&self.path, self.mode, content.as_bytes())?;
        let note = Note { sha256: digest(content.as_bytes()), ..note };
        // Nobody would know until when it is good.
        self.write_note(&note).inspect_err(|_| drop(fs::remove_file(&self.path)))?;
        Ok(())
    }

    /// Removes the file, and its note where nobody `is_to_be_told`. They may be gone already.
    pub(super) fn remove(&self, is_to_be_told: bool) -> Result<(), PlaceError> {
        let _alone = self.alone();
        self.check()?;
        absent_is_fine(fs::remove_file(&self.path))?;
        if !is_to_be_told {
            absent_is_fine(fs::remove_file(self.note()))?;
        }
        File::open(&self.folder)?.sync_all()?;
        Ok(())
    }

    /// Notes that a change was told, unless the file has changed again.
    pub(super) fn told(&self, change: Change) -> Result<(), PlaceError> {
        let _alone = self.alone();
        match (change, self.noted()) {
            (Change::Removed, Some(_)) if !self.is_there() => absent_is_fine(fs::remove_file(self.note()))?,
            (Change::Written(generation, expires_at), Some(note))
                if !note.told && (note.generation, note.expires_at) == (generation, expires_at) =>
            {
                self.write_note(&Note { told: true, ..note })?;
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
    /// removed; what has other permissions than it should counts as older than it is.
    pub(super) fn found(&self, client: &str, form: &str) -> Option<Note> {
        self.check().ok()?;
        let note = self.noted()?;
        let found = fs::metadata(&self.path).ok().filter(|found| found.len() <= LARGEST)?;
        let content = zeroize::Zeroizing::new(fs::read(&self.path).ok()?);
        if note.sha256 != digest(&content) {
            return None;
        }
        // Ours, and another client's or of another form: whoever reads it would take it for what it is not.
        if note.client != client || note.form != form {
            drop(self.remove(false));
            return None;
        }
        let is_as_wanted = found.permissions().mode() & 0o7777 == self.mode
            && self.group.is_none_or(|group| found.gid() == group);
        // Otherwise good for as long as it was, and older than any token that comes.
        let generation =
            if is_as_wanted { note.generation } else { Gen(note.generation.0.saturating_sub(1)) };
        Some(Note { generation, ..note })
    }

    /// Whether anything stands there.
    pub(super) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok()
    }

    /// Nothing is left half done by a panic that the next change would not mend.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted(&self) -> Option<Note> {
        Note::parse(&fs::read_to_string(self.note()).ok()?)
    }

    fn write_note(&self, note: &Note) -> Result<(), PlaceError> {
        self.replace(&self.note(), 0o600, note.to_text().as_bytes())?;
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
        let found = place.found("acme", "token").expect("ours");
        assert_eq!((found.generation, found.expires_at), (Gen(3), Timestamp::from_secs(9)));
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
        let found = place.found("acme", "token").expect("ours, and good for as long as it was");
        assert_eq!(
            (found.generation, found.expires_at),
            (Gen(2), Timestamp::from_secs(9)),
            "any token replaces it"
        );
        place.remove(false).expect("removed");
        place.remove(false).expect("removed already");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn what_was_not_told_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let place = place(&path, 0o600).expect("a place");
        let is_told = || place.found("acme", "token").expect("ours").told;
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

    #[test]
    fn a_file_of_another_group_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let of = |group| Place::open(&path, (0o600, group), Arc::new(Entropy::from_seed(1)));
        let place = of(None).expect("a place");
        place.write("one", note()).expect("written");
        let group = fs::metadata(&path).expect("a file").gid();
        let own = of(Some(group)).expect("our own group");
        let generation = |place: &Place| place.found("acme", "token").expect("ours").generation;
        assert_eq!(generation(&own), Gen(3));
        // Nobody who is not root can give a file to another group: it is looked at as if that had been asked for.
        let other = Place { group: Some(group + 1), ..own };
        assert_eq!(generation(&other), Gen(2), "any token replaces it");
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
