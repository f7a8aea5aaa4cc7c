//! From looks to a plan: what is written to the catalog at once, what is sent, and what is owed. The only I/O is
//! reading the catalog and looking at paths that hang together (other names of an inode, parents).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use shared::database::DatabaseError;
use shared::entry::{Handle, Mask, Scope};
use shared::journal::Class;
use shared::limits;
use shared::path::RelPath;

use super::linked::LinkedFiles;
use super::source::{Ground, Item, Work, examine_path};
use crate::catalog::{Catalog, Change, Key, Origin, Row, RowState};
use crate::examine::{self, Terms, Verdict};
use crate::leg::Holds;
use crate::tree::{Kind, Stat};

/// What is to be done with one path at the destination.
#[derive(Debug, Clone)]
pub struct Op {
    pub root: usize,
    pub path: RelPath,
    pub stat: Stat,
    /// What the catalog has at this key now.
    pub row: Option<Row>,
    pub action: Action,
    pub mask: Mask,
    pub seq: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    MakeDir,
    /// Read it, and send it unless the row's hash says that only metadata differ.
    Content {
        compare: bool,
    },
    Symlink,
    Special,
    /// Another name of the object at this path of the same root.
    LinkTo(RelPath),
    Attributes,
}

/// A path that is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    pub root: usize,
    pub path: RelPath,
    pub scope: Scope,
    pub mask: Mask,
    pub seq: u64,
    pub class: Class,
    pub reason: String,
    /// The destination's own word on when to try again.
    pub wait: Option<Duration>,
}

/// A batch, planned. The sends go in this order: directories, then the rest at once, then links, then the attributes
/// of directories whose content changed.
#[derive(Debug, Default)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub dirs: Vec<Op>,
    pub nodes: Vec<Op>,
    pub links: Vec<Op>,
    pub owed: Vec<Owed>,
    pub tally: Tally,
    /// Files that have other names, or had.
    pub linked: LinkedFiles,
    /// Paths whose other names would have been too many for one batch: they are to be looked at again in the next one.
    pub rest: Vec<Work>,
}

/// Counts of what was decided without sending.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    pub examined: u64,
    pub same: u64,
    pub adopted: u64,
    pub newly_absent: u64,
    pub newly_held: u64,
    /// Seen, of a kind that the leg cannot hold.
    pub unheld: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.examined += other.examined;
        self.same += other.same;
        self.adopted += other.adopted;
        self.newly_absent += other.newly_absent;
        self.newly_held += other.newly_held;
        self.unheld += other.unheld;
    }
}

/// What a plan is made with.
pub struct Planner<'a> {
    pub grounds: &'a [Option<Ground>],
    pub catalog: &'a Catalog,
    pub holds: Holds,
    pub now_ns: i64,
    pub run: u64,
}

