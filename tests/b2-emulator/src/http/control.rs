//! The control endpoints, for tests and benches in other processes: faults, counters, violations.
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::Answer;
use super::reply::{Cut, ReplyBody, ok_json};
use crate::faults::Fault;
use crate::state::Shared;

pub(super) async fn control(shared: &Arc<Shared>, verb: &str, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let body = request.into_body().collect().await.map_err(|_| Cut::Close)?.to_bytes();
    let value = match (method, verb) {
        (Method::POST, "faults") => return Ok(add_fault(shared, &body)),
        (Method::DELETE, "faults") => {
            shared.lock().faults.clear();
            json!({})
        }
        (Method::POST, "release") => {
            shared.release_held();
            json!({})
        }
        (Method::POST, "complete") => json!({ "completed": shared.complete_late() }),
        (Method::POST, "reset") => {
            shared.reset();
            json!({})
        }
        (Method::GET, "counters") => json!(shared.lock().counters),
        (Method::GET, "violations") => json!(shared.lock().violations),
        _ => return Ok(refusal(StatusCode::NOT_FOUND, format!("No such control: {verb}"))),
    };
    Ok(ok_json(value.to_string().into_bytes()))
}

fn add_fault(shared: &Shared, body: &Bytes) -> Response<ReplyBody> {
    match serde_json::from_slice::<Fault>(body) {
        Ok(fault) => {
            let id = shared.lock().faults.add(fault);
            ok_json(json!({ "id": id }).to_string().into_bytes())
        }
        Err(error) => refusal(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

fn refusal(status: StatusCode, why: String) -> Response<ReplyBody> {
    let mut response = ok_json(json!({ "message": why }).to_string().into_bytes());
    *response.status_mut() = status;
    response
}
