//! What must hold at a moment, and the end of a world: everything is made whole, and the mirrors must become what their
//! sources are.

use shared::exit::Exit;
use shared::journal::Journal;
use shared::path::RelPath;
use shared::rules::Rules;
use syncer::live;
use syncer::tree::Kind;

use super::World;
use crate::database;
use crate::oracle::difference::{Difference, Item, Items, differences};
use crate::oracle::owed::Owed;
use crate::oracle::{Invariant, Violation, sides};
use crate::store::Asked;

/// Longer than a request may still come true.
const GRACE_MS: u64 = 2 * 3600 * 1000;
/// Longer than anything waits before it is tried again.
const BACKOFF_MS: u64 = 7 * 3600 * 1000;
/// Runs after which nothing may be owed any more.
const RUNS_MAX: usize = 6;

impl World {
    /// Coverage of every leg, as far as it can be told now.
    pub(super) fn check(&mut self) -> Result<(), Violation> {
        for leg in 0..self.legs.len() {
            self.check_leg(leg)?;
        }
        Ok(())
    }

    /// Every path that differs from its mirror is covered: asked of the databases, once the tracker has told all that
    /// it knows.
    pub(super) fn check_leg(&mut self, leg: usize) -> Result<(), Violation> {
        // Nothing else happens while it is looked.
        self.shared.chance().hold(true);
        let mut flushed = false;
        self.with_tracker(|tracker| flushed = tracker.flush().is_ok());
        self.shared.chance().hold(false);
        if !flushed || self.shared.is_down() {
            return Ok(());
        }
        let before = database::enter(0);
        let found = self.uncovered(leg);
        database::enter(before);
        match found.into_iter().next() {
            None => Ok(()),
            Some((path, what)) => {
                let name = &self.legs[leg].name;
                Err(Violation::new(
                    Invariant::Coverage,
                    format!("{name}: {path}: {what}, and nothing leads to it"),
                ))
            }
        }
    }

    /// Nothing, where a run of the leg would begin with a full pass: of databases that do not belong together.
    fn uncovered(&self, leg: usize) -> Option<(RelPath, String)> {
        let (config, of_leg) = (&self.config, &self.legs[leg]);
        let catalog = live::catalog_path(config, &config.legs[leg]);
        let journal = Journal::open_to_read(&config.journal_path()).ok().filter(|_| catalog.exists())?;
        if self.has_doubts() || !self.fits(&journal, &catalog, &of_leg.name) {
            return None;
        }
        let (roots, holds) = (journal.roots().ok()?, of_leg.holds());
        for (at, place) in of_leg.requests.roots().iter().enumerate() {
            let root = roots.iter().find(|root| root.name == place.name)?;
            if !self.shared.machine().is_home(&place.path) {
                continue;
            }
            let Some(owed) = Owed::read(&journal, &catalog, &of_leg.name, root.id, &place.name) else {
                continue;
            };
            let source = self.source(leg, at);
            let is_dir =
                |path: &RelPath| path.is_root() || source.get(path).is_some_and(|item| item.kind.is_dir());
            let mirror = self.mirror(leg, at);
            for (path, difference) in differences(&source, &mirror, holds) {
                let inode = source.get(&path).filter(|item| item.kind == Kind::File).map(|item| item.inode);
                // A look at one name of a file is one at all of them.
                let other_names =
                    source.iter().filter(|(_, item)| Some(item.inode) == inode && !item.kind.is_dir());
                let is_covered = |path: &RelPath| {
                    let handle = self.shared.machine().handle_at(&place.path, path);
                    owed.covers(path, handle.as_ref(), is_dir)
                        || (is_dir(path) && owed.covers_dir(path))
                        || self.is_excused(leg, at, path)
                        || self.is_forgotten(leg, path, &mirror)
                };
                if self.is_time_by_rule(leg, at, source.get(&path), &difference.what) {
                    continue;
                }
                let is_unlisted = self.shared.has_lied() && !mirror.contains_key(&path);
                let mut names = other_names.map(|(name, _)| name).chain(&difference.names);
                if !is_covered(&path) && !is_unlisted && !names.any(is_covered) {
                    return Some((path, difference.what));
                }
            }
        }
        None
    }