impl Planner<'_> {
    pub fn plan(&self, items: Vec<Item>) -> Result<Plan, DatabaseError> {
        let mut plan = Plan::default();
        let items = self.with_relatives(items, &mut plan)?;
        let mut linked: BTreeMap<File, Vec<(Op, Verdict)>> = BTreeMap::new();
        let with_names = if self.holds.hard_links { files_with_names(&items) } else { BTreeSet::new() };
        for item in items {
            plan.tally.examined += 1;
            match item {
                Item::Unknown { root, path, scope, mask, seq, class, reason } => {
                    plan.owed.push(Owed { root, path, scope, mask, seq, class, reason, wait: None });
                }
                Item::Gone { root, key, row, .. } => self.plan_gone(&mut plan, root, key, *row),
                Item::Check { root, path, stat, row, mask, seq } => {
                    let Some(ground) = &self.grounds[root] else { continue };
                    let terms = Terms { holds: self.holds, stable_inodes: ground.tree.stable_inodes() };
                    let verdict = examine::compare(row.as_deref(), &stat, mask, terms);
                    let op =
                        Op { root, path, stat, row: row.map(|r| *r), action: Action::Attributes, mask, seq };
                    let file = (root, stat.ino, stat.btime_ns);
                    if stat.kind == Kind::File && with_names.contains(&file) {
                        linked.entry(file).or_default().push((op, verdict));
                    } else {
                        self.plan_one(&mut plan, op, verdict)?;
                    }
                }
            }
        }
        for group in linked.into_values() {
            self.plan_linked(&mut plan, group)?;
        }
        plan.dirs.sort_by(|a, b| (a.root, &a.path).cmp(&(b.root, &b.path)));
        Ok(plan)
    }

    /// Adds what hangs together with the items: other catalogued names of a linked inode, and parents that the
    /// destination does not have yet. All names of one file come in one batch; files whose names would be too many for
    /// it are left to the next one.
    fn with_relatives(&self, items: Vec<Item>, plan: &mut Plan) -> Result<Vec<Item>, DatabaseError> {
        let mut queue = VecDeque::from(once_each(items));
        let mut have: HashSet<(usize, Key)> = queue.iter().filter_map(key_of).collect();
        let (mut out, mut brought) = (Vec::with_capacity(queue.len()), 0);
        while let Some(item) = queue.pop_front() {
            let Some((ground, work)) = self.work_of(&item) else {
                out.push(item);
                continue;
            };
            let files = linked_handles(ground, &item, self.holds);
            let is_news = |(handle, _): &(Handle, _)| !plan.linked.has(work.root, handle);
            if brought >= limits::BATCH_PATHS && files.iter().any(is_news) {
                plan.rest.push(work);
                continue;
            }
            let mut relatives: Vec<(Key, Mask)> =
                self.new_parent(ground, &item, &work)?.into_iter().collect();
            for (handle, seen) in files {
                // With the first name of a file come all of them: asked for each, the work would grow with the square.
                if plan.linked.add(work.root, handle.clone(), seen.map(|stat| stat.nlink)) {
                    let names = self.names_to_look_at(ground, &work.path, &handle, seen)?;
                    relatives.extend(names.into_iter().map(|key| (key, work.mask)));
                }
            }
            for (key, mask) in relatives {
                let path = key.path();
                if have.insert((work.root, key)) {
                    let looked = examine_path(ground, self.catalog, &Work { path, mask, ..work.clone() })?;
                    brought += looked.items.len();
                    queue.extend(looked.items);
                }
            }
            out.push(item);
        }
        Ok(out)
    }

    /// What would lead to the item again; `None` if nothing hangs on it.
    fn work_of(&self, item: &Item) -> Option<(&Ground, Work)> {
        let (root, path, mask, seq) = match item {
            Item::Check { root, path, mask, seq, .. } => (*root, path.clone(), *mask, *seq),
            Item::Gone { root, key, mask, seq, .. } => (*root, key.path(), *mask, *seq),
            Item::Unknown { .. } => return None,
        };
        let work = Work { root, path, scope: Scope::SelfOnly, mask, seq };
        self.grounds[root].as_ref().map(|ground| (ground, work))
    }

    /// The names of a file that a look at one of them asks for. None, where all rows say what was seen: any change of the
    /// file or of its names would show there. Then a name that is new wants only one to be a link to.
    fn names_to_look_at(
        &self,
        ground: &Ground,
        path: &RelPath,
        handle: &Handle,
        seen: Option<Stat>,
    ) -> Result<Vec<Key>, DatabaseError> {
        let terms = Terms { holds: self.holds, stable_inodes: ground.tree.stable_inodes() };
        let says_so = |row: &Row| {
            // Whatever the kind: a look at another name is no look at this one.
            row.settled && seen.is_some_and(|seen| examine::is_same(&row.known(), &seen, terms))
        };
        let rows = self.catalog.rows_of_handle(ground.catalog, handle)?;
        if !rows.iter().all(|(_, row)| says_so(row)) {
            return self.catalog.names_of_handle(ground.catalog, handle);
        }
        let is_known = rows.iter().any(|(key, _)| key.path() == *path);
        let wanted = usize::from(self.holds.hard_links && !is_known);
        Ok(rows.into_iter().take(wanted).map(|(key, _)| key).collect())
    }

    /// The directory of what is new, if that is new, too.
    fn new_parent(
        &self,
        ground: &Ground,
        item: &Item,
        work: &Work,
    ) -> Result<Option<(Key, Mask)>, DatabaseError> {
        let is_new = self.holds.all_kinds && matches!(item, Item::Check { row: None, .. });
        let Some(parent) = work.path.parent().filter(|_| is_new) else { return Ok(None) };
        let key = Key::new(&parent, Kind::Dir);
        let known = self.catalog.get(ground.catalog, &key)?.is_some();
        Ok((!known).then_some((key, Mask::UNKNOWN)))
    }

    fn plan_gone(&self, plan: &mut Plan, root: usize, key: Key, row: Row) {
        let Some(ground) = &self.grounds[root] else { return };
        let root = ground.catalog;
        let (now_ns, run) = (self.now_ns, self.run);
        if !row.has_object() {
            plan.changes.push(Change::Remove { root, key });
            return;
        }
        // A foreign object that held a file of ours back holds nothing any more.
        let state = if row.origin == Origin::ListedForeign { RowState::Present } else { RowState::Absent };
        plan.tally.newly_absent += u64::from(state == RowState::Absent);
        plan.changes.push(Change::State { root, key, state, now_ns, run });
    }

    fn plan_one(&self, plan: &mut Plan, mut op: Op, verdict: Verdict) -> Result<(), DatabaseError> {
        let Some(ground) = &self.grounds[op.root] else { return Ok(()) };
        let (root, key) = (ground.catalog, Key::new(&op.path, op.stat.kind));
        let (now_ns, run) = (self.now_ns, self.run);
        match verdict {
            Verdict::Same => {
                plan.tally.same += 1;
                if op.row.as_ref().is_some_and(|r| r.state != RowState::Present) {
                    plan.changes.push(Change::State { root, key, state: RowState::Present, now_ns, run });
                }
            }
            Verdict::Refresh => {
                let row = self.refreshed(ground, &op);
                match &op.row {
                    Some(old) if old.origin != Origin::Made => plan.tally.adopted += 1,
                    _ if !self.holds.holds(op.stat.kind) => {
                        plan.tally.unheld += u64::from(!op.stat.kind.is_dir());
                    }
                    _ => plan.tally.same += 1,
                }
                plan.changes.push(Change::Put { root, key, row });
            }
            Verdict::HoldForeign => {
                plan.tally.newly_held += 1;
                plan.changes.push(Change::State { root, key, state: RowState::Held, now_ns, run });
            }
            Verdict::Displaced => {
                plan.changes.push(Change::State { root, key, state: RowState::Absent, now_ns, run });
                plan.tally.newly_absent += 1;
                plan.owed.push(owed(&op, Class::Kind, "an object of another kind has to go first".into()));
            }
            Verdict::Attributes if op.stat.kind.is_dir() => {
                op.action = Action::MakeDir; // an adopted one may be missing by now
                plan.dirs.push(op);
            }
            Verdict::Attributes => plan.nodes.push(op),
            Verdict::Send | Verdict::Compare => self.plan_send(plan, op, verdict)?,
        }
        Ok(())
    }

    fn plan_send(&self, plan: &mut Plan, mut op: Op, verdict: Verdict) -> Result<(), DatabaseError> {
        let Some(ground) = &self.grounds[op.root] else { return Ok(()) };
        if let Some(other) = self.catalog.in_the_way(ground.catalog, &op.path, op.stat.kind)? {
            plan.owed.push(blocked(&op, &other));
            return Ok(());
        }
        op.action = match op.stat.kind {
            Kind::Dir => Action::MakeDir,
            Kind::File => Action::Content { compare: verdict == Verdict::Compare },
            Kind::Symlink => Action::Symlink,
            _ => Action::Special,
        };
        if op.action == Action::MakeDir {
            plan.dirs.push(op)
        } else {
            plan.nodes.push(op)
        }
        Ok(())
    }

    /// The names of one inode: where one of them is at the destination already, or is sent, the others become links
    /// to it.
    fn plan_linked(&self, plan: &mut Plan, names: Vec<(Op, Verdict)>) -> Result<(), DatabaseError> {
        let sent = |v: &Verdict| matches!(v, Verdict::Send | Verdict::Compare);
        let Some(ground) = names.first().and_then(|(op, _)| self.grounds[op.root].as_ref()) else {
            return Ok(());
        };
        let has_row = |op: &Op| {
            let handle = || ground.tree.handle(&op.path);
            op.row.as_ref().is_some_and(|r| r.has_object() && r.is_of(&op.stat, handle().as_ref()))
        };
        // A name that has to wait is none that others could be links to.
        let mut group = Vec::with_capacity(names.len());
        for (op, verdict) in names {
            match self.catalog.in_the_way(ground.catalog, &op.path, op.stat.kind)? {
                Some(other) if sent(&verdict) => plan.owed.push(blocked(&op, &other)),
                _ => group.push((op, verdict)),
            }
        }
        // A name that has an object of this inode leads, so that an unchanged content is not sent again.
        let leader = group
            .iter()
            .position(|(op, v)| has_row(op) && !matches!(v, Verdict::HoldForeign))
            .or_else(|| group.iter().position(|(_, v)| sent(v)));
        let Some(leader) = leader else {
            return group.into_iter().try_for_each(|(op, v)| self.plan_one(plan, op, v));
        };
        let to = group[leader].0.path.clone();
        let leader_sent = sent(&group[leader].1);
        for (i, (mut op, verdict)) in group.into_iter().enumerate() {
            let follows = i != leader && (leader_sent || sent(&verdict)) && verdict != Verdict::HoldForeign;
            if !follows {
                self.plan_one(plan, op, verdict)?;
                continue;
            }
            op.action = Action::LinkTo(to.clone());
            plan.links.push(op);
        }
        Ok(())
    }

    /// The row after nothing but its local side changed, or after an adoption.
    fn refreshed(&self, ground: &Ground, op: &Op) -> Row {
        let settled_now = examine::is_settled(&op.stat, ground.tree.now_ns());
        let handle = ground.tree.handle(&op.path);
        let (sha1, object, was_settled) = match &op.row {
            Some(old) => (old.sha1, old.object.clone(), old.settled || old.origin != Origin::Made),
            None => (None, String::new(), false),
        };
        let mut row = examine::made_row(&op.stat, sha1, object, handle, self.now_ns);
        row.settled = was_settled && settled_now;
        row
    }
}

