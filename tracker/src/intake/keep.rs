//! What of a filesystem's source outlives the process, in the service manager's keeping: the group and the buffer.
//! Without a service manager nothing is kept, and each start is a gap.

use std::io;

use shared::entry::Cause;
use shared::journal::JournalId;
use shared::kill;

use super::buffer::{Buffer, Lasting, RootMark, Unfit};
use crate::host::Host;

/// Longest name that the service manager takes (FDNAME_MAX).
const NAME_BYTES_MAX: usize = 255;
const GROUP: &str = "group.";
const BUFFER: &str = "buffer.";

/// True for a name that only a tracker gives.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(GROUP) || name.starts_with(BUFFER)
}

/// What one filesystem has in the store.
pub struct Keep<H: Host> {
    host: H,
    fs: String,
    boot_id: String,
    journal_id: JournalId,
    /// What an earlier instance left, until it is looked at.
    group: Option<H::Group>,
    left: Option<H::Kept>,
    /// Of a source that is no more, for the next one.
    buffer: Option<Buffer<H::Memory>>,
    /// Something may be in the store under our name.
    group_stored: bool,
    buffer_stored: bool,
}

impl<H: Host> Keep<H> {
    /// With what the service manager passed for this filesystem.
    pub fn new(host: H, fs: &str, boot_id: &str, journal_id: JournalId) -> Keep<H> {
        let fs = printable(fs);
        let group = host.take_kept(&format!("{GROUP}{fs}")).map(|kept| host.group_of(kept));
        let left = host.take_kept(&format!("{BUFFER}{fs}"));
        Keep {
            group_stored: group.is_some(),
            buffer_stored: left.is_some(),
            host,
            fs,
            boot_id: boot_id.to_owned(),
            journal_id,
            group,
            left,
            buffer: None,
        }
    }

    /// True if an earlier instance left something that may be adopted.
    pub fn has_group(&self) -> bool {
        self.group.is_some()
    }

    pub fn take_group(&mut self) -> Option<H::Group> {
        self.group.take()
    }

    /// The buffer that an earlier instance left, if it is of this boot and this journal.
    pub fn take_left(&mut self) -> Result<Buffer<H::Memory>, Unfit> {
        let kept = self.left.take().ok_or(Unfit::File("it is not there".to_owned()))?;
        let buffer = Buffer::open(self.host.memory_of(kept)?, || self.host.new_memory())?;
        if buffer.lasting().boot_id != self.boot_id {
            return Err(Unfit::Boot);
        }
        if buffer.lasting().journal_id != self.journal_id.0 {
            return Err(Unfit::Journal);
        }
        if buffer.is_anew() {
            self.store_buffer(&buffer);
            self.host.barrier();
        }
        Ok(buffer)
    }

    /// A buffer for a new group that has not been marked yet, and both into the store.
    pub fn keep(&mut self, group: &H::Group, roots: &[RootMark]) -> io::Result<Buffer<H::Memory>> {
        self.left = None;
        let buffer = match self.buffer.take() {
            Some(mut buffer) => {
                buffer.begin_anew(roots.to_vec(), Cause::Start);
                buffer
            }
            None => {
                let lasting = Lasting {
                    buffer_id: rand::random(),
                    boot_id: self.boot_id.clone(),
                    journal_id: self.journal_id.0,
                    roots: roots.to_vec(),
                };
                let buffer = Buffer::create(self.host.new_memory()?, lasting, Cause::Start);
                self.store_buffer(&buffer);
                buffer
            }
        };
        self.forget_group();
        kill::point("placing");
        self.host.keep_group(&format!("{GROUP}{}", self.fs), group);
        self.group_stored = true;
        kill::point("placing");
        self.host.barrier();
        Ok(buffer)
    }

    /// In the place of the one before.
    fn store_buffer(&mut self, buffer: &Buffer<H::Memory>) {
        let name = format!("{BUFFER}{}", self.fs);
        self.host.let_go(&name);
        kill::point("placing");
        self.buffer_stored = true;
        self.host.keep_memory(&name, buffer.memory());
        kill::point("placing");
    }

    pub fn give_buffer(&mut self, buffer: Buffer<H::Memory>) {
        self.buffer = Some(buffer);
    }

    pub fn take_buffer(&mut self) -> Option<Buffer<H::Memory>> {
        self.buffer.take()
    }

    /// A source ended: its group goes out of the store, where nobody would read it, and its buffer is for the next.
    pub fn give_back(&mut self, buffer: Option<Buffer<H::Memory>>) {
        self.buffer = buffer.or(self.buffer.take());
        self.forget_group();
    }

    /// The filesystem is served by a source of which nothing can be kept.
    pub fn forget(&mut self) {
        self.forget_group();
        self.left = None;
        if std::mem::take(&mut self.buffer_stored) {
            self.buffer = None;
            self.host.let_go(&format!("{BUFFER}{}", self.fs));
        }
    }

    fn forget_group(&mut self) {
        self.group = None;
        if std::mem::take(&mut self.group_stored) {
            self.host.let_go(&format!("{GROUP}{}", self.fs));
        }
    }
}

/// A name may hold no colon and nothing that is not printable ASCII.
fn printable(fs: &str) -> String {
    let mut name: String =
        fs.chars().map(|c| if c.is_ascii_graphic() && c != ':' { c } else { '_' }).collect();
    let room = NAME_BYTES_MAX - BUFFER.len();
    if name != fs || name.len() > room {
        // What was changed could be the name of two.
        let sum = format!("~{:016x}", xxhash_rust::xxh3::xxh3_64(fs.as_bytes()));
        name.truncate(room - sum.len());
        name += &sum;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_the_store_is_one_that_the_service_manager_takes_and_stays_the_filesystems_own() {
        let uuid = "ext4-7f5e508d-6f4c-4f36-9d5c-0d6c6c6c2f11";
        assert_eq!(printable(uuid), uuid);
        let names = ["ext4 a", "ext4_a", "ext4:a", "ext4\na", "ext4\u{e9}a"].map(printable);
        for (i, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|b| b.is_ascii_graphic() && b != b':'), "{name}");
            assert!(!names[..i].contains(name), "{name}");
        }
        assert!(printable(&"x".repeat(4096)).len() + BUFFER.len() <= NAME_BYTES_MAX);
        assert_ne!(printable(&"x".repeat(4096)), printable(&"x".repeat(4097)));
    }
}
