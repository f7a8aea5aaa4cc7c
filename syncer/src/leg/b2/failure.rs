//! How a call fails, what that means for the run, and whether the call is made again: decided here and nowhere else.

use std::fmt;
use std::time::Duration;

use shared::exit::Exit;

use super::super::{Problem, StoreError};
use super::api::Call;

#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub call: Call,
    pub cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// B2 said no.
    Answer { status: u16, code: String, message: String, retry_after: Option<Duration> },
    /// The request did not go out whole: it has no effect.
    NotSent(String),
    /// The request went out whole, and no answer came that could be read.
    NoAnswer(String),
    /// The source could not be sent: `Busy` or `Unreadable`.
    Source(Problem, String),
    /// Found out without asking B2.
    Stop(Exit, String),
}

impl Failure {
    pub fn problem(&self) -> Problem {
        match &self.cause {
            Cause::Answer { status, code, message, retry_after } => {
                answered(self.call, *status, code, message, *retry_after)
            }
            Cause::NotSent(_) | Cause::NoAnswer(_) => Problem::TryLater(None),
            Cause::Source(problem, _) => problem.clone(),
            Cause::Stop(exit, _) => Problem::Stop(*exit),
        }
    }

    /// The account token is no longer taken.
    pub fn wants_a_new_token(&self) -> bool {
        matches!(&self.cause, Cause::Answer { status: 401, code, .. }
            if code == "expired_auth_token" || code == "bad_auth_token")
    }

    pub fn is_answer(&self, wanted: u16, codes: &[&str]) -> bool {
        matches!(&self.cause, Cause::Answer { status, code, .. } if *status == wanted && codes.contains(&code.as_str()))
    }

    pub fn outcome_unknown(&self) -> bool {
        self.call.makes_a_version() && matches!(self.cause, Cause::NoAnswer(_))
    }

    pub fn into_store_error(self, op: &'static str, object: impl fmt::Display) -> StoreError {
        let outcome_unknown = self.outcome_unknown();
        StoreError { outcome_unknown, ..StoreError::new(op, object, self.problem(), self) }
    }

    fn hint(&self) -> &'static str {
        match &self.cause {
            Cause::Answer { status: 403, code, .. } if code.ends_with("cap_exceeded") => {
                ". A cap of the account is reached: raise it on Backblaze's page Caps & Alerts, or wait until its day ends"
            }
            Cause::Answer { status: 403, .. } => {
                ". Look at the state of the account and the bucket on Backblaze's pages"
            }
            Cause::Answer { status: 401, .. } => {
                ". The application key was deleted, has expired or lacks a right: the leg needs listBuckets, listFiles \
                 and writeFiles for its bucket and prefix"
            }
            Cause::Answer { status: 400, .. } if self.problem() == Problem::Stop(Exit::Config) => {
                ". The bucket is gone: create it, or correct `bucket`"
            }
            Cause::Answer { status: 300..=399, .. } => ". Name the endpoint itself in the configuration",
            _ => "",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = self.call.name();
        match &self.cause {
            Cause::Answer { status, code, message, .. } => {
                write!(f, "{call} answered {status} {code}")?;
                if !message.is_empty() {
                    write!(f, " ({message})")?;
                }
            }
            Cause::NotSent(why) => write!(f, "{call} could not be sent: {why}")?,
            Cause::NoAnswer(why) => write!(f, "{call} was sent and not answered: {why}")?,
            Cause::Source(_, why) | Cause::Stop(_, why) => f.write_str(why)?,
        }
        f.write_str(self.hint())
    }
}

/// Backblaze's page on error handling says to go by status and code.
fn answered(call: Call, status: u16, code: &str, message: &str, retry_after: Option<Duration>) -> Problem {
    match (status, code) {
        (400, "bad_bucket_id" | "invalid_bucket_id" | "invalid_bucket_name") => Problem::Stop(Exit::Config),
        (400, "auth_token_limit" | "missing_part" | "part_sha1_mismatch") => Problem::TryLater(None),
        // Its code is that of all bad requests.
        (400, _) if call.is_upload() && says_wrong_sha1(message) => Problem::TryLater(None),
        (400, _) if call.is_about_an_object() => Problem::Unfit,
        (400, _) => Problem::Stop(Exit::Failed),
        // The upload URL is used up; asking for the next one tells whether the key is good.
        (401, _) if call.is_upload() => Problem::TryLater(None),
        (401 | 403, _) => Problem::Stop(Exit::Refused),
        (300..=399, _) => Problem::Stop(Exit::Config),
        _ => Problem::TryLater(retry_after),
    }
}

