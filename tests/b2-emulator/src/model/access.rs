//! Keys with their restrictions, account tokens, and upload URLs that take one upload at a time.
use std::sync::Arc;

use super::{ACCOUNT_ID, Model};
use crate::error::B2Error;
use crate::options::{KeyRules, Limits};

const ALL_CAPABILITIES: [&str; 7] =
    ["listBuckets", "writeBuckets", "listFiles", "readFiles", "writeFiles", "deleteFiles", "listKeys"];

#[derive(Debug)]
pub(crate) struct Key {
    id: String,
    secret: String,
    pub capabilities: Vec<String>,
    /// Id and name.
    pub bucket: Option<(String, String)>,
    pub name_prefix: Option<String>,
}

pub(super) struct AccountToken {
    key: Arc<Key>,
    expired: bool,
}

/// The answer of b2_authorize_account, before its form in one of the API versions.
#[derive(Debug)]
pub(crate) struct Authorized {
    pub token: String,
    pub key: Arc<Key>,
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UploadTarget {
    Bucket(String),
    LargeFile(String),
}

impl UploadTarget {
    /// Of the bucket or of the large file.
    pub fn id(&self) -> &str {
        match self {
            Self::Bucket(id) | Self::LargeFile(id) => id,
        }
    }
}

pub(super) struct UploadUrl {
    target: UploadTarget,
    key: Arc<Key>,
    state: UrlState,
}

#[derive(PartialEq, Eq)]
enum UrlState {
    Idle,
    Busy,
    Spent,
}

impl Model {
    /// None if the rules name a bucket that is not there.
    pub fn add_key(&mut self, id: &str, secret: &str, rules: KeyRules) -> Option<()> {
        let bucket = match rules.bucket_name {
            Some(name) => Some((self.bucket_named(&name)?.id.clone(), name)),
            None => None,
        };
        let all = || ALL_CAPABILITIES.map(str::to_owned).to_vec();
        self.keys.push(Arc::new(Key {
            id: id.into(),
            secret: secret.into(),
            capabilities: rules.capabilities.unwrap_or_else(all),
            bucket,
            name_prefix: rules.name_prefix,
        }));
        Some(())
    }

    pub fn create_key(&mut self, rules: KeyRules) -> Option<(String, String)> {
        let serial = self.next_serial();
        let (id, secret) = (format!("005b2e0key{serial:015}"), format!("K005secret{serial:021}"));
        self.add_key(&id, &secret, rules).map(|()| (id, secret))
    }

    /// `credentials` is "keyId:key". A recorded answer to a bad key has an empty message.
    pub fn authorize_account(&mut self, credentials: &str) -> Result<Authorized, B2Error> {
        let (id, secret) = credentials.split_once(':').unwrap_or_default();
        let known = self.keys.iter().find(|key| key.id == id && key.secret == secret);
        let key = known.ok_or(B2Error::new(401, "bad_auth_token", ""))?.clone();
        let token = format!("4_account_token_{:08}", self.next_serial());
        self.account_tokens.insert(token.clone(), AccountToken { key: key.clone(), expired: false });
        Ok(Authorized { token, key, limits: self.limits })
    }

    pub(super) fn key_of(&self, token: &str) -> Result<&Arc<Key>, B2Error> {
        match self.account_tokens.get(token) {
            None => Err(B2Error::new(401, "bad_auth_token", "Invalid authorization token")),
            Some(token) if token.expired => Err(expired()),
            Some(token) => Ok(&token.key),
        }
    }

    /// Whether the token may use `capability` in the bucket, on `name`: a file name or the prefix of a listing.
    pub(super) fn allow(
        &self,
        token: &str,
        capability: &str,
        bucket_id: &str,
        name: Option<&str>,
    ) -> Result<&Arc<Key>, B2Error> {
        let key = self.key_of(token)?;
        key.allow(capability, Some(bucket_id), name).map(|()| key)
    }

    pub(super) fn add_upload_url(&mut self, target: UploadTarget, key: Arc<Key>) -> String {
        let token = format!("4_upload_token_{:08}", self.next_serial());
        self.upload_urls.insert(token.clone(), UploadUrl { target, key, state: UrlState::Idle });
        token
    }

    /// Takes the URL for one upload; whoever took it gives it back with `end_upload`.
    pub fn begin_upload(&mut self, token: &str) -> Result<UploadTarget, B2Error> {
        let Some(url) = self.upload_urls.get_mut(token) else {
            return Err(B2Error::new(401, "bad_auth_token", "Invalid upload authorization token"));
        };
        match url.state {
            UrlState::Spent => Err(expired()),
            // The wording is the one that Backblaze's SDK recognises.
            UrlState::Busy => Err(B2Error::new(
                400,
                "auth_token_limit",
                format!("more than one upload using auth token {token}"),
            )),
            UrlState::Idle => {
                url.state = UrlState::Busy;
                Ok(url.target.clone())
            }
        }
    }

    /// A URL is good until it rejects an upload, by Backblaze's documentation of b2_get_upload_url.
    pub fn end_upload(&mut self, token: &str, accepted: bool) {
        if let Some(url) = self.upload_urls.get_mut(token) {
            let stays = accepted && url.state == UrlState::Busy;
            url.state = if stays { UrlState::Idle } else { UrlState::Spent };
        }
    }

