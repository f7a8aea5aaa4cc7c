//! What one event of the group becomes: changes of paths, a doubt, or nothing because it is not ours.

use rustix::io::Errno;
use shared::entry::{Handle, Mask, Scope};

use super::Fanotify;
use crate::batch::Batch;
use crate::event_to_entry as entry;
use crate::intake::records::{self, Named, Record};
use crate::resolve::tree::Place;
use crate::resolve::{Lost, NameOf};

impl Fanotify {
    pub(super) fn event(&mut self, record: &Record<'_>, batch: &mut Batch, read: u64) -> Result<(), Lost> {
        if let Some(error) = record.error {
            self.note_error(error, batch);
            return Ok(());
        }
        let mask = entry::mask_of(record.mask);
        batch.kinds.count(mask);
        let target = record.target.map(records::HandleRef::to_handle);
        let scope = entry::scope_of(mask, entry::is_subvolume(&self.fs, target.as_ref()));
        let mut made = false;
        for named in [record.from, record.at, record.to].into_iter().flatten() {
            made |= self.name(&named, target.as_ref(), mask, scope, batch, read)?;
        }
        if let (None, None, None, Some(target)) = (record.from, record.at, record.to, &target) {
            // Each link and unlink changes the link count, an event of its own without a name. A file that is gone
            // had its last name taken away by an event that has one.
            let link_count = mask == Mask::ATTRIB;
            made |= self.nameless(target, mask, scope, link_count, batch)?;
        }
        if let (true, Some(target)) = (mask.contains(Mask::ONDIR), target) {
            self.follow_directory(record, mask, target);
        }
        if made {
            batch.written_by(record.pid);
        } else {
            batch.dropped += 1;
        }
        Ok(())
    }

    /// The changes of one name. False if it is not ours; a doubt is ours.
    fn name(
        &mut self,
        named: &Named<'_>,
        target: Option<&Handle>,
        mask: Mask,
        scope: Scope,
        batch: &mut Batch,
        read: u64,
    ) -> Result<bool, Lost> {
        let dir = named.dir.to_handle();
        let only_content = !mask.intersects(Mask::CREATE | Mask::DELETE | Mask::RENAME);
        if let (true, Some(target)) = (only_content && entry::looks_nameless(named.name), target)
            && !self.resolver.has(&dir, named.name, target)
        {
            // A file that is gone lost each name it had in an event of its own. In a directory without a place
            // "gone" may be the disk failing. The other way round is no proof: a place may come from the cache.
            let has_place = self.resolver.place(&dir).is_ok();
            return self.nameless(target, mask, scope, has_place, batch);
        }
        match self.resolver.place(&dir) {
            Ok(place) => Ok(self.push(&place, named.name, mask, scope, batch)),
            // The link count of a directory that a rename replaced, above all, for which no deletion is ever told.
            // Whatever ended this directory took its name away, by a DELETE or a RENAME to it: the entry of that
            // name covers this, and all that happened inside before.
            Err(Lost::Gone) if named.name == b"." && mask.difference(Mask::ONDIR) == Mask::ATTRIB => {
                self.doubts.settle(&dir);
                Ok(false)
            }
            Err(Lost::Gone | Lost::Stale) => Ok(self.doubts.raise(dir, read)),
            Err(Lost::NoMount) => Err(Lost::NoMount),
        }
    }

    /// A file whose event has no usable name: made with O_TMPFILE, or reached by an NFS handle.
    fn nameless(
        &mut self,
        target: &Handle,
        mask: Mask,
        scope: Scope,
        stale_is_gone: bool,
        batch: &mut Batch,
    ) -> Result<bool, Lost> {
        match self.resolver.name_of(target)? {
            // A name it gets later comes with an event of its own, and so did the end of each it had.
            NameOf::None => Ok(false),
            NameOf::Stale if stale_is_gone => Ok(false),
            NameOf::Known { dir, name } => match self.resolver.place(&dir) {
                Ok(place) => Ok(self.push(&place, &name, mask, scope, batch)),
                Err(Lost::NoMount) => Err(Lost::NoMount),
                Err(Lost::Gone | Lost::Stale) => Ok(self.by_handle(target, mask, batch)),
            },
            NameOf::Stale | NameOf::Unknown => Ok(self.by_handle(target, mask, batch)),
        }
    }

    fn push(&self, place: &Place, name: &[u8], mask: Mask, scope: Scope, batch: &mut Batch) -> bool {
        let Place::In(spots) = place else { return false };
        let mut made = false;
        for change in entry::changes(&self.roots, spots, name, mask, scope) {
            batch.push(change);
            made = true;
        }
        made
    }

    fn by_handle(&self, target: &Handle, mask: Mask, batch: &mut Batch) -> bool {
        entry::by_handle(&self.roots, target, mask).for_each(|change| batch.push(change));
        true
    }

    /// Keeps the cache and the doubts right after an event of a directory. No event says where it lies now: the
    /// names in a RENAME may be older than those of the RENAME behind it, with which a later one was merged, and
    /// behind an overflow a later one may be missing.
    fn follow_directory(&mut self, record: &Record<'_>, mask: Mask, target: Handle) {
        if mask.contains(Mask::DELETE) {
            self.resolver.tree.remove(&target);
            self.doubts.bury(target);
        } else if record.to.is_some() {
            self.resolver.tree.detach(&target);
            self.doubts.settle(&target);
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
