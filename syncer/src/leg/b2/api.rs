//! The calls of B2's native API that are made here, the class each is billed in, and their answers.

use serde::Deserialize;

use super::file_info::FileInfo;

/// b2_authorize_account and b2_list_buckets answer in the form of this version.
pub(super) const API: &str = "b2api/v4";

/// By Backblaze's pages on large files and on b2_upload_file.
pub(super) const PARTS_MAX: u64 = 10_000;
pub(super) const UPLOAD_BYTES_MAX: u64 = 5_000_000_000;
pub(super) const LARGE_FILE_BYTES_MAX: u64 = 10_000_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    AuthorizeAccount,
    CancelLargeFile,
    FinishLargeFile,
    GetFileInfo,
    GetUploadPartUrl,
    GetUploadUrl,
    HideFile,
    ListBuckets,
    ListFileNames,
    StartLargeFile,
    UploadFile,
    UploadPart,
}

/// By Backblaze's price list: A is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    A,
    B,
    C,
}

impl Call {
    pub fn name(self) -> &'static str {
        match self {
            Call::AuthorizeAccount => "b2_authorize_account",
            Call::CancelLargeFile => "b2_cancel_large_file",
            Call::FinishLargeFile => "b2_finish_large_file",
            Call::GetFileInfo => "b2_get_file_info",
            Call::GetUploadPartUrl => "b2_get_upload_part_url",
            Call::GetUploadUrl => "b2_get_upload_url",
            Call::HideFile => "b2_hide_file",
            Call::ListBuckets => "b2_list_buckets",
            Call::ListFileNames => "b2_list_file_names",
            Call::StartLargeFile => "b2_start_large_file",
            Call::UploadFile => "b2_upload_file",
            Call::UploadPart => "b2_upload_part",
        }
    }

    pub fn class(self) -> Class {
        match self {
            Call::GetFileInfo => Class::B,
            Call::AuthorizeAccount | Call::ListBuckets | Call::ListFileNames => Class::C,
            _ => Class::A,
        }
    }

    pub fn is_upload(self) -> bool {
        matches!(self, Call::UploadFile | Call::UploadPart)
    }

    /// Made for one object: what is wrong with the request is wrong with that object.
    pub fn is_about_an_object(self) -> bool {
        use Call::{CancelLargeFile, FinishLargeFile, GetFileInfo, HideFile, StartLargeFile};
        self.is_upload()
            || matches!(self, CancelLargeFile | FinishLargeFile | GetFileInfo | HideFile | StartLargeFile)
    }

    /// Makes a new version of a name. One whose answer was lost is not sent again, because it could come true after
    /// the next version; finishing is, because it makes the same version again.
    pub fn makes_a_version(self) -> bool {
        matches!(self, Call::UploadFile | Call::HideFile | Call::FinishLargeFile)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuthorizeAnswer {
    pub account_id: String,
    pub authorization_token: String,
    pub api_info: ApiInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiInfo {
    pub storage_api: StorageApi,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StorageApi {
    pub api_url: String,
    pub download_url: String,
    pub recommended_part_size: u64,
    pub absolute_minimum_part_size: u64,
    allowed: Option<Allowed>,
    // In version 3 of the API these stand here.
    #[serde(default)]
    capabilities: Vec<String>,
    bucket_id: Option<String>,
    bucket_name: Option<String>,
    name_prefix: Option<String>,
}

/// What the key may do.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Allowed {
    /// `None`: all of the account.
    pub buckets: Option<Vec<AllowedBucket>>,
    pub capabilities: Vec<String>,
    pub name_prefix: Option<String>,
}

#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub(super) struct AllowedBucket {
    pub id: String,
    /// `None`: it was deleted.
    pub name: Option<String>,
}

impl StorageApi {
    pub fn allowed(&self) -> Allowed {
        self.allowed.clone().unwrap_or_else(|| Allowed {
            buckets: self
                .bucket_id
                .clone()
                .map(|id| vec![AllowedBucket { id, name: self.bucket_name.clone() }]),
            capabilities: self.capabilities.clone(),
            name_prefix: self.name_prefix.clone(),
        })
    }
}

#[derive(Deserialize)]
pub(super) struct ListBucketsAnswer {
    pub buckets: Vec<Bucket>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bucket {
    pub bucket_id: String,
    pub bucket_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UploadUrl {
    pub upload_url: String,
    pub authorization_token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileId {
    pub file_id: String,
}

/// Nothing of the answer is needed.
#[derive(Deserialize)]
pub(super) struct Done {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListFileNamesAnswer {
    pub files: Vec<File>,
    pub next_file_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    pub file_id: String,
    pub file_name: String,
    pub content_length: u64,
    #[serde(default)]
    pub content_sha1: Option<String>,
    #[serde(default)]
    pub file_info: FileInfo,
}

/// The body of every error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ErrorAnswer {
    pub code: String,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_key_may_do_is_read_from_version_4_and_from_version_3() {
        let allowed = |rest: &str| {
            let common = r#""apiUrl": "https://api005.example", "downloadUrl": "https://f005.example",
                "recommendedPartSize": 100000000, "absoluteMinimumPartSize": 5000000"#;
            serde_json::from_str::<StorageApi>(&format!("{{{common}, {rest}}}")).unwrap().allowed()
        };
        let v4 = allowed(
            r#""allowed": {"buckets": [{"id": "b1", "name": "one"}], "capabilities": ["listFiles"],
                "namePrefix": "m/"}"#,
        );
        let v3 = allowed(
            r#""bucketId": "b1", "bucketName": "one", "capabilities": ["listFiles"], "namePrefix": "m/",
                "infoType": "storageApi""#,
        );
        assert_eq!(v4, v3);
        assert_eq!(v4.buckets.unwrap()[0].name.as_deref(), Some("one"));
        let whole = allowed(r#""allowed": {"buckets": null, "capabilities": ["all"], "namePrefix": null}"#);
        assert_eq!((whole.buckets, whole.name_prefix), (None, None));
    }

    #[test]
    fn listings_and_reads_are_billed_and_uploads_are_free() {
        assert_eq!(Call::UploadFile.class(), Class::A);
        assert_eq!(Call::HideFile.class(), Class::A);
        assert_eq!(Call::GetFileInfo.class(), Class::B);
        assert_eq!(Call::ListFileNames.class(), Class::C);
    }
}
