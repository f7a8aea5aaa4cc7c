//! The machine as the tracker sees it: its trait `Host`, over the simulated kernel and disks.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use shared::clock::Clock;
use shared::entry::Handle;
use shared::journal::{Change, Generation};
use tracker::generation::Whole;
use tracker::host::{Host, Placed, View};
use tracker::intake::PlaceError;
use tracker::intake::buffer::{TOTAL_BYTES, Unfit};
use tracker::intake::records::HandleRef;
use tracker::mounts::Mount;
use tracker::resolve::{Link, Lost, MountError, NameOf};
use tracker::roots::{OpenRoot, OwnDir, Standing, TrackedRoot};

use crate::disk::{Disk, Errno};
use crate::fate::{Fate as _, Fault};
use crate::hand::Hand;
use crate::machine::{self, GroupId, Hold, Machine, Mapped, Memory, Spot, UpLink};
use crate::store::lock;

/// The clock of a program.
pub struct SimClock(pub Hand);

impl Clock for SimClock {
    fn wall_ns(&self) -> i64 {
        self.0.shared.machine().wall_ns
    }

    fn boot_ns(&self) -> i64 {
        self.0.shared.machine().boot_ns
    }
}

/// Clones are the same machine, seen by the same life of the tracker.
#[derive(Clone)]
pub struct SimHost {
    hand: Hand,
    /// What the service manager passed, and nobody took yet.
    passed: Arc<Mutex<BTreeSet<String>>>,
}

impl SimHost {
    pub fn new(hand: Hand) -> SimHost {
        let passed = hand.shared.machine().kept_names().into_iter().collect();
        SimHost { hand, passed: Arc::new(Mutex::new(passed)) }
    }

    /// If there is a service manager.
    fn keep(&self, name: &str, what: machine::Kept) {
        if self.hand.shared.shape.keeps {
            self.hand.shared.machine().keep(name, what);
        }
    }
}

/// A group, held by this life of the tracker.
pub struct SimGroup {
    hand: Hand,
    id: GroupId,
}

impl Drop for SimGroup {
    fn drop(&mut self) {
        self.hand.shared.machine().close_group(self.id);
    }
}

/// What the service manager passes.
pub enum Kept {
    Group(SimGroup),
    Memory(SimMemory),
}

/// The bytes of an intake buffer. They outlive whoever has them mapped.
pub struct SimMemory {
    hand: Hand,
    data: Option<Box<Mapped>>,
    home: Memory,
}

impl SimMemory {
    fn open(hand: &Hand, home: Memory) -> Option<SimMemory> {
        let data = lock(&home).take()?;
        Some(SimMemory { hand: hand.clone(), data: Some(data), home })
    }

    fn data(&self) -> &Mapped {
        self.data.as_deref().expect("it is there as long as this lives")
    }

    fn data_mut(&mut self) -> &mut Mapped {
        self.data.as_deref_mut().expect("it is there as long as this lives")
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        *lock(&self.home) = self.data.take();
    }
}

impl tracker::host::Memory for SimMemory {
    fn size(&self) -> usize {
        TOTAL_BYTES
    }

    fn word(&self, word: usize) -> u64 {
        self.data().words[word].get()
    }

    fn set_word(&self, word: usize, value: u64) {
        self.hand.mortal("store a word");
        self.data().words[word].set(value);
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.data().bytes[range]
    }

    fn behind(&self, at: u64) -> &[u8] {
        let at = usize::try_from(at).ok().filter(|at| *at <= TOTAL_BYTES);
        at.map_or(&[], |at| &self.data().bytes[at..])
    }

