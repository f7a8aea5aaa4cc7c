//! One operation, drawn by chance, done on the model and on the real filesystem.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use simulation::disk::{Disk, Fd, FsKind, How, Id, Kind, join};
use simulation::random::Random;

use crate::sys;

type Bytes = Vec<u8>;

/// So many files can be open.
pub const SLOTS: usize = 5;
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"a longer name \xff"];
const DEPTH_MAX: usize = 3;

#[derive(Debug, Clone)]
pub enum Op {
    Put(Bytes, usize),
    Open(usize, Bytes, How),
    Tmpfile(usize, Bytes),
    Close(usize),
    Write(usize, u64, usize),
    Append(usize, usize),
    Store(usize, u64),
    Ftruncate(usize, u64),
    LinkOpen(usize, Bytes),
    Truncate(Bytes, u64),
    Mkdir(Bytes),
    Symlink(Bytes),
    Fifo(Bytes),
    Link(Bytes, Bytes),
    Unlink(Bytes),
    Rmdir(Bytes),
    RemoveAll(Bytes),
    Rename(Bytes, Bytes),
    Exchange(Bytes, Bytes),
    Chmod(Bytes, u32),
    Chown(Bytes, u32),
    Mtime(Bytes, i64),
    SetXattr(Bytes, u8),
    RemoveXattr(Bytes),
    Subvolume(Bytes),
    Snapshot(Bytes, Bytes),
    DeleteSubvolume(Bytes),
}

/// An open file on both sides.
pub type Slots = [Option<(Fd, File)>; SLOTS];

pub fn draw(random: &mut Random, disk: &Disk, slots: &Slots) -> Op {
    loop {
        let op = draw_any(random, disk, slots);
        if is_played(&op, disk, slots) {
            return op;
        }
    }
}

fn draw_any(random: &mut Random, disk: &Disk, slots: &Slots) -> Op {
    let dirs: Vec<Bytes> = disk
        .all()
        .filter(|inode| inode.is_dir())
        .filter_map(|inode| disk.path_of(inode.id).ok())
        .filter(|path| path.split(|&b| b == b'/').count() <= DEPTH_MAX)
        .collect();
    let subvolumes: Vec<Bytes> = disk
        .all()
        .filter(|inode| disk.is_subvolume(inode.id))
        .filter_map(|i| disk.path_of(i.id).ok())
        .collect();
    let path = |random: &mut Random| join(random.of(&dirs).unwrap(), random.of(&NAMES).unwrap());
    let free = slots.iter().position(Option::is_none);
    let used: Vec<usize> = (0..SLOTS).filter(|at| slots[*at].is_some()).collect();
    let slot = random.of(&used).copied();
    let len = random.below(6_000) as usize;
    let to = random.below(9_000);
    let kinds = if disk.kind == FsKind::Btrfs { 31 } else { 28 };
    match (random.below(kinds), slot, free) {
        (0..=2, ..) => Op::Put(path(random), len),
        (3..=4, _, Some(at)) => {
            let how = *random.of(&[How::READ, How::WRITE, How::CREATE, How::ANEW]).unwrap();
            let exclusive = how.create && random.one_in(4);
            Op::Open(at, path(random), How { exclusive, ..how })
        }
        (5, _, Some(at)) => Op::Tmpfile(at, random.of(&dirs).unwrap().clone()),
        (6, Some(at), _) => Op::Close(at),
        (7, Some(at), _) => Op::Write(at, to, len),
        (8, Some(at), _) => Op::Append(at, len),
        (9, Some(at), _) => Op::Store(at, to),
        (10, Some(at), _) => Op::Ftruncate(at, to),
        (11, Some(at), _) => Op::LinkOpen(at, path(random)),
        (12, ..) => Op::Truncate(path(random), to),
        (13..=14, ..) => Op::Mkdir(path(random)),
        (15, ..) => Op::Symlink(path(random)),
        (16, ..) => Op::Fifo(path(random)),
        (17, ..) => Op::Link(path(random), path(random)),
        (18, ..) => Op::Unlink(path(random)),
        (19, ..) => Op::Rmdir(path(random)),
        (20, ..) if random.one_in(3) => Op::RemoveAll(path(random)),
        (20..=22, ..) => Op::Rename(path(random), path(random)),
        (23, ..) => Op::Exchange(path(random), path(random)),
        (24, ..) => Op::Chmod(path(random), *random.of(&[0o644, 0o4755, 0o2770, 0o600]).unwrap()),
        (25, ..) => Op::Chown(path(random), random.below(3) as u32),
        (26, ..) => Op::Mtime(path(random), random.below(1 << 60) as i64),
        (27, ..) if random.one_in(2) => Op::SetXattr(path(random), random.below(9) as u8),
        (27, ..) => Op::RemoveXattr(path(random)),
        (28, ..) => Op::Subvolume(path(random)),
        (29, ..) if !subvolumes.is_empty() => {
            Op::Snapshot(random.of(&subvolumes).unwrap().clone(), path(random))
        }
        (30, ..) if !subvolumes.is_empty() => Op::DeleteSubvolume(random.of(&subvolumes).unwrap().clone()),
        _ => Op::Put(path(random), 0),
    }
}

