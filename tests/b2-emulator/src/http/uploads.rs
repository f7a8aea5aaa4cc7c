//! b2_upload_file and b2_upload_part: headers, the body hashed as it comes in, one upload at a time per URL.
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, Request};
use sha1::{Digest, Sha1};

use super::reply::{Cut, Reply};
use super::{Answer, answer_error, authorization, early_answer, finish, refuse};
use crate::calls::Call;
use crate::content::{Content, hex};
use crate::error::B2Error;
use crate::faults::FaultKind;
use crate::model::access::UploadTarget;
use crate::model::large::PartUpload;
use crate::model::versions::{DeclaredSha1, Upload};
use crate::names;
use crate::state::{Effect, Shared};

/// Bytes to set aside before they come: a client may announce more than it sends.
const RESERVED_BYTES_MAX: usize = 16 << 20;
const SHA1_DIGITS: usize = 40;

/// Refused by the service, by Backblaze's documentation of b2_upload_file.
const FORBIDDEN: [&str; 6] = [
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "content-range",
    "expires",
];

pub(super) async fn upload(
    shared: &Arc<Shared>,
    version: u8,
    call: Call,
    request: Request<Incoming>,
) -> Answer {
    let token = authorization(&request);
    let hit = shared.begin(call, |model| match call {
        Call::UploadFile => names::decode(text(request.headers(), "x-bz-file-name")?),
        _ => model.large_file_name(&token).map(str::to_owned),
    });
    let lease = Lease::take(shared, &token, request.uri().path_and_query().map_or("", |url| url.as_str()));
    let read_max = match hit.as_ref().map(|hit| (hit, &hit.kind)) {
        Some((hit, FaultKind::EarlyAnswer(answer))) => {
            shared.note_fault(hit.rule_id);
            return Ok(early_answer(shared, &answer.clone().into()));
        }
        Some((_, FaultKind::ResetAfterBytes(bytes))) => *bytes,
        _ => u64::MAX,
    };
    let (head, body) = request.into_parts();
    let sha1 = Sha1Header::read(&head.headers);
    let has_trailer = sha1 == Ok(Sha1Header::AtEnd);
    // An ordinary error, too, is answered after the body, so that the client surely gets to read it.
    let received = receive(body, length(&head.headers), has_trailer, read_max).await?;
    let mut lease = match lease {
        Ok(lease) => lease,
        Err(error) => return Ok(answer_error(shared, &error)),
    };
    let effect = sha1.and_then(|sha1| match call {
        Call::UploadFile => file_effect(&head.headers, &lease, sha1, received),
        _ => part_effect(&head.headers, &lease, sha1, received),
    });
    let answer = match effect {
        Ok(effect) => finish(shared, version, call, hit, effect).await,
        Err(what) => Ok(refuse(shared, format!("{}: {what}", call.name()))),
    };
    lease.accepted = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
    answer
}

/// Holds the upload URL for one upload, and gives it back however that ends.
struct Lease {
    shared: Arc<Shared>,
    token: String,
    target: UploadTarget,
    accepted: bool,
}

