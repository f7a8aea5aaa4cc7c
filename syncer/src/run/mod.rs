//! One run of one leg: carries out what the machine says, with the parts given to it (journal, catalog, trees, store,
//! tracker, clock), so that a simulation can give others.

mod batch;
mod full_pass;
mod linked;
mod machine;
mod removal;
mod rounds;
mod send;
mod setup;
mod silent;
mod source;
mod threads;
mod touch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use shared::clock::Clock;
use shared::config::{Config, Leg as LegConfig};
use shared::database::DatabaseError;
use shared::exit::{Exit, gravest};
use shared::identity::Identity;
use shared::journal::{Class, Deferred, DeferredKey, Journal, Leg, NewDeferred, RootId};
use shared::limits;
use shared::path::RelPath;

use crate::catalog::{Catalog, CatalogError, CatalogRoot, Key};
use crate::leg::{Store, StoreError};
use crate::report::{self, Report, RootReport, Trouble};
use crate::tree::Tree;
pub use batch::Tally;
use batch::{Owed, Plan};
use machine::{Command, Event, Machine};
pub use send::Progress;
use send::{Outcome, Sender};
use source::{Ground, Source};
pub use threads::Threads;

/// What a run asks of the tracker.
pub trait Tracker: Send + Sync {
    /// Returns when everything that happened before is in the journal.
    fn flush(&self) -> Result<(), String>;
    /// CLOCK_BOOTTIME of its last probe of the roots; `None` if it is not known.
    fn probed_boot_ns(&self) -> Option<i64>;
}

/// Opens the tree of a root and says what it is.
pub type OpenTree = Box<dyn Fn(&shared::config::Root) -> Result<(Arc<dyn Tree>, Identity), String> + Send>;
/// Makes the store once the leg's writer id and run number are known.
pub type MakeStore = Box<dyn Fn(&Leg) -> Result<Arc<dyn Store>, StoreError> + Send>;

/// What the owner asks of one run beyond the usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// Compare everything with the destination's listing.
    pub full: bool,
    /// So many deletes may pass the guard.
    pub allow_deletes: Option<u64>,
}

/// What a run does between its rounds, if it is to go on when nothing is due.
#[async_trait(?Send)]
pub trait Rest {
    /// Takes the report of the rounds since the last rest and when the next deferred row comes due; returns whether
    /// there is to be another round.
    async fn rest(&mut self, report: &Report, due_ns: Option<i64>) -> bool;
}

/// Everything a run works with.
pub struct Parts {
    pub config: Config,
    pub leg: LegConfig,
    pub journal: Journal,
    pub catalog: Catalog,
    pub open_tree: OpenTree,
    pub make_store: MakeStore,
    pub tracker: Box<dyn Tracker>,
    pub clock: Arc<dyn Clock>,
    pub threads: Threads,
    pub progress: Arc<Progress>,
    /// Set by SIGTERM: stop starting, finish what runs.
    pub stop: Arc<AtomicBool>,
    pub wish: Wish,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Config(String),
    #[error(
        "The tracker works by another path or other rules of the root `{0}` since this run began. The next run goes by them"
    )]
    Changed(String),
    #[error(
        "The tracker dropped changes that the leg `{0}` had not read: it does not know the leg. Restart longshore-tracker; the next run compares everything"
    )]
    Overtaken(String),
}

impl RunError {
    pub fn exit(&self) -> Exit {
        match self {
            RunError::Database(e) | RunError::Catalog(CatalogError::Database(e)) => database_exit(e),
            RunError::Changed(_) | RunError::Overtaken(_) => Exit::TryLater,
            RunError::Catalog(CatalogError::PrefixChanged { .. }) | RunError::Config(_) => Exit::Config,
            RunError::Store(e) => match e.problem {
                crate::leg::Problem::Stop(exit) => exit,
                crate::leg::Problem::TryLater(_) => Exit::TryLater,
                _ => Exit::Failed,
            },
        }
    }
}

/// A file that is not what it should be is the owner's to decide about; a full disk or a lock is not.
pub fn database_exit(e: &DatabaseError) -> Exit {
    match e {
        DatabaseError::Full { .. } | DatabaseError::Sqlite { .. } => Exit::Failed,
        DatabaseError::Replaced { .. } => Exit::TryLater,
        _ => Exit::Config,
    }
}

/// A root of the leg, as far as this run got with it.
struct RunRoot {
    name: String,
    id: RootId,
    /// Of the path and rules that this run goes by.
    epoch: u64,
    prefix: RelPath,
    catalog: Option<CatalogRoot>,
    /// The tracker's word, and whether it is fresh, stand in the journal; this is the run's own proof.
    proof: Result<Arc<dyn Tree>, String>,
}

