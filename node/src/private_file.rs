//! Files of secrets that only their user can read: written whole or not at all, and not read where others could have.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Bytes of the longest file that is read.
const LONGEST: u64 = 1 << 20;

/// Why a private file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} can be read by others: its mode must be 0600, and what it holds should be made anew")]
    Public { path: PathBuf },
    #[error("{path} is longer than it could ever be")]
    TooLong { path: PathBuf },
}

/// Makes a directory, 0700, and those above it, where they are absent.
pub(crate) fn make_directory(path: &Path) -> Result<(), PrivateFileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| io_error(path, source))
}

/// The text of a file, or nothing where there is none.
///
/// # Errors
/// When others may read the file, besides all that can go wrong with a file.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, PrivateFileError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| io_error(path, source))?,
    };
    let metadata = file.metadata().map_err(|source| io_error(path, source))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(PrivateFileError::Public { path: path.to_owned() });
    }
    if metadata.len() > LONGEST {
        return Err(PrivateFileError::TooLong { path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(LONGEST).read_to_string(&mut text).map_err(|source| io_error(path, source))?;
    Ok(Some(text))
}

/// Replaces a file, 0600: nobody ever sees it half written, and it survives a loss of power. Writers of the same file
/// must exclude each other.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), PrivateFileError> {
    try_replace(path, bytes).map_err(|source| io_error(path, source))
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), PrivateFileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn try_replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn io_error(path: &Path, source: io::Error) -> PrivateFileError {
    PrivateFileError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_whole_and_refused_when_public() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("a/b");
        make_directory(&place).unwrap();
        let file = place.join("secret.json");
        assert!(read(&file).unwrap().is_none());
        remove(&file).unwrap();
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!(read(&file).unwrap().unwrap().as_str(), "two");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place), mode(&file)), (0o700, 0o600));
        for mode in [0o640, 0o604, 0o660, 0o601] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&file), Err(PrivateFileError::Public { .. })), "{mode:o}");
        }
        replace(&file, b"three").unwrap();
        assert_eq!(mode(&file), 0o600, "a mode that was opened up is not kept");
        remove(&file).unwrap();
        assert!(read(&file).unwrap().is_none());
    }

    #[test]
    fn a_file_beyond_its_bound_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("long");
        replace(&file, b"").unwrap();
        File::options().write(true).open(&file).unwrap().set_len(LONGEST + 1).unwrap();
        assert!(matches!(read(&file), Err(PrivateFileError::TooLong { .. })));
    }
}
