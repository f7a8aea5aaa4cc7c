//! What every simulated outside thing asks: whether others go on now, whether the program dies here, and whether a fault
//! strikes.

/// Unwinds out of a program that was killed. Everything that it had in memory goes with it.
#[derive(Debug)]
pub struct Killed;

/// What can go wrong. Off unless a world turns it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The program is killed here.
    Kill,
    /// The machine loses its power here.
    PowerCut,
    /// No connection: nothing was sent.
    B2Unreachable,
    /// 503 or 429, five times, or a token that expired and could not be renewed: no effect.
    B2Busy,
    /// 503 or 429 with a longer Retry-After than the client waits: no effect.
    B2BusyFor,
    /// 403 of a cap of the account: no effect.
    B2CapReached,
    /// 401 that a new authorization does not heal.
    B2KeyRevoked,
    /// 400 about one object, such as a name that is too long for a bucket with a lock.
    B2Unfit,
    /// The connection breaks within a body that is too large to be on its way as a whole: no effect.
    B2CutInBody,
    /// The request went out whole, and neither had an effect nor an answer.
    B2RequestLost,
    /// The request took effect, and the answer was lost.
    B2AnswerLost,
    /// The answer was lost, and the effect comes later.
    B2Late,
    /// The bucket cannot be opened for now: the network is down.
    B2OpenFails,
    /// Another, empty bucket is found under the name, by this run.
    B2AnotherBucket,
    /// A listing fails at its first page.
    B2ListFails,
    /// A listing fails at a later page.
    B2PageFails,
    /// A page holds less than it could, and is not the last.
    B2PageShort,
    /// What stands at one name cannot be asked for.
    B2LookFails,
    /// EIO from the destination's disk, before the step has an effect.
    DirIo,
    /// EIO from the destination's disk, for a step that took effect: a network filesystem's lost answer.
    DirAnswerLost,
    /// ENOSPC at the destination.
    DirFull,
    /// EROFS at the destination: an error made it read-only.
    DirReadOnly,
    /// The destination's disk loses its power, and with it what was not synced; this run does not see it again.
    DirPowerCut,
    /// Owner and attributes cannot be set for want of rights.
    DirNoOwners,
    /// The identity of the destination cannot be read.
    DirOpenFails,
    /// Another, empty disk is found at the place, by this run.
    DirAnotherDisk,
    /// A page of a listing fails.
    DirListFails,
    /// What stands at one name cannot be looked at.
    DirLookFails,
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
