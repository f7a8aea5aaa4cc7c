//! What btrfs tells of an open root: its generation, and what was touched since one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use shared::entry::{Cause, Mask, Scope};
use shared::journal::{Change, Generation, RootId};
use shared::limits;
use shared::path::RelPath;

use super::Whole;
use super::items::{
    self, FIRST_INODE, INODE_EXTREF, INODE_ITEM, INODE_REF, ITEM_BYTES_MAX, Inode, Items, Key, LAST_INODE,
    Name,
};
use super::paths::Paths;
use super::sys::{self, Search};
use crate::roots::{OpenRoot, OwnDir, TrackedRoot};

/// The subvolume, its root directory, and the transaction that the filesystem is in.
pub fn now(open: &OpenRoot) -> Result<Generation, Whole> {
    let io = |op| move |source| Whole::Io { op, source };
    let subvolume = sys::subvolume_uuid(open.fd.as_fd()).map_err(io("read the subvolume's UUID"))?;
    if subvolume == [0; 16] {
        return Err(Whole::Unproven("the subvolume has no UUID"));
    }
    let generation = sys::generation(open.fd.as_fd()).map_err(io("read the generation"))?;
    let mount = mount(open).ok_or(Whole::Unproven("its mount cannot be told from a later one"))?;
    Ok(Generation { subvolume, inode: open.identity.inode, generation, mount: Some(mount) })
}

/// Which mount of the filesystem this is: its directory in sysfs comes with the first mount and goes with the last, and
/// the kernel never gives its inode number again until the next boot. The numbers of mounts themselves would not do:
/// each start of a service with a view of its own has others.
pub fn mount(open: &OpenRoot) -> Option<u64> {
    let uuid = open.identity.uuid.as_ref()?;
    Some(std::fs::metadata(format!("/sys/fs/btrfs/{uuid}")).ok()?.ino())
}

/// What changed below a root since the recorded generation.
pub fn changes_since(
    root: &TrackedRoot,
    open: &OpenRoot,
    own: &[OwnDir],
    since: u64,
) -> Result<Vec<Change>, Whole> {
    let fd = open.fd.as_fd();
    // Changes of inodes stand in memory for a while before they stand in the tree.
    rustix::fs::syncfs(fd).map_err(|e| Whole::Io { op: "sync the filesystem", source: e.into() })?;
    let mut search = Search::new();
    let inodes = changed_inodes(&mut search, fd, since)?;
    let own = own.iter().filter(|o| o.dev == open.attachment.dev).map(|o| o.inode).collect();
    let mut paths = Paths::new(open.identity.inode, own, |inode| names_of(&mut search, fd, inode));
    let mut changes = Vec::new();
    for (number, inode) in inodes {
        let at = if inode.is_dir { paths.dir(number)?.into_iter().collect() } else { paths.names(number)? };
        let kept = at.into_iter().filter(|path| !root.rules.excludes(path, inode.is_dir));
        changes.extend(kept.map(|path| change(root.id, path, inode.is_dir)));
        if changes.len() > limits::GENERATION_PATHS_MAX {
            return Err(Whole::TooMany);
        }
    }
    Ok(changes)
}

/// A directory was touched because of its names, or of itself; what is in it speaks for itself.
fn change(root: RootId, path: RelPath, is_dir: bool) -> Change {
    let scope = if is_dir { Scope::Names } else { Scope::SelfOnly };
    Change { root, path, handle: None, scope, cause: Cause::Generation, mask: Mask::UNKNOWN }
}

/// The inodes that a transaction from `since` on touched, and that still have a name.
fn changed_inodes(
    search: &mut Search,
    fd: BorrowedFd<'_>,
    since: u64,
) -> Result<BTreeMap<u64, Inode>, Whole> {
    let mut changed = BTreeMap::new();
    let from = Key { objectid: FIRST_INODE, kind: 0, offset: 0 };
    let to = Key { objectid: LAST_INODE, kind: u8::MAX, offset: u64::MAX };
    each_item(search, fd, from, to, since, |item| {
        if item.key.kind == INODE_ITEM {
            let inode = items::inode(item.data)?;
            if inode.transid >= since && inode.nlink > 0 {
                changed.insert(item.key.objectid, inode);
            }
        }
        if changed.len() > limits::GENERATION_PATHS_MAX { Err(Whole::TooMany) } else { Ok(()) }
    })?;
    Ok(changed)
}

fn names_of(search: &mut Search, fd: BorrowedFd<'_>, inode: u64) -> Result<Vec<Name>, Whole> {
    let mut names = Vec::new();
    let from = Key { objectid: inode, kind: INODE_REF, offset: 0 };
    let to = Key { objectid: inode, kind: INODE_EXTREF, offset: u64::MAX };
    each_item(search, fd, from, to, 0, |item| {
        names.extend(items::names(&item)?);
        Ok(())
    })?;
    Ok(names)
}

fn each_item(
    search: &mut Search,
    fd: BorrowedFd<'_>,
    from: Key,
    to: Key,
    since: u64,
    mut each: impl FnMut(items::Item<'_>) -> Result<(), Whole>,
) -> Result<(), Whole> {
    let mut from = Some(from);
    while let Some(begin) = from.filter(|from| *from <= to) {
        let found = search.run(fd, begin, to, since);
        let (count, bytes) =
            found.map_err(|source| Whole::Io { op: "search the subvolume's tree", source })?;
        if count == 0 {
            break;
        }
        let mut last = begin;
        let mut items = Items::new(count, bytes);
        for item in &mut items {
            let item = item?;
            last = item.key;
            each(item)?;
        }
        // With room for any further item there is none.
        from = last.next().filter(|_| items.room() < ITEM_BYTES_MAX);
    }
    Ok(())
}
