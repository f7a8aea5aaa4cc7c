//! What was done to a file since its last sync, and how a power cut takes it back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug)]
pub enum Change {
    /// `old` is what stood there, as far as the file went.
    Write { offset: u64, new: Vec<u8>, old: Vec<u8>, old_len: u64 },
    /// `old` is what stood behind `len`.
    Truncate { len: u64, old: Vec<u8>, old_len: u64 },
    /// `old` is the whole file. What follows was done to another file of the same name.
    Delete { old: Vec<u8> },
}

/// Brings a file to what a power cut may leave of it: its last synced state, and of each change since what `keep`
/// says, a write sector by sector.
pub fn lose(path: &Path, changes: &[Change], keep: &mut dyn FnMut() -> bool) {
    let deleted = matches!(changes.last(), Some(Change::Delete { .. }));
    if !path.exists() && !deleted {
        return; // Somebody took it away without SQLite.
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    changes.iter().rev().for_each(|change| change.undo(&file));
    let mut gone = false;
    for change in changes {
        match change {
            // Without the deletion the name never came to the file that followed.
            Change::Delete { .. } if !keep() => break,
            Change::Delete { .. } => {
                file.set_len(0).unwrap();
                gone = true;
            }
            Change::Write { .. } | Change::Truncate { .. } => {
                change.redo(&file, keep);
                gone = false;
            }
        }
    }
    if gone {
        std::fs::remove_file(path).unwrap();
    }
}

impl Change {
    fn undo(&self, file: &File) {
        match self {
            Change::Write { offset, old, old_len, .. } => {
                file.write_all_at(old, *offset).unwrap();
                file.set_len(*old_len).unwrap();
            }
            Change::Truncate { len, old, old_len } => {
                file.set_len(*old_len).unwrap();
                file.write_all_at(old, *len).unwrap();
            }
            Change::Delete { old } => {
                file.set_len(0).unwrap();
                file.write_all_at(old, 0).unwrap();
            }
        }
    }

    fn redo(&self, file: &File, keep: &mut dyn FnMut() -> bool) {
        match self {
            Change::Write { offset, new, .. } => {
                for (sector, at) in new.chunks(SECTOR).zip((*offset..).step_by(SECTOR)) {
                    if keep() {
                        file.write_all_at(sector, at).unwrap();
                    }
                }
            }
            Change::Truncate { len, .. } if keep() => file.set_len(*len).unwrap(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(after: Option<&[u8]>, changes: &[Change], keep: &[bool]) -> Option<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        if let Some(after) = after {
            std::fs::write(&path, after).unwrap();
        }
        let mut keep = keep.iter().copied();
        lose(&path, changes, &mut || keep.next().unwrap());
        assert_eq!(keep.next(), None);
        std::fs::read(&path).ok()
    }

    fn write(offset: u64, new: &[u8], old: &[u8], old_len: u64) -> Change {
        Change::Write { offset, new: new.to_vec(), old: old.to_vec(), old_len }
    }

    #[test]
    fn each_of_two_writes_over_one_another_is_kept_or_lost() {
        let changes = [write(1, b"xx", b"bc", 4), write(2, b"yyy", b"xd", 4)];
        let after = |keep: [bool; 2]| lost(Some(b"axyyy"), &changes, &keep).unwrap();
        assert_eq!(after([false, false]), b"abcd");
        assert_eq!(after([true, false]), b"axxd");
        assert_eq!(after([false, true]), b"abyyy");
        assert_eq!(after([true, true]), b"axyyy");
    }

    #[test]
    fn a_write_is_torn_at_a_sector() {
        let changes = [write(0, &[7; 1024], b"", 0)];
        assert_eq!(lost(Some(&[7; 1024]), &changes, &[true, false]).unwrap(), [7; 512]);
        let second = lost(Some(&[7; 1024]), &changes, &[false, true]).unwrap();
        assert_eq!(second, [[0; 512], [7; 512]].concat());
    }

    #[test]
    fn what_was_cut_off_comes_back() {
        let changes = [Change::Truncate { len: 1, old: b"bc".to_vec(), old_len: 3 }];
        assert_eq!(lost(Some(b"a"), &changes, &[false]).unwrap(), b"abc");
        assert_eq!(lost(Some(b"a"), &changes, &[true]).unwrap(), b"a");
    }

    #[test]
    fn a_deleted_file_comes_back_without_what_its_successor_got() {
        let changes = [Change::Delete { old: b"old".to_vec() }, write(0, b"n", b"", 0)];
        assert_eq!(lost(Some(b"n"), &changes, &[false]).unwrap(), b"old");
        assert_eq!(lost(Some(b"n"), &changes, &[true, true]).unwrap(), b"n");
        assert_eq!(lost(None, &changes[..1], &[true]), None);
    }

    #[test]
    fn a_file_that_somebody_took_away_stays_away() {
        assert_eq!(lost(None, &[write(0, b"n", b"", 0)], &[]), None);
    }
}
