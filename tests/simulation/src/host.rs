//! The machine as the tracker sees it: its trait `Host`, over the simulated kernel and disks.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use shared::clock::Clock;
use shared::entry::Handle;
use shared::identity::Attachment;
use shared::journal::{Change, Generation};
use tracker::generation::Whole;
use tracker::host::{Host, Memory, Placed, View};
use tracker::intake::PlaceError;
use tracker::intake::buffer::{TOTAL_BYTES, Unfit, WORDS};
use tracker::intake::fanotify::{GROUP_FLAGS, MARK_MASK};
use tracker::intake::records::HandleRef;
use tracker::mounts::Mount;
use tracker::resolve::{Link, Lost, MountError, NameOf};
use tracker::roots::{OpenRoot, OwnDir, Standing, TrackedRoot};

use crate::disk::{Disk, Errno, Id};
use crate::fate::{Fate as _, Fault};
use crate::hand::{self, Hand};
use crate::machine::{DiskId, GroupId, Place};
use crate::store::lock;

/// The clock of a program.
pub struct SimClock(pub Hand);

impl Clock for SimClock {
    fn wall_ns(&self) -> i64 {
        self.0.shared.machine().wall_ns()
    }

    fn boot_ns(&self) -> i64 {
        self.0.shared.machine().boot_ns()
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
        let passed = hand.shared.kept_names().into_iter().collect();
        SimHost { hand, passed: Arc::new(Mutex::new(passed)) }
    }
}

/// A group, held by this life of the tracker.
pub struct SimGroup {
    hand: Hand,
    id: GroupId,
}

impl Drop for SimGroup {
    fn drop(&mut self) {
        self.hand.shared.machine().groups().close(self.id);
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
    data: Option<Box<Data>>,
    home: Home,
}

pub struct Data {
    words: [Cell<u64>; WORDS],
    bytes: Vec<u8>,
}

/// Where the bytes are while nobody has them mapped.
pub type Home = Arc<Mutex<Option<Box<Data>>>>;

impl SimMemory {
    fn new(hand: &Hand) -> SimMemory {
        let data = Data { words: [const { Cell::new(0) }; WORDS], bytes: vec![0; TOTAL_BYTES] };
        SimMemory { hand: hand.clone(), data: Some(Box::new(data)), home: Arc::default() }
    }

    fn open(hand: &Hand, home: Home) -> Option<SimMemory> {
        let data = lock(&home).take()?;
        Some(SimMemory { hand: hand.clone(), data: Some(data), home })
    }

    fn data(&self) -> &Data {
        self.data.as_deref().expect("it is there as long as this lives")
    }

    fn data_mut(&mut self) -> &mut Data {
        self.data.as_deref_mut().expect("it is there as long as this lives")
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        *lock(&self.home) = self.data.take();
    }
}

impl Memory for SimMemory {
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

/// A view of a whole disk. It keeps the disk in use.
pub struct SimView {
    hand: Hand,
    disk: DiskId,
}

impl Drop for SimView {
    fn drop(&mut self) {
        self.hand.shared.machine().let_go(self.disk);
    }
}

impl SimView {
    fn on_disk<T>(&self, point: &'static str, ask: impl FnOnce(&Disk) -> T) -> T {
        self.hand.pass(point);
        ask(self.hand.shared.machine().disk(self.disk))
    }
}

impl View for SimView {
    fn top(&self) -> io::Result<Handle> {
        Ok(self.on_disk("the top's handle", |disk| disk.handle_of(disk.top())))
    }

