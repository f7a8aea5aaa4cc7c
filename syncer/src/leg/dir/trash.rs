//! The trash: `.longshore/trash/<UTC>-run<N>/<path>`. It is emptied by whole days, slowly, and only by a clock that
//! is to be believed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;
use shared::clock;
use shared::path::RelPath;

use crate::tree::beneath::{self, Beneath, Miss};

/// Second and further versions that one run may leave.
const VERSIONS_MAX: u32 = 100_000;
/// Names that one run deletes at most; the next one goes on.
const CLEAN_NAMES_MAX: u32 = 500_000;
const DAY_NS: i64 = 86_400 * 1_000_000_000;
/// `2026-01-31T10:20:30Z`, and its day.
const STAMP_LEN: usize = 20;
const DAY_LEN: usize = 10;

pub struct Trash {
    below: Beneath,
    run: u64,
    /// Where this run puts things; anew each day, so that the name tells their age also in a run of weeks.
    top: Mutex<String>,
    /// The number under which a second version last found room: the next one starts there.
    version: AtomicU32,
}

impl Trash {
    /// `dir` must be open for reading.
    pub fn new(dir: Arc<OwnedFd>, run: u64) -> io::Result<Trash> {
        Ok(Trash {
            below: Beneath::at(dir)?,
            run,
            top: Mutex::new(String::new()),
            version: AtomicU32::new(1),
        })
    }

    /// Moves what stands at `name` in `from` to where `dest` belongs in the trash.
    pub fn take(&self, dest: &RelPath, from: BorrowedFd<'_>, name: &[u8], now_ns: i64) -> io::Result<()> {
        self.find_room(dest, now_ns, |into, kept| move_new(from, name, into, kept))
    }

    /// Links what stands at `name` in `from` into the trash, so that the name can be replaced without ever missing.
    pub fn link(&self, dest: &RelPath, from: BorrowedFd<'_>, name: &[u8], now_ns: i64) -> io::Result<()> {
        self.find_room(dest, now_ns, |into, kept| {
            rustix::fs::linkat(from, name, into, kept, AtFlags::empty())
        })
    }

    pub fn forget(&self) {
        self.below.forget();
    }

    /// The names of what is due; see [`due`].
    pub fn due(&self, days: u32, now_ns: i64, newest_ns: Option<i64>) -> io::Result<Vec<Vec<u8>>> {
        let names = beneath::names(self.below.root())?.into_iter().map(|(name, _)| name).collect();
        Ok(due(names, days, now_ns, newest_ns))
    }

    /// Moves one run's trash out of the trash, to be cleaned away.
    pub fn give_up(&self, name: &[u8], into: BorrowedFd<'_>, as_name: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(self.below.root(), name, into, as_name)?)
    }

