//! Records as files: written beside their place, synced, and renamed into it, readable by their owner alone.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{Name, SpillError, folder};
use crate::client::ClientId;

/// A directory on this machine. It is made when it is first needed.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// At this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes it, and writes into it, so that what stands in the way is known before it is needed.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn probe(&self) -> Result<(), SpillError> {
        let root = self.0.clone();
        self.blocking(move || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
            let probe = root.join(format!(".probe-{}", std::process::id()));
            fs::write(&probe, [])?;
            fs::remove_file(probe)
        })
        .await
    }

    pub(super) async fn put(&self, name: &Name, sealed: &str) -> Result<(), SpillError> {
        let (path, sealed) = (self.0.join(name.path()), sealed.to_owned());
        self.blocking(move || write(&path, &sealed)).await
    }

    pub(super) async fn list(&self, client: Option<&ClientId>) -> Result<Vec<Name>, SpillError> {
        let (root, only) = (self.0.clone(), client.map(folder));
        self.blocking(move || list(&root, only.as_deref())).await
    }

    pub(super) async fn fetch(&self, name: &Name) -> Result<Option<String>, SpillError> {
        let path = self.0.join(name.path());
        self.blocking(move || absent_is_none(fs::read_to_string(path))).await
    }

    pub(super) async fn remove(&self, name: &Name) -> Result<(), SpillError> {
        let path = self.0.join(name.path());
        self.blocking(move || {
            absent_is_none(fs::remove_file(&path))?;
            // Where it was the client's last. Another may just be put there: then it stays.
            if let Some(folder) = path.parent() {
                drop(fs::remove_dir(folder));
            }
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, SpillError> {
        let failed = |error: &dyn fmt::Display| SpillError::Place(format!("{self}: {error}"));
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| failed(&error)),
            Err(error) => Err(failed(&error)),
        }
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spill.directory = {:?}", self.0.display())
    }
}

fn write(path: &Path, sealed: &str) -> io::Result<()> {
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    // Removing another record of this client may just take the folder away.
    for _ in 0..3 {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        match write_into(folder, path, sealed) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => return done,
        }
    }
    Err(ErrorKind::NotFound.into())
}

fn write_into(folder: &Path, path: &Path, sealed: &str) -> io::Result<()> {
    let half = path.with_extension("part");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    file.write_all(sealed.as_bytes())?;
    file.sync_all()?;
    fs::rename(&half, path)?;
    File::open(folder)?.sync_all()?;
    if let Some(root) = folder.parent() {
        File::open(root)?.sync_all()?;
    }
    Ok(())
}

fn list(root: &Path, only: Option<&str>) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    let folders = match only {
        Some(folder) => vec![root.join(folder)],
        None if root.exists() && !root.is_dir() => return Err(ErrorKind::NotADirectory.into()),
        None => entries(root)?,
    };
    for folder in folders {
        // What is not ours may be unreadable, as the `lost+found` of a volume is.
        let client = folder.file_name().and_then(|name| name.to_str());
        let Some(client) = client.filter(|client| Name::client_of(client).is_some()) else { continue };
        for file in entries(&folder)? {
            let file = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            names.extend(Name::parse(&format!("{client}/{file}")));
        }
    }
    names.sort();
    Ok(names)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn absent_is_none<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::record::Gen;

    fn name(client: &str, generation: i64) -> Name {
        Name { client: ClientId::new(client).expect("an id"), generation: Gen(generation) }
    }

    #[tokio::test]
    async fn records_come_back_until_they_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Directory::new(folder.path().join("not/made/yet"));
        assert_eq!(place.list(None).await, Ok(vec![]));
        for (name, text) in [(name("a", 1), "one"), (name("a", 2), "two"), (name("b", 1), "three")] {
            place.put(&name, text).await.expect("put");
        }
        assert_eq!(place.list(None).await.expect("listed").len(), 3);
        assert_eq!(place.list(Some(&name("a", 0).client)).await, Ok(vec![name("a", 1), name("a", 2)]));
        assert_eq!(place.fetch(&name("a", 2)).await, Ok(Some("two".into())));
        assert_eq!(place.fetch(&name("a", 3)).await, Ok(None));
        for _ in 0..2 {
            place.remove(&name("b", 1)).await.expect("removed, or not there");
        }
        assert_eq!(place.list(None).await, Ok(vec![name("a", 1), name("a", 2)]));
    }

    #[tokio::test]
    async fn nobody_else_may_read_them_and_foreign_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Directory::new(folder.path().join("spill"));
        place.put(&name("a", 1), "one").await.expect("put");
        fs::write(folder.path().join("spill/README"), "not ours").expect("written");
        fs::create_dir(folder.path().join("spill/lost+found")).expect("made");
        let shut = fs::Permissions::from_mode(0o000);
        fs::set_permissions(folder.path().join("spill/lost+found"), shut).expect("shut");
        let path = folder.path().join("spill").join(name("a", 1).path());
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        assert_eq!(place.list(None).await, Ok(vec![name("a", 1)]));
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_written_says_which() {
        let folder = tempfile::tempdir().expect("a folder");
        Directory::new(folder.path().join("made")).probe().await.expect("a folder can be made");
        assert_eq!(fs::read_dir(folder.path().join("made")).expect("it is there").count(), 0);
        let file = folder.path().join("file");
        fs::write(&file, "in the way").expect("written");
        assert!(
            Directory::new(&file).probe().await.is_err() && Directory::new(&file).list(None).await.is_err()
        );
        let error = Directory::new(&file).put(&name("a", 1), "one").await.expect_err("a file is no folder");
        assert!(error.to_string().contains("spill.directory"), "{error}");
    }
}
