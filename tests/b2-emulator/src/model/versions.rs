//! Versions of files: uploading, hiding, deleting, copying and finding them.
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::access::UploadTarget;
use super::{Bucket, Model};
use crate::content::Content;
use crate::error::B2Error;
use crate::names;
use crate::requests;
use crate::version::{Action, Version};

/// What an upload brings; `sha1` is what was computed from the bytes received.
pub(crate) struct Upload {
    pub name: String,
    pub content_type: String,
    pub info: BTreeMap<String, String>,
    pub declared: DeclaredSha1,
    pub sha1: String,
    pub content: Content,
    pub custom_timestamp_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeclaredSha1 {
    Digits(String),
    DoNotVerify,
}

impl DeclaredSha1 {
    /// What B2 stores as contentSha1; the prefix of an unverified one is that of Backblaze's SDK.
    pub fn check(&self, computed: String) -> Result<String, B2Error> {
        match self {
            Self::DoNotVerify => Ok(format!("unverified:{computed}")),
            Self::Digits(digits) if digits.eq_ignore_ascii_case(&computed) => Ok(computed),
            Self::Digits(_) => Err(B2Error::bad_request("Sha1 did not match data received")),
        }
    }
}

/// What b2_copy_file and b2_copy_part read from their source.
#[derive(Debug)]
pub(crate) struct Copied {
    pub source: Arc<Version>,
    pub content: Content,
    pub is_whole: bool,
}

impl Copied {
    /// Reads all bytes of a range or a large source: not to be called under a lock.
    pub fn sha1(&self) -> String {
        match self.is_whole && names::is_sha1(&self.source.content_sha1) {
            true => self.source.content_sha1.clone(),
            false => self.content.sha1(),
        }
    }
}

impl Model {
    pub fn upload_file(
        &mut self,
        url_token: &str,
        target: &UploadTarget,
        upload: Upload,
        now_ms: u64,
    ) -> Result<Arc<Version>, B2Error> {
        let UploadTarget::Bucket(bucket_id) = target else {
            return Err(B2Error::bad_request("This upload URL takes parts of a large file"));
        };
        names::check_file_name(&upload.name)?;
        names::check_info(&upload.name, &upload.info)?;
        self.allow_upload(url_token, &upload.name)?;
        self.check_upload_size(&upload.content)?;
        let content_sha1 = upload.declared.check(upload.sha1)?;
        let version = Version {
            file_id: self.next_file_id(bucket_id),
            bucket_id: bucket_id.clone(),
            name: upload.name,
            action: Action::Upload,
            content_type: stored_content_type(upload.content_type),
            content_sha1,
            info: upload.info,
            upload_timestamp_ms: timestamp(upload.custom_timestamp_ms, now_ms)?,
            content: upload.content,
        };
        Ok(self.add_version(version))
    }

    pub(super) fn check_upload_size(&self, content: &Content) -> Result<(), B2Error> {
        match content.len() <= self.limits.upload_bytes_max {
            true => Ok(()),
            false => Err(B2Error::bad_request(format!("Content-Length {} is too large", content.len()))),
        }
    }

    pub fn hide_file(
        &mut self,
        token: &str,
        bucket_id: &str,
        name: &str,
        now_ms: u64,
    ) -> Result<Arc<Version>, B2Error> {
        self.allow(token, "writeFiles", bucket_id, Some(name))?;
        match self.bucket(bucket_id)?.newest(name).map(|version| version.action) {
            None => return Err(B2Error::new(400, "no_such_file", format!("File not present: {name}"))),
            Some(Action::Hide) => {
                return Err(B2Error::new(400, "already_hidden", format!("File already hidden: {name}")));
            }
            Some(_) => {}
        }
        let content = Content::default();
        let marker = Version {
            file_id: self.next_file_id(bucket_id),
            bucket_id: bucket_id.into(),
            name: name.into(),
            action: Action::Hide,
            content_type: "application/x-bz-hide-marker".into(),
            // A recorded answer has the SHA-1 of nothing here, the documentation null.
            content_sha1: content.sha1(),
            info: BTreeMap::new(),
            upload_timestamp_ms: timestamp(None, now_ms)?,
            content,
        };
        Ok(self.add_version(marker))
    }

    /// Deletes unfinished large files too, as "rclone cleanup" does with it.
    pub fn delete_file_version(&mut self, token: &str, name: &str, file_id: &str) -> Result<(), B2Error> {
        self.key_of(token)?;
        let found = self.versions_by_id.get(file_id).filter(|version| version.name == name).cloned();
        let version = found.ok_or_else(|| {
            B2Error::new(400, "file_not_present", format!("File not present: {name} {file_id}"))
        })?;
        self.allow(token, "deleteFiles", &version.bucket_id, Some(name))?;
        self.remove_version(&version);
        Ok(())
    }

