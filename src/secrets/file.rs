//! A secret in a file beside the daemon.
//!
//! Links are followed, since that is how Kubernetes turns a folder of secrets over (`secret -> ..data/secret`, `..data ->
//! ..2026_01_31`); but what they lead to must lie below the folder that the configuration names.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::{Failure, LONGEST};
use crate::secret::Secret;

/// What stands there, without one newline at its end. Waits on a thread of its own.
pub(super) async fn read(path: &str, below: Option<&str>) -> Result<Secret, Failure> {
    let (path, below) = (path.to_owned(), below.map(str::to_owned));
    let reading =
        tokio::task::spawn_blocking(move || read_now(Path::new(&path), below.as_deref().map(Path::new)));
    reading.await.unwrap_or_else(|_| Err(Failure::NoAnswer("the read has ended early".into())))
}

fn read_now(path: &Path, below: Option<&Path>) -> Result<Secret, Failure> {
    let refuse = |why: &str| Failure::Refused(why.to_owned());
    let below = below.ok_or_else(|| refuse("no folder is named that it lies in"))?;
    let (below, found) = (below.canonicalize().map_err(failed)?, path.canonicalize().map_err(failed)?);
    if !found.starts_with(&below) {
        return Err(refuse("is a link that leads out of the folder that secrets.allow names"));
    }
    // Opening a pipe would wait for whoever writes to it.
    if !found.metadata().map_err(failed)?.is_file() {
        return Err(refuse("is no regular file"));
    }
    let file = File::open(&found).map_err(failed)?;
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
        match read_now(path, Some(below)) {
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
