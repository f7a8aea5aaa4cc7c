//! Answers: from what the model returns to JSON in the form of each API version, and to HTTP.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use crate::content::Content;
use crate::error::B2Error;
use crate::model::{ACCOUNT_ID, Action, Authorized, Bucket, Entry, Page, Part, PartsPage, Version};

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
}

/// How a connection ends without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    #[error("Connection closed")]
    Close,
    #[error("Connection reset")]
    Reset,
}

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Reply {
    /// As Backblaze bills listings: one for each thousand entries begun.
    pub fn transactions(&self) -> u64 {
        match self {
            Self::Page(page) => (page.entries.len() as u64).div_ceil(1000).max(1),
            _ => 1,
        }
    }

    pub fn into_json(self, version: u8, endpoint: &str) -> Vec<u8> {
        let bytes = match &self {
            Self::Json(value) => serde_json::to_vec(value),
            Self::Authorized(authorized) => serde_json::to_vec(&authorized_json(authorized, version, endpoint)),
            Self::File(file, action) => serde_json::to_vec(&FileJson::new(file, action)),
            Self::Page(page) => serde_json::to_vec(&PageJson::new(page, version)),
            Self::Parts(page) => serde_json::to_vec(&json!({
                "parts": page.parts.iter().map(|part| part_json(part, 1000)).collect::<Vec<_>>(),
                "nextPartNumber": page.next_number,
            })),
            Self::Part(part, file_id) => {
                let mut value = part_json(part, 1);
                value["fileId"] = json!(file_id);
                serde_json::to_vec(&value)
            }
        };
        bytes.expect("strings and numbers always serialize")
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
            if version == 1 {
                storage["minimumPartSize"] = json!(limits.recommended_part_size);
            } else {
                allowed["bucketName"] = json!(bucket_name);
            }
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
            Entry::Version(file) => Self::new(file, action_name(file.action)),
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

pub(crate) fn action_name(action: Action) -> &'static str {
    match action {
        Action::Upload => "upload",
        Action::Hide => "hide",
        Action::Start => "start",
    }
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

/// Pieces of stored content in a row, perhaps with a cut at the end of them.
pub(crate) struct ReplyBody {
    pieces: std::vec::IntoIter<Bytes>,
    left: u64,
    cut: Option<Cut>,
    flushed: bool,
}

impl ReplyBody {
    /// The first `bytes` of the content, then a reset.
    pub fn cut_after(content: Content, bytes: u64) -> Self {
        let left = content.len();
        let kept = content.slice(0..bytes.min(left));
        Self { pieces: kept.into_pieces().into_iter(), left, cut: Some(Cut::Reset), flushed: false }
    }
}

impl From<Content> for ReplyBody {
    fn from(content: Content) -> Self {
        let left = content.len();
        Self { pieces: content.into_pieces().into_iter(), left, cut: None, flushed: false }
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
        if let Some(piece) = self.pieces.next() {
            self.left -= piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.cut {
            None => Poll::Ready(None),
            // hyper writes out what it has when a body is not ready; after an error it does not.
            Some(_) if !self.flushed => {
                self.flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(cut) => Poll::Ready(Some(Err(cut))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
