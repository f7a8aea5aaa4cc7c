//! Opening a SQLite file that two programs (and two users) share: pragmas, migrations, and the refusal of a file
//! that is not ours, before anything is written to it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use rusqlite_migration::{M, Migrations};

/// How long a statement waits for the other program's transaction, which are all short.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// What goes wrong with a database file, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("Cannot open the database {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "{} is not a SQLite database. It was left as it is; move it away, and a new one is made (followed by a full pass)",
        path.display()
    )]
    NotSqlite { path: PathBuf },
    #[error(
        "The database {} has schema version {found}, this program knows up to {known}. It was left as it is; install the newer program, or restore an older copy",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("The database {} does not have the tables it should have ({what}). It was left as it is", path.display())]
    Foreign { path: PathBuf, what: String },
    #[error("The database {} was moved away or replaced while this program used it. Start the program again", path.display())]
    Replaced { path: PathBuf },
    #[error("The disk with {} is full. Nothing was lost; make room on it", path.display())]
    Full { path: PathBuf },
    #[error("The database {} cannot be used by this user: {source}", path.display())]
    Denied { path: PathBuf, source: rusqlite::Error },
    #[error("Cannot {op} in the database {}: {source}", path.display())]
    Sqlite { path: PathBuf, op: &'static str, source: rusqlite::Error },
}

impl DatabaseError {
    /// Classifies what SQLite said while `op` was tried on the file.
    pub fn new(path: &Path, op: &'static str, source: rusqlite::Error) -> DatabaseError {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) if op == OPEN => {
                DatabaseError::NotSqlite { path }
            }
            Some(ErrorCode::DiskFull) => DatabaseError::Full { path },
            // The shared-memory file cannot grow: SQLite calls that an I/O error.
            Some(ErrorCode::SystemIoFailure) if disk_is_full(&path) => DatabaseError::Full { path },
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                DatabaseError::Denied { path, source }
            }
            _ => DatabaseError::Sqlite { path, op, source },
        }
    }

    /// True if only the owner can help: trying again changes nothing.
    pub fn is_permanent(&self) -> bool {
        !matches!(
            self,
            DatabaseError::Sqlite { .. } | DatabaseError::Replaced { .. } | DatabaseError::Full { .. }
        )
    }
}

fn disk_is_full(path: &Path) -> bool {
    path.parent().and_then(|dir| rustix::fs::statvfs(dir).ok()).is_some_and(|fs| fs.f_bavail == 0)
}

const OPEN: &str = "open";

/// Who may make the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Made if it is missing, migrated if it is older.
    Owner,
    /// Must be there, with exactly our schema.
    Guest,
    /// Like a guest that changes nothing: it cannot write, and does not tidy up when it leaves.
    Reader,
}

/// The tables of a file, one migration per version.
#[derive(Debug)]
pub struct Schema<'m> {
    migrations: &'m [M<'m>],
    /// The text of the versions that were asked for: to make it takes longer than the rest of opening a file.
    texts: Mutex<BTreeMap<usize, Arc<[String]>>>,
}

impl<'m> Schema<'m> {
    pub const fn new(migrations: &'m [M<'m>]) -> Schema<'m> {
        Schema { migrations, texts: Mutex::new(BTreeMap::new()) }
    }

    /// What a file of this version has; `path` is for errors.
    fn text(&self, version: usize, path: &Path) -> Result<Arc<[String]>, DatabaseError> {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = texts.get(&version) {
            return Ok(Arc::clone(text));
        }
        let fail = |source| DatabaseError::new(path, "read the schema", source);
        let mut model = Connection::open_in_memory().map_err(fail)?;
        if version > 0 {
            migrate(path, &mut model, &self.migrations[..version])?;
        }
        let text: Arc<[String]> = text_of(&model).map_err(fail)?.into();
        texts.insert(version, Arc::clone(&text));
        Ok(text)
    }
}

