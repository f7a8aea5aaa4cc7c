//! The sorted walk of the destination: byte order of keys, directories with a trailing `/`, so a directory comes
//! right before what lies in it. In memory are the names of the directories that lead to the current one.

use std::os::fd::AsFd;
use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FileType;
use shared::path::RelPath;

use super::{Inner, STATE, failed, listed, missed};
use crate::leg::{Listed, Page, Problem, StoreError};
use crate::tree::Stat;
use crate::tree::beneath::{self, Beneath, Miss, Pinned};

const OP: &str = "list";
const PAGE_OBJECTS: usize = 1_000;

/// A walk between two pages, with the token that goes on with it.
pub struct Paused {
    top: RelPath,
    token: String,
    walk: Walk,
}

struct Walk {
    frames: Vec<Frame>,
}

/// A directory of which some names are still to come, in order, those of directories with their `/`.
struct Frame {
    dir: RelPath,
    keys: std::vec::IntoIter<Vec<u8>>,
}

impl Inner {
    pub fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        let below = self.below();
        let paused = self.listing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut objects = Vec::new();
        let mut walk = match (page, paused) {
            (Some(token), Some(paused)) if paused.token == token && paused.top == *top => paused.walk,
            (Some(token), _) => Walk::resume(below, top, &token)?,
            (None, _) => {
                let (walk, first) = Walk::start(below, top)?;
                objects.extend(first.map(|stat| listed(top.clone(), &stat)));
                walk
            }
        };
        while objects.len() < PAGE_OBJECTS {
            let Some(object) = walk.next(below)? else {
                return Ok(Page { objects, next: None });
            };
            objects.push(object);
        }
        let token = objects.last().map(token_after).expect("a full page holds objects");
        let paused = Paused { top: top.clone(), token: token.clone(), walk };
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Some(paused);
        Ok(Page { objects, next: Some(token) })
    }
}

fn token_after(object: &Listed) -> String {
    let path = object.dest.as_ref().expect("every name here is a path");
    STANDARD.encode(if object.kind.is_dir() { path.dir_key() } else { path.as_bytes().to_vec() })
}

impl Walk {
    /// The walk of what lies below `top`, and `top` itself if it is there.
    fn start(below: &Beneath, top: &RelPath) -> Result<(Walk, Option<Stat>), StoreError> {
        let pinned = match below.pin(top) {
            Ok(pinned) => pinned,
            Err(Miss::Absent { .. } | Miss::NotDir { .. }) => return Ok((Walk { frames: Vec::new() }, None)),
            Err(miss) => return Err(missed(OP, miss)),
        };
        let frames =
            if pinned.stat.kind.is_dir() { vec![Frame::read(below, top, &pinned)?] } else { Vec::new() };
        Ok((Walk { frames }, Some(pinned.stat)))
    }

    /// Goes on behind the key in the token, whether that still exists or not.
    fn resume(below: &Beneath, top: &RelPath, token: &str) -> Result<Walk, StoreError> {
        let after = STANDARD.decode(token).map_err(|e| {
            StoreError::new(OP, top, Problem::TryLater(None), format!("`{token}` is no page of ours: {e}"))
        })?;
        let (mut walk, _) = Walk::start(below, top)?;
        while let Some(frame) = walk.frames.last_mut() {
            let prefix = frame.dir.dir_key();
            let full = |key: &[u8]| [&prefix, key].concat();
            let keys = std::mem::take(&mut frame.keys);
            let (passed, to_come): (Vec<_>, Vec<_>) = keys.partition(|key| full(key) <= after);
            frame.keys = to_come.into_iter();
            let inside = passed.last().filter(|key| key.ends_with(b"/") && after.starts_with(&full(key)));
            let Some(key) = inside else { break };
            let dir = frame.path(key);
            match pin(below, &dir)? {
                Some(pinned) if pinned.stat.kind.is_dir() => {
                    let frame = Frame::read(below, &dir, &pinned)?;
                    walk.frames.push(frame);
                }
                _ => break,
            }
        }
        Ok(walk)
    }

    fn next(&mut self, below: &Beneath) -> Result<Option<Listed>, StoreError> {
        while let Some(frame) = self.frames.last_mut() {
            let Some(key) = frame.keys.next() else {
                self.frames.pop();
                continue;
            };
            let path = frame.path(&key);
            let Some(pinned) = pin(below, &path)? else { continue };
            let is_dir = pinned.stat.kind.is_dir();
            if is_dir != key.ends_with(b"/") {
                continue; // replaced since its directory was read; its place in the order has passed
            }
            if is_dir {
                self.frames.push(Frame::read(below, &path, &pinned)?);
            }
            return Ok(Some(listed(path, &pinned.stat)));
        }
        Ok(None)
    }
}

impl Frame {
    fn read(below: &Beneath, dir: &RelPath, pinned: &Pinned) -> Result<Frame, StoreError> {
        let error = |e| failed(OP, dir, e);
        let open = pinned.read_dir().map_err(error)?;
        let mut keys = Vec::new();
        for (mut name, file_type) in beneath::names(open.as_fd()).map_err(error)? {
            if dir.is_root() && name == STATE {
                continue;
            }
            let is_dir = match file_type {
                FileType::Unknown => below.stat_name(open.as_fd(), &name).is_ok_and(|s| s.kind.is_dir()),
                file_type => file_type == FileType::Directory,
            };
            if is_dir {
                name.push(b'/');
            }
            keys.push(name);
        }
        keys.sort_unstable();
        Ok(Frame { dir: dir.clone(), keys: keys.into_iter() })
    }

    fn path(&self, key: &[u8]) -> RelPath {
        let name = key.strip_suffix(b"/").unwrap_or(key);
        self.dir.child(name).expect("a name from a directory is a component")
    }
}

/// `None` for what is gone, and for what belongs to another filesystem: both are not there as far as the leg goes.
fn pin(below: &Beneath, path: &RelPath) -> Result<Option<Pinned>, StoreError> {
    match below.pin(path) {
        Ok(pinned) => Ok(Some(pinned)),
        Err(Miss::Absent { .. } | Miss::NotDir { .. }) => Ok(None),
        Err(Miss::Failed { at, source }) if source.kind() == std::io::ErrorKind::CrossesDevices => {
            tracing::warn!(%at, error = %source, "Left out of the listing");
            Ok(None)
        }
        Err(miss) => Err(missed(OP, miss)),
    }
}
