//! Faults of a configuration file, with file and line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, from 1; absent where the fault is of the whole file.
    pub line: Option<usize>,
    pub message: String,
}

/// Every fault of one file. Shown one a line, as `file:line: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub path: PathBuf,
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match fault.line {
                Some(line) => write!(f, "{}:{line}: {}", self.path.display(), fault.message)?,
                None => write!(f, "{}: {}", self.path.display(), fault.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects faults while a file is compiled.
pub(super) struct Faults<'a> {
    text: &'a str,
    path: &'a Path,
    found: Vec<Fault>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(text: &'a str, path: &'a Path) -> Self {
        Self { text, path, found: Vec::new() }
    }

    /// Notes a fault at a place in the file.
    pub(super) fn at(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.found.push(Fault { line: Some(line_of(self.text, span.start)), message: message.into() });
    }

    /// Notes a fault of the whole file.
    pub(super) fn whole(&mut self, message: impl Into<String>) {
        self.found.push(Fault { line: None, message: message.into() });
    }

    /// The value, if there was no fault.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => {
                if self.found.is_empty() {
                    self.whole("the configuration is incomplete");
                }
                self.found.sort_by_key(|fault| fault.line);
                Err(ConfigError { path: self.path.to_owned(), faults: self.found })
            }
        }
    }
}

pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError {
        path: path.to_owned(),
        faults: vec![Fault { line: None, message: format!("cannot be read: {error}") }],
    })
}

/// Parses TOML into the shape of a file; the first fault ends it.
pub(super) fn deserialize<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError {
        path: path.to_owned(),
        faults: vec![Fault {
            line: error.span().map(|span| line_of(text, span.start)),
            message: error.message().to_owned(),
        }],
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
