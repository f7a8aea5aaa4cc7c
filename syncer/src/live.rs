//! The parts of a run on a real machine: files in the state directory, the tracker's socket, the configured store.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use shared::clock::{Clock, SystemClock};
use shared::config::{Config, Leg, LegKind};
use shared::control::{self, Request};
use shared::database::DatabaseError;
use shared::exit::Exit;
use shared::journal::Journal;
use shared::limits;
use shared::status::Status;

use crate::catalog::Catalog;
use crate::credentials::{Credentials, CredentialsError, Environment};
use crate::leg::b2::store::B2Store;
use crate::leg::dir::{DirStore, Setup};
use crate::leg::{Problem, Store, StoreError};
use crate::run::{MakeStore, OpenTree, Parts, Progress, Threads, Tracker, Wish, database_exit};
use crate::tree::Tree;
use crate::tree::proven::ProvenTree;

#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error(
        "There is no journal at {}: the tracker has not run with this configuration yet. Start longshore-tracker (`tracker run`)",
        path.display()
    )]
    NoJournal { path: PathBuf },
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("Another run of the leg `{leg}` is under way (it holds {}). Wait for it, or stop it", path.display())]
    Locked { leg: String, path: PathBuf },
    #[error("Cannot lock {}: {source}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("Cannot make a copy of the databases below {}: {source}", path.display())]
    Copy { path: PathBuf, source: io::Error },
    #[error("The catalog {} is not this leg's, and cannot be set aside: {source}. Move it away", path.display())]
    SetAside { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl LiveError {
    pub fn exit(&self) -> Exit {
        match self {
            LiveError::NoJournal { .. } | LiveError::Locked { .. } => Exit::TryLater,
            LiveError::Database(e) => database_exit(e),
            LiveError::Lock { .. } | LiveError::Copy { .. } | LiveError::SetAside { .. } => Exit::Failed,
            LiveError::Credentials(_) => Exit::Config,
        }
    }
}

/// The kernel's lock on a leg; gone with the process.
pub struct LegLock(#[expect(dead_code, reason = "held, not read")] File);

pub fn lock_leg(config: &Config, leg: &Leg) -> Result<LegLock, LiveError> {
    let path = config.state_dir.join(format!("leg-{}.lock", leg.name));
    let file = File::create(&path).map_err(|source| LiveError::Lock { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(LegLock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(LiveError::Locked { leg: leg.name.to_string(), path }),
        Err(std::fs::TryLockError::Error(source)) => Err(LiveError::Lock { path, source }),
    }
}

pub fn catalog_path(config: &Config, leg: &Leg) -> PathBuf {
    config.state_dir.join(format!("catalog-{}.db", leg.name))
}

pub fn marker_path(config: &Config, leg: &Leg) -> PathBuf {
    config.state_dir.join(format!("last-run-{}.json", leg.name))
}

pub fn open_journal(config: &Config) -> Result<Journal, LiveError> {
    let path = config.journal_path();
    if !path.exists() {
        return Err(LiveError::NoJournal { path });
    }
    Ok(Journal::open(&path)?)
}

/// The parts of a run of this leg, with the catalog at `catalog`.
pub fn parts(
    config: &Config,
    leg: &Leg,
    environment: &Environment,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    catalog: &Path,
) -> Result<Parts, LiveError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let journal = open_journal(config)?;
    Ok(Parts {
        config: config.clone(),
        leg: leg.clone(),
        catalog: open_catalog(catalog, &journal, leg.name.as_str())?,
        journal,
        open_tree: open_tree(),
        make_store: make_store(config, leg, environment, clock.clone())?,
        tracker: Box::new(LiveTracker { config: config.clone() }),
        clock,
        threads: Threads::Many,
        progress,
        stop,
        wish: Wish::default(),
    })
}

/// The leg's own catalog. One of another leg, or of this leg from before it got a new one, is set aside: what it says of
/// its destination must not be believed of this one. Without it the leg compares everything and begins a new one.
fn open_catalog(path: &Path, journal: &Journal, leg: &str) -> Result<Catalog, LiveError> {
    let was_there = path.exists();
    let catalog = Catalog::open(path)?;
    let facts = catalog.facts()?;
    // One that no run has begun with says nothing.
    let is_new = !was_there || facts.journal_id.is_none();
    if is_new || journal.may_have_catalog(leg, facts.catalog_id)? {
        return Ok(catalog);
    }
    // Its log goes into it when the last one closes it.
    drop(catalog);
    let id: String = facts.catalog_id[..4].iter().map(|b| format!("{b:02x}")).collect();
    let aside = path.with_extension(format!("db.{id}.aside"));
    tracing::warn!("{} is not the catalog of the leg {leg}: it is now {}", path.display(), aside.display());
    std::fs::rename(path, &aside).map_err(|source| LiveError::SetAside { path: path.to_owned(), source })?;
    Ok(Catalog::open(path)?)
}

fn open_tree() -> OpenTree {
    Box::new(|root| {
        let tree = ProvenTree::open(&root.path)
            .map_err(|e| format!("The root `{}` is not proven: {e}", root.name))?;
        let identity = tree.identity().clone();
        Ok((Arc::new(tree) as Arc<dyn Tree>, identity))
    })
}

fn make_store(
    config: &Config,
    leg: &Leg,
    environment: &Environment,
    clock: Arc<dyn Clock>,
) -> Result<MakeStore, LiveError> {
    let transfers = leg.transfers;
    match leg.kind.clone() {
        LegKind::Dir(dir) => {
            let roots = leg.roots.iter().filter_map(|r| config.root(&r.root));
            let sources: Vec<PathBuf> = roots.map(|r| r.path.clone()).collect();
            Ok(Box::new(move |row| {
                let setup = Setup {
                    destination: dir.path.clone(),
                    run: row.last_run,
                    trash_days: dir.trash_days,
                    sources: sources.clone(),
                    clock: clock.clone(),
                };
                Ok(Arc::new(DirStore::new(setup)) as Arc<dyn Store>)
            }))
        }
        LegKind::B2(b2) => {
            let credentials = Credentials::find(&b2, environment)?;
            Ok(Box::new(move |row| {
                let Some(writer) = row.writer_ids.first() else {
                    let message = "the leg's row in the journal has no writer id";
                    return Err(StoreError::new("open", &b2.bucket, Problem::Stop(Exit::Failed), message));
                };
                Ok(Arc::new(B2Store::new(&b2, credentials.clone(), writer, transfers)?) as Arc<dyn Store>)
            }))
        }
    }
}

/// The tracker of this configuration, if it runs.
pub struct LiveTracker {
    pub config: Config,
}

impl Tracker for LiveTracker {
    fn flush(&self) -> Result<(), String> {
        let wait: Duration = limits::FLUSH_TIMEOUT;
        control::ask(&self.config.control_path(), &Request::Flush, wait)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    fn probed_boot_ns(&self) -> Option<i64> {
        Status::load(&self.config.status_path()).ok().map(|s| s.probed_boot_ns)
    }
}
