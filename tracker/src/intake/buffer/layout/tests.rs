//! The layout over bytes that nobody made on purpose, and a recovery that is killed at each of its stores.

use proptest::prelude::*;

use super::*;
use crate::intake::records::tests::{event, info, named};

fn record(name: &[u8]) -> Vec<u8> {
    event(libc::FAN_CREATE, &[named(2, b"dirhandl", name)])
}

fn idle() -> Hot {
    Hot { at: NONE, poison_at: NONE, locked: 1, epoch: 5, owed_epoch: 1, ..Hot::default() }
}

fn data(records: &[Vec<u8>]) -> Vec<u8> {
    let mut data = records.concat();
    data.resize(8192, 0);
    data
}

fn apply(hot: &mut Hot, stores: &[(Word, u64)]) {
    for &(word, value) in stores {
        match word {
            Word::Published => hot.published = value,
            Word::Reading => hot.reading = value,
            Word::Epoch => hot.epoch = value,
            Word::Consumed => hot.consumed = value,
            Word::NextEnd => hot.next_end = value,
            Word::OwedEpoch => hot.owed_epoch = value,
            Word::OwedCause => hot.owed_cause = value,
            Word::At => hot.at = value,
            Word::PoisonAt => hot.poison_at = value,
            Word::PoisonDeaths => hot.poison_deaths = value,
            other => panic!("{other:?} is not stored here"),
        }
    }
}

fn lasting_of(roots: usize) -> Lasting {
    let root = |n| RootMark { id: n as i64, rules: n as u64, identity: u64::MAX };
    Lasting {
        buffer_id: [7; 16],
        boot_id: "boot".into(),
        journal_id: [9; 16],
        roots: (0..roots).map(root).collect(),
    }
}

#[test]
fn what_a_buffer_says_of_itself_is_read_back() {
    assert_eq!(decode(&encode(&lasting_of(3))), Ok(lasting_of(3)));
    let many = decode(&encode(&lasting_of(5_000))).unwrap();
    assert!(many.roots.len() > 100 && many.roots.len() < 5_000, "as many as there is room for");
    let followed = [encode(&lasting_of(3)), vec![7; 100]].concat();
    assert_eq!(decode(&followed), Ok(lasting_of(3)));
}

#[test]
fn a_whole_slot_and_an_empty_one_are_not_damaged() {
    let records = [record(b"a"), record(b"bb")];
    let whole = records.concat().len();
    assert_eq!(walk(&data(&records)), Torn { whole, damaged: None });
    assert_eq!(walk(&records.concat()), Torn { whole, damaged: None });
    assert_eq!(walk(&[0; 4096]), Torn { whole: 0, damaged: None });
}

/// What a read leaves that a fault ended in the middle of an event (seen with pages that were not locked).
#[test]
fn half_an_event_is_damaged_and_those_before_it_are_kept() {
    let (good, half) = (record(b"good"), record(b"half"));
    // A cut after which only zeros are missing that the event has anyway leaves a whole event.
    for cut in 1..half.len() - 8 {
        let found = walk(&data(&[good.clone(), half[..cut].to_vec()]));
        assert!(found.damaged.is_some(), "{cut} of {} bytes", half.len());
        assert_eq!(found.whole, good.len());
    }
    let empty_info = event(libc::FAN_MODIFY, &[info(2, &[0; 28])]);
    assert!(walk(&data(&[empty_info])).damaged.is_some(), "an info record without a handle");
    let mut far = data(std::slice::from_ref(&good));
    far[5000] = 1;
    assert!(walk(&far).damaged.is_some(), "something behind a hole");
}

#[test]
fn a_read_that_was_cut_short_is_published() {
    let data = data(&[record(b"a"), record(b"b")]);
    let one = record(b"a").len() as u64;
    let hot = Hot { published: one, reading: 1, slot_at: one, slot_bytes: 4096, ..idle() };
    let found = recover(&hot, &data, 5).unwrap();
    assert_eq!((found.left, found.torn, found.damaged), (0..2 * one as usize, Some(one as usize), None));
    // Killed after it was published.
    let hot = Hot { published: 2 * one, ..hot };
    let found = recover(&hot, &data, 5).unwrap();
    assert_eq!((found.left, found.torn), (0..2 * one as usize, None));
}

