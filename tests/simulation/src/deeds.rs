//! Carries out what a script says that somebody does to files. What cannot be done is not done, as on any machine.

use std::collections::BTreeMap;

use crate::disk::{Disk, Errno, Fd, How, Id, Kind};
use crate::disks::PEOPLE;
use crate::machine::Machine;
use crate::script::{Op, bytes};

/// A page stays dirty for so long: until then a store through a mapping changes no time (dirty_expire_centisecs).
const DIRTY_NS: i64 = 30_000_000_000;

/// The files that people and programs hold open, by the numbers of the script.
#[derive(Debug)]
pub struct Hands {
    open: BTreeMap<u8, (u64, Fd)>,
    /// Open files that changed in a way of which nothing tells before they are closed.
    silent: BTreeMap<u8, (u64, Id)>,
    /// Directories that nobody moves or takes away.
    roots: Vec<Vec<u8>>,
}

impl Hands {
    /// The tracked directories stay in their places.
    pub fn new(roots: Vec<Vec<u8>>) -> Hands {
        Hands { open: BTreeMap::new(), silent: BTreeMap::new(), roots }
    }

    /// Whether a path is a tracked directory, or leads to one.
    fn is_fixed(&self, path: &str) -> bool {
        let path = bytes(path);
        let leads =
            |root: &Vec<u8>| root.starts_with(&path) && [None, Some(&b'/')].contains(&root.get(path.len()));
        self.roots.iter().any(leads)
    }

    /// Does it, or not.
    pub fn carry_out(&mut self, machine: &mut Machine, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Rename { from: a, to: b } | Op::Exchange { a, b } if self.is_fixed(a) || self.is_fixed(b) => {
                Err(Errno::PERM)
            }
            Op::RemoveAll { path } | Op::Unlink { path } if self.is_fixed(path) => Err(Errno::PERM),
            Op::Open { path, fd } => {
                self.close(machine, *fd);
                let (dev, path) = machine.place(&bytes(path))?;
                let open = act(machine, holder(*fd), dev, |disk| disk.open(&path, How::WRITE))?;
                self.open.insert(*fd, (dev, open));
                Ok(())
            }
            Op::Close { fd } => {
                self.close(machine, *fd);
                Ok(())
            }
            Op::WriteOpen { fd: number, content }
            | Op::Map { fd: number, content }
            | Op::Aio { fd: number, content } => {
                let (dev, fd) = *self.open.get(number).ok_or(Errno::BADF)?;
                let content = bytes(content);
                if !matches!(op, Op::WriteOpen { .. }) {
                    let file = machine.disk(dev).ok_or(Errno::NODEV)?.opened_id(fd)?;
                    self.silent.insert(*number, (dev, file));
                }
                act(machine, holder(*number), dev, |disk| match op {
                    Op::WriteOpen { .. } => disk.append(fd, &content),
                    Op::Aio { .. } => disk.aio_write(fd, 0, &content),
                    _ => {
                        let written_ns = disk.stat(disk.opened_id(fd)?)?.mtime_ns;
                        disk.map_store(fd, 0, &content, (disk.now_ns - written_ns).abs() > DIRTY_NS)
                    }
                })
            }
            Op::Rename { from: a, to: b } | Op::Link { from: a, to: b } | Op::Exchange { a, b } => {
                let ((dev, from), (other, to)) = (machine.place(&bytes(a))?, machine.place(&bytes(b))?);
                if dev != other {
                    return Err(Errno::XDEV);
                }
                act(machine, PEOPLE, dev, |disk| match op {
                    Op::Rename { .. } => disk.rename(&from, &to),
                    Op::Link { .. } => disk.link(&from, &to),
                    _ => disk.exchange(&from, &to),
                })
            }
            _ => {
                let (dev, path) = machine.place(&bytes(path_of(op)))?;
                act(machine, PEOPLE, dev, |disk| at_path(disk, &path, op))
            }
        }
    }

    /// Whether this file changed, and nothing may have told of it yet.
    pub fn is_silent(&self, dev: u64, file: Id) -> bool {
        self.silent.values().any(|silent| *silent == (dev, file))
    }

    fn close(&mut self, machine: &mut Machine, fd: u8) {
        self.silent.remove(&fd);
        if let Some((dev, open)) = self.open.remove(&fd) {
            let _ = act(machine, holder(fd), dev, |disk| disk.close(open));
            machine.closed(dev);
        }
    }

    pub fn close_all(&mut self, machine: &mut Machine) {
        let all: Vec<u8> = self.open.keys().copied().collect();
        all.into_iter().for_each(|fd| self.close(machine, fd));
    }

    /// The programs that held them are gone with the machine.
    pub fn forget(&mut self) {
        self.open.clear();
        self.silent.clear();
    }
}

fn act<T>(
    machine: &mut Machine,
    pid: u32,
    dev: u64,
    work: impl FnOnce(&mut Disk) -> Result<T, Errno>,
) -> Result<T, Errno> {
    machine.act(pid, dev, work).unwrap_or(Err(Errno::NODEV))
}

/// The process that holds a file open. Its events do not merge with those of others.
fn holder(fd: u8) -> u32 {
    PEOPLE + 1 + u32::from(fd)
}

fn path_of(op: &Op) -> &str {
    match op {
        Op::Create { path, .. }
        | Op::Mkdir { path }
        | Op::Write { path, .. }
        | Op::Truncate { path, .. }
        | Op::Unlink { path }
        | Op::RemoveAll { path }
        | Op::Symlink { path, .. }
        | Op::Fifo { path }
        | Op::Chmod { path, .. }
        | Op::Touch { path, .. }
        | Op::Xattr { path, .. }
        | Op::Tmpfile { path, .. } => path,
        _ => "",
    }
}

fn at_path(disk: &mut Disk, path: &[u8], op: &Op) -> Result<(), Errno> {
    match op {
        Op::Create { content, .. } => disk.put(path, &bytes(content)),
        Op::Mkdir { .. } => disk.mkdir(path, 0o755).map(drop),
        Op::Write { at, content, .. } => {
            let fd = disk.open(path, How::WRITE)?;
            let written = disk.write(fd, *at, &bytes(content));
            disk.close(fd)?;
            written
        }
        Op::Truncate { size, .. } => disk.truncate(path, *size),
        Op::Unlink { .. } => disk.unlink(path).or_else(|_| disk.rmdir(path)),
        Op::RemoveAll { .. } => disk.remove_all(path),
        Op::Symlink { target, .. } => disk.symlink(path, &bytes(target)).map(drop),
        Op::Fifo { .. } => disk.mknod(path, Kind::Fifo, 0o644, 0).map(drop),
        Op::Chmod { mode, .. } => disk.chmod(path, *mode),
        Op::Touch { mtime_ns, .. } => disk.set_mtime(path, *mtime_ns),
        Op::Xattr { value, .. } => disk.set_xattr(path, b"user.note", &bytes(value)),
        Op::Tmpfile { content, .. } => {
            let dir = path.iter().rposition(|&b| b == b'/').map_or(&b""[..], |at| &path[..at]);
            let fd = disk.tmpfile(dir)?;
            let made = disk.write(fd, 0, &bytes(content)).and_then(|()| disk.link_open(fd, path));
            disk.close(fd)?;
            made
        }
        _ => Ok(()),
    }
}
