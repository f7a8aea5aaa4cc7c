//! The decisions; what the kernel answers is tested with the whole program.

use super::*;

const THEN: Generation = Generation { subvolume: [1; 16], inode: 256, generation: 100 };

fn why(cause: Cause, recorded: Option<Generation>, now: Generation) -> String {
    since(cause, recorded, now).unwrap_err().to_string()
}

#[test]
fn what_was_lost_while_the_disk_stayed_the_same_is_searched_for() {
    let now = Generation { generation: 150, ..THEN };
    for cause in
        [Cause::Start, Cause::Boot, Cause::Overflow, Cause::Remount, Cause::Unresolved, Cause::Adoption]
    {
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

fn ready(read_ns: i64) -> Generations {
    Generations { read: vec![(RootId(1), THEN)], read_ns, drained: false }
}

#[test]
fn a_generation_is_recorded_only_after_what_was_queued_when_it_had_its_age_is_read() {
    let second = 1_000_000_000;
    let mut one = ready(0);
    assert_eq!(one.for_commit(&[], false, 20 * second), []);
    one.drained(4 * second);
    assert_eq!(one.for_commit(&[], false, 20 * second), []);
    one.drained(6 * second);
    assert_eq!(one.for_commit(&[], true, 20 * second), [], "some event is not understood yet");
    assert_eq!(one.for_commit(&[], false, 20 * second), [(RootId(1), THEN)]);
    assert_eq!(one.for_commit(&[], false, 21 * second), [], "it is recorded once");
}
