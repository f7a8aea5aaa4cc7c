//! The legs of a world: their destinations, their runs, and what is said of each run.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use shared::clock::Clock;
use shared::config::Config;
use shared::exit::Exit;
use shared::journal::Journal;
use shared::path::RelPath;
use syncer::leg::Holds;
use syncer::live::{self, LiveError};
use syncer::report::Report;
use syncer::run::{Parts, Progress, Run, Threads, Wish};
use syncer::tree::Tree;

use super::{World, settings};
use crate::fate::Killed;
use crate::hand::Hand;
use crate::host::SimClock;
use crate::oracle::difference::Items;
use crate::oracle::requests::Requests;
use crate::oracle::{Violation, sides, told};
use crate::seat::Client;
use crate::shape::{LegKind, Shape};
use crate::store::b2::{self, SimB2};
use crate::store::bucket::Bucket;
use crate::store::dir::{self, Setup, SimDir};
use crate::store::directory::Directory;
use crate::store::{self, Watch, lock};
use crate::tree::SimTree;

/// Where a leg's mirror lies.
#[derive(Clone)]
pub enum Place {
    B2(store::Shared<Bucket>),
    Dir(store::Shared<Directory>),
}

pub struct Leg {
    pub name: String,
    pub place: Place,
    pub watch: Watch,
    pub requests: Arc<Requests>,
    pub last_exit: Option<Exit>,
    /// It lost a database, or was given an older one.
    pub forgot: bool,
    /// Its catalog was begun at another destination.
    pub is_elsewhere: bool,
    /// Changes that its last run asked for.
    pub asked: u64,
    /// Where others than the leg changed its destination.
    pub foreign: BTreeSet<RelPath>,
}

impl Leg {
    pub fn new(shape: &Shape, number: usize, config: &Config) -> Leg {
        let place = match shape.legs[number].kind {
            LegKind::B2 => {
                let mut bucket = Bucket::new(&format!("bucket-{number}"));
                bucket.page_files = 7;
                Place::B2(store::shared(bucket))
            }
            LegKind::Dir => {
                let uuid = format!("00000000-0000-4000-9000-{number:012}");
                let mut directory = Directory::new(&uuid, settings::BEGINNING_NS);
                directory.page_objects = 7;
                Place::Dir(store::shared(directory))
            }
        };
        let catalog = live::catalog_path(config, &config.legs[number]);
        let requests = Requests::new(settings::places(config, number), &catalog);
        let looks_on = Arc::clone(&requests);
        let watch = Watch::new(Arc::new(move |call| looks_on.at_call(call)));
        let name = config.legs[number].name.to_string();
        Leg {
            name,
            place,
            watch,
            requests,
            last_exit: None,
            forgot: false,
            is_elsewhere: false,
            asked: 0,
            foreign: BTreeSet::new(),
        }
    }

    pub fn holds(&self) -> Holds {
        match self.place {
            Place::B2(_) => b2::HOLDS,
            Place::Dir(_) => dir::HOLDS,
        }
    }

    /// What stands at the destination.
    pub fn items(&self) -> Items {
        match &self.place {
            Place::B2(bucket) => sides::of_bucket(&lock(bucket)),
            Place::Dir(directory) => sides::of_directory(&lock(directory)),
        }
    }

    pub fn late_count(&self) -> usize {
        match &self.place {
            Place::B2(bucket) => lock(bucket).late_count(),
            Place::Dir(_) => 0,
        }
    }

    pub fn violation(&self) -> Option<Violation> {
        self.requests.violation()
    }

    pub fn close(&mut self) {
        self.requests.end_run();
    }
}

impl World {
    /// Runs legs at the same time, and looks at what they say of it.
    pub(super) fn run(&mut self, legs: &[usize], full: bool, allow: Option<u64>) -> Result<(), Violation> {
        let wish = Wish { full, allow_deletes: allow };
        let mut running = Vec::new();
        let count = self.legs.len();
        for &leg in legs.iter().filter(|leg| **leg < count) {
            let hand = self.shared.begin_life();
            self.legs[leg].requests.begin_run(&hand);
            match hand.live(|| self.parts(leg, &hand, wish)) {
                Ok(Ok(parts)) => {
                    let run = Box::pin(Run::new(parts, None).run());
                    running.push((leg, Life { hand, run: Some(run) }));
                }
                Ok(Err(e)) => {
                    self.meet("refused", &e.exit());
                    self.say(|| format!("l{leg} is refused: {e}"));
                }
                Err(Killed) => {}
            }
        }
        let threads =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
        let (numbers, lives): (Vec<usize>, Vec<Life>) = running.into_iter().unzip();
        let reports = threads.block_on(futures_util::future::join_all(lives));
        drop(threads);
        for (leg, report) in numbers.into_iter().zip(reports) {
            self.judge(leg, report.ok())?;
        }
        Ok(())
    }

