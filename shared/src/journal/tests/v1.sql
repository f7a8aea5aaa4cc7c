-- A journal of schema version 1, with rows of every table, as that version of the program left it. Never edited: every
-- later program must open it.
CREATE TABLE meta(
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
);
INSERT INTO meta VALUES (1, x'0102030405060708090a0b0c0d0e0f10', 2, 5, 0);
INSERT INTO entry VALUES (3, 1, x'612f62ff', NULL, 0, 0, 4, 1700000000000000000);
INSERT INTO entry VALUES (4, 1, x'', x'0100000007', 2, 0, 4, 1700000000000000001);
INSERT INTO entry VALUES (5, 1, x'', NULL, 1, 4, 128, 1700000000000000002);
INSERT INTO root VALUES (1, 'space', x'2f7370616365', NULL, '*.tmp', 3, 0, 1700000000000000000);
INSERT INTO leg VALUES ('b2', x'1112131415161718191a1b1c1d1e1f20', 'w2 w1', 9, 0, 4, 3, 0, 1700000000000000003, 8);
INSERT INTO deferred VALUES ('b2', 1, x'62757379', x'', 0, 3, 4, 1700000000000000000, 2, 1700000000000000000, 0, 'busy');
INSERT INTO deferred VALUES ('b2', 1, x'', x'0100000007', 2, 3, 4, 1700000000000000001, 0, 0, 8, 'lagged');
INSERT INTO linked VALUES ('b2', 1, x'0100000007');
INSERT INTO generation VALUES (1, x'00112233445566778899aabbccddeeff', 256, 7, 4711);
INSERT INTO doubt VALUES ('ext4 x', x'0100000008', 12);
INSERT INTO session VALUES (1, 'boot', '0.1.0', 1700000000000000000, NULL);
INSERT INTO history VALUES (1, 1700000000000000000, 'gap', NULL, 'ext4 x: start');
PRAGMA user_version = 1;