    pub(super) fn allow_upload(&self, token: &str, name: &str) -> Result<(), B2Error> {
        match self.upload_urls.get(token) {
            Some(url) => url.key.allow("writeFiles", None, Some(name)),
            None => Err(expired()),
        }
    }

    /// The name of the large file whose parts the URL takes.
    pub fn large_file_name(&self, url_token: &str) -> Option<&str> {
        match &self.upload_urls.get(url_token)?.target {
            UploadTarget::LargeFile(file_id) => self.version(file_id).map(|version| version.name.as_str()),
            UploadTarget::Bucket(_) => None,
        }
    }

    pub fn expire_account_tokens(&mut self) {
        self.account_tokens.values_mut().for_each(|token| token.expired = true);
    }

    pub fn expire_upload_urls(&mut self) {
        self.upload_urls.values_mut().for_each(|url| url.state = UrlState::Spent);
    }
}

impl Key {
    fn allow(&self, capability: &str, bucket_id: Option<&str>, name: Option<&str>) -> Result<(), B2Error> {
        if !self.capabilities.iter().any(|own| own == capability) {
            return Err(B2Error::unauthorized(format!("The key lacks the capability {capability}")));
        }
        if let (Some((own, _)), Some(asked)) = (&self.bucket, bucket_id)
            && own != asked
        {
            return Err(B2Error::unauthorized("The key is restricted to another bucket"));
        }
        if let (Some(prefix), Some(name)) = (&self.name_prefix, name)
            && !name.starts_with(prefix.as_str())
        {
            return Err(B2Error::unauthorized(format!("The key is restricted to names with {prefix}")));
        }
        Ok(())
    }
}

pub(super) fn check_account(account_id: &str) -> Result<(), B2Error> {
    match account_id == ACCOUNT_ID {
        true => Ok(()),
        false => Err(B2Error::bad_request(format!("Not the accountId of this token: {account_id}"))),
    }
}

fn expired() -> B2Error {
    B2Error::new(401, "expired_auth_token", "Authorization token has expired")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, code};
    use super::*;

    #[test]
    fn a_wrong_key_is_answered_with_bad_auth_token_and_no_message() {
        let mut account = Fixture::new();
        let error = account.model.authorize_account("nobody:nothing").expect_err("wrong key");
        assert_eq!((error.status, &*error.code, &*error.message), (401, "bad_auth_token", ""));
    }

    #[test]
    fn an_upload_url_takes_one_upload_at_a_time() {
        let mut account = Fixture::new();
        let url = account.upload_url();
        assert!(account.model.begin_upload(&url).is_ok());
        assert_eq!(code(account.model.begin_upload(&url)), "auth_token_limit");
        account.model.end_upload(&url, true);
        assert!(account.model.begin_upload(&url).is_ok());
    }

    #[test]
    fn an_upload_url_that_rejected_an_upload_is_spent() {
        let mut account = Fixture::new();
        let url = account.upload_url();
        assert!(account.model.begin_upload(&url).is_ok());
        account.model.end_upload(&url, false);
        assert_eq!(code(account.model.begin_upload(&url)), "expired_auth_token");
    }

    #[test]
    fn expiry_during_an_upload_outlasts_its_end() {
        let mut account = Fixture::new();
        let url = account.upload_url();
        assert!(account.model.begin_upload(&url).is_ok());
        account.model.expire_upload_urls();
        account.model.end_upload(&url, true);
        assert_eq!(code(account.model.begin_upload(&url)), "expired_auth_token");
    }

    #[test]
    fn an_expired_account_token_is_told_from_an_unknown_one() {
        let mut account = Fixture::new();
        account.model.expire_account_tokens();
        assert_eq!(code(account.model.key_of(&account.token)), "expired_auth_token");
        assert_eq!(code(account.model.key_of("made up")), "bad_auth_token");
    }

    #[test]
    fn a_restricted_key_is_held_to_capability_bucket_and_prefix() {
        let mut account = Fixture::new();
        let rules = KeyRules {
            capabilities: Some(vec!["listFiles".into(), "writeFiles".into()]),
            bucket_name: Some("bucket-1".into()),
            name_prefix: Some("mine/".into()),
        };
        let (id, key) = account.model.create_key(rules).expect("the bucket is there");
        let token = account.model.authorize_account(&format!("{id}:{key}")).expect("a good key").token;
        let bucket = account.bucket.clone();
        let other = account.model.create_bucket("bucket-2").expect("a free name");
        let ask =
            |capability, bucket, name| account.model.allow(&token, capability, bucket, Some(name)).is_ok();
        assert!(ask("writeFiles", &bucket, "mine/a"));
        assert!(!ask("deleteFiles", &bucket, "mine/a"), "capability");
        assert!(!ask("writeFiles", &other, "mine/a"), "bucket");
        assert!(!ask("writeFiles", &bucket, "yours/a"), "prefix");
        assert!(!ask("listFiles", &bucket, ""), "a listing must be at least as narrow");
    }
}
