//! What a caller may choose: where to listen, keys, and limits scaled down for small tests.
use std::net::{Ipv4Addr, SocketAddr};

#[derive(Debug, Clone)]
pub struct Options {
    pub listen: SocketAddr,
    pub key_id: String,
    pub key: String,
    pub workers: usize,
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            key_id: "005b2e0000000000000000001".into(),
            key: "K005masterkeyoftheemulator".into(),
            workers: 2,
            limits: Limits::default(),
        }
    }
}

/// The defaults are those that b2_authorize_account and Backblaze's documentation of large files state.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub absolute_minimum_part_size: u64,
    pub recommended_part_size: u64,
    /// Of one b2_upload_file or b2_upload_part.
    pub upload_bytes_max: u64,
    /// Of one b2_copy_file or b2_copy_part.
    pub copy_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            absolute_minimum_part_size: 5_000_000,
            recommended_part_size: 100_000_000,
            upload_bytes_max: 5_000_000_000,
            copy_bytes_max: 5_000_000_000,
        }
    }
}

/// What a key may do; the default is everything.
#[derive(Debug, Clone, Default)]
pub struct KeyRules {
    /// None: all that the emulator knows.
    pub capabilities: Option<Vec<String>>,
    pub bucket_name: Option<String>,
    pub name_prefix: Option<String>,
}