    /// Whether the next run would find its databases in order.
    fn fits(&self, journal: &Journal, catalog: &std::path::Path, leg: &str) -> bool {
        let facts = syncer::catalog::Catalog::open(catalog).and_then(|catalog| catalog.facts());
        let (Ok(facts), Ok(Some(leg)), Ok((head, floor))) =
            (facts, journal.leg(leg), journal.head_and_floor())
        else {
            return false;
        };
        leg.catalog_id == facts.catalog_id
            && facts.journal_id == Some(journal.id())
            && leg.cursor() >= floor
            && facts.acked >= leg.acked
            && facts.revision >= leg.revision
            && facts.acked <= head
    }

    /// Directories whose fate the stream has not told yet stand for all that is in them.
    fn has_doubts(&self) -> bool {
        let path = self.config.journal_path();
        let count = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
            .and_then(|conn| conn.query_row("SELECT count(*) FROM doubt", [], |r| r.get::<_, i64>(0)));
        count.map_or(true, |count| count > 0)
    }

    /// A leg that lost its databases takes over what looks the same, and leaves alone what it cannot know to be its own.
    fn is_forgotten(&self, leg: usize, path: &RelPath, mirror: &Items) -> bool {
        let mut around = std::iter::successors(path.parent(), RelPath::parent);
        let in_the_way = |above: RelPath| mirror.get(&above).is_some_and(|item| !item.kind.is_dir());
        let has_below = || mirror.keys().any(|below| below.is_within(path));
        self.legs[leg].forgot && (has_below() || around.any(in_the_way))
    }

    /// The time of a directory whose only change is a name that the rules leave out: no entry tells of that.
    fn is_time_by_rule(&self, leg: usize, root: usize, item: Option<&Item>, what: &str) -> bool {
        let is_dir = item.is_some_and(|item| item.kind.is_dir());
        is_dir && what.starts_with("its time") && !self.rules(leg, root).is_empty()
    }

    /// Others changed the destination there, which only a full pass can find, or nothing tells of the change yet.
    fn is_excused(&self, leg: usize, root: usize, path: &RelPath) -> bool {
        let place = &self.legs[leg].requests.roots()[root];
        let file = self.shared.machine().seen_at(&place.path, path);
        if file.is_some_and(|(dev, file)| self.shared.is_silent(dev, file)) {
            return true;
        }
        let dest = place.prefix.join(path);
        self.legs[leg].foreign.iter().any(|foreign| dest.is_within(foreign) || foreign.is_within(&dest))
    }

    /// What stands in a root of a leg, as its rules let it be seen.
    fn source(&self, leg: usize, root: usize) -> Items {
        sides::source(
            &self.shared.machine(),
            &self.legs[leg].requests.roots()[root].path,
            self.rules(leg, root),
        )
    }

    /// What stands at a leg's destination for one of its roots, but for what the rules leave alone, and directories that
    /// stand only because of that.
    fn mirror(&self, leg: usize, root: usize) -> Items {
        let (mut ours, kept) = self.both_mirrors(leg, root);
        let source = self.source(leg, root);
        let holds_kept = |path: &RelPath| kept.keys().any(|kept| kept.is_within(path));
        ours.retain(|path, item| !item.kind.is_dir() || source.contains_key(path) || !holds_kept(path));
        ours
    }

    /// What the rules leave alone at the destination.
    fn kept(&self, leg: usize, root: usize) -> Items {
        self.both_mirrors(leg, root).1
    }

    fn both_mirrors(&self, leg: usize, root: usize) -> (Items, Items) {
        let (prefix, rules) = (&self.legs[leg].requests.roots()[root].prefix, self.rules(leg, root));
        let all = self.legs[leg].items();
        let below = all.into_iter().filter_map(|(path, item)| Some((path.strip(prefix)?, item)));
        below.partition(|(path, item)| path.is_root() || !rules.excludes(path, item.kind.is_dir()))
    }

