//! The journal's tables, one migration per released version. A released migration is never edited.

use rusqlite_migration::M;

use crate::database::Schema;

pub static SCHEMA: Schema<'static> = Schema::new(MIGRATIONS);

/// `entry` is append-only and has no secondary index: appends run at 1.5 to 2 million rows a second, with an index
/// on the path at 50 thousand (measured). Seqs are never reused: `meta.head` counts them, not the rowid.
const MIGRATIONS: &[M<'static>] = &[
    M::up(
        "CREATE TABLE meta(
        one INTEGER PRIMARY KEY CHECK (one = 1),
        journal_id BLOB NOT NULL,
        floor INTEGER NOT NULL,
        head INTEGER NOT NULL,
        linked_epoch INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE entry(
        seq INTEGER PRIMARY KEY,
        root INTEGER NOT NULL,
        path BLOB NOT NULL,
        handle BLOB,
        scope INTEGER NOT NULL,
        cause INTEGER NOT NULL,
        mask INTEGER NOT NULL,
        at_ns INTEGER NOT NULL
    );
    CREATE TABLE root(
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        path BLOB NOT NULL,
        identity TEXT,
        rules TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        state INTEGER NOT NULL,
        state_since_ns INTEGER NOT NULL
    );
    CREATE TABLE generation(
        root INTEGER PRIMARY KEY,
        subvolume BLOB NOT NULL,
        inode INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        mount INTEGER
    );
    CREATE TABLE leg(
        name TEXT PRIMARY KEY,
        catalog_id BLOB NOT NULL,
        writer_ids TEXT NOT NULL,
        last_run INTEGER NOT NULL,
        last_plan INTEGER NOT NULL,
        claimed INTEGER NOT NULL,
        acked INTEGER NOT NULL,
        collapsed_to INTEGER NOT NULL,
        last_ack_ns INTEGER NOT NULL,
        revision INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE deferred(
        leg TEXT NOT NULL,
        root INTEGER NOT NULL,
        path BLOB NOT NULL,
        handle BLOB NOT NULL,
        scope INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        mask INTEGER NOT NULL,
        since_ns INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        not_before_ns INTEGER NOT NULL,
        class INTEGER NOT NULL,
        last_error TEXT NOT NULL,
        PRIMARY KEY (leg, root, path, scope, handle)
    ) WITHOUT ROWID;
    CREATE TABLE linked(
        leg TEXT NOT NULL,
        root INTEGER NOT NULL,
        handle BLOB NOT NULL,
        PRIMARY KEY (leg, root, handle)
    ) WITHOUT ROWID;
    CREATE TABLE doubt(
        fs TEXT NOT NULL,
        handle BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        PRIMARY KEY (fs, handle)
    ) WITHOUT ROWID;
    CREATE TABLE session(
        id INTEGER PRIMARY KEY,
        boot_id TEXT NOT NULL,
        version TEXT NOT NULL,
        started_ns INTEGER NOT NULL,
        ended_ns INTEGER
    );
    CREATE TABLE history(
        id INTEGER PRIMARY KEY,
        at_ns INTEGER NOT NULL,
        kind TEXT NOT NULL,
        root TEXT,
        text TEXT NOT NULL
    );",
    ),
    M::up(
        "CREATE TABLE intake(
        fs TEXT PRIMARY KEY,
        buffer_id BLOB NOT NULL,
        epoch INTEGER NOT NULL
    ) WITHOUT ROWID;",
    ),
];
