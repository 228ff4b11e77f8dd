//! Whether an administrator has confirmed that the gate enforces, where the configuration says audit.

use std::io;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use super::{FILE, Store, StoreError, connect};

/// Kept among the values that are made once: it is one, too.
const NAME: &str = "gate_confirmed";

impl Store {
    /// What the store in `directory` says: nothing where there is none yet. It is asked before there is a runtime and
    /// while there has to be one thread.
    pub fn gate_was_confirmed(directory: &Path) -> Result<bool, StoreError> {
        let path = directory.join(FILE);
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::File { path, source }),
            Ok(_) => is_confirmed(&connect(directory)?.0),
        }
    }

    pub async fn gate_is_confirmed(&self) -> Result<bool, StoreError> {
        self.run(|connection| is_confirmed(connection)).await
    }

    pub async fn confirm_gate(&self, confirmed: bool) -> Result<(), StoreError> {
        self.replace_secret(NAME, vec![u8::from(confirmed)]).await
    }
}

fn is_confirmed(connection: &Connection) -> Result<bool, StoreError> {
    let found: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM secret WHERE name = ?1", [NAME], |row| row.get(0))
        .optional()?;
    Ok(found.is_some_and(|value| value == [1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_confirmation_outlives_the_store_and_can_be_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Store::open(directory.path()).unwrap();
        assert!(!Store::gate_was_confirmed(directory.path()).unwrap());
        assert!(!directory.path().join(FILE).exists(), "to ask makes none");
        assert!(!open().gate_is_confirmed().await.unwrap());
        open().confirm_gate(true).await.unwrap();
        assert!(open().gate_is_confirmed().await.unwrap());
        assert!(Store::gate_was_confirmed(directory.path()).unwrap());
        open().confirm_gate(false).await.unwrap();
        assert!(!Store::gate_was_confirmed(directory.path()).unwrap());
    }
}
