//! The thread that takes a slot's turns, and waits between them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};

use super::{Slot, SlotHandle, SlotParts, Turn};
use crate::host::Host;
use crate::shell::{Report, report};

/// Starts the thread.
pub fn spawn(parts: SlotParts<impl Host>) -> std::io::Result<SlotHandle> {
    let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let reports = parts.reports.clone();
    let (slot, handle) = Slot::new(parts, Some(Arc::clone(&wake)));
    let run = move || {
        let mut end = End { reports, clean: false };
        // The group and the journal are closed before anybody hears of the end.
        end.clean = run(slot, &wake);
    };
    std::thread::Builder::new().name("intake".into()).spawn(run)?;
    Ok(handle)
}

/// Tells of the thread's end, by a panic too: a tracker that lost a thread must not go on as if nothing were.
struct End {
    reports: Sender<Report>,
    clean: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        report(&self.reports, Report::Ended(self.clean));
    }
}

/// False if the journal did not take everything.
fn run(mut slot: Slot<impl Host>, wake: &OwnedFd) -> bool {
    loop {
        match slot.turn() {
            Turn::Went => {}
            Turn::Naps(time) => std::thread::sleep(time),
            Turn::Waits { until_ns, listen } => {
                let readable = wait(&slot, wake, until_ns, listen);
                slot.woken(readable);
            }
            Turn::Ended { clean } => return clean,
        }
    }
}

/// True if events can be read.
fn wait(slot: &Slot<impl Host>, wake: &OwnedFd, until_ns: Option<i64>, listen: bool) -> bool {
    let timeout = until_ns.map(|until| {
        let left = until.saturating_sub(slot.clock.boot_ns()).max(0);
        Timespec { tv_sec: left / 1_000_000_000, tv_nsec: left % 1_000_000_000 }
    });
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    if let (true, Some(source)) = (listen, &slot.source) {
        fds.extend(source.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    }
    if poll(&mut fds, timeout.as_ref()).is_err() {
        return false;
    }
    let readable = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
    let woken = !fds[0].revents().is_empty();
    if woken {
        // Resets the counter; the messages themselves are in the channel.
        let emptied = rustix::io::read(wake.as_fd(), &mut [0u8; 8]);
        tracing::trace!("woken: {emptied:?}");
    }
    readable
}
