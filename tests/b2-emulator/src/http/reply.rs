//! Answers: from what the model returns to JSON in the form of each API version, and to HTTP.
use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use crate::content::Content;
use crate::error::B2Error;
use crate::model::access::Authorized;
use crate::model::large::{Part, PartsPage};
use crate::model::listing::{Entry, Page};
use crate::model::{ACCOUNT_ID, Bucket};
use crate::names;
use crate::version::{Action, Version};

/// What a call returns, before it takes the form of an API version.
#[derive(Debug)]
pub(crate) enum Reply {
    Json(Value),
    Authorized(Authorized),
    /// With the action it is told as, which for a copy differs from the stored one.
    File(Arc<Version>, &'static str),
    Page(Page),
    Parts(PartsPage),
    /// An uploaded or copied part, with the id of its large file.
    Part(Part, String),
    Cancelled(Arc<Version>),
    Download(Arc<Version>, Option<Range<u64>>),
}

/// How a connection ends without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    #[error("Connection closed")]
    Close,
    #[error("Connection reset")]
    Reset,
}

impl Reply {
    /// As Backblaze bills listings: one for each thousand entries begun.
    pub fn transactions(&self) -> u64 {
        match self {
            Self::Page(page) => (page.entries.len() as u64).div_ceil(1000).max(1),
            _ => 1,
        }
    }

    pub fn into_response(self, version: u8, endpoint: &str) -> Response<ReplyBody> {
        let json = match &self {
            Self::Download(file, range) => return download_response(file, range.clone()),
            Self::Json(value) => serde_json::to_vec(value),
            Self::Authorized(authorized) => {
                serde_json::to_vec(&authorized_json(authorized, version, endpoint))
            }
            Self::File(file, action) => serde_json::to_vec(&FileJson::new(file, action)),
            Self::Page(page) => serde_json::to_vec(&PageJson::new(page, version)),
            Self::Parts(page) => serde_json::to_vec(&json!({
                "parts": page.parts.iter().map(|part| part_json(part, 1000)).collect::<Vec<_>>(),
                "nextPartNumber": page.next_number,
            })),
            Self::Cancelled(file) => serde_json::to_vec(&json!({
                "accountId": ACCOUNT_ID,
                "bucketId": file.bucket_id,
                "fileId": file.file_id,
                "fileName": file.name,
            })),
            Self::Part(part, file_id) => {
                let mut value = part_json(part, 1);
                value["fileId"] = json!(file_id);
                serde_json::to_vec(&value)
            }
        };
        ok_json(json.expect("strings and numbers always serialize"))
    }
}

/// Where v1 to v4 of b2_authorize_account put things, by Backblaze's documentation of each.
fn authorized_json(authorized: &Authorized, version: u8, endpoint: &str) -> Value {
    let Authorized { token, key, limits } = authorized;
    let (bucket_id, bucket_name) = key.bucket.as_ref().map(|(id, name)| (id, name)).unzip();
    let mut storage = json!({
        "absoluteMinimumPartSize": limits.absolute_minimum_part_size,
        "recommendedPartSize": limits.recommended_part_size,
        "apiUrl": endpoint,
        "downloadUrl": endpoint,
        "s3ApiUrl": endpoint,
    });
    let mut allowed = json!({ "capabilities": key.capabilities, "namePrefix": key.name_prefix });
    match version {
        1 | 2 => {
            storage["accountId"] = json!(ACCOUNT_ID);
            storage["authorizationToken"] = json!(token);
            allowed["bucketId"] = json!(bucket_id);
            // The documentation of v1 leaves the name out; rclone, which authorizes with v1, needs it.
            allowed["bucketName"] = json!(bucket_name);
            // The old name of the recommended size, by the documentation of v1.
            storage["minimumPartSize"] = json!(limits.recommended_part_size);
            storage["allowed"] = allowed;
            return storage;
        }
        3 => {
            allowed["bucketId"] = json!(bucket_id);
            allowed["bucketName"] = json!(bucket_name);
            let fields = allowed.as_object_mut().map(std::mem::take).unwrap_or_default();
            fields.into_iter().for_each(|(name, value)| storage[name] = value);
            storage["infoType"] = json!("storageApi");
        }
        _ => {
            let only = key.bucket.as_ref().map(|(id, name)| json!([{ "id": id, "name": name }]));
            allowed["buckets"] = json!(only);
            storage["allowed"] = allowed;
            storage["infoType"] = json!("storageApi");
        }
    }
    json!({
        "accountId": ACCOUNT_ID,
        "authorizationToken": token,
        "applicationKeyExpirationTimestamp": null,
        "apiInfo": { "storageApi": storage },
    })
}

pub(crate) fn bucket_json(bucket: &Bucket) -> Value {
    json!({
        "accountId": ACCOUNT_ID,
        "bucketId": bucket.id,
        "bucketName": bucket.name,
        "bucketType": "allPrivate",
        "bucketInfo": {},
        "corsRules": [],
        "lifecycleRules": [],
        "revision": 1,
        "options": ["s3"],
        "defaultServerSideEncryption": {
            "isClientAuthorizedToRead": true,
            "value": { "algorithm": null, "mode": null },
        },
        "fileLockConfiguration": {
            "isClientAuthorizedToRead": true,
            "value": { "defaultRetention": { "mode": null, "period": null }, "isFileLockEnabled": false },
        },
    })
}

