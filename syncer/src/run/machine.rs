//! The order of effects of one run, as a pure step machine: event in, command out. It knows no path and does no I/O;
//! what it promises is the order: claim before the first look, intents before the first request, confirmed and
//! durable before the catalog, the catalog before the ack, and deletes only after a flush was answered in the same
//! round.

/// What the shell is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Open and prove the roots.
    Prove,
    /// Check journal and catalog against each other; learn the writer id.
    Attach,
    /// Authorize, check the destination.
    BeginStore,
    /// Ask the destination about what a dead run, or a request without an answer, may have left.
    SettleIntents,
    /// Let the tracker commit everything that happened before.
    Flush,
    /// Announce what is about to be read, and read it.
    Claim,
    /// Read the deferred rows that are due; begin full passes.
    LoadDue,
    /// Look at the next paths and decide what each needs.
    Examine,
    WriteIntents,
    Send,
    /// Make durable what was confirmed.
    Confirm,
    WriteReceipts,
    /// Move the cursor, with what is still owed.
    Ack,
    /// Remove the deferred rows that were worked off, unless they were renewed.
    SettleDue,
    /// Judge all absent rows.
    Guard,
    /// Look again at the next rows released, and remove their objects, behind intents of their own.
    Remove,
    ConfirmRemoved,
    WriteRemoved,
    /// Is anything due that this round made due?
    Review,
    /// Look at the files that may change without an event, unless that was done of late.
    LookSilent,
    /// Nothing is due: let go of the roots and wait for something to happen. Only of a run that is to go on.
    Rest,
    /// Open and prove the roots anew: they may have been unmounted meanwhile.
    ProveAgain,
    Finish,
}

/// What the shell reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Begin,
    Done,
    /// The tracker answered the flush, or it did not.
    Flushed(bool),
    /// A batch was examined and there may be more, or nothing was left.
    Batch {
        empty: bool,
    },
    /// The guard released rows, or not.
    Judged {
        released: bool,
    },
    /// Rows were removed; there may be more, or none was left.
    Removed {
        empty: bool,
    },
    Reviewed {
        more: bool,
    },
    /// Files were found that no event named, or none.
    Looked {
        found: bool,
    },
    /// Something happened, or came due.
    Rested,
    /// Nothing further can work on this leg, or the run was asked to stop.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Entries,
    Due,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    last: Option<Command>,
    phase: Phase,
    tracker_up: bool,
    rounds: u32,
    watch: bool,
}

/// A run ends, or rests, here at the latest; what is due then is the next one's.
const ROUNDS_MAX: u32 = 100;

impl Machine {
    /// `watch`: a run that rests instead of ending.
    pub fn new(watch: bool) -> Machine {
        Machine { last: None, phase: Phase::Entries, tracker_up: false, rounds: 0, watch }
    }

    pub fn step(&mut self, event: Event) -> Command {
        let next = self.next(event);
        self.last = Some(next);
        next
    }

    fn next(&mut self, event: Event) -> Command {
        use Command as C;
        if event == Event::Stop {
            return C::Finish;
        }
        match (self.last, event) {
            (None, _) => C::Prove,
            (Some(C::Prove), _) => C::Attach,
            (Some(C::Attach), _) => C::BeginStore,
            (Some(C::BeginStore | C::ProveAgain), _) => C::SettleIntents,
            (Some(C::SettleIntents), _) => self.begin_round(),
            (Some(C::Flush), Event::Flushed(up)) => {
                self.tracker_up = up;
                C::Claim
            }
            (Some(C::Flush), _) => C::Claim,
            (Some(C::Claim), _) => {
                self.phase = Phase::Entries;
                C::Examine
            }
            (Some(C::LoadDue), _) => {
                self.phase = Phase::Due;
                C::Examine
            }
            (Some(C::Examine), Event::Batch { empty: false }) => C::WriteIntents,
            (Some(C::Examine), _) if self.phase == Phase::Entries => C::Ack,
            (Some(C::Examine), _) => C::SettleDue,
            (Some(C::WriteIntents), _) => C::Send,
            (Some(C::Send), _) => C::Confirm,
            (Some(C::Confirm), _) => C::WriteReceipts,
            (Some(C::WriteReceipts), _) => C::Examine,
            (Some(C::Ack), _) => C::LoadDue,
            (Some(C::SettleDue), _) => C::Guard,
            (Some(C::Guard), Event::Judged { released: true }) if self.tracker_up => C::Remove,
            (Some(C::Guard), _) => C::Review,
            (Some(C::Remove), Event::Removed { empty: false }) => C::ConfirmRemoved,
            (Some(C::Remove), _) => C::Review,
            (Some(C::ConfirmRemoved), _) => C::WriteRemoved,
            (Some(C::WriteRemoved), _) => C::Remove,
            (Some(C::Review), Event::Reviewed { more: true }) if self.rounds < ROUNDS_MAX => {
                self.begin_round()
            }
            (Some(C::Review), _) => C::LookSilent,
            (Some(C::LookSilent), Event::Looked { found: true }) if self.rounds < ROUNDS_MAX => {
                self.begin_round()
            }
            (Some(C::LookSilent), _) if self.watch => C::Rest,
            (Some(C::Rest), Event::Rested) => {
                self.rounds = 0;
                C::ProveAgain
            }
            (Some(C::LookSilent | C::Rest | C::Finish), _) => C::Finish,
        }
    }

