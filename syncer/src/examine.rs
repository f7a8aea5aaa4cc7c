//! Examining a path: its state on disk against the row the catalog has for it. Pure; events are hints, and an entry
//! may be examined twice, late or out of order.

use shared::entry::{Handle, Mask};
use shared::limits;

use crate::catalog::{Known, Origin, Row, RowState};
use crate::leg::{Holds, Sha1};
use crate::tree::{Kind, Stat};

/// What follows from the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The destination has it, and the row says so.
    Same,
    /// Only the row's local side is behind: nothing is sent.
    Refresh,
    /// Mode, owner, times or attributes differ, which this leg holds; the content does not.
    Attributes,
    /// Only reading tells: compare with the row's hash, then [`after_read`].
    Compare,
    /// New, or surely changed.
    Send,
    /// It would replace an object that is not ours.
    HoldForeign,
    /// The leg cannot hold what stands there now, and still has an object of what stood there before.
    Displaced,
}

/// What the leg and the filesystem let one conclude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub holds: Holds,
    /// Inode numbers and ctime say something on this filesystem.
    pub stable_inodes: bool,
}

/// Compares what was just looked at with the row of the same key (so both are directories, or neither is).
pub fn compare(row: Option<&Row>, stat: &Stat, mask: Mask, terms: Terms) -> Verdict {
    let holds = terms.holds.holds(stat.kind);
    let Some(row) = row else { return if holds { Verdict::Send } else { Verdict::Refresh } };
    if row.stat.kind != stat.kind {
        return match row.origin {
            Origin::ListedForeign => Verdict::HoldForeign,
            _ if holds => Verdict::Send,
            _ if row.has_object() => Verdict::Displaced,
            _ => Verdict::Refresh,
        };
    }
    if !holds {
        return if row.stat == *stat { Verdict::Same } else { Verdict::Refresh };
    }
    if row.origin != Origin::Made {
        return compare_listed(row, stat, mask, terms);
    }
    // Extended attributes show in ctime alone, and of two changes in one tick of the filesystem's clock only once.
    let provable = row.settled || !terms.holds.attributes || !mask.contains(Mask::ATTRIB);
    let attributes = match row.stat == *stat {
        true if provable => Verdict::Same,
        true => Verdict::Attributes,
        false => metadata_only(&row.stat, stat, terms.holds),
    };
    match stat.kind {
        Kind::Dir => attributes,
        Kind::File => compare_file(row, stat, mask, terms, attributes),
        _ => {
            let same_node = row.stat.rdev == stat.rdev && row.stat.size == stat.size;
            // Making a link or a node anew costs nothing, and ext4 gives a new one the inode of the old one.
            let same_inode = !terms.stable_inodes || is_same_inode(&row.stat, stat);
            let untouched = row.stat.mtime_ns == stat.mtime_ns && same_inode;
            if same_node && untouched { attributes } else { Verdict::Send }
        }
    }
}

/// True if [`compare`] would say `Same`, whatever the events were but one of attributes: it is enough to count it. Asked
/// of every path of a rescan, for which no event tells.
pub fn is_same(known: &Known, stat: &Stat, terms: Terms) -> bool {
    if known.stat != *stat || known.state != RowState::Present {
        return false;
    }
    let holds = terms.holds.holds(stat.kind);
    let proven = stat.kind != Kind::File || (known.settled && terms.stable_inodes);
    !holds || (known.origin == Origin::Made && proven)
}

fn compare_file(row: &Row, stat: &Stat, mask: Mask, terms: Terms, attributes: Verdict) -> Verdict {
    let old = &row.stat;
    if old.size != stat.size {
        return Verdict::Send;
    }
    let equal = old.mtime_ns == stat.mtime_ns && (is_same_inode(old, stat) || !terms.stable_inodes);
    let provable = row.settled && (terms.stable_inodes || !mask.intersects(Mask::MODIFY | Mask::CLOSE_WRITE));
    if equal && (provable || !mask.may_have_new_content()) {
        return attributes;
    }
    // A chmod or chown: the events say that nobody wrote or put another file there, and size and time agree.
    let same_file = (old.ino, old.btime_ns) == (stat.ino, stat.btime_ns);
    if same_file && old.mtime_ns == stat.mtime_ns && mask == Mask::ATTRIB {
        return attributes;
    }
    if row.sha1.is_some() { Verdict::Compare } else { Verdict::Send }
}