    fn store(&mut self, at: usize, bytes: &[u8]) {
        self.hand.mortal("store bytes");
        self.data_mut().bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn clear(&mut self, range: Range<usize>) {
        self.data_mut().bytes[range].fill(0);
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A directory held open: its filesystem stays in use.
pub struct Held {
    hand: Hand,
    hold: Hold,
    spot: Spot,
}

impl Held {
    fn new(hand: &Hand, open: impl FnOnce(&mut Machine, u32) -> Result<Hold, Errno>) -> Result<Held, Errno> {
        let mut machine = hand.shared.machine();
        let hold = open(&mut machine, hand.pid())?;
        let spot = machine.held(hold).ok_or(Errno::BADF)?;
        Ok(Held { hand: hand.clone(), hold, spot })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.hand.shared.machine().release(self.hold);
    }
}

/// A view of a whole disk.
pub struct SimView(Held);

impl SimView {
    fn ask<T>(
        &self,
        point: &'static str,
        ask: impl FnOnce(&Machine, u64) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.0.hand.pass(point);
        ask(&self.0.hand.shared.machine(), self.0.spot.dev)
    }
}

impl View for SimView {
    fn top(&self) -> io::Result<Handle> {
        let top = |machine: &Machine, dev| {
            let disk = machine.disk(dev).ok_or(Errno::NODEV)?;
            Ok(disk.handle_of(disk.top()))
        };
        Ok(self.ask("the top's handle", top)?)
    }

    fn links(&mut self, dir: &Handle, is_known: impl Fn(HandleRef<'_>) -> bool) -> Result<Vec<Link>, Lost> {
        // EIO arrives as ESTALE, too.
        if self.0.hand.strikes(Fault::HandleIo) {
            return Err(Lost::Gone);
        }
        let links = self.ask("climb", |machine, dev| {
            let disk = machine.disk(dev).ok_or(Errno::STALE)?;
            let top = disk.handle_of(disk.top());
            machine.links_up(dev, dir, |dir| *dir == top || is_known(dir.into()))
        });
        match links {
            Ok(links) => {
                let link = |up: UpLink| Link { dir: up.dir, parent: up.parent, name: up.name.to_vec() };
                Ok(links.into_iter().map(link).collect())
            }
            Err(Errno::STALE) => Err(Lost::Gone),
            Err(_) => Err(Lost::Stale),
        }
    }

    fn name_of(&mut self, file: &Handle) -> NameOf {
        if self.0.hand.strikes(Fault::HandleIo) {
            return NameOf::Stale;
        }
        let drawn = self.0.hand.pick(1 << 16) as usize;
        let name = self.ask("a name of a file", |machine, dev| machine.name_of(dev, file, |n| drawn % n));
        match name {
            Ok(Some((dir, name, only))) => NameOf::Known { dir, name: name.to_vec(), only },
            Ok(None) => NameOf::None,
            Err(_) => NameOf::Stale,
        }
    }

    fn may_have_names(&mut self, file: &Handle) -> bool {
        let names = self.ask("the names of a file", |machine, dev| machine.names(dev, file));
        names.is_ok_and(|names| names.len() > 1)
    }

    fn has(&mut self, dir: HandleRef<'_>, name: &[u8], file: HandleRef<'_>) -> bool {
        let (dir, file) = (dir.to_handle(), file.to_handle());
        self.ask("a name in a directory", |machine, dev| Ok(machine.has(dev, &dir, name, &file))) == Ok(true)
    }
}

impl Host for SimHost {
    type Dir = Held;
    type Group = SimGroup;
    type Memory = SimMemory;
    type View = SimView;
    type Kept = Kept;

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SimClock(self.hand.clone()))
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(self.hand.shared.machine().boot_id())
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        let machine = self.hand.shared.machine();
        let spot = machine.spot(path)?;
        Ok(machine.disk(spot.dev).ok_or(Errno::NODEV)?.inode(spot.id)?.is_dir())
    }

    fn open_dir(&self, path: &Path) -> io::Result<Held> {
        self.hand.pass("open a directory");
        Ok(Held::new(&self.hand, |machine, pid| machine.hold(pid, path.as_os_str().as_bytes()))?)
    }

    fn identify(&self, fd: Held) -> Result<OpenRoot<Held>, String> {
        let machine = self.hand.shared.machine();
        let (identity, attachment) = machine.identity(fd.spot).map_err(|e| e.to_string())?;
        let handle = machine.disk(fd.spot.dev).map(|disk| disk.handle_of(fd.spot.id));
        drop(machine);
        Ok(OpenRoot { fd, attachment, identity, handle })
    }

    fn standing(&self, path: &Path) -> Option<Standing> {
        let machine = self.hand.shared.machine();
        let spot = machine.spot(path).ok()?;
        let dev = machine.st_dev(spot.dev, spot.id);
        Some(Standing { mount: spot.mount.0, dev: ((dev >> 32) as u32, dev as u32), inode: spot.id.ino })
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        self.hand.shared.machine().is_mount_point(path.as_os_str().as_bytes())
    }

    fn mounts(&self) -> io::Result<Vec<Mount>> {
        Ok(self.hand.shared.machine().mountinfo())
    }

    /// The state directory lies on no tracked disk.
    fn own_dir(&self, _path: &Path) -> io::Result<OwnDir> {
        Ok(OwnDir { dev: 0, superblock: 0, inode: 0, handle: None })
    }

    fn view(&self, dev: u64) -> Result<SimView, MountError> {
        self.hand.pass("open a view");
        let held = Held::new(&self.hand, |machine, pid| machine.hold_whole(pid, dev));
        held.map(SimView).map_err(|_| MountError::NotWhole)
    }

    fn new_group(&self) -> Result<SimGroup, PlaceError> {
        self.hand.pass("make a group");
        let id = self.hand.shared.machine().new_group(self.hand.pid(), self.queue_max());
        Ok(SimGroup { hand: self.hand.clone(), id })
    }

    fn mark(&self, group: &SimGroup, on: &SimView) -> io::Result<()> {
        self.hand.pass("mark");
        Ok(self.hand.shared.machine().mark(group.id, on.0.spot.dev)?)
    }

    fn fdinfo(&self, group: &SimGroup) -> io::Result<String> {
        Ok(self.hand.shared.machine().fdinfo(group.id)?)
    }

    fn queue_max(&self) -> u64 {
        self.hand.shared.shape.queue_max as u64
    }

    fn queued(&self, group: &SimGroup) -> io::Result<u64> {
        self.hand.pass("count what is queued");
        let machine = self.hand.shared.machine();
        Ok(machine.queue(group.id).ok_or(Errno::BADF)?.len())
    }

    fn read(&self, group: &SimGroup, memory: &mut SimMemory, range: Range<usize>) -> io::Result<usize> {
        self.hand.pass("read events");
        let has_events = self.hand.shared.machine().queue(group.id).is_some_and(|queue| !queue.is_empty());
        let fails = has_events && self.hand.strikes(Fault::ReadFails);
        let mut machine = self.hand.shared.machine();
        if fails {
            machine.fail_read(group.id, Errno::FAULT);
        }
        let events = machine.read(group.id, range.len())?;
        drop(machine);
        memory.data_mut().bytes[range.start..range.start + events.len()].copy_from_slice(&events);
        // The call runs to its end even when the process was killed in it: the events are in the memory, and nobody said
        // how many.
        if self.hand.strikes(Fault::KillInRead) {
            crate::fate::die();
        }
        Ok(events.len())
    }

    fn read_aside(&self, group: &SimGroup, into: &mut [u8]) -> io::Result<usize> {
        let events = self.hand.shared.machine().read(group.id, into.len())?;
        into[..events.len()].copy_from_slice(&events);
        Ok(events.len())
    }

    fn fd<'g>(&self, _group: &'g SimGroup) -> Option<BorrowedFd<'g>> {
        None
    }