/// Ours goes once the guard has released it; somebody else's stays until its owner takes it away.
fn blocked(op: &Op, (key, origin): &(Key, Origin)) -> Owed {
    let path = key.path();
    match origin {
        Origin::ListedForeign => owed(
            op,
            Class::Error,
            format!("an object that is not ours stands in its way at {path}; take it away"),
        ),
        _ => owed(op, Class::Kind, format!("{path} has to go first")),
    }
}

pub fn owed(op: &Op, class: Class, reason: String) -> Owed {
    Owed {
        root: op.root,
        path: op.path.clone(),
        scope: Scope::SelfOnly,
        mask: op.mask,
        seq: op.seq,
        class,
        reason,
        wait: None,
    }
}

/// The handles by which a file has other names: of what stands there now, and of what the row was made from, which may
/// have been written through this name before it was replaced or removed. With each what was seen of it now. Of kinds
/// that the leg does not hold, nothing follows for other names.
fn linked_handles(ground: &Ground, item: &Item, holds: Holds) -> Vec<(Handle, Option<Stat>)> {
    let linked = |stat: &Stat| stat.nlink > 1 && !stat.kind.is_dir() && holds.holds(stat.kind);
    let (now, row) = match item {
        Item::Check { path, stat, row, .. } => {
            let now = linked(stat).then(|| ground.tree.handle(path)).flatten();
            (now.map(|handle| (handle, Some(*stat))), row.as_deref())
        }
        Item::Gone { row, .. } => (None, Some(&**row)),
        Item::Unknown { .. } => (None, None),
    };
    let before = row.filter(|row| linked(&row.stat)).and_then(|row| row.handle.clone());
    let before = before.filter(|handle| now.as_ref().is_none_or(|(now, _)| now != handle));
    now.into_iter().chain(before.map(|handle| (handle, None))).collect()
}

