//! Faults: which call they hit, which time, and what happens instead of the ordinary answer.
use serde::{Deserialize, Serialize};

use crate::calls::Call;
use crate::error::B2Error;

/// A rule. Of the calls that match, `skip` pass first, then `times` are hit.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// None: any call.
    pub call: Option<Call>,
    #[serde(default)]
    pub skip: u64,
    #[serde(default = "once")]
    pub times: u64,
    /// Only calls about names that begin so; a call by file id is about the name of that file.
    #[serde(default)]
    pub name_prefix: Option<String>,
    pub kind: FaultKind,
}

fn once() -> u64 {
    1
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// This error after the whole request was read, without the effect.
    Answer(FaultAnswer),
    /// This error before the body was read; then the connection closes.
    EarlyAnswer(FaultAnswer),
    /// The effect, then the connection closes without an answer.
    DropAfterEffect,
    /// The connection is reset after so many bytes of the body that goes up, or of the one that comes down.
    ResetAfterBytes(u64),
    /// The effect, then no answer until `release_held`, or until the client leaves.
    HoldAnswer,
    /// The connection closes without an answer; the effect comes with `complete_late`.
    LateCompletion,
    /// All account tokens expire before the call is looked at.
    ExpireAccountTokens,
    /// All upload URLs expire before the call is looked at.
    ExpireUploadUrls,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAnswer {
    pub status: u16,
    pub code: String,
    #[serde(default)]
    pub retry_after_s: Option<u64>,
}

impl Fault {
    /// Hits the next call of that name.
    pub fn next(call: Call, kind: FaultKind) -> Self {
        Self { call: Some(call), skip: 0, times: 1, name_prefix: None, kind }
    }
}

impl FaultKind {
    pub(crate) fn is_expiry(&self) -> bool {
        matches!(self, Self::ExpireAccountTokens | Self::ExpireUploadUrls)
    }

    pub fn answer(status: u16, code: &str) -> Self {
        Self::Answer(FaultAnswer { status, code: code.into(), retry_after_s: None })
    }
}

impl From<FaultAnswer> for B2Error {
    fn from(answer: FaultAnswer) -> Self {
        let error = B2Error::new(answer.status, answer.code, "A fault was asked for");
        B2Error { retry_after_s: answer.retry_after_s, ..error }
    }
}

/// The rules in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    last_id: u64,
}

/// What a rule asks for one call.
#[derive(Debug)]
pub(crate) struct Hit {
    pub rule_id: u64,
    pub kind: FaultKind,
}

#[derive(Debug)]
struct Rule {
    id: u64,
    fault: Fault,
    seen: u64,
}

impl Faults {
    pub fn add(&mut self, fault: Fault) -> u64 {
        self.last_id += 1;
        self.rules.push(Rule { id: self.last_id, fault, seen: 0 });
        self.last_id
    }

    pub fn clear(&mut self) {
        self.rules.clear();
    }

    pub fn need_names(&self) -> bool {
        self.rules.iter().any(|rule| rule.fault.name_prefix.is_some())
    }

    /// The first rule that is due. Every rule that matches counts the call.
    pub fn hit(&mut self, call: Call, name: Option<&str>) -> Option<Hit> {
        let mut hit = None;
        for rule in &mut self.rules {
            let Fault { skip, times, .. } = rule.fault;
            if !rule.fault.matches(call, name) {
                continue;
            }
            rule.seen += 1;
            if hit.is_none() && rule.seen > skip && rule.seen - skip <= times {
                hit = Some(Hit { rule_id: rule.id, kind: rule.fault.kind.clone() });
            }
        }
        hit
    }
}

impl Fault {
    fn matches(&self, call: Call, name: Option<&str>) -> bool {
        let prefix = self.name_prefix.as_deref();
        self.call.is_none_or(|own| own == call)
            && prefix.is_none_or(|prefix| name.is_some_and(|name| name.starts_with(prefix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_lets_some_pass_hits_some_and_is_done() {
        let mut faults = Faults::default();
        let kind = FaultKind::HoldAnswer;
        faults.add(Fault { skip: 1, times: 2, ..Fault::next(Call::UploadFile, kind) });
        let hits: Vec<_> = (0..5).map(|_| faults.hit(Call::UploadFile, None).is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert!(faults.hit(Call::HideFile, None).is_none());
    }

    #[test]
    fn a_rule_with_a_name_leaves_other_names_alone() {
        let mut faults = Faults::default();
        let fault = Fault::next(Call::UploadFile, FaultKind::DropAfterEffect);
        faults.add(Fault { call: None, name_prefix: Some("a/".into()), ..fault });
        assert!(faults.hit(Call::UploadFile, Some("b")).is_none());
        assert!(faults.hit(Call::ListBuckets, None).is_none());
        assert!(faults.hit(Call::HideFile, Some("a/b")).is_some());
    }

    #[test]
    fn a_rule_reads_from_json_as_the_control_endpoint_takes_it() {
        let text = r#"{"call": "b2_upload_file", "times": 3,
            "kind": {"answer": {"status": 503, "code": "service_unavailable", "retry_after_s": 1}}}"#;
        let fault: Fault = serde_json::from_str(text).expect("a good rule");
        assert_eq!((fault.call, fault.skip, fault.times), (Some(Call::UploadFile), 0, 3));
        assert!(serde_json::from_str::<Fault>(r#"{"call": "b2_nothing", "kind": "hold_answer"}"#).is_err());
    }
}
