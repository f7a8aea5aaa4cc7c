//! `--dry-run`: the same run, on copies of journal and catalog, with a store that only remembers what it was asked.

use std::sync::Arc;

use async_trait::async_trait;
use shared::config::Leg;
use shared::journal::Journal;
use shared::path::RelPath;
use tempfile::TempDir;

use crate::catalog::Catalog;
use crate::commands::{Context, refused};
use crate::leg::{Calls, Holds, Listed, Page, Put, Receipt, Remove, Store, StoreError, What};
use crate::live::{self, LiveError};
use crate::report::Report;
use crate::run::{Parts, Progress, Run, Tracker as _, Wish};

/// A store that reads from the real one and writes nowhere.
struct DryStore {
    inner: Arc<dyn Store>,
    /// Each path on a line of its own.
    print: bool,
}

impl DryStore {
    fn say(&self, what: &str, dest: &RelPath) {
        if self.print {
            println!("{what} {dest}");
        }
    }
}

#[async_trait]
impl Store for DryStore {
    fn holds(&self) -> Holds {
        self.inner.holds()
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.inner.open().await
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        let what = match put.what {
            What::Attributes => "attributes",
            What::HardLink { .. } => "link",
            What::Dir => "directory",
            _ => "send",
        };
        self.say(what, &put.dest);
        Ok(Receipt { object: "dry".into(), sha1: None })
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        self.say("remove", &remove.dest);
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        self.inner.list(top, page).await
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        self.inner.newest(dest).await
    }

    fn calls(&self) -> Calls {
        self.inner.calls()
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }
}

/// The report of what a run would do now; each path on a line of its own, unless JSON was asked for.
pub async fn run(context: &Context, leg: &Leg, wish: Wish) -> Report {
    match parts(context, leg) {
        Ok((parts, _copies)) => {
            let parts = Parts { wish, ..parts };
            Report { dry_run: true, ..Run::new(parts, None).run().await }
        }
        Err(e) => refused(leg, &e),
    }
}

/// The parts of a run, with copies where it would write; the directory with the copies lives as long as the run.
fn parts(context: &Context, leg: &Leg) -> Result<(Parts, TempDir), LiveError> {
    let config = &context.config;
    let copies =
        tempfile::tempdir().map_err(|source| LiveError::Copy { path: std::env::temp_dir(), source })?;
    // The copy is made of what the tracker knows now; if it does not answer, the run itself says so.
    let _ = live::LiveTracker { config: config.clone() }.flush();
    let (journal, catalog) = (copies.path().join("journal.db"), copies.path().join("catalog.db"));
    live::open_journal(config)?.copy_to(&journal)?;
    let catalog_path = live::catalog_path(config, leg);
    if catalog_path.exists() {
        Catalog::open(&catalog_path)?.copy_to(&catalog)?;
    }
    let progress = Arc::new(Progress::default());
    let mut parts = live::parts(config, leg, &context.environment, progress, context.stop.clone(), &catalog)?;
    parts.journal = Journal::open(&journal)?;
    let (make, print) = (parts.make_store, !context.json && !context.quiet);
    parts.make_store = Box::new(move |row| Ok(Arc::new(DryStore { inner: make(row)?, print })));
    Ok((parts, copies))
}
