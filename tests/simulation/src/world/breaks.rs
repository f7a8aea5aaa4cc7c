//! What breaks in a world, and how it is made whole again.

use std::path::PathBuf;

use shared::path::RelPath;
use syncer::live;

use super::World;
use super::legs::Place;
use crate::database;
use crate::oracle::{Invariant, Violation};
use crate::script::{DatabaseChange, DiskChange, ForeignChange, Step, bytes};
use crate::store::bucket::{self, Object};
use crate::store::{b2, lock};

impl World {
    pub(super) fn break_something(&mut self, step: &Step) -> Result<(), Violation> {
        match step {
            Step::PowerCut => self.shared.cut_power(),
            Step::Reboot => self.reboot()?,
            Step::ClockJump { s } => self.shared.machine().jump(s * 1_000_000_000),
            Step::Disk { disk, change } => self.change_disk(*disk, *change),
            Step::Database { which, change } => self.change_database(*which, *change),
            Step::Foreign { leg, path, change } => self.change_destination(*leg, path, *change),
            Step::LateCompletions { leg } => self.complete_late(*leg),
            Step::Rules { root, exclude, reload } => return self.change_rules(*root, exclude, *reload),
            Step::StateDisk { full } => self.shared.fill_state_disk(*full),
            _ => {}
        }
        Ok(())
    }

    /// Everybody is asked to end; then the machine goes down and comes up.
    fn reboot(&mut self) -> Result<(), Violation> {
        if let Some(tracker) = self.take_tracker() {
            tracker.stop();
        }
        self.shared.reboot(&mut self.disks);
        self.start_tracker()
    }

    fn change_disk(&mut self, disk: usize, change: DiskChange) {
        // A root without an identity is whatever stands there first.
        let mut roots = self.shared.shape.roots.iter().filter(|root| root.disk == disk);
        let takes_anything = roots.any(|root| !root.identity);
        let keeps_it = matches!(change, DiskChange::Sync | DiskChange::ReadOnly | DiskChange::ReadWrite);
        if disk >= self.disks.count() || (takes_anything && !keeps_it) {
            return;
        }
        let (disks, mut machine) = (&mut self.disks, self.shared.machine());
        let machine = &mut machine;
        match change {
            DiskChange::Umount => disks.umount(machine, disk),
            DiskChange::LazyUmount => disks.umount_lazily(machine, disk),
            DiskChange::Mount => disks.mount(machine, disk),
            DiskChange::Vanish => disks.vanish(machine, disk),
            DiskChange::Return => disks.bring_back(machine, disk),
            DiskChange::Swap => disks.swap(machine, disk),
            DiskChange::Clone => disks.clone_disk(machine, disk),
            DiskChange::ReadOnly => disks.set_read_only(machine, disk, true),
            DiskChange::ReadWrite => disks.set_read_only(machine, disk, false),
            DiskChange::Sync => disks.sync(machine, disk),
        }
    }

    fn database(&self, which: usize) -> Option<PathBuf> {
        match which {
            0 => Some(self.config.journal_path()),
            n => self.config.legs.get(n - 1).map(|leg| live::catalog_path(&self.config, leg)),
        }
    }

    /// What a person does with the files while nothing uses them: the tracker is stopped for the journal.
    fn change_database(&mut self, which: usize, change: DatabaseChange) {
        let Some(path) = self.database(which) else { return };
        if which == 0
            && change != DatabaseChange::Save
            && let Some(tracker) = self.take_tracker()
        {
            tracker.stop();
        }
        if change != DatabaseChange::Save {
            let concerned =
                self.legs.iter_mut().enumerate().filter(|(leg, _)| which == 0 || leg + 1 == which);
            concerned.for_each(|(_, leg)| leg.forgot = true);
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match change {
            DatabaseChange::Save => {
                if let Some(copy) = database::copy(&path) {
                    self.saved.insert(name, copy);
                }
            }
            DatabaseChange::Lose => database::remove(&path),
            DatabaseChange::Restore => {
                if let Some(copy) = self.saved.get(&name) {
                    database::put(&path, copy);
                }
            }
        }
    }

    fn change_destination(&mut self, leg: usize, path: &str, change: ForeignChange) {
        let Some(leg) = self.legs.get_mut(leg) else { return };
        let Some(root) = leg.requests.roots().first().cloned() else { return };
        let Ok(path) = RelPath::parse(&bytes(path)) else { return };
        let dest = root.prefix.join(&path);
        leg.foreign.insert(dest.clone());
        let machine = self.shared.machine();
        let now_ns = machine.wall_ns;
        let local = machine.content_at(&root.path, &path);
        match &leg.place {
            Place::B2(bucket) => {
                let name = b2::object_name(&dest);
                let mut bucket = lock(bucket);
                match (change, local) {
                    (ForeignChange::Remove, _) => drop(bucket.hide(&name, now_ns)),
                    (ForeignChange::Copy, Some((content, mtime_ns))) => {
                        bucket.upload(&name, Object::by_rclone(content, mtime_ns), now_ns);
                    }
                    _ => drop(bucket.upload(&name, Object::by_hand("somebody else's"), now_ns)),
                }
            }
            Place::Dir(directory) => {
                let mut directory = lock(directory);
                match change {
                    ForeignChange::Remove => directory.remove_all(&dest, now_ns),
                    _ => directory.put_by_hand(&dest, b"somebody else's", now_ns, now_ns),
                }
            }
        }
        self.compare_all = true;
    }

    fn complete_late(&mut self, leg: usize) {
        let Some(leg) = self.legs.get(leg) else { return };
        if let Place::B2(bucket) = &leg.place {
            let now_ns = self.shared.machine().wall_ns;
            bucket::complete_late(bucket, &leg.watch, now_ns, |n| self.shared.chance().pick(n));
        }
    }

    /// Requests that were cut off come true, or never will.
    pub(super) fn end_late(&mut self, leg: usize) {
        while self.legs[leg].late_count() > 0 && self.shared.chance().pick(3) > 0 {
            self.complete_late(leg);
        }
        if let Place::B2(bucket) = &self.legs[leg].place {
            lock(bucket).drop_late();
        }
    }

    /// Somebody edits the configuration; until the tracker is restarted it goes by the old one.
    fn change_rules(&mut self, root: usize, exclude: &[String], reload: bool) -> Result<(), Violation> {
        if let Some(root) = self.config.roots.get_mut(root) {
            root.rules = shared::rules::Rules::new(exclude).expect("good rules");
        }
        if reload {
            if let Some(tracker) = self.take_tracker() {
                tracker.stop();
            }
            self.start_tracker()?;
        }
        Ok(())
    }

    /// The right disks are in their places and writable, nothing is full, the tracker runs with the present
    /// configuration, and what can still come true has.
    pub(super) fn mend(&mut self) -> Result<(), Violation> {
        self.come_up_again()?;
        self.shared.fill_state_disk(false);
        self.shared.close_files();
        for disk in 0..self.disks.count() {
            let mut machine = self.shared.machine();
            self.disks.bring_back(&mut machine, disk);
            self.disks.set_read_only(&mut machine, disk, false);
        }
        for leg in 0..self.legs.len() {
            self.end_late(leg);
        }
        if let Some(tracker) = self.take_tracker() {
            tracker.stop();
        }
        self.start_tracker()?;
        if self.tracker_runs() {
            Ok(())
        } else {
            Err(Violation::new(Invariant::Converges, "with everything whole the tracker does not start"))
        }
    }
}
