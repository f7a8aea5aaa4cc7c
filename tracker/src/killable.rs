//! The tracker with its kill points, for tests alone.

use std::process::ExitCode;

#[path = "main.rs"]
mod program;

fn main() -> ExitCode {
    program::main()
}
