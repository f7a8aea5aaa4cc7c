//! An error as B2 answers it: status, code, message, and perhaps how long to wait.
use std::borrow::Cow;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct B2Error {
    pub status: u16,
    pub code: Cow<'static, str>,
    pub message: String,
    pub retry_after_s: Option<u64>,
}

impl B2Error {
    pub fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), retry_after_s: None }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "bad_request", message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, "unauthorized", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "not_found", message)
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        serde_json::json!({ "status": self.status, "code": self.code, "message": self.message })
            .to_string()
            .into_bytes()
    }
}