    fn links(&mut self, dir: &Handle, is_known: impl Fn(HandleRef<'_>) -> bool) -> Result<Vec<Link>, Lost> {
        // EIO arrives as ESTALE, too.
        if self.hand.strikes(Fault::HandleIo) {
            return Err(Lost::Gone);
        }
        self.on_disk("climb", |disk| {
            let mut at = disk.open_by_handle(dir).map_err(|_| Lost::Gone)?;
            let inode = disk.inode(at).map_err(|_| Lost::Gone)?;
            if !inode.is_dir() || (inode.links.is_empty() && at != disk.top()) {
                return Err(Lost::Gone);
            }
            let mut links = Vec::new();
            loop {
                let handle = disk.handle_of(at);
                if at == disk.top() || is_known((&handle).into()) {
                    return Ok(links);
                }
                let link = disk.names(at).ok().and_then(<[_]>::first).ok_or(Lost::Stale)?;
                let (parent, name) = (disk.handle_of(link.dir), link.name.to_vec());
                at = link.dir;
                links.push(Link { dir: handle, parent, name });
            }
        })
    }

    fn name_of(&mut self, file: &Handle) -> NameOf {
        if self.hand.strikes(Fault::HandleIo) {
            return NameOf::Stale;
        }
        self.on_disk("a name of a file", |disk| {
            let Ok(id) = disk.open_by_handle(file) else { return NameOf::Stale };
            let Ok(names) = disk.names(id) else { return NameOf::Stale };
            match names.first() {
                None => NameOf::None,
                Some(link) => NameOf::Known {
                    dir: disk.handle_of(link.dir),
                    name: link.name.to_vec(),
                    only: names.len() == 1,
                },
            }
        })
    }

    fn may_have_names(&mut self, file: &Handle) -> bool {
        self.on_disk("the names of a file", |disk| {
            let names = disk.open_by_handle(file).ok().and_then(|id| disk.names(id).ok());
            names.is_some_and(|names| names.len() > 1)
        })
    }

    fn has(&mut self, dir: HandleRef<'_>, name: &[u8], file: HandleRef<'_>) -> bool {
        self.on_disk("a name in a directory", |disk| {
            let found = disk.open_by_handle(&dir.to_handle()).and_then(|dir| disk.child(dir, name));
            found.is_ok_and(|id: Id| HandleRef::from(&disk.handle_of(id)) == file)
        })
    }
}

/// An open directory. It keeps its disk in use.
pub struct SimOpenDir {
    hand: Hand,
    place: Place,
}

impl Drop for SimOpenDir {
    fn drop(&mut self) {
        self.hand.shared.machine().let_go(self.place.disk);
    }
}

impl Host for SimHost {
    type Dir = SimOpenDir;
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
        self.hand.shared.machine().place(path)?;
        Ok(true)
    }

    fn open_dir(&self, path: &Path) -> io::Result<SimOpenDir> {
        self.hand.pass("open a directory");
        let mut machine = self.hand.shared.machine();
        let place = machine.place(path)?;
        machine.open_dir(&place)?;
        machine.hold(place.disk);
        Ok(SimOpenDir { hand: self.hand.clone(), place })
    }

    fn identify(&self, dir: SimOpenDir) -> Result<OpenRoot<SimOpenDir>, String> {
        let machine = self.hand.shared.machine();
        let place = dir.place.clone();
        let identity = machine.identity(&place).map_err(|e| e.to_string())?;
        let attachment = Attachment { dev: place.dev, mount_id: Some(place.mount) };
        let handle = Some(machine.disk(place.disk).handle_of(place.dir));
        drop(machine);
        Ok(OpenRoot { fd: dir, attachment, identity, handle })
    }

    fn standing(&self, path: &Path) -> Option<Standing> {
        let place = self.hand.shared.machine().place(path).ok()?;
        Some(Standing { mount: place.mount, dev: (0, place.dev as u32), inode: place.dir.ino })
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        self.hand.shared.machine().is_mount_point(path)
    }

    fn mounts(&self) -> io::Result<Vec<Mount>> {
        let machine = self.hand.shared.machine();
        let mount = |mount: &crate::machine::Mount| Mount {
            id: mount.id,
            dev: mount.dev,
            root: PathBuf::from("/"),
            point: mount.point.clone(),
            fs: machine.disk(mount.disk).kind.name().to_owned(),
            source: PathBuf::from("/dev/simulated"),
            read_only: mount.read_only,
        };
        Ok(machine.mounts().map(mount).collect())
    }

    /// The state directory lies on no tracked disk.
    fn own_dir(&self, _path: &Path) -> io::Result<OwnDir> {
        Ok(OwnDir { dev: 0, superblock: 0, inode: 0, handle: None })
    }

    fn view(&self, dev: u64) -> Result<SimView, MountError> {
        self.hand.pass("open a view");
        let mut machine = self.hand.shared.machine();
        let disk = machine.mounts().find(|mount| mount.dev == dev).map(|mount| mount.disk);
        let disk = disk.ok_or(MountError::NotWhole)?;
        machine.hold(disk);
        Ok(SimView { hand: self.hand.clone(), disk })
    }

    fn new_group(&self) -> Result<SimGroup, PlaceError> {
        self.hand.pass("make a group");
        let id = self.hand.shared.machine().groups().add();
        Ok(SimGroup { hand: self.hand.clone(), id })
    }

