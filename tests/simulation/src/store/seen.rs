//! What a destination was asked, in order, and the place from which an oracle looks on.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use shared::path::RelPath;
use syncer::leg::{Problem, Put, Remove, Sha1, StoreError, What};
use syncer::tree::{Kind, Stat};

use super::{Shared, lock, shared};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    Open,
    Prepare,
    File,
    Dir,
    Symlink,
    Special,
    HardLink,
    Attributes,
    Remove,
    Sync,
    List,
    Newest,
}

impl Asked {
    /// Asks for something to be changed.
    pub fn changes(self) -> bool {
        use Asked::{List, Newest, Open, Prepare, Sync};
        !matches!(self, Open | Prepare | Sync | List | Newest)
    }

    fn of(what: &What) -> Asked {
        match what {
            What::File(_) => Asked::File,
            What::Dir => Asked::Dir,
            What::Symlink { .. } => Asked::Symlink,
            What::Special => Asked::Special,
            What::HardLink { .. } => Asked::HardLink,
            What::Attributes => Asked::Attributes,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// The store was just called.
    Begins,
    /// Nothing happens any more between this and the effect, or between this and a request that may come true later.
    BeforeEffect,
    Answered {
        effect: bool,
        problem: Option<Problem>,
        outcome_unknown: bool,
    },
    /// The caller went away without an answer: it was killed.
    Abandoned {
        effect: bool,
    },
    /// A request whose answer was lost takes effect only now.
    Late,
}

/// One moment of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Counts the moments that were seen.
    pub step: u64,
    /// The same at all moments of a request.
    pub request: u64,
    pub moment: Moment,
    pub asked: Asked,
    pub dest: RelPath,
    /// Of a put, as it was handed over.
    pub stat: Option<Stat>,
    /// Of a removal, what is believed to stand there.
    pub kind: Option<Kind>,
    /// What a removal believes to stand there; what a put has brought into being, once that is known.
    pub object: String,
    /// Of the content of a file, from `BeforeEffect` on.
    pub sha1: Option<Sha1>,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub calls: Vec<Call>,
    /// Requests by what they ask.
    pub counts: BTreeMap<Asked, u64>,
    /// What no correct syncer does.
    pub violations: Vec<String>,
    under_way: BTreeMap<RelPath, u64>,
    steps: u64,
    requests: u64,
}

pub type Hook = Arc<dyn Fn(&Call) + Send + Sync>;

/// What stores report to. `at_call` sees each moment of puts and removals as it comes, with no lock held; `BeforeEffect`
/// comes before the effect.
#[derive(Clone)]
pub struct Watch {
    seen: Shared<Seen>,
    at_call: Hook,
}

impl Watch {
    pub fn new(at_call: Hook) -> Watch {
        Watch { seen: shared(Seen::default()), at_call }
    }

    /// Only writes down.
    pub fn silent() -> Watch {
        Watch::new(Arc::new(|_| {}))
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    pub(super) fn put(&self, put: &Put) -> Request {
        let request = self.begin(Asked::of(&put.what), &put.dest);
        request.with(|call| call.stat = Some(put.stat))
    }

    pub(super) fn remove(&self, remove: &Remove) -> Request {
        self.begin(Asked::Remove, &remove.dest).with(|call| {
            call.kind = Some(remove.kind);
            call.object.clone_from(&remove.object);
        })
    }

    pub(super) fn ask(&self, asked: Asked, dest: &RelPath) -> Request {
        self.begin(asked, dest).with(|_| {})
    }

    pub(super) fn late(&self, call: &Call, object: String) {
        self.note(Call { moment: Moment::Late, object, ..call.clone() });
    }

    fn begin(&self, asked: Asked, dest: &RelPath) -> Request {
        let mut seen = self.seen();
        seen.requests += 1;
        *seen.counts.entry(asked).or_default() += 1;
        let request = seen.requests;
        if asked.changes() && seen.under_way.contains_key(dest) {
            seen.violations.push(format!("two requests for {dest} at the same time"));
        } else if asked.changes() {
            seen.under_way.insert(dest.clone(), request);
        }
        let call = Call {
            step: 0,
            request,
            moment: Moment::Begins,
            asked,
            dest: dest.clone(),
            stat: None,
            kind: None,
            object: String::new(),
            sha1: None,
        };
        Request { watch: self.clone(), call, effect: false, answered: false }
    }

    fn note(&self, mut call: Call) {
        tracing::debug!(asked = ?call.asked, dest = %call.dest, moment = ?call.moment, object = call.object);
        let mut seen = self.seen();
        seen.steps += 1;
        call.step = seen.steps;
        seen.calls.push(call.clone());
        drop(seen);
        if call.asked.changes() {
            (self.at_call)(&call);
        }
    }
}

/// A request under way. Dropped without an answer it was abandoned.
pub(super) struct Request {
    watch: Watch,
    pub call: Call,
    effect: bool,
    answered: bool,
}

impl Request {
    fn with(mut self, fill: impl FnOnce(&mut Call)) -> Request {
        fill(&mut self.call);
        self.note(Moment::Begins);
        self
    }

    fn note(&mut self, moment: Moment) {
        self.call.moment = moment;
        self.watch.note(self.call.clone());
    }

    pub fn before_effect(&mut self, sha1: Option<Sha1>) {
        self.call.sha1 = sha1;
        self.note(Moment::BeforeEffect);
    }

    pub fn took_effect(&mut self, object: &str) {
        self.effect = true;
        self.call.object = object.to_owned();
    }

    pub fn answer<T>(mut self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        self.answered = true;
        let error = answer.as_ref().err();
        self.note(Moment::Answered {
            effect: self.effect,
            problem: error.map(|e| e.problem.clone()),
            outcome_unknown: error.is_some_and(|e| e.outcome_unknown),
        });
        answer
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Call { dest, request, .. } = &self.call;
        let mut seen = self.watch.seen();
        if seen.under_way.get(dest) == Some(request) {
            seen.under_way.remove(dest);
        }
        drop(seen);
        if !self.answered {
            // No hook: this may be an unwinding, and a second panic would end everything.
            let mut seen = self.watch.seen();
            seen.steps += 1;
            let moment = Moment::Abandoned { effect: self.effect };
            let call = Call { step: seen.steps, moment, ..self.call.clone() };
            seen.calls.push(call);
        }
    }
}
