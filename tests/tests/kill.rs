//! The tracker killed at every kind of moment under a storm: no change is lost, and nothing is compared again. And
//! with a part of it switched off the same check finds losses, so it is a check.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use tests::campaign::{Figures, Plan, run};
use tests::mount::available;

fn campaign(kills: u64, control: Option<(&'static str, &'static str)>) -> Option<Figures> {
    let worker = Path::new(env!("CARGO_BIN_EXE_kill-campaign")).to_owned();
    let plan = Plan { kills, seed: rand::random(), control, worker };
    let figures = ["ext4", "btrfs"].into_iter().all(available).then(|| run(plan))?;
    println!("{figures}");
    Some(figures)
}

#[test]
fn a_hundred_kills_under_a_storm_lose_no_change_and_need_no_rescan() {
    let Some(figures) = campaign(100, None) else { return };
    assert_eq!(figures.missing, Vec::<String>::new());
    assert_eq!(figures.gaps, Vec::<String>::new());
    assert_eq!(figures.different, Vec::<String>::new());
    assert!(figures.at_points > 20 && figures.torn_with_data > 0 && figures.runs > 0, "{figures}");
}

#[test]
fn without_the_recovery_of_reads_that_were_cut_short_changes_are_lost() {
    let Some(figures) = campaign(10, Some(("recovery", "read"))) else { return };
    assert_lost(&figures);
}

#[test]
fn without_a_buffer_that_outlives_the_process_changes_are_lost() {
    let Some(figures) = campaign(10, Some(("buffer", "published"))) else { return };
    assert_lost(&figures);
}

/// The mirror lacks them too, unless directories whose deletion was lost left doubts, which became a rescan.
fn assert_lost(figures: &Figures) {
    assert!(!figures.missing.is_empty(), "{figures}");
    assert!(!figures.different.is_empty() || !figures.gaps.is_empty(), "{figures}");
}
