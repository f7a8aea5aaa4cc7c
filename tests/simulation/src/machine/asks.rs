//! What programs ask of the machine: who a directory is, and where handles lead.

use shared::entry::Handle;
use shared::identity::{Attachment, Identity};

use super::{Machine, Spot};
use crate::disk::{Disk, Errno, FsKind, Id, Name};

/// A directory in the one that it lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpLink {
    pub dir: Handle,
    pub parent: Handle,
    pub name: Name,
}

/// What the device numbers of subvolumes are apart.
const SUBVOLUME_SHIFT: u32 = 40;

impl Machine {
    /// st_dev of what lies on a filesystem: on btrfs each subvolume has its own.
    pub fn st_dev(&self, dev: u64, id: Id) -> u64 {
        dev | (id.root << SUBVOLUME_SHIFT)
    }

    pub fn identity(&self, spot: Spot) -> Result<(Identity, Attachment), Errno> {
        let disk = self.disk(spot.dev).ok_or(Errno::NODEV)?;
        if disk.dead && disk.kind != FsKind::Ext4 {
            return Err(Errno::IO);
        }
        let inode = disk.inode(spot.id)?;
        let identity = Identity {
            fs: disk.kind.name().to_owned(),
            uuid: Some(disk.uuid.clone()),
            subvolume: (disk.kind == FsKind::Btrfs).then_some(spot.id.root),
            inode: inode.id.ino,
            btime_ns: Some(inode.btime_ns),
        };
        let number = self.mount_of(spot.mount).map(|mount| mount.number);
        Ok((identity, Attachment { dev: self.st_dev(spot.dev, spot.id), mount_id: number }))
    }

    /// What a handle leads to. Of a dead disk nothing can be read: ESTALE, as the kernel makes of EIO.
    fn by_handle(&self, dev: u64, handle: &Handle) -> Result<(&Disk, Id), Errno> {
        let disk = self.disk(dev).filter(|disk| !disk.dead).ok_or(Errno::STALE)?;
        Ok((disk, disk.open_by_handle(handle)?))
    }

    /// The way from a directory up to the first one that is known; nothing if it is known itself. ESTALE if it is deleted,
    /// ENOENT if nothing up to the top is known.
    pub fn links_up(
        &self,
        dev: u64,
        dir: &Handle,
        is_known: impl Fn(&Handle) -> bool,
    ) -> Result<Vec<UpLink>, Errno> {
        let (disk, mut at) = self.by_handle(dev, dir)?;
        let mut dir = dir.clone();
        let mut links = Vec::new();
        if at != disk.top() && disk.names(at)?.is_empty() {
            return Err(Errno::STALE);
        }
        while !is_known(&dir) {
            let link = disk.names(at)?.first().ok_or(Errno::NOENT)?;
            let parent = disk.handle_of(link.dir);
            links.push(UpLink { dir, parent: parent.clone(), name: link.name.clone() });
            (at, dir) = (link.dir, parent);
        }
        Ok(links)
    }

    /// All names of a file, by the handles of their directories; none of what is deleted and still open.
    pub fn names(&self, dev: u64, file: &Handle) -> Result<Vec<(Handle, Name)>, Errno> {
        let (disk, id) = self.by_handle(dev, file)?;
        let links = disk.names(id)?;
        Ok(links.iter().map(|link| (disk.handle_of(link.dir), link.name.clone())).collect())
    }

    /// One name of a file, by `pick` among so many, and whether it is the only one.
    pub fn name_of(
        &self,
        dev: u64,
        file: &Handle,
        pick: impl FnOnce(usize) -> usize,
    ) -> Result<Option<(Handle, Name, bool)>, Errno> {
        let names = self.names(dev, file)?;
        let (count, at) = (names.len(), if names.is_empty() { 0 } else { pick(names.len()) });
        Ok(names.into_iter().nth(at).map(|(dir, name)| (dir, name, count == 1)))
    }

    /// Whether a directory has this name and it is this object.
    pub fn has(&self, dev: u64, dir: &Handle, name: &[u8], file: &Handle) -> bool {
        let found = self.by_handle(dev, dir).and_then(|(disk, dir)| {
            let id = disk.child(dir, name)?;
            Ok(disk.handle_of(id) == *file)
        });
        found == Ok(true)
    }
}
