//! What an event asks to look at again. Pure: the names are resolved already. Bits of merged events carry no order,
//! so only their union counts.

use shared::entry::{Cause, Handle, Mask, Scope};
use shared::journal::Change;
use shared::path::RelPath;

use crate::intake::records::HandleRef;
use crate::roots::TrackedRoot;

/// BTRFS_FIRST_FREE_OBJECTID: the inode number of every subvolume's root, which stands first in btrfs handles.
const BTRFS_SUBVOLUME_ROOT: u64 = 256;

/// The bits of fanotify that a journal row keeps.
pub fn mask_of(fanotify: u64) -> Mask {
    let pairs = [
        (libc::FAN_CREATE, Mask::CREATE),
        (libc::FAN_DELETE, Mask::DELETE),
        (libc::FAN_MODIFY, Mask::MODIFY),
        (libc::FAN_CLOSE_WRITE, Mask::CLOSE_WRITE),
        (libc::FAN_ATTRIB, Mask::ATTRIB),
        (libc::FAN_RENAME, Mask::RENAME),
        (libc::FAN_ONDIR, Mask::ONDIR),
    ];
    pairs.into_iter().filter(|(bit, _)| fanotify & bit != 0).fold(Mask::empty(), |all, (_, mask)| all | mask)
}

/// A new directory's later content has events of its own; a new subvolume's (a snapshot's) does not.
pub fn is_subvolume(fs: &str, target: Option<HandleRef<'_>>) -> bool {
    let inode = target.and_then(|h| h.bytes.first_chunk().map(|b| u64::from_le_bytes(*b)));
    fs == "btrfs" && inode == Some(BTRFS_SUBVOLUME_ROOT)
}