    fn rules(&self, leg: usize, root: usize) -> &Rules {
        let name = &self.legs[leg].requests.roots()[root].name;
        let root = self.in_force.roots.iter().find(|root| root.name.as_str() == name);
        &root.expect("a root of the leg").rules
    }

    /// Everything is made whole; then each mirror must become what its source is, and stay so without a call.
    pub(super) fn end(&mut self) -> Result<(), Violation> {
        self.say(|| "everything is made whole".to_owned());
        self.mend()?;
        let all: Vec<usize> = (0..self.legs.len()).collect();
        self.wait(GRACE_MS);
        // Whoever repaired a disk that lied, or changed a destination by hand, asks for it.
        self.run(&all, self.compare_all || self.shared.has_lied(), Some(u64::MAX))?;
        for _ in 0..RUNS_MAX {
            self.check()?;
            if !self.owes_anything()? {
                break;
            }
            self.wait(BACKOFF_MS);
            self.run(&all, false, Some(u64::MAX))?;
        }
        for leg in all.into_iter().filter(|leg| !self.legs[*leg].is_elsewhere).collect::<Vec<_>>() {
            self.must_be_equal(leg)?;
            self.must_be_quiet(leg)?;
        }
        Ok(())
    }

    fn owes_anything(&self) -> Result<bool, Violation> {
        let journal = self.readable_journal()?;
        let owes = |leg: &super::legs::Leg| journal.deferred_count(&leg.name).map_or(true, |count| count > 0);
        Ok(self.legs.iter().any(owes))
    }

    fn readable_journal(&self) -> Result<Journal, Violation> {
        let opened = Journal::open_to_read(&self.config.journal_path());
        opened.map_err(|e| Violation::new(Invariant::Converges, format!("the journal at the end: {e}")))
    }

    fn must_be_equal(&mut self, leg: usize) -> Result<(), Violation> {
        let holds = self.legs[leg].holds();
        for root in 0..self.legs[leg].requests.roots().len() {
            let (source, mirror) = (self.source(leg, root), self.mirror(leg, root));
            let kept = self.kept(leg, root);
            let is_fine = |path: &RelPath| {
                // What the rules keep at the destination is in the way of another kind there.
                let is_blocked = kept.keys().any(|kept| kept.is_within(path) || path.is_within(kept));
                is_blocked || self.is_excused(leg, root, path) || self.is_forgotten(leg, path, &mirror)
            };
            let differing = differences(&source, &mirror, holds);
            let left = differing.iter().find(|(path, d)| {
                let by_rule = self.is_time_by_rule(leg, root, source.get(path), &d.what);
                !by_rule && !is_fine(path) && !d.names.iter().any(is_fine)
            });
            if let Some((path, Difference { what, .. })) = left {
                let text = format!("{}: {path} at the end: {what}", self.legs[leg].name);
                return Err(Violation::new(Invariant::Converges, text));
            }
        }
        Ok(())
    }

    /// One more run finds nothing to do, and says so.
    fn must_be_quiet(&mut self, leg: usize) -> Result<(), Violation> {
        let listed = |world: &World| {
            let seen = world.legs[leg].watch.seen();
            [Asked::List, Asked::Newest].map(|what| seen.counts.get(&what).copied().unwrap_or_default())
        };
        let before = listed(self);
        self.run(&[leg], false, None)?;
        let (asked, listed) = (self.legs[leg].asked, listed(self) != before);
        let is_foreign = !self.legs[leg].foreign.is_empty();
        if (asked > 0 || listed) && !is_foreign {
            let name = &self.legs[leg].name;
            let what = format!("{name}: a quiet run asked for {asked} changes, and looked around: {listed}");
            return Err(Violation::new(Invariant::NoNeedlessCall, what));
        }
        match self.legs[leg].last_exit {
            Some(Exit::Ok) => Ok(()),
            Some(Exit::Partial) if is_foreign || self.legs[leg].forgot => Ok(()),
            other => Err(Violation::new(Invariant::Told, format!("a quiet run ended with {other:?}"))),
        }
    }
}
