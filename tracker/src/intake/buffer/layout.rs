//! What stands where in a buffer, and what a start makes of what it finds there. Pure.
//!
//! ```text
//! words    what changes with each read and commit: see `Word`
//! lasting  two copies of `Lasting`; `Word::Lasting` says where the one in force begins
//! gone     the traces of deleted directories, the newest `INTAKE_GONE_MAX` of `Word::Gone`
//! data     records as the kernel gave them
//! ```
//!
//! One process writes at a time. It may be killed between any two of its stores, and those before are in memory
//! then: each order below leaves a state that [`recover`] understands, and so does a kill inside the recovery.
//!
//! The words up to `Word::Lasting`, the form of `Lasting`, and the seals never change, whatever else does: after a
//! clean end there is nothing else in a buffer, so they are all that another version needs to go on with the group.
//! (Traces of deleted directories stay behind: a late event from one is a doubt again, a gap at worst.)

use std::ops::Range;

use serde::{Deserialize, Serialize};
use shared::entry::Cause;
use shared::limits;
use xxhash_rust::xxh3::xxh3_64;

use super::sys::HEAD_BYTES;
use crate::intake::records::Records;

pub const PAGE: usize = 4096;
/// Counts the changes of this file that an older or newer program would not understand.
pub const LAYOUT: u64 = 1;
pub const MAGIC: u64 = u64::from_ne_bytes(*b"lngshore");

const LASTING_AT: usize = PAGE;
const GONE_AT: usize = LASTING_AT + 2 * limits::INTAKE_LASTING_BYTES;
const DATA_AT: usize = GONE_AT + limits::INTAKE_GONE_MAX * size_of::<u64>();
pub const TOTAL_BYTES: usize = DATA_AT + limits::INTAKE_BATCH_BYTES;
const _: () = assert!(HEAD_BYTES <= LASTING_AT && DATA_AT.is_multiple_of(PAGE));

/// Where the copy of `Lasting` is to stand that takes the place of the one at `in_force`.
pub fn other_lasting(in_force: u64) -> usize {
    let second = LASTING_AT + limits::INTAKE_LASTING_BYTES;
    if in_force == second as u64 { LASTING_AT } else { second }
}

/// Where the trace with this number stands.
pub fn gone(number: u64) -> Range<usize> {
    let at = GONE_AT + (number as usize % limits::INTAKE_GONE_MAX) * size_of::<u64>();
    at..at + size_of::<u64>()
}

/// Offsets of the data as places in the mapping.
pub fn data(range: Range<usize>) -> Range<usize> {
    DATA_AT + range.start..DATA_AT + range.end
}

/// One word of the head each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Magic,
    /// The [`LAYOUT`] of whoever made it.
    Layout,
    /// 1 while nobody uses it and everything that was read is committed.
    Clean,
    /// Batches committed.
    Epoch,
    /// Where the copy of `Lasting` in force begins. The last word that never moves.
    Lasting,
    /// Bytes of data that are whole records.
    Published,
    /// 1 while a read into the slot is under way.
    Reading,
    SlotAt,
    SlotBytes,
    /// Bytes of data that are committed.
    Consumed,
    /// Up to where the next commit covers the data.
    NextEnd,
    /// The batch with this epoch holds a gap over all roots: until then one is owed.
    OwedEpoch,
    OwedCause,
    /// The record that is being translated, [`NONE`] between.
    At,
    /// The record at which the tracker died, and how often.
    PoisonAt,
    PoisonDeaths,
    /// 1 if the pages cannot be taken away: only then is a read that was cut short to be trusted.
    Locked,
    /// Traces of deleted directories written so far.
    Gone,
}

/// No record.
pub const NONE: u64 = u64::MAX;

/// The words that a recovery goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hot {
    pub published: u64,
    pub reading: u64,
    pub slot_at: u64,
    pub slot_bytes: u64,
    pub epoch: u64,
    pub consumed: u64,
    pub next_end: u64,
    pub owed_epoch: u64,
    pub owed_cause: u64,
    pub at: u64,
    pub poison_at: u64,
    pub poison_deaths: u64,
    pub locked: u64,
}

impl Hot {
    pub fn load(word: impl Fn(Word) -> u64) -> Hot {
        Hot {
            published: word(Word::Published),
            reading: word(Word::Reading),
            slot_at: word(Word::SlotAt),
            slot_bytes: word(Word::SlotBytes),
            epoch: word(Word::Epoch),
            consumed: word(Word::Consumed),
            next_end: word(Word::NextEnd),
            owed_epoch: word(Word::OwedEpoch),
            owed_cause: word(Word::OwedCause),
            at: word(Word::At),
            poison_at: word(Word::PoisonAt),
            poison_deaths: word(Word::PoisonDeaths),
            locked: word(Word::Locked),
        }
    }

