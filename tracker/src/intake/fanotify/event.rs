//! What one event of the group becomes: changes of paths, an entry by handle, a doubt, or nothing because it is not
//! ours. Where it is nothing, a comment says what covers it.

use rustix::io::Errno;
use shared::entry::{Mask, Scope};

use super::Fanotify;
use crate::batch::Batch;
use crate::event_to_entry as entry;
use crate::host::Host;
use crate::intake::records::{HandleRef, Named, Record};
use crate::resolve::tree::Place;
use crate::resolve::{Lost, NameOf};
use crate::roots::TrackedRoot;

/// What an event says of all its names.
#[derive(Clone, Copy)]
struct What<'a> {
    target: Option<HandleRef<'a>>,
    mask: Mask,
    scope: Scope,
    /// Events read so far.
    read: u64,
}

impl<H: Host> Fanotify<H> {
    pub(super) fn event(&mut self, record: &Record<'_>, batch: &mut Batch, read: u64) -> Result<(), Lost> {
        if let Some(error) = record.error {
            self.note_error(error, batch);
            return Ok(());
        }
        if self.hear(record) {
            return Ok(());
        }
        let mask = entry::mask_of(record.mask);
        batch.kinds.count(mask);
        let target = record.target;
        let scope = entry::scope_of(mask, entry::is_subvolume(&self.fs, target));
        let what = What { target, mask, scope, read };
        let is_dir = mask.contains(Mask::ONDIR);
        let mut made = false;
        if let (false, Some(target)) = (is_dir, target) {
            if mask.contains(Mask::CREATE) {
                self.links.born(target);
            }
            made = self.linked(target, mask, batch)?;
        }
        for named in [record.from, record.at, record.to].into_iter().flatten() {
            made |= self.name(&named, what, batch)?;
        }
        if let (None, None, None, Some(target)) = (record.from, record.at, record.to, target) {
            made |= self.nameless(target, what, batch)?;
        }
        if let (true, Some(target)) = (is_dir, target) {
            self.follow_directory(record, mask, target);
        }
        if made {
            batch.written_by(record.pid);
        } else {
            batch.dropped += 1;
        }
        Ok(())
    }

    /// A file of which some leg knows fewer names than it has: the roots it was published for are asked for it,
    /// wherever this name lies.
    fn linked(&mut self, target: HandleRef<'_>, mask: Mask, batch: &mut Batch) -> Result<bool, Lost> {
        if !mask.intersects(Mask::MODIFY | Mask::CLOSE_WRITE | Mask::ATTRIB) {
            return Ok(false);
        }
        // Of a file that is gone by now, or lost all names but one, the unlinking is an event behind this one: it
        // leads to the name that is left.
        let has_names = || self.links.may_have_names(&mut self.resolver, target);
        let roots = batch.linked.roots_of(&self.roots, target, has_names)?;
        for root in &roots {
            batch.push(entry::by_handle(root, &target.to_handle(), mask));
        }
        Ok(!roots.is_empty())
    }

    /// The changes of one name. False if it is not ours; a doubt is ours.
    fn name(&mut self, named: &Named<'_>, what: What<'_>, batch: &mut Batch) -> Result<bool, Lost> {
        let What { target, mask, scope, read } = what;
        if mask.intersects(Mask::DELETE | Mask::RENAME) {
            self.links.unnamed(named);
        }
        // Whoever has a file open goes on under the name that he opened, when that is gone and another one is left.
        // While a name is made or moved, there is an event behind this one that leads to what is there then.
        let content = !mask.intersects(Mask::CREATE | Mask::RENAME | Mask::ONDIR) && mask != Mask::DELETE;
        let mut made = false;
        if let (true, Some(target)) = (content, target)
            && !self.links.is_named(&mut self.resolver, named, target)
        {
            // A file that is gone lost each name it had in an event of its own. In a directory without a place
            // "gone" may be the disk failing. The other way round is no proof: a place may come from the cache.
            let has_place = self.resolver.place(named.dir).is_ok();
            made = self.by_its_handle(target, what, has_place, batch)?;
            let is_told = mask.contains(Mask::DELETE) || (has_place && !entry::looks_nameless(named.name));
            if !is_told {
                return Ok(made);
            }
        }
        let of_itself = named.name == b"." && mask.difference(Mask::ONDIR) == Mask::ATTRIB;
        if !of_itself && self.doubts.holds(named.dir) {
            return Ok(true);
        }
        match self.resolver.place(named.dir) {
            Ok(place) => Ok(push(&self.roots, &place, named.name, mask, scope, batch) | made),
            // The link count of a directory that a rename replaced, above all, for which no deletion is ever told.
            // Whatever ended this directory took its name away, by a DELETE or a RENAME to it: the entry of that
            // name covers this, and all that happened inside before.
            Err(Lost::Gone) if of_itself => {
                self.doubts.settle(named.dir);
                Ok(false)
            }
            Err(Lost::Gone | Lost::Stale) => Ok(self.doubts.raise(named.dir.to_handle(), read) | made),
            Err(Lost::NoMount) => Err(Lost::NoMount),
        }
    }