/// Opens `path` with this schema. In [`Mode::Owner`] the file is made with mode 0660 if it is missing.
pub fn open(path: &Path, schema: &Schema<'_>, mode: Mode) -> Result<Connection, DatabaseError> {
    if mode == Mode::Owner {
        make_file(path).map_err(|source| DatabaseError::Open { path: path.to_owned(), source })?;
    }
    let access = match mode {
        Mode::Owner | Mode::Guest => OpenFlags::SQLITE_OPEN_READ_WRITE,
        Mode::Reader => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let fail = |source| DatabaseError::new(path, OPEN, source);
    let mut conn = Connection::open_with_flags(path, flags).map_err(fail)?;
    conn.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
    harden(&conn).map_err(fail)?;
    let known = schema.migrations.len() as i64;
    // Until it is known to be ours nothing is written to it, at the end neither.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fail)?;
    let found: i64 = conn.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(fail)?;
    if found > known {
        return Err(DatabaseError::Newer { path: path.to_owned(), found, known });
    }
    let before = usize::try_from(found).unwrap_or(0);
    compare_schema(path, &conn, schema, before)?;
    if found < known && mode != Mode::Owner {
        let what = format!("schema version {found}, {known} is needed");
        return Err(DatabaseError::Foreign { path: path.to_owned(), what });
    }
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(fail)?;
    if mode != Mode::Reader {
        conn.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        conn.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        migrate(path, &mut conn, schema.migrations)?;
    }
    Ok(conn)
}

/// Whether an open file is still what it was when it was opened: in its place, and with the same schema. The other
/// user of it may have changed that since.
#[derive(Debug)]
pub struct Watch {
    schema: &'static Schema<'static>,
    file: (u64, u64),
    /// SQLite counts the changes of the schema.
    changes: Cell<i64>,
}

impl Watch {
    /// Of a file that was just opened.
    pub fn new(
        path: &Path,
        conn: &Connection,
        schema: &'static Schema<'static>,
    ) -> Result<Watch, DatabaseError> {
        let file = identity(path).map_err(|source| DatabaseError::Open { path: path.to_owned(), source })?;
        // Whatever it is: the first transaction compares.
        let watch = Watch { schema, file, changes: Cell::new(-1) };
        watch.check(path, conn)?;
        Ok(watch)
    }

    /// To be asked in each transaction, before anything is done in it.
    pub fn check(&self, path: &Path, conn: &Connection) -> Result<(), DatabaseError> {
        if identity(path).ok() != Some(self.file) {
            return Err(DatabaseError::Replaced { path: path.to_owned() });
        }
        let changes =
            conn.prepare_cached("PRAGMA schema_version").and_then(|mut s| s.query_row([], |r| r.get(0)));
        let changes = changes.map_err(|e| DatabaseError::new(path, "read the schema", e))?;
        if changes != self.changes.get() {
            compare_schema(path, conn, self.schema, self.schema.migrations.len())?;
            self.changes.set(changes);
        }
        Ok(())
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::stat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// One transaction that takes the write lock at its start; `op` says in errors what was tried.
pub fn write<T>(
    conn: &mut Connection,
    path: &Path,
    watch: Option<&Watch>,
    op: &'static str,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> Result<T, DatabaseError> {
    let fail = |e| DatabaseError::new(path, op, e);
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
    if let Some(watch) = watch {
        watch.check(path, &tx)?;
    }
    let out = work(&tx).map_err(fail)?;
    tx.commit().map_err(fail)?;
    Ok(out)
}

/// A consistent copy in a new or empty file, whatever its name.
pub fn copy_to(conn: &Connection, path: &Path, to: &Path) -> Result<(), DatabaseError> {
    let name = ToSqlOutput::Borrowed(ValueRef::Text(to.as_os_str().as_bytes()));
    conn.execute("VACUUM INTO ?1", [name]).map_err(|e| DatabaseError::new(path, "copy", e))?;
    Ok(())
}

/// The other user of a shared file must not get code run or rows swallowed in this process: a planted trigger
/// with RAISE(IGNORE) makes an INSERT succeed that stores nothing (measured).
fn harden(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    Ok(())
}

fn make_file(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o660).open(path) {
        // Explicitly, because the umask has had its say on the mode above.
        Ok(file) => file.set_permissions(Permissions::from_mode(0o660)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn migrate(path: &Path, conn: &mut Connection, migrations: &[M<'_>]) -> Result<(), DatabaseError> {
    Migrations::from_slice(migrations).to_latest(conn).map_err(|e| match e {
        rusqlite_migration::Error::RusqliteError { err, .. } => DatabaseError::new(path, "migrate", err),
        other => DatabaseError::Foreign { path: path.to_owned(), what: other.to_string() },
    })
}

fn compare_schema(
    path: &Path,
    conn: &Connection,
    schema: &Schema<'_>,
    version: usize,
) -> Result<(), DatabaseError> {
    let expected = schema.text(version, path)?;
    let found = text_of(conn).map_err(|source| DatabaseError::new(path, "read the schema", source))?;
    if *expected == *found {
        return Ok(());
    }
    let odd = found.iter().find(|t| !expected.contains(t)).or(expected.iter().find(|t| !found.contains(t)));
    let what = odd.cloned().unwrap_or_default();
    Err(DatabaseError::Foreign { path: path.to_owned(), what })
}

fn text_of(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    // sqlite_stat tables come from ANALYZE and change nothing.
    let sql = "SELECT coalesce(sql, type || ' ' || name) FROM sqlite_schema
               WHERE name NOT LIKE 'sqlite_stat%' ORDER BY type, name";
    // How the text is laid out means nothing.
    let plain = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    conn.prepare(sql)?.query_map([], |r| r.get(0).map(plain))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: M<'static> = M::up("CREATE TABLE t(a INTEGER)");
    const NEXT: M<'static> = M::up("CREATE TABLE u(b INTEGER)");
    static SCHEMA: Schema<'static> = Schema::new(const { &[FIRST] });
    static NEWER: Schema<'static> = Schema::new(const { &[FIRST, NEXT] });

    fn read(path: &Path) -> Vec<u8> {
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_file_that_is_not_sqlite_is_named_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        std::fs::write(&path, "my diary\n".repeat(200)).unwrap();
        let before = read(&path);
        let error = open(&path, &SCHEMA, Mode::Owner).unwrap_err();
        assert!(matches!(error, DatabaseError::NotSqlite { .. }), "{error}");
        assert!(error.to_string().contains("journal.db"));
        assert_eq!(read(&path), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_newer_schema_is_named_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        open(&path, &NEWER, Mode::Owner).unwrap().close().unwrap();
        let before = read(&path);
        let error = open(&path, &SCHEMA, Mode::Owner).unwrap_err();
        assert!(matches!(error, DatabaseError::Newer { found: 2, known: 1, .. }), "{error}");
        assert_eq!(read(&path), before);
    }

    #[test]
    fn a_planted_trigger_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        open(&path, &SCHEMA, Mode::Owner).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TRIGGER x BEFORE INSERT ON t BEGIN SELECT RAISE(IGNORE); END").unwrap();
        drop(other);
        let error = open(&path, &SCHEMA, Mode::Owner).unwrap_err();
        assert!(matches!(error, DatabaseError::Foreign { .. }), "{error}");
    }

    #[test]
    fn somebody_elses_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firefox.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE bookmarks(x)").unwrap();
        let before = read(&path);
        assert!(matches!(open(&path, &SCHEMA, Mode::Owner), Err(DatabaseError::Foreign { .. })));
        assert_eq!(read(&path), before);
    }

    #[test]
    fn somebody_elses_database_of_our_schema_version_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let foreign = "CREATE TABLE bookmarks(x); PRAGMA user_version = 1";
        Connection::open(&path).unwrap().execute_batch(foreign).unwrap();
        let before = read(&path);
        for known in [&SCHEMA, &NEWER] {
            let error = open(&path, known, Mode::Owner).unwrap_err();
            assert!(matches!(error, DatabaseError::Foreign { .. }), "{error}");
            assert!(error.to_string().contains("bookmarks"), "{error}");
        }
        assert_eq!(read(&path), before, "not even its journal mode");
    }

    #[test]
    fn a_migration_that_fails_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        open(&path, &SCHEMA, Mode::Owner).unwrap().execute("INSERT INTO t VALUES (7)", []).unwrap();
        let newer = [
            FIRST,
            M::up("CREATE TABLE u(b INTEGER); DELETE FROM t"),
            M::up("INSERT INTO nowhere VALUES (1)"),
        ];
        assert!(open(&path, &Schema::new(&newer), Mode::Owner).is_err());
        let conn = open(&path, &SCHEMA, Mode::Owner).unwrap();
        assert_eq!(conn.query_row("SELECT a FROM t", [], |r| r.get::<_, i64>(0)).unwrap(), 7);
    }

    #[test]
    fn a_guest_makes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        assert!(open(&path, &SCHEMA, Mode::Guest).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn a_reader_changes_nothing_and_sees_what_others_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        assert!(open(&path, &SCHEMA, Mode::Reader).is_err());
        assert!(!path.exists());
        let owner = open(&path, &SCHEMA, Mode::Owner).unwrap();
        let reader = open(&path, &SCHEMA, Mode::Reader).unwrap();
        owner.execute("INSERT INTO t VALUES (7)", []).unwrap();
        assert_eq!(reader.query_row("SELECT a FROM t", [], |r| r.get::<_, i64>(0)).unwrap(), 7);
        assert!(reader.execute("INSERT INTO t VALUES (8)", []).is_err());
        drop(owner);
        let before = read(&path);
        drop(reader);
        assert_eq!(read(&path), before, "the last one to leave writes nothing back");
        let alone = open(&path, &SCHEMA, Mode::Reader).unwrap();
        assert_eq!(alone.query_row("SELECT a FROM t", [], |r| r.get::<_, i64>(0)).unwrap(), 7);
    }

    #[test]
    fn an_older_file_is_migrated_forward() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        open(&path, &SCHEMA, Mode::Owner).unwrap().execute("INSERT INTO t VALUES (7)", []).unwrap();
        let conn = open(&path, &NEWER, Mode::Owner).unwrap();
        assert_eq!(conn.query_row("SELECT a FROM t", [], |r| r.get::<_, i64>(0)).unwrap(), 7);
    }
}