pub(super) fn says_wrong_sha1(message: &str) -> bool {
    message.to_ascii_lowercase().contains("sha1")
}

/// How often a call is tried, and how long to wait in between.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    pub attempts: u32,
    /// Doubles with each attempt.
    pub first_wait: Duration,
    /// If B2 asks for a longer one, the run decides.
    pub longest_wait: Duration,
}

impl Default for Patience {
    /// Five is what Backblaze advises for upload URLs.
    fn default() -> Self {
        Patience { attempts: 5, first_wait: Duration::from_secs(1), longest_wait: Duration::from_secs(60) }
    }
}

/// The attempts at one call; an upload with the call for its URL is one.
pub(super) struct Attempts<'a> {
    patience: &'a Patience,
    failed: u32,
}

impl<'a> Attempts<'a> {
    pub fn new(patience: &'a Patience) -> Self {
        Attempts { patience, failed: 0 }
    }

    pub fn is_first(&self) -> bool {
        self.failed == 0
    }

    /// True, after the due wait, if there is to be another attempt.
    pub async fn again(&mut self, failure: &Failure) -> bool {
        let wait = self.wait(failure);
        if let Some(wait) = wait {
            tracing::debug!(%failure, ?wait, "Trying again");
            tokio::time::sleep(wait).await;
        }
        wait.is_some()
    }

