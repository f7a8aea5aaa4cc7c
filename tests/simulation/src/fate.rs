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
