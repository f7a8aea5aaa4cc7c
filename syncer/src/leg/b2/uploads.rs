//! Uploads of whole files and of parts, each on an upload URL that nobody else uses meanwhile.

use std::sync::{Mutex, PoisonError};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::Sha1;
use super::api::{Call, UploadUrl};
use super::client::Client;
use super::content::{Content, busy, unchanged};
use super::failure::{Cause, Failure, says_wrong_sha1};
use super::file_info::FileInfo;
use super::names::{hex, percent_encode};

/// By the extension of the name, as B2 does it.
pub(super) const CONTENT_TYPE_AUTO: &str = "b2/x-auto";

/// Upload URLs of one bucket or one large file that are not in use. Never more than were in use at once.
pub(super) struct UrlPool {
    call: Call,
    request: Value,
    free: Mutex<Vec<UploadUrl>>,
}

impl UrlPool {
    pub fn of_bucket(bucket_id: &str) -> Self {
        Self::new(Call::GetUploadUrl, json!({ "bucketId": bucket_id }))
    }

    pub fn of_large_file(file_id: &str) -> Self {
        Self::new(Call::GetUploadPartUrl, json!({ "fileId": file_id }))
    }

    fn new(call: Call, request: Value) -> Self {
        UrlPool { call, request, free: Mutex::default() }
    }

    fn take(&self) -> Option<UploadUrl> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, url: UploadUrl) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(url);
    }
}

/// One request to an upload URL.
pub(super) struct Parcel {
    call: Call,
    headers: HeaderMap,
    content: Content,
}

impl Parcel {
    pub fn file(name: &str, info: &FileInfo, sha1: &Sha1, content: Content) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("x-bz-file-name", ascii(&percent_encode(name)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_AUTO));
        headers.insert("x-bz-content-sha1", ascii(&hex(sha1)));
        for (key, value) in info {
            let key = HeaderName::from_bytes(format!("x-bz-info-{key}").as_bytes());
            headers.insert(key.expect("our keys are names of headers"), ascii(&percent_encode(value)));
        }
        Parcel { call: Call::UploadFile, headers, content }
    }

    /// `number` counts from 1.
    pub fn part(number: usize, sha1: &Sha1, content: Content) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("x-bz-part-number", HeaderValue::from(number));
        headers.insert("x-bz-content-sha1", ascii(&hex(sha1)));
        Parcel { call: Call::UploadPart, headers, content }
    }
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("percent-encoding and digits leave only printable ASCII")
}

/// The first attempt may use a URL that was good before, the others ask for a new one each.
pub(super) async fn upload<T: DeserializeOwned>(
    client: &Client,
    pool: &UrlPool,
    parcel: &Parcel,
) -> Result<T, Failure> {
    let _slot = client.slots.acquire().await.expect("the semaphore is never closed");
    let mut attempts = client.attempts();
    loop {
        let url = if attempts.is_first() { pool.take() } else { None };
        match attempt(client, pool, url, parcel).await {
            Err(failure) if attempts.again(&failure).await => {}
            done => return done,
        }
    }
}

/// The URL goes back into the pool only after a success; however else this ends, it is dropped.
async fn attempt<T: DeserializeOwned>(
    client: &Client,
    pool: &UrlPool,
    url: Option<UploadUrl>,
    parcel: &Parcel,
) -> Result<T, Failure> {
    let Parcel { call, headers, content } = parcel;
    let url = match url {
        Some(url) => url,
        None => client.once(pool.call, &pool.request).await?,
    };
    match client.send(*call, &url, headers, content).await {
        Ok(answer) => {
            pool.give_back(url);
            Ok(answer)
        }
        Err(failure) => Err(Failure { cause: blame(failure.cause, content).await, ..failure }),
    }
}

/// B2 refuses bytes that are not those that were hashed: then the source has changed since.
async fn blame(cause: Cause, content: &Content) -> Cause {
    match (&cause, content) {
        (Cause::Answer { status: 400, message, .. }, Content::Range(file, _)) => {
            if says_wrong_sha1(message) {
                busy()
            } else {
                unchanged(file).await.err().unwrap_or(cause)
            }
        }
        _ => cause,
    }
}
