//! A leg on a [`Bucket`], as the real client would carry it out: same names, ids, answers and problems.
//!
//! What is not as in the real one:
//! * A call that the client would repeat is asked once; the fault is what is left after its attempts. The calls counted
//!   are therefore those of a run without repetitions.
//! * A large file is one upload. Its parts, finishing and taking back lead to the same outcomes: known to have had no
//!   effect, done, or unknown.
//! * B2 orders versions by an upload time of whole seconds, and a large file keeps that of its start; here the order is
//!   that of the effects. Which of two versions of one second is the newest at B2 is not documented.
//! * A page goes on with the next visible name, as the emulator has it. B2 documents that this name need not exist.
//! * The rights of the key are not looked at; a key that lacks one is `Fault::B2KeyRevoked`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use shared::clock::Clock;
use shared::exit::Exit;
use shared::path::RelPath;
use syncer::leg::b2::names::{Meaning, NAME_BYTES_MAX, Names};
use syncer::leg::{Body, Calls, Holds, Listed, Page, Problem, Put, Receipt, Remove, Store, StoreError, What};
use syncer::tree::Kind;

use super::bucket::{Bucket, Late, Object, Version};
use super::content::{Unsent, read_for_b2};
use super::seen::Request;
use super::{Asked, Content, Shared, Watch, lock, shared};
use crate::fate::{Fate, Fault};

/// More than the client waits by itself.
const RETRY_AFTER: Duration = Duration::from_secs(120);

pub struct SimB2 {
    bucket: Shared<Bucket>,
    names: Names,
    writer: String,
    clock: Arc<dyn Clock>,
    fate: Arc<dyn Fate>,
    watch: Watch,
    opened: OnceLock<Opened>,
    calls: Mutex<Calls>,
    /// Upload URLs that are not in use.
    free_urls: AtomicU64,
    apart: AtomicU64,
}

struct Opened {
    bucket: Shared<Bucket>,
    id: String,
}

/// Why a call did not do what it should.
struct Failure {
    problem: Problem,
    message: String,
    outcome_unknown: bool,
}

impl Failure {
    fn new(problem: Problem, message: impl Into<String>) -> Failure {
        Failure { problem, message: message.into(), outcome_unknown: false }
    }

    fn unanswered(call: &str) -> Failure {
        let message = format!("{call} was sent and not answered: connection reset");
        Failure { outcome_unknown: true, ..Failure::new(Problem::TryLater(None), message) }
    }

    fn into_error(self, op: &'static str, object: impl std::fmt::Display) -> StoreError {
        let error = StoreError::new(op, object, self.problem, self.message);
        StoreError { outcome_unknown: self.outcome_unknown, ..error }
    }
}

impl From<Unsent> for Failure {
    fn from((problem, message): Unsent) -> Failure {
        Failure::new(problem, message)
    }
}

impl SimB2 {
    pub fn new(
        bucket: Shared<Bucket>,
        prefix: &RelPath,
        writer: &str,
        clock: Arc<dyn Clock>,
        fate: Arc<dyn Fate>,
        watch: Watch,
    ) -> SimB2 {
        SimB2 {
            bucket,
            names: Names::new(prefix),
            writer: writer.to_owned(),
            clock,
            fate,
            watch,
            opened: OnceLock::new(),
            calls: Mutex::default(),
            free_urls: AtomicU64::new(0),
            apart: AtomicU64::new(0),
        }
    }

    /// Every asynchronous call begins here: others go on first.
    async fn pass(&self, point: &'static str) {
        self.fate.pass(point);
        tokio::task::yield_now().await;
    }

    fn count(&self, call: &str) {
        let mut calls = lock(&self.calls);
        *calls.by_name.entry(call.to_owned()).or_default() += 1;
        match call {
            "b2_authorize_account" | "b2_list_buckets" | "b2_list_file_names" => calls.class_c += 1,
            _ => calls.class_a += 1,
        }
    }

    /// The bucket, or what hinders any call at all now.
    fn reach(&self, call: &'static str) -> Result<Shared<Bucket>, Failure> {
        let Some(opened) = self.opened.get() else {
            return Err(Failure::new(Problem::Stop(Exit::Failed), "the bucket was not opened before"));
        };
        self.count(call);
        self.weather(call)?;
        if lock(&opened.bucket).id() != opened.id {
            let message = format!("{call} answered 400 bad_bucket_id. The bucket is gone");
            return Err(Failure::new(Problem::Stop(Exit::Config), message));
        }
        Ok(opened.bucket.clone())
    }

    fn weather(&self, call: &str) -> Result<(), Failure> {
        let answers = [
            (Fault::B2Unreachable, Problem::TryLater(None), "could not be sent: no route to host"),
            (Fault::B2Busy, Problem::TryLater(None), "answered 503 service_unavailable"),
            (Fault::B2BusyFor, Problem::TryLater(Some(RETRY_AFTER)), "answered 429 too_many_requests"),
            (Fault::B2CapReached, Problem::Stop(Exit::Refused), "answered 403 cap_exceeded"),
            (Fault::B2KeyRevoked, Problem::Stop(Exit::Refused), "answered 401 unauthorized"),
        ];
        let hit = answers.into_iter().find(|(fault, ..)| self.fate.strikes(*fault));
        hit.map_or(Ok(()), |(_, problem, what)| Err(Failure::new(problem, format!("{call} {what}"))))
    }

