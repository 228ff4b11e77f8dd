//! The versioned schema. Each step is one transaction; a step once released never changes.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// `user_version` counts the steps that have been taken.
const STEPS: &[&str] = &[
    r"
CREATE TABLE user (
    name TEXT PRIMARY KEY,
    email TEXT NOT NULL,
    groups TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE session (
    id BLOB PRIMARY KEY,
    person TEXT NOT NULL,
    email TEXT,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX session_expiry ON session (expires_at);
CREATE TABLE session_application (
    session BLOB NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    application TEXT NOT NULL,
    PRIMARY KEY (session, application)
) STRICT, WITHOUT ROWID;
CREATE TABLE code (
    hash BLOB PRIMARY KEY,
    body TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE used (
    purpose TEXT NOT NULL,
    key BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (purpose, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE secret (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
CREATE TABLE signing_key (
    kid TEXT PRIMARY KEY,
    private_pem TEXT NOT NULL,
    certificate_pem TEXT NOT NULL,
    sign_from INTEGER NOT NULL,
    sign_until INTEGER NOT NULL,
    publish_until INTEGER NOT NULL
) STRICT;
CREATE TABLE connector (
    name TEXT PRIMARY KEY,
    key BLOB UNIQUE,
    created_at INTEGER NOT NULL,
    enrolled_at INTEGER,
    revoked_at INTEGER
) STRICT;
CREATE TABLE enrolment (
    token_hash BLOB PRIMARY KEY,
    connector TEXT NOT NULL REFERENCES connector (name) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    created_at INTEGER NOT NULL,
    action TEXT NOT NULL,
    allowed INTEGER NOT NULL,
    user TEXT,
    application TEXT,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX event_time ON event (created_at);
",
    r"
CREATE TABLE event_size (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO event_size SELECT 1, coalesce(sum(length(CAST(body AS BLOB))), 0) FROM event;
",
    // AUTOINCREMENT: the number of a device that is gone is never given again.
    r"
CREATE TABLE device (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    connector TEXT NOT NULL REFERENCES connector (name) ON DELETE CASCADE,
    token_hash BLOB,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;
CREATE INDEX device_connector ON device (connector);
",
    // A device is a connector's or a client's. SQLite changes no constraint in place; the numbers that were given stay given.
    r"
CREATE TABLE client (
    id BLOB PRIMARY KEY,
    session BLOB NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    key BLOB NOT NULL,
    name TEXT NOT NULL,
    refresh_hash BLOB NOT NULL,
    previous_hash BLOB,
    previous_proof BLOB,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX client_session ON client (session);
CREATE INDEX client_key ON client (key);
CREATE TABLE device_new (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    connector TEXT REFERENCES connector (name) ON DELETE CASCADE,
    client_key BLOB UNIQUE,
    token_hash BLOB,
    expires_at INTEGER,
    revoked_at INTEGER,
    CHECK ((connector IS NULL) <> (client_key IS NULL))
) STRICT;
INSERT INTO device_new (number, connector, token_hash, expires_at, revoked_at)
    SELECT number, connector, token_hash, expires_at, revoked_at FROM device;
DELETE FROM sqlite_sequence WHERE name = 'device_new';
INSERT INTO sqlite_sequence (name, seq) SELECT 'device_new', seq FROM sqlite_sequence WHERE name = 'device';
DROP TABLE device;
ALTER TABLE device_new RENAME TO device;
CREATE INDEX device_connector ON device (connector);
",
    r"
CREATE TABLE service_token (
    name TEXT PRIMARY KEY,
    client_id BLOB NOT NULL UNIQUE,
    secret_hash BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    rotated_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
",
    // What applications elsewhere were granted, and which of them have a login to be told about when its session ends.
    r"
CREATE TABLE saas_grant (
    id BLOB PRIMARY KEY,
    session BLOB NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    application TEXT NOT NULL,
    body TEXT NOT NULL,
    generation INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX saas_grant_session ON saas_grant (session);
CREATE INDEX saas_grant_expiry ON saas_grant (expires_at);
CREATE TABLE saas_login (
    session BLOB NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    application TEXT NOT NULL,
    tries INTEGER NOT NULL,
    next_try INTEGER NOT NULL,
    told_at INTEGER,
    PRIMARY KEY (session, application)
) STRICT, WITHOUT ROWID;
CREATE INDEX saas_login_untold ON saas_login (next_try) WHERE told_at IS NULL;
",
    // Keys of the SAML identity provider.
    r"
CREATE TABLE saml_key (
    private_pem TEXT NOT NULL,
    certificate_pem TEXT NOT NULL,
    sign_from INTEGER NOT NULL,
    sign_until INTEGER NOT NULL
) STRICT;
",
    // What an application that speaks SAML calls the person of a login.
    "ALTER TABLE saas_login ADD COLUMN name_id TEXT;",
    // Whose key made the device of a client, and when: a person makes a bounded number of them.
    r"
ALTER TABLE device ADD COLUMN person TEXT;
ALTER TABLE device ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX device_person ON device (person, created_at) WHERE person IS NOT NULL;
",
    // What identity providers call the logins that sessions began with.
    r"
CREATE TABLE provider_login (
    session BLOB PRIMARY KEY REFERENCES session (id) ON DELETE CASCADE,
    provider TEXT NOT NULL,
    name TEXT NOT NULL,
    session_index TEXT,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX provider_login_name ON provider_login (provider, name);
",
    // Logouts that identity providers asked for a moment ago: a login that is under way has to hear of them. Without an
    // index all logins of the name.
    r"
CREATE TABLE provider_logout (
    provider TEXT NOT NULL,
    name TEXT NOT NULL,
    session_index TEXT,
    at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX provider_logout_name ON provider_logout (provider, name);
",
    // Until when an application that speaks SAML may take one of the answers that it was sent: it is told of a logout once
    // more then, unless that is when it was told.
    r"
ALTER TABLE saas_login ADD COLUMN answers_over_at INTEGER;
DROP INDEX saas_login_untold;
CREATE INDEX saas_login_untold ON saas_login (next_try) WHERE told_at IS NULL OR told_at < answers_over_at;
",
    // When the people of sessions proved who they are: with a password, when the session began. What a provider said was not
    // kept.
    r"
UPDATE session SET body = json_set(body, '$.authenticated_at', created_at) WHERE json_extract(body, '$.is_local');
",
    // Each refusal goes to the end of it. What is at a place of its own each time, as a user is, would cost every batch of events,
    // and a revocation behind it, more than a search through the log costs those who do not wait for it.
    "CREATE INDEX event_denied ON event (allowed) WHERE allowed = 0;",
];

/// So long another process may hold the file: a command that runs without the node.
const BUSY: Duration = Duration::from_secs(5);

/// Bytes of the log that are kept for what is written next, once a long read that has made it longer is over.
const LONGEST_LOG: i64 = 16 << 20;

/// Opens the file, sets it up for durable concurrent use and migrates it.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let open_error = |source| StoreError::Open { path: path.to_owned(), source };
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(path, flags).map_err(open_error)?;
    connection.busy_timeout(BUSY).map_err(open_error)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(open_error)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(open_error)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(open_error)?;
    connection.pragma_update(None, "journal_size_limit", LONGEST_LOG).map_err(open_error)?;
    connection.set_prepared_statement_cache_capacity(64);
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Opens the file, which this process has open already, for reading only.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    let open_error = |source| StoreError::Open { path: path.to_owned(), source };
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags).map_err(open_error)?;
    connection.busy_timeout(BUSY).map_err(open_error)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// A new store as an older version made it.
#[cfg(test)]
pub(super) fn of_version(path: &Path, version: usize) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch(&STEPS[..version].concat())?;
    connection.pragma_update(None, "user_version", i64::try_from(version).unwrap_or(i64::MAX))?;
    Ok(connection)
}

/// Takes the steps that are missing, each in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    let found = version(connection, path)?;
    let done = usize::try_from(found).unwrap_or(0);
    for (step, sql) in STEPS.iter().enumerate().skip(done) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", i64::try_from(step + 1).unwrap_or(known))?;
        transaction.commit()?;
    }
    Ok(())
}

/// Reads a file without changing it and says whether it is a store that this version can open.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    let open_error = |source| StoreError::Open { path: path.to_owned(), source };
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(open_error)?;
    let verdict: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(open_error)?;
    if verdict != "ok" {
        return Err(StoreError::Malformed(format!("{}: {verdict}", path.display())));
    }
    if version(&connection, path)? == 0 {
        return Err(StoreError::Malformed(format!("{} is not a store", path.display())));
    }
    Ok(())
}

fn version(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let found = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    Ok(found)
}