    pub(super) fn remove_version(&mut self, version: &Version) {
        self.versions_by_id.remove(&version.file_id);
        self.parts.remove(&version.file_id);
        let bucket = self.buckets.get_mut(&version.bucket_id).expect("buckets are never removed");
        if let Some(versions) = bucket.files.get_mut(&version.name) {
            versions.retain(|kept| kept.file_id != version.file_id);
            if versions.is_empty() {
                bucket.files.remove(&version.name);
            }
        }
    }

    /// The first half of a copy: the bytes, shared with the source.
    pub fn copy_source(&self, token: &str, file_id: &str, range: Option<&str>) -> Result<Copied, B2Error> {
        self.key_of(token)?;
        let source = self.finished(file_id)?;
        self.allow(token, "readFiles", &source.bucket_id, Some(&source.name))?;
        let whole = 0..source.size();
        let range = match range {
            Some(text) => parse_range(text, source.size()).ok_or_else(|| range_error(text))?,
            None => whole.clone(),
        };
        let bytes = range.end - range.start;
        if bytes > self.limits.copy_bytes_max {
            // The wording is the one that Backblaze's SDK recognises.
            return Err(B2Error::new(400, "source_too_large", format!("Copy source too big: {bytes}")));
        }
        let is_whole = range == whole;
        Ok(Copied { source: source.clone(), content: source.content.slice(range), is_whole })
    }

    /// The second half: `sha1` is that of `copied`, computed without a lock.
    pub fn copy_file(
        &mut self,
        token: &str,
        asked: requests::CopyFile,
        copied: Copied,
        sha1: String,
        now_ms: u64,
    ) -> Result<Arc<Version>, B2Error> {
        let source = &copied.source;
        let bucket_id = asked.destination_bucket_id.unwrap_or_else(|| source.bucket_id.clone());
        self.allow(token, "writeFiles", &bucket_id, Some(&asked.file_name))?;
        self.bucket(&bucket_id)?;
        names::check_file_name(&asked.file_name)?;
        let (content_type, info) =
            match (asked.metadata_directive.as_deref(), asked.content_type, asked.file_info) {
                (None | Some("COPY"), None, None) => (source.content_type.clone(), source.info.clone()),
                (Some("REPLACE"), Some(content_type), info) => (content_type, info.unwrap_or_default()),
                (directive, ..) => {
                    let message =
                        format!("contentType and fileInfo do not fit metadataDirective {directive:?}");
                    return Err(B2Error::bad_request(message));
                }
            };
        names::check_info(&asked.file_name, &info)?;
        // A whole copy tells what its source tells: "none" stays "none".
        let content_sha1 = if copied.is_whole { source.content_sha1.clone() } else { sha1 };
        let version = Version {
            file_id: self.next_file_id(&bucket_id),
            bucket_id,
            name: asked.file_name,
            action: Action::Upload,
            content_type: stored_content_type(content_type),
            content_sha1,
            info,
            upload_timestamp_ms: timestamp(None, now_ms)?,
            content: copied.content,
        };
        Ok(self.add_version(version))
    }

    pub fn get_file_info(&self, token: &str, file_id: &str) -> Result<Arc<Version>, B2Error> {
        self.key_of(token)?;
        let found = self.versions_by_id.get(file_id).filter(|version| version.action != Action::Start);
        let version = found.ok_or_else(|| B2Error::not_found(format!("File not present: {file_id}")))?;
        self.allow(token, "readFiles", &version.bucket_id, Some(&version.name))?;
        Ok(version.clone())
    }

    pub fn download_by_id(&self, token: &str, file_id: &str) -> Result<Arc<Version>, B2Error> {
        self.key_of(token)?;
        let version = self.finished(file_id)?;
        self.allow(token, "readFiles", &version.bucket_id, Some(&version.name))?;
        Ok(version.clone())
    }

    pub fn download_by_name(&self, token: &str, bucket: &str, name: &str) -> Result<Arc<Version>, B2Error> {
        self.key_of(token)?;
        let missing = || B2Error::not_found(format!("File with such name does not exist: {bucket}/{name}"));
        let bucket = self.bucket_named(bucket).ok_or_else(missing)?;
        self.allow(token, "readFiles", &bucket.id, Some(name))?;
        bucket.visible(name).cloned().ok_or_else(missing)
    }

    pub fn version(&self, file_id: &str) -> Option<&Arc<Version>> {
        self.versions_by_id.get(file_id)
    }

    fn finished(&self, file_id: &str) -> Result<&Arc<Version>, B2Error> {
        let found = self.versions_by_id.get(file_id).filter(|version| version.action == Action::Upload);
        found.ok_or_else(|| B2Error::not_found(format!("File not present: {file_id}")))
    }

