//! What is mounted where: the parser of /proc/self/mountinfo (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

pub const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub dev: u64,
    /// The directory of the filesystem that this mount shows at its top.
    pub root: PathBuf,
    pub point: PathBuf,
    /// Type of the filesystem.
    pub fs: String,
    /// What it was mounted from, often a device.
    pub source: PathBuf,
    /// The whole filesystem, not this mount of it alone, may only be read.
    pub read_only: bool,
}

pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(MOUNTINFO)?))
}

/// Lines that do not look like mountinfo are left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// Mounts that show the whole filesystem `dev`. Through any other, a handle outside it resolves to `/` without an
/// error (measured on 6.18).
pub fn whole(mounts: &[Mount], dev: u64) -> impl Iterator<Item = &Mount> {
    mounts.iter().filter(move |m| m.dev == dev && m.root == Path::new("/"))
}

/// The device number of the superblock behind a mount. That of a file differs from it on btrfs, by subvolume.
pub fn superblock(mounts: &[Mount], id: Option<u64>) -> Option<u64> {
    mounts.iter().find(|m| Some(m.id) == id).map(|m| m.dev)
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let mut dev = fields.next()?.split(|&b| b == b':');
    let (major, minor) = (number(dev.next()?)?, number(dev.next()?)?);
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    // Options of the mount, then fields of any number up to the dash.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    let read_only = fields.next()?.split(|&b| b == b',').any(|option| option == b"ro");
    let dev = rustix::fs::makedev(major as u32, minor as u32);
    Some(Mount { id, dev, root, point, fs, source, read_only })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
61 27 7:1 / /mnt/a\\040b rw shared:3 master:1 - ext4 /dev/a\\040disk ro,errors=remount-ro
62 27 7:1 /sub /srv/bind ro - ext4 /dev/loop1 rw
not a mount
";

    #[test]
    fn lines_are_read_and_odd_ones_left_out() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].point, Path::new("/mnt/a b"));
        assert_eq!(mounts[1].id, 61);
        assert_eq!((mounts[1].fs.as_str(), mounts[1].source.as_path()), ("ext4", Path::new("/dev/a disk")));
        let read_only: Vec<bool> = mounts.iter().map(|m| m.read_only).collect();
        assert_eq!(read_only, [false, true, false], "of the filesystem, not of the mount");
    }

    #[test]
    fn a_bind_mount_of_a_part_is_not_the_whole_filesystem() {
        let mounts = parse(TEXT);
        let whole: Vec<u64> = whole(&mounts, rustix::fs::makedev(7, 1)).map(|m| m.id).collect();
        assert_eq!(whole, [61]);
    }

    #[test]
    fn this_machine_has_a_root_mount() {
        assert!(read().unwrap().iter().any(|m| m.point == Path::new("/")));
    }
}
