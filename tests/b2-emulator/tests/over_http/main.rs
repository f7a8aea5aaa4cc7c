//! The emulator over HTTP: the form of its answers, what it refuses, and every kind of fault.
mod calls;
mod client;
mod faults;
mod program;