/// The subvolume that a btrfs handle is in: the second number of it.
pub fn subvolume_of(handle: HandleRef<'_>) -> Option<u64> {
    handle.bytes.get(8..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

pub fn scope_of(mask: Mask, subvolume: bool) -> Scope {
    let whole = mask.intersects(Mask::RENAME | Mask::DELETE) || (mask.contains(Mask::CREATE) && subvolume);
    if mask.contains(Mask::ONDIR) && whole { Scope::Subtree } else { Scope::SelfOnly }
}

/// The change at one name, unless a rule leaves it out.
pub fn change(root: &TrackedRoot, path: RelPath, mask: Mask, scope: Scope) -> Option<Change> {
    let excluded = root.rules.excludes(&path, mask.contains(Mask::ONDIR));
    (!excluded).then_some(Change { root: root.id, path, handle: None, scope, cause: Cause::Event, mask })
}

/// A file whose name is not known, or not the only one: legs look for it by its handle.
pub fn by_handle(root: &TrackedRoot, handle: &Handle, mask: Mask) -> Change {
    Change {
        root: root.id,
        path: RelPath::root(),
        handle: Some(handle.clone()),
        scope: Scope::Handle,
        cause: Cause::Event,
        mask,
    }
}

/// The name the kernel gives a file made with O_TMPFILE: `#` and its inode number.
pub fn looks_nameless(name: &[u8]) -> bool {
    name.len() > 1 && name[0] == b'#' && name[1..].iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::resolve::doubts::Turn;
    use crate::resolve::tree::Spot;
    use crate::roots::tests::root;
    use std::path::Path;

    const DIR: Mask = Mask::ONDIR;

    fn spot(root: usize, path: &str) -> Spot {
        Spot { root, path: RelPath::parse(path.as_bytes()).unwrap() }
    }

    fn made(exclude: &[&str], spots: &[Spot], name: &[u8], mask: Mask) -> Vec<(i64, Vec<u8>, Scope)> {
        let roots = [root(1, Path::new("/a"), exclude), root(2, Path::new("/a/b"), &[])];
        let mut batch = Batch::default();
        for spot in spots {
            let before = batch.len();
            let made = batch.push_name(&roots[spot.root], &spot.path, name, mask, scope_of(mask, false));
            assert_eq!(made, batch.len() > before);
        }
        let commit = batch.into_commit("fs", Turn::default());
        commit.changes.into_iter().map(|c| (c.root.0, c.path.as_bytes().to_vec(), c.scope)).collect()
    }

    #[test]
    fn the_scope_follows_from_the_union_of_the_bits() {
        use Scope::{SelfOnly, Subtree};
        for (mask, subvolume, scope) in [
            (Mask::CREATE, false, SelfOnly),
            (Mask::MODIFY | Mask::CLOSE_WRITE, false, SelfOnly),
            (Mask::ATTRIB, false, SelfOnly),
            (Mask::ATTRIB | DIR, false, SelfOnly),
            (Mask::DELETE, false, SelfOnly),
            (Mask::RENAME, false, SelfOnly),
            (Mask::CREATE | DIR, false, SelfOnly),
            (Mask::CREATE | DIR, true, Subtree),
            (Mask::DELETE | DIR, false, Subtree),
            (Mask::RENAME | DIR, false, Subtree),
            (Mask::CREATE | Mask::DELETE | DIR, false, Subtree),
        ] {
            assert_eq!(scope_of(mask, subvolume), scope, "{mask:?} {subvolume}");
        }
    }

    #[test]
    fn every_root_that_holds_the_name_gets_its_own_change() {
        let got = made(&[], &[spot(1, ""), spot(0, "b")], b"f", Mask::CREATE);
        assert_eq!(got, [(2, b"f".to_vec(), Scope::SelfOnly), (1, b"b/f".to_vec(), Scope::SelfOnly)]);
        assert_eq!(made(&[], &[], b"f", Mask::CREATE), [], "outside all roots");
    }

    #[test]
    fn an_event_of_the_directory_itself_is_its_own_path() {
        assert_eq!(
            made(&[], &[spot(0, "d")], b".", Mask::ATTRIB | DIR),
            [(1, b"d".to_vec(), Scope::SelfOnly)]
        );
    }

    #[test]
    fn rules_leave_names_out_by_root() {
        let spots = [spot(1, ""), spot(0, "b")];
        assert_eq!(
            made(&["*.tmp"], &spots, b"x.tmp", Mask::MODIFY),
            [(2, b"x.tmp".to_vec(), Scope::SelfOnly)]
        );
        assert_eq!(made(&["cache/"], &[spot(0, "")], b"cache", Mask::CREATE | DIR), []);
        assert_eq!(made(&["cache/"], &[spot(0, "")], b"cache", Mask::CREATE).len(), 1, "a file of that name");
    }

    #[test]
    fn names_are_bytes() {
        assert_eq!(made(&[], &[spot(0, "")], b"a\n\xff\\", Mask::CREATE)[0].1, b"a\n\xff\\");
    }

    #[test]
    fn a_subvolume_is_told_by_its_inode_on_btrfs_only() {
        let handle = |inode: u64| Handle { kind: 0x4d, bytes: inode.to_le_bytes().to_vec() };
        assert!(is_subvolume("btrfs", Some((&handle(256)).into())));
        assert!(!is_subvolume("btrfs", Some((&handle(257)).into())));
        assert!(!is_subvolume("ext4", Some((&handle(256)).into())));
        assert!(!is_subvolume("btrfs", None));
    }

    #[test]
    fn a_btrfs_handle_tells_its_subvolume() {
        let bytes = [257u64.to_le_bytes(), 300u64.to_le_bytes()].concat();
        assert_eq!(subvolume_of(HandleRef { kind: 0x4d, bytes: &bytes }), Some(300));
        assert_eq!(subvolume_of(HandleRef { kind: 0x4d, bytes: &bytes[..12] }), None);
    }

    #[test]
    fn only_a_hash_sign_and_digits_look_nameless() {
        assert!(looks_nameless(b"#12345"));
        for name in [&b"#"[..], b"#12a", b"12", b"x#1"] {
            assert!(!looks_nameless(name), "{name:?}");
        }
    }

    #[test]
    fn the_bits_are_translated() {
        let all = libc::FAN_CREATE | libc::FAN_ONDIR | libc::FAN_RENAME;
        assert_eq!(mask_of(all), Mask::CREATE | Mask::ONDIR | Mask::RENAME);
        assert_eq!(mask_of(libc::FAN_CLOSE_WRITE | libc::FAN_MODIFY), Mask::CLOSE_WRITE | Mask::MODIFY);
    }
}
