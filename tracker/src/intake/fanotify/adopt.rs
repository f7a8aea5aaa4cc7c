//! Taking over the group and the buffer that an earlier instance left: only what is proven to have missed nothing
//! goes on without a gap.

use std::io;
use std::os::unix::ffi::OsStrExt as _;

use shared::entry::{Cause, Handle};
use shared::journal::IntakeMark;
use xxhash_rust::xxh3::xxh3_64;

use super::Fanotify;
use super::place::{GROUP_FLAGS, MARK_MASK, Roots, marks};
use crate::host::Host;
use crate::intake::buffer::{Recovered, RootMark, Unfit};
use crate::intake::keep::Keep;
use crate::intake::{PlaceError, RootSeen};
use crate::roots::{OwnDir, TrackedRoot};

/// A flag that the kernel itself adds to the mark of a filesystem (measured on 6.18).
const EVENT_ON_CHILD: u64 = libc::FAN_EVENT_ON_CHILD;

/// A source that goes on where the one before was killed or stopped.
pub struct Adopted<H: Host> {
    pub source: Fanotify<H>,
    pub seen: Vec<RootSeen>,
    pub recovered: Recovered,
    /// Roots that need a gap nevertheless.
    pub gaps: Vec<(usize, Cause)>,
    /// A gap over all roots that the one before did not get to commit.
    pub owed: Option<Cause>,
}

/// Why every root needs a gap.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    #[error(transparent)]
    Buffer(Unfit),
    #[error("the mark on the filesystem is gone")]
    Unmarked,
    #[error("the group is not what this version asks for")]
    Otherwise,
    #[error("{0}")]
    Place(PlaceError),
}

impl NotAdopted {
    pub fn cause(&self) -> Cause {
        match self {
            NotAdopted::Buffer(unfit) => unfit.cause(),
            NotAdopted::Unmarked => Cause::Remount,
            NotAdopted::Otherwise | NotAdopted::Place(_) => Cause::Adoption,
        }
    }
}

/// What the journal knows of the filesystem.
pub struct Known {
    pub mark: Option<IntakeMark>,
    pub doubts: Vec<Handle>,
}

impl<H: Host> Fanotify<H> {
    pub fn adopt(
        host: &H,
        roots: &[TrackedRoot],
        own: &[OwnDir],
        keep: &mut Keep<H>,
        known: Known,
    ) -> Result<Adopted<H>, NotAdopted> {
        let mut buffer = keep.take_left().map_err(NotAdopted::Buffer)?;
        let recovered = buffer.recover(known.mark.as_ref()).map_err(NotAdopted::Buffer)?;
        let (marks_then, owed) = (buffer.lasting().roots.clone(), buffer.owed());
        // Whatever is wrong from here on, a new group may use it.
        keep.give_buffer(buffer);
        let group = keep.take_group().ok_or(NotAdopted::Unmarked)?;
        let found = Roots::look(host, roots).map_err(NotAdopted::Place)?;
        let fdinfo = host.fdinfo(&group).unwrap_or_default();
        if !marks(&fdinfo, found.dev) {
            return Err(NotAdopted::Unmarked);
        }
        if !is_as_asked(&fdinfo) {
            return Err(NotAdopted::Otherwise);
        }
        let gaps = gaps(roots, &marks_then, &root_marks(roots, &found.handles()));
        let seen = found.seen.clone();
        let kept = |keep: &mut Keep<H>, group: &H::Group, view: &H::View| {
            host.unmark_dirs(group, view)
                .map_err(|source| PlaceError::Io { op: "take away the mark of a canary", source })?;
            let lost = io::ErrorKind::NotFound.into();
            keep.take_buffer().ok_or(PlaceError::Io { op: "take over the intake buffer", source: lost })
        };
        let mut source = found.into_source(host, group, roots, own, keep, kept).map_err(NotAdopted::Place)?;
        let gone = source.buffer.as_ref().map(|b| b.gone()).unwrap_or_default();
        // A gap over all roots covers what was in doubt.
        let doubts = if owed.is_some() { Vec::new() } else { known.doubts };
        source.doubts.restore(doubts, gone);
        Ok(Adopted { source, seen, recovered, gaps, owed })
    }
}

/// What a buffer says of its roots.
pub(super) fn root_marks(roots: &[TrackedRoot], handles: &[Option<Handle>]) -> Vec<RootMark> {
    let asked = [u64::from(GROUP_FLAGS), MARK_MASK].map(u64::to_ne_bytes).concat();
    let mark = |(root, handle): (&TrackedRoot, &Option<Handle>)| RootMark {
        id: root.id.0,
        rules: xxh3_64(
            &[root.path.as_os_str().as_bytes(), b"\0", root.rules.text().as_bytes(), &asked].concat(),
        ),
        identity: handle.as_ref().map_or(0, |h| xxh3_64(&h.to_blob())),
    };
    roots.iter().zip(handles).map(mark).collect()
}

