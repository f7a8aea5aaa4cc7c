//! The start that takes over what an earlier instance left, and what is said of it.

use super::{Slot, SlotParts};
use crate::daemon::Event;
use crate::generation;
use crate::host::Host;
use crate::intake::fanotify::{Adopted, Fanotify, Known};

impl<H: Host> Slot<H> {
    pub(super) fn adopt(&mut self) -> Event {
        let known = match self.on_disk(Slot::known) {
            Ok(known) => known,
            Err(e) => {
                self.note_error(&e.to_string());
                self.say_how_it_began(&format!("a gap: {e}"));
                return Event::NotAdopted(shared::entry::Cause::Adoption);
            }
        };
        let adopted = self.on_disk(|slot| {
            let SlotParts { host, roots, own, keep, .. } = &mut slot.parts;
            Fanotify::adopt(host, roots, own, keep, known)
        });
        match adopted {
            Ok(adopted) => self.take_over(adopted),
            Err(why) => {
                self.say_how_it_began(&format!("{why}: a gap"));
                Event::NotAdopted(why.cause())
            }
        }
    }

    fn known(&mut self) -> Result<Known, shared::database::DatabaseError> {
        generation::bind(&self.parts.host, &self.parts.roots, &mut self.parts.journal)?;
        let (journal, fs) = (&self.parts.journal, &self.parts.fs_key);
        let doubts = journal.doubts(fs)?.into_iter().map(|d| d.handle).collect();
        Ok(Known { mark: journal.intake(fs)?, doubts })
    }

    fn take_over(&mut self, adopted: Adopted<H>) -> Event {
        let Adopted { source, seen, recovered, gaps, owed } = adopted;
        let mut text = format!("adopted, {} events were read and not committed", recovered.events);
        if recovered.is_anew {
            text += ", the buffer was another version's and is made anew";
        }
        if let Some(bytes) = recovered.torn {
            text += &format!(", {bytes} bytes of them in a read that was cut short");
        }
        if recovered.taken {
            text += ", one batch was committed and not reset";
        }
        if let Some(damaged) = recovered.damaged {
            text += &format!(", the rest is damaged ({damaged})");
        }
        let gap = owed.or(gaps.first().map(|g| g.1));
        if owed.is_none() {
            for (root, cause) in &gaps {
                text += &format!(", a gap for {}: {cause}", self.parts.roots[*root].name);
            }
            self.gaps = gaps;
        }
        text += if gap.is_some() { "" } else { ", no gap" };
        self.say_how_it_began(&text);
        self.begin_source(Box::new(source), seen.len(), "");
        self.count_buffered(recovered.bytes);
        self.store_states(&seen, false);
        if gap.is_none() {
            self.complete();
        }
        Event::Adopted { events: recovered.events, bytes: recovered.bytes, gap }
    }

    /// For people, in the log and in the history: why this start is a gap or none.
    pub(super) fn say_how_it_began(&mut self, what: &str) {
        let text = format!("{}: {}: {what}", self.parts.name, self.parts.before);
        tracing::info!("{text}");
        if let Err(e) = self.parts.journal.add_history(self.clock.wall_ns(), "start", None, &text) {
            self.note_error(&e.to_string());
        }
    }
}
