//! The syncer as a library, so that tests and benches reach its parts.
