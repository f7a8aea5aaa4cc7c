//! The store: what a run asks of a destination, answered by a bucket.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use serde_json::json;
use shared::config::B2Leg;
use shared::exit::Exit;
use shared::path::RelPath;

use super::super::{
    Body, Calls, Holds, Listed, Page, Problem, Put, Receipt, Remove, Sha1, Store, StoreError, What,
};
use super::api::{Allowed, Call, Done, File, FileId, ListBucketsAnswer, ListFileNamesAnswer};
use super::client::{Client, Session, Tuning};
use super::content::{Content, hash};
use super::failure::{Cause, Failure};
use super::file_info::{file_info, mtime_ns, sha1, writer};
use super::large::{LargeFile, part_bytes, single_bytes_max, upload_large};
use super::names::{Meaning, NAME_BYTES_MAX, Names};
use super::uploads::{Parcel, UrlPool, upload};
use crate::credentials::Credentials;
use crate::tree::Kind;

/// What every run needs; b2_hide_file, too, asks for writeFiles.
const RIGHTS: [&str; 2] = ["listFiles", "writeFiles"];

/// One leg's bucket.
pub struct B2Store {
    client: Client,
    bucket: String,
    names: Names,
    writer_id: String,
    opened: OnceLock<Opened>,
    apart: AtomicU64,
}

struct Opened {
    bucket_id: String,
    pool: UrlPool,
}

impl B2Store {
    /// `writer_id` goes into each object; `transfers` is how many uploads go on at once, parts included.
    pub fn new(
        leg: &B2Leg,
        credentials: Credentials,
        writer_id: &str,
        transfers: usize,
    ) -> Result<Self, StoreError> {
        Self::tuned(leg, credentials, writer_id, transfers, Tuning::default())
    }

    pub(super) fn tuned(
        leg: &B2Leg,
        credentials: Credentials,
        writer_id: &str,
        transfers: usize,
        tuning: Tuning,
    ) -> Result<Self, StoreError> {
        let client = Client::new(&leg.endpoint, credentials, transfers.max(1), tuning);
        Ok(B2Store {
            client: client.map_err(|failure| failure.into_store_error("use", &leg.endpoint))?,
            bucket: leg.bucket.clone(),
            names: Names::new(&leg.prefix),
            writer_id: writer_id.to_owned(),
            opened: OnceLock::new(),
            apart: AtomicU64::new(0),
        })
    }

    /// How objects are named, for reports of those that stand apart.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Uploads of this run whose object does not stand under its own path.
    pub fn uploaded_apart(&self) -> u64 {
        self.apart.load(Ordering::Relaxed)
    }

    async fn find_bucket(&self) -> Result<Opened, Failure> {
        let session = self.client.authorized().await?;
        let allowed = session.storage.allowed();
        self.check_rights(&allowed)?;
        let bucket_id = self.bucket_id(&session, &allowed).await?;
        Ok(Opened { pool: UrlPool::of_bucket(&bucket_id), bucket_id })
    }

    fn check_rights(&self, allowed: &Allowed) -> Result<(), Failure> {
        let has = |right: &str| allowed.capabilities.iter().any(|own| own == right);
        let missing: Vec<&str> = RIGHTS.into_iter().filter(|right| !has(right)).collect();
        if !missing.is_empty() {
            return Err(self.refused(format!("lacks {}: make one that has them", missing.join(", "))));
        }
        let prefix = allowed.name_prefix.as_deref().unwrap_or_default();
        if !self.names.top().starts_with(prefix) {
            let top = self.names.top();
            return Err(self.refused(format!(
                "is only for names that begin with `{prefix}`, and those of this leg begin with `{top}`"
            )));
        }
        Ok(())
    }

