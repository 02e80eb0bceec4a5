//! Small files, read whole and with a bound: whoever names one may name anything.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

/// What a regular file of at most so many bytes holds. Links are followed.
///
/// # Errors
/// Where it cannot be read, or is anything else.
pub fn read(file: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let refused = || io::Error::other(format!("is no file of at most {most} bytes"));
    // Anything but a regular file may never end, or never begin.
    let found = fs::metadata(file)?;
    if !found.is_file() || found.len() > most {
        return Err(refused());
    }
    // Room for all of it: what outgrows its room leaves a copy behind.
    let room = usize::try_from(found.len() + 1).unwrap_or_default();
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    // It may have grown since.
    File::open(file)?.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most { Err(refused()) } else { Ok(content) }
}

/// The same of a text.
///
/// # Errors
/// As [`read`], and where it is no UTF-8.
pub fn read_text(file: &Path, most: u64) -> io::Result<Zeroizing<String>> {
    let content = read(file, most)?;
    let text = str::from_utf8(&content).map_err(|_| io::Error::new(ErrorKind::InvalidData, "is no UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_file_is_refused_and_waited_for_by_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "eight by").expect("written");
        assert_eq!(read_text(&file, 8).expect("it fits").as_str(), "eight by");
        assert!(read(&file, 7).is_err());
        fs::write(&file, [0xff]).expect("written");
        assert!(read(&file, 8).is_ok());
        assert_eq!(read_text(&file, 8).expect_err("no text").kind(), ErrorKind::InvalidData);
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a pipe");
        for other in [pipe.as_path(), folder.path(), &folder.path().join("absent"), Path::new("/dev/zero")] {
            assert!(read(other, 8).is_err(), "{}", other.display());
        }
    }
}