    fn fails(&self, fault: Fault, call: &str) -> Result<(), Failure> {
        if !self.fate.strikes(fault) {
            return Ok(());
        }
        let message = format!("{call} was sent and not answered: connection reset");
        Err(Failure::new(Problem::TryLater(None), message))
    }

    async fn find_bucket(&self) -> Result<Opened, Failure> {
        self.pass("open").await;
        self.count("b2_authorize_account");
        if self.fate.strikes(Fault::B2OpenFails) {
            let message = "b2_authorize_account could not be sent: no route to host";
            return Err(Failure::new(Problem::TryLater(None), message));
        }
        self.weather("b2_authorize_account")?;
        self.count("b2_list_buckets");
        let mut bucket = self.bucket.clone();
        if self.fate.strikes(Fault::B2AnotherBucket) {
            let id = format!("{}-another", lock(&bucket).id());
            bucket = shared(Bucket::new(&id));
        }
        let id = lock(&bucket).id().to_owned();
        Ok(Opened { bucket, id })
    }

    async fn upload(&self, request: &mut Request, put: &Put) -> Result<Receipt, Failure> {
        const CALL: &str = "b2_upload_file";
        let What::File(body) = &put.what else {
            return Err(Failure::new(Problem::Unfit, "B2 holds only the content of files"));
        };
        let name = self.names.object(&put.dest);
        let content = self.content(body).await?;
        let takes = |n: u64| n.checked_sub(1);
        if self.free_urls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, takes).is_err() {
            self.reach("b2_get_upload_url")?;
        }
        self.pass("upload").await;
        let bucket = self.reach(CALL)?;
        if self.fate.strikes(Fault::B2Unfit) {
            return Err(Failure::new(Problem::Unfit, format!("{CALL} answered 400 bad_request")));
        }
        if self.fate.strikes(Fault::B2CutInBody) {
            let message = format!("{CALL} could not be sent: connection reset");
            return Err(Failure::new(Problem::TryLater(None), message));
        }
        let sha1 = content.sha1;
        let mtime_ms = Some(put.stat.mtime_ns.div_euclid(1_000_000));
        let object = Object { content, mtime_ms, writer: Some(self.writer.clone()) };
        let id = self.change(request, &bucket, CALL, name.text, Some(object)).await?;
        self.free_urls.fetch_add(1, Ordering::Relaxed);
        self.apart.fetch_add(name.apart.into(), Ordering::Relaxed);
        Ok(Receipt { object: id, sha1: Some(sha1) })
    }

    async fn content(&self, body: &Body) -> Result<Content, Failure> {
        match &body.small {
            Some((bytes, sha1)) => Ok(Content::hashed(bytes.clone(), *sha1)),
            None => Ok(read_for_b2(&*self.fate, &body.file).await?),
        }
    }

    /// The request has gone out whole: its effect, now, later or never, and its answer.
    async fn change(
        &self,
        request: &mut Request,
        bucket: &Shared<Bucket>,
        call: &str,
        name: String,
        object: Option<Object>,
    ) -> Result<String, Failure> {
        request.before_effect(object.as_ref().map(|object| object.content.sha1));
        if self.fate.strikes(Fault::B2Late) {
            lock(bucket).put_aside(Late { name, object, call: request.call.clone() });
            self.pass("an answer that does not come").await;
            return Err(Failure::unanswered(call));
        }
        if self.fate.strikes(Fault::B2RequestLost) {
            return Err(Failure::unanswered(call));
        }
        let now = self.clock.wall_ns();
        let id = match object {
            Some(object) => lock(bucket).upload(&name, object, now),
            None => {
                lock(bucket).hide(&name, now);
                String::new()
            }
        };
        request.took_effect(&id);
        self.pass("the answer").await;
        if self.fate.strikes(Fault::B2AnswerLost) { Err(Failure::unanswered(call)) } else { Ok(id) }
    }

    async fn hide(&self, request: &mut Request, remove: &Remove) -> Result<(), Failure> {
        const CALL: &str = "b2_hide_file";
        let bucket = self.reach(CALL)?;
        if self.fate.strikes(Fault::B2Unfit) {
            return Err(Failure::new(Problem::Unfit, format!("{CALL} answered 400 bad_request")));
        }
        let name = self.names.object(&remove.dest).text;
        self.change(request, &bucket, CALL, name, None).await.map(drop)
    }

    async fn at(&self, dest: &RelPath) -> Result<Option<Listed>, Failure> {
        const CALL: &str = "b2_list_file_names";
        let bucket = self.reach(CALL)?;
        self.fails(Fault::B2LookFails, CALL)?;
        let name = self.names.object(dest).text;
        let bucket = lock(&bucket);
        Ok(bucket.at(&name).map(|(version, object)| listed(&name, version, object, Some(dest.clone()))))
    }

    async fn below(&self, top: &RelPath, start: Option<&str>) -> Result<Page, Failure> {
        const CALL: &str = "b2_list_file_names";
        let mut page = Page::default();
        let mut prefix = self.names.top().to_owned();
        if !top.is_root() {
            if start.is_none() {
                page.objects.extend(self.at(top).await?);
                self.pass("list").await;
            }
            let name = self.names.object(top);
            // What lies below such a name stands apart, too.
            if name.apart || name.text.len() >= NAME_BYTES_MAX {
                return Ok(page);
            }
            prefix = name.text + "/";
        }
        let bucket = self.reach(CALL)?;
        self.fails(if start.is_none() { Fault::B2ListFails } else { Fault::B2PageFails }, CALL)?;
        let short = self.fate.strikes(Fault::B2PageShort);
        let whole = lock(&bucket).page_files;
        let max = if short { (self.fate.pick(whole as u64) as usize).max(1) } else { whole };
        let bucket = lock(&bucket);
        let (found, next) = bucket.page(&prefix, start, max);
        page.objects.extend(found.into_iter().filter_map(|(name, version, object)| {
            match self.names.meaning(name) {
                Meaning::Reserved => None,
                Meaning::Path(dest) => Some(listed(name, version, object, Some(dest))),
                Meaning::Unknown => Some(listed(name, version, object, None)),
            }
        }));
        page.next = next;
        Ok(page)
    }
}

