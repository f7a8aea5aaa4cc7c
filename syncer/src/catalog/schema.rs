//! The catalog's tables, one migration per released version. A released migration is never edited.

use rusqlite_migration::M;
use shared::database::Schema;

pub static SCHEMA: Schema<'static> = Schema::new(MIGRATIONS);

/// `row.key` is the path, of a directory with a trailing `/`: byte order is walk order. `object` is empty for kinds
/// that the leg cannot hold. What every round asks (absent, held, the names of a handle, linked files, big files) has
/// a partial index.
const MIGRATIONS: &[M<'static>] = &[M::up(
    "CREATE TABLE meta(
        one INTEGER PRIMARY KEY CHECK (one = 1),
        catalog_id BLOB NOT NULL,
        journal_id BLOB,
        destination TEXT,
        acked INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        recorded INTEGER NOT NULL
    );
    CREATE TABLE root(
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        prefix BLOB NOT NULL,
        identity TEXT NOT NULL,
        acked INTEGER
    );
    CREATE TABLE row(
        root INTEGER NOT NULL,
        key BLOB NOT NULL,
        kind INTEGER NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        btime_ns INTEGER,
        ino INTEGER NOT NULL,
        mode INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        gid INTEGER NOT NULL,
        nlink INTEGER NOT NULL,
        rdev INTEGER NOT NULL,
        handle BLOB,
        sha1 BLOB,
        object TEXT NOT NULL,
        origin INTEGER NOT NULL,
        settled INTEGER NOT NULL,
        fuzzy INTEGER NOT NULL,
        state INTEGER NOT NULL,
        state_since_ns INTEGER NOT NULL,
        state_run INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        PRIMARY KEY (root, key)
    ) WITHOUT ROWID;
    CREATE INDEX row_absent ON row(root, key) WHERE state = 1;
    CREATE INDEX row_held ON row(root, key) WHERE state = 2;
    CREATE INDEX row_handle ON row(root, handle) WHERE handle IS NOT NULL;
    CREATE INDEX row_linked ON row(root, handle) WHERE handle IS NOT NULL AND nlink > 1 AND kind <> 1;
    CREATE INDEX row_big ON row(root, mtime_ns) WHERE kind = 0 AND size >= 16777216;
    CREATE TABLE silent(
        root INTEGER NOT NULL,
        key BLOB NOT NULL,
        found_ns INTEGER NOT NULL,
        PRIMARY KEY (root, key)
    ) WITHOUT ROWID;
    CREATE TABLE intent(
        root INTEGER NOT NULL,
        key BLOB NOT NULL,
        handle BLOB,
        run INTEGER NOT NULL,
        at_ns INTEGER NOT NULL,
        unknown INTEGER NOT NULL,
        PRIMARY KEY (root, key)
    ) WITHOUT ROWID;
    CREATE TABLE release(
        at_ns INTEGER NOT NULL,
        run INTEGER NOT NULL,
        count INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        approved INTEGER NOT NULL
    );",
)];
