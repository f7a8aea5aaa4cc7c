//! From looks to a plan: what is written to the catalog at once, what is sent, and what is owed. The only I/O is
//! reading the catalog and looking at paths that hang together (other names of an inode, parents).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use shared::database::DatabaseError;
use shared::entry::{Handle, Mask, Scope};
use shared::journal::Class;
use shared::path::RelPath;

use super::linked::LinkedFiles;
use super::source::{Ground, Item, Work, examine_path};
use crate::catalog::{Catalog, Change, Key, Origin, Row, RowState};
use crate::examine::{self, Terms, Verdict};
use crate::leg::Holds;
use crate::tree::{Kind, Look, Stat};

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
        let items = self.with_relatives(items, &mut plan.linked)?;
        let mut linked: BTreeMap<(usize, u64), Vec<(Op, Verdict)>> = BTreeMap::new();
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
                    if self.holds.hard_links && stat.kind == Kind::File && stat.nlink > 1 {
                        linked.entry((root, stat.ino)).or_default().push((op, verdict));
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
    /// destination does not have yet.
    fn with_relatives(&self, items: Vec<Item>, linked: &mut LinkedFiles) -> Result<Vec<Item>, DatabaseError> {
        let mut items = once_each(items);
        let mut have: HashSet<(usize, Key)> = items.iter().filter_map(key_of).collect();
        let mut next = 0;
        while next < items.len() {
            for (work, key) in self.relatives(&items[next], linked)? {
                let Some(ground) = &self.grounds[work.root] else { continue };
                if !have.insert((work.root, key)) {
                    continue;
                }
                items.extend(examine_path(ground, self.catalog, &work)?.items);
            }
            next += 1;
        }
        Ok(items)
    }

    fn relatives(&self, item: &Item, linked: &mut LinkedFiles) -> Result<Vec<(Work, Key)>, DatabaseError> {
        let (root, path, row, mask, seq) = match item {
            Item::Check { root, path, row, mask, seq, .. } => {
                (*root, path.clone(), row.as_deref(), *mask, *seq)
            }
            Item::Gone { root, key, row, mask, seq } => (*root, key.path(), Some(&**row), *mask, *seq),
            Item::Unknown { .. } => return Ok(Vec::new()),
        };
        let Some(ground) = &self.grounds[root] else { return Ok(Vec::new()) };
        let mut out = Vec::new();
        for (handle, links) in linked_handles(ground, item) {
            // With the first name of a file come all of them: asked for each, the work would grow with the square.
            if !linked.add(root, handle.clone(), links) {
                continue;
            }
            for key in self.catalog.names_of_handle(ground.catalog, &handle)? {
                let path = key.path();
                out.push((Work { root, path, scope: Scope::SelfOnly, mask, seq }, key));
            }
        }
        let is_new = matches!(item, Item::Check { .. }) && row.is_none();
        if let Some(parent) = path.parent().filter(|_| is_new && self.holds.all_kinds) {
            let key = Key::new(&parent, Kind::Dir);
            if self.catalog.get(ground.catalog, &key)?.is_none() {
                out.push((
                    Work { root, path: parent, scope: Scope::SelfOnly, mask: Mask::UNKNOWN, seq },
                    key,
                ));
            }
        }
        Ok(out)
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
    fn plan_linked(&self, plan: &mut Plan, group: Vec<(Op, Verdict)>) -> Result<(), DatabaseError> {
        let sent = |v: &Verdict| matches!(v, Verdict::Send | Verdict::Compare);
        let has_row = |op: &Op| op.row.as_ref().is_some_and(|r| r.has_object() && r.stat.ino == op.stat.ino);
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
            let Some(ground) = &self.grounds[op.root] else { continue };
            if let Some(other) = self.catalog.in_the_way(ground.catalog, &op.path, op.stat.kind)? {
                plan.owed.push(blocked(&op, &other));
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

/// The operation that sets a directory's attributes after its content changed; `None` if it is not there any more.
pub fn touch_op(
    ground: &Ground,
    catalog: &Catalog,
    root: usize,
    dir: &RelPath,
    seq: u64,
) -> Result<Option<Op>, DatabaseError> {
    let Look::Found(stat) = ground.tree.look(dir) else { return Ok(None) };
    if !stat.kind.is_dir() || ground.rules.excludes(dir, true) {
        return Ok(None);
    }
    let row = catalog.get(ground.catalog, &Key::new(dir, Kind::Dir))?;
    Ok(Some(Op { root, path: dir.clone(), stat, row, action: Action::Attributes, mask: Mask::ATTRIB, seq }))
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
/// have been written through this name before it was replaced or removed. With each the link count, where it was seen.
fn linked_handles(ground: &Ground, item: &Item) -> Vec<(Handle, Option<u64>)> {
    let linked = |stat: &Stat| stat.nlink > 1 && !stat.kind.is_dir();
    let (now, row) = match item {
        Item::Check { path, stat, row, .. } => {
            let now = linked(stat).then(|| ground.tree.handle(path)).flatten();
            (now.map(|handle| (handle, Some(stat.nlink))), row.as_deref())
        }
        Item::Gone { row, .. } => (None, Some(&**row)),
        Item::Unknown { .. } => (None, None),
    };
    let before = row.filter(|row| linked(&row.stat)).and_then(|row| row.handle.clone());
    let before = before.filter(|handle| now.as_ref().is_none_or(|(now, _)| now != handle));
    now.into_iter().chain(before.map(|handle| (handle, None))).collect()
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
