//! A leg that is a bucket at Backblaze B2: a client of its native API, made for SHA-1 on every byte, a pool of upload
//! URLs and outcomes that are known or said to be unknown.

mod api;
mod client;
mod content;
mod failure;
mod file_info;
mod large;
pub mod names;
pub mod store;
mod uploads;

#[cfg(test)]
mod tests;
