//! On how many threads a run works.

use shared::limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// Listing, reading and hashing on threads of their own.
    Many,
    /// Everything on the caller's thread, for a run that can be repeated exactly.
    One,
}

impl Threads {
    /// So many look ahead of a walk.
    pub fn ahead(self) -> usize {
        match self {
            Threads::Many => limits::WALK_THREADS,
            Threads::One => 0,
        }
    }

    /// Does what blocks.
    pub async fn work<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Threads::Many => tokio::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())),
            Threads::One => work(),
        }
    }
}
