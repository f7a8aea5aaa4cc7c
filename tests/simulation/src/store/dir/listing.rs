//! The sorted walk of a directory, page by page: each directory is read when the walk comes to it, and what changes in
//! it afterwards shows only as far as a name is gone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use shared::path::RelPath;
use syncer::leg::{Listed, Page, Problem, StoreError};

use super::{Directory, Miss, STATE, SimDir, failed, listed, lock, missed};

const OP: &str = "list";

/// A walk between two pages, with the token that goes on with it.
pub struct Paused {
    top: RelPath,
    token: String,
    walk: Walk,
}

/// Directories of which some names are still to come, in order.
struct Walk {
    frames: Vec<(RelPath, std::vec::IntoIter<Vec<u8>>)>,
}

impl SimDir {
    pub(super) fn list_page(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        let paused = lock(&self.listing).take();
        let listed = self.ask(|directory| list(directory, top, page, paused));
        let (page, paused) = listed.map_err(|e| failed(OP, top, e))??;
        *lock(&self.listing) = paused;
        Ok(page)
    }
}

fn list(
    directory: &Directory,
    top: &RelPath,
    page: Option<String>,
    paused: Option<Paused>,
) -> Result<(Page, Option<Paused>), StoreError> {
    let mut objects = Vec::new();
    let mut walk = match (page, paused) {
        (Some(token), Some(paused)) if paused.token == token && paused.top == *top => paused.walk,
        (Some(token), _) => Walk::resume(directory, top, &token)?,
        (None, _) => {
            match directory.look(top) {
                Ok((stat, _)) => objects.push(listed(top.clone(), &stat)),
                Err(Miss::Absent { .. } | Miss::NotDir { .. }) => {}
                Err(miss) => return Err(missed(OP, miss)),
            }
            Walk::start(directory, top)
        }
    };
    while objects.len() < directory.page_objects {
        let Some(object) = walk.next(directory) else {
            return Ok((Page { objects, next: None }, None));
        };
        objects.push(object);
    }
    let last = objects.last().expect("a full page holds objects");
    let path = last.dest.as_ref().expect("every name here is a path");
    let token = STANDARD.encode(if last.kind.is_dir() { path.dir_key() } else { path.as_bytes().to_vec() });
    let paused = Paused { top: top.clone(), token: token.clone(), walk };
    Ok((Page { objects, next: Some(token) }, Some(paused)))
}

impl Walk {
    fn start(directory: &Directory, top: &RelPath) -> Walk {
        let mut walk = Walk { frames: Vec::new() };
        walk.enter(directory, top);
        walk
    }

    fn enter(&mut self, directory: &Directory, dir: &RelPath) {
        if directory.look(dir).is_ok_and(|(stat, _)| stat.kind.is_dir()) {
            let ours = |key: &Vec<u8>| dir.is_root() && key.strip_suffix(b"/").unwrap_or(key) == STATE;
            let keys: Vec<_> = directory.children(dir).into_iter().filter(|key| !ours(key)).collect();
            self.frames.push((dir.clone(), keys.into_iter()));
        }
    }

    /// Goes on behind the key in the token, whether that still exists or not.
    fn resume(directory: &Directory, top: &RelPath, token: &str) -> Result<Walk, StoreError> {
        let after = STANDARD.decode(token).map_err(|e| {
            StoreError::new(OP, top, Problem::TryLater(None), format!("`{token}` is no page of ours: {e}"))
        })?;
        let mut walk = Walk::start(directory, top);
        while let Some((dir, keys)) = walk.frames.last_mut() {
            let prefix = dir.dir_key();
            let full = |key: &[u8]| [&prefix, key].concat();
            let (passed, to_come): (Vec<_>, Vec<_>) = keys.partition(|key| full(key) <= after);
            *keys = to_come.into_iter();
            let inside = passed.last().filter(|key| key.ends_with(b"/") && after.starts_with(&full(key)));
            let Some(dir) = inside.map(|key| dir.child(&key[..key.len() - 1]).unwrap()) else { break };
            let depth = walk.frames.len();
            walk.enter(directory, &dir);
            if walk.frames.len() == depth {
                break;
            }
        }
        Ok(walk)
    }

    fn next(&mut self, directory: &Directory) -> Option<Listed> {
        while let Some((dir, keys)) = self.frames.last_mut() {
            let Some(key) = keys.next() else {
                self.frames.pop();
                continue;
            };
            let path = dir.child(key.strip_suffix(b"/").unwrap_or(&key)).unwrap();
            let Ok((stat, _)) = directory.look(&path) else { continue };
            if stat.kind.is_dir() != key.ends_with(b"/") {
                continue; // replaced since its directory was read; its place in the order has passed
            }
            if stat.kind.is_dir() {
                self.enter(directory, &path);
            }
            return Some(listed(path, &stat));
        }
        None
    }
}