/// False for what would block (a fifo), or be done to where a symlink leads.
fn is_played(op: &Op, disk: &Disk, slots: &Slots) -> bool {
    let kind = |path: &Bytes| disk.stat_at(path).ok().map(|stat| stat.kind);
    match op {
        Op::Put(path, _) | Op::Open(_, path, _) => kind(path) != Some(Kind::Fifo),
        Op::Truncate(path, _) | Op::Chmod(path, _) => kind(path) != Some(Kind::Symlink),
        // The program looks at the path before it asks the kernel.
        Op::Subvolume(path) => kind(path).is_none(),
        // In the place of a subvolume the copy of what holds it has an empty directory, which all share one number.
        Op::Snapshot(of, path) => kind(path).is_none() && !holds_subvolumes(disk, of),
        // The link count of what is open there would differ.
        Op::DeleteSubvolume(path) => {
            let root = disk.lookup(path).unwrap().root;
            !slots.iter().flatten().any(|(fd, _)| disk.opened_id(*fd).unwrap().root == root)
        }
        _ => true,
    }
}

fn holds_subvolumes(disk: &Disk, path: &Bytes) -> bool {
    let top = disk.lookup(path).unwrap();
    let is_outside = |id: &Id| id.root != top.root;
    disk.all().any(|inode| inode.id.root == top.root && inode.entries.values().any(is_outside))
}

/// The bytes that are written by the n-th operation.
fn filling(len: usize, n: u64) -> Bytes {
    (0..len).map(|at| (at as u64 * 7 + n) as u8).collect()
}

