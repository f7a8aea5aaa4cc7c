//! The trash of a directory: `.longshore/trash/<UTC>-run<N>/<path>`.

use std::sync::atomic::Ordering;

use shared::clock;
use shared::path::RelPath;

use super::{Errno, SimDir, lock, state};

const DAY_NS: i64 = 86_400 * 1_000_000_000;
/// `2026-01-31T10:20:30Z`, and its day.
const STAMP_LEN: usize = 20;
const DAY_LEN: usize = 10;
const VERSIONS_MAX: u32 = 100_000;

impl SimDir {
    /// Links what stands there into the trash, so that the name can be replaced without ever missing.
    pub(super) fn link_to_trash(&self, dest: &RelPath) -> Result<(), Errno> {
        let room = self.trash_room(dest)?;
        self.change(|d, now| d.link(dest, &room, now))
    }

    /// A free name in the trash, with its directories. The same path twice in a day, or a file where a directory was:
    /// the next number.
    pub(super) fn trash_room(&self, dest: &RelPath) -> Result<RelPath, Errno> {
        let top = self.trash_top();
        let next = self.trash_version.load(Ordering::Relaxed);
        for version in std::iter::once(0).chain(next..VERSIONS_MAX) {
            let top = if version == 0 { top.clone() } else { format!("{top}.{version}") };
            let kept = state("trash").join(&RelPath::parse(top.as_bytes()).unwrap()).join(dest);
            match self.make_dirs(&kept.parent().unwrap()) {
                Ok(()) => {}
                Err((_, libc::ENOTDIR)) => continue,
                Err((_, errno)) => return Err(errno),
            }
            if self.ask(|d| d.look(&kept).is_err())? {
                self.trash_version.fetch_max(version, Ordering::Relaxed);
                return Ok(kept);
            }
        }
        Err(libc::EIO)
    }

    /// Anew each day.
    fn trash_top(&self) -> String {
        let mut top = lock(&self.trash_top);
        let now = clock::show(self.now());
        if top.get(..DAY_LEN) != now.get(..DAY_LEN) {
            *top = format!("{now}-run{}", self.setup.run);
        }
        top.clone()
    }

    /// When an earlier run last changed something in our own directories.
    pub(super) fn newest_trace(&self) -> Result<Option<i64>, Errno> {
        self.ask(|directory| {
            let dirs = [state("trash").parent().unwrap(), state("trash")];
            let entries = dirs.iter().flat_map(|dir| {
                let names = directory.children(dir).into_iter();
                names.map(move |key| dir.child(key.strip_suffix(b"/").unwrap_or(&key)).unwrap())
            });
            entries.filter_map(|path| Some(directory.look(&path).ok()?.0.mtime_ns)).max()
        })
    }

    /// Takes away the runs of the oldest day that is past its time; none if the clock may be wrong.
    pub(super) fn empty_trash(&self, newest_ns: Option<i64>) -> Result<(), Errno> {
        let now_ns = self.now();
        if newest_ns.is_none_or(|newest| newest > now_ns || now_ns - newest > DAY_NS) {
            return Ok(());
        }
        let cutoff = clock::show(now_ns - i64::from(self.setup.trash_days) * DAY_NS);
        let names = self.ask(|directory| directory.children(&state("trash")))?;
        let past = |name: &&Vec<u8>| name.len() > STAMP_LEN && name[..STAMP_LEN] < *cutoff.as_bytes();
        let Some(day) = names.iter().filter(past).map(|name| &name[..DAY_LEN]).min() else {
            return Ok(());
        };
        for name in names.iter().filter(past).filter(|name| name[..DAY_LEN] == *day) {
            let run = state("trash").child(name.strip_suffix(b"/").unwrap_or(name)).unwrap();
            self.change(|directory, now| {
                directory.remove_all(&run, now);
                Ok(())
            })?;
        }
        Ok(())
    }
}