fn listed(name: &str, version: &Version, object: &Object, dest: Option<RelPath>) -> Listed {
    Listed {
        dest,
        name: name.to_owned(),
        object: version.id.clone(),
        kind: Kind::File,
        size: object.content.size,
        mtime_ns: object.mtime_ms.and_then(|ms| ms.checked_mul(1_000_000)),
        sha1: Some(object.content.sha1),
        writer: object.writer.clone(),
    }
}

#[async_trait]
impl Store for SimB2 {
    fn holds(&self) -> Holds {
        Holds { all_kinds: false, attributes: false, hard_links: false, writers: true, nanoseconds: false }
    }

    async fn open(&self) -> Result<(), StoreError> {
        let request = self.watch.ask(Asked::Open, &RelPath::root());
        let found = self.find_bucket().await;
        let opened = found.map(|opened| drop(self.opened.set(opened)));
        request.answer(opened.map_err(|f| f.into_error("use", "the bucket")))
    }

    fn identity(&self) -> String {
        self.opened.get().map(|opened| opened.id.clone()).unwrap_or_default()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let request = self.watch.ask(Asked::Prepare, &RelPath::root());
        self.pass("prepare").await;
        request.answer(Ok(()))
    }

    async fn put(&self, put: Put) -> Result<Receipt, StoreError> {
        let mut request = self.watch.put(&put);
        self.pass("put").await;
        let result = self.upload(&mut request, &put).await;
        request.answer(result.map_err(|f| f.into_error("upload", &put.dest)))
    }

    async fn remove(&self, remove: Remove) -> Result<(), StoreError> {
        let mut request = self.watch.remove(&remove);
        self.pass("remove").await;
        let result = self.hide(&mut request, &remove).await;
        request.answer(result.map_err(|f| f.into_error("hide", &remove.dest)))
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let request = self.watch.ask(Asked::Sync, &RelPath::root());
        self.pass("sync").await;
        request.answer(Ok(()))
    }

    async fn list(&self, top: &RelPath, page: Option<String>) -> Result<Page, StoreError> {
        let request = self.watch.ask(Asked::List, top);
        self.pass("list").await;
        let result = self.below(top, page.as_deref()).await;
        request.answer(result.map_err(|f| f.into_error("list", top)))
    }

    async fn newest(&self, dest: &RelPath) -> Result<Option<Listed>, StoreError> {
        let request = self.watch.ask(Asked::Newest, dest);
        self.pass("newest").await;
        let result = self.at(dest).await;
        request.answer(result.map_err(|f| f.into_error("look up", dest)))
    }

    fn calls(&self) -> Calls {
        lock(&self.calls).clone()
    }

    fn notes(&self) -> Vec<String> {
        let apart = self.apart.load(Ordering::Relaxed);
        let text =
            format!("{apart} files have names that B2 cannot hold; their objects stand in .longshore/names/");
        (apart > 0).then_some(text).into_iter().collect()
    }
}

/// What a leg with that prefix mirrors into the bucket: the visible objects by path, and the names that mean none.
pub fn mirrored(bucket: &Bucket, prefix: &RelPath) -> (BTreeMap<RelPath, Object>, Vec<String>) {
    let names = Names::new(prefix);
    let (mut paths, mut apart) = (BTreeMap::new(), Vec::new());
    for (name, _, object) in bucket.visible().filter(|(name, ..)| name.starts_with(names.top())) {
        match names.meaning(name) {
            Meaning::Path(path) => drop(paths.insert(path, object.clone())),
            Meaning::Reserved => {}
            Meaning::Unknown => apart.push(name.to_owned()),
        }
    }
    (paths, apart)
}