/// A run under way.
pub struct Run<'a> {
    parts: Parts,
    rest: Option<Box<dyn Rest + 'a>>,
    roots: Vec<RunRoot>,
    grounds: Vec<Option<Ground>>,
    leg_row: Option<Leg>,
    sender: Option<Sender>,
    source: Source,
    plan: Plan,
    outcomes: Vec<Outcome>,
    /// The tracker answered the flush of this round.
    flushed: bool,
    /// Up to where this round's entries were claimed.
    head: u64,
    /// What the work under way still owes when it is done.
    owed: Vec<Owed>,
    /// The deferred rows being worked off.
    due: BTreeMap<DeferredKey, Deferred>,
    /// Until when, by the clock that does not stop.
    due_until_ns: Option<i64>,
    removal: removal::Removal,
    touch: touch::Touch,
    /// When the destination was asked about intents, by the clock that does not stop.
    settled_ns: Option<i64>,
    silent: silent::Silent,
    recount: linked::Recount,
    /// Roots whose listing was compared and whose tree is being examined.
    full_passes: Vec<usize>,
    report: Report,
    exits: Vec<Exit>,
    stop: Option<Exit>,
}

impl<'a> Run<'a> {
    pub fn new(parts: Parts, rest: Option<Box<dyn Rest + 'a>>) -> Run<'a> {
        let report = Report::begin(parts.leg.name.as_str(), parts.clock.wall_ns());
        Run {
            parts,
            rest,
            roots: Vec::new(),
            grounds: Vec::new(),
            leg_row: None,
            sender: None,
            source: Source::default(),
            plan: Plan::default(),
            outcomes: Vec::new(),
            flushed: false,
            head: 0,
            owed: Vec::new(),
            due: BTreeMap::new(),
            due_until_ns: None,
            removal: removal::Removal::default(),
            touch: touch::Touch::default(),
            settled_ns: None,
            silent: silent::Silent::default(),
            recount: linked::Recount::default(),
            full_passes: Vec::new(),
            report,
            exits: Vec::new(),
            stop: None,
        }
    }

    /// Runs to the end. Every outcome, also an error, is a report.
    pub async fn run(mut self) -> Report {
        let mut machine = Machine::new(self.rest.is_some());
        let mut event = Event::Begin;
        loop {
            let command = machine.step(event);
            tracing::debug!(?command, "step");
            if command == Command::Finish {
                break;
            }
            event = match self.perform(command).await {
                Ok(_) if self.may_stop_after(command) => Event::Stop,
                Ok(event) => event,
                Err(e) => {
                    self.exits.push(e.exit());
                    self.report.troubles.push(Trouble::of_run(e.to_string()));
                    Event::Stop
                }
            };
        }
        self.finish()
    }

    /// What was confirmed is written down before a run stops.
    fn may_stop_after(&self, command: Command) -> bool {
        let stopping = self.stop.is_some() || self.parts.stop.load(Ordering::Relaxed);
        let owes_a_receipt = matches!(
            command,
            Command::WriteIntents
                | Command::Send
                | Command::Confirm
                | Command::Remove
                | Command::ConfirmRemoved
        );
        stopping && !owes_a_receipt
    }

    async fn perform(&mut self, command: Command) -> Result<Event, RunError> {
        match command {
            Command::Prove => self.prove()?,
            Command::Attach => self.attach()?,
            Command::BeginStore => self.begin_store().await?,
            Command::SettleIntents => self.settle_intents().await?,
            Command::Flush => {
                self.flushed = self.flush();
                return Ok(Event::Flushed(self.flushed));
            }
            Command::Claim => self.claim()?,
            Command::LoadDue => self.load_due().await?,
            Command::Examine => return self.examine(),
            Command::WriteIntents => self.write_intents()?,
            Command::Send => self.send().await?,
            Command::Confirm | Command::ConfirmRemoved => self.confirm().await?,
            Command::WriteReceipts => self.write_receipts()?,
            Command::Ack => self.ack()?,
            Command::SettleDue => self.settle_due()?,
            Command::Guard => return self.guard(),
            Command::Remove => return self.remove().await,
            Command::WriteRemoved => self.write_removed()?,
            Command::Review => return self.review(),
            Command::LookSilent => return self.look_silent(),
            Command::Rest => return self.rest().await,
            Command::ProveAgain => {
                self.prove()?;
                self.make_prefixes(&*self.store()?).await?;
            }
            Command::Finish => {}
        }
        Ok(Event::Done)
    }

    async fn rest(&mut self) -> Result<Event, RunError> {
        let report = self.close_report();
        // A resting run must not keep anybody from unmounting.
        self.grounds.clear();
        self.roots.clear();
        let due_ns = self.parts.journal.next_due_ns(self.parts.leg.name.as_str())?;
        let Some(rest) = &mut self.rest else { return Ok(Event::Stop) };
        let again = rest.rest(&report, due_ns).await;
        self.report.started_ns = self.parts.clock.wall_ns();
        Ok(if again { Event::Rested } else { Event::Stop })
    }

    fn finish(mut self) -> Report {
        if self.parts.stop.load(Ordering::Relaxed) {
            self.report.aborted = true;
            self.exits.push(Exit::TryLater);
        }
        self.close_report()
    }

    /// The report of everything since the last one; the next one begins empty.
    fn close_report(&mut self) -> Report {
        let now = self.parts.clock.wall_ns();
        self.exits.extend(self.stop);
        self.exits.extend(self.roots.iter().filter(|r| r.proof.is_err()).map(|_| Exit::Unproven));
        if let Err(e) = self.count_what_is_left() {
            self.exits.push(database_exit(&e));
            self.report.troubles.push(Trouble::of_run(e.to_string()));
        }
        let next = Report { run: self.report.run, ..Report::begin(&self.report.leg, now) };
        let mut report = std::mem::replace(&mut self.report, next);
        report.roots = self
            .roots
            .iter()
            .map(|r| RootReport { name: r.name.clone(), unproven: r.proof.as_ref().err().cloned() })
            .collect();
        let progress = &self.parts.progress;
        report.files_sent = progress.files.swap(0, Ordering::Relaxed);
        report.bytes_sent = progress.bytes.swap(0, Ordering::Relaxed);
        report.others_sent = progress.others.swap(0, Ordering::Relaxed);
        report.found_unchanged = progress.unchanged.swap(0, Ordering::Relaxed);
        report.removed = progress.removed.swap(0, Ordering::Relaxed);
        if let Some(sender) = &self.sender {
            report.calls = sender.store.calls();
            report.notes = sender.store.notes();
        }
        report.outcomes = std::mem::take(&mut self.exits);
        report.exit = gravest(report.outcomes.iter().copied());
        report.finished_ns = now;
        report
    }

    /// What the journal still owes at the end is the truth about what did not work, not what happened on the way.
    fn count_what_is_left(&mut self) -> Result<(), DatabaseError> {
        let leg = self.parts.leg.name.to_string();
        self.report.held = self.parts.catalog.held_count()?;
        if self.report.held > 0 {
            self.exits.push(Exit::Partial);
        }
        let tolerated = self.parts.clock.wall_ns() - limits::DEFERRED_TOLERATED.as_nanos() as i64;
        for sum in self.parts.journal.deferred_by_class(&leg)? {
            self.report.deferred += sum.count;
            let at_once = matches!(sum.class, Class::Error | Class::Unknown);
            if at_once || (sum.class.is_failure() && sum.oldest_ns < tolerated) {
                self.exits.push(Exit::Partial);
            }
        }
        for row in self.parts.journal.deferred(&leg, report::TROUBLES_MAX)? {
            let root = self.roots.iter().find(|r| r.id == row.key.root);
            self.report.troubles.push(Trouble {
                root: root.map_or_else(String::new, |r| r.name.clone()),
                what: row.what(),
                path: row.key.path,
                class: row.class.to_string(),
                reason: row.last_error,
            });
        }
        Ok(())
    }

    /// What costs much is done once in a run, and in one that goes on once in this time.
    fn was_done_of_late(&self, at_ns: Option<i64>, interval: Duration) -> bool {
        let of_late = |at| self.parts.clock.boot_ns().saturating_sub(at) < interval.as_nanos() as i64;
        at_ns.is_some_and(|at| self.rest.is_none() || of_late(at))
    }

    /// A root's place in the run.
    fn root_index(&self, id: RootId) -> Option<usize> {
        self.roots.iter().position(|r| r.id == id)
    }

    /// The row that says what is owed, with the wait that follows from the attempts so far.
    fn deferral(&self, owed: &Owed) -> Result<NewDeferred, DatabaseError> {
        let root = self.roots[owed.root].id;
        let key = DeferredKey { root, path: owed.path.clone(), scope: owed.scope, handle: None };
        let attempts = self.parts.journal.deferred_attempts(self.parts.leg.name.as_str(), &key)?;
        let now = self.parts.clock.wall_ns();
        let wait = limits::backoff(attempts).max(owed.wait.unwrap_or_default());
        // A root's row waits for its disk, not for a time; what is left of a gap waits for nothing.
        let not_before_ns = match owed.class {
            Class::Root | Class::Gap => 0,
            _ => now.saturating_add(wait.as_nanos() as i64),
        };
        Ok(NewDeferred {
            root,
            path: key.path,
            scope: owed.scope,
            handle: None,
            seq: owed.seq,
            mask: owed.mask,
            since_ns: now,
            attempts: u32::from(owed.class != Class::Gap),
            not_before_ns,
            class: owed.class,
            last_error: owed.reason.clone(),
        })
    }

    fn store(&self) -> Result<Arc<dyn Store>, RunError> {
        self.sender
            .as_ref()
            .map(|s| s.store.clone())
            .ok_or_else(|| RunError::Config("the destination was not opened".into()))
    }

    /// Keys of intents are fulfilled by their receipts.
    fn key_in_catalog(
        &self,
        root: usize,
        path: &RelPath,
        kind: crate::tree::Kind,
    ) -> Option<(CatalogRoot, Key)> {
        Some((self.roots[root].catalog?, Key::new(path, kind)))
    }
}