/// The same inode, in the same generation, untouched since.
fn is_same_inode(old: &Stat, new: &Stat) -> bool {
    (old.ino, old.btime_ns, old.ctime_ns) == (new.ino, new.btime_ns, new.ctime_ns)
}

/// Against a row that only says what a listing said: size and time prove equality, as they do for rclone, unless somebody
/// wrote to the file, or it is our own of an unknown moment, and the hash can tell.
fn compare_listed(row: &Row, stat: &Stat, mask: Mask, terms: Terms) -> Verdict {
    let equal = stat.kind == Kind::Dir
        || (row.stat.size == stat.size && row.stat.mtime_ns == held_time(stat.mtime_ns, terms.holds));
    let is_doubtful = row.fuzzy || mask.intersects(Mask::MODIFY | Mask::CLOSE_WRITE);
    if equal && is_doubtful && stat.kind == Kind::File && row.sha1.is_some() {
        Verdict::Compare
    } else if equal {
        if terms.holds.attributes { Verdict::Attributes } else { Verdict::Refresh }
    } else if row.origin == Origin::ListedForeign {
        Verdict::HoldForeign
    } else if stat.kind == Kind::File && row.stat.size == stat.size && row.sha1.is_some() {
        Verdict::Compare
    } else {
        Verdict::Send
    }
}

/// After the content was read and its hash is equal or not.
pub fn after_read(
    row: &Row,
    stat: &Stat,
    handle: Option<&Handle>,
    sha1: &Sha1,
    mask: Mask,
    holds: Holds,
) -> Verdict {
    if row.sha1.as_ref() != Some(sha1) || row.stat.size != stat.size {
        return Verdict::Send;
    }
    // A name that left a group of hard links: its object is still one with the others'.
    let split = !row.is_of(stat, handle) && (row.stat.nlink > 1 || stat.nlink > 1);
    if holds.hard_links && split && row.origin == Origin::Made {
        return Verdict::Send;
    }
    let may_hide = !row.settled && mask.contains(Mask::ATTRIB);
    if holds.attributes && (row.origin != Origin::Made || may_hide) {
        return Verdict::Attributes;
    }
    metadata_only(&row.stat, stat, holds)
}

/// Equal content: what has to be done for the rest. A leg that holds nothing but names, content and times needs the
/// object anew when its time changed.
fn metadata_only(old: &Stat, new: &Stat, holds: Holds) -> Verdict {
    if holds.attributes {
        // Every change of mode, owner or attributes shows in ctime.
        let untouched = (old.ctime_ns, old.mtime_ns, old.mode, old.uid, old.gid)
            == (new.ctime_ns, new.mtime_ns, new.mode, new.uid, new.gid);
        return if untouched { Verdict::Refresh } else { Verdict::Attributes };
    }
    let time_differs = held_time(old.mtime_ns, holds) != held_time(new.mtime_ns, holds);
    if new.kind == Kind::File && time_differs { Verdict::Send } else { Verdict::Refresh }
}

/// A time as the leg keeps it.
pub fn held_time(mtime_ns: i64, holds: Holds) -> i64 {
    if holds.nanoseconds { mtime_ns } else { mtime_ns.div_euclid(1_000_000).saturating_mul(1_000_000) }
}

/// Whether content that was read at `now_ns` (by the filesystem's clock) is settled: its times are old enough for
/// every later change to show in them.
pub fn is_settled(stat: &Stat, now_ns: i64) -> bool {
    let age = limits::SETTLE_AGE.as_nanos() as i64;
    stat.mtime_ns.max(stat.ctime_ns) < now_ns.saturating_sub(age)
}

