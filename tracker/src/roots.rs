//! The tracked roots: what is expected at each path, and how what is there compares with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use shared::entry::Handle;
use shared::identity::{Attachment, Identity};
use shared::journal::{RootId, RootState};
use shared::rules::Rules;

use crate::host::Host;
use crate::intake::sys;
use crate::mounts;

/// A root as the tracker goes by it.
#[derive(Debug, Clone)]
pub struct TrackedRoot {
    pub id: RootId,
    pub name: String,
    pub path: PathBuf,
    pub rules: Rules,
    /// From the configuration, or what was first seen at the path in this session.
    pub expected: Option<Identity>,
    /// Something was mounted at the path itself when it was first seen.
    pub is_mount: bool,
    /// The journal got a gap for it at this start, with its new path or rules.
    pub changed: bool,
}

/// An open root directory that is what it should be. Held only while marking: it makes umount(8) fail.
#[derive(Debug)]
pub struct OpenRoot<D = OwnedFd> {
    pub fd: D,
    pub attachment: Attachment,
    pub identity: Identity,
    pub handle: Option<Handle>,
}

/// What was found at a root's path.
#[derive(Debug)]
pub enum Found<D = OwnedFd> {
    Ok(OpenRoot<D>),
    Not { state: RootState, why: String },
}

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error(
        "The root `{name}` is not there: {}: {source}. Mount its disk or correct `path` in the configuration",
        path.display()
    )]
    Open { name: String, path: PathBuf, source: io::Error },
    #[error("The root `{name}` is not a directory: {}. A root must be one; correct `path` in the configuration", path.display())]
    NotADirectory { name: String, path: PathBuf },
}

pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Where a root stands: never the same again once something else was mounted at its path, or it was unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// STATX_MNT_ID_UNIQUE: unlike the number in mountinfo it is given once.
    pub mount: u64,
    pub dev: (u32, u32),
    pub inode: u64,
}

impl TrackedRoot {
    /// Opens the directory and compares it with what is expected.
    pub fn look<H: Host>(&self, host: &H) -> Found<H::Dir> {
        let not = |state, why| Found::Not { state, why };
        let dir = match host.open_dir(&self.path) {
            Ok(dir) => dir,
            Err(e) => return not(RootState::Missing, format!("{}: {e}", self.path.display())),
        };
        let open = match host.identify(dir) {
            Ok(open) => open,
            Err(e) => return not(RootState::Failing, e),
        };
        if let Some(expected) = &self.expected {
            let differences = expected.differences(&open.identity);
            if self.is_mount && !differences.is_empty() && !host.is_mount_point(&self.path) {
                return not(
                    RootState::Missing,
                    format!("nothing is mounted at {} ({expected} expected)", self.path.display()),
                );
            }
            if let Some(first) = differences.first() {
                return not(RootState::Replaced, format!("{}: {first}", self.path.display()));
            }
        }
        Found::Ok(open)
    }

    /// The check at start: what can never become a root is an error, what is only not there yet is not if its
    /// identity is configured.
    pub fn check_at_start(&mut self, host: &impl Host) -> Result<Option<Attachment>, RootError> {
        let name = self.name.clone();
        let path = self.path.clone();
        let is_dir = host.is_dir(&self.path);
        let is_there = is_dir.is_ok();
        match is_dir {
            Ok(false) => return Err(RootError::NotADirectory { name, path }),
            Err(source) if self.expected.is_none() => return Err(RootError::Open { name, path, source }),
            _ => {}
        }
        self.is_mount = host.is_mount_point(&self.path) || (self.expected.is_some() && !is_there);
        match self.look(host) {
            Found::Ok(open) => {
                self.expected.get_or_insert(open.identity);
                Ok(Some(open.attachment))
            }
            Found::Not { .. } => Ok(None),
        }
    }
}

/// A directory of our own: its content is never reported.
#[derive(Debug, Clone)]
pub struct OwnDir {
    pub dev: u64,
    /// As in mountinfo: one for all subvolumes of a btrfs.
    pub superblock: u64,
    pub inode: u64,
    /// `None` where there are no handles.
    pub handle: Option<Handle>,
}

impl OwnDir {
    pub fn of(path: &Path) -> io::Result<OwnDir> {
        let dir = File::open(path)?;
        let stat = rustix::fs::fstat(&dir)?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let mount = rustix::fs::statx(&dir, c"", AtFlags::EMPTY_PATH, wanted)?.stx_mnt_id;
        Ok(OwnDir {
            dev: stat.st_dev,
            superblock: mounts::superblock(&mounts::read()?, Some(mount)).unwrap_or(stat.st_dev),
            inode: stat.st_ino,
            handle: sys::name_to_handle(dir.as_fd(), c"").ok(),
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::host::Linux;

    pub fn root(id: i64, path: &Path, exclude: &[&str]) -> TrackedRoot {
        let exclude: Vec<String> = exclude.iter().map(|s| s.to_string()).collect();
        TrackedRoot {
            id: RootId(id),
            name: format!("r{id}"),
            path: path.to_owned(),
            rules: Rules::new(&exclude).unwrap(),
            expected: None,
            is_mount: false,
            changed: false,
        }
    }

    #[test]
    fn a_directory_made_anew_at_the_same_path_is_replaced_and_one_taken_away_missing() {
        let (host, dir) = (Linux::default(), tempfile::tempdir().unwrap());
        let path = dir.path().join("r");
        std::fs::create_dir(&path).unwrap();
        let mut root = root(1, &path, &[]);
        assert!(root.check_at_start(&host).unwrap().is_some());
        assert!(matches!(root.look(&host), Found::Ok(_)));
        std::fs::remove_dir(&path).unwrap();
        assert!(matches!(root.look(&host), Found::Not { state: RootState::Missing, .. }));
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(root.look(&host), Found::Not { state: RootState::Replaced, .. }));
    }

    #[test]
    fn a_root_that_is_made_anew_stands_elsewhere() {
        let (host, dir) = (Linux::default(), tempfile::tempdir().unwrap());
        let path = dir.path().join("r");
        std::fs::create_dir(&path).unwrap();
        let root = root(1, &path, &[]);
        let before = host.standing(&root.path);
        assert_eq!(host.standing(&root.path), before);
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        assert_eq!(host.standing(&root.path), None);
        std::fs::create_dir(&path).unwrap();
        assert!(before.is_none() || host.standing(&root.path) != before);
    }

    #[test]
    fn a_file_and_nothing_at_all_are_errors_that_name_the_root() {
        let (host, dir) = (Linux::default(), tempfile::tempdir().unwrap());
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        let error = root(1, &file, &[]).check_at_start(&host).unwrap_err().to_string();
        assert!(error.contains("r1") && error.contains("not a directory"), "{error}");
        let error = root(1, &dir.path().join("none"), &[]).check_at_start(&host).unwrap_err().to_string();
        assert!(error.contains("none") && error.contains("path"), "{error}");
    }
}
