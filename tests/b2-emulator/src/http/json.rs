//! The calls with JSON parameters: reading them from a body or a query, and what each does.
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Map, Value, json};

use super::reply::{Cut, Reply, bucket_json};
use super::{Answer, authorization, finish, refuse};
use crate::calls::Call;
use crate::error::B2Error;
use crate::model::Model;
use crate::names;
use crate::requests::{
    BucketOnly, CopyFile, CopyPart, CreateBucket, DeleteFileVersion, FileOnly, FinishLargeFile, HideFile,
    ListBuckets, ListFiles, ListParts, ListUnfinished, StartLargeFile,
};
use crate::state::{Effect, Shared};

pub(super) async fn call(
    shared: &Arc<Shared>,
    version: u8,
    call: Call,
    request: Request<Incoming>,
) -> Answer {
    let token = authorization(&request);
    let query =
        (request.method() == Method::GET).then(|| request.uri().query().unwrap_or_default().to_owned());
    let body = request.into_body().collect().await.map_err(|_| Cut::Close)?.to_bytes();
    let params = match query {
        Some(query) => query_params(&query),
        None => serde_json::from_slice(&body),
    };
    let hit = shared.begin(call, |model| subject(model, params.as_ref().ok()?));
    let caller = Caller { shared, version, token };
    match params.and_then(|params| caller.effect(call, params)) {
        Ok(effect) => finish(shared, version, call, hit, effect).await,
        Err(error) => Ok(refuse(shared, format!("Malformed {}: {error}", call.name()))),
    }
}

/// Any call with JSON parameters may be a GET, by Backblaze's documentation of each.
fn query_params(query: &str) -> serde_json::Result<Value> {
    const NUMBERS: [&str; 5] =
        ["maxFileCount", "maxPartCount", "startPartNumber", "partNumber", "customUploadTimestamp"];
    let mut params = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let text = names::decode(value).ok_or(serde_json::Error::custom("a query that is not UTF-8"))?;
        let value = match name {
            "bucketTypes" | "partSha1Array" => json!(text.split(',').collect::<Vec<_>>()),
            "fileInfo" => serde_json::from_str(&text)?,
            "bypassGovernance" => json!(text == "true"),
            name if NUMBERS.contains(&name) => json!(text.parse::<u64>().map_err(serde_json::Error::custom)?),
            _ => json!(text),
        };
        params.insert(name.to_owned(), value);
    }
    Ok(Value::Object(params))
}

/// The file name that the call is about.
fn subject(model: &Model, params: &Value) -> Option<String> {
    if let Some(name) = params["fileName"].as_str() {
        return Some(name.into());
    }
    let file_id = params["fileId"].as_str().or_else(|| params["largeFileId"].as_str())?;
    model.version(file_id).map(|version| version.name.clone())
}

struct Caller<'a> {
    shared: &'a Shared,
    version: u8,
    token: String,
}

