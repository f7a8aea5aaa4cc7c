//! Buckets: making, finding and listing them.
use std::collections::BTreeMap;

use super::access::{UploadTarget, check_account};
use super::{Bucket, Model};
use crate::error::B2Error;
use crate::names;
use crate::requests;

impl Model {
    /// The id of the new bucket.
    pub fn create_bucket(&mut self, name: &str) -> Result<String, B2Error> {
        names::check_bucket_name(name)?;
        if self.bucket_named(name).is_some() {
            return Err(B2Error::new(400, "duplicate_bucket_name", "Bucket name is already in use."));
        }
        let id = format!("b2e0b0c4e7{:014}", self.next_serial());
        let bucket = Bucket { id: id.clone(), name: name.into(), files: BTreeMap::new() };
        self.buckets.insert(id.clone(), bucket);
        Ok(id)
    }

    pub fn create_bucket_as(
        &mut self,
        token: &str,
        asked: requests::CreateBucket,
    ) -> Result<&Bucket, B2Error> {
        let key = self.key_of(token)?;
        check_account(&asked.account_id)?;
        if !key.capabilities.iter().any(|own| own == "writeBuckets") || key.bucket.is_some() {
            return Err(B2Error::unauthorized("The key may not create buckets"));
        }
        if asked.bucket_type != "allPrivate" {
            return Err(B2Error::bad_request(format!("The emulator has no {} buckets", asked.bucket_type)));
        }
        let id = self.create_bucket(&asked.bucket_name)?;
        self.bucket(&id)
    }

    /// A key restricted to a bucket must name it, by Backblaze's page on capabilities.
    pub fn list_buckets(&self, token: &str, asked: &requests::ListBuckets) -> Result<Vec<&Bucket>, B2Error> {
        let key = self.key_of(token)?;
        check_account(&asked.account_id)?;
        let wanted = |bucket: &&Bucket| {
            asked.bucket_id.as_ref().is_none_or(|id| *id == bucket.id)
                && asked.bucket_name.as_ref().is_none_or(|name| *name == bucket.name)
        };
        let named = asked.bucket_id.is_some() || asked.bucket_name.is_some();
        let found: Vec<_> = self.buckets.values().filter(wanted).collect();
        if let Some((own, _)) = &key.bucket
            && !(named && found.iter().map(|bucket| &bucket.id).eq([own]))
        {
            return Err(B2Error::unauthorized("The key is restricted to one bucket and must name it"));
        }
        if !key.capabilities.iter().any(|own| own == "listBuckets") {
            return Err(B2Error::unauthorized("The key lacks the capability listBuckets"));
        }
        Ok(found)
    }

    /// The token of the URL.
    pub fn get_upload_url(&mut self, token: &str, bucket_id: &str) -> Result<String, B2Error> {
        let key = self.allow(token, "writeFiles", bucket_id, None)?.clone();
        self.bucket(bucket_id)?;
        Ok(self.add_upload_url(UploadTarget::Bucket(bucket_id.into()), key))
    }

    pub fn bucket(&self, id: &str) -> Result<&Bucket, B2Error> {
        self.buckets
            .get(id)
            .ok_or_else(|| B2Error::new(400, "bad_bucket_id", format!("Bucket does not exist: {id}")))
    }

    pub fn bucket_named(&self, name: &str) -> Option<&Bucket> {
        self.buckets.values().find(|bucket| bucket.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ACCOUNT_ID;
    use super::super::fixture::{Fixture, code};
    use super::*;
    use crate::options::KeyRules;

    fn ask(bucket_name: Option<&str>) -> requests::ListBuckets {
        requests::ListBuckets {
            account_id: ACCOUNT_ID.into(),
            bucket_id: None,
            bucket_name: bucket_name.map(str::to_owned),
            _bucket_types: None,
        }
    }

    #[test]
    fn a_bucket_name_is_taken_once() {
        let mut account = Fixture::new();
        assert_eq!(code(account.model.create_bucket("bucket-1")), "duplicate_bucket_name");
        assert_eq!(code(account.model.create_bucket("b2-x")), "invalid_bucket_name");
    }

    #[test]
    fn a_key_restricted_to_a_bucket_must_name_it_when_listing_buckets() {
        let mut account = Fixture::new();
        account.model.create_bucket("bucket-2").expect("a free name");
        let rules = KeyRules { bucket_name: Some("bucket-1".into()), ..KeyRules::default() };
        let (id, key) = account.model.create_key(rules).expect("the bucket is there");
        let token = account.model.authorize_account(&format!("{id}:{key}")).expect("a good key").token;
        assert_eq!(account.model.list_buckets(&account.token, &ask(None)).map(|all| all.len()), Ok(2));
        assert_eq!(account.model.list_buckets(&token, &ask(Some("bucket-1"))).map(|one| one.len()), Ok(1));
        assert_eq!(code(account.model.list_buckets(&token, &ask(None))), "unauthorized");
        assert_eq!(code(account.model.list_buckets(&token, &ask(Some("bucket-2")))), "unauthorized");
    }

    #[test]
    fn an_upload_url_needs_a_bucket_that_is_there() {
        let mut account = Fixture::new();
        assert_eq!(code(account.model.get_upload_url(&account.token.clone(), "none")), "bad_bucket_id");
    }
}
