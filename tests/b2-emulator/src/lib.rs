//! The emulator as a library: tests start it in their own process.
