//! An account with one bucket, for the unit tests of the model.
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::Model;
use super::versions::{DeclaredSha1, Upload};
use crate::content::Content;
use crate::error::B2Error;
use crate::options::{KeyRules, Limits};
use crate::version::Version;

pub(crate) struct Fixture {
    pub model: Model,
    pub token: String,
    pub bucket: String,
    now_ms: u64,
}

impl Fixture {
    pub fn new() -> Self {
        let limits = Limits {
            absolute_minimum_part_size: 5,
            recommended_part_size: 10,
            upload_bytes_max: 50,
            copy_bytes_max: 20,
        };
        let mut model = Model::new(limits);
        model.add_key("id", "key", KeyRules::default()).expect("no bucket is named");
        let token = model.authorize_account("id:key").expect("the key is right").token;
        let bucket = model.create_bucket("bucket-1").expect("the name is free");
        Self { model, token, bucket, now_ms: 1_800_000_000_123 }
    }

    /// A second later than the last time.
    pub fn now(&mut self) -> u64 {
        self.now_ms += 1000;
        self.now_ms
    }

    pub fn upload_url(&mut self) -> String {
        self.model.get_upload_url(&self.token, &self.bucket).expect("the key may write")
    }

    pub fn put(&mut self, name: &str, body: &'static str) -> Arc<Version> {
        self.try_put(upload(name, body)).expect("a good upload")
    }

    pub fn try_put(&mut self, upload: Upload) -> Result<Arc<Version>, B2Error> {
        let (url, now) = (self.upload_url(), self.now());
        let target = self.model.begin_upload(&url).expect("a fresh URL");
        let answer = self.model.upload_file(&url, &target, upload, now);
        self.model.end_upload(&url, answer.is_ok());
        answer
    }

    pub fn hide(&mut self, name: &str) -> Result<Arc<Version>, B2Error> {
        let now = self.now();
        self.model.hide_file(&self.token, &self.bucket, name, now)
    }
}

pub(crate) fn upload(name: &str, body: &'static str) -> Upload {
    let content = Content::from(Bytes::from_static(body.as_bytes()));
    let sha1 = content.sha1();
    Upload {
        name: name.into(),
        content_type: "text/plain".into(),
        info: BTreeMap::new(),
        declared: DeclaredSha1::Digits(sha1.clone()),
        sha1,
        content,
        custom_timestamp_ms: None,
    }
}

pub(crate) fn code<T>(answer: Result<T, B2Error>) -> String {
    answer.err().map_or("no error".into(), |error| error.code.into())
}
