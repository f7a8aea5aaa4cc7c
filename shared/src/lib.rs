//! What tracker and syncer agree on, and nothing else.