    fn judge(&mut self, leg: usize, report: Option<Report>) -> Result<(), Violation> {
        let counts = self.legs[leg].requests.end_run();
        self.shared.note("asked", counts.asked);
        self.legs[leg].asked = counts.asked;
        let Some(report) = report else {
            self.say(|| format!("l{leg} was killed"));
            return Ok(());
        };
        self.shared.note("exit", report.exit as u64);
        self.legs[leg].last_exit = Some(report.exit);
        // Bound to a place that was there only once: from then on it refuses the right one.
        self.legs[leg].is_elsewhere |= report.exit == Exit::Config && report.text().contains("was built for");
        self.meet("exit", &report.exit);
        self.say(|| format!("l{leg}: {}", report.text().trim_end()));
        told::check(&report, counts)?;
        if report.exit == Exit::Ok { self.check_leg(leg) } else { Ok(()) }
    }

    fn parts(&self, leg: usize, hand: &Hand, wish: Wish) -> Result<Parts, LiveError> {
        let config = &self.config;
        let leg_config = config.legs[leg].clone();
        let path = config.journal_path();
        if !path.exists() {
            return Err(LiveError::NoJournal { path });
        }
        let journal = Journal::open(&path)?;
        let catalog_path = live::catalog_path(config, &leg_config);
        let catalog = live::open_catalog(&catalog_path, &journal, leg_config.name.as_str())?;
        let clock: Arc<dyn Clock> = Arc::new(SimClock(hand.clone()));
        let (place, watch) = (self.legs[leg].place.clone(), self.legs[leg].watch.clone());
        let requests = Arc::clone(&self.legs[leg].requests);
        let roots: Vec<_> = leg_config.roots.iter().map(|r| r.root.to_string()).collect();
        let (trees, stores) = (hand.clone(), (hand.clone(), clock.clone()));
        Ok(Parts {
            config: config.clone(),
            leg: leg_config,
            journal,
            catalog,
            open_tree: Box::new(move |root| {
                let at = roots.iter().position(|name| name == root.name.as_str()).expect("a root of the leg");
                let tree = SimTree::open(&trees, &root.path, at, &requests)
                    .map_err(|e| format!("The root `{}` is not proven: {e}", root.name))?;
                let identity = tree.identity().clone();
                Ok((Arc::new(tree) as Arc<dyn Tree>, identity))
            }),
            make_store: Box::new(move |row| {
                let (hand, clock) = stores.clone();
                let fate = Arc::new(hand);
                Ok(match &place {
                    Place::B2(bucket) => {
                        let writer = row.writer_ids.first().cloned().unwrap_or_default();
                        let (bucket, watch) = (bucket.clone(), watch.clone());
                        Arc::new(SimB2::new(bucket, &RelPath::root(), &writer, clock, fate, watch))
                    }
                    Place::Dir(directory) => {
                        let (directory, watch) = (directory.clone(), watch.clone());
                        let setup = Setup { run: row.last_run, trash_days: 30, clock };
                        Arc::new(SimDir::new(directory, setup, fate, watch))
                    }
                })
            }),
            tracker: Box::new(Client(hand.clone())),
            clock,
            progress: Arc::new(Progress::default()),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Threads::One,
            wish,
        })
    }
}

/// A run as a life of a program: whenever it goes on, what it does to databases is its own doing.
struct Life {
    hand: Hand,
    run: Option<Pin<Box<dyn Future<Output = Report>>>>,
}

impl Future for Life {
    type Output = Result<Report, Killed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(mut run) = self.run.take() else { return Poll::Pending };
        let hand = self.hand.clone();
        match hand.live(|| run.as_mut().poll(context)) {
            Ok(Poll::Pending) => {
                self.run = Some(run);
                Poll::Pending
            }
            Ok(Poll::Ready(report)) => Poll::Ready(Ok(report)),
            Err(Killed) => Poll::Ready(Err(Killed)),
        }
    }
}
