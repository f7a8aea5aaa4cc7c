//! A root as the syncer sees it: the real one's answers, over a simulated disk. Others go on between any two questions,
//! and a file may change while it is read.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use shared::entry::Handle;
use shared::identity::Identity;
use shared::path::RelPath;
use syncer::tree::{Dir, Look, SourceFile, Stat, Tree, TreeError, Xattrs};

use crate::disk::{Disk, Errno, Fd, How, Id, Kind, Listing, Name};
use crate::fate::{Fate as _, Fault};
use crate::hand::Hand;
use crate::machine::{Hold, Machine, Spot};
use crate::oracle::requests::Requests;
use crate::store::lock;

/// An open root directory.
pub struct SimTree {
    hand: Hand,
    path: PathBuf,
    hold: Hold,
    top: Spot,
    identity: Identity,
    /// The directories that the last path led through: they stay what they are, wherever they are moved.
    kept: Mutex<Vec<(Vec<u8>, Id)>>,
    /// Who looks on, and which of its roots this is.
    witness: (Arc<Requests>, usize),
}

/// Why a path cannot be pinned.
enum Miss {
    Absent(RelPath),
    Failed(RelPath, io::Error),
}

impl SimTree {
    pub fn open(hand: &Hand, path: &Path, at: usize, looks_on: &Arc<Requests>) -> Result<SimTree, String> {
        hand.pass("open a root");
        let mut machine = hand.shared.machine();
        let failed = |e| format!("{}: {e}", path.display());
        let hold = machine.hold(hand.pid(), path.as_os_str().as_bytes()).map_err(failed)?;
        let found = machine.held(hold).ok_or(Errno::BADF).and_then(|top| Ok((top, machine.identity(top)?.0)));
        let (top, identity) = found.map_err(|e| {
            machine.release(hold);
            failed(e)
        })?;
        drop(machine);
        looks_on.opened(at, top.dev, top.id);
        let (kept, witness) = (Mutex::default(), (Arc::clone(looks_on), at));
        Ok(SimTree { hand: hand.clone(), path: path.to_owned(), hold, top, identity, kept, witness })
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    fn with<T>(&self, work: impl FnOnce(&Machine, &Disk) -> T) -> T {
        let machine = self.hand.shared.machine();
        work(&machine, held(&machine, self.top.dev))
    }

    /// Through the directories remembered, or from the top if they do not lead to it.
    fn pin(&self, path: &RelPath) -> Result<Id, Miss> {
        if self.hand.strikes(Fault::SourceIo) {
            return Err(Miss::Failed(path.clone(), Errno::IO.into()));
        }
        let kept = lock(&self.kept).clone();
        self.walk(path, kept).or_else(|_| self.walk(path, Vec::new()))
    }

    fn walk(&self, path: &RelPath, kept: Vec<(Vec<u8>, Id)>) -> Result<Id, Miss> {
        self.with(|machine, disk| {
            let (mut at, mut way, mut prefix) = (self.top.id, Vec::new(), RelPath::root());
            let last = path.components().count();
            let mut follows = true;
            for (depth, name) in path.components().enumerate() {
                prefix = prefix.child(name).map_err(|e| Miss::Failed(prefix.clone(), io::Error::other(e)))?;
                follows &= kept.get(depth).is_some_and(|(known, _)| known == name);
                let is_dir_of_path = depth + 1 < last;
                at = match kept.get(depth).filter(|_| follows && is_dir_of_path) {
                    Some((_, id)) => *id,
                    None => self.step(machine, disk, at, name, &prefix)?,
                };
                if is_dir_of_path {
                    if disk.inode(at).is_ok_and(|inode| !inode.is_dir()) {
                        return Err(Miss::Absent(prefix));
                    }
                    way.push((name.to_vec(), at));
                }
            }
            disk.inode(at).map_err(|e| Miss::Failed(prefix, e.into()))?;
            *lock(&self.kept) = way;
            Ok(at)
        })
    }

    fn step(&self, machine: &Machine, disk: &Disk, dir: Id, name: &[u8], at: &RelPath) -> Result<Id, Miss> {
        let failed = |e: Errno| Miss::Failed(at.clone(), e.into());
        let id = match disk.child(dir, name) {
            Ok(id) => id,
            Err(Errno::NOENT) => return Err(Miss::Absent(at.clone())),
            Err(e) => return Err(failed(e)),
        };
        // Another subvolume, or something mounted there.
        if id.root != self.top.id.root || machine.is_covered(Spot { id, ..self.top }) {
            return Err(failed(Errno::XDEV));
        }
        Ok(id)
    }

    fn at<T>(
        &self,
        op: &'static str,
        path: &RelPath,
        ask: impl FnOnce(&Disk, Id) -> Result<T, Errno>,
    ) -> Result<T, TreeError> {
        self.hand.pass(op);
        let error = |path: RelPath, source| TreeError { op, path, source };
        let id = self.pin(path).map_err(|miss| match miss {
            Miss::Absent(at) => error(at, Errno::NOENT.into()),
            Miss::Failed(at, source) => error(at, source),
        })?;
        self.with(|_, disk| ask(disk, id)).map_err(|e| error(path.clone(), e.into()))
    }
}

impl Tree for SimTree {
    fn look(&self, path: &RelPath) -> Look {
        self.hand.pass("look");
        let stat = |id| self.with(|_, disk| disk.stat(id));
        let at = match self.pin(path).map(stat) {
            Ok(Ok(stat)) => {
                self.witness.0.looked(self.witness.1, path, Some(stat.kind));
                return Look::Found(stat);
            }
            Ok(Err(e)) => return Look::Unknown(format!("{path}: {e}")),
            Err(Miss::Failed(at, e)) if e.kind() == io::ErrorKind::CrossesDevices => {
                return Look::Elsewhere(format!("{at}: {e}"));
            }
            Err(Miss::Failed(at, e)) => return Look::Unknown(format!("{at}: {e}")),
            Err(Miss::Absent(at)) => at,
        };
        match stat(self.top.id) {
            Ok(top) if top.nlink > 0 => {
                self.witness.0.looked(self.witness.1, path, None);
                Look::Gone { at }
            }
            Ok(_) => Look::Unknown(format!("{} was removed", self.path.display())),
            Err(e) => Look::Unknown(format!("{}: {e}", self.path.display())),
        }
    }

