//! A version of a file as the emulator stores it, and as tests look at it.
use std::collections::BTreeMap;

use crate::content::Content;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Upload,
    Hide,
    /// A large file that is not finished.
    Start,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Hide => "hide",
            Self::Start => "start",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Version {
    pub file_id: String,
    pub bucket_id: String,
    pub name: String,
    pub action: Action,
    pub content_type: String,
    /// As B2 tells it: 40 digits, "unverified:" and 40 digits, or "none" for a large file.
    pub content_sha1: String,
    pub info: BTreeMap<String, String>,
    /// Whole seconds, as in every recorded answer, unless the uploader chose it.
    pub upload_timestamp_ms: u64,
    pub content: Content,
}

impl Version {
    pub fn size(&self) -> u64 {
        self.content.len()
    }

    /// Of the bytes that are stored, whatever the uploader declared.
    pub fn sha1(&self) -> String {
        self.content.sha1()
    }
}
