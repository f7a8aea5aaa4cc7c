//! Faults at B2: what the real client makes of an answer, and what the simulated store says of the like.

use std::time::Duration;

use b2_emulator::calls::Call;
use b2_emulator::faults::{Fault as Asked, FaultAnswer, FaultKind};
use shared::exit::Exit;
use simulation::fate::Fault;
use simulation::store::bucket::complete_late;
use syncer::leg::{Problem, Remove, StoreError};
use syncer::tree::Kind;

use crate::subject::{MTIME_NS, Subject, World, buckets, p, small, wait};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Put,
    /// More than the connection takes before it breaks.
    PutMuch,
    Remove,
    List,
    Look,
    Open,
}

fn ask(subject: &Subject, request: Request) -> Option<StoreError> {
    let store = &subject.store;
    match request {
        Request::Put => wait(store.put(small("f", b"new", MTIME_NS))).err(),
        Request::PutMuch => wait(store.put(small("f", &vec![7; 24 << 20], MTIME_NS))).err(),
        Request::Remove => {
            wait(store.remove(Remove { dest: p("f"), kind: Kind::File, object: String::new() })).err()
        }
        Request::List => wait(store.list(&p(""), None)).err(),
        Request::Look => wait(store.newest(&p("f"))).err(),
        Request::Open => wait(subject.world.store("", "w").open()).err(),
    }
}

/// The fault strikes every attempt of the real client.
fn strike(subject: &Subject, call: Call, kind: &FaultKind, fault: Fault) {
    match &subject.world {
        World::B2 { emulator } => {
            emulator.inject(Asked { times: 5, ..Asked::next(call, kind.clone()) });
        }
        World::SimB2 { fate, .. } => fate.0.lock().unwrap().push(fault),
        World::SimDir { .. } | World::Dir { .. } => unreachable!(),
    }
}

/// Problem, whether the outcome is unknown, and what stands there afterwards.
fn outcome(
    subject: &Subject,
    request: Request,
    call: Call,
    kind: &FaultKind,
    fault: Fault,
) -> (&'static str, Option<Problem>, bool, Option<u64>) {
    wait(subject.store.put(small("f", b"old content", MTIME_NS))).unwrap();
    strike(subject, call, kind, fault);
    let error = ask(subject, request);
    if let World::B2 { emulator } = &subject.world {
        emulator.clear_faults();
    }
    let unknown = error.as_ref().is_some_and(|e| e.outcome_unknown);
    let op = error.as_ref().map_or("", |e| e.op);
    (op, error.map(|e| e.problem), unknown, wait(subject.store.newest(&p("f"))).unwrap().map(|o| o.size))
}

fn later(seconds: u64) -> FaultKind {
    let code = "too_many_requests".into();
    FaultKind::Answer(FaultAnswer { status: 429, code, retry_after_s: Some(seconds) })
}

