//! Downloads by name and by id, whole or a range; HEAD of a name.
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::RANGE;
use hyper::{Method, Request};

use super::{Answer, authorization, finish, header, refuse, unknown};
use crate::calls::Call;
use crate::error::B2Error;
use crate::faults::{FaultKind, Hit};
use crate::http::reply::Reply;
use crate::model::Model;
use crate::model::versions::{parse_range, range_error};
use crate::names;
use crate::state::Shared;
use crate::version::Version;

/// `file` is the bucket and the name, still encoded.
pub(super) async fn by_name(shared: &Arc<Shared>, file: &str, request: Request<Incoming>) -> Answer {
    let call = match *request.method() {
        Method::GET => Call::DownloadFileByName,
        Method::HEAD => Call::HeadFileByName,
        _ => return Ok(unknown(shared, &request)),
    };
    let Some((bucket, name)) =
        file.split_once('/').and_then(|(bucket, name)| Some((bucket, names::decode(name)?)))
    else {
        return Ok(refuse(shared, format!("Malformed path: /file/{file}")));
    };
    let (bucket, subject) = (bucket.to_owned(), name.clone());
    let find = move |model: &Model, token: &str| model.download_by_name(token, &bucket, &name);
    download(shared, call, request, |_| Some(subject), find).await
}

pub(super) async fn by_id(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let Some(file_id) = query_value(&request, "fileId") else {
        return Ok(refuse(shared, "b2_download_file_by_id without fileId".into()));
    };
    let id = file_id.clone();
    let subject = move |model: &Model| Some(model.version(&id)?.name.clone());
    let find = move |model: &Model, token: &str| model.download_by_id(token, &file_id);
    download(shared, Call::DownloadFileById, request, subject, find).await
}

async fn download(
    shared: &Shared,
    call: Call,
    request: Request<Incoming>,
    subject: impl FnOnce(&Model) -> Option<String>,
    find: impl FnOnce(&Model, &str) -> Result<Arc<Version>, B2Error> + Send + 'static,
) -> Answer {
    let token = query_value(&request, "Authorization").unwrap_or_else(|| authorization(&request));
    let range = header(&request, RANGE.as_str()).map(str::to_owned);
    let hit = shared.begin(call, subject);
    let effect = Box::new(move |model: &mut Model, _| {
        let file = find(model, &token)?;
        let range = match range {
            Some(text) => Some(parse_range(&text, file.size()).ok_or_else(|| range_error(&text))?),
            None => None,
        };
        Ok(Reply::Download(file, range))
    });
    // The API version changes nothing in a download.
    match hit {
        Some(Hit { rule_id, kind: FaultKind::ResetAfterBytes(bytes) }) => {
            shared.note_fault(rule_id);
            Ok(finish(shared, 1, call, None, effect).await?.map(|body| body.reset_after(bytes)))
        }
        hit => finish(shared, 1, call, hit, effect).await,
    }
}

fn query_value(request: &Request<Incoming>, wanted: &str) -> Option<String> {
    let pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == wanted).find_map(|(_, value)| names::decode(value))
}
