//! The decisions; what the kernel answers is tested with the whole program.

use super::*;
use crate::host::Linux;

const THEN: Generation = Generation { subvolume: [1; 16], inode: 256, generation: 100, mount: Some(7) };

fn why(cause: Cause, recorded: Option<Generation>, now: Generation) -> String {
    since(cause, recorded, now).unwrap_err().to_string()
}

#[test]
fn what_was_lost_while_the_disk_stayed_the_same_is_searched_for() {
    let now = Generation { generation: 150, ..THEN };
    for cause in [Cause::Start, Cause::Boot, Cause::Overflow, Cause::Unresolved, Cause::Adoption] {
        assert_eq!(since(cause, Some(THEN), now).unwrap(), 100, "{cause}");
    }
    assert_eq!(since(Cause::Start, Some(THEN), THEN).unwrap(), 100);
}

#[test]
fn changed_rules_and_what_was_asked_for_mean_everything() {
    for cause in [Cause::Rules, Cause::Collapse, Cause::Request, Cause::Identity] {
        assert!(matches!(since(cause, Some(THEN), THEN), Err(Whole::NotAsked)), "{cause}");
    }
}

#[test]
fn another_subvolume_or_an_older_state_of_it_is_looked_at_as_a_whole() {
    assert!(why(Cause::Start, None, THEN).contains("no generation"));
    assert!(why(Cause::Start, Some(THEN), Generation { subvolume: [2; 16], ..THEN }).contains("subvolume"));
    assert!(why(Cause::Start, Some(THEN), Generation { inode: 257, ..THEN }).contains("directory"));
    assert!(why(Cause::Start, Some(THEN), Generation { generation: 99, ..THEN }).contains("older"));
}

#[test]
fn a_later_mount_has_all_that_was_committed_only_after_an_orderly_end() {
    let remounted = Generation { mount: Some(8), ..THEN };
    assert!(why(Cause::Start, Some(THEN), remounted).contains("mounted anew"));
    assert!(
        why(Cause::Start, Some(Generation { mount: Some(NO_MOUNT), ..THEN }), THEN).contains("mounted anew")
    );
    assert_eq!(since(Cause::Start, Some(Generation { mount: None, ..THEN }), remounted).unwrap(), 100);
}

#[test]
fn a_generation_is_recorded_only_after_what_was_queued_when_it_had_its_age_is_committed() {
    let second = 1_000_000_000;
    let mut one = Generations { read: vec![(RootId(1), THEN)], ..Generations::default() };
    let commit = Commit::default();
    one.drained(4 * second);
    one.complete(&Linux::default(), &[], 4 * second);
    assert_eq!(one.take(&commit), [], "an event may be late");
    one.drained(6 * second);
    assert_eq!(one.take(&commit), [], "what was read then is not committed");
    one.complete(&Linux::default(), &[], 7 * second);
    let newer = Commit { generations: vec![(RootId(1), THEN)], ..Commit::default() };
    let mut other = Generations { ready: one.ready.clone(), ..Generations::default() };
    assert_eq!(other.take(&newer), [], "a gap has recorded a newer one");
    assert_eq!(one.take(&commit), [(RootId(1), THEN)]);
    assert_eq!(one.take(&commit), [], "it is recorded once");
}

#[test]
fn a_search_that_took_long_is_not_soon_followed_by_another() {
    let mut pace = Pace::default();
    assert!(pace.is_rested(0));
    pace.searched(100, 350);
    assert!(!pace.is_rested(350) && !pace.is_rested(350 + 20 * 250 - 1));
    assert!(pace.is_rested(350 + 20 * 250));
}
