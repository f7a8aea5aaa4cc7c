//! The order of effects, step by step.

use super::*;

const MS: i64 = 1_000_000;

struct Run {
    machine: Machine,
    now_ns: i64,
    doubts: DoubtState,
}

impl Run {
    fn new() -> Run {
        Run { machine: Machine::new(Cause::Start, false), now_ns: 0, doubts: DoubtState::default() }
    }

    /// A start that finds what an earlier instance left.
    fn adopting() -> Run {
        let mut run = Run { machine: Machine::new(Cause::Start, true), ..Run::new() };
        assert_eq!(run.on(Event::Begin), Command::Adopt);
        run
    }

    /// A tracker that waits for events.
    fn idle() -> Run {
        let mut run = Run::new();
        for event in [Event::Begin, Event::Placed, Event::Committed, Event::Done] {
            run.on(event);
        }
        assert_eq!(run.on(Event::Empty), idle());
        run
    }

    fn on(&mut self, event: Event) -> Command {
        self.machine.step(self.now_ns, event, self.doubts)
    }

    fn ask(&mut self, request: Request) -> Command {
        self.machine.request(request);
        self.on(Event::Woken { readable: false })
    }
}

fn idle() -> Command {
    Command::Wait { until_ns: None, listen: true }
}

fn some(events: u64, drained: bool) -> Event {
    Event::Read { events, bytes: events as usize * 90, drained }
}

#[test]
fn the_mark_comes_before_the_gap_row_and_both_before_readiness() {
    let mut run = Run::new();
    assert_eq!(run.on(Event::Begin), Command::Place);
    assert_eq!(run.on(Event::Placed), Command::CommitGap(Cause::Start));
    assert_eq!(run.on(Event::Committed), Command::Announce);
    assert_eq!(run.on(Event::Done), Command::Read);
    assert_eq!(run.on(Event::Empty), idle());
}

fn adopted(events: u64, gap: Option<Cause>) -> Event {
    Event::Adopted { events, bytes: events as usize * 90, gap }
}

#[test]
fn an_adopted_start_commits_what_was_recovered_then_announces_and_writes_no_gap() {
    let mut run = Run::adopting();
    assert_eq!(run.on(adopted(900, None)), Command::Commit);
    assert_eq!(run.on(Event::CommittedPart), Command::Commit);
    assert_eq!(run.on(Event::CommittedPart), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Announce);
    assert_eq!(run.on(Event::Done), Command::Read);
    assert_eq!(run.on(Event::Empty), idle());
}

#[test]
fn an_adopted_start_with_nothing_to_recover_goes_straight_on() {
    let mut run = Run::adopting();
    assert_eq!(run.on(adopted(0, None)), Command::Announce);
    assert_eq!(run.on(Event::Done), Command::Read);
}

#[test]
fn the_gap_of_an_adoption_is_committed_before_it_is_announced_and_nothing_recovered_is_left_out() {
    let mut run = Run::adopting();
    assert_eq!(run.on(adopted(9, Some(Cause::Rules))), Command::CommitGap(Cause::Rules));
    assert!(matches!(run.on(Event::NotCommitted), Command::Wait { until_ns: Some(_), listen: false }));
    run.now_ns = RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::CommitGap(Cause::Rules));
    assert_eq!(run.on(Event::Committed), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Announce);
}

#[test]
fn a_recovered_part_that_the_journal_refuses_is_tried_again_before_anything_is_read() {
    let mut run = Run::adopting();
    run.on(adopted(900, None));
    run.on(Event::CommittedPart);
    let wait = Command::Wait { until_ns: Some(RETRY_FIRST_NS), listen: false };
    assert_eq!(run.on(Event::NotCommitted), wait);
    run.now_ns = RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Announce);
}

#[test]
fn what_cannot_be_adopted_is_placed_anew_with_a_gap_of_that_cause() {
    let mut run = Run::adopting();
    assert_eq!(run.on(Event::NotAdopted(Cause::Damaged)), Command::Place);
    assert_eq!(run.on(Event::Placed), Command::CommitGap(Cause::Damaged));
    assert_eq!(run.on(Event::Committed), Command::Announce);
}

