//! What stands on the two sides of a leg, read past the programs: from the simulated disk, and from the destination.

use std::path::Path;

use shared::path::RelPath;
use shared::rules::Rules;
use syncer::leg::Sha1;
use syncer::tree::Kind;

use super::difference::{Item, Items};
use crate::disks::content_hash;
use crate::machine::Machine;
use crate::store::b2;
use crate::store::bucket::Bucket;
use crate::store::directory::Directory;

/// What stands below a root, but for what its rules leave out.
pub fn source(machine: &Machine, root: &Path, rules: &Rules) -> Items {
    let mut items = Items::new();
    machine.walk(root, &mut |path, stat, id, disk| {
        if !path.is_root() && rules.excludes(path, stat.kind.is_dir()) {
            return false;
        }
        let item = Item {
            kind: stat.kind,
            size: stat.size,
            content: content_hash(disk, id),
            mtime_ns: stat.mtime_ns,
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            xattrs: disk
                .inode(id)
                .map(|inode| inode.xattrs.clone().into_iter().collect())
                .unwrap_or_default(),
            inode: stat.ino,
        };
        items.insert(path.clone(), item);
        true
    });
    items
}

/// What a bucket mirrors.
pub fn of_bucket(bucket: &Bucket) -> Items {
    let (objects, _) = b2::mirrored(bucket, &RelPath::root());
    let item = |object: &crate::store::bucket::Object| Item {
        kind: Kind::File,
        size: object.content.size,
        content: short(&object.content.sha1),
        mtime_ns: object.mtime_ms.unwrap_or_default().saturating_mul(1_000_000),
        mode: 0,
        owner: (0, 0),
        xattrs: Vec::new(),
        inode: 0,
    };
    objects.iter().map(|(path, object)| (path.clone(), item(object))).collect()
}

/// What a directory mirrors.
pub fn of_directory(directory: &Directory) -> Items {
    let item = |stat: &syncer::tree::Stat, node: &crate::store::directory::Node| {
        let content = match (&node.content, stat.kind) {
            (Some(content), _) => short(&content.sha1),
            (None, _) => short(&crate::store::Content::of(node.target.clone()).sha1),
        };
        Item {
            kind: stat.kind,
            size: stat.size,
            content,
            mtime_ns: stat.mtime_ns,
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            xattrs: node.xattrs.clone(),
            inode: stat.ino,
        }
    };
    directory.tree().map(|(path, stat, node)| (path, item(&stat, node))).collect()
}

fn short(sha1: &Sha1) -> u128 {
    u128::from_be_bytes(*sha1.first_chunk().expect("20 bytes"))
}
