//! The model with what is noted about its use: counters, faults, violations, effects still to come.
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

use crate::calls::{Call, Class};
use crate::error::B2Error;
use crate::faults::{FaultKind, Faults, Hit};
use crate::http::reply::Reply;
use crate::model::Model;

/// What a call does to the model, with the time in ms; it may be done after the answer was given up.
pub(crate) type Effect = Box<dyn FnOnce(&mut Model, u64) -> Result<Reply, B2Error> + Send>;

#[derive(Debug, Clone, Default, Serialize)]
pub struct Counters {
    /// Every request, also one that a fault hit.
    pub calls: BTreeMap<Call, u64>,
    /// Billed transactions, counted when a call has its effect or is refused; a listing counts one for each
    /// thousand entries that it returns.
    pub class_a: u64,
    pub class_b: u64,
    pub class_c: u64,
    /// Answers that were errors, by code.
    pub errors: BTreeMap<String, u64>,
    /// Faults that took place, by the id of the rule.
    pub faults: BTreeMap<u64, u64>,
}

impl Counters {
    pub fn calls(&self, call: Call) -> u64 {
        self.calls.get(&call).copied().unwrap_or(0)
    }

    pub fn fault(&self, rule_id: u64) -> u64 {
        self.faults.get(&rule_id).copied().unwrap_or(0)
    }
}

pub(crate) struct State {
    pub model: Model,
    pub faults: Faults,
    pub counters: Counters,
    pub violations: Vec<String>,
    pub late: Vec<(Call, Effect)>,
}

/// What all connections share.
pub(crate) struct Shared {
    pub endpoint: String,
    state: Mutex<State>,
    changed: Condvar,
    /// How many times held answers were let go.
    released: watch::Sender<u64>,
}

impl Shared {
    pub fn new(endpoint: String, model: Model) -> Self {
        let state = State {
            model,
            faults: Faults::default(),
            counters: Counters::default(),
            violations: Vec::new(),
            late: Vec::new(),
        };
        Self { endpoint, state: Mutex::new(state), changed: Condvar::new(), released: watch::Sender::new(0) }
    }

    /// A panic under the lock has failed its request already; the others may go on.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and decides on its fault; an expiry is done at once. `name` is asked only if needed.
    pub fn begin(&self, call: Call, name: impl FnOnce(&Model) -> Option<String>) -> Option<Hit> {
        let mut guard = self.lock();
        let state = &mut *guard;
        *state.counters.calls.entry(call).or_default() += 1;
        let name = if state.faults.need_names() { name(&state.model) } else { None };
        let mut hit = state.faults.hit(call, name.as_deref());
        if let Some(hit) = hit.take_if(|hit| hit.kind.is_expiry()) {
            match hit.kind {
                FaultKind::ExpireAccountTokens => state.model.expire_account_tokens(),
                _ => state.model.expire_upload_urls(),
            }
            *state.counters.faults.entry(hit.rule_id).or_default() += 1;
        }
        drop(guard);
        self.changed.notify_all();
        hit
    }

    /// Counts a fault, after what it does to the model.
    pub fn note_fault(&self, rule_id: u64) {
        *self.lock().counters.faults.entry(rule_id).or_default() += 1;
        self.changed.notify_all();
    }

    pub fn apply(&self, call: Call, effect: Effect) -> Result<Reply, B2Error> {
        let reply = self.lock().apply(call, effect);
        self.changed.notify_all();
        reply
    }

    pub fn complete_late(&self) -> usize {
        let mut state = self.lock();
        let late = std::mem::take(&mut state.late);
        let count = late.len();
        for (call, effect) in late {
            // Nobody waits for this answer; a refusal is as silent as it is on the service.
            let _ = state.apply(call, effect);
        }
        count
    }

    /// For an answer that is to be held from now until the next `release_held`.
    pub fn hold(&self) -> watch::Receiver<u64> {
        self.released.subscribe()
    }

    pub fn release_held(&self) {
        self.released.send_modify(|times| *times += 1);
    }

    pub fn note_error(&self, error: &B2Error) {
        *self.lock().counters.errors.entry(error.code.to_string()).or_default() += 1;
    }

    pub fn violation(&self, what: String) {
        self.lock().violations.push(what);
    }

    /// Whether `met` became true within the time.
    pub fn wait_until(&self, timeout: Duration, mut met: impl FnMut(&Counters) -> bool) -> bool {
        let unmet = |state: &mut State| !met(&state.counters);
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, unmet);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Counters, violations, faults and late effects; files, keys and tokens stay.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.counters = Counters::default();
        state.violations.clear();
        state.faults.clear();
        state.late.clear();
        drop(state);
        self.release_held();
    }
}

impl State {
    fn apply(&mut self, call: Call, effect: Effect) -> Result<Reply, B2Error> {
        let reply = effect(&mut self.model, now_ms());
        let transactions = reply.as_ref().map_or(1, Reply::transactions);
        match call.class() {
            Class::A => self.counters.class_a += transactions,
            Class::B => self.counters.class_b += transactions,
            Class::C => self.counters.class_c += transactions,
        }
        reply
    }
}

pub(crate) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    since_1970.as_millis() as u64
}