#[test]
fn a_flush_asked_for_during_an_adoption_waits_for_what_was_recovered_and_queued() {
    let mut run = Run::adopting();
    run.machine.request(Request::Flush(7));
    assert_eq!(run.on(adopted(5, None)), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Announce);
    assert_eq!(run.on(Event::Done), Command::CountQueued);
    assert_eq!(run.on(Event::Queued(2)), Command::Read);
    assert_eq!(run.on(some(2, true)), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Check { flush: true });
    assert_eq!(run.on(Event::Checked(Verdict::Intact)), Command::Answer(7));
}

#[test]
fn stopping_during_an_adoption_commits_what_was_recovered() {
    let mut run = Run::adopting();
    run.machine.request(Request::Stop);
    assert_eq!(run.on(adopted(5, None)), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Announce);
    assert_eq!(run.on(Event::Done), Command::CountQueued);
    assert_eq!(run.on(Event::Queued(0)), Command::Read);
    assert_eq!(run.on(Event::Empty), Command::End);
}

#[test]
fn a_gap_that_the_journal_refuses_is_tried_again_before_anything_is_announced() {
    let mut run = Run::new();
    run.on(Event::Begin);
    run.on(Event::Placed);
    assert!(matches!(run.on(Event::NotCommitted), Command::Wait { until_ns: Some(_), listen: false }));
    run.now_ns = RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::CommitGap(Cause::Start));
}

#[test]
fn after_a_wake_up_the_kernel_gets_time_to_merge() {
    let mut run = Run::idle();
    assert_eq!(run.on(Event::Woken { readable: true }), Command::Nap);
    assert_eq!(run.on(Event::Done), Command::Read);
}

#[test]
fn a_batch_is_committed_by_age_by_number_and_by_size() {
    let mut run = Run::idle();
    let age = limits::INTAKE_BATCH_AGE.as_nanos() as i64;
    assert_eq!(run.on(some(3, true)), Command::Wait { until_ns: Some(age), listen: true });
    run.now_ns = age;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Commit);
    assert_eq!(run.on(Event::Committed), idle());
    assert_eq!(run.on(some(limits::INTAKE_BATCH_EVENTS as u64, false)), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Read, "the queue may hold more");
    let full = Event::Read { events: 1, bytes: limits::INTAKE_BATCH_BYTES, drained: false };
    assert_eq!(run.on(full), Command::Commit);
}

#[test]
fn a_flush_counts_reads_commits_checks_and_then_answers() {
    let mut run = Run::idle();
    assert_eq!(run.ask(Request::Flush(7)), Command::CountQueued);
    assert_eq!(run.on(Event::Queued(10)), Command::Read);
    assert_eq!(run.on(some(6, false)), Command::Read);
    assert_eq!(run.on(some(6, false)), Command::Commit, "more than was queued has been read");
    assert_eq!(run.on(Event::Committed), Command::Read);
    assert_eq!(run.on(Event::Empty), Command::Check { flush: true });
    assert_eq!(run.on(Event::Checked(Verdict::Intact)), Command::Answer(7));
    assert_eq!(run.on(Event::Done), idle());
}

#[test]
fn a_flush_is_not_held_up_by_events_that_were_merged_away() {
    let mut run = Run::idle();
    run.ask(Request::Flush(7));
    assert_eq!(run.on(Event::Queued(10)), Command::Read);
    assert_eq!(run.on(some(4, true)), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Check { flush: true });
}

#[test]
fn a_flush_without_events_still_checks_the_mark() {
    let mut run = Run::idle();
    assert_eq!(run.ask(Request::Flush(7)), Command::CountQueued);
    assert_eq!(run.on(Event::Queued(0)), Command::Check { flush: true });
    assert_eq!(run.on(Event::Checked(Verdict::Intact)), Command::Answer(7));
}

#[test]
fn a_flush_that_finds_the_mark_gone_marks_writes_the_gap_and_then_answers() {
    let mut run = Run::idle();
    run.ask(Request::Flush(7));
    run.on(Event::Queued(0));
    assert_eq!(run.on(Event::Checked(Verdict::Unwatched)), Command::Place);
    assert_eq!(run.on(Event::Placed), Command::CommitGap(Cause::Remount));
    assert_eq!(run.on(Event::Committed), Command::Read);
    assert_eq!(run.on(Event::Empty), Command::Answer(7));
}