    /// A gap over all roots that no commit holds yet.
    pub fn owed(&self) -> Option<Cause> {
        let cause = Cause::from_i64(self.owed_cause as i64).unwrap_or(Cause::Damaged);
        (self.owed_epoch > self.epoch).then_some(cause)
    }

    /// Everything that was read is committed, and every gap that was owed.
    pub fn is_done_with(&self) -> bool {
        self.published == 0 && self.reading == 0 && self.owed().is_none()
    }
}

/// The stores that empty a buffer, in order, once a gap over everything is owed.
pub const BEGINNING: [(Word, u64); 7] = [
    (Word::At, NONE),
    (Word::PoisonAt, NONE),
    (Word::Reading, 0),
    (Word::Published, 0),
    (Word::Consumed, 0),
    (Word::NextEnd, 0),
    (Word::Gone, 0),
];

/// The stores after a commit, in order. `counted`: the journal has an epoch for it; a batch of which nothing was
/// ours is never written there.
pub fn finish(hot: &Hot, counted: bool) -> [(Word, u64); 6] {
    let epoch = hot.epoch + u64::from(counted);
    let (published, consumed, poison) = if hot.next_end == hot.published {
        (0, 0, NONE)
    } else {
        (hot.published, hot.next_end, hot.poison_at)
    };
    [
        (Word::Consumed, hot.next_end),
        (Word::Epoch, epoch),
        (Word::Published, published),
        (Word::Consumed, consumed),
        (Word::NextEnd, consumed),
        (Word::PoisonAt, poison),
    ]
}

/// Why a buffer cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the buffer is damaged: {0}")]
    Damaged(&'static str),
    #[error("the buffer was laid out by another version of the tracker")]
    Layout,
    #[error("the buffer is of an earlier boot")]
    Boot,
    #[error("the buffer belongs to another journal")]
    Journal,
    #[error("the journal was restored from an older copy, or lost what the tracker wrote")]
    Epoch,
    #[error("the buffer cannot be used: {0}")]
    File(String),
}

impl Unfit {
    pub fn cause(&self) -> Cause {
        match self {
            Unfit::Damaged(_) => Cause::Damaged,
            Unfit::Boot => Cause::Boot,
            Unfit::Layout | Unfit::Journal | Unfit::Epoch | Unfit::File(_) => Cause::Adoption,
        }
    }
}

/// A root as it was when its events were last known to be complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootMark {
    pub id: i64,
    /// Of its path, its rules, and what this version asks of the kernel.
    pub rules: u64,
    /// Of its directory's handle; 0 if it was not there.
    pub identity: u64,
}

/// What stays the same from one read to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lasting {
    pub buffer_id: [u8; 16],
    pub boot_id: String,
    pub journal_id: [u8; 16],
    pub roots: Vec<RootMark>,
}

/// Length and checksum, then JSON. Roots for which there is no room are left out: a gap at the next adoption.
pub fn encode(lasting: &Lasting) -> Vec<u8> {
    let mut lasting = lasting.clone();
    loop {
        // Numbers and text: this cannot fail, and what is not there is found to be damaged.
        let json = serde_json::to_vec(&lasting).unwrap_or_default();
        let head = [json.len() as u64, xxh3_64(&json)].map(u64::to_ne_bytes).concat();
        let out = [head, json].concat();
        let roots = lasting.roots.len();
        if out.len() <= limits::INTAKE_LASTING_BYTES || roots == 0 {
            return out;
        }
        lasting.roots.truncate((roots * limits::INTAKE_LASTING_BYTES / out.len()).min(roots - 1));
    }
}

/// Of what begins so, whatever comes behind it.
pub fn decode(bytes: &[u8]) -> Result<Lasting, Unfit> {
    let damaged = Unfit::Damaged("its head is no head");
    let (len, rest) = bytes.split_first_chunk().ok_or(damaged.clone())?;
    let (sum, rest) = rest.split_first_chunk().ok_or(damaged.clone())?;
    let json = rest.get(..u64::from_ne_bytes(*len) as usize).ok_or(damaged.clone())?;
    if xxh3_64(json) != u64::from_ne_bytes(*sum) {
        return Err(Unfit::Damaged("the checksum of its head is wrong"));
    }
    serde_json::from_slice(json).map_err(|_| damaged)
}