fn part_json(part: &Part, timestamp_unit_ms: u64) -> Value {
    json!({
        "partNumber": part.number,
        "contentLength": part.content.len(),
        "contentSha1": part.sha1,
        "contentMd5": null,
        "serverSideEncryption": NO_ENCRYPTION,
        "uploadTimestamp": part.upload_timestamp_ms / timestamp_unit_ms * timestamp_unit_ms,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PageJson<'a> {
    files: Vec<FileJson<'a>>,
    next_file_name: &'a Option<String>,
    next_file_id: &'a Option<String>,
}

impl<'a> PageJson<'a> {
    fn new(page: &'a Page, version: u8) -> Self {
        let mut files: Vec<_> = page.entries.iter().map(FileJson::of_entry).collect();
        if version == 1 {
            // rclone, which lists with v1, reads the size under this name.
            files.iter_mut().for_each(|file| file.size = file.content_length.take());
        }
        Self { files, next_file_name: &page.next_name, next_file_id: &page.next_id }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Encryption {
    algorithm: Option<&'static str>,
    mode: Option<&'static str>,
}

const NO_ENCRYPTION: Encryption = Encryption { algorithm: None, mode: None };

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unreadable {
    is_client_authorized_to_read: bool,
    value: Option<&'static str>,
}

const NO_LOCK: Unreadable = Unreadable { is_client_authorized_to_read: false, value: None };

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileJson<'a> {
    account_id: &'static str,
    action: &'static str,
    bucket_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    content_md5: Option<&'static str>,
    content_sha1: Option<&'a str>,
    content_type: Option<&'a str>,
    file_id: Option<&'a str>,
    file_info: Option<&'a BTreeMap<String, String>>,
    file_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_retention: Option<Unreadable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    legal_hold: Option<Unreadable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_side_encryption: Option<Encryption>,
    upload_timestamp: u64,
}

impl<'a> FileJson<'a> {
    fn new(file: &'a Version, action: &'static str) -> Self {
        // Recorded answers leave lock and encryption out for hide markers.
        let full = file.action != Action::Hide;
        Self {
            account_id: ACCOUNT_ID,
            action,
            bucket_id: &file.bucket_id,
            content_length: Some(file.size()),
            size: None,
            content_md5: None,
            content_sha1: Some(&file.content_sha1),
            content_type: Some(&file.content_type),
            file_id: Some(&file.file_id),
            file_info: Some(&file.info),
            file_name: &file.name,
            file_retention: full.then_some(NO_LOCK),
            legal_hold: full.then_some(NO_LOCK),
            server_side_encryption: full.then_some(NO_ENCRYPTION),
            upload_timestamp: file.upload_timestamp_ms,
        }
    }

    fn of_entry(entry: &'a Entry) -> Self {
        match entry {
            Entry::Version(file) => Self::new(file, file.action.name()),
            Entry::Folder(name) => Self {
                account_id: ACCOUNT_ID,
                action: "folder",
                bucket_id: "",
                content_length: Some(0),
                size: None,
                content_md5: None,
                content_sha1: None,
                content_type: None,
                file_id: None,
                file_info: None,
                file_name: name,
                file_retention: None,
                legal_hold: None,
                server_side_encryption: None,
                upload_timestamp: 0,
            },
        }
    }
}

fn download_response(file: &Version, range: Option<Range<u64>>) -> Response<ReplyBody> {
    let size = file.size();
    let sent = range.clone().unwrap_or(0..size);
    let mut response = Response::new(ReplyBody::from(file.content.slice(sent.clone())));
    let mut add = |name: &str, value: &str| {
        // Names and values were checked when the file was uploaded.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    };
    add("Content-Type", &file.content_type);
    add("Content-Length", &(sent.end - sent.start).to_string());
    add("Accept-Ranges", "bytes");
    add("X-Bz-File-Id", &file.file_id);
    add("X-Bz-File-Name", &names::encode(&file.name));
    // Of the whole file even on a range, in a recorded answer.
    add("X-Bz-Content-Sha1", &file.content_sha1);
    add("X-Bz-Upload-Timestamp", &file.upload_timestamp_ms.to_string());
    for (key, value) in &file.info {
        add(&format!("X-Bz-Info-{key}"), &names::encode(value));
    }
    if range.is_some() {
        add("Content-Range", &format!("bytes {}-{}/{size}", sent.start, sent.end - 1));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

pub(crate) fn ok_json(body: Vec<u8>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    response
}

/// After a 400 the service closes the connection, in all recorded answers.
pub(crate) fn error_response(error: &B2Error) -> Response<ReplyBody> {
    let mut response = ok_json(error.body());
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if error.status == 400 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if error.status == 401 && error.message.is_empty() {
        let realm = HeaderValue::from_static("BASIC realm=\"authorize_account\"");
        headers.insert(WWW_AUTHENTICATE, realm);
    }
    if let Some(seconds) = error.retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Pieces of stored content in a row, perhaps with a reset of the connection among them.
pub(crate) struct ReplyBody {
    pieces: std::vec::IntoIter<Bytes>,
    left: u64,
    left_until_reset: Option<u64>,
    flushed: bool,
}

impl ReplyBody {
    pub fn reset_after(self, bytes: u64) -> Self {
        Self { left_until_reset: Some(bytes), ..self }
    }
}

impl From<Content> for ReplyBody {
    fn from(content: Content) -> Self {
        let left = content.len();
        Self { pieces: content.into_pieces().into_iter(), left, left_until_reset: None, flushed: false }
    }
}

impl From<Vec<u8>> for ReplyBody {
    fn from(bytes: Vec<u8>) -> Self {
        Content::from(Bytes::from(bytes)).into()
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.left_until_reset == Some(0) {
            if self.flushed {
                return Poll::Ready(Some(Err(Cut::Reset)));
            }
            // hyper writes out what it has when a body is not ready; after an error it does not.
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(mut piece) = self.pieces.next() else {
            return Poll::Ready(self.left_until_reset.map(|_| Err(Cut::Reset)));
        };
        if let Some(left) = &mut self.left_until_reset {
            piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= piece.len() as u64;
        }
        self.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.left_until_reset.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
