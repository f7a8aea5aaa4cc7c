//! Which disk is this: the identity of a root, read from an open fd of its directory, and how two are compared.
//! Device names, dev_t, mount ids and the by-uuid links are never identity: all of them are reused.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags};
use serde::{Deserialize, Serialize};

use crate::sys;

/// What must be equal for a root to be the one that was meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Filesystem type as in /proc/filesystems, or the magic number in hexadecimal.
    pub fs: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subvolume: Option<u64>,
    /// Inode of the root directory.
    pub inode: u64,
    /// Birth time of the root directory, where the filesystem keeps one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub btime_ns: Option<i64>,
}

/// The volatile side: true only while this mount lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// st_dev of the root directory; every file opened below must have the same.
    pub dev: u64,
    pub mount_id: Option<u64>,
}

/// One field in which two identities differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub field: &'static str,
    pub expected: String,
    pub seen: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} expected, {} seen", self.field, self.expected, self.seen)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("Cannot read the identity of the open directory ({what}): {source}")]
pub struct IdentityError {
    pub what: &'static str,
    pub source: io::Error,
}

/// Names of the filesystems that statfs(2) numbers; the type decides by which ioctl the UUID is read.
fn fs_name(magic: u64) -> String {
    match magic {
        0xef53 => "ext4".into(), // ext2 and ext3 carry the same number and are driven by the same code
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0x0102_1994 => "tmpfs".into(),
        0x794c_7630 => "overlay".into(),
        0x6573_5546 => "fuse".into(),
        0x6969 => "nfs".into(),
        0x2fc1_2fc1 => "zfs".into(),
        0x2011_bab0 => "exfat".into(),
        0x4d44 => "vfat".into(),
        0xf2f5_2010 => "f2fs".into(),
        other => format!("{other:#x}"),
    }
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl Identity {
    /// Reads the identity from an fd of the root directory itself (not O_PATH: the ioctls need a real one).
    pub fn of(fd: impl AsFd) -> Result<(Identity, Attachment), IdentityError> {
        let fd = fd.as_fd();
        let fail = |what| move |e: rustix::io::Errno| IdentityError { what, source: e.into() };
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted).map_err(fail("statx"))?;
        let statfs = rustix::fs::fstatfs(fd).map_err(fail("fstatfs"))?;
        let fs = fs_name(statfs.f_type as u64);
        let uuid = match fs.as_str() {
            "btrfs" => sys::btrfs_uuid(fd),
            "xfs" => sys::generic_uuid(fd).or_else(|_| sys::xfs_uuid(fd)),
            _ => sys::generic_uuid(fd),
        };
        let subvolume = match fs.as_str() {
            "btrfs" => Some(
                sys::btrfs_subvolume(fd).map_err(|source| IdentityError { what: "subvolume id", source })?,
            ),
            _ => None,
        };
        let has = |flag: StatxFlags| stat.stx_mask & flag.bits() != 0;
        let identity = Identity {
            fs,
            uuid: uuid.ok().filter(|u| u != &[0; 16]).map(uuid_text),
            subvolume,
            inode: stat.stx_ino,
            btime_ns: has(StatxFlags::BTIME)
                .then(|| stat.stx_btime.tv_sec * 1_000_000_000 + i64::from(stat.stx_btime.tv_nsec)),
        };
        let attachment = Attachment {
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            mount_id: has(StatxFlags::MNT_ID).then_some(stat.stx_mnt_id),
        };
        Ok((identity, attachment))
    }

    /// Where `seen` differs from what is expected; empty means the same disk. What either side does not know
    /// (no birth time, no UUID) does not count, type and inode always do.
    pub fn differences(&self, seen: &Identity) -> Vec<Difference> {
        let mut out = Vec::new();
        let mut compare = |field, expected: Option<String>, seen: Option<String>, both_needed: bool| {
            let counts = !both_needed || (expected.is_some() && seen.is_some());
            if counts && expected != seen {
                let text = |v: Option<String>| v.unwrap_or_else(|| "none".into());
                out.push(Difference { field, expected: text(expected), seen: text(seen) });
            }
        };
        compare("filesystem", Some(self.fs.clone()), Some(seen.fs.clone()), false);
        compare("UUID", self.uuid.clone(), seen.uuid.clone(), false);
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        compare("subvolume", number(self.subvolume), number(seen.subvolume), true);
        compare("root inode", number(Some(self.inode)), number(Some(seen.inode)), false);
        let time = |n: Option<i64>| n.map(|n| n.to_string());
        compare("root birth time (ns)", time(self.btime_ns), time(seen.btime_ns), true);
        out
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.fs, self.uuid.as_deref().unwrap_or("without UUID"))?;
        if let Some(subvolume) = self.subvolume {
            write!(f, " subvolume {subvolume}")?;
        }
        write!(f, " root inode {}", self.inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Identity {
        Identity {
            fs: "ext4".into(),
            uuid: Some("7f5e508d-0000-4000-8000-000000000001".into()),
            subvolume: None,
            inode: 2,
            btime_ns: Some(17),
        }
    }

    #[test]
    fn a_directory_has_one_identity_however_often_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = Identity::of(std::fs::File::open(dir.path()).unwrap()).unwrap();
        let (again, _) = Identity::of(std::fs::File::open(dir.path()).unwrap()).unwrap();
        assert_eq!(first.differences(&again), []);
    }

    #[test]
    fn a_directory_made_anew_at_the_same_path_is_another_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        std::fs::create_dir(&path).unwrap();
        let (first, _) = Identity::of(std::fs::File::open(&path).unwrap()).unwrap();
        std::fs::remove_dir(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let (second, _) = Identity::of(std::fs::File::open(&path).unwrap()).unwrap();
        assert_ne!(first.differences(&second), []);
    }

    #[test]
    fn another_disk_with_the_same_root_inode_is_told_by_its_uuid() {
        let other = Identity { uuid: Some("00000000-0000-4000-8000-000000000002".into()), ..sample() };
        let differences = sample().differences(&other);
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].field, "UUID");
    }

    #[test]
    fn a_lost_uuid_is_a_difference_but_an_unknown_birth_time_is_not() {
        assert_eq!(sample().differences(&Identity { uuid: None, ..sample() }).len(), 1);
        assert_eq!(sample().differences(&Identity { btime_ns: None, ..sample() }), []);
    }
}
