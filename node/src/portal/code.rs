//! One-time codes: what the node keeps until a browser or a client comes for it.
//!
//! A code is sealed: one that nobody was given, or that is too old, costs no look into the store, where everybody waits. It
//! says for whom it is, so that nobody else can spend it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::flow::UnixTime;
use crate::store::StoreError;

use super::Call;
use super::target::hash;

/// A code that the node has made and that is not too old.
#[derive(Serialize, Deserialize)]
pub(super) struct Code {
    id: [u8; 16],
    /// What whoever brings it has to have, in the words of its purpose.
    pub(super) holder: Option<String>,
    pub(super) expires_at: UnixTime,
}

impl Code {
    /// Where what belongs to it is kept, for `purpose`.
    pub(super) fn place(&self, purpose: &str) -> [u8; 32] {
        let id: String = self.id.iter().map(|byte| format!("{byte:02x}")).collect();
        hash(&format!("{purpose} {id}"))
    }
}

impl Call<'_> {
    /// Keeps `value` until `expires_at`; the code for it.
    pub(super) async fn keep_for_code<T: Serialize>(
        &self,
        purpose: &'static str,
        holder: Option<String>,
        value: &T,
        expires_at: UnixTime,
    ) -> Result<String, String> {
        let code = Code { id: clock::random(), holder, expires_at };
        let sealed = self.context.seal.seal(purpose, &code).map_err(|error| error.to_string())?;
        let kept = self.context.store.put_code(code.place(purpose), value, expires_at).await;
        kept.map(|()| sealed).map_err(|error| error.to_string())
    }

    /// The code that `text` is, if it was made for `purpose` and is not too old.
    pub(super) fn code(&self, purpose: &'static str, text: &str) -> Option<Code> {
        self.context.seal.open::<Code>(purpose, text).filter(|code| code.expires_at > self.now)
    }

    /// What was kept for a code, once.
    pub(super) async fn take<T: DeserializeOwned>(
        &self,
        purpose: &'static str,
        code: &Code,
    ) -> Result<Option<T>, StoreError> {
        self.context.store.take_code(code.place(purpose), self.now).await
    }
}
