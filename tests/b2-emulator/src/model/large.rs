//! Large files: start, upload or copy parts, list what is there, finish or cancel.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Model;
use super::access::UploadTarget;
use super::listing::{Entry, Page};
use super::versions::{Copied, DeclaredSha1, stored_content_type, timestamp};
use crate::content::Content;
use crate::error::B2Error;
use crate::names;
use crate::requests;
use crate::version::{Action, Version};

const PART_NUMBER_MAX: u32 = 10_000;

#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub number: u32,
    pub sha1: String,
    pub content: Content,
    /// To the millisecond; b2_list_parts rounds it down to seconds, by recorded answers.
    pub upload_timestamp_ms: u64,
}

/// What an uploaded part brings; `sha1` is what was computed from the bytes received.
pub(crate) struct PartUpload {
    pub number: u32,
    pub declared: DeclaredSha1,
    pub sha1: String,
    pub content: Content,
}

#[derive(Debug)]
pub(crate) struct PartsPage {
    pub parts: Vec<Part>,
    pub next_number: Option<u32>,
}

impl Model {
    pub fn start_large_file(
        &mut self,
        token: &str,
        asked: requests::StartLargeFile,
        now_ms: u64,
    ) -> Result<Arc<Version>, B2Error> {
        self.allow(token, "writeFiles", &asked.bucket_id, Some(&asked.file_name))?;
        self.bucket(&asked.bucket_id)?;
        names::check_file_name(&asked.file_name)?;
        let info = asked.file_info.unwrap_or_default();
        names::check_info(&asked.file_name, &info)?;
        let started = Version {
            file_id: self.next_file_id(&asked.bucket_id),
            bucket_id: asked.bucket_id,
            name: asked.file_name,
            action: Action::Start,
            content_type: stored_content_type(asked.content_type),
            content_sha1: "none".into(),
            info,
            upload_timestamp_ms: timestamp(asked.custom_upload_timestamp, now_ms)?,
            content: Content::default(),
        };
        self.parts.insert(started.file_id.clone(), BTreeMap::new());
        Ok(self.add_version(started))
    }

    /// The token of the URL.
    pub fn get_upload_part_url(&mut self, token: &str, file_id: &str) -> Result<String, B2Error> {
        self.unfinished(token, file_id)?;
        let key = self.key_of(token)?.clone();
        Ok(self.add_upload_url(UploadTarget::LargeFile(file_id.into()), key))
    }

    pub fn upload_part(
        &mut self,
        target: &UploadTarget,
        upload: PartUpload,
        now_ms: u64,
    ) -> Result<Part, B2Error> {
        let UploadTarget::LargeFile(file_id) = target else {
            return Err(B2Error::bad_request("This upload URL takes whole files"));
        };
        self.check_upload_size(&upload.content)?;
        let sha1 = upload.declared.check(upload.sha1)?;
        let part = Part { number: upload.number, sha1, content: upload.content, upload_timestamp_ms: now_ms };
        self.add_part(file_id, part)
    }

    /// The smallest size of a part is not enforced here: live, parts of 10 and 4 bytes were copied.
    pub fn copy_part(
        &mut self,
        token: &str,
        asked: &requests::CopyPart,
        copied: Copied,
        sha1: String,
        now_ms: u64,
    ) -> Result<Part, B2Error> {
        self.unfinished(token, &asked.large_file_id)?;
        let part =
            Part { number: asked.part_number, sha1, content: copied.content, upload_timestamp_ms: now_ms };
        self.add_part(&asked.large_file_id, part)
    }

    /// A part that comes again takes the place of the first.
    fn add_part(&mut self, file_id: &str, part: Part) -> Result<Part, B2Error> {
        if !(1..=PART_NUMBER_MAX).contains(&part.number) {
            return Err(B2Error::bad_request(format!("Part number {} is not in 1..10000", part.number)));
        }
        if part.content.is_empty() {
            return Err(B2Error::bad_request("A part has at least one byte"));
        }
        let parts = self.parts.get_mut(file_id).ok_or_else(|| no_upload(file_id))?;
        parts.insert(part.number, part.clone());
        Ok(part)
    }

