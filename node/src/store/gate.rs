//! Whether an administrator has confirmed that the gate enforces, where the configuration says audit.

use rusqlite::OptionalExtension as _;

use super::{Store, StoreError};

/// Kept among the values that are made once: it is one, too.
const NAME: &str = "gate_confirmed";

impl Store {
    /// Blocks: it is asked before there is a runtime.
    pub fn gate_is_confirmed(&self) -> Result<bool, StoreError> {
        let found: Option<Vec<u8>> = self
            .lock()
            .query_row("SELECT value FROM secret WHERE name = ?1", [NAME], |row| row.get(0))
            .optional()?;
        Ok(found.is_some_and(|value| value == [1]))
    }

    pub async fn confirm_gate(&self, confirmed: bool) -> Result<(), StoreError> {
        self.replace_secret(NAME, vec![u8::from(confirmed)]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_confirmation_outlives_the_store_and_can_be_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Store::open(directory.path()).unwrap();
        assert!(!open().gate_is_confirmed().unwrap());
        open().confirm_gate(true).await.unwrap();
        assert!(open().gate_is_confirmed().unwrap());
        open().confirm_gate(false).await.unwrap();
        assert!(!open().gate_is_confirmed().unwrap());
    }
}