    pub(super) fn next_file_id(&mut self, bucket_id: &str) -> String {
        format!("4_z{bucket_id}_f{:017}", self.next_serial())
    }

    /// A version takes the place of its timestamp; among equal ones the last to come is the newest.
    pub(super) fn add_version(&mut self, version: Version) -> Arc<Version> {
        let version = Arc::new(version);
        self.versions_by_id.insert(version.file_id.clone(), version.clone());
        let bucket = self.buckets.get_mut(&version.bucket_id).expect("the caller looked the bucket up");
        let versions = match bucket.files.get_mut(&version.name) {
            Some(versions) => versions,
            None => bucket.files.entry(version.name.clone()).or_default(),
        };
        let place = versions.partition_point(|old| old.upload_timestamp_ms <= version.upload_timestamp_ms);
        versions.insert(place, version.clone());
        version
    }
}

impl Bucket {
    /// Not counting unfinished large files.
    fn newest(&self, name: &str) -> Option<&Arc<Version>> {
        newest(self.files.get(name)?)
    }

    fn visible(&self, name: &str) -> Option<&Arc<Version>> {
        self.newest(name).filter(|version| version.action == Action::Upload)
    }
}

pub(super) fn newest(oldest_first: &[Arc<Version>]) -> Option<&Arc<Version>> {
    oldest_first.iter().rev().find(|version| version.action != Action::Start)
}

/// "bytes=a-b" or "bytes=a-", inclusive; None if it does not lie within `size` at its start.
pub(crate) fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.saturating_add(1).min(size),
    };
    (first < end).then_some(first..end)
}

pub(crate) fn range_error(text: &str) -> B2Error {
    B2Error::new(416, "range_not_satisfiable", format!("Range is not satisfiable: {text}"))
}

/// "b2/x-auto" means by the extension; what is stored for unknown ones does for all here.
pub(super) fn stored_content_type(sent: String) -> String {
    if sent == "b2/x-auto" { "application/octet-stream".into() } else { sent }
}

