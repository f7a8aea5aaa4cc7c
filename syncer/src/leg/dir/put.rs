//! Bringing things into being: made whole under a temporary name, then renamed to their own.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use sha1::Digest;
use shared::path::RelPath;

use super::{Inner, failed, is_state, missed, object, trash_failed};
use crate::leg::{Body, Problem, Put, Receipt, Sha1, StoreError, What};
use crate::tree::beneath::{self, Miss};
use crate::tree::{Kind, Stat};

const OP: &str = "write";
const COPY_BYTES: usize = 1 << 20;
/// Runs of zeros from this length on become holes in a file that was read whole.
const HOLE_BYTES: usize = 4096;
/// Free space is looked at again after so much was written.
const ROOM_CHECK_BYTES: u64 = 64 << 20;

impl Inner {
    pub fn put(&self, put: &Put) -> Result<Receipt, StoreError> {
        match &put.what {
            What::Dir => self.put_dir(put),
            What::Attributes => self.put_attributes(put),
            What::HardLink { to } => self.put_hard_link(put, to),
            What::File(body) => self.replace(put, |temp| self.make_file(put, body, temp).map(Some)),
            What::Symlink { target } => self.replace(put, |temp| {
                let made = rustix::fs::symlinkat(target.as_slice(), &self.writing().tmp, temp);
                made.map_err(|e| failed(OP, &put.dest, e))?;
                self.attribute_temp(put, temp).map(|()| None)
            }),
            What::Special => self.replace(put, |temp| {
                self.make_special(put, temp)?;
                self.attribute_temp(put, temp).map(|()| None)
            }),
        }
    }

