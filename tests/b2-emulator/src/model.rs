//! What the emulated account holds, and what each call does to it: no I/O, no clock, no locks.
pub(crate) mod access;
mod buckets;
pub(crate) mod large;
pub(crate) mod listing;
pub(crate) mod versions;

#[cfg(test)]
mod fixture;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use access::Key;
use large::Part;

use crate::options::Limits;
use crate::version::Version;

pub(crate) const ACCOUNT_ID: &str = "b2e0acc00001";

pub(crate) struct Model {
    pub limits: Limits,
    buckets: BTreeMap<String, Bucket>,
    keys: Vec<Arc<Key>>,
    account_tokens: HashMap<String, access::AccountToken>,
    upload_urls: HashMap<String, access::UploadUrl>,
    versions_by_id: HashMap<String, Arc<Version>>,
    /// Of the unfinished large files, by file id.
    parts: HashMap<String, BTreeMap<u32, Part>>,
    serial: u64,
}

pub(crate) struct Bucket {
    pub id: String,
    pub name: String,
    /// By name in the order of its bytes; the versions of a name oldest first.
    files: BTreeMap<String, Vec<Arc<Version>>>,
}

impl Model {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            buckets: BTreeMap::new(),
            keys: Vec::new(),
            account_tokens: HashMap::new(),
            upload_urls: HashMap::new(),
            versions_by_id: HashMap::new(),
            parts: HashMap::new(),
            serial: 0,
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}