#[test]
fn every_fault_means_for_a_run_what_the_real_client_makes_of_it() {
    use Call::{AuthorizeAccount, HideFile, ListFileNames, UploadFile};
    use Request::{List, Look, Open, Put, PutMuch, Remove};
    let no = FaultKind::answer;
    let table = [
        (Put, UploadFile, no(503, "service_unavailable"), Fault::B2Busy),
        (Put, UploadFile, later(120), Fault::B2BusyFor),
        (Put, UploadFile, no(403, "cap_exceeded"), Fault::B2CapReached),
        (Put, UploadFile, no(400, "bad_request"), Fault::B2Unfit),
        (PutMuch, UploadFile, FaultKind::ResetAfterBytes(1), Fault::B2CutInBody),
        (Put, UploadFile, FaultKind::DropAfterEffect, Fault::B2AnswerLost),
        (Put, UploadFile, FaultKind::LateCompletion, Fault::B2Late),
        (Put, UploadFile, FaultKind::LateCompletion, Fault::B2RequestLost),
        (Remove, HideFile, later(120), Fault::B2BusyFor),
        (Remove, HideFile, no(403, "cap_exceeded"), Fault::B2CapReached),
        (Remove, HideFile, no(401, "unauthorized"), Fault::B2KeyRevoked),
        (Remove, HideFile, no(400, "bad_request"), Fault::B2Unfit),
        (Remove, HideFile, FaultKind::DropAfterEffect, Fault::B2AnswerLost),
        (Remove, HideFile, FaultKind::LateCompletion, Fault::B2Late),
        (List, ListFileNames, later(120), Fault::B2BusyFor),
        (List, ListFileNames, no(401, "unauthorized"), Fault::B2KeyRevoked),
        (Look, ListFileNames, later(120), Fault::B2BusyFor),
        (Look, ListFileNames, no(403, "transaction_cap_exceeded"), Fault::B2CapReached),
        (Open, AuthorizeAccount, later(120), Fault::B2BusyFor),
        (Open, AuthorizeAccount, no(401, "bad_auth_token"), Fault::B2KeyRevoked),
    ];
    for (request, call, kind, fault) in table {
        let [one, other] = buckets("").map(|subject| outcome(&subject, request, call, &kind, fault));
        assert_eq!(one, other, "{request:?} {fault:?}");
        assert!(one.1.is_some(), "{request:?} {fault:?} struck nothing");
    }
}

#[test]
fn an_upload_or_a_removal_that_comes_true_late_makes_the_newest_version() {
    let stories = buckets("").map(|mut subject| {
        let mut story = Vec::new();
        for (request, call) in [(Request::Put, Call::UploadFile), (Request::Remove, Call::HideFile)] {
            wait(subject.store.put(small("f", b"before", MTIME_NS))).unwrap();
            strike(&subject, call, &FaultKind::LateCompletion, Fault::B2Late);
            assert!(ask(&subject, request).unwrap().outcome_unknown);
            if let World::B2 { emulator } = &subject.world {
                emulator.clear_faults();
            }
            wait(subject.store.put(small("f", b"written since", MTIME_NS))).unwrap();
            match &subject.world {
                World::B2 { emulator } => assert_eq!(emulator.complete_late(), 1),
                World::SimB2 { bucket, watch, .. } => assert!(complete_late(bucket, watch, 0, |_| 0)),
                World::SimDir { .. } | World::Dir { .. } => unreachable!(),
            }
            story.push(subject.newest(&p("f")));
        }
        (story, subject.remains())
    });
    assert_eq!(stories[0], stories[1]);
    assert_eq!(stories[0].0[1], "nothing");
}

#[test]
fn faults_that_only_the_simulated_store_knows_mean_what_the_real_client_says_of_the_like() {
    let table = [
        (Request::Put, Fault::B2Unreachable, Problem::TryLater(None)),
        (Request::Open, Fault::B2OpenFails, Problem::TryLater(None)),
        (Request::List, Fault::B2ListFails, Problem::TryLater(None)),
        (Request::Look, Fault::B2LookFails, Problem::TryLater(None)),
        (Request::Open, Fault::B2KeyRevoked, Problem::Stop(Exit::Refused)),
        (Request::Put, Fault::B2BusyFor, Problem::TryLater(Some(Duration::from_secs(120)))),
    ];
    for (request, fault, problem) in table {
        let [subject, _] = buckets("");
        strike(&subject, Call::UploadFile, &FaultKind::HoldAnswer, fault);
        let error = ask(&subject, request).unwrap();
        assert_eq!((error.problem, error.outcome_unknown), (problem, false), "{fault:?}");
    }
}

#[test]
fn a_bucket_that_was_made_anew_has_another_id_and_stops_those_who_know_the_old_one() {
    let [subject, _] = buckets("");
    let World::SimB2 { bucket, .. } = &subject.world else { unreachable!() };
    simulation::store::lock(bucket).recreate("another");
    assert_eq!(ask(&subject, Request::Put).unwrap().problem, Problem::Stop(Exit::Config));
    assert_ne!(subject.store.identity(), "another");
    let again = subject.world.store("", "w");
    wait(again.open()).unwrap();
    assert_eq!(again.identity(), "another");
}