    /// A key that is restricted to the bucket knows its id, and may lack the right to list buckets.
    async fn bucket_id(&self, session: &Session, allowed: &Allowed) -> Result<String, Failure> {
        let named = |name: Option<&str>| name == Some(self.bucket.as_str());
        let granted = allowed.buckets.iter().flatten().find(|bucket| named(bucket.name.as_deref()));
        if allowed.buckets.is_some() && granted.is_none() {
            return Err(self.refused("is restricted to other buckets, or its bucket was deleted".into()));
        }
        if !allowed.capabilities.iter().any(|own| own == "listBuckets") {
            let granted = granted.map(|bucket| bucket.id.clone());
            return granted.ok_or_else(|| self.refused("lacks listBuckets: make one that has it".into()));
        }
        let request = json!({ "accountId": session.account_id, "bucketName": self.bucket });
        let answer: ListBucketsAnswer = self.client.call(Call::ListBuckets, &request).await?;
        let found = answer.buckets.into_iter().find(|bucket| named(Some(&bucket.bucket_name)));
        found.map(|bucket| bucket.bucket_id).ok_or_else(|| {
            let why = format!(
                "there is no such bucket for the application key {} at {}: correct `bucket`, or create it",
                self.client.key_id(),
                self.client.endpoint()
            );
            Failure { call: Call::ListBuckets, cause: Cause::Stop(Exit::Config, why) }
        })
    }

    fn refused(&self, why: String) -> Failure {
        let why = format!("the application key {} {why}", self.client.key_id());
        Failure { call: Call::AuthorizeAccount, cause: Cause::Stop(Exit::Refused, why) }
    }

    fn opened(&self, call: Call) -> Result<&Opened, Failure> {
        let missing = || Cause::Stop(Exit::Failed, "the bucket was not opened before".into());
        self.opened.get().ok_or_else(|| Failure { call, cause: missing() })
    }

    async fn upload(&self, dest: &RelPath, mtime_ns: i64, body: &Body) -> Result<Receipt, Failure> {
        let opened = self.opened(Call::UploadFile)?;
        let name = self.names.object(dest);
        let (object, sha1) = match &body.small {
            Some((bytes, sha1)) => {
                let content = Content::Memory(bytes.clone());
                (self.upload_single(opened, &name.text, mtime_ns, content, sha1).await?, *sha1)
            }
            None => self.upload_file(opened, &name.text, mtime_ns, body).await?,
        };
        self.apart.fetch_add(name.apart.into(), Ordering::Relaxed);
        Ok(Receipt { object, sha1: Some(sha1) })
    }

    async fn upload_file(
        &self,
        opened: &Opened,
        name: &str,
        mtime_ns: i64,
        body: &Body,
    ) -> Result<(String, Sha1), Failure> {
        let storage = &self.client.authorized().await?.storage;
        let (file, size) = (&body.file, body.file.stat().size);
        if size > single_bytes_max(storage) {
            let (bucket_id, writer) = (opened.bucket_id.as_str(), self.writer_id.as_str());
            let part_bytes = part_bytes(size, storage)?;
            let large = LargeFile { bucket_id, name, mtime_ns, writer, file, part_bytes };
            return upload_large(&self.client, &large).await;
        }
        let hashes = hash(file, u64::MAX).await.map_err(|cause| Failure { call: Call::UploadFile, cause })?;
        let content = Content::Range(file.clone(), 0..size);
        let object = self.upload_single(opened, name, mtime_ns, content, &hashes.whole).await?;
        Ok((object, hashes.whole))
    }

    async fn upload_single(
        &self,
        opened: &Opened,
        name: &str,
        mtime_ns: i64,
        content: Content,
        sha1: &Sha1,
    ) -> Result<String, Failure> {
        let info = file_info(mtime_ns, None, &self.writer_id);
        let parcel = Parcel::file(name, &info, sha1, content);
        let FileId { file_id } = upload(&self.client, &opened.pool, &parcel).await?;
        Ok(file_id)
    }

    async fn hide(&self, dest: &RelPath) -> Result<(), Failure> {
        let opened = self.opened(Call::HideFile)?;
        let name = self.names.object(dest).text;
        let request = json!({ "bucketId": opened.bucket_id, "fileName": name });
        match self.client.call::<Done>(Call::HideFile, &request).await {
            Err(failure)
                if failure.is_answer(400, &["already_hidden", "no_such_file", "file_not_present"]) =>
            {
                Ok(())
            }
            done => done.map(|Done {}| ()),
        }
    }