    /// Keeps the timestamp of the start, and with it the place among the versions, by recorded answers.
    pub fn finish_large_file(
        &mut self,
        token: &str,
        asked: &requests::FinishLargeFile,
    ) -> Result<Arc<Version>, B2Error> {
        let started = self.unfinished(token, &asked.file_id)?.clone();
        let parts = &self.parts[&started.file_id];
        self.check_parts(parts, &asked.part_sha1_array)?;
        let mut content = Content::default();
        parts.values().for_each(|part| content.append(&part.content));
        let finished = Version { action: Action::Upload, content, ..(*started).clone() };
        self.remove_version(&started);
        Ok(self.add_version(finished))
    }

    fn check_parts(&self, parts: &BTreeMap<u32, Part>, sha1s: &[String]) -> Result<(), B2Error> {
        if sha1s.len() < 2 {
            return Err(B2Error::bad_request("A large file has at least two parts"));
        }
        if parts.len() > sha1s.len() {
            return Err(B2Error::bad_request(format!("{} parts, but {} SHA-1s", parts.len(), sha1s.len())));
        }
        for (number, sha1) in (1..).zip(sha1s) {
            let Some(part) = parts.get(&number) else {
                return Err(B2Error::new(400, "missing_part", format!("Part {number} was not uploaded")));
            };
            if part.sha1.trim_start_matches("unverified:") != sha1.trim_start_matches("unverified:") {
                let message = format!("Part {number} has SHA-1 {}, not {sha1}", part.sha1);
                return Err(B2Error::new(400, "part_sha1_mismatch", message));
            }
            let smallest = self.limits.absolute_minimum_part_size;
            if (number as usize) < sha1s.len() && part.content.len() < smallest {
                return Err(B2Error::bad_request(format!("Part {number} is smaller than {smallest} bytes")));
            }
        }
        Ok(())
    }

    pub fn cancel_large_file(&mut self, token: &str, file_id: &str) -> Result<Arc<Version>, B2Error> {
        self.key_of(token)?;
        if !self.parts.contains_key(file_id) {
            return Err(B2Error::bad_request(format!("Invalid fileId: {file_id}")));
        }
        let started = self.unfinished(token, file_id)?.clone();
        self.remove_version(&started);
        Ok(started)
    }

    pub fn list_parts(&self, token: &str, asked: &requests::ListParts) -> Result<PartsPage, B2Error> {
        self.unfinished(token, &asked.file_id)?;
        let count = requests::count(asked.max_part_count, 100, 1000)?;
        let start = asked.start_part_number.unwrap_or(1);
        let mut rest = self.parts[&asked.file_id].range(start..).map(|(_, part)| part);
        let parts = rest.by_ref().take(count).cloned().collect();
        Ok(PartsPage { parts, next_number: rest.next().map(|part| part.number) })
    }

    /// Oldest first, as Backblaze's documentation has it: here in the order of the ids.
    pub fn list_unfinished_large_files(
        &self,
        token: &str,
        asked: &requests::ListUnfinished,
    ) -> Result<Page, B2Error> {
        let prefix = asked.name_prefix.as_deref().unwrap_or_default();
        self.allow(token, "listFiles", &asked.bucket_id, Some(prefix))?;
        let count = requests::count(asked.max_file_count, 100, 100)?;
        let start = asked.start_file_id.as_deref().unwrap_or_default();
        let wanted = |version: &&Arc<Version>| {
            version.action == Action::Start
                && version.name.starts_with(prefix)
                && version.file_id.as_str() >= start
        };
        let bucket = self.bucket(&asked.bucket_id)?;
        let mut found: Vec<_> = bucket.all_versions().filter(wanted).cloned().collect();
        found.sort_by(|a, b| a.file_id.cmp(&b.file_id));
        let next_id = found.get(count).map(|version| version.file_id.clone());
        found.truncate(count);
        Ok(Page { entries: found.into_iter().map(Entry::Version).collect(), next_name: None, next_id })
    }

