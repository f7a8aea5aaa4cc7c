//! What the other threads hold of a filesystem's thread: its inbox, its status, its progress.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use shared::control::Canary;
use shared::journal::RootState;
use shared::limits;
use shared::path;
use shared::status::{FilesystemStatus, RootStatus};

use crate::meter::Meter;
use crate::roots::TrackedRoot;
use crate::shell::news::Notice;
use crate::shell::process;

pub enum Message {
    /// Answered with the head.
    Flush(Sender<u64>),
    /// Answered once what was queued with the canaries was read.
    Canary(Sender<Vec<Canary>>),
    Probe,
    /// Something was mounted or unmounted somewhere.
    Mounts,
    Stop,
}

/// What the status file says of one filesystem.
#[derive(Debug, Clone, Default)]
pub struct SlotStatus {
    pub filesystem: FilesystemStatus,
    pub roots: Vec<RootStatus>,
}

#[derive(Debug, Default)]
pub struct SlotShared {
    status: Mutex<SlotStatus>,
    meter: Mutex<Meter>,
    /// Counts the turns of the thread.
    pub progress: AtomicU64,
    /// The thread waits for a tracked disk.
    pub resolving: AtomicBool,
    /// A change of the status was reported and not yet written.
    pub(super) told: Notice,
    /// Mounts changed, and the thread has not looked since.
    pub(super) mounts: Notice,
}

impl SlotShared {
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self, now_boot_ns: i64) -> SlotStatus {
        self.told.take();
        let mut seen = self.lock().clone();
        let mut meter = self.meter();
        seen.filesystem.commit_latency = meter.latency();
        seen.filesystem.top_dirs = meter.top_dirs(now_boot_ns);
        seen.filesystem.top_processes = meter.top_processes(now_boot_ns, process::name_of);
        seen
    }
}

/// The other threads' end of the inbox.
#[derive(Clone)]
pub struct Flusher {
    pub(super) inbox: Sender<Message>,
    /// Of a thread that waits.
    pub(super) wake: Option<Arc<OwnedFd>>,
}

impl Flusher {
    pub(super) fn send(&self, message: Message) {
        // A thread that ended hears nothing; who waits for its answer sees the channel closed.
        if self.inbox.send(message).is_ok()
            && let Some(wake) = &self.wake
            && let Err(e) = rustix::io::write(wake, &1u64.to_ne_bytes())
        {
            tracing::debug!("cannot wake a thread: {e}");
        }
    }

    /// The receiver gets the head once everything before is committed, or is cut off.
    pub fn flush(&self) -> Receiver<u64> {
        self.ask(Message::Flush)
    }

    /// The receiver gets what the kernel told of the roots of this filesystem, or is cut off.
    pub fn canary(&self) -> Receiver<Vec<Canary>> {
        self.ask(Message::Canary)
    }

    fn ask<T>(&self, message: impl FnOnce(Sender<T>) -> Message) -> Receiver<T> {
        let (answer, receiver) = bounded(1);
        if self.inbox.len() < limits::WAITING_MAX {
            self.send(message(answer));
        }
        receiver
    }
}

/// What takes the turns of one filesystem.
pub struct SlotHandle {
    pub(super) flusher: Flusher,
    pub shared: Arc<SlotShared>,
}

impl SlotHandle {
    /// Once for many: a thread that hangs with its disk would pile them up.
    pub fn mounts_changed(&self) {
        if self.shared.mounts.raise() {
            self.flusher.send(Message::Mounts);
        }
    }

    pub fn probe(&self) {
        self.flusher.send(Message::Probe);
    }

    pub fn stop(&self) {
        self.flusher.send(Message::Stop);
    }

    pub fn flusher(&self) -> Flusher {
        self.flusher.clone()
    }
}

pub(super) fn root_status(root: &TrackedRoot) -> RootStatus {
    use std::os::unix::ffi::OsStrExt as _;
    RootStatus {
        name: root.name.clone(),
        path: path::escape(root.path.as_os_str().as_bytes()),
        state: RootState::Missing.to_string(),
        state_reason: "not looked at yet".to_owned(),
        source: String::new(),
        source_reason: String::new(),
        blind_spots: Vec::new(),
    }
}
