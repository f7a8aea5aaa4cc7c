//! The far side: what a run asks of a destination, B2 and a directory alike. The store classifies what went wrong;
//! the run decides what follows from it.

pub mod b2;
pub mod dir;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use shared::exit::Exit;
use shared::path::RelPath;

use crate::tree::{Kind, SourceFile, Stat, Xattrs};

pub type Sha1 = [u8; 20];

/// What a kind of leg can hold; what it cannot is counted and shown, and lives in the catalog only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    /// Directories, symlinks, devices, FIFOs and sockets as such; else regular files only.
    pub all_kinds: bool,
    /// Mode, owner, extended attributes.
    pub attributes: bool,
    /// Several names of one inode.
    pub hard_links: bool,
    /// Objects say who wrote them.
    pub writers: bool,
    /// Times to the nanosecond; else to the millisecond, rounded down.
    pub nanoseconds: bool,
}

impl Holds {
    pub fn holds(&self, kind: Kind) -> bool {
        self.all_kinds || kind == Kind::File
    }
}

/// Something to bring into being at `dest`, in place of whatever of the same sort stands there.
pub struct Put {
    /// Below the leg's top.
    pub dest: RelPath,
    pub what: What,
    /// Of the source, before it was read.
    pub stat: Stat,
    pub xattrs: Xattrs,
}

pub enum What {
    File(Body),
    Dir,
    Symlink {
        target: Vec<u8>,
    },
    /// Device, FIFO or socket: all that matters is in the stat.
    Special,
    /// Another name of the object at `to`, which is there already.
    HardLink {
        to: RelPath,
    },
    /// Only mode, owner, times and extended attributes; the object stands.
    Attributes,
}

/// Content that can be sent twice.
#[derive(Clone)]
pub struct Body {
    pub file: Arc<dyn SourceFile>,
    /// A small file is read once: this is all of it, with its hash, and it did not change while it was read.
    pub small: Option<(Bytes, Sha1)>,
}

/// The destination confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Names this version: B2's file id, or what a directory's inode says. Equal to the `object` of a listing
    /// exactly as long as nobody replaced it.
    pub object: String,
    /// Of the bytes that were sent, for regular files.
    pub sha1: Option<Sha1>,
}

/// Something to take away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remove {
    pub dest: RelPath,
    pub kind: Kind,
    pub object: String,
}

/// What a listing says of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Below the leg's top; `None` for a name that no path of ours is stored under.
    pub dest: Option<RelPath>,
    /// As the destination spells it, for people.
    pub name: String,
    pub object: String,
    pub kind: Kind,
    pub size: u64,
    pub mtime_ns: Option<i64>,
    pub sha1: Option<Sha1>,
    /// Who wrote it, where it says so.
    pub writer: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Page {
    pub objects: Vec<Listed>,
    /// To be given back for the next page; `None` at the end.
    pub next: Option<String>,
}

/// What it means for the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// May work later; the path is deferred. `None`: after the usual backoff.
    TryLater(Option<Duration>),
    /// Nothing on this leg can work until somebody does something: the run stops with this code.
    Stop(Exit),
    /// The source moved while it was read.
    Busy,
    /// The source was gone when it was opened.
    Vanished,
    /// The source could not be read.
    Unreadable,
    /// Another kind of object stands at the name, above or below it.
    InTheWay,
    /// A directory holds something that we did not put there, or no longer remove.
    Occupied,
    /// The destination cannot hold this one thing (a limit of its own).
    Unfit,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("Cannot {op} {object}: {message}")]
pub struct StoreError {
    pub op: &'static str,
    pub object: String,
    pub message: String,
    pub problem: Problem,
    /// The request was sent whole and no answer came: it may have taken effect.
    pub outcome_unknown: bool,
}

impl StoreError {
    pub fn new(
        op: &'static str,
        object: impl fmt::Display,
        problem: Problem,
        message: impl fmt::Display,
    ) -> Self {
        StoreError {
            op,
            object: object.to_string(),
            message: message.to_string(),
            problem,
            outcome_unknown: false,
        }
    }
}

/// Calls made, by name, and the classes B2 bills them under; empty for a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Calls {
    pub by_name: std::collections::BTreeMap<String, u64>,
    pub class_a: u64,
    pub class_b: u64,
    pub class_c: u64,
}

/// A destination. Calls may run at the same time; the run never has two for one path.
#[async_trait]
pub trait Store: Send + Sync {
    fn holds(&self) -> Holds;
    /// Once, before anything else: that the place is there, and the rights. Writes nothing; `list`, `newest` and
    /// `identity` work after it.
    async fn open(&self) -> Result<(), StoreError>;
    /// Names the place itself: the bucket's id, the directory's filesystem and inode. Another one with the same name
    /// has another identity.
    fn identity(&self) -> String;
    /// Once, after `open` and before the first `put`: makes what writing needs.
    async fn prepare(&self) -> Result<(), StoreError>;
    async fn put(&self, put: Put) -> Result<Receipt, StoreError>;
    /// What is gone already is success.
    async fn remove(&self, remove: Remove) -> Result<(), StoreError>;
    /// Everything confirmed so far survives a power cut when this returns.
    async fn sync(&self) -> Result<(), StoreError>;
    /// A page of what stands at and below `top`, each name once, newest version, in a stable order.
    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError>;
    /// What stands at one name now.
    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError>;
    fn calls(&self) -> Calls;
    /// What people should know of this run, in sentences: what could not be set, what stands apart.
    fn notes(&self) -> Vec<String>;
}