    fn dir(&self, path: &RelPath) -> Result<Arc<dyn Dir>, TreeError> {
        let dir =
            self.at(
                "list",
                path,
                |disk, id| {
                    if disk.inode(id)?.is_dir() { Ok(id) } else { Err(Errno::NOTDIR) }
                },
            )?;
        Ok(Arc::new(SimDir { hand: self.hand.clone(), dir: Spot { id: dir, ..self.top } }))
    }

    fn open(&self, path: &RelPath) -> Result<Arc<dyn SourceFile>, TreeError> {
        let (name, stat) = self.at("open", path, |disk, id| match disk.stat(id)? {
            stat if stat.kind == Kind::File => Ok((disk.path_of(id)?, stat)),
            _ => Err(Errno::INVAL),
        })?;
        let (pid, dev) = (self.hand.pid(), self.top.dev);
        let opened = self.hand.shared.machine().act(pid, dev, |disk| disk.open(&name, How::READ));
        let fd = opened.unwrap_or(Err(Errno::NODEV)).map_err(|e| TreeError {
            op: "open",
            path: path.clone(),
            source: e.into(),
        })?;
        Ok(Arc::new(SimFile { hand: self.hand.clone(), dev, fd, stat }))
    }

    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, TreeError> {
        self.at("read the link", path, |disk, id| match disk.inode(id)? {
            inode if inode.kind == Kind::Symlink => Ok(inode.content.bytes()),
            _ => Err(Errno::INVAL),
        })
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs, TreeError> {
        self.at("read the extended attributes of", path, |disk, id| {
            Ok(disk.inode(id)?.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
        })
    }

    fn handle(&self, path: &RelPath) -> Option<Handle> {
        self.hand.pass("handle");
        let id = self.pin(path).ok()?;
        Some(self.with(|_, disk| disk.handle_of(id)))
    }

    fn now_ns(&self) -> i64 {
        self.with(|machine, _| machine.wall_ns)
    }

    fn stable_inodes(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), String> {
        self.hand.pass("check a root");
        let machine = self.hand.shared.machine();
        let path = self.path.display();
        let now = machine.spot(&self.path).map_err(|e| format!("{path}: {e}"))?;
        if (now.dev, now.id) != (self.top.dev, self.top.id) {
            return Err(format!("{path} leads to another directory"));
        }
        Ok(())
    }

    fn release(&self) {
        lock(&self.kept).clear();
    }
}

impl Drop for SimTree {
    fn drop(&mut self) {
        self.hand.shared.machine().release(self.hold);
    }
}

/// A disk that somebody holds something open on.
fn held(machine: &Machine, dev: u64) -> &Disk {
    machine.disk(dev).expect("what is in use stays")
}

struct SimDir {
    hand: Hand,
    dir: Spot,
}

impl SimDir {
    fn child(&self, name: &CStr) -> io::Result<Id> {
        self.hand.pass("stat a name");
        if self.hand.strikes(Fault::SourceIo) {
            return Err(Errno::IO.into());
        }
        let machine = self.hand.shared.machine();
        let id = held(&machine, self.dir.dev).child(self.dir.id, name.to_bytes())?;
        let elsewhere = id.root != self.dir.id.root || machine.is_covered(Spot { id, ..self.dir });
        if elsewhere { Err(Errno::XDEV.into()) } else { Ok(id) }
    }
}

impl Dir for SimDir {
    fn names(&self, each: &mut dyn FnMut(&CStr, Option<bool>)) -> io::Result<()> {
        self.hand.pass("read a directory");
        let at = self.hand.pick(6) as usize;
        let listing = match () {
            () if self.hand.strikes(Fault::ListingLacks) => Listing::Lacking(at),
            () if self.hand.strikes(Fault::ListingFails) => Listing::FailingAt(at),
            () => Listing::Whole,
        };
        let (names, ended) = held(&self.hand.shared.machine(), self.dir.dev).list(self.dir.id, listing);
        if matches!(listing, Listing::Lacking(_)) {
            self.hand.shared.lied();
        }
        for (name, _, kind) in names {
            each(&c_name(&name)?, Some(kind.is_dir()));
        }
        Ok(ended?)
    }

    fn stat(&self, name: &CStr) -> io::Result<Stat> {
        let id = self.child(name)?;
        Ok(held(&self.hand.shared.machine(), self.dir.dev).stat(id)?)
    }

    fn dir(&self, name: &CStr) -> io::Result<Arc<dyn Dir>> {
        let id = self.child(name)?;
        if !held(&self.hand.shared.machine(), self.dir.dev).inode(id)?.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        Ok(Arc::new(SimDir { hand: self.hand.clone(), dir: Spot { id, ..self.dir } }))
    }
}

fn c_name(name: &Name) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(name.to_vec()).map_err(io::Error::other)
}

/// An open file. It stays the one that was opened, whatever becomes of its name.
struct SimFile {
    hand: Hand,
    dev: u64,
    fd: Fd,
    stat: Stat,
}

impl SimFile {
    fn now(&self) -> Result<Stat, Errno> {
        let machine = self.hand.shared.machine();
        let disk = held(&machine, self.dev);
        disk.stat(disk.opened_id(self.fd)?)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut machine = self.hand.shared.machine();
        // After a boot there is nothing to close.
        let _ = machine.act(self.hand.pid(), self.dev, |disk| disk.close(self.fd));
        machine.closed(self.dev);
    }
}

impl SourceFile for SimFile {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.hand.pass("read a file");
        if self.hand.strikes(Fault::SourceIo) {
            return Err(Errno::IO.into());
        }
        // A few bytes at a time, so that others go on between two reads of even the smallest file.
        let most = buffer.len().min(if self.stat.size < 64 { 2 } else { 1 << 20 });
        let machine = self.hand.shared.machine();
        let disk = held(&machine, self.dev);
        if disk.dead {
            return Err(Errno::IO.into());
        }
        Ok(disk.read(self.fd, offset, &mut buffer[..most])?)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.now()?.size;
        Ok((from < size).then_some(from..size))
    }

    fn unchanged(&self) -> io::Result<bool> {
        self.hand.pass("stat an open file");
        let now = self.now()?;
        let key = |s: &Stat| (s.size, s.mtime_ns, s.ctime_ns);
        Ok(key(&now) == key(&self.stat))
    }
}