/// Of a root: its inode number, and when that was given to it.
type File = (usize, u64, Option<i64>);

/// The files of which some look saw more than one name. A look at another name may be older than the link.
fn files_with_names(items: &[Item]) -> BTreeSet<File> {
    let with_names = items.iter().filter_map(|item| match item {
        Item::Check { root, stat, .. } if stat.kind == Kind::File && stat.nlink > 1 => {
            Some((*root, stat.ino, stat.btime_ns))
        }
        _ => None,
    });
    with_names.collect()
}

/// Two reasons to look at a path are one look.
fn once_each(items: Vec<Item>) -> Vec<Item> {
    let mut at: HashMap<(usize, Key), usize> = HashMap::with_capacity(items.len());
    let mut out: Vec<Item> = Vec::with_capacity(items.len());
    for item in items {
        let place = key_of(&item).and_then(|key| match at.entry(key) {
            Entry::Occupied(place) => Some(*place.get()),
            Entry::Vacant(free) => {
                free.insert(out.len());
                None
            }
        });
        match (place.map(|place| &mut out[place]), item) {
            (Some(Item::Check { mask, .. } | Item::Gone { mask, .. }), item) => *mask |= mask_of(&item),
            (_, item) => out.push(item),
        }
    }
    out
}

fn mask_of(item: &Item) -> Mask {
    match item {
        Item::Check { mask, .. } | Item::Gone { mask, .. } | Item::Unknown { mask, .. } => *mask,
    }
}

