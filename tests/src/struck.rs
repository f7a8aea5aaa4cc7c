//! A store that cannot set the attributes of directories, and what that does to the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use shared::exit::Exit;
use shared::path::RelPath;
use syncer::leg::{Calls, Holds, Listed, Page, Problem, Put, Receipt, Remove, Store, StoreError, What};
use syncer::run::Parts;

/// What follows when the attributes of a directory are to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Struck {
    /// An error, and the run goes on.
    Fails,
    /// An error, and the run ends without an ack.
    EndsBeforeAck,
    /// The run ends without its receipts, as with a kill between what was put and that.
    EndsBeforeReceipts,
}

impl Struck {
    /// Puts it over the store of a run.
    pub fn over(self, parts: &mut Parts) {
        let make = std::mem::replace(&mut parts.make_store, Box::new(|_| unreachable!("replaced below")));
        let stop = parts.stop.clone();
        parts.make_store = Box::new(move |leg| {
            let (real, stop) = (make(leg)?, stop.clone());
            Ok(Arc::new(StruckStore { real, struck: self, stop, was_struck: AtomicBool::new(false) }))
        });
    }
}

struct StruckStore {
    real: Arc<dyn Store>,
    struck: Struck,
    stop: Arc<AtomicBool>,
    was_struck: AtomicBool,
}

#[async_trait]
impl Store for StruckStore {
    fn holds(&self) -> Holds {
        self.real.holds()
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.real.open().await
    }

    fn identity(&self) -> String {
        self.real.identity()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.real.prepare().await
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        if !(matches!(put.what, What::Attributes) && put.stat.kind.is_dir()) {
            return self.real.put(put).await;
        }
        self.was_struck.store(true, Ordering::Relaxed);
        self.stop.fetch_or(self.struck == Struck::EndsBeforeAck, Ordering::Relaxed);
        let problem = Problem::TryLater(None);
        Err(StoreError::new("set the attributes of", put.dest, problem, "struck by the test"))
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        self.real.remove(remove).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.real.sync().await?;
        if self.struck == Struck::EndsBeforeReceipts && self.was_struck.load(Ordering::Relaxed) {
            let stop = Problem::Stop(Exit::Failed);
            return Err(StoreError::new("sync", "the destination", stop, "cut off by the test"));
        }
        Ok(())
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        self.real.list(top, page).await
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        self.real.newest(dest).await
    }

    fn calls(&self) -> Calls {
        self.real.calls()
    }

    fn notes(&self) -> Vec<String> {
        self.real.notes()
    }
}
