//! The parser beside another one, the crate fanotify-fid: what the kernel says of real operations, and built events,
//! mean the same to both.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use fanotify_fid::fid::{FidEvent, RenameSide, parse_fid_events_reported};
use proptest::prelude::*;

use super::tests::{event, handle_bytes, info, named};
use super::*;
use crate::intake::fanotify::{GROUP_FLAGS, MARK_MASK};
use crate::intake::sys;

/// What an event says, in the terms of both: handles are laid out as in `struct file_handle`.
#[derive(Debug, PartialEq)]
struct Said {
    mask: u64,
    pid: i32,
    at: Option<(Vec<u8>, Vec<u8>)>,
    from: Option<(Vec<u8>, Vec<u8>)>,
    to: Option<(Vec<u8>, Vec<u8>)>,
    target: Option<Vec<u8>>,
    error: Option<(i32, u32)>,
}

fn laid_out(handle: HandleRef<'_>) -> Vec<u8> {
    handle_bytes(handle.kind, handle.bytes).split_off(FSID_BYTES)
}

fn ours(record: &Record<'_>) -> Said {
    let named = |n: Named<'_>| (laid_out(n.dir), n.name.to_vec());
    Said {
        mask: record.mask,
        pid: record.pid as i32,
        at: record.at.map(named),
        from: record.from.map(named),
        to: record.to.map(named),
        target: record.target.map(laid_out),
        error: record.error,
    }
}

fn theirs(event: &FidEvent<'_>) -> Said {
    let side = |s: &RenameSide<'_>| (s.handle().to_vec(), s.name.to_vec());
    Said {
        mask: event.mask(),
        pid: event.pid(),
        at: event.dfid_name_handle().map(|dir| (dir.to_vec(), event.dfid_name_raw().to_vec())),
        from: event.rename_source().map(side),
        to: event.rename_target().map(side),
        target: event.self_handle().map(<[u8]>::to_vec),
        error: event.fs_error(),
    }
}

fn assert_same(buffer: &[u8]) -> usize {
    let ours: Vec<Said> = Records::new(buffer).map(|record| ours(&record.unwrap())).collect();
    let (events, report) = parse_fid_events_reported(buffer);
    assert!(report.is_complete(), "{report:?}");
    let theirs: Vec<Said> = events.iter().map(theirs).collect();
    assert_eq!(ours, theirs);
    ours.len()
}

fn operate(dir: &Path) {
    let file = dir.join("file\n");
    fs::write(&file, "content").unwrap();
    fs::hard_link(&file, dir.join("link")).unwrap();
    symlink("nowhere", dir.join("symlink")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(dir.join("a")).unwrap();
    fs::rename(&file, dir.join("a/file")).unwrap();
    fs::rename(dir.join("a"), dir.join("b")).unwrap();
    fs::remove_dir_all(dir.join("b")).unwrap();
}

#[test]
fn real_events_mean_the_same_to_another_parser() {
    if !crate::testing::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let group = sys::fanotify_init(GROUP_FLAGS).unwrap();
    let on = fs::File::open(dir.path()).unwrap();
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    sys::fanotify_mark(group.as_fd(), flags, MARK_MASK, on.as_fd()).unwrap();
    operate(dir.path());
    let (mut buffer, mut events) = (vec![0; 1 << 20], 0);
    // Others use this filesystem, too: what they do is compared as well.
    loop {
        match rustix::io::read(&group, &mut buffer) {
            Ok(read) => events += assert_same(&buffer[..read]),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(events >= 8, "{events} of the operations above");
}

proptest! {
    #[test]
    fn built_events_mean_the_same_to_another_parser(
        events in proptest::collection::vec(
            (
                any::<u64>(),
                proptest::collection::vec(any::<u8>(), 1..20),
                "[^/\0]{1,40}",
                "[^/\0]{1,40}",
                0..4u8,
                proptest::option::of(proptest::collection::vec(any::<u8>(), 1..20)),
            ),
            1..20,
        )
    ) {
        let mut buffer = Vec::new();
        for (mask, dir, name, other, kind, target) in events {
            let mut infos = match kind {
                0 => vec![named(INFO_DFID_NAME, &dir, name.as_bytes())],
                1 => vec![named(INFO_OLD_DFID_NAME, &dir, name.as_bytes()), named(INFO_NEW_DFID_NAME, &dir, other.as_bytes())],
                2 => vec![info(INFO_ERROR, &[5, 0, 0, 0, 3, 0, 0, 0])],
                _ => vec![info(INFO_FID, &handle_bytes(1, &dir))],
            };
            infos.extend(target.filter(|_| kind < 3).map(|target| info(INFO_FID, &handle_bytes(129, &target))));
            buffer.extend(event(mask & !libc::FAN_Q_OVERFLOW, &infos));
        }
        assert_same(&buffer);
    }
}
