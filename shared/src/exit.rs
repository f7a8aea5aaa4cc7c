//! Exit codes: the promise that scripts and systemd units rely on.

use serde::{Serialize, Serializer};

/// How a command ended. Of several outcomes in one call the gravest counts, see [`gravest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// All done.
    Ok = 0,
    /// Failed for a reason of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Done, but some paths are deferred with errors, or held.
    Partial = 3,
    /// The delete guard waits for approval.
    Guard = 4,
    /// A root is not proven to be the disk it should be.
    Unproven = 5,
    /// Try later: lock held, network, tracker down.
    TryLater = 75,
    /// Key refused or cap reached.
    Refused = 77,
    /// Configuration, or a decision that only the owner can take.
    Config = 78,
}

/// The order in which outcomes hide one another.
const GRAVITY: [Exit; 9] = [
    Exit::Config,
    Exit::Refused,
    Exit::Failed,
    Exit::Usage,
    Exit::Unproven,
    Exit::Guard,
    Exit::TryLater,
    Exit::Partial,
    Exit::Ok,
];

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl Serialize for Exit {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u8(self.code())
    }
}

/// The outcome that a call with several of them reports: the first of 78, 77, 1, (2,) 5, 4, 75, 3, 0.
pub fn gravest(outcomes: impl IntoIterator<Item = Exit>) -> Exit {
    let rank = |e: &Exit| GRAVITY.iter().position(|g| g == e);
    outcomes.into_iter().min_by_key(rank).unwrap_or(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_outcome_counts() {
        assert_eq!(gravest([Exit::Ok, Exit::Partial, Exit::Guard, Exit::TryLater]), Exit::Guard);
        assert_eq!(gravest([Exit::Unproven, Exit::Config]), Exit::Config);
        assert_eq!(gravest([]), Exit::Ok);
    }
}