pub(super) fn timestamp(custom_ms: Option<u64>, now_ms: u64) -> Result<u64, B2Error> {
    match custom_ms {
        Some(custom_ms) if custom_ms > now_ms => {
            Err(B2Error::bad_request("Upload timestamp is in the future"))
        }
        Some(custom_ms) => Ok(custom_ms),
        None => Ok(now_ms / 1000 * 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, code, upload};
    use super::*;

    fn visible(account: &Fixture, name: &str) -> Option<String> {
        account.model.bucket(&account.bucket).expect("it is there").visible(name).map(|v| v.file_id.clone())
    }

    #[test]
    fn an_upload_adds_a_version_and_the_last_one_is_visible() {
        let mut account = Fixture::new();
        let first = account.put("a", "one");
        let second = account.put("a", "two");
        assert_eq!(visible(&account, "a"), Some(second.file_id.clone()));
        assert_eq!(account.model.delete_file_version(&account.token.clone(), "a", &second.file_id), Ok(()));
        assert_eq!(visible(&account, "a"), Some(first.file_id.clone()), "the older one shows again");
        assert_eq!(first.upload_timestamp_ms % 1000, 0);
    }

    #[test]
    fn a_wrong_sha1_is_refused_and_nothing_is_stored() {
        let mut account = Fixture::new();
        let wrong = Upload { declared: DeclaredSha1::Digits("0".repeat(40)), ..upload("a", "one") };
        let error = account.try_put(wrong).expect_err("a wrong SHA-1");
        assert_eq!((error.status, &*error.message), (400, "Sha1 did not match data received"));
        assert_eq!(visible(&account, "a"), None);
    }

    #[test]
    fn an_unverified_upload_says_so() {
        let mut account = Fixture::new();
        let unverified = Upload { declared: DeclaredSha1::DoNotVerify, ..upload("a", "one") };
        let stored = account.try_put(unverified).expect("accepted");
        assert_eq!(stored.content_sha1, format!("unverified:{}", stored.sha1()));
    }

    #[test]
    fn an_upload_over_the_limit_or_from_the_future_is_refused() {
        let mut account = Fixture::new();
        let long = "0123456789".repeat(6);
        assert_eq!(code(account.try_put(upload("a", long.leak()))), "bad_request");
        let future = Upload { custom_timestamp_ms: Some(u64::MAX), ..upload("a", "one") };
        assert_eq!(code(account.try_put(future)), "bad_request");
    }

    #[test]
    fn a_version_with_an_older_custom_timestamp_lies_under_the_newer_one() {
        let mut account = Fixture::new();
        let newest = account.put("a", "one");
        account.try_put(Upload { custom_timestamp_ms: Some(1000), ..upload("a", "old") }).expect("accepted");
        assert_eq!(visible(&account, "a"), Some(newest.file_id.clone()));
    }

    #[test]
    fn hiding_covers_a_name_once_and_deleting_the_marker_uncovers_it() {
        let mut account = Fixture::new();
        assert_eq!(code(account.hide("a")), "no_such_file");
        let file = account.put("a", "one");
        let marker = account.hide("a").expect("it is visible");
        assert_eq!(visible(&account, "a"), None);
        assert_eq!(code(account.hide("a")), "already_hidden");
        assert_eq!(account.model.delete_file_version(&account.token.clone(), "a", &marker.file_id), Ok(()));
        assert_eq!(visible(&account, "a"), Some(file.file_id.clone()));
    }

    #[test]
    fn deleting_needs_the_name_and_the_id_of_one_version() {
        let mut account = Fixture::new();
        let file = account.put("a", "one");
        let token = account.token.clone();
        assert_eq!(code(account.model.delete_file_version(&token, "b", &file.file_id)), "file_not_present");
        assert_eq!(code(account.model.delete_file_version(&token, "a", "made up")), "file_not_present");
        assert_eq!(account.model.delete_file_version(&token, "a", &file.file_id), Ok(()));
        assert_eq!(code(account.model.get_file_info(&token, &file.file_id)), "not_found");
    }

    fn copy_request(source: &Version, range: Option<&str>) -> requests::CopyFile {
        requests::CopyFile {
            source_file_id: source.file_id.clone(),
            file_name: "copy".into(),
            destination_bucket_id: None,
            range: range.map(str::to_owned),
            metadata_directive: None,
            content_type: None,
            file_info: None,
        }
    }

    fn copy(account: &mut Fixture, asked: requests::CopyFile) -> Result<Arc<Version>, B2Error> {
        let (token, now) = (account.token.clone(), account.now());
        let copied = account.model.copy_source(&token, &asked.source_file_id, asked.range.as_deref())?;
        let sha1 = copied.sha1();
        account.model.copy_file(&token, asked, copied, sha1, now)
    }

    #[test]
    fn a_copy_takes_content_and_metadata_and_a_range_takes_a_part() {
        let mut account = Fixture::new();
        let source = account.put("a", "0123456789");
        let whole = copy(&mut account, copy_request(&source, None)).expect("a copy");
        assert_eq!((&whole.content_sha1, &whole.content_type), (&source.content_sha1, &source.content_type));
        let part = copy(&mut account, copy_request(&source, Some("bytes=2-4"))).expect("a copy");
        assert_eq!(part.content.to_bytes(), "234");
        assert_eq!(part.content_sha1, part.sha1());
        assert_eq!(
            code(copy(&mut account, copy_request(&source, Some("bytes=10-")))),
            "range_not_satisfiable"
        );
    }

    #[test]
    fn a_copy_with_new_metadata_must_say_replace_and_the_content_type() {
        let mut account = Fixture::new();
        let source = account.put("a", "one");
        let with = |directive: Option<&str>, content_type: Option<&str>| requests::CopyFile {
            metadata_directive: directive.map(str::to_owned),
            content_type: content_type.map(str::to_owned),
            ..copy_request(&source, None)
        };
        assert!(copy(&mut account, with(Some("REPLACE"), Some("text/html"))).is_ok());
        assert_eq!(code(copy(&mut account, with(Some("REPLACE"), None))), "bad_request");
        assert_eq!(code(copy(&mut account, with(Some("COPY"), Some("text/html")))), "bad_request");
    }

    #[test]
    fn a_source_over_the_copy_limit_is_too_large_and_a_missing_one_not_found() {
        let mut account = Fixture::new();
        let source = account.put("a", "0123456789012345678901234");
        let error = copy(&mut account, copy_request(&source, None)).expect_err("over 20 bytes");
        assert_eq!((&*error.code, &*error.message), ("source_too_large", "Copy source too big: 25"));
        assert_eq!(code(account.model.copy_source(&account.token, "made up", None)), "not_found");
    }

    #[test]
    fn ranges_are_inclusive_cut_at_the_end_and_must_start_inside() {
        assert_eq!(parse_range("bytes=0-4", 10), Some(0..5));
        assert_eq!(parse_range("bytes=5-", 10), Some(5..10));
        assert_eq!(parse_range("bytes=5-99", 10), Some(5..10));
        for bad in ["bytes=10-", "bytes=4-2", "bytes=-5", "0-4", "bytes=0-4,6-7"] {
            assert_eq!(parse_range(bad, 10), None, "{bad}");
        }
    }
}