impl Op {
    /// Made by another process, whose events are no one else's.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Op::Subvolume(_) | Op::Snapshot(..) | Op::DeleteSubvolume(_))
    }

    /// On both, which must answer alike.
    pub fn both(&self, disk: &mut Disk, top: &Path, slots: &mut Slots, n: u64) {
        let opened = match self {
            Op::Open(at, path, how) => Some((*at, disk.open(path, *how), open(top, path, *how))),
            Op::Tmpfile(at, dir) => Some((*at, disk.tmpfile(dir), tmpfile(top, dir))),
            _ => None,
        };
        match opened {
            Some((at, Ok(fd), Ok(file))) => slots[at] = Some((fd, file)),
            Some((_, model, real)) => assert_eq!(model.map(drop), real.map(drop), "{self:?}"),
            None => {
                let model = self.model(disk, slots, n);
                let real = self.real(top, slots, n);
                assert_eq!(model, real, "the model says the first of {self:?}");
            }
        }
        if let Op::Close(at) = self {
            slots[*at] = None;
        }
    }

    fn model(&self, disk: &mut Disk, slots: &Slots, n: u64) -> Result<(), Errno> {
        let fd = |at: &usize| slots[*at].as_ref().unwrap().0;
        match self {
            Op::Put(path, len) => disk.put(path, &filling(*len, n)),
            Op::Close(at) => disk.close(fd(at)),
            Op::Write(at, to, len) => disk.write(fd(at), *to, &filling(*len, n)),
            Op::Append(at, len) => disk.append(fd(at), &filling(*len, n)),
            Op::Store(at, to) => store_model(disk, fd(at), *to, n),
            Op::Ftruncate(at, size) => disk.ftruncate(fd(at), *size),
            Op::LinkOpen(at, path) => disk.link_open(fd(at), path),
            Op::Truncate(path, size) => disk.truncate(path, *size),
            Op::Mkdir(path) => disk.mkdir(path, 0o755).map(drop),
            Op::Symlink(path) => disk.symlink(path, b"no where").map(drop),
            Op::Fifo(path) => disk.mknod(path, Kind::Fifo, 0o644, 0).map(drop),
            Op::Link(old, new) => disk.link(old, new),
            Op::Unlink(path) => disk.unlink(path),
            Op::Rmdir(path) => disk.rmdir(path),
            Op::RemoveAll(path) => disk.remove_all(path),
            Op::Rename(old, new) => disk.rename(old, new),
            Op::Exchange(old, new) => disk.exchange(old, new),
            Op::Chmod(path, mode) => disk.chmod(path, *mode),
            Op::Chown(path, id) => disk.chown(path, *id, id + 1),
            Op::Mtime(path, time) => disk.set_mtime(path, *time),
            Op::SetXattr(path, value) => disk.set_xattr(path, b"user.x", &[*value]),
            Op::RemoveXattr(path) => disk.remove_xattr(path, b"user.x"),
            Op::Subvolume(path) => disk.make_subvolume(path).map(drop),
            Op::Snapshot(of, path) => disk.snapshot(of, path).map(drop),
            Op::DeleteSubvolume(path) => disk.delete_subvolume(path),
            Op::Open(..) | Op::Tmpfile(..) => unreachable!(),
        }
    }

    fn real(&self, top: &Path, slots: &mut Slots, n: u64) -> Result<(), Errno> {
        if let Op::Close(at) = self {
            slots[*at] = None;
            return Ok(());
        }
        let file = |at: &usize| &slots[*at].as_ref().unwrap().1;
        let at = |path: &Bytes| full(top, path);
        let plain = AtFlags::empty();
        match self {
            Op::Put(path, len) => {
                let file = open(top, path, How::ANEW)?;
                errno(file.write_all_at(&filling(*len, n), 0))
            }
            Op::Write(slot, to, len) => errno(file(slot).write_all_at(&filling(*len, n), *to)),
            Op::Append(slot, len) => {
                let end = file(slot).metadata().unwrap().len();
                errno(file(slot).write_all_at(&filling(*len, n), end))
            }
            Op::Store(slot, to) => store_real(file(slot), *to, n),
            // EINVAL of a descriptor that cannot write, where write(2) says EBADF.
            Op::Ftruncate(slot, size) => match rustix::fs::ftruncate(file(slot), *size) {
                Err(Errno::INVAL) => Err(Errno::BADF),
                result => result,
            },
            Op::LinkOpen(slot, path) => {
                rustix::fs::linkat(file(slot), c"", CWD, at(path), AtFlags::EMPTY_PATH)
            }
            Op::Truncate(path, size) => sys::truncate(&at(path), *size),
            Op::Mkdir(path) => rustix::fs::mkdir(at(path), Mode::from_raw_mode(0o755)),
            Op::Symlink(path) => rustix::fs::symlink("no where", at(path)),
            Op::Fifo(path) => {
                rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::from_raw_mode(0o644), 0)
            }
            Op::Link(old, new) => rustix::fs::linkat(CWD, at(old), CWD, at(new), plain),
            Op::Unlink(path) => rustix::fs::unlink(at(path)),
            Op::Rmdir(path) => rustix::fs::rmdir(at(path)),
            Op::RemoveAll(path) => remove_all(&at(path)),
            Op::Rename(old, new) => rustix::fs::rename(at(old), at(new)),
            Op::Exchange(old, new) => {
                rustix::fs::renameat_with(CWD, at(old), CWD, at(new), RenameFlags::EXCHANGE)
            }
            Op::Chmod(path, mode) => rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode)),
            Op::Chown(path, id) => {
                let (uid, gid) = (Uid::from_raw(*id), Gid::from_raw(id + 1));
                rustix::fs::chownat(CWD, at(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            }
            Op::Mtime(path, time) => {
                let time = Timespec { tv_sec: time / 1_000_000_000, tv_nsec: time % 1_000_000_000 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Op::SetXattr(path, value) => {
                rustix::fs::lsetxattr(at(path), c"user.x", &[*value], XattrFlags::empty())
            }
            Op::RemoveXattr(path) => rustix::fs::lremovexattr(at(path), c"user.x"),
            Op::Subvolume(path) => btrfs(&["create"], &[at(path)]),
            Op::Snapshot(of, path) => btrfs(&["snapshot"], &[at(of), at(path)]),
            Op::DeleteSubvolume(path) => btrfs(&["delete"], &[at(path)]),
            Op::Open(..) | Op::Tmpfile(..) | Op::Close(_) => unreachable!(),
        }
    }
}

pub fn full(top: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { top.to_owned() } else { top.join(OsStr::from_bytes(path)) }
}

fn errno<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|e| Errno::from_io_error(&e).unwrap())
}

