//! The least a listener can do: a fanotify group with the tracker's own flags, mask and nap, whose events are counted
//! and thrown away. What the tracker costs beyond it is the tracker's own doing.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use shared::limits;
use tracker::intake::fanotify::{EVENT_BYTES_MAX, GROUP_FLAGS, MARK_MASK};
use tracker::intake::sys;

#[derive(Default)]
struct Counts {
    events: u64,
    overflows: u64,
}

/// Until standard input is closed and the queue is empty; prints events, overflows.
pub fn read(dir: &Path) -> anyhow::Result<()> {
    let group = sys::fanotify_init(GROUP_FLAGS)?;
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    sys::fanotify_mark(group.as_fd(), flags, MARK_MASK, File::open(dir)?.as_fd())?;
    println!("ready");
    io::stdout().flush()?;
    let stdin = io::stdin();
    let mut buffer = vec![0; limits::INTAKE_READ_BYTES];
    let mut counts = Counts::default();
    let mut over = false;
    while !over {
        let mut fds = [PollFd::new(&group, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        poll(&mut fds, None)?;
        over = !fds[1].revents().is_empty();
        std::thread::sleep(limits::INTAKE_NAP); // the tracker's own pace
        loop {
            match rustix::io::read(&group, &mut buffer[..]) {
                Ok(n) => {
                    count(&buffer[..n], &mut counts);
                    if buffer.len() - n >= EVENT_BYTES_MAX {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(e) => return Err(e.into()),
            }
        }
    }
    println!("{} {}", counts.events, counts.overflows);
    Ok(())
}

/// By their lengths alone (struct fanotify_event_metadata). In such a group only an overflow names nothing.
fn count(mut buffer: &[u8], counts: &mut Counts) {
    const METADATA_BYTES: usize = 24;
    while let Some((head, _)) = buffer.split_first_chunk() {
        let len = u32::from_ne_bytes(*head) as usize;
        let Some(rest) = buffer.get(len..).filter(|_| len >= METADATA_BYTES) else { return };
        counts.events += 1;
        counts.overflows += u64::from(len == METADATA_BYTES);
        buffer = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(len: u32) -> Vec<u8> {
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.resize(len as usize, 0);
        bytes
    }

    #[test]
    fn events_are_counted_by_their_lengths_and_damage_ends_the_count() {
        let mut counts = Counts::default();
        count(&[event(24), event(80), event(96)].concat(), &mut counts);
        assert_eq!((counts.events, counts.overflows), (3, 1));
        let mut cut = [event(80), event(80)].concat();
        cut.truncate(100);
        count(&cut, &mut counts);
        count(&[0; 40], &mut counts);
        assert_eq!(counts.events, 4);
    }
}
