//! The calls the emulator knows, by name, and the class in which Backblaze bills each.
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Call {
    AuthorizeAccount,
    CancelLargeFile,
    CopyFile,
    CopyPart,
    CreateBucket,
    DeleteFileVersion,
    DownloadFileById,
    DownloadFileByName,
    FinishLargeFile,
    GetFileInfo,
    GetUploadPartUrl,
    GetUploadUrl,
    /// HEAD of a name: billed as a download, counted apart because clients use it as "stat".
    HeadFileByName,
    HideFile,
    ListBuckets,
    ListFileNames,
    ListFileVersions,
    ListParts,
    ListUnfinishedLargeFiles,
    StartLargeFile,
    UploadFile,
    UploadPart,
}

/// Transaction classes by Backblaze's price list: A is free, B and C cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    A,
    B,
    C,
}

/// The frequent ones first: the search is linear.
const TABLE: [(Call, &str, Class); 22] = [
    (Call::UploadFile, "b2_upload_file", Class::A),
    (Call::UploadPart, "b2_upload_part", Class::A),
    (Call::HideFile, "b2_hide_file", Class::A),
    (Call::DeleteFileVersion, "b2_delete_file_version", Class::A),
    (Call::ListFileNames, "b2_list_file_names", Class::C),
    (Call::ListFileVersions, "b2_list_file_versions", Class::C),
    (Call::CopyFile, "b2_copy_file", Class::C),
    (Call::CopyPart, "b2_copy_part", Class::C),
    (Call::GetUploadUrl, "b2_get_upload_url", Class::A),
    (Call::GetUploadPartUrl, "b2_get_upload_part_url", Class::A),
    (Call::StartLargeFile, "b2_start_large_file", Class::A),
    (Call::FinishLargeFile, "b2_finish_large_file", Class::A),
    (Call::CancelLargeFile, "b2_cancel_large_file", Class::A),
    (Call::ListParts, "b2_list_parts", Class::C),
    (Call::ListUnfinishedLargeFiles, "b2_list_unfinished_large_files", Class::C),
    (Call::GetFileInfo, "b2_get_file_info", Class::B),
    (Call::DownloadFileById, "b2_download_file_by_id", Class::B),
    (Call::DownloadFileByName, "b2_download_file_by_name", Class::B),
    (Call::HeadFileByName, "head_file_by_name", Class::B),
    (Call::AuthorizeAccount, "b2_authorize_account", Class::C),
    (Call::ListBuckets, "b2_list_buckets", Class::C),
    (Call::CreateBucket, "b2_create_bucket", Class::C),
];

impl Call {
    pub fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    pub fn name(self) -> &'static str {
        self.row().1
    }

    pub fn class(self) -> Class {
        self.row().2
    }

    fn row(self) -> &'static (Call, &'static str, Class) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has a row for each call")
    }
}

impl From<Call> for &'static str {
    fn from(call: Call) -> Self {
        call.name()
    }
}

impl TryFrom<String> for Call {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Call::named(&name).ok_or(format!("No such call: {name}"))
    }
}