#[test]
fn a_flush_is_answered_when_no_root_is_there_or_none_can_be_marked() {
    let mut run = Run::idle();
    run.ask(Request::Flush(7));
    run.on(Event::Queued(0));
    assert_eq!(run.on(Event::Checked(Verdict::Absent)), Command::Answer(7));
    assert_eq!(run.on(Event::Done), Command::Wait { until_ns: None, listen: false });
    assert_eq!(run.ask(Request::Flush(8)), Command::Check { flush: true });
    assert_eq!(run.on(Event::Checked(Verdict::Unwatched)), Command::Place);
    assert_eq!(run.on(Event::NotPlaced), Command::Answer(8));
}

#[test]
fn a_filesystem_that_cannot_be_watched_now_is_tried_again_later_and_later_without_being_asked() {
    let mut run = Run::new();
    assert_eq!(run.on(Event::Begin), Command::Place);
    assert_eq!(run.on(Event::PlaceFailed), Command::Announce);
    let wait = |until| Command::Wait { until_ns: Some(until), listen: false };
    assert_eq!(run.on(Event::Done), wait(RETRY_FIRST_NS));
    assert_eq!(run.on(Event::Woken { readable: false }), wait(RETRY_FIRST_NS), "woken too early");
    run.now_ns = RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Place);
    assert_eq!(run.on(Event::PlaceFailed), wait(3 * RETRY_FIRST_NS));
    run.now_ns = 3 * RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Place);
    assert_eq!(run.on(Event::Placed), Command::CommitGap(Cause::Start));
    run.on(Event::Committed);
    assert_eq!(run.on(Event::Empty), idle());
}

#[test]
fn a_root_that_comes_back_is_marked_before_its_gap() {
    let mut run = Run::idle();
    assert_eq!(run.ask(Request::Probe), Command::Check { flush: false });
    assert_eq!(run.on(Event::Checked(Verdict::Absent)), Command::Wait { until_ns: None, listen: false });
    run.ask(Request::Probe);
    assert_eq!(run.on(Event::Checked(Verdict::Intact)), Command::Place, "nobody read meanwhile");
    assert_eq!(run.on(Event::Placed), Command::CommitGap(Cause::Remount));
}

#[test]
fn a_flush_waits_for_the_doubts_of_its_events_but_not_for_later_ones() {
    let mut run = Run::idle();
    run.ask(Request::Flush(7));
    run.on(Event::Queued(4));
    run.on(some(4, true));
    run.doubts = DoubtState { oldest: Some(4), due_ns: None };
    assert_eq!(run.on(Event::Committed), Command::Read, "is the queue empty?");
    run.doubts.due_ns = Some(1000 * MS);
    assert_eq!(run.on(Event::Empty), Command::Wait { until_ns: Some(1000 * MS), listen: true });
    run.doubts = DoubtState { oldest: Some(9), due_ns: Some(2000 * MS) };
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Check { flush: true });
}

#[test]
fn a_doubt_that_ran_out_is_committed_as_a_gap_though_no_event_came() {
    let mut run = Run::idle();
    run.doubts = DoubtState { oldest: Some(1), due_ns: Some(1000 * MS) };
    assert_eq!(run.on(Event::Done), Command::Wait { until_ns: Some(1000 * MS), listen: true });
    run.now_ns = 1000 * MS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Commit);
}

#[test]
fn a_full_journal_disk_leaves_the_events_in_the_kernel_and_is_tried_again() {
    let mut run = Run::idle();
    run.on(some(limits::INTAKE_BATCH_EVENTS as u64, false));
    let wait = run.on(Event::NotCommitted);
    assert_eq!(wait, Command::Wait { until_ns: Some(RETRY_FIRST_NS), listen: false });
    run.now_ns = RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: true }), Command::Commit);
    let wait = run.on(Event::NotCommitted);
    assert_eq!(wait, Command::Wait { until_ns: Some(3 * RETRY_FIRST_NS), listen: false });
    run.now_ns = 3 * RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Read);
}

