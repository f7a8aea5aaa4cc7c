//! The `syncer` program.
fn main() {}