fn open(top: &Path, path: &[u8], how: How) -> Result<File, Errno> {
    let mut flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    flags |= if how.write { OFlags::RDWR } else { OFlags::RDONLY };
    for (wanted, flag) in
        [(how.create, OFlags::CREATE), (how.exclusive, OFlags::EXCL), (how.truncate, OFlags::TRUNC)]
    {
        flags.set(flag, wanted);
    }
    rustix::fs::open(full(top, path), flags, Mode::from_raw_mode(0o644)).map(File::from)
}

fn tmpfile(top: &Path, dir: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(full(top, dir), flags, Mode::from_raw_mode(0o644)).map(File::from)
}

fn remove_all(path: &Path) -> Result<(), Errno> {
    if !errno(path.symlink_metadata())?.is_dir() {
        return rustix::fs::unlink(path);
    }
    let listed = errno(std::fs::read_dir(path))?;
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names.iter().try_for_each(|name| remove_all(&path.join(name)))?;
    rustix::fs::rmdir(path)
}

/// Errors of the program are those that the model foresees.
fn btrfs(verb: &[&str], paths: &[PathBuf]) -> Result<(), Errno> {
    let out = Command::new("btrfs").args(["-q", "subvolume"]).args(verb).args(paths).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    match (out.status.success(), text) {
        (true, _) => Ok(()),
        (false, text) if text.contains("not empty") => Err(Errno::NOTEMPTY),
        (false, text) => panic!("btrfs {verb:?} {paths:?}: {text}"),
    }
}

/// One byte through a mapping, if the file has that byte.
fn store_model(disk: &mut Disk, fd: Fd, to: u64, n: u64) -> Result<(), Errno> {
    let stat = disk.stat(disk.opened_id(fd)?)?;
    if stat.kind == Kind::File && to < stat.size { disk.map_store(fd, to, &[n as u8], true) } else { Ok(()) }
}

fn store_real(file: &File, to: u64, n: u64) -> Result<(), Errno> {
    let meta = file.metadata().unwrap();
    if !meta.is_file() || to >= meta.len() {
        return Ok(());
    }
    if rustix::fs::fcntl_getfl(file).unwrap() & OFlags::ACCMODE == OFlags::RDONLY {
        return Err(Errno::BADF);
    }
    tests::sys::map(file)[to as usize] = n as u8;
    Ok(())
}