    fn put_dir(&self, put: &Put) -> Result<Receipt, StoreError> {
        if let Some(name) = put.dest.name() {
            let (parent, _) = self.spot(&put.dest, true)?;
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(failed("make", &put.dest, e)),
            }
        }
        let stat = self.below().pin(&put.dest).map_err(|m| missed("make", m))?.stat;
        Ok(Receipt { object: object(&stat), sha1: None })
    }

    fn put_attributes(&self, put: &Put) -> Result<Receipt, StoreError> {
        let op = "set the attributes of";
        let pinned = self.below().pin(&put.dest).map_err(|m| missed(op, m))?;
        if pinned.stat.kind != put.stat.kind {
            let message = format!("a {} is there, a {} is expected", pinned.stat.kind, put.stat.kind);
            return Err(StoreError::new(op, &put.dest, Problem::InTheWay, message));
        }
        self.apply(put, &pinned)?;
        let stat = beneath::stat(pinned.fd.as_fd()).map_err(|e| failed(op, &put.dest, e))?;
        Ok(Receipt { object: object(&stat), sha1: None })
    }

    fn put_hard_link(&self, put: &Put, to: &RelPath) -> Result<Receipt, StoreError> {
        let op = "link to";
        let writing = self.writing();
        let target = self.below().pin(to).map_err(|m| missed(op, m))?.stat;
        let (Some(parent), Some(name), false) = (to.parent(), to.name(), target.kind.is_dir()) else {
            return Err(StoreError::new(op, to, Problem::InTheWay, "it is a directory"));
        };
        let (_, standing) = self.spot(&put.dest, false)?;
        if standing.is_some_and(|s| s.ino == target.ino) {
            // Renaming one link of an inode over another does nothing and leaves both (rename(2)).
            return Ok(Receipt { object: object(&target), sha1: None });
        }
        self.replace(put, |temp| {
            let parent = self.below().dir(&parent, false).map_err(|m| missed(op, m))?;
            let linked = rustix::fs::linkat(&parent, name, &writing.tmp, temp, AtFlags::empty());
            linked.map(|()| None).map_err(|e| failed(op, to, e))
        })
    }

    /// Makes a thing under a temporary name and puts it in place of what stands at its own, which goes to the trash.
    fn replace(
        &self,
        put: &Put,
        make: impl FnOnce(&str) -> Result<Option<Sha1>, StoreError>,
    ) -> Result<Receipt, StoreError> {
        let writing = self.writing();
        self.spot(&put.dest, false)?;
        self.check_room(self.below().root(), &self.place().disk)?;
        let temp = self.temp_name();
        let placed = make(&temp).and_then(|sha1| {
            let stat = self.below().stat_name(writing.tmp.as_fd(), temp.as_bytes());
            let stat = stat.map_err(|e| failed(OP, &put.dest, e))?;
            self.rename_over(&put.dest, &temp)?;
            Ok(Receipt { object: object(&stat), sha1 })
        });
        if placed.is_err() {
            // Nothing to be done about a second error; the next run cleans up.
            let _ = rustix::fs::unlinkat(&writing.tmp, &temp, AtFlags::empty());
        }
        placed
    }

    fn rename_over(&self, dest: &RelPath, temp: &str) -> Result<(), StoreError> {
        let writing = self.writing();
        let (parent, standing) = self.spot(dest, false)?;
        let name = dest.name().expect("`spot` refuses the destination itself");
        if standing.is_some() && !is_state(dest) {
            let now_ns = self.setup.clock.wall_ns();
            let linked = writing.trash.link(dest, parent.as_fd(), name, now_ns);
            match linked.as_ref().map_err(|e| e.raw_os_error().map(Errno::from_raw_os_error)) {
                Ok(()) => {}
                // It takes no further link: somebody else's file (proc_sys_fs(5), protected_hardlinks), too many
                // links, a filesystem without them.
                Err(Some(Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP)) => {
                    return self.exchange(dest, parent.as_fd(), temp, now_ns);
                }
                Err(_) => linked.map_err(|e| trash_failed(OP, dest, e))?,
            }
        }
        rustix::fs::renameat(&writing.tmp, temp, &parent, name).map_err(|e| failed(OP, dest, e))
    }

    /// Swaps the two names, so that the old version can be moved to the trash from the temporary one.
    fn exchange(
        &self,
        dest: &RelPath,
        parent: BorrowedFd<'_>,
        temp: &str,
        now_ns: i64,
    ) -> Result<(), StoreError> {
        let writing = self.writing();
        let name = dest.name().expect("`spot` refuses the destination itself");
        let swap = || rustix::fs::renameat_with(&writing.tmp, temp, parent, name, RenameFlags::EXCHANGE);
        swap().map_err(|e| failed(OP, dest, e))?;
        writing.trash.take(dest, writing.tmp.as_fd(), temp.as_bytes(), now_ns).map_err(|e| {
            // Back, or the old version is thrown away with the temporary name.
            let _ = swap();
            trash_failed(OP, dest, e)
        })
    }

    /// The directory that `dest` stands in, and what stands there; an error unless it is of the sort that may come.
    fn spot(&self, dest: &RelPath, dir: bool) -> Result<(Arc<OwnedFd>, Option<Stat>), StoreError> {
        let below = self.below();
        let in_the_way = |message: &str| StoreError::new(OP, dest, Problem::InTheWay, message);
        let Some(parent) = dest.parent() else {
            return Err(in_the_way("it is the destination itself"));
        };
        let parent = below.dir(&parent, is_state(dest)).map_err(|m| missed(OP, m))?;
        match below.pin(dest) {
            Ok(pinned) if pinned.stat.kind.is_dir() == dir => Ok((parent, Some(pinned.stat))),
            Ok(pinned) => Err(in_the_way(&format!("a {} is there", pinned.stat.kind))),
            Err(Miss::Absent { at }) if at == *dest => Ok((parent, None)),
            Err(miss) => Err(missed(OP, miss)),
        }
    }

    fn make_file(&self, put: &Put, body: &Body, temp: &str) -> Result<Sha1, StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let out = rustix::fs::openat(&self.writing().tmp, temp, flags, Mode::RUSR | Mode::WUSR);
        let out = File::from(out.map_err(|e| failed(OP, &put.dest, e))?);
        let size = put.stat.size;
        let busy = |message: &str| StoreError::new("read", &put.dest, Problem::Busy, message);
        let known = body.small.as_ref().map_or(body.file.stat().size, |(bytes, _)| bytes.len() as u64);
        if known != size {
            return Err(busy("its size changed before it was read"));
        }
        let write_error = |e: io::Error| failed(OP, &put.dest, e);
        out.set_len(size).map_err(write_error)?;
        let sha1 = match &body.small {
            Some((bytes, sha1)) => {
                write_sparse(&out, bytes).map_err(write_error)?;
                *sha1
            }
            None => self.copy(put, body, &out)?,
        };
        (&out).flush().map_err(write_error)?;
        drop(out);
        self.attribute_temp(put, temp)?;
        if body.small.is_none() {
            match body.file.unchanged() {
                Ok(true) => {}
                Ok(false) => return Err(busy("it changed while it was read")),
                Err(e) => return Err(StoreError::new("read", &put.dest, Problem::Unreadable, e)),
            }
        }
        Ok(sha1)
    }

    /// Copies what the first stat counted, holes as holes; the hash is of all bytes, the zeros of holes included.
    fn copy(&self, put: &Put, body: &Body, out: &File) -> Result<Sha1, StoreError> {
        let unreadable = |e: io::Error| StoreError::new("read", &put.dest, Problem::Unreadable, e);
        let busy = || StoreError::new("read", &put.dest, Problem::Busy, "it shrank while it was read");
        let size = put.stat.size;
        let mut hash = sha1::Sha1::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut unchecked = 0;
        let mut at = 0;
        while at < size {
            let data = body.file.next_data(at).map_err(unreadable)?.filter(|data| data.start < size);
            let data = data.map_or(size..size, |data| data.start.max(at)..data.end.min(size));
            hash_zeros(&mut hash, data.start - at);
            at = data.start;
            if data.is_empty() && at < size {
                return Err(busy());
            }
            while at < data.end {
                let want = buffer.len().min(usize::try_from(data.end - at).unwrap_or(usize::MAX));
                let got = body.file.read_at(&mut buffer[..want], at).map_err(unreadable)?;
                if got == 0 {
                    return Err(busy());
                }
                hash.update(&buffer[..got]);
                out.write_all_at(&buffer[..got], at).map_err(|e| failed(OP, &put.dest, e))?;
                at += got as u64;
                unchecked += got as u64;
                if unchecked >= ROOM_CHECK_BYTES {
                    self.check_room(self.below().root(), &self.place().disk)?;
                    unchecked = 0;
                }
            }
        }
        Ok(hash.finalize().into())
    }

    fn make_special(&self, put: &Put, temp: &str) -> Result<(), StoreError> {
        let file_type = match put.stat.kind {
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            kind @ (Kind::File | Kind::Dir | Kind::Symlink) => {
                let message = format!("a {kind} is not a special file");
                return Err(StoreError::new("make", &put.dest, Problem::Unfit, message));
            }
        };
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::mknodat(&self.writing().tmp, temp, file_type, mode, put.stat.rdev) {
            Ok(()) => Ok(()),
            Err(Errno::PERM) => {
                let message = format!("no right to make a {} here (it needs CAP_MKNOD)", put.stat.kind);
                Err(StoreError::new("make", &put.dest, Problem::Unfit, message))
            }
            Err(e) => Err(failed("make", &put.dest, e)),
        }
    }

    fn attribute_temp(&self, put: &Put, temp: &str) -> Result<(), StoreError> {
        let writing = self.writing();
        let pinned = self.below().pin_name(writing.tmp.as_fd(), temp.as_bytes());
        self.apply(put, &pinned.map_err(|e| failed(OP, &put.dest, e))?)
    }
}

fn hash_zeros(hash: &mut sha1::Sha1, mut count: u64) {
    let zeros = [0; 64 * 1024];
    while count > 0 {
        let now = zeros.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        hash.update(&zeros[..now]);
        count -= now as u64;
    }
}

fn write_sparse(out: &File, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    for block in bytes.chunks(HOLE_BYTES) {
        if block.iter().any(|&b| b != 0) {
            out.write_all_at(block, at)?;
        }
        at += block.len() as u64;
    }
    Ok(())
}
