//! A secret in a file beside the daemon.
//!
//! Links are followed, since that is how Kubernetes turns a folder of secrets over (`secret -> ..data/secret`, `..data ->
//! ..2026_01_31`); but what they lead to must lie below the folder that the configuration names, and must not be one of this
//! program's own files, wherever those lie. Both are asked of the file that was opened, and not of its name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{Failure, LONGEST};
use crate::secret::Secret;

/// Reads at once: a file system that hangs keeps so many threads and no more.
const AT_ONCE: usize = 4;

/// The files of this machine, but for this program's own.
pub(super) struct Files {
    own: Arc<[PathBuf]>,
    readers: Arc<Semaphore>,
}

impl Files {
    pub(super) fn new(own: Vec<PathBuf>) -> Self {
        Self { own: own.into(), readers: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// What stands there, without one newline at its end. Waits on a thread of its own.
    pub(super) async fn read(&self, path: &str, below: Option<&str>) -> Result<Secret, Failure> {
        let ended = |_| Failure::NoAnswer("the read has ended early".into());
        // Taken along: who gives up waiting does not end the read.
        let reader = Arc::clone(&self.readers)
            .acquire_owned()
            .await
            .map_err(|_| Failure::NoAnswer("files are not read any more".into()))?;
        let (path, below, own) = (path.to_owned(), below.map(str::to_owned), Arc::clone(&self.own));
        let reading = tokio::task::spawn_blocking(move || {
            let read = read_now(Path::new(&path), below.as_deref().map(Path::new), &own);
            drop(reader);
            read
        });
        reading.await.unwrap_or_else(|error| Err(ended(error)))
    }
}

fn read_now(path: &Path, below: Option<&Path>, own: &[PathBuf]) -> Result<Secret, Failure> {
    let refuse = |why: &str| Failure::Refused(why.to_owned());
    let below = below.ok_or_else(|| refuse("no folder is named that it lies in"))?;
    let (below, found) = (below.canonicalize().map_err(failed)?, path.canonicalize().map_err(failed)?);
    let Ok(inside) = found.strip_prefix(&below) else {
        return Err(refuse("is a link that leads out of the folder that secrets.allow names"));
    };
    let file = open(&below, inside).map_err(failed)?;
    let opened = file.metadata().map_err(failed)?;
    if !opened.is_file() {
        return Err(refuse("is no regular file"));
    }
    let same = |own: &PathBuf| {
        fs::metadata(own).is_ok_and(|own| (own.dev(), own.ino()) == (opened.dev(), opened.ino()))
    };
    if own.iter().any(same) {
        return Err(refuse("is a key, a configuration or a credential of this program's own"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    // One byte more than is allowed, to tell.
    file.take(LONGEST as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > LONGEST {
        return Err(refuse("holds more than 64 KB, which is no secret"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| refuse("is no UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}

/// Links were followed before: by now there is none below the folder, or somebody has just put one there. A pipe is opened
/// without waiting for whoever writes to it.
#[cfg(target_os = "linux")]
fn open(below: &Path, inside: &Path) -> io::Result<File> {
    use rustix::fs::{ResolveFlags, openat2};
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(below, folder, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(&folder, inside, FLAGS, Mode::empty(), resolve) {
        // Linux before 5.6, or a sandbox that does not know the call.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => open_last(below, inside),
        opened => Ok(opened?.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn open(below: &Path, inside: &Path) -> io::Result<File> {
    open_last(below, inside)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Only the last name is held not to be a link.
fn open_last(below: &Path, inside: &Path) -> io::Result<File> {
    Ok(rustix::fs::open(below.join(inside), FLAGS | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// What is not there, or may not be read, is an answer; everything else is none.
fn failed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory => {
            Failure::Refused(error.to_string())
        }
        _ => Failure::NoAnswer(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(path: &Path, below: &Path) -> Result<String, String> {
        match read_now(path, Some(below), &[]) {
            Ok(secret) => Ok(secret.expose().to_owned()),
            Err(Failure::Refused(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_newline_at_the_end_is_no_part_of_a_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        for (text, secret) in [("s\n", "s"), ("s\r\n", "s"), ("s\n\n", "s\n"), (" s ", " s ")] {
            fs::write(&file, text).expect("written");
            assert_eq!(read(&file, folder.path()), Ok(secret.to_owned()));
        }
    }

    #[test]
    fn links_are_followed_inside_the_folder_and_not_out_of_it() {
        let root = tempfile::tempdir().expect("a folder");
        let (inside, outside) = (root.path().join("secrets"), root.path().join("outside"));
        let version = inside.join("..2026_01_31");
        fs::create_dir_all(&version).expect("a folder");
        fs::create_dir(&outside).expect("a folder");
        fs::write(version.join("acme"), "good").expect("written");
        fs::write(outside.join("acme"), "canary").expect("written");
        symlink("..2026_01_31", inside.join("..data")).expect("a link");
        symlink("..data/acme", inside.join("acme")).expect("a link");
        symlink(&outside, inside.join("away")).expect("a link");
        symlink(outside.join("acme"), inside.join("there")).expect("a link");
        assert_eq!(read(&inside.join("acme"), &inside), Ok("good".into()));
        for escape in [inside.join("away/acme"), inside.join("there")] {
            let why = read(&escape, &inside).expect_err("it leads out");
            assert!(why.contains("leads out"), "{why}");
        }
        // A folder whose name begins as the allowed one's is another folder.
        let beside = root.path().join("secrets2");
        fs::create_dir(&beside).expect("a folder");
        fs::write(beside.join("acme"), "canary").expect("written");
        symlink(beside.join("acme"), inside.join("beside")).expect("a link");
        assert!(read(&inside.join("beside"), &inside).is_err());
    }

    #[test]
    fn this_programs_own_files_are_nobodys_client_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("sealing.key");
        fs::write(&key, "canary").expect("written");
        symlink("sealing.key", folder.path().join("acme")).expect("a link");
        fs::hard_link(&key, folder.path().join("twin")).expect("a link");
        let own = [folder.path().join("absent"), key];
        for name in ["sealing.key", "acme", "twin"] {
            let read = read_now(&folder.path().join(name), Some(folder.path()), &own);
            assert!(matches!(&read, Err(Failure::Refused(why)) if why.contains("own")), "{name}: {read:?}");
        }
    }

    /// Between the look and the opening somebody has put a link, or a pipe, there.
    #[test]
    fn what_is_opened_is_no_link_and_waits_for_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("real")).expect("a folder");
        fs::write(folder.path().join("real/acme"), "canary").expect("written");
        symlink("real", folder.path().join("link")).expect("a link");
        symlink("real/acme", folder.path().join("acme")).expect("a link");
        assert!(open(folder.path(), Path::new("real/acme")).is_ok());
        assert!(open_last(folder.path(), Path::new("real/acme")).is_ok());
        assert!(open(folder.path(), Path::new("acme")).is_err());
        assert!(open_last(folder.path(), Path::new("acme")).is_err());
        if cfg!(target_os = "linux") {
            assert!(open(folder.path(), Path::new("link/acme")).is_err());
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("pipe"), Mode::from_raw_mode(0o600))
            .expect("a pipe");
        assert!(read(&folder.path().join("pipe"), folder.path()).is_err());
    }

    #[test]
    fn what_is_no_secret_in_a_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("long"), "x".repeat(LONGEST + 1)).expect("written");
        fs::write(at("binary"), [0xff, 0xfe]).expect("written");
        fs::create_dir(at("folder")).expect("a folder");
        for name in ["long", "binary", "folder", "absent", "long/below"] {
            assert!(read(&at(name), folder.path()).is_err(), "{name}");
        }
    }
}