    fn begin_round(&mut self) -> Command {
        self.rounds += 1;
        self.tracker_up = false;
        Command::Flush
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            20 => Just(Event::Done),
            5 => any::<bool>().prop_map(Event::Flushed),
            10 => any::<bool>().prop_map(|empty| Event::Batch { empty }),
            5 => any::<bool>().prop_map(|released| Event::Judged { released }),
            5 => any::<bool>().prop_map(|empty| Event::Removed { empty }),
            3 => any::<bool>().prop_map(|more| Event::Reviewed { more }),
            3 => any::<bool>().prop_map(|found| Event::Looked { found }),
            3 => Just(Event::Rested),
            1 => Just(Event::Stop),
        ]
    }

    /// True if every `effect` has a `cause` since the last `reset`.
    fn preceded(trace: &[Command], effect: Command, cause: Command, reset: Command) -> bool {
        let mut seen = false;
        trace.iter().all(|&c| {
            seen = (seen && c != reset) || c == cause;
            c != effect || seen
        })
    }

    proptest! {
        #[test]
        fn no_sequence_of_events_changes_the_order_of_effects(watch: bool, events in proptest::collection::vec(events(), 0..200)) {
            use Command as C;
            let mut machine = Machine::new(watch);
            let mut trace = vec![machine.step(Event::Begin)];
            let mut up = false;
            for event in events {
                let before = trace[trace.len() - 1];
                if before == C::Flush { up = event == Event::Flushed(true); }
                let next = machine.step(event);
                prop_assert!(next != C::Remove || up, "a delete without an answered flush");
                trace.push(next);
            }
            prop_assert!(preceded(&trace, C::Examine, C::Claim, C::Flush), "a look before the claim: {trace:?}");
            prop_assert!(preceded(&trace, C::Send, C::WriteIntents, C::Examine), "a request before its intent: {trace:?}");
            prop_assert!(preceded(&trace, C::WriteReceipts, C::Confirm, C::Examine), "a receipt before it is durable: {trace:?}");
            prop_assert!(preceded(&trace, C::WriteRemoved, C::ConfirmRemoved, C::Remove));
            prop_assert!(preceded(&trace, C::Remove, C::Guard, C::Flush), "a delete before the guard: {trace:?}");
            prop_assert!(preceded(&trace, C::Guard, C::Ack, C::Flush), "the guard before the ack: {trace:?}");
            prop_assert!(preceded(&trace, C::Send, C::Attach, C::Prove));
            let proven = |c: &C| matches!(c, C::Prove | C::ProveAgain);
            let rests = trace.split(|c| *c == C::Rest).filter(|part| part.contains(&C::Examine));
            prop_assert!(rests.clone().all(|part| part.iter().any(proven)), "a look after a rest without a proof: {trace:?}");
            prop_assert!(!trace.windows(2).any(|w| w[0] == C::Send && w[1] == C::Ack), "an ack before the catalog");
        }
    }

    #[test]
    fn a_quiet_run_does_nothing_but_ask() {
        use Command as C;
        let mut machine = Machine::new(false);
        let mut event = Event::Begin;
        let mut trace = Vec::new();
        loop {
            let command = machine.step(event);
            trace.push(command);
            event = match command {
                C::Finish => break,
                C::Flush => Event::Flushed(true),
                C::Examine => Event::Batch { empty: true },
                C::Guard => Event::Judged { released: false },
                C::Review => Event::Reviewed { more: false },
                C::LookSilent => Event::Looked { found: false },
                _ => Event::Done,
            };
        }
        let quiet = [
            C::Prove,
            C::Attach,
            C::BeginStore,
            C::SettleIntents,
            C::Flush,
            C::Claim,
            C::Examine,
            C::Ack,
            C::LoadDue,
            C::Examine,
            C::SettleDue,
            C::Guard,
            C::Review,
            C::LookSilent,
            C::Finish,
        ];
        assert_eq!(trace, quiet);
    }
}
