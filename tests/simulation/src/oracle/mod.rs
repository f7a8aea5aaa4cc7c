//! What must always hold, each by its name, and the watchers that see whether it does.

pub mod difference;
pub mod owed;
pub mod requests;
pub mod sides;
pub mod told;

use std::fmt;

use serde::{Deserialize, Serialize};

/// The promises of ARCHITECTURE.md that a world can break, and what people are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// What differs from the mirror is covered by something that will lead to it.
    Coverage,
    /// Whatever breaks the chain of events is a row of the journal.
    GapIsARow,
    /// Intent, confirmation, catalog, ack.
    Order,
    /// Nothing is removed whose path was not seen to be gone on the disk that was meant.
    WitnessedAbsence,
    /// Not more is removed than the guard lets through.
    Guard,
    /// A second run finds nothing to do.
    Idempotent,
    /// Rows, queues and memory have limits.
    Bounded,
    /// No descriptor stays open on a tracked filesystem.
    NeverInTheWay,
    /// Every file is one object under its own path, and nothing else of ours is there.
    PlainMirror,
    /// With everything whole, one quiet run makes the mirror what the source is.
    Converges,
    /// Exit code, counts and words are true.
    Told,
    /// No request that the plan did not need.
    NoNeedlessCall,
    /// No program ends by a panic.
    NoPanic,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    pub invariant: Invariant,
    pub message: String,
}

impl Violation {
    pub fn new(invariant: Invariant, message: impl fmt::Display) -> Violation {
        Violation { invariant, message: message.to_string() }
    }

    /// The invariant, and what is said without names and numbers: two of one sort have most likely one cause.
    pub fn sort(&self) -> (Invariant, String) {
        let said = self.message.splitn(3, ": ").last().unwrap_or_default();
        (self.invariant, said.chars().filter(|c| !c.is_ascii_digit()).collect())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.message)
    }
}