    fn ring(&self, group: &SimGroup, dir: &Held, _dev: u64) -> io::Result<Handle> {
        self.hand.pass("ring");
        Ok(self.hand.shared.machine().ring(self.hand.pid(), group.id, dir.spot)?)
    }

    fn unmark_dirs(&self, _group: &SimGroup, _any: &SimView) -> io::Result<()> {
        Ok(())
    }

    fn place_instead(
        &self,
        _roots: &[TrackedRoot],
        _own: &[OwnDir],
    ) -> Result<Placed<SimMemory>, PlaceError> {
        Err(PlaceError::Refused { reason: "there is no other source here".to_owned() })
    }

    fn new_memory(&self) -> io::Result<SimMemory> {
        let data = Some(Box::default());
        Ok(SimMemory { hand: self.hand.clone(), data, home: Memory::default() })
    }

    fn take_kept(&self, name: &str) -> Option<Kept> {
        if !lock(&self.passed).remove(name) {
            return None;
        }
        let kept = self.hand.shared.machine().take_kept(self.hand.pid(), name)?;
        match kept {
            machine::Kept::Group(id) => Some(Kept::Group(SimGroup { hand: self.hand.clone(), id })),
            machine::Kept::Memory(home) => SimMemory::open(&self.hand, home).map(Kept::Memory),
        }
    }

    fn group_of(&self, kept: Kept) -> SimGroup {
        match kept {
            Kept::Group(group) => group,
            Kept::Memory(_) => unreachable!("a group was kept under the name of one"),
        }
    }

    fn memory_of(&self, kept: Kept) -> Result<SimMemory, Unfit> {
        match kept {
            Kept::Memory(memory) => Ok(memory),
            Kept::Group(_) => Err(Unfit::Layout),
        }
    }

    fn discard_rest(&self) -> Vec<String> {
        let rest = std::mem::take(&mut *lock(&self.passed));
        rest.iter().for_each(|name| self.hand.shared.machine().let_go(name));
        rest.into_iter().collect()
    }

    fn keep_group(&self, name: &str, group: &SimGroup) {
        self.hand.pass("keep a group");
        self.keep(name, machine::Kept::Group(group.id));
    }

    fn keep_memory(&self, name: &str, memory: &SimMemory) {
        self.hand.pass("keep a buffer");
        self.keep(name, machine::Kept::Memory(Arc::clone(&memory.home)));
    }

    fn let_go(&self, name: &str) {
        self.hand.pass("keep no more");
        self.hand.shared.machine().let_go(name);
    }

    fn barrier(&self) {}

    fn generation(&self, _root: &OpenRoot<Held>) -> Result<Generation, Whole> {
        Err(Whole::NotAsked)
    }

    fn mount_number(&self, _root: &OpenRoot<Held>) -> Option<u64> {
        None
    }

    fn changes_since(
        &self,
        _root: &TrackedRoot,
        _open: &OpenRoot<Held>,
        _own: &[OwnDir],
        _since: u64,
    ) -> Result<Vec<Change>, Whole> {
        Err(Whole::NotAsked)
    }

    fn sync(&self, dir: &Held) -> io::Result<()> {
        self.hand.shared.machine().act(self.hand.pid(), dir.spot.dev, Disk::sync);
        Ok(())
    }
}
