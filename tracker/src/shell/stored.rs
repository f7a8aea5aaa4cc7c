//! The descriptors that the service manager kept for this start, by their names: their order says nothing
//! (measured on systemd 252).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::intake::{keep, sys};

#[derive(Default)]
pub(super) struct Stored(BTreeMap<String, Vec<OwnedFd>>);

impl Stored {
    /// Takes what was passed; to be called once. They are closed in children from here on.
    pub fn listen() -> Stored {
        let mut stored = Stored::default();
        match sd_notify::listen_fds_with_names() {
            Ok(passed) => {
                for (fd, name) in passed {
                    stored.0.entry(name).or_default().push(sys::inherited(fd));
                }
            }
            Err(e) => tracing::warn!("What the service manager passes cannot be used: {e}"),
        }
        stored
    }

    /// What stands under a name; of two it cannot be said which is the right one.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let mut found = self.0.remove(name)?;
        let one = found.pop();
        if found.is_empty() {
            return one;
        }
        keep::remove(name);
        None
    }

    /// Closes what no filesystem of the configuration has and takes it out of the store: an event would be kept there
    /// for each change, for ever. Returns the names.
    pub fn discard_rest(self) -> Vec<String> {
        let ours = self.0.into_keys().filter(|name| keep::is_ours(name));
        ours.inspect(|name| keep::remove(name)).collect()
    }
}