/// The row after the destination has `stat` with `sha1`.
pub fn made_row(stat: &Stat, sha1: Option<Sha1>, object: String, handle: Option<Handle>, now_ns: i64) -> Row {
    Row {
        stat: *stat,
        handle,
        sha1,
        object,
        origin: Origin::Made,
        settled: is_settled(stat, now_ns),
        fuzzy: false,
        state: RowState::Present,
        state_since_ns: now_ns,
        state_run: 0,
        revision: 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const B2: Terms = Terms {
        holds: Holds {
            all_kinds: false,
            attributes: false,
            hard_links: false,
            writers: true,
            nanoseconds: false,
        },
        stable_inodes: true,
    };
    const DIR: Terms = Terms {
        holds: Holds {
            all_kinds: true,
            attributes: true,
            hard_links: true,
            writers: false,
            nanoseconds: true,
        },
        stable_inodes: true,
    };
    const WRITTEN: Mask = Mask::MODIFY.union(Mask::CLOSE_WRITE);

    fn stat(kind: Kind) -> Stat {
        Stat {
            kind,
            size: 10,
            mtime_ns: 1_000_000_001,
            ctime_ns: 1_000_000_002,
            btime_ns: Some(5),
            ino: 77,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
        }
    }

    fn row(kind: Kind) -> Row {
        let mut row = made_row(&stat(kind), Some([1; 20]), "v1".into(), None, i64::MAX);
        row.settled = true;
        row
    }

    fn file(change: impl Fn(&mut Stat)) -> Stat {
        let mut stat = stat(Kind::File);
        change(&mut stat);
        stat
    }

    #[test]
    fn an_equal_stat_proves_sameness_only_against_a_settled_row() {
        assert_eq!(compare(Some(&row(Kind::File)), &stat(Kind::File), WRITTEN, B2), Verdict::Same);
        let unsettled = Row { settled: false, ..row(Kind::File) };
        assert_eq!(compare(Some(&unsettled), &stat(Kind::File), WRITTEN, B2), Verdict::Compare);
        assert_eq!(compare(Some(&unsettled), &stat(Kind::File), Mask::UNKNOWN, B2), Verdict::Compare);
        assert_eq!(compare(Some(&unsettled), &stat(Kind::File), Mask::ATTRIB, B2), Verdict::Same);
    }

    #[test]
    fn attributes_that_changed_within_a_tick_of_the_clock_are_set_again() {
        for kind in [Kind::File, Kind::Dir] {
            let unsettled = Row { settled: false, ..row(kind) };
            assert_eq!(compare(Some(&unsettled), &stat(kind), Mask::ATTRIB, DIR), Verdict::Attributes);
            assert_eq!(compare(Some(&row(kind)), &stat(kind), Mask::ATTRIB, DIR), Verdict::Same);
        }
    }

    fn rows() -> impl Strategy<Value = (Row, Stat)> {
        let kinds = prop_oneof![Just(Kind::File), Just(Kind::Dir), Just(Kind::Symlink), Just(Kind::Fifo)];
        let origins = prop_oneof![5 => Just(Origin::Made), 1 => Just(Origin::ListedOurs), 1 => Just(Origin::ListedForeign)];
        let states =
            prop_oneof![5 => Just(RowState::Present), 1 => Just(RowState::Absent), 1 => Just(RowState::Held)];
        (kinds, origins, states, any::<[bool; 6]>(), 1..3u64).prop_map(
            |(kind, origin, state, [settled, hash, object, time, ctime, mode], nlink)| {
                let seen = Stat { nlink, ..stat(kind) };
                let mut known = Row { stat: seen, origin, state, settled, ..row(kind) };
                known.sha1 = known.sha1.filter(|_| hash);
                known.object = if object { known.object } else { String::new() };
                // Most are equal: only those are asked about.
                known.stat.mtime_ns += i64::from(time && ctime);
                known.stat.ctime_ns += i64::from(ctime && mode);
                known.stat.mode += u32::from(mode && time);
                (known, seen)
            },
        )
    }

    proptest! {
        #[test]
        fn what_a_rescan_passes_over_is_what_the_comparison_calls_the_same(
            (row, seen) in rows(),
            stable_inodes: bool,
            b2: bool,
            bits in 0u32..256,
        ) {
            let terms = Terms { stable_inodes, ..if b2 { B2 } else { DIR } };
            if is_same(&row.known(), &seen, terms) {
                let mask = Mask::from_bits_retain(bits).difference(Mask::ATTRIB);
                prop_assert_eq!(compare(Some(&row), &seen, mask, terms), Verdict::Same);
            }
        }
    }

    #[test]
    fn a_rescan_passes_over_settled_files_and_directories() {
        for (terms, kind) in [(B2, Kind::File), (DIR, Kind::File), (DIR, Kind::Dir), (B2, Kind::Dir)] {
            let row = row(kind);
            assert!(is_same(&row.known(), &row.stat, terms), "{kind}");
        }
    }

    #[test]
    fn where_inodes_say_nothing_a_written_file_is_read_even_when_settled() {
        let terms = Terms { stable_inodes: false, ..B2 };
        let moved = file(|s| s.ino = 99);
        assert_eq!(compare(Some(&row(Kind::File)), &moved, WRITTEN, terms), Verdict::Compare);
        assert_eq!(compare(Some(&row(Kind::File)), &moved, Mask::UNKNOWN, terms), Verdict::Refresh);
    }

    #[test]
    fn another_size_is_sent_and_another_time_is_read_first() {
        assert_eq!(compare(Some(&row(Kind::File)), &file(|s| s.size = 11), WRITTEN, B2), Verdict::Send);
        assert_eq!(
            compare(Some(&row(Kind::File)), &file(|s| s.mtime_ns += 1), WRITTEN, B2),
            Verdict::Compare
        );
    }

    #[test]
    fn a_reused_inode_with_equal_size_and_time_is_read() {
        let reused = file(|s| s.ctime_ns += 9);
        assert_eq!(compare(Some(&row(Kind::File)), &reused, Mask::CREATE | WRITTEN, B2), Verdict::Compare);
    }

    #[test]
    fn a_chmod_reads_nothing() {
        let changed = file(|s| {
            s.mode = 0o600;
            s.ctime_ns += 9;
        });
        assert_eq!(compare(Some(&row(Kind::File)), &changed, Mask::ATTRIB, B2), Verdict::Refresh);
        assert_eq!(compare(Some(&row(Kind::File)), &changed, Mask::ATTRIB, DIR), Verdict::Attributes);
        assert_eq!(compare(Some(&row(Kind::File)), &changed, Mask::UNKNOWN, DIR), Verdict::Compare);
    }

    #[test]
    fn a_chmod_of_what_came_under_the_name_meanwhile_is_read() {
        // ext4 gives the inode of a deleted file to the next one, and `cp -p` keeps the time.
        let replaced = file(|s| {
            s.btime_ns = Some(6);
            s.ctime_ns += 9;
        });
        assert_eq!(compare(Some(&row(Kind::File)), &replaced, Mask::ATTRIB, DIR), Verdict::Compare);
        let changed = file(|s| s.ctime_ns += 9);
        for more in [Mask::CREATE, Mask::DELETE, Mask::RENAME] {
            let verdict = compare(Some(&row(Kind::File)), &changed, Mask::ATTRIB | more, DIR);
            assert_eq!(verdict, Verdict::Compare, "{more:?}");
        }
    }

    #[test]
    fn equal_content_with_a_new_time_is_sent_only_where_the_time_lives_in_the_object() {
        let touched = file(|s| s.mtime_ns += 5_000_000);
        assert_eq!(
            after_read(&row(Kind::File), &touched, None, &[1; 20], Mask::UNKNOWN, B2.holds),
            Verdict::Send
        );
        assert_eq!(
            after_read(&row(Kind::File), &touched, None, &[1; 20], Mask::UNKNOWN, DIR.holds),
            Verdict::Attributes
        );
        let same_ms = file(|s| s.mtime_ns += 5);
        assert_eq!(
            after_read(&row(Kind::File), &same_ms, None, &[1; 20], Mask::UNKNOWN, B2.holds),
            Verdict::Refresh
        );
        assert_eq!(
            after_read(&row(Kind::File), &same_ms, None, &[2; 20], Mask::UNKNOWN, B2.holds),
            Verdict::Send
        );
    }

    #[test]
    fn an_unsettled_file_that_was_not_touched_is_read_and_not_written() {
        let read = |row: &Row, mask, terms: Terms| {
            after_read(row, &stat(Kind::File), None, &[1; 20], mask, terms.holds)
        };
        let unsettled = Row { settled: false, ..row(Kind::File) };
        assert_eq!(read(&unsettled, Mask::UNKNOWN, DIR), Verdict::Refresh);
        let attributes = WRITTEN | Mask::ATTRIB;
        assert_eq!(read(&unsettled, attributes, DIR), Verdict::Attributes, "an ACL may have changed, too");
        assert_eq!(read(&unsettled, attributes, B2), Verdict::Refresh);
        assert_eq!(read(&row(Kind::File), attributes, DIR), Verdict::Refresh);
        let acl = file(|s| s.ctime_ns += 9);
        assert_eq!(
            after_read(&row(Kind::File), &acl, None, &[1; 20], Mask::UNKNOWN, DIR.holds),
            Verdict::Attributes
        );
    }

    #[test]
    fn an_object_of_a_listing_is_believed_by_its_hash_once_its_file_was_written() {
        let listed = Row { origin: Origin::ListedOurs, ..row(Kind::File) };
        let listed = Row { stat: Stat { mtime_ns: 1_000_000_000, ..listed.stat }, ..listed };
        let compared = |row: &Row, mask| compare(Some(row), &stat(Kind::File), mask, B2);
        assert_eq!(compared(&listed, Mask::UNKNOWN), Verdict::Refresh);
        assert_eq!(compared(&listed, Mask::UNKNOWN | Mask::MODIFY), Verdict::Compare);
        let of_an_intent = Row { fuzzy: true, ..listed.clone() };
        assert_eq!(compared(&of_an_intent, Mask::UNKNOWN), Verdict::Compare);
        assert_eq!(
            compared(&Row { sha1: None, ..listed }, WRITTEN),
            Verdict::Refresh,
            "nothing to compare with"
        );
    }

    #[test]
    fn an_equal_object_of_a_listing_is_adopted_and_a_foreign_one_that_differs_is_held() {
        let mut listed = row(Kind::File);
        listed.origin = Origin::ListedForeign;
        listed.stat = Stat { mtime_ns: 1_000_000_000, ..listed.stat };
        assert_eq!(compare(Some(&listed), &stat(Kind::File), Mask::UNKNOWN, B2), Verdict::Refresh);
        assert_eq!(compare(Some(&listed), &file(|s| s.size = 9), Mask::UNKNOWN, B2), Verdict::HoldForeign);
        listed.origin = Origin::ListedOurs;
        assert_eq!(compare(Some(&listed), &file(|s| s.size = 9), Mask::UNKNOWN, B2), Verdict::Send);
        assert_eq!(
            compare(Some(&listed), &file(|s| s.mtime_ns += 5_000_000), Mask::UNKNOWN, B2),
            Verdict::Compare
        );
    }

    #[test]
    fn kinds_a_leg_cannot_hold_only_stand_in_the_catalog() {
        assert_eq!(compare(None, &stat(Kind::Symlink), Mask::CREATE, B2), Verdict::Refresh);
        assert_eq!(compare(None, &stat(Kind::Symlink), Mask::CREATE, DIR), Verdict::Send);
        assert_eq!(compare(None, &stat(Kind::Dir), Mask::CREATE, B2), Verdict::Refresh);
    }

    #[test]
    fn a_file_that_became_a_symlink_leaves_an_object_that_has_to_go_first() {
        let link = stat(Kind::Symlink);
        assert_eq!(compare(Some(&row(Kind::File)), &link, Mask::CREATE, B2), Verdict::Displaced);
        assert_eq!(compare(Some(&row(Kind::File)), &link, Mask::CREATE, DIR), Verdict::Send);
    }

    #[test]
    fn a_symlink_made_anew_in_the_same_inode_with_the_same_time_is_sent() {
        let anew = Stat { ctime_ns: 9_000_000_000, btime_ns: Some(8_999_000_000), ..stat(Kind::Symlink) };
        assert_eq!(compare(Some(&row(Kind::Symlink)), &anew, Mask::CREATE, DIR), Verdict::Send);
    }

    #[test]
    fn a_name_that_left_its_hard_links_is_sent_even_with_equal_content() {
        let linked = Row { stat: Stat { nlink: 2, ..stat(Kind::File) }, ..row(Kind::File) };
        let alone = file(|s| s.ino = 99);
        assert_eq!(after_read(&linked, &alone, None, &[1; 20], Mask::UNKNOWN, DIR.holds), Verdict::Send);
        assert_eq!(after_read(&linked, &alone, None, &[1; 20], Mask::UNKNOWN, B2.holds), Verdict::Refresh);
    }

    #[test]
    fn an_inode_number_that_was_given_out_again_is_no_sign_of_a_link_that_stands() {
        let handle = |generation| Handle { kind: 1, bytes: vec![77, generation] };
        let linked = Row { stat: Stat { nlink: 2, ..stat(Kind::File) }, ..row(Kind::File) };
        let linked = Row { handle: Some(handle(1)), ..linked };
        let read = |handle: &Handle| {
            after_read(&linked, &file(|s| s.ctime_ns += 9), Some(handle), &[1; 20], Mask::UNKNOWN, DIR.holds)
        };
        assert_eq!(read(&handle(1)), Verdict::Attributes);
        assert_eq!(read(&handle(2)), Verdict::Send);
    }

    #[test]
    fn content_read_right_after_it_was_written_is_not_settled() {
        let stat = stat(Kind::File);
        assert!(!is_settled(&stat, stat.ctime_ns + 1));
        assert!(is_settled(&stat, stat.ctime_ns + 61_000_000_000));
    }
}
