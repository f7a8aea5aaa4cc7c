//! The JSON parameters of each call. Fields that no client sends are refused, so that a typo in one fails.
use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::B2Error;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ListBuckets {
    pub account_id: String,
    pub bucket_id: Option<String>,
    pub bucket_name: Option<String>,
    /// Every bucket here is private; clients ask for "all" or for the types they know.
    #[serde(rename = "bucketTypes")]
    pub _bucket_types: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateBucket {
    pub account_id: String,
    pub bucket_name: String,
    pub bucket_type: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BucketOnly {
    pub bucket_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FileOnly {
    pub file_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HideFile {
    pub bucket_id: String,
    pub file_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeleteFileVersion {
    pub file_name: String,
    pub file_id: String,
    /// Without Object Lock there is nothing to bypass; Backblaze's SDK always sends it.
    #[serde(rename = "bypassGovernance")]
    pub _bypass_governance: Option<bool>,
}

/// Of b2_list_file_names and, with startFileId, b2_list_file_versions.
#[derive(Debug, Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ListFiles {
    pub bucket_id: String,
    pub start_file_name: Option<String>,
    pub start_file_id: Option<String>,
    pub max_file_count: Option<u64>,
    pub prefix: Option<String>,
    pub delimiter: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CopyFile {
    pub source_file_id: String,
    pub file_name: String,
    pub destination_bucket_id: Option<String>,
    pub range: Option<String>,
    pub metadata_directive: Option<String>,
    pub content_type: Option<String>,
    pub file_info: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CopyPart {
    pub source_file_id: String,
    pub large_file_id: String,
    pub part_number: u32,
    pub range: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StartLargeFile {
    pub bucket_id: String,
    pub file_name: String,
    pub content_type: String,
    pub file_info: Option<BTreeMap<String, String>>,
    pub custom_upload_timestamp: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FinishLargeFile {
    pub file_id: String,
    pub part_sha1_array: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ListParts {
    pub file_id: String,
    pub start_part_number: Option<u32>,
    pub max_part_count: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ListUnfinished {
    pub bucket_id: String,
    pub name_prefix: Option<String>,
    pub start_file_id: Option<String>,
    pub max_file_count: Option<u64>,
}

/// None and 0 mean `default`, as Backblaze's documentation of b2_list_file_names has it.
pub(crate) fn count(asked: Option<u64>, default: u64, max: u64) -> Result<usize, B2Error> {
    match asked.unwrap_or(0) {
        0 => Ok(default as usize),
        n if n <= max => Ok(n as usize),
        n => Err(B2Error::new(400, "out_of_range", format!("Count {n} is over {max}"))),
    }
}