    fn mark(&self, group: &SimGroup, on: &SimView) -> io::Result<()> {
        self.hand.pass("mark");
        self.hand.shared.machine().groups().mark(group.id, on.disk);
        Ok(())
    }

    fn fdinfo(&self, group: &SimGroup) -> io::Result<String> {
        let mut machine = self.hand.shared.machine();
        let mut text = format!("fanotify flags:{GROUP_FLAGS:x} event-flags:88000\n");
        let marked: Vec<DiskId> = machine.groups().marked(group.id).collect();
        for dev in marked.into_iter().map(|disk| machine.dev(disk)) {
            // As the kernel prints its numbers: 20 bits for the minor.
            let sdev = (u64::from(rustix::fs::major(dev)) << 20) | u64::from(rustix::fs::minor(dev));
            text += &format!("fanotify sdev:{sdev:x} mflags:0 mask:{MARK_MASK:x} ignored_mask:0\n");
        }
        Ok(text)
    }

    fn queue_max(&self) -> u64 {
        self.hand.shared.machine().queue_max() as u64
    }

    fn queued(&self, group: &SimGroup) -> io::Result<u64> {
        self.hand.pass("count what is queued");
        Ok(self.hand.shared.machine().groups().queued(group.id) as u64)
    }

    fn read(&self, group: &SimGroup, memory: &mut SimMemory, range: Range<usize>) -> io::Result<usize> {
        self.hand.pass("read events");
        let events = self.hand.shared.machine().groups().read(group.id, range.len())?;
        if self.hand.strikes(Fault::ReadFails) {
            // What was taken from the queue is gone.
            return Err(Errno::FAULT.into());
        }
        memory.data_mut().bytes[range.start..range.start + events.len()].copy_from_slice(&events);
        // The call runs to its end even when the process was killed in it: the events are in the memory, and nobody said
        // how many.
        if self.hand.strikes(Fault::KillInRead) {
            crate::fate::die();
        }
        Ok(events.len())
    }

    fn read_aside(&self, group: &SimGroup, into: &mut [u8]) -> io::Result<usize> {
        let events = self.hand.shared.machine().groups().read(group.id, into.len())?;
        into[..events.len()].copy_from_slice(&events);
        Ok(events.len())
    }

    fn fd<'g>(&self, _group: &'g SimGroup) -> Option<BorrowedFd<'g>> {
        None
    }

    fn ring(&self, _group: &SimGroup, _dir: &SimOpenDir, _dev: u64) -> io::Result<Handle> {
        Err(io::ErrorKind::Unsupported.into())
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
        Ok(SimMemory::new(&self.hand))
    }

    fn take_kept(&self, name: &str) -> Option<Kept> {
        if !lock(&self.passed).remove(name) {
            return None;
        }
        match self.hand.shared.kept(name)? {
            hand::Kept::Group(id) => {
                self.hand.shared.machine().groups().hold(id);
                Some(Kept::Group(SimGroup { hand: self.hand.clone(), id }))
            }
            hand::Kept::Memory(home) => SimMemory::open(&self.hand, home).map(Kept::Memory),
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
        rest.iter().for_each(|name| self.hand.shared.let_go(name));
        rest.into_iter().collect()
    }

    fn keep_group(&self, name: &str, group: &SimGroup) {
        self.hand.pass("keep a group");
        self.hand.shared.keep(name, hand::Kept::Group(group.id));
    }

    fn keep_memory(&self, name: &str, memory: &SimMemory) {
        self.hand.pass("keep a buffer");
        self.hand.shared.keep(name, hand::Kept::Memory(Arc::clone(&memory.home)));
    }

    fn let_go(&self, name: &str) {
        self.hand.pass("keep no more");
        self.hand.shared.let_go(name);
    }

    fn barrier(&self) {}

    fn generation(&self, _root: &OpenRoot<SimOpenDir>) -> Result<Generation, Whole> {
        Err(Whole::NotAsked)
    }

    fn mount_number(&self, _root: &OpenRoot<SimOpenDir>) -> Option<u64> {
        None
    }

    fn changes_since(
        &self,
        _root: &TrackedRoot,
        _open: &OpenRoot<SimOpenDir>,
        _own: &[OwnDir],
        _since: u64,
    ) -> Result<Vec<Change>, Whole> {
        Err(Whole::NotAsked)
    }

    fn sync(&self, dir: &SimOpenDir) -> io::Result<()> {
        self.hand.shared.machine().sync_disk(dir.place.disk);
        Ok(())
    }
}