impl Lease {
    fn take(shared: &Arc<Shared>, token: &str, url: &str) -> Result<Self, B2Error> {
        let pod = token.rsplit('_').next().unwrap_or_default();
        if !url.contains(pod) {
            return Err(B2Error::new(401, "bad_auth_token", "The token is that of another upload URL"));
        }
        let taken = shared.lock().model.begin_upload(token);
        if let Err(error) = &taken
            && error.code == "auth_token_limit"
        {
            shared.violation(format!("Two uploads at once: {}", error.message));
        }
        Ok(Self { shared: shared.clone(), token: token.into(), target: taken?, accepted: false })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.lock().model.end_upload(&self.token, self.accepted);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Sha1Header {
    Digits(String),
    AtEnd,
    DoNotVerify,
}

impl Sha1Header {
    /// Checks on the way what both kinds of upload must say in headers.
    fn read(headers: &HeaderMap) -> Result<Self, String> {
        if headers.contains_key("transfer-encoding") || length(headers).is_none() {
            return Err("Content-Length is required, and chunks are not supported".into());
        }
        if let Some(name) = FORBIDDEN.iter().find(|name| headers.contains_key(**name)) {
            return Err(format!("The header {name} must not be sent"));
        }
        match required(headers, "x-bz-content-sha1")? {
            "hex_digits_at_end" => Ok(Self::AtEnd),
            "do_not_verify" => Ok(Self::DoNotVerify),
            digits if names::is_sha1(digits) => Ok(Self::Digits(digits.into())),
            other => Err(format!("X-Bz-Content-Sha1 is no SHA-1: {other}")),
        }
    }

    fn resolve(self, trailer: String) -> DeclaredSha1 {
        match self {
            Self::Digits(digits) => DeclaredSha1::Digits(digits),
            Self::AtEnd => DeclaredSha1::Digits(trailer),
            Self::DoNotVerify => DeclaredSha1::DoNotVerify,
        }
    }
}

struct Received {
    body: Bytes,
    sha1: String,
    /// The digits at the end; empty if none were announced.
    trailer: String,
}

/// Reads `read_max` bytes or all. Fails if the client leaves before the end.
async fn receive(
    mut body: Incoming,
    length: Option<usize>,
    has_trailer: bool,
    read_max: u64,
) -> Result<Received, Cut> {
    let length = length.unwrap_or(0);
    let payload = if has_trailer { length.saturating_sub(SHA1_DIGITS) } else { length };
    let mut bytes = BytesMut::with_capacity(length.min(RESERVED_BYTES_MAX));
    let mut hash = Sha1::new();
    while (bytes.len() as u64) < read_max
        && let Some(frame) = body.frame().await
    {
        let start = bytes.len().min(payload);
        if let Ok(data) = frame.map_err(|_| Cut::Close)?.into_data() {
            bytes.extend_from_slice(&data);
        }
        hash.update(&bytes[start..bytes.len().min(payload)]);
    }
    let trailer = bytes.split_off(bytes.len().min(payload));
    let trailer = String::from_utf8_lossy(&trailer).into_owned();
    Ok(Received { body: bytes.freeze(), sha1: hex(&hash.finalize()), trailer })
}

fn file_effect(
    headers: &HeaderMap,
    lease: &Lease,
    sha1: Sha1Header,
    received: Received,
) -> Result<Effect, String> {
    let name = required(headers, "x-bz-file-name")?;
    let content_type = required(headers, "content-type")?.to_owned();
    let custom_timestamp_ms = match text(headers, "x-bz-custom-upload-timestamp") {
        Some(digits) => Some(digits.parse().map_err(|_| format!("Bad upload timestamp: {digits}"))?),
        None => None,
    };
    let decoded = names::decode(name).zip(info(headers));
    let (token, target) = (lease.token.clone(), lease.target.clone());
    Ok(Box::new(move |model, now_ms| {
        let (name, info) = decoded.ok_or(B2Error::bad_request("File name or info is not UTF-8"))?;
        let declared = sha1.resolve(received.trailer);
        let upload = Upload {
            name,
            content_type,
            info,
            declared,
            sha1: received.sha1,
            content: received.body.into(),
            custom_timestamp_ms,
        };
        model.upload_file(&token, &target, upload, now_ms).map(|file| Reply::File(file, "upload"))
    }))
}

fn part_effect(
    headers: &HeaderMap,
    lease: &Lease,
    sha1: Sha1Header,
    received: Received,
) -> Result<Effect, String> {
    let number = required(headers, "x-bz-part-number")?;
    let number = number.parse().map_err(|_| format!("Bad part number: {number}"))?;
    let target = lease.target.clone();
    Ok(Box::new(move |model, now_ms| {
        let declared = sha1.resolve(received.trailer);
        let content = Content::from(received.body);
        let upload = PartUpload { number, declared, sha1: received.sha1, content };
        let part = model.upload_part(&target, upload, now_ms)?;
        Ok(Reply::Part(part, target.id().to_owned()))
    }))
}

/// None if a value is not UTF-8. Keys come in lower case, as B2 stores them.
fn info(headers: &HeaderMap) -> Option<BTreeMap<String, String>> {
    let mut info = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("x-bz-info-") {
            info.insert(key.to_owned(), names::decode(value.to_str().ok()?)?);
        }
    }
    Some(info)
}

fn required<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, String> {
    text(headers, name).ok_or(format!("The header {name} is missing"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn length(headers: &HeaderMap) -> Option<usize> {
    text(headers, "content-length")?.parse().ok()
}
