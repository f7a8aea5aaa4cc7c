//! The tracker as a library, so that tests and benches reach its parts.
