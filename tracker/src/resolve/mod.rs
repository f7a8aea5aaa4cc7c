//! From a directory handle to paths in the roots: the cache tree first, the kernel where it does not know.

mod climb;
pub mod doubts;
mod open_mount;
pub mod tree;

use std::sync::Arc;

use shared::entry::Handle;

use crate::host::{Host, View as _};
use crate::intake::records::HandleRef;
pub use open_mount::{MountError, OpenMount};
use tree::{Anchors, Place, Tree};

/// Why a directory has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The kernel does not know the handle any more (ESTALE, which EIO arrives as too), or has it deleted.
    Gone,
    /// The kernel knows it and gives it no place.
    Stale,
    /// No mount shows the whole filesystem any more.
    NoMount,
}

pub struct Resolver<H: Host> {
    pub tree: Tree,
    host: H,
    dev: u64,
    view: Option<H::View>,
}

impl<H: Host> Resolver<H> {
    pub fn new(host: H, tree: Tree) -> Resolver<H> {
        Resolver { tree, host, dev: 0, view: None }
    }

    /// For a filesystem that was just marked.
    pub fn reset(&mut self, dev: u64, anchors: Anchors) {
        self.dev = dev;
        self.release();
        self.tree.reset(anchors);
    }

    /// Gives up the view: to be called when a batch is done.
    pub fn release(&mut self) {
        self.view = None;
    }

    fn view(&mut self) -> Result<&mut H::View, Lost> {
        if self.view.is_none() {
            self.view = Some(self.host.view(self.dev).map_err(|_| Lost::NoMount)?);
        }
        self.view.as_mut().ok_or(Lost::NoMount)
    }

    pub fn place(&mut self, dir: HandleRef<'_>) -> Result<Arc<Place>, Lost> {
        if let Some(place) = self.tree.locate(dir) {
            return Ok(place);
        }
        // Twice: a full cache forgets, and what the first answer was to be joined to with it.
        for _ in 0..2 {
            self.learn(&dir.to_handle())?;
            if let Some(place) = self.tree.locate(dir) {
                return Ok(place);
            }
        }
        Err(Lost::Stale)
    }

    /// Asks the kernel where a directory lies now, and all above it up to one that is known. That is later than the
    /// event: sound, because a rename since then is still queued and brings entries for both its names. A rename of
    /// any of them after its link was proven is in an event not yet read, which detaches it again.
    fn learn(&mut self, dir: &Handle) -> Result<(), Lost> {
        self.view()?;
        let Resolver { tree, view: Some(view), .. } = self else { return Err(Lost::NoMount) };
        let links = view.links(dir, |dir| tree.is_top(dir) || tree.knows(dir))?;
        for link in links.into_iter().rev() {
            if !tree.put(&link.dir, &link.parent, &link.name) {
                break;
            }
        }
        Ok(())
    }

    /// The directory and a name that a file has now, by its own handle.
    pub fn name_of(&mut self, target: HandleRef<'_>) -> Result<NameOf, Lost> {
        Ok(self.view()?.name_of(&target.to_handle()))
    }

    /// True unless it is certain that a file has no more than one name.
    pub fn may_have_names(&mut self, target: HandleRef<'_>) -> Result<bool, Lost> {
        Ok(self.view()?.may_have_names(&target.to_handle()))
    }

    /// Whether the directory has this name and it is this object.
    pub fn has(&mut self, dir: HandleRef<'_>, name: &[u8], target: HandleRef<'_>) -> Result<bool, Lost> {
        Ok(self.view()?.has(dir, name, target))
    }
}

/// The name of a directory in its parent.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    pub dir: Handle,
    pub parent: Handle,
    pub name: Vec<u8>,
}

/// What a file is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOf {
    Known {
        dir: Handle,
        name: Vec<u8>,
        /// It has no other.
        only: bool,
    },
    /// It has no name at all: never had one, or lost the last.
    None,
    /// The kernel does not know it any more, unless the disk fails.
    Stale,
    /// It may have one.
    Unknown,
}

#[cfg(test)]
mod tests;
