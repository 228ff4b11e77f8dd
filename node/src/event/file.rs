//! The log file, bounded: when it is full, what it holds moves to the same name with `.1` behind it, in the place of
//! what was there.
//!
//! It moves by being copied, and the file is cut to nothing: both files were opened while the node still had its
//! privileges, and nothing in their directory needs to be made or renamed by a daemon that has none. Whoever follows the
//! file sees it shrink, as with the `copytruncate` of logrotate, which works on it as well. A crash on the way leaves
//! lines twice, and loses none.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A log file and the one before it.
#[derive(Debug)]
pub(super) struct LogFile {
    current: File,
    before: File,
    limit: u64,
}

impl LogFile {
    /// Opens both files; each holds up to `limit` bytes, and one batch more at most.
    pub(super) fn open(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self { current: open_log(path)?, before: open_log(&log_before(path))?, limit })
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        // Asked each time: somebody else may have cut the file.
        let length = self.current.metadata()?.len();
        let more = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        let moved = if length > 0 && length.saturating_add(more) > self.limit { self.turn() } else { Ok(()) };
        // A log that could not be moved goes on; the error is still told.
        self.current.write_all(lines).and(moved)
    }

    fn turn(&mut self) -> io::Result<()> {
        self.before.set_len(0)?;
        self.current.seek(SeekFrom::Start(0))?;
        let length = self.current.metadata()?.len();
        io::copy(&mut (&self.current).take(length), &mut self.before)?;
        self.current.set_len(0)
    }
}

/// Where the log goes when it is full.
pub fn log_before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

/// Opens a log for appending, making it (0640) and its directory where they are missing.
pub fn open_log(path: &Path) -> io::Result<File> {
    let open = || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)
    };
    open().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_moves_and_both_stay_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log/access.jsonl");
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let mut log = LogFile::open(&path, 100).unwrap();
        for number in 0..95 {
            log.write(format!("line {number:04}\n").as_bytes()).unwrap();
            let both = [read(&log_before(&path)), read(&path)];
            assert!(both.iter().all(|text| text.len() <= 100), "{both:?}");
            // Nothing is lost before it is due: what is there is the newest, in order.
            let lines: Vec<_> = both.iter().flat_map(|text| text.lines()).collect();
            let oldest = number + 1 - lines.len();
            let expected: Vec<_> = (oldest..=number).map(|n| format!("line {n:04}")).collect();
            assert_eq!(lines, expected);
        }
        // The end of one process is not the end of the bound.
        let mut log = LogFile::open(&path, 100).unwrap();
        log.write(&[b'x'; 60]).unwrap();
        assert_eq!(read(&path), "x".repeat(60));
        // Cut by somebody else.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        log.write(b"after\n").unwrap();
        assert_eq!(read(&path), "after\n");
    }
}