#[test]
fn a_read_into_pages_that_were_not_locked_owes_a_gap() {
    let hot = Hot { reading: 1, slot_bytes: 4096, locked: 0, ..idle() };
    let found = recover(&hot, &data(&[record(b"a")]), 5).unwrap();
    assert!(found.damaged.is_some());
    let mut after = hot;
    apply(&mut after, &found.stores);
    assert_eq!(after.owed(), Some(Cause::Damaged));
    assert_eq!(
        recover(&Hot { reading: 0, ..hot }, &data(&[]), 5).unwrap().damaged,
        None,
        "nothing was being read"
    );
}

#[test]
fn a_batch_counts_once_whether_or_not_the_buffer_was_reset() {
    let data = data(&[record(b"a"), record(b"b")]);
    let (one, two) = (record(b"a").len() as u64, 2 * record(b"a").len() as u64);
    let hot = Hot { published: two, next_end: one, ..idle() };
    assert_eq!(recover(&hot, &data, 5).unwrap().left, 0..two as usize, "not committed");
    let found = recover(&hot, &data, 6).unwrap();
    assert_eq!((found.left, found.taken), (one as usize..two as usize, true));
    let all = Hot { next_end: two, ..hot };
    assert_eq!(recover(&all, &data, 6).unwrap().left, 0..0);
}

#[test]
fn a_journal_that_went_back_or_ahead_does_not_fit() {
    for epoch in [0, 4, 7, u64::MAX] {
        assert_eq!(recover(&idle(), &data(&[]), epoch), Err(Unfit::Epoch), "{epoch}");
    }
}

#[test]
fn a_record_is_poison_after_three_deaths_at_it_and_another_counts_anew() {
    let data = data(&[record(b"a"), record(b"b")]);
    let mut hot = Hot { published: 2 * record(b"a").len() as u64, ..idle() };
    for deaths in 1..=limits::INTAKE_POISON_DEATHS {
        hot.at = 64;
        let stores = recover(&hot, &data, 5).unwrap().stores;
        apply(&mut hot, &stores);
        assert_eq!((hot.poison_at, hot.poison_deaths, hot.at), (64, deaths, NONE));
    }
    hot.at = 0;
    let stores = recover(&hot, &data, 5).unwrap().stores;
    apply(&mut hot, &stores);
    assert_eq!((hot.poison_at, hot.poison_deaths), (0, 1));
}

#[test]
fn deaths_at_a_record_that_was_committed_at_last_do_not_count_for_the_one_that_takes_its_place() {
    let data = data(&[record(b"a")]);
    let one = record(b"a").len() as u64;
    let mut hot = Hot { published: one, at: 0, ..idle() };
    let stores = recover(&hot, &data, 5).unwrap().stores;
    apply(&mut hot, &stores);
    assert_eq!((hot.poison_at, hot.poison_deaths), (0, 1));
    // The next try got through it, and died behind its commit.
    hot.next_end = one;
    let stores = recover(&hot, &data, 6).unwrap().stores;
    apply(&mut hot, &stores);
    assert_eq!(hot.published, 0);
    (hot.published, hot.at) = (one, 0);
    let stores = recover(&hot, &data, 6).unwrap().stores;
    apply(&mut hot, &stores);
    assert_eq!((hot.poison_at, hot.poison_deaths), (0, 1), "another record, which died once");
}

#[test]
fn a_death_between_two_records_is_nobodys() {
    let stores = recover(&idle(), &data(&[]), 5).unwrap().stores;
    assert!(stores.iter().all(|(word, _)| *word != Word::PoisonDeaths));
}

