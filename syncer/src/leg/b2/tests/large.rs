//! Files that go up in parts.

use b2_emulator::version::Action;
use shared::exit::Exit;

use super::*;
use crate::leg::Problem;

fn body(size: u64) -> Body {
    TestFile::new(&content(size)).body()
}

fn has_unfinished(fixture: &Fixture) -> bool {
    fixture.emulator.versions(BUCKET).iter().any(|version| version.action == Action::Start)
}

#[tokio::test]
async fn a_large_file_arrives_whole_and_carries_its_hash() {
    let fixture = Fixture::new().await;
    let content = content(12 * PART_BYTES + 1);
    let receipt = fixture.put("large", TestFile::new(&content).body()).await.unwrap();
    let version = fixture.emulator.version(&receipt.object).unwrap();
    assert_eq!(version.content.to_bytes(), content);
    assert_eq!(receipt.sha1, Some(sha1(&content)));
    assert_eq!(version.info["large_file_sha1"], version.sha1());
    assert_eq!(version.info["src_last_modified_millis"], "1700000000123");
    assert_eq!(fixture.called(Call::UploadPart), 13);
    assert!(fixture.called(Call::GetUploadPartUrl) <= 4, "a URL per worker");
    let listed = fixture.store.newest(&path(b"large")).await.unwrap().unwrap();
    assert_eq!((listed.object, listed.sha1, listed.size), (receipt.object, receipt.sha1, 12_001));
    fixture.check();
}

#[tokio::test]
async fn parts_are_tried_again_on_new_urls() {
    let fixture = Fixture::new().await;
    let faults = [
        FaultKind::answer(503, "service_unavailable"),
        FaultKind::ExpireUploadUrls,
        FaultKind::DropAfterEffect,
        FaultKind::EarlyAnswer(answer(503, "service_unavailable", None)),
        FaultKind::answer(408, "request_timeout"),
    ];
    fixture.faults(Call::UploadPart, &faults);
    let receipt = fixture.put("large", body(10 * PART_BYTES)).await.unwrap();
    let version = fixture.emulator.version(&receipt.object).unwrap();
    assert_eq!(version.content.to_bytes(), content(10 * PART_BYTES));
    assert!(fixture.called(Call::UploadPart) >= 15, "{}", fixture.called(Call::UploadPart));
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn a_lost_answer_to_the_finish_is_settled_by_asking() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::FinishLargeFile, FaultKind::DropAfterEffect);
    let receipt = fixture.put("a", body(3 * PART_BYTES)).await.unwrap();
    assert_eq!(fixture.emulator.files(BUCKET)[0].file_id, receipt.object);
    assert_eq!((fixture.called(Call::FinishLargeFile), fixture.called(Call::GetFileInfo)), (1, 1));

    fixture.fault(Call::FinishLargeFile, FaultKind::LateCompletion);
    let receipt = fixture.put("b", body(3 * PART_BYTES)).await.unwrap();
    assert_eq!(fixture.emulator.files(BUCKET)[1].file_id, receipt.object);
    assert_eq!((fixture.called(Call::FinishLargeFile), fixture.called(Call::CancelLargeFile)), (3, 0));
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn a_finish_that_never_comes_through_is_taken_back_and_then_known() {
    let fixture = Fixture::new().await;
    fixture
        .emulator
        .inject(Fault { times: 9, ..Fault::next(Call::FinishLargeFile, FaultKind::LateCompletion) });
    let error = fixture.put("a", body(3 * PART_BYTES)).await.unwrap_err();
    assert_eq!((error.problem, error.outcome_unknown), (Problem::TryLater(None), false));
    assert_eq!(fixture.called(Call::FinishLargeFile), 5);
    fixture.emulator.complete_late();
    assert!(fixture.emulator.versions(BUCKET).is_empty());
}

#[tokio::test]
async fn a_finish_that_can_neither_be_settled_nor_taken_back_is_unknown() {
    let fixture = Fixture::new().await;
    let times = |call, kind| Fault { times: 9, ..Fault::next(call, kind) };
    fixture.emulator.inject(Fault::next(Call::FinishLargeFile, FaultKind::DropAfterEffect));
    fixture.emulator.inject(times(Call::GetFileInfo, FaultKind::answer(401, "unauthorized")));
    let error = fixture.put("a", body(3 * PART_BYTES)).await.unwrap_err();
    assert_eq!((error.problem, error.outcome_unknown), (Problem::TryLater(None), true));
    assert!(fixture.store.newest(&path(b"a")).await.unwrap().is_some(), "which the run finds out by looking");
}

#[tokio::test]
async fn a_large_file_that_changes_leaves_no_new_version() {
    let fixture = Fixture::new().await;
    fixture.put("a", small(b"before")).await.unwrap();
    let content = content(5 * PART_BYTES);
    let files = [
        TestFile { moved_after: 100, ..TestFile::new(&content) },
        TestFile { moved_after: 7000, ..TestFile::new(&content) },
        // At the end of the last part, whichever that is.
        TestFile { moved_after: 10_000, ..TestFile::new(&content) },
        TestFile { rewritten_after: 5000, ..TestFile::new(&content) },
        TestFile { rewritten_after: 9000, ..TestFile::new(&content) },
    ];
    for file in files {
        let error = fixture.put("a", file.body()).await.unwrap_err();
        assert_eq!((error.problem, error.outcome_unknown), (Problem::Busy, false), "{}", error.message);
    }
    let versions = fixture.emulator.versions(BUCKET);
    assert_eq!(versions.len(), 1, "nothing unfinished is left");
    assert_eq!(versions[0].content.to_bytes(), "before");
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn the_source_is_checked_before_the_start_at_the_end_of_each_part_and_before_the_finish() {
    let fixture = Fixture::new().await;
    let content = content(3 * PART_BYTES);
    for moved_after_checks in 0..5 {
        let file = TestFile { moved_after_checks, ..TestFile::new(&content) };
        let error = fixture.put("a", file.body()).await.unwrap_err();
        assert_eq!(error.problem, Problem::Busy, "{moved_after_checks}");
        assert_eq!(fixture.called(Call::StartLargeFile), moved_after_checks);
    }
    assert_eq!(fixture.called(Call::FinishLargeFile), 0);
    let file = TestFile { moved_after_checks: 5, ..TestFile::new(&content) };
    fixture.put("a", file.body()).await.unwrap();
}

#[tokio::test]
async fn a_cap_on_a_part_stops_the_leg_and_leaves_nothing_unfinished() {
    let fixture = Fixture::new().await;
    let cap = FaultKind::answer(403, "cap_exceeded");
    fixture.emulator.inject(Fault { skip: 2, ..Fault::next(Call::UploadPart, cap) });
    let error = fixture.put("a", body(9 * PART_BYTES)).await.unwrap_err();
    assert_eq!(error.problem, Problem::Stop(Exit::Refused));
    assert!(!has_unfinished(&fixture));
}

#[tokio::test]
async fn an_account_token_that_expires_between_the_parts_is_renewed() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::FinishLargeFile, FaultKind::ExpireAccountTokens);
    fixture.put("a", body(3 * PART_BYTES)).await.unwrap();
    assert_eq!(fixture.called(Call::AuthorizeAccount), 2);
}