/// The roots of which events may be missing. One that is not there now gets its gap when it is.
fn gaps(roots: &[TrackedRoot], before: &[RootMark], now: &[RootMark]) -> Vec<(usize, Cause)> {
    let gap = |(i, now): (usize, &RootMark)| {
        let before = before.iter().find(|b| b.id == now.id);
        let cause = match before {
            _ if now.identity == 0 => return None,
            Some(before) if before.rules == now.rules && before.identity == now.identity => return None,
            Some(before) if before.rules == now.rules => Cause::Identity,
            // The journal got this gap together with the new rules.
            _ if roots[i].changed => return None,
            _ => Cause::Rules,
        };
        Some((i, cause))
    };
    now.iter().enumerate().filter_map(gap).collect()
}

/// Flags and mask of the group, by its fdinfo (proc_pid_fdinfo(5)).
fn is_as_asked(fdinfo: &str) -> bool {
    let field = |line: &str, name: &str| {
        let value = line.split_whitespace().find_map(|f| f.strip_prefix(name)?.strip_prefix(':'))?;
        u64::from_str_radix(value, 16).ok()
    };
    let lines = || fdinfo.lines().filter_map(|line| line.strip_prefix("fanotify "));
    let flags = lines().any(|line| field(line, "flags") == Some(u64::from(GROUP_FLAGS)));
    // That of a single directory, which names its inode first, is of a canary that a kill cut short.
    let masks: Vec<u64> =
        lines().filter(|line| line.starts_with("sdev:")).filter_map(|line| field(line, "mask")).collect();
    let with_errors = MARK_MASK | libc::FAN_FS_ERROR;
    let asked = |mask: &u64| [MARK_MASK, with_errors].contains(&(mask & !EVENT_ON_CHILD));
    flags && !masks.is_empty() && masks.iter().all(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roots::tests::root;
    use std::path::Path;

    const FDINFO: &str = "pos:\t0\nflags:\t02004002\nfanotify flags:1e23 event-flags:88000\n\
                          fanotify sdev:fe00000 mflags:0 mask:5800834e ignored_mask:0\n";

    #[test]
    fn a_group_is_adopted_only_with_the_flags_and_the_mask_of_this_version() {
        let text = |flags: u32, mask: u64| {
            let flags = format!("flags:{flags:x} event");
            FDINFO.replace("flags:1e23 event", &flags).replace("mask:5800834e", &format!("mask:{mask:x}"))
        };
        let kernel = EVENT_ON_CHILD;
        assert!(is_as_asked(&text(GROUP_FLAGS, MARK_MASK | kernel)));
        assert!(is_as_asked(&text(GROUP_FLAGS, MARK_MASK | kernel | libc::FAN_FS_ERROR)));
        assert!(!is_as_asked(&text(GROUP_FLAGS, (MARK_MASK | kernel) & !libc::FAN_ATTRIB)));
        assert!(!is_as_asked(&text(GROUP_FLAGS & !libc::FAN_REPORT_TARGET_FID, MARK_MASK | kernel)));
        let canary = "fanotify ino:2 sdev:fe00000 mflags:0 mask:40000020 ignored_mask:0 fhandle-bytes:8\n";
        assert!(is_as_asked(&(text(GROUP_FLAGS, MARK_MASK | kernel) + canary)));
        assert!(!is_as_asked("fanotify flags:1e23 event-flags:88000\n"), "no mark at all");
        assert!(!is_as_asked(""));
    }

    #[test]
    fn exactly_the_roots_that_changed_get_a_gap() {
        let handle = |n| Some(Handle { kind: 1, bytes: vec![n] });
        let before = [root(1, Path::new("/a"), &[]), root(2, Path::new("/b"), &["x"])];
        let marks = root_marks(&before, &[handle(1), handle(2)]);
        assert_eq!(gaps(&before, &marks, &marks), []);
        let mut now = [root(1, Path::new("/a"), &[]), root(2, Path::new("/b"), &["y"])];
        let with =
            |now: &[TrackedRoot], handles: [Option<Handle>; 2]| gaps(now, &marks, &root_marks(now, &handles));
        assert_eq!(with(&now, [handle(1), handle(2)]), [(1, Cause::Rules)]);
        now[1].changed = true;
        assert_eq!(with(&now, [handle(1), handle(2)]), [], "the journal has it already");
        assert_eq!(with(&before, [handle(3), handle(2)]), [(0, Cause::Identity)]);
        assert_eq!(with(&before, [None, handle(2)]), [], "it is not there");
        now[1].id = shared::journal::RootId(7);
        now[1].changed = false;
        assert_eq!(
            with(&now, [handle(1), handle(2)]),
            [(1, Cause::Rules)],
            "a root of which nothing is known"
        );
    }
}