    fn wait(&mut self, failure: &Failure) -> Option<Duration> {
        let Problem::TryLater(asked) = failure.problem() else { return None };
        self.failed += 1;
        let could_come_true_later = failure.outcome_unknown() && failure.call != Call::FinishLargeFile;
        if self.failed >= self.patience.attempts || could_come_true_later {
            return None;
        }
        let too_many = matches!(failure.cause, Cause::Answer { status: 429, .. });
        if failure.call.is_upload() && !too_many {
            // At once, with a new URL: a 503 says that this pod is full, not that B2 is.
            return Some(Duration::ZERO);
        }
        let doubled = self.patience.first_wait.saturating_mul(1 << (self.failed - 1).min(10));
        let wait = asked.unwrap_or_else(|| doubled.mul_f64(0.5 + rand::random::<f64>()));
        (wait <= self.patience.longest_wait).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(call: Call, status: u16, code: &str) -> Failure {
        let cause = Cause::Answer { status, code: code.into(), message: String::new(), retry_after: None };
        Failure { call, cause }
    }

    #[test]
    fn every_answer_means_one_thing_for_the_run() {
        use Problem::{Stop, TryLater, Unfit};
        let table = [
            (Call::UploadFile, 400, "bad_request", Unfit),
            (Call::StartLargeFile, 400, "bad_json", Unfit),
            (Call::HideFile, 400, "out_of_range", Unfit),
            (Call::ListFileNames, 400, "bad_request", Stop(Exit::Failed)),
            (Call::GetUploadUrl, 400, "bad_bucket_id", Stop(Exit::Config)),
            (Call::ListBuckets, 400, "invalid_bucket_name", Stop(Exit::Config)),
            (Call::UploadFile, 400, "auth_token_limit", TryLater(None)),
            (Call::FinishLargeFile, 400, "part_sha1_mismatch", TryLater(None)),
            (Call::FinishLargeFile, 400, "missing_part", TryLater(None)),
            (Call::AuthorizeAccount, 401, "bad_auth_token", Stop(Exit::Refused)),
            (Call::HideFile, 401, "unauthorized", Stop(Exit::Refused)),
            (Call::UploadFile, 401, "expired_auth_token", TryLater(None)),
            (Call::UploadPart, 401, "bad_auth_token", TryLater(None)),
            (Call::UploadFile, 403, "cap_exceeded", Stop(Exit::Refused)),
            (Call::GetUploadUrl, 403, "storage_cap_exceeded", Stop(Exit::Refused)),
            (Call::GetFileInfo, 403, "transaction_cap_exceeded", Stop(Exit::Refused)),
            (Call::HideFile, 403, "access_denied", Stop(Exit::Refused)),
            (Call::GetFileInfo, 404, "not_found", TryLater(None)),
            (Call::UploadFile, 408, "request_timeout", TryLater(None)),
            (Call::ListBuckets, 409, "conflict", TryLater(None)),
            (Call::ListFileNames, 429, "too_many_requests", TryLater(None)),
            (Call::UploadFile, 500, "internal_error", TryLater(None)),
            (Call::HideFile, 503, "service_unavailable", TryLater(None)),
            (Call::ListFileNames, 301, "", Stop(Exit::Config)),
        ];
        for (call, status, code, problem) in table {
            assert_eq!(answer(call, status, code).problem(), problem, "{call:?} {status} {code}");
        }
    }

    #[test]
    fn a_wait_that_b2_asks_for_reaches_the_run() {
        let second = Duration::from_secs(1);
        let cause = Cause::Answer {
            status: 503,
            code: String::new(),
            message: String::new(),
            retry_after: Some(second),
        };
        assert_eq!(Failure { call: Call::HideFile, cause }.problem(), Problem::TryLater(Some(second)));
    }

    #[test]
    fn damage_on_the_way_is_not_the_fault_of_the_file() {
        let message = "Sha1 did not match data received".into();
        let cause = Cause::Answer { status: 400, code: "bad_request".into(), message, retry_after: None };
        assert_eq!(Failure { call: Call::UploadFile, cause }.problem(), Problem::TryLater(None));
    }

    #[test]
    fn only_a_lost_answer_about_a_version_leaves_the_outcome_unknown() {
        let lost = |call| Failure { call, cause: Cause::NoAnswer("reset".into()) }.outcome_unknown();
        assert!(lost(Call::UploadFile) && lost(Call::HideFile) && lost(Call::FinishLargeFile));
        assert!(!lost(Call::UploadPart) && !lost(Call::ListFileNames) && !lost(Call::StartLargeFile));
        assert!(!Failure { call: Call::UploadFile, cause: Cause::NotSent("reset".into()) }.outcome_unknown());
        assert!(!answer(Call::UploadFile, 503, "service_unavailable").outcome_unknown());
    }

    #[test]
    fn a_cap_says_what_the_owner_must_do() {
        let error = answer(Call::UploadFile, 403, "storage_cap_exceeded").into_store_error("upload", "a");
        let text = error.to_string();
        assert!(
            text.starts_with("Cannot upload a: b2_upload_file answered 403 storage_cap_exceeded. A cap"),
            "{text}"
        );
        assert!(text.contains("raise it"), "{text}");
    }

    #[test]
    fn a_call_is_tried_five_times_with_growing_waits_and_an_upload_at_once() {
        let patience = Patience::default();
        let waits = |failure: &Failure| {
            let mut attempts = Attempts::new(&patience);
            std::iter::from_fn(|| attempts.wait(failure)).collect::<Vec<_>>()
        };
        let call = waits(&answer(Call::ListFileNames, 503, "service_unavailable"));
        assert_eq!(call.len(), 4);
        for (wait, seconds) in call.iter().zip([1.0, 2.0, 4.0, 8.0]) {
            assert!((0.5 * seconds..1.5 * seconds).contains(&wait.as_secs_f64()), "{wait:?}");
        }
        assert_eq!(waits(&answer(Call::UploadFile, 503, "service_unavailable")), [Duration::ZERO; 4]);
        assert_eq!(waits(&answer(Call::UploadFile, 429, "too_many_requests")).len(), 4);
        assert!(waits(&answer(Call::UploadFile, 403, "cap_exceeded")).is_empty());
        assert!(waits(&Failure { call: Call::HideFile, cause: Cause::NoAnswer(String::new()) }).is_empty());
    }

    #[test]
    fn a_wait_of_minutes_is_left_to_the_run() {
        let patience = Patience::default();
        let asked = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            let cause =
                Cause::Answer { status: 429, code: String::new(), message: String::new(), retry_after };
            Attempts::new(&patience).wait(&Failure { call: Call::UploadFile, cause })
        };
        assert_eq!(asked(7), Some(Duration::from_secs(7)));
        assert_eq!(asked(600), None);
    }
}
