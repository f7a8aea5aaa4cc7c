//! What every simulated outside thing asks: whether others go on now, whether the program dies here, and whether a fault
//! strikes.

/// Unwinds out of a program that was killed. Everything that it had in memory goes with it.
#[derive(Debug)]
pub struct Killed;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $often:literal,)*) => {
        /// What can go wrong. Off unless a world turns it on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$name,)*];

            /// Once in so many questions for it, in a world where it is frequent.
            pub fn often(self) -> u32 {
                match self { $(Fault::$name => $often,)* }
            }
        }
    };
}

faults! {
    /// The program is killed here.
    Kill = 400,
    /// The machine loses its power here.
    PowerCut = 4000,
    /// No connection: nothing was sent.
    B2Unreachable = 20,
    /// 503 or 429, five times, or a token that expired and could not be renewed: no effect.
    B2Busy = 20,
    /// 503 or 429 with a longer Retry-After than the client waits: no effect.
    B2BusyFor = 20,
    /// 403 of a cap of the account: no effect.
    B2CapReached = 300,
    /// 401 that a new authorization does not heal.
    B2KeyRevoked = 300,
    /// 400 about one object, such as a name that is too long for a bucket with a lock.
    B2Unfit = 20,
    /// The connection breaks within a body that is too large to be on its way as a whole: no effect.
    B2CutInBody = 20,
    /// The request went out whole, and neither had an effect nor an answer.
    B2RequestLost = 20,
    /// The request took effect, and the answer was lost.
    B2AnswerLost = 20,
    /// The answer was lost, and the effect comes later.
    B2Late = 20,
    /// The bucket cannot be opened for now: the network is down.
    B2OpenFails = 20,
    /// Another, empty bucket is found under the name, by this run.
    B2AnotherBucket = 60,
    /// A listing fails at its first page.
    B2ListFails = 20,
    /// A listing fails at a later page.
    B2PageFails = 20,
    /// A page holds less than it could, and is not the last.
    B2PageShort = 4,
    /// What stands at one name cannot be asked for.
    B2LookFails = 20,
    /// EIO from the destination's disk, before the step has an effect.
    DirIo = 20,
    /// EIO from the destination's disk, for a step that took effect: a network filesystem's lost answer.
    DirAnswerLost = 20,
    /// ENOSPC at the destination.
    DirFull = 20,
    /// EROFS at the destination: an error made it read-only.
    DirReadOnly = 20,
    /// The destination's disk loses its power, and with it what was not synced; this run does not see it again.
    DirPowerCut = 200,
    /// Owner and attributes cannot be set for want of rights.
    DirNoOwners = 20,
    /// The identity of the destination cannot be read.
    DirOpenFails = 20,
    /// Another, empty disk is found at the place, by this run.
    DirAnotherDisk = 60,
    /// A page of a listing fails.
    DirListFails = 20,
    /// What stands at one name cannot be looked at.
    DirLookFails = 20,
    /// EIO from a tracked disk, where a path is looked at or read.
    SourceIo = 200,
    /// A listing of a tracked directory lacks a name, without an error.
    ListingLacks = 20,
    /// A listing of a tracked directory fails in its midst.
    ListingFails = 40,
    /// A handle does not resolve, although what it names is there.
    HandleIo = 60,
    /// A read of events fails, and the first of them is gone.
    ReadFails = 100,
    /// The tracker is killed in a read of events.
    KillInRead = 100,
    /// The tracker does not answer a flush.
    TrackerHangs = 20,
    /// A program is killed in the midst of a write to a database.
    KillInWrite = 400,
    /// The power goes in the midst of a write to a database.
    PowerCutInWrite = 4_000,
    /// The state disk is full for one write.
    StateDiskFull = 200,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        serde::Serialize::serialize(self, f)
    }
}

/// The scheduler, as what is simulated sees it. No lock may be held when it is asked.
pub trait Fate: Send + Sync {
    /// A step of a program begins: others may go on now, or it is killed, which unwinds with [`Killed`].
    fn pass(&self, point: &'static str);
    fn strikes(&self, fault: Fault) -> bool;
    /// A number below `n`; 0 for an `n` of 0.
    fn pick(&self, n: u64) -> u64;
}

/// Ends the program that runs now.
pub fn die() -> ! {
    // Not a panic: nothing is printed for what is meant.
    std::panic::resume_unwind(Box::new(Killed))
}