    /// The same path twice in a day, or a file where a directory was: the next number.
    fn find_room(
        &self,
        dest: &RelPath,
        now_ns: i64,
        keep: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> io::Result<()> {
        let (Some(parent), Some(name)) = (dest.parent(), dest.name()) else {
            return Err(Errno::ISDIR.into());
        };
        let top = self.top(now_ns);
        let next = self.version.load(Ordering::Relaxed);
        for version in std::iter::once(0).chain(next..VERSIONS_MAX) {
            let top = if version == 0 { top.clone() } else { format!("{top}.{version}") };
            let dir = RelPath::parse(top.as_bytes()).expect("digits and letters make a path").join(&parent);
            let into = match self.below.dir(&dir, true) {
                Ok(into) => into,
                Err(Miss::NotDir { .. }) => continue,
                Err(miss) => return Err(miss.into_error().1),
            };
            match keep(into.as_fd(), name) {
                Ok(()) => {
                    self.version.fetch_max(version, Ordering::Relaxed);
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::other("too many versions of it in the trash"))
    }

    fn top(&self, now_ns: i64) -> String {
        let mut top = self.top.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::show(now_ns);
        if top.get(..DAY_LEN) != now.get(..DAY_LEN) {
            *top = format!("{now}-run{}", self.run);
        }
        top.clone()
    }
}

/// Renames, never over something; not every filesystem knows RENAME_NOREPLACE (rename(2)).
fn move_new(from: BorrowedFd<'_>, name: &[u8], into: BorrowedFd<'_>, kept: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, name, into, kept, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL) => match rustix::fs::statat(into, kept, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(from, name, into, kept),
            Err(e) => Err(e),
        },
        other => other,
    }
}

/// The runs of the oldest day that is past `days`. None if the clock may be wrong: more than a day after the newest
/// trace of an earlier run, or before it.
fn due(names: Vec<Vec<u8>>, days: u32, now_ns: i64, newest_ns: Option<i64>) -> Vec<Vec<u8>> {
    if newest_ns.is_none_or(|newest| newest > now_ns || now_ns - newest > DAY_NS) {
        return Vec::new();
    }
    let cutoff = clock::show(now_ns.saturating_sub(i64::from(days).saturating_mul(DAY_NS)));
    let past = |name: &Vec<u8>| is_stamped(name) && name[..STAMP_LEN] < *cutoff.as_bytes();
    let Some(day) = names.iter().filter(|n| past(n)).map(|n| n[..DAY_LEN].to_vec()).min() else {
        return Vec::new();
    };
    names.into_iter().filter(|n| past(n) && n[..DAY_LEN] == day).collect()
}

fn is_stamped(name: &[u8]) -> bool {
    const SHAPE: &[u8; STAMP_LEN] = b"0000-00-00T00:00:00Z";
    let fits = |(&n, &s): (&u8, &u8)| if s == b'0' { n.is_ascii_digit() } else { n == s };
    name.iter().zip(SHAPE).all(fits) && name.get(STAMP_LEN..).is_some_and(|rest| rest.starts_with(b"-run"))
}

/// Deletes what lies in `dir`, which must be open for reading. Sub-directories are moved up into it first, so that
/// depth costs neither fds nor memory, and a run that is killed here leaves only less.
pub fn clean(dir: BorrowedFd<'_>, fresh_name: impl Fn() -> String) -> io::Result<()> {
    let below = Beneath::at(Arc::new(dir.try_clone_to_owned()?))?;
    let mut left = CLEAN_NAMES_MAX;
    loop {
        let open = below.pin(&RelPath::root()).map_err(|m| m.into_error().1)?.read_dir()?;
        let names = beneath::names(open.as_fd())?;
        if names.is_empty() {
            return Ok(());
        }
        for (name, _) in names {
            if !unlink(dir, &name, &mut left)? {
                let inner = below.pin_name(dir, &name)?.read_dir()?;
                for (child, _) in beneath::names(inner.as_fd())? {
                    if !unlink(inner.as_fd(), &child, &mut left)? {
                        rustix::fs::renameat(&inner, &child, dir, fresh_name())?;
                    }
                }
                if left > 0 {
                    rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
                }
            }
            if left == 0 {
                return Ok(());
            }
        }
    }
}

/// False for a directory.
fn unlink(dir: BorrowedFd<'_>, name: &[u8], left: &mut u32) -> io::Result<bool> {
    if *left == 0 {
        return Ok(true);
    }
    *left -= 1;
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20T00:00:00Z
    const NOW: i64 = 1_795_132_800 * 1_000_000_000;

    fn names(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|n| n.as_bytes().to_vec()).collect()
    }

    #[test]
    fn only_the_oldest_day_past_its_time_goes() {
        assert_eq!(clock::show(NOW), "2026-11-20T00:00:00Z");
        let all = names(&[
            "2026-09-02T01:00:00Z-run8",
            "2026-09-01T23:00:00Z-run7",
            "2026-09-01T01:00:00Z-run6.1",
            "2026-11-01T01:00:00Z-run50",
            "2026-09-01-mine",
            "readme",
        ]);
        let expected = names(&["2026-09-01T23:00:00Z-run7", "2026-09-01T01:00:00Z-run6.1"]);
        assert_eq!(due(all.clone(), 30, NOW, Some(NOW - 1)), expected);
        assert_eq!(due(all, 365, NOW, Some(NOW - 1)), names(&[]));
    }

    #[test]
    fn a_clock_that_may_be_wrong_empties_nothing() {
        let all = names(&["2026-09-01T23:00:00Z-run7"]);
        let due = |newest| due(all.clone(), 30, NOW, newest);
        assert_eq!(due(None), names(&[]), "no earlier run to compare with");
        assert_eq!(due(Some(NOW - 10 * 365 * DAY_NS)), names(&[]), "ten years ahead");
        assert_eq!(due(Some(NOW + 1)), names(&[]), "behind the last run");
        assert_eq!(due(Some(NOW - DAY_NS)), all);
    }
}