    /// An event that names nothing: of the link count, which every link and unlink changes, or of a file that was
    /// reached by its handle (an NFS server does that).
    fn nameless(&mut self, target: HandleRef<'_>, what: What<'_>, batch: &mut Batch) -> Result<bool, Lost> {
        let link_count = what.mask == Mask::ATTRIB;
        // A file that is made and removed again costs no look at the disk: each name it ever had has its own entry
        // in this batch.
        if link_count && self.links.is_born(target) {
            return Ok(false);
        }
        // A file that is gone had its last name taken away by an event that has one.
        self.by_its_handle(target, what, link_count, batch)
    }

    /// Where a file without a usable name is to be looked for.
    fn by_its_handle(
        &mut self,
        target: HandleRef<'_>,
        what: What<'_>,
        stale_is_gone: bool,
        batch: &mut Batch,
    ) -> Result<bool, Lost> {
        let (dir, name, only) = match self.resolver.name_of(target)? {
            // A name it gets later comes with an event of its own, and so did the end of each it had.
            NameOf::None => return Ok(false),
            NameOf::Stale if stale_is_gone => return Ok(false),
            NameOf::Stale | NameOf::Unknown => {
                self.links.alive(target);
                return Ok(self.by_handle(target, what.mask, batch));
            }
            NameOf::Known { dir, name, only } => (dir, name, only),
        };
        self.links.alive(target);
        let place = match self.resolver.place((&dir).into()) {
            Ok(place) => place,
            Err(Lost::NoMount) => return Err(Lost::NoMount),
            Err(Lost::Gone | Lost::Stale) => return Ok(self.by_handle(target, what.mask, batch)),
        };
        if only || what.mask.contains(Mask::ONDIR) {
            // Not ours if this is outside or left out.
            return Ok(push(&self.roots, &place, &name, what.mask, what.scope, batch));
        }
        // Which of its names was found is chance: a root that did not get it may have another.
        for (at, root) in self.roots.iter().enumerate() {
            let mut made = false;
            for spot in spots(&place).iter().filter(|spot| spot.root == at) {
                made |= batch.push_name(root, &spot.path, &name, what.mask, what.scope);
            }
            if !made {
                batch.push(entry::by_handle(root, &target.to_handle(), what.mask));
            }
        }
        Ok(true)
    }

    fn by_handle(&self, target: HandleRef<'_>, mask: Mask, batch: &mut Batch) -> bool {
        let target = target.to_handle();
        self.roots.iter().for_each(|root| batch.push(entry::by_handle(root, &target, mask)));
        true
    }

    /// Keeps the cache and the doubts right after an event of a directory. No event says where it lies now: the
    /// names in a RENAME may be older than those of the RENAME behind it, with which a later one was merged, and
    /// behind an overflow a later one may be missing.
    fn follow_directory(&mut self, record: &Record<'_>, mask: Mask, target: HandleRef<'_>) {
        if mask.contains(Mask::DELETE) {
            self.resolver.tree.remove(target);
            // A subvolume goes with all that is in it, of which nothing else is told.
            if entry::is_subvolume(&self.fs, Some(target)) {
                let gone = entry::subvolume_of(target);
                self.doubts.settle_all(|handle| entry::subvolume_of(handle.into()) == gone);
            }
            self.doubts.bury(target.to_handle());
        } else if record.to.is_some() {
            self.resolver.tree.detach(target);
            self.doubts.settle(target);
        }
    }

    fn note_error(&mut self, error: (i32, u32), batch: &mut Batch) {
        let known = self.last_error.replace(error).is_some_and(|last| last.0 == error.0);
        let text = format!(
            "the filesystem reports an error of its own: {} ({} times)",
            Errno::from_raw_os_error(error.0),
            error.1
        );
        if !known {
            tracing::error!("{text}");
        }
        batch.error = Some(text);
    }
}

fn spots(place: &Place) -> &[crate::resolve::tree::Spot] {
    match place {
        Place::In(spots) => spots,
        Place::Own => &[],
    }
}

fn push(
    roots: &[TrackedRoot],
    place: &Place,
    name: &[u8],
    mask: Mask,
    scope: Scope,
    batch: &mut Batch,
) -> bool {
    let mut made = false;
    for spot in spots(place) {
        made |= batch.push_name(&roots[spot.root], &spot.path, name, mask, scope);
    }
    made
}