#[test]
fn a_commit_without_events_that_failed_is_tried_again_too() {
    let mut run = Run::idle();
    run.doubts = DoubtState { oldest: Some(1), due_ns: Some(0) };
    assert_eq!(run.on(Event::Done), Command::Commit);
    run.doubts = DoubtState::default();
    run.on(Event::NotCommitted);
    run.now_ns = RETRY_FIRST_NS;
    assert_eq!(run.on(Event::Woken { readable: false }), Command::Commit);
}

#[test]
fn a_read_error_is_a_gap_after_what_was_read_is_committed() {
    let mut run = Run::idle();
    run.on(some(5, false));
    assert_eq!(run.on(Event::ReadFailed), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Place);
    assert_eq!(run.on(Event::Placed), Command::CommitGap(Cause::Damaged));
    run.on(Event::Committed);
    let wait = run.on(Event::ReadFailed);
    assert_eq!(wait, Command::Wait { until_ns: None, listen: false }, "not in a hot loop");
}

#[test]
fn who_waits_for_what_a_read_error_lost_waits_for_the_gap_only() {
    let mut run = Run::idle();
    assert_eq!(run.ask(Request::Stop), Command::CountQueued);
    assert_eq!(run.on(Event::Queued(3)), Command::Read);
    assert_eq!(run.on(Event::ReadFailed), Command::End, "nothing was read, and the next start has a gap");
}

#[test]
fn stopping_reads_what_is_queued_once_more_and_commits_it() {
    let mut run = Run::idle();
    assert_eq!(run.ask(Request::Stop), Command::CountQueued);
    assert_eq!(run.on(Event::Queued(3)), Command::Read);
    assert_eq!(run.on(some(3, true)), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::End);
}

#[test]
fn stopping_gives_up_on_a_journal_that_takes_nothing() {
    let mut run = Run::idle();
    run.ask(Request::Stop);
    run.on(Event::Queued(3));
    run.on(some(3, true));
    let mut command = run.on(Event::NotCommitted);
    for _ in 0..10 {
        if let Command::Wait { until_ns: Some(until), .. } = command {
            run.now_ns = until;
            assert_eq!(run.on(Event::Woken { readable: false }), Command::Commit);
            command = run.on(Event::NotCommitted);
        }
    }
    assert_eq!(command, Command::End);
    assert!(!run.machine.all_committed());
}

#[test]
fn who_stops_before_its_gap_is_stored_has_not_committed_everything() {
    let mut run = Run::new();
    run.on(Event::Begin);
    run.on(Event::Placed);
    run.machine.request(Request::Stop);
    for _ in 1..STOP_FAILURES_MAX {
        assert!(matches!(run.on(Event::NotCommitted), Command::Wait { .. }));
        run.now_ns += RETRY_MAX_NS;
        assert_eq!(run.on(Event::Woken { readable: false }), Command::CommitGap(Cause::Start));
    }
    assert_eq!(run.on(Event::NotCommitted), Command::End);
    assert!(!run.machine.all_committed());
}

#[test]
fn a_root_that_is_not_there_owes_nothing_at_a_stop() {
    let mut run = Run::idle();
    run.ask(Request::Probe);
    run.on(Event::Checked(Verdict::Absent));
    assert_eq!(run.ask(Request::Stop), Command::End);
    assert!(run.machine.all_committed());
}

#[test]
fn a_probe_commits_first_and_then_checks() {
    let mut run = Run::idle();
    run.on(some(5, true));
    assert_eq!(run.ask(Request::Probe), Command::Commit);
    assert_eq!(run.on(Event::Committed), Command::Check { flush: false });
    assert_eq!(run.on(Event::Checked(Verdict::Intact)), idle());
}

#[test]
fn a_probe_asked_for_during_a_look_gets_a_look_of_its_own() {
    let mut run = Run::idle();
    assert_eq!(run.ask(Request::Probe), Command::Check { flush: false });
    run.machine.request(Request::Probe);
    assert_eq!(run.on(Event::Checked(Verdict::Intact)), Command::Check { flush: false });
    assert_eq!(run.on(Event::Checked(Verdict::Intact)), idle());
}