/// Buffers as a tracker leaves them, killed anywhere.
fn left_behind() -> impl Strategy<Value = (Hot, Vec<u8>, u64)> {
    (0usize..4, 0usize..4, 0usize..4, 0u8..6, any::<bool>()).prop_map(|(records, done, torn, kind, cut)| {
        let all: Vec<Vec<u8>> = (0..records + torn).map(|n| record(&[b'a' + n as u8])).collect();
        let one = record(b"a").len() as u64;
        let done = done.min(records) as u64;
        let mut data = data(&all);
        let mut hot = Hot { published: records as u64 * one, consumed: 0, ..idle() };
        let mut epoch = hot.epoch;
        match kind {
            0 => {
                hot.reading = 1;
                hot.slot_at = hot.published;
                hot.slot_bytes = 4096;
                if cut && torn > 0 {
                    let end = (records + torn) * one as usize;
                    data[end - one as usize / 2..end].fill(0);
                }
            }
            1 => {
                hot.next_end = done * one;
                epoch += 1;
            }
            2 => hot.consumed = done * one,
            3 => {
                // Reset, and the last two stores of it missing.
                (hot.consumed, hot.next_end, hot.published) = (hot.published, hot.published, 0);
            }
            _ => hot.at = if cut { 0 } else { NONE },
        }
        if kind != 0 {
            data[records * one as usize..].fill(0);
        }
        (hot, data, epoch)
    })
}

proptest! {
    #[test]
    fn a_recovery_killed_at_any_store_finds_the_same_at_the_next((hot, data, epoch) in left_behind()) {
        let whole = recover(&hot, &data, epoch).unwrap();
        let mut end = hot;
        apply(&mut end, &whole.stores);
        prop_assert_eq!(end.reading, 0);
        for killed_after in 0..=whole.stores.len() {
            let mut now = hot;
            apply(&mut now, &whole.stores[..killed_after]);
            let again = recover(&now, &data, epoch).unwrap();
            prop_assert_eq!(&again.left, &whole.left, "after {} stores", killed_after);
            apply(&mut now, &again.stores);
            prop_assert_eq!(now.owed(), end.owed());
            prop_assert_eq!((now.published, now.consumed, now.epoch), (end.published, end.consumed, end.epoch));
        }
    }

    #[test]
    fn a_commit_killed_at_any_store_counts_once((done, records) in (0u64..4).prop_flat_map(|d| (Just(d), d..5))) {
        let one = record(b"a").len() as u64;
        let data = data(&(0..records).map(|n| record(&[n as u8 + 1])).collect::<Vec<_>>());
        let hot = Hot { published: records * one, next_end: done * one, ..idle() };
        let stores = finish(&hot, true);
        for killed_after in 0..=stores.len() {
            let mut now = hot;
            apply(&mut now, &stores[..killed_after]);
            let found = recover(&now, &data, 6).unwrap();
            prop_assert_eq!(found.left.len() as u64, (records - done) * one, "after {} stores", killed_after);
        }
    }

    #[test]
    fn random_words_and_bytes_never_panic_and_never_lead_outside(
        words in proptest::array::uniform13(prop_oneof![0u64..5000, any::<u64>(), 0u64..2]),
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        epoch in 0u64..5,
    ) {
        let [published, reading, slot_at, slot_bytes, hot_epoch, consumed, next_end, owed_epoch, owed_cause, at,
            poison_at, poison_deaths, locked] = words;
        let hot = Hot {
            published, reading, slot_at, slot_bytes, epoch: hot_epoch % 5, consumed, next_end, owed_epoch,
            owed_cause, at, poison_at, poison_deaths: poison_deaths % 9, locked,
        };
        if let Ok(found) = recover(&hot, &bytes, epoch) {
            prop_assert!(found.left.end <= bytes.len());
        }
        walk(&bytes);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_changed_byte_of_the_head_is_noticed(at in 0usize..150, flip in 1u8..) {
        let mut bytes = encode(&lasting_of(1));
        let at = at % bytes.len();
        bytes[at] ^= flip;
        prop_assert!(decode(&bytes).is_err());
    }
}
