//! A start that is killed at any of its steps, and the one after it.

use shared::entry::Cause;
use tests::programs::killable;

use crate::world::World;

#[test]
fn a_record_that_kills_the_tracker_three_times_is_skipped_with_a_gap() {
    let Some(mut world) = World::new(&killable()) else { return };
    world.start();
    world.seen = world.journal().head_and_floor().unwrap().0;
    world.tracker.kill();
    world.write("a/poison");
    world.write("b/behind-it");
    for deaths in 1..=3 {
        world.tracker.env = vec![("LONGSHORE_KILL", "translating:1".to_owned())];
        world.tracker.spawn();
        world.tracker.wait();
        if deaths == 2 {
            // A death that is not the record's, after the second was counted.
            world.tracker.env = vec![("LONGSHORE_KILL", "recovering:3".to_owned())];
            world.tracker.spawn();
            world.tracker.wait();
        }
        assert_eq!(world.gaps(), [], "after {deaths} deaths");
    }
    world.tracker.env.clear();
    world.start();
    assert_eq!(world.gaps(), world.both(Cause::Poison));
    world.assert_recorded(&["behind-it"]);
    world.write("a/later");
    world.tracker.kill();
    world.start();
    assert_eq!(world.gaps().len(), 2);
    world.assert_recorded(&["later"]);
}

#[test]
fn a_first_start_that_was_killed_before_its_gap_row_is_made_up_for() {
    for (point, gap) in [("transaction:1", true), ("committed:1", false)] {
        let Some(mut world) = World::new(&killable()) else { return };
        world.tracker.env = vec![("LONGSHORE_KILL", point.to_owned())];
        world.tracker.spawn();
        world.tracker.wait();
        world.tracker.env.clear();
        world.write("a/while-dead");
        let said = world.start();
        assert_eq!(said.ends_with("no gap"), !gap, "{point}: {said}");
        let starts = world.gaps().into_iter().filter(|(_, cause)| *cause == Cause::Start).count();
        assert_eq!(starts, 2, "{point}: {:?}", world.gaps());
        world.assert_recorded(&["while-dead"]);
    }
}

/// Starts it again and again, killed at one step of its placing after the other, until there is none left: `before`
/// makes a world, and `after` looks at what the start after the kill made of it.
fn killed_at_each_step_of_placing(before: impl Fn() -> Option<World>, after: impl Fn(&World, &str)) {
    for step in 1.. {
        let Some(mut world) = before() else { return };
        world.tracker.env = vec![("LONGSHORE_KILL", format!("placing:{step}"))];
        world.tracker.spawn();
        if world.tracker.is_ready() {
            assert!(step > 2, "it is never killed");
            return;
        }
        world.tracker.wait();
        world.tracker.env.clear();
        world.write("a/while-dead");
        let said = world.start();
        after(&world, &format!("step {step}: {said}"));
        assert_eq!(world.tracker.names().len(), 2, "step {step}: {:?}", world.tracker.names());
        let gaps = world.gaps();
        world.write("b/later");
        world.tracker.kill();
        let said = world.start();
        assert!(said.ends_with("no gap"), "step {step}: {said}");
        assert_eq!(world.gaps(), gaps, "step {step}");
        world.assert_recorded(&["later"]);
    }
}

#[test]
fn a_first_start_that_is_killed_at_any_step_of_placing_is_a_gap_like_any_first_start() {
    // The first ones come with the names of the roots.
    let begun = || World::new(&killable());
    killed_at_each_step_of_placing(begun, |world, step| assert_all_gaps(world, &world.gaps()[2..], step));
}

#[test]
fn a_new_group_for_an_old_buffer_that_is_killed_at_any_step_of_placing_is_a_gap() {
    let remounted = || {
        let mut world = World::started_as(&killable())?;
        world.tracker.kill();
        world.fs.unmount().unwrap();
        world.fs.mount().unwrap();
        world.write("a/unseen");
        Some(world)
    };
    killed_at_each_step_of_placing(remounted, |world, step| assert_all_gaps(world, &world.gaps(), step));
}

fn assert_all_gaps(world: &World, gaps: &[(String, Cause)], step: &str) {
    let causes = [Cause::Start, Cause::Remount, Cause::Adoption].map(|cause| world.both(cause));
    assert!(causes.iter().any(|both| both == gaps), "{step}: {gaps:?}");
}

#[test]
fn a_start_that_makes_another_versions_buffer_anew_and_is_killed_meanwhile_is_a_gap_at_most() {
    let stopped = || {
        let mut world = World::started_as(&killable())?;
        world.tracker.stop();
        world.change_the_layout();
        Some(world)
    };
    let nothing_lost = |world: &World, step: &str| {
        if step.ends_with("no gap") {
            assert_eq!(world.gaps(), [], "{step}");
            world.assert_recorded(&["while-dead"]);
        } else {
            assert_eq!(world.gaps(), world.both(Cause::Adoption), "{step}");
        }
    };
    killed_at_each_step_of_placing(stopped, nothing_lost);
}