fn key_of(item: &Item) -> Option<(usize, Key)> {
    match item {
        Item::Check { root, path, stat, .. } => Some((*root, Key::new(path, stat.kind))),
        Item::Gone { root, key, .. } => Some((*root, key.clone())),
        Item::Unknown { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use shared::identity::Identity;
    use shared::rules::Rules;

    use super::*;
    use crate::catalog::CatalogRoot;
    use crate::tree::proven::ProvenTree;
    use crate::tree::{Look, Tree};

    const HOLDS: Holds =
        Holds { all_kinds: true, attributes: true, hard_links: true, writers: false, nanoseconds: true };

    #[test]
    fn the_other_names_that_one_batch_brings_are_bounded_and_those_of_one_file_stay_together() {
        const NAMES: usize = 4;
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        let tree: Arc<dyn Tree> = {
            fs::create_dir(&top).unwrap();
            Arc::new(ProvenTree::open(&top).unwrap())
        };
        let mut catalog = Catalog::open(&dir.path().join("catalog.db")).unwrap();
        let identity = Identity { fs: "x".into(), uuid: None, subvolume: None, inode: 1, btime_ns: None };
        let root = catalog.put_root("r", &RelPath::root(), &identity).unwrap();
        let path = |file: usize, name: usize| RelPath::parse(format!("{file}.{name}").as_bytes()).unwrap();
        let mut rows = Vec::new();
        for file in 0..limits::BATCH_PATHS {
            fs::write(top.join(format!("{file}.0")), "").unwrap();
            for name in 0..NAMES {
                if name > 0 {
                    fs::hard_link(top.join(format!("{file}.0")), top.join(format!("{file}.{name}"))).unwrap();
                }
                let (path, key) = (path(file, name), Key::new(&path(file, name), Kind::File));
                let Look::Found(stat) = tree.look(&path) else { panic!("{path}") };
                let handle = tree.handle(&path);
                // Made with fewer names: each of them is to be looked at.
                rows.push(Change::Put {
                    root,
                    key,
                    row: examine::made_row(&stat, None, "o".into(), handle, 0),
                });
            }
        }
        catalog.apply(&rows, &[]).unwrap();
        let ground = Ground { tree, rules: Arc::new(Rules::new(&[]).unwrap()), catalog: root };
        let grounds = [Some(ground.clone())];
        let planner = Planner { grounds: &grounds, catalog: &catalog, holds: HOLDS, now_ns: 0, run: 1 };
        let work =
            |file| Work { root: 0, path: path(file, 2), scope: Scope::SelfOnly, mask: Mask::MODIFY, seq: 1 };
        let look = |work: &Work| examine_path(&ground, &catalog, work).unwrap().items;
        let items: Vec<Item> = (0..limits::BATCH_PATHS).flat_map(|file| look(&work(file))).collect();
        let plan = planner.plan(items).unwrap();
        let whole = limits::BATCH_PATHS.div_ceil(NAMES - 1);
        assert_eq!(plan.tally.examined as usize, whole * NAMES);
        assert_eq!(plan.rest, (whole..limits::BATCH_PATHS).map(work).collect::<Vec<_>>());
    }

    #[test]
    fn a_name_whose_object_is_of_an_inode_that_is_gone_leads_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("there"), "content").unwrap();
        fs::hard_link(top.join("there"), top.join("again")).unwrap();
        let tree: Arc<dyn Tree> = Arc::new(ProvenTree::open(&top).unwrap());
        let mut catalog = Catalog::open(&dir.path().join("catalog.db")).unwrap();
        let root = CatalogRoot(1);
        let [again, there] = [b"again", b"there"].map(|name| RelPath::parse(name).unwrap());
        let Look::Found(stat) = tree.look(&there) else { panic!("it is there") };
        let row = |handle| examine::made_row(&stat, None, "o".into(), handle, 0);
        let handle = tree.handle(&there).unwrap();
        let gone = Handle { bytes: handle.bytes.iter().map(|b| !b).collect(), ..handle.clone() };
        let old = Row { stat: Stat { size: 1, ..stat }, state: RowState::Absent, ..row(Some(gone)) };
        let put = |path: &RelPath, row| Change::Put { root, key: Key::new(path, Kind::File), row };
        let known = Row { settled: true, ..row(Some(handle)) };
        catalog.apply(&[put(&again, old), put(&there, known)], &[]).unwrap();
        let ground = Ground { tree, rules: Arc::new(Rules::new(&[]).unwrap()), catalog: root };
        let work = Work { root: 0, path: again.clone(), scope: Scope::SelfOnly, mask: Mask::CREATE, seq: 1 };
        let items = examine_path(&ground, &catalog, &work).unwrap().items;
        let grounds = [Some(ground)];
        let planner = Planner { grounds: &grounds, catalog: &catalog, holds: HOLDS, now_ns: 0, run: 1 };
        let plan = planner.plan(items).unwrap();
        let links: Vec<_> = plan.links.iter().map(|op| (&op.path, &op.action)).collect();
        assert_eq!(links, [(&again, &Action::LinkTo(there))]);
        assert!(plan.nodes.is_empty(), "what the destination has is not sent again: {:?}", plan.nodes);
    }
}
