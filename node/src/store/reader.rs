//! The thread that reads what may take long, and what waits for it.
//!
//! 1. Its connection cannot write. In WAL mode it waits for no writer, and no writer for it: a revocation is as quick
//!    while somebody looks through a year of events as it is otherwise.
//! 2. A read sees all that was committed before it began. While it goes on, what is written since stays in the log, so
//!    what is long is read in short steps, each of which others may go between.

use rusqlite::Connection;

use crate::lanes::{self, Lanes};

use super::StoreError;

/// What goes ahead of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReadLane {
    /// What the node looks for on its own, one thing at a time: who is logged out.
    Own,
    /// What administrators ask for.
    Asked,
}

/// Most reads that wait in each lane: more than there are administrators at a time.
const MOST: usize = 64;

/// Does one read after the other. When it is dropped it does what it was given, and returns then.
pub(super) struct Reader(Lanes<Connection, 2>);

impl Reader {
    pub(super) fn start(connection: Connection) -> std::io::Result<Self> {
        Lanes::start("store-reads", connection).map(Self)
    }

    /// Has `read` done when its turn comes, whoever still waits for it then.
    pub(super) fn submit(&self, lane: ReadLane, read: lanes::Work<Connection>) -> Result<(), StoreError> {
        self.0.submit(lane as usize, MOST, read).map_err(|lanes::Full| StoreError::Busy)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.finish();
    }
}