    async fn page(
        &self,
        prefix: &str,
        start: Option<&str>,
        max: u32,
    ) -> Result<ListFileNamesAnswer, Failure> {
        let call = Call::ListFileNames;
        let opened = self.opened(call)?;
        let mut request = json!({ "bucketId": opened.bucket_id, "prefix": prefix, "maxFileCount": max });
        if let Some(start) = start {
            request["startFileName"] = start.into();
        }
        let page: ListFileNamesAnswer = self.client.call(call, &request).await?;
        self.client.count_listed(call, page.files.len());
        Ok(page)
    }

    async fn at(&self, dest: &RelPath) -> Result<Option<Listed>, Failure> {
        let name = self.names.object(dest).text;
        let page = self.page(&name, Some(&name), 1).await?;
        let found = page.files.into_iter().find(|file| file.file_name == name);
        Ok(found.map(|file| listed(file, Some(dest.clone()))))
    }

    async fn below(&self, top: &RelPath, start: Option<&str>) -> Result<Page, Failure> {
        let mut page = Page::default();
        let mut prefix = self.names.top().to_owned();
        if !top.is_root() {
            if start.is_none() {
                page.objects.extend(self.at(top).await?);
            }
            let name = self.names.object(top);
            // What lies below such a name stands apart, too.
            if name.apart || name.text.len() >= NAME_BYTES_MAX {
                return Ok(page);
            }
            prefix = name.text + "/";
        }
        let answer = self.page(&prefix, start, self.client.tuning.page_files).await?;
        page.objects.extend(answer.files.into_iter().filter_map(|file| {
            match self.names.meaning(&file.file_name) {
                Meaning::Reserved => None,
                Meaning::Path(dest) => Some(listed(file, Some(dest))),
                Meaning::Unknown => Some(listed(file, None)),
            }
        }));
        page.next = answer.next_file_name;
        Ok(page)
    }
}

fn listed(file: File, dest: Option<RelPath>) -> Listed {
    Listed {
        dest,
        object: file.file_id,
        kind: Kind::File,
        size: file.content_length,
        mtime_ns: mtime_ns(&file.file_info),
        sha1: sha1(file.content_sha1.as_deref(), &file.file_info),
        writer: writer(&file.file_info),
        name: file.file_name,
    }
}

#[async_trait]
impl Store for B2Store {
    fn holds(&self) -> Holds {
        Holds { all_kinds: false, attributes: false, hard_links: false, writers: true, nanoseconds: false }
    }

    async fn open(&self) -> Result<(), StoreError> {
        let opened = self
            .find_bucket()
            .await
            .map_err(|f| f.into_store_error("use", format!("the bucket {}", self.bucket)))?;
        self.opened.get_or_init(|| opened);
        Ok(())
    }

    fn identity(&self) -> String {
        self.opened.get().map(|opened| opened.bucket_id.clone()).unwrap_or_default()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        let Put { dest, what, stat, .. } = put;
        let What::File(body) = what else {
            return Err(StoreError::new(
                "upload",
                &dest,
                Problem::Unfit,
                "B2 holds only the content of files",
            ));
        };
        self.upload(&dest, stat.mtime_ns, &body).await.map_err(|f| f.into_store_error("upload", &dest))
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        self.hide(&remove.dest).await.map_err(|f| f.into_store_error("hide", &remove.dest))
    }

    /// An answer of B2 is its word.
    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        self.below(top, page.as_deref()).await.map_err(|f| f.into_store_error("list", top))
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        self.at(dest).await.map_err(|f| f.into_store_error("look up", dest))
    }

    fn calls(&self) -> Calls {
        self.client.calls()
    }

    fn notes(&self) -> Vec<String> {
        let apart = self.uploaded_apart();
        let text =
            format!("{apart} files have names that B2 cannot hold; their objects stand in .longshore/names/");
        (apart > 0).then_some(text).into_iter().collect()
    }
}
