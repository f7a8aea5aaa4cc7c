//! Destinations in memory with the manners of the real ones, a bucket at B2 and a directory: they outlive programs, fail
//! on demand, and write down what they are asked.

pub mod b2;
pub mod bucket;
mod content;
pub mod dir;
pub mod directory;
mod seen;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use content::Content;
pub use seen::{Asked, Call, Hook, Moment, Seen, Watch};

/// What survives the programs that use it.
pub type Shared<T> = Arc<Mutex<T>>;

pub fn shared<T>(data: T) -> Shared<T> {
    Arc::new(Mutex::new(data))
}

/// A program that was killed may have held it: what is in there is whole all the same.
pub fn lock<T>(data: &Mutex<T>) -> MutexGuard<'_, T> {
    data.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
