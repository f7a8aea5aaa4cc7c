//! One HTTP client for a leg: who may be talked to, the account token, and every request that is sent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{RequestBuilder, Url};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shared::exit::Exit;
use tokio::sync::Semaphore;

use super::super::Calls;
use super::api::{API, AuthorizeAnswer, Call, Class, ErrorAnswer, StorageApi, UploadUrl};
use super::content::{Content, Progress};
use super::failure::{Attempts, Cause, Failure, Patience};
use crate::credentials::Credentials;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Characters of an answer that is no JSON, for people.
const EXCERPT_CHARS: usize = 200;

/// Limits that tests scale down.
#[derive(Debug, Clone)]
pub(super) struct Tuning {
    pub patience: Patience,
    /// Without a byte going out.
    pub stall: Duration,
    /// From the last byte of the request to the last of the answer.
    pub answer: Duration,
    /// Billed per thousand: more make fewer round trips at the same price.
    pub page_files: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            patience: Patience::default(),
            stall: Duration::from_secs(60),
            answer: Duration::from_secs(180),
            page_files: 10_000,
        }
    }
}

pub(super) struct Client {
    http: reqwest::Client,
    endpoint: String,
    credentials: Credentials,
    /// The endpoint is on this machine: others may be, too, and none needs https.
    plain_allowed: bool,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    calls: Mutex<Calls>,
    /// Uploads at once, of files and of parts together.
    pub transfers: usize,
    pub slots: Semaphore,
    pub tuning: Tuning,
}

/// What an authorization gave.
pub(super) struct Session {
    pub account_id: String,
    pub storage: StorageApi,
    token: HeaderValue,
}

impl Client {
    pub fn new(
        endpoint: &str,
        credentials: Credentials,
        transfers: usize,
        tuning: Tuning,
    ) -> Result<Self, Failure> {
        let stop =
            |exit, why: String| Failure { call: Call::AuthorizeAccount, cause: Cause::Stop(exit, why) };
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let plain_allowed = is_plain_loopback(&endpoint);
        check_url(&endpoint, plain_allowed).map_err(|why| stop(Exit::Config, why))?;
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT);
        if plain_allowed {
            http = http.no_proxy();
        }
        let http =
            http.build().map_err(|e| stop(Exit::Failed, format!("the HTTP client cannot be made: {e}")))?;
        Ok(Client {
            http,
            endpoint,
            credentials,
            plain_allowed,
            session: tokio::sync::Mutex::new(None),
            calls: Mutex::default(),
            transfers,
            slots: Semaphore::new(transfers),
            tuning,
        })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn key_id(&self) -> &str {
        &self.credentials.key_id
    }

    pub fn attempts(&self) -> Attempts<'_> {
        Attempts::new(&self.tuning.patience)
    }

    pub fn calls(&self) -> Calls {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A call by name, made again as long as that helps.
    pub async fn call<T: DeserializeOwned>(&self, call: Call, request: &Value) -> Result<T, Failure> {
        let mut attempts = self.attempts();
        loop {
            match self.once(call, request).await {
                Err(failure) if attempts.again(&failure).await => {}
                done => return done,
            }
        }
    }

    pub async fn authorized(&self) -> Result<Arc<Session>, Failure> {
        let mut attempts = self.attempts();
        loop {
            match self.session(None).await {
                Err(failure) if attempts.again(&failure).await => {}
                done => return done,
            }
        }
    }

    /// A call that is not made again, except with a new account token in place of one that expired.
    pub async fn once<T: DeserializeOwned>(&self, call: Call, request: &Value) -> Result<T, Failure> {
        let session = self.session(None).await?;
        match self.post(&session, call, request).await {
            Err(failure) if failure.wants_a_new_token() => {
                let session = self.session(Some(&session)).await?;
                self.post(&session, call, request).await
            }
            done => done,
        }
    }

    /// Sends content to an upload URL, once.
    pub async fn send<T: DeserializeOwned>(
        &self,
        call: Call,
        url: &UploadUrl,
        headers: &HeaderMap,
        content: &Content,
    ) -> Result<T, Failure> {
        let failed = |cause| Failure { call, cause };
        let token = secret_header(&url.authorization_token).map_err(failed)?;
        let url = self.allowed_url(&url.upload_url).map_err(failed)?;
        let progress = Arc::new(Progress::default());
        let request = self
            .http
            .post(url)
            .headers(headers.clone())
            .header(AUTHORIZATION, token)
            .header(CONTENT_LENGTH, content.len())
            .body(content.body(progress.clone()));
        self.count(call, 1);
        let answer = tokio::select! {
            answer = exchange(request) => answer.map_err(|cause| match cause {
                Cause::NoAnswer(why) if !progress.is_whole() => Cause::NotSent(why),
                cause => cause,
            }),
            () = progress.stalled(self.tuning.stall, self.tuning.answer) => Err(if progress.is_whole() {
                Cause::NoAnswer(format!("nothing came for {:?}", self.tuning.answer))
            } else {
                Cause::NotSent(format!("nothing moved for {:?}", self.tuning.stall))
            }),
        };
        let answer = answer.map_err(|cause| failed(progress.fault().unwrap_or(cause)))?;
        parse(&answer).map_err(failed)
    }

    /// A listing is billed for each thousand that it returns; the first was counted with the call.
    pub fn count_listed(&self, call: Call, returned: usize) {
        self.bill(call, (returned as u64).div_ceil(1000).saturating_sub(1));
    }

    async fn post<T: DeserializeOwned>(
        &self,
        session: &Session,
        call: Call,
        request: &Value,
    ) -> Result<T, Failure> {
        let url = format!("{}/{API}/{}", session.storage.api_url.trim_end_matches('/'), call.name());
        let request = self.http.post(url).header(AUTHORIZATION, session.token.clone()).json(request);
        self.count(call, 1);
        let answer = exchange(request.timeout(self.tuning.answer)).await;
        answer.and_then(|answer| parse(&answer)).map_err(|cause| Failure { call, cause })
    }

    /// The session there is, or a new one in place of `spent`: of many that find it expired one authorizes.
    async fn session(&self, spent: Option<&Arc<Session>>) -> Result<Arc<Session>, Failure> {
        let mut current = self.session.lock().await;
        if let Some(session) = &*current
            && !spent.is_some_and(|spent| Arc::ptr_eq(spent, session))
        {
            return Ok(session.clone());
        }
        let session =
            self.authorize().await.map_err(|cause| Failure { call: Call::AuthorizeAccount, cause })?;
        Ok(current.insert(Arc::new(session)).clone())
    }

    async fn authorize(&self) -> Result<Session, Cause> {
        let call = Call::AuthorizeAccount;
        let Credentials { key_id, key, source } = &self.credentials;
        let request = self
            .http
            .get(format!("{}/{API}/{}", self.endpoint, call.name()))
            .basic_auth(key_id, Some(key.expose_secret()))
            .timeout(self.tuning.answer);
        self.count(call, 1);
        let answer = exchange(request).await.map_err(|cause| match cause {
            Cause::Answer { status: 401, code, .. } => Cause::Stop(
                Exit::Refused,
                format!(
                    "{} refused the application key {key_id} from {source} ({code}): put a valid pair there",
                    self.endpoint
                ),
            ),
            cause => cause,
        })?;
        let answer: AuthorizeAnswer = parse(&answer)?;
        let storage = answer.api_info.storage_api;
        self.allowed_url(&storage.api_url)?;
        self.allowed_url(&storage.download_url)?;
        Ok(Session {
            account_id: answer.account_id,
            storage,
            token: secret_header(&answer.authorization_token)?,
        })
    }

    fn allowed_url(&self, url: &str) -> Result<Url, Cause> {
        check_url(url, self.plain_allowed).map_err(|why| Cause::Stop(Exit::Refused, why))
    }

    fn count(&self, call: Call, times: u64) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls.by_name.entry(call.name().into()).or_default() += times;
        drop(calls);
        self.bill(call, times);
    }

    fn bill(&self, call: Call, times: u64) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        match call.class() {
            Class::A => calls.class_a += times,
            Class::B => calls.class_b += times,
            Class::C => calls.class_c += times,
        }
    }
}

