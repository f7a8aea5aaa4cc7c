//! The HTTP shell: connections, which call a request is, and what a fault does to its answer.
mod control;
mod downloads;
mod json;
pub(crate) mod reply;
mod uploads;

use std::error::Error as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::calls::Call;
use crate::error::B2Error;
use crate::faults::{FaultKind, Hit};
use crate::state::{Effect, Shared};
use reply::{Cut, ReplyBody, error_response};

type Answer = Result<Response<ReplyBody>, Cut>;

pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        // An accept fails for want of descriptors or because the client has gone; the next may succeed.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_connection(shared.clone(), stream));
        }
    }
}

async fn serve_connection(shared: Arc<Shared>, stream: TcpStream) {
    // Both socket options are only about speed and about the form of a fault.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        let answer: Pin<Box<dyn Future<Output = Answer> + Send>> = Box::pin(route(shared, request));
        answer
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let ended = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let stream = connection.into_parts().io.into_inner();
    let cut = ended.err().and_then(|error| error.source()?.downcast_ref::<Cut>().copied());
    if cut == Some(Cut::Reset) {
        let _ = stream.set_zero_linger();
    }
}

async fn route(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    if let Some(verb) = path.strip_prefix("/_control/") {
        return control::control(&shared, verb, request).await;
    }
    if let Some(file) = path.strip_prefix("/file/") {
        return downloads::by_name(&shared, file, request).await;
    }
    let Some((version, call)) = api_call(&path) else {
        return Ok(unknown(&shared, &request));
    };
    match (call, request.method()) {
        (Call::UploadFile | Call::UploadPart, &Method::POST) => {
            uploads::upload(&shared, version, call, request).await
        }
        (Call::DownloadFileById, &Method::GET | &Method::HEAD) => downloads::by_id(&shared, request).await,
        (Call::UploadFile | Call::UploadPart | Call::DownloadFileById, _) => Ok(unknown(&shared, &request)),
        (_, &Method::POST | &Method::GET) => json::call(&shared, version, call, request).await,
        _ => Ok(unknown(&shared, &request)),
    }
}

/// "/b2api/v3/b2_hide_file", with more behind it in the URLs of uploads.
fn api_call(path: &str) -> Option<(u8, Call)> {
    let (version, rest) = path.strip_prefix("/b2api/v")?.split_once('/')?;
    let version = version.parse().ok().filter(|version| (1..=4).contains(version))?;
    let name = rest.split('/').next().unwrap_or(rest);
    let by_name = [Call::DownloadFileByName, Call::HeadFileByName];
    let call = Call::named(name).filter(|call| !by_name.contains(call))?;
    let is_upload = matches!(call, Call::UploadFile | Call::UploadPart);
    (is_upload || name == rest).then_some((version, call))
}

fn unknown(shared: &Shared, request: &Request<Incoming>) -> Response<ReplyBody> {
    let what = format!("Unknown call: {} {}", request.method(), request.uri().path());
    refuse(shared, what)
}

/// A request that no correct client makes: an error for it, and a violation for the test.
fn refuse(shared: &Shared, what: String) -> Response<ReplyBody> {
    let error = B2Error::bad_request(what.clone());
    shared.violation(what);
    answer_error(shared, &error)
}

fn answer_error(shared: &Shared, error: &B2Error) -> Response<ReplyBody> {
    shared.note_error(error);
    error_response(error)
}

/// The effect and its answer, or what the fault makes of them. The body of the request has been read.
async fn finish(shared: &Shared, version: u8, call: Call, hit: Option<Hit>, effect: Effect) -> Answer {
    let apply = |effect| match shared.apply(call, effect) {
        Ok(reply) => reply.into_response(version, &shared.endpoint),
        Err(error) => answer_error(shared, &error),
    };
    let Some(hit) = hit else {
        return Ok(apply(effect));
    };
    // Before the fault is counted, so that who waits for the count and then releases finds it.
    let mut held = shared.hold();
    let answer = match hit.kind.clone() {
        FaultKind::ExpireAccountTokens | FaultKind::ExpireUploadUrls | FaultKind::HoldAnswer => {
            Ok(apply(effect))
        }
        FaultKind::Answer(answer) => Ok(answer_error(shared, &answer.into())),
        FaultKind::EarlyAnswer(answer) => Ok(early_answer(shared, &answer.into())),
        FaultKind::ResetAfterBytes(_) => Err(Cut::Reset),
        FaultKind::DropAfterEffect => {
            apply(effect);
            Err(Cut::Close)
        }
        FaultKind::LateCompletion => {
            shared.lock().late.push((call, effect));
            Err(Cut::Close)
        }
    };
    shared.note_fault(hit.rule_id);
    if hit.kind == FaultKind::HoldAnswer {
        // It fails only if the sender is gone, which lives as long as `shared`.
        let _ = held.changed().await;
    }
    answer
}

fn early_answer(shared: &Shared, error: &B2Error) -> Response<ReplyBody> {
    let mut response = answer_error(shared, error);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// "" if there is none: no token is empty.
fn authorization(request: &Request<Incoming>) -> String {
    header(request, AUTHORIZATION.as_str()).unwrap_or_default().to_owned()
}

fn header<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}