/// What lies in a slot whose read was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// Bytes of whole records at its beginning.
    pub whole: usize,
    pub damaged: Option<&'static str>,
}

/// Strictly: the slot was zeroed, so behind the last whole record there is nothing.
pub fn walk(slot: &[u8]) -> Torn {
    let mut whole = 0;
    while let Some(len) = slot[whole..].first_chunk().map(|b| u32::from_ne_bytes(*b) as usize)
        && len != 0
    {
        match Records::new(&slot[whole..]).next() {
            Some(Ok(_)) => whole += len,
            Some(Err(damaged)) => return Torn { whole, damaged: Some(damaged.0) },
            None => break,
        }
    }
    let rest = slot[whole..].iter().any(|&b| b != 0);
    Torn { whole, damaged: rest.then_some("something follows where nothing should") }
}

/// What a start makes of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// To be stored in this order. After each the recovery may begin anew.
    pub stores: Vec<(Word, u64)>,
    /// What is not committed yet.
    pub left: Range<usize>,
    /// A read that was cut short left this many bytes.
    pub torn: Option<usize>,
    /// The journal had taken a batch that the buffer still held.
    pub taken: bool,
    pub damaged: Option<&'static str>,
}

/// `epoch` is that of the last batch in the journal.
pub fn recover(hot: &Hot, data: &[u8], epoch: u64) -> Result<Recovery, Unfit> {
    let mut now = *hot;
    let mut out = Recovery { stores: Vec::new(), left: 0..0, torn: None, taken: false, damaged: None };
    // Killed between the two stores of a reset.
    if now.published == 0 {
        now.consumed = 0;
    }
    if now.consumed > now.published || now.published > data.len() as u64 {
        return Err(Unfit::Damaged("its lengths are wrong"));
    }
    poison(&mut now, &mut out);
    if epoch == now.epoch + 1 {
        if now.reading != 0 || now.next_end < now.consumed || now.next_end > now.published {
            return Err(Unfit::Damaged("its lengths do not fit the journal"));
        }
        out.taken = true;
        now.consumed = now.next_end;
        now.epoch = epoch;
        out.stores.extend([(Word::Consumed, now.consumed), (Word::Epoch, now.epoch)]);
    } else if epoch != now.epoch {
        return Err(Unfit::Epoch);
    }
    if now.reading != 0 {
        torn(&mut now, data, &mut out)?;
    }
    out.left = now.consumed as usize..now.published as usize;
    if out.left.is_empty() {
        out.left = 0..0;
        // The record at which it died, if it did, is committed: its place is for another one.
        out.stores.extend([(Word::PoisonAt, NONE), (Word::Published, 0)]);
        out.stores.extend([(Word::Consumed, 0), (Word::NextEnd, 0)]);
    } else {
        out.stores.extend([(Word::Consumed, now.consumed), (Word::NextEnd, now.consumed)]);
    }
    Ok(out)
}

/// Counts the death if it happened at a record. Killed between these stores, one death is not counted.
fn poison(now: &mut Hot, out: &mut Recovery) {
    if now.at == NONE {
        return;
    }
    let deaths = if now.at == now.poison_at { now.poison_deaths + 1 } else { 1 };
    out.stores.extend([(Word::At, NONE), (Word::PoisonDeaths, deaths), (Word::PoisonAt, now.at)]);
    now.at = NONE;
}

/// The slot of a read that did not come back.
fn torn(now: &mut Hot, data: &[u8], out: &mut Recovery) -> Result<(), Unfit> {
    let end = now.slot_at.checked_add(now.slot_bytes).filter(|&end| end <= data.len() as u64);
    let end = end.ok_or(Unfit::Damaged("its slot lies outside"))?;
    if now.slot_at == now.published {
        let mut found = walk(&data[now.slot_at as usize..end as usize]);
        if now.locked == 0 {
            found.damaged = Some("a read was cut short while the pages were not locked");
        }
        if let Some(what) = found.damaged {
            out.damaged = Some(what);
            // Before the slot is closed: a kill between must not forget it.
            now.owed_epoch = now.epoch + 1;
            out.stores.extend([(Word::OwedCause, Cause::Damaged as u64), (Word::OwedEpoch, now.owed_epoch)]);
        }
        out.torn = Some(found.whole);
        now.published += found.whole as u64;
        out.stores.push((Word::Published, now.published));
    } else if now.slot_at > now.published || now.published > end {
        return Err(Unfit::Damaged("its slot lies elsewhere"));
    }
    out.stores.push((Word::Reading, 0));
    Ok(())
}

#[cfg(test)]
mod tests;