fn is_plain_loopback(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.scheme() == "http" && url.host_str() == Some("127.0.0.1"))
}

/// Keys and content go nowhere in the clear, whatever an answer says.
fn check_url(url: &str, plain_allowed: bool) -> Result<Url, String> {
    let parsed = Url::parse(url).map_err(|e| format!("the URL {url:?} is none: {e}"))?;
    let host = parsed.host_str().unwrap_or_default();
    if parsed.scheme() == "https" || (plain_allowed && is_plain_loopback(url)) {
        return Ok(parsed);
    }
    Err(format!("{}://{host} is not https, and nothing is sent there", parsed.scheme()))
}

fn secret_header(token: &str) -> Result<HeaderValue, Cause> {
    let mut value = HeaderValue::from_str(token)
        .map_err(|_| Cause::NotSent("B2 gave a token that fits in no header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The body of the answer, if that is a success.
async fn exchange(request: RequestBuilder) -> Result<Bytes, Cause> {
    let answer = request.send().await.map_err(broken)?;
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(seconds);
    let body = answer.bytes().await;
    if status == 200 {
        return body.map_err(broken);
    }
    // The status is worth more than the rest, which may be cut off.
    let body = body.unwrap_or_default();
    let error = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorAnswer {
        code: String::new(),
        message: String::from_utf8_lossy(&body).chars().take(EXCERPT_CHARS).collect(),
    });
    Err(Cause::Answer { status, code: error.code, message: error.message, retry_after })
}

/// Without the URL, which names the bucket and the pod to nobody's use.
fn broken(error: reqwest::Error) -> Cause {
    let not_sent = error.is_connect() || error.is_builder();
    let error = error.without_url();
    let mut why = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        why = format!("{why}: {inner}");
        source = inner.source();
    }
    if not_sent { Cause::NotSent(why) } else { Cause::NoAnswer(why) }
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// A success that cannot be read may still be one.
fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Cause> {
    serde_json::from_slice(answer)
        .map_err(|e| Cause::NoAnswer(format!("the answer is not as documented: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_in_the_clear_except_on_this_machine() {
        for (url, plain_allowed, ok) in [
            ("https://api.backblazeb2.com", false, true),
            ("https://pod-000.backblaze.com/b2api/v4/b2_upload_file?cvt=1", false, true),
            ("http://127.0.0.1:8080", true, true),
            ("http://127.0.0.1:8080", false, false),
            ("http://api.backblazeb2.com", true, false),
            ("http://127.0.0.1.example.com", true, false),
            ("http://127.0.0.1@example.com", true, false),
            ("ftp://127.0.0.1", true, false),
            ("", true, false),
        ] {
            assert_eq!(check_url(url, plain_allowed).is_ok(), ok, "{url}");
        }
    }

    #[test]
    fn a_wait_is_read_in_seconds_and_a_date_is_left_aside() {
        assert_eq!(seconds(&HeaderValue::from_static("7")), Some(Duration::from_secs(7)));
        assert_eq!(seconds(&HeaderValue::from_static("Fri, 20 Nov 2026 09:00:00 GMT")), None);
    }

    #[test]
    fn tokens_are_not_shown_when_headers_are() {
        assert_eq!(format!("{:?}", secret_header("4_005token").unwrap()), "Sensitive");
    }
}
