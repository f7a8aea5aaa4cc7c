//! The emulator as a library: tests start it in their own process.
mod calls;
mod content;
mod error;
mod model;
mod names;
mod options;
mod requests;