    fn unfinished(&self, token: &str, file_id: &str) -> Result<&Arc<Version>, B2Error> {
        self.key_of(token)?;
        let found = self.versions_by_id.get(file_id).filter(|version| version.action == Action::Start);
        let version = found.ok_or_else(|| no_upload(file_id))?;
        self.allow(token, "writeFiles", &version.bucket_id, Some(&version.name))?;
        Ok(version)
    }
}

fn no_upload(file_id: &str) -> B2Error {
    B2Error::bad_request(format!("No active upload for: {file_id}"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::fixture::{Fixture, code};
    use super::*;

    fn start(account: &mut Fixture, name: &str) -> String {
        let asked = requests::StartLargeFile {
            bucket_id: account.bucket.clone(),
            file_name: name.into(),
            content_type: "b2/x-auto".into(),
            file_info: None,
            custom_upload_timestamp: None,
        };
        let (token, now) = (account.token.clone(), account.now());
        account.model.start_large_file(&token, asked, now).expect("a good start").file_id.clone()
    }

    fn part(
        account: &mut Fixture,
        file_id: &str,
        number: u32,
        body: &'static str,
    ) -> Result<String, B2Error> {
        let content = Content::from(Bytes::from_static(body.as_bytes()));
        let sha1 = content.sha1();
        let declared = DeclaredSha1::Digits(sha1.clone());
        let now = account.now();
        let target = UploadTarget::LargeFile(file_id.into());
        account
            .model
            .upload_part(&target, PartUpload { number, declared, sha1, content }, now)
            .map(|p| p.sha1)
    }

    fn finish(account: &mut Fixture, file_id: &str, sha1s: &[String]) -> Result<Arc<Version>, B2Error> {
        let asked = requests::FinishLargeFile { file_id: file_id.into(), part_sha1_array: sha1s.into() };
        account.model.finish_large_file(&account.token.clone(), &asked)
    }

    #[test]
    fn parts_in_any_order_make_the_whole_and_a_second_finish_is_refused() {
        let mut account = Fixture::new();
        let file_id = start(&mut account, "big");
        let second = part(&mut account, &file_id, 2, "fg").expect("accepted");
        part(&mut account, &file_id, 1, "wrong").expect("accepted");
        let first = part(&mut account, &file_id, 1, "abcde").expect("it takes the place of the first");
        assert_eq!(code(account.model.get_file_info(&account.token, &file_id)), "not_found");
        let sha1s = [first, second];
        let finished = finish(&mut account, &file_id, &sha1s).expect("complete");
        assert_eq!(finished.content.to_bytes(), "abcdefg");
        assert_eq!((finished.file_id.as_str(), finished.content_sha1.as_str()), (file_id.as_str(), "none"));
        assert_eq!(code(finish(&mut account, &file_id, &sha1s)), "bad_request");
        assert!(account.model.get_file_info(&account.token, &file_id).is_ok());
    }

    #[test]
    fn finish_refuses_missing_small_and_differing_parts() {
        let mut account = Fixture::new();
        let file_id = start(&mut account, "big");
        let first = part(&mut account, &file_id, 1, "abcde").expect("accepted");
        let third = part(&mut account, &file_id, 3, "efg").expect("accepted");
        assert_eq!(code(finish(&mut account, &file_id, &[first, third.clone()])), "missing_part");
        let first = part(&mut account, &file_id, 1, "abcd").expect("too small, but accepted");
        let second = part(&mut account, &file_id, 2, "ABCDE").expect("accepted");
        let all = [first, second.clone(), third.clone()];
        let error = finish(&mut account, &file_id, &all).expect_err("the first is small");
        assert_eq!(error.message, "Part 1 is smaller than 5 bytes");
        let first = part(&mut account, &file_id, 1, "abcde").expect("accepted");
        let swapped = [first.clone(), third.clone(), second.clone()];
        assert_eq!(code(finish(&mut account, &file_id, &swapped)), "part_sha1_mismatch");
        assert_eq!(code(finish(&mut account, &file_id, &[first.clone(), second.clone()])), "bad_request");
        assert!(finish(&mut account, &file_id, &[first, second, third]).is_ok());
    }

    #[test]
    fn part_numbers_run_from_1_to_10000_and_no_part_is_empty() {
        let mut account = Fixture::new();
        let file_id = start(&mut account, "big");
        assert_eq!(code(part(&mut account, &file_id, 0, "x")), "bad_request");
        assert_eq!(code(part(&mut account, &file_id, 10_001, "x")), "bad_request");
        assert_eq!(code(part(&mut account, &file_id, 1, "")), "bad_request");
        assert_eq!(code(part(&mut account, "made up", 1, "x")), "bad_request");
    }

    #[test]
    fn a_part_may_be_copied_from_a_range_of_a_file() {
        let mut account = Fixture::new();
        let source = account.put("a", "0123456789");
        let file_id = start(&mut account, "big");
        let asked = requests::CopyPart {
            source_file_id: source.file_id.clone(),
            large_file_id: file_id.clone(),
            part_number: 1,
            range: Some("bytes=0-5".into()),
        };
        let (token, now) = (account.token.clone(), account.now());
        let copied = account.model.copy_source(&token, &source.file_id, Some("bytes=0-5")).expect("a range");
        let sha1 = copied.sha1();
        let first = account.model.copy_part(&token, &asked, copied, sha1, now).expect("copied").sha1;
        let second = part(&mut account, &file_id, 2, "tail").expect("accepted");
        let finished = finish(&mut account, &file_id, &[first, second]).expect("complete");
        assert_eq!(finished.content.to_bytes(), "012345tail");
    }

    #[test]
    fn a_finished_large_file_lies_under_what_was_uploaded_since_its_start() {
        let mut account = Fixture::new();
        let file_id = start(&mut account, "big");
        let sha1s = [1, 2].map(|number| part(&mut account, &file_id, number, "abcde").expect("accepted"));
        let newer = account.put("big", "newer");
        finish(&mut account, &file_id, &sha1s).expect("complete");
        let bucket = account.model.bucket(&account.bucket).expect("it is there");
        assert_eq!(bucket.visible_files().map(|v| &v.file_id).collect::<Vec<_>>(), [&newer.file_id]);
    }

    #[test]
    fn parts_and_unfinished_files_are_listed_in_pages_until_cancelled() {
        let mut account = Fixture::new();
        let ids: Vec<_> = ["b", "a", "c"].iter().map(|name| start(&mut account, name)).collect();
        for number in [1, 2, 5] {
            part(&mut account, &ids[0], number, "abcde").expect("accepted");
        }
        let parts = |start, max| {
            let asked = requests::ListParts {
                file_id: ids[0].clone(),
                start_part_number: start,
                max_part_count: max,
            };
            account.model.list_parts(&account.token, &asked).expect("a page")
        };
        let page = parts(None, Some(2));
        assert_eq!((page.parts.len(), page.next_number), (2, Some(5)));
        assert_eq!((parts(Some(5), None).parts.len(), parts(Some(5), None).next_number), (1, None));

        let unfinished = |account: &Fixture| {
            let asked = requests::ListUnfinished {
                bucket_id: account.bucket.clone(),
                name_prefix: None,
                start_file_id: None,
                max_file_count: Some(2),
            };
            let page = account.model.list_unfinished_large_files(&account.token, &asked).expect("a page");
            (page.entries.len(), page.next_id)
        };
        assert_eq!(unfinished(&account), (2, Some(ids[2].clone())));
        assert!(account.model.cancel_large_file(&account.token.clone(), &ids[0]).is_ok());
        assert_eq!(unfinished(&account), (2, None));
        let error = account.model.cancel_large_file(&account.token.clone(), &ids[0]).expect_err("gone");
        assert_eq!(error.message, format!("Invalid fileId: {}", ids[0]));
    }
}