impl Caller<'_> {
    /// Fails if the parameters are not those of the call.
    fn effect(self, call: Call, params: Value) -> serde_json::Result<Effect> {
        let token = self.token.clone();
        match call {
            Call::AuthorizeAccount => Ok(Box::new(move |model, _| authorize(model, &token))),
            Call::ListBuckets => on(params, move |model, asked: ListBuckets, _| {
                let buckets = model.list_buckets(&token, &asked)?.into_iter().map(bucket_json);
                Ok(Reply::Json(json!({ "buckets": buckets.collect::<Vec<_>>() })))
            }),
            Call::CreateBucket => on(params, move |model, asked: CreateBucket, _| {
                model.create_bucket_as(&token, asked).map(bucket_json).map(Reply::Json)
            }),
            Call::ListFileNames => on(params, move |model, asked: ListFiles, _| {
                model.list_file_names(&token, &asked).map(Reply::Page)
            }),
            Call::ListFileVersions => on(params, move |model, asked: ListFiles, _| {
                model.list_file_versions(&token, &asked).map(Reply::Page)
            }),
            Call::GetFileInfo => on(params, move |model, asked: FileOnly, _| {
                let file = model.get_file_info(&token, &asked.file_id)?;
                let action = file.action.name();
                Ok(Reply::File(file, action))
            }),
            Call::HideFile => on(params, move |model, asked: HideFile, now_ms| {
                let hidden = model.hide_file(&token, &asked.bucket_id, &asked.file_name, now_ms)?;
                Ok(Reply::File(hidden, "hide"))
            }),
            Call::DeleteFileVersion => on(params, move |model, asked: DeleteFileVersion, _| {
                model.delete_file_version(&token, &asked.file_name, &asked.file_id)?;
                Ok(Reply::Json(json!({ "fileId": asked.file_id, "fileName": asked.file_name })))
            }),
            Call::GetUploadUrl | Call::GetUploadPartUrl => self.upload_url(call, params),
            Call::CopyFile | Call::CopyPart => self.copy(call, params),
            _ => self.large_file(call, params),
        }
    }

    /// The URLs have the two forms that Backblaze's documentation and recorded answers show.
    fn upload_url(self, call: Call, params: Value) -> serde_json::Result<Effect> {
        let Self { token, version, shared } = self;
        let upload = if call == Call::GetUploadUrl { Call::UploadFile } else { Call::UploadPart };
        let base = format!("{}/b2api/v{version}/{}", shared.endpoint, upload.name());
        let answer = move |field: &str, target: &str, upload_token: String| {
            let pod = upload_token.rsplit('_').next().unwrap_or_default();
            let url = match version {
                4 => format!("{base}?cvt={pod}&target={target}"),
                _ => format!("{base}/{target}/{pod}"),
            };
            Reply::Json(json!({ field: target, "uploadUrl": url, "authorizationToken": upload_token }))
        };
        match upload {
            Call::UploadFile => on(params, move |model, asked: BucketOnly, _| {
                let upload_token = model.get_upload_url(&token, &asked.bucket_id)?;
                Ok(answer("bucketId", &asked.bucket_id, upload_token))
            }),
            _ => on(params, move |model, asked: FileOnly, _| {
                let upload_token = model.get_upload_part_url(&token, &asked.file_id)?;
                Ok(answer("fileId", &asked.file_id, upload_token))
            }),
        }
    }

    /// Reads the source and hashes it first, so that the effect is short.
    fn copy(self, call: Call, params: Value) -> serde_json::Result<Effect> {
        let Self { token, shared, .. } = self;
        let read = |file_id: &str, range: &Option<String>| {
            let copied = shared.lock().model.copy_source(&token, file_id, range.as_deref())?;
            let sha1 = copied.sha1();
            Ok::<_, B2Error>((copied, sha1))
        };
        if call == Call::CopyFile {
            let asked: CopyFile = serde_json::from_value(params)?;
            let read = read(&asked.source_file_id, &asked.range);
            return Ok(Box::new(move |model, now_ms| {
                let (copied, sha1) = read?;
                model.copy_file(&token, asked, copied, sha1, now_ms).map(|file| Reply::File(file, "copy"))
            }));
        }
        let asked: CopyPart = serde_json::from_value(params)?;
        let read = read(&asked.source_file_id, &asked.range);
        Ok(Box::new(move |model, now_ms| {
            let (copied, sha1) = read?;
            let part = model.copy_part(&token, &asked, copied, sha1, now_ms)?;
            Ok(Reply::Part(part, asked.large_file_id))
        }))
    }

    fn large_file(self, call: Call, params: Value) -> serde_json::Result<Effect> {
        let token = self.token;
        match call {
            Call::StartLargeFile => on(params, move |model, asked: StartLargeFile, now_ms| {
                model.start_large_file(&token, asked, now_ms).map(|file| Reply::File(file, "start"))
            }),
            Call::FinishLargeFile => on(params, move |model, asked: FinishLargeFile, _| {
                model.finish_large_file(&token, &asked).map(|file| Reply::File(file, "upload"))
            }),
            Call::CancelLargeFile => on(params, move |model, asked: FileOnly, _| {
                let file = model.cancel_large_file(&token, &asked.file_id)?;
                Ok(Reply::Cancelled(file))
            }),
            Call::ListParts => on(params, move |model, asked: ListParts, _| {
                model.list_parts(&token, &asked).map(Reply::Parts)
            }),
            Call::ListUnfinishedLargeFiles => on(params, move |model, asked: ListUnfinished, _| {
                model.list_unfinished_large_files(&token, &asked).map(Reply::Page)
            }),
            call => Err(serde_json::Error::custom(format!("{} has no JSON parameters", call.name()))),
        }
    }
}

fn on<T: DeserializeOwned + Send + 'static>(
    params: Value,
    act: impl FnOnce(&mut Model, T, u64) -> Result<Reply, B2Error> + Send + 'static,
) -> serde_json::Result<Effect> {
    let asked: T = serde_json::from_value(params)?;
    Ok(Box::new(move |model, now_ms| act(model, asked, now_ms)))
}

/// The credentials come as HTTP Basic in the place of a token.
fn authorize(model: &mut Model, authorization: &str) -> Result<Reply, B2Error> {
    let encoded = authorization.strip_prefix("Basic ").unwrap_or_default();
    let credentials = BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    model.authorize_account(&credentials.unwrap_or_default()).map(Reply::Authorized)
}
