//! A large file: hashed in one pass, sent in parts, finished or taken back.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::super::{Problem, Sha1};
use super::api::{Call, Done, FileId, LARGE_FILE_BYTES_MAX, PARTS_MAX, StorageApi, UPLOAD_BYTES_MAX};
use super::client::Client;
use super::content::{Content, hash, unchanged};
use super::failure::{Cause, Failure};
use super::file_info::file_info;
use super::names::hex;
use super::uploads::{CONTENT_TYPE_AUTO, Parcel, UrlPool, upload};
use crate::tree::SourceFile;

/// What is to be uploaded, and under which name.
pub(super) struct LargeFile<'a> {
    pub bucket_id: &'a str,
    pub name: &'a str,
    pub mtime_ns: i64,
    pub writer: &'a str,
    pub file: &'a Arc<dyn SourceFile>,
    pub part_bytes: u64,
}

/// Above this a file goes up in parts.
pub(super) fn single_bytes_max(storage: &StorageApi) -> u64 {
    storage.recommended_part_size.min(UPLOAD_BYTES_MAX)
}

/// The size of all parts but the last: what B2 recommends, or more if there would be too many.
pub(super) fn part_bytes(size: u64, storage: &StorageApi) -> Result<u64, Failure> {
    if size > LARGE_FILE_BYTES_MAX {
        let why = format!("it has {size} bytes, and B2 holds {LARGE_FILE_BYTES_MAX} in one file");
        return Err(Failure { call: Call::StartLargeFile, cause: Cause::Source(Problem::Unfit, why) });
    }
    let recommended = storage.recommended_part_size.clamp(1, UPLOAD_BYTES_MAX);
    Ok(recommended.max(storage.absolute_minimum_part_size).max(size.div_ceil(PARTS_MAX)))
}

/// The file id and the hash of the whole.
pub(super) async fn upload_large(client: &Client, large: &LargeFile<'_>) -> Result<(String, Sha1), Failure> {
    let hashes = hash(large.file, large.part_bytes).await;
    let hashes = hashes.map_err(|cause| Failure { call: Call::StartLargeFile, cause })?;
    let request = json!({
        "bucketId": large.bucket_id,
        "fileName": large.name,
        "contentType": CONTENT_TYPE_AUTO,
        "fileInfo": file_info(large.mtime_ns, Some(&hashes.whole), large.writer),
    });
    let FileId { file_id } = client.call(Call::StartLargeFile, &request).await?;
    let finished = async {
        upload_parts(client, large, &file_id, &hashes.parts).await?;
        finish(client, &file_id, &hashes.parts).await
    };
    match finished.await {
        Ok(()) => Ok((file_id, hashes.whole)),
        Err(failure) => Err(take_back(client, &file_id, failure).await),
    }
}

async fn upload_parts(
    client: &Client,
    large: &LargeFile<'_>,
    file_id: &str,
    sha1s: &[Sha1],
) -> Result<(), Failure> {
    let pool = &UrlPool::of_large_file(file_id);
    let parts = stream::iter(0..sha1s.len()).map(|index| {
        let content = Content::Range(large.file.clone(), part_range(large, index));
        let parcel = Parcel::part(index + 1, &sha1s[index], content);
        async move { upload::<Done>(client, pool, &parcel).await }.boxed()
    });
    let mut uploaded = parts.buffer_unordered(client.transfers);
    while uploaded.try_next().await?.is_some() {}
    unchanged(large.file).await.map_err(|cause| Failure { call: Call::FinishLargeFile, cause })
}

fn part_range(large: &LargeFile<'_>, index: usize) -> Range<u64> {
    let start = index as u64 * large.part_bytes;
    start..(start + large.part_bytes).min(large.file.stat().size)
}

/// After a lost answer b2_get_file_info tells, as Backblaze's page on large files advises: it knows finished files only.
async fn finish(client: &Client, file_id: &str, sha1s: &[Sha1]) -> Result<(), Failure> {
    let sha1s: Vec<String> = sha1s.iter().map(|sha1| hex(sha1)).collect();
    let request = json!({ "fileId": file_id, "partSha1Array": sha1s });
    let mut attempts = client.attempts();
    let mut lost = None;
    loop {
        let failure = match client.once::<Done>(Call::FinishLargeFile, &request).await {
            Ok(Done {}) => return Ok(()),
            Err(failure) => failure,
        };
        if failure.outcome_unknown() {
            lost = Some(failure.clone());
        }
        if lost.is_some() && is_finished(client, file_id).await {
            return Ok(());
        }
        if !attempts.again(&failure).await {
            return Err(lost.unwrap_or(failure));
        }
    }
}

async fn is_finished(client: &Client, file_id: &str) -> bool {
    client.once::<FileId>(Call::GetFileInfo, &json!({ "fileId": file_id })).await.is_ok()
}

/// Best effort: what is left unfinished costs storage until somebody cancels it. Once B2 has taken it back, it can no
/// longer come true.
async fn take_back(client: &Client, file_id: &str, failure: Failure) -> Failure {
    let cancelled = client.call::<Done>(Call::CancelLargeFile, &json!({ "fileId": file_id })).await;
    match (cancelled, failure.cause) {
        (Ok(Done {}), Cause::NoAnswer(why)) => Failure { call: failure.call, cause: Cause::NotSent(why) },
        (_, cause) => Failure { call: failure.call, cause },
    }
}
