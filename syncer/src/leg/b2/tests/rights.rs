//! Keys, buckets and what they may do.

use b2_emulator::options::KeyRules;
use shared::exit::Exit;

use super::*;
use crate::leg::Problem;

fn key(
    emulator: &Emulator,
    capabilities: &[&str],
    bucket: Option<&str>,
    prefix: Option<&str>,
) -> (String, String) {
    let rules = KeyRules {
        capabilities: Some(capabilities.iter().map(|&name| name.to_owned()).collect()),
        bucket_name: bucket.map(str::to_owned),
        name_prefix: prefix.map(str::to_owned),
    };
    emulator.create_key(rules).unwrap()
}

/// How the run is stopped at its beginning.
async fn refusal(emulator: &Emulator, prefix: &str, key: (String, String)) -> (Exit, String) {
    let (key_id, secret) = key.clone();
    let error = store(emulator, prefix, key, tuning()).open().await.unwrap_err();
    let text = error.to_string();
    let Problem::Stop(exit) = error.problem else { panic!("{text}") };
    assert!(text.contains(&key_id) && !text.contains(&secret), "{text}");
    (exit, text)
}

#[tokio::test]
async fn a_key_that_can_only_write_below_the_prefix_is_enough() {
    let emulator = emulator();
    for capabilities in [&["listFiles", "writeFiles"][..], &["listBuckets", "listFiles", "writeFiles"]] {
        let key = key(&emulator, capabilities, Some(BUCKET), Some("mirror/"));
        let store = store(&emulator, "mirror", key, tuning());
        store.open().await.unwrap();
        store.put(put(path(b"a"), small(b"x"))).await.unwrap();
        store.put(put(path(b"large"), TestFile::new(&content(3 * PART_BYTES)).body())).await.unwrap();
        assert_eq!(store.list(&RelPath::root(), None).await.unwrap().objects.len(), 2);
        assert!(store.newest(&path(b"a")).await.unwrap().is_some());
        let remove = Remove { dest: path(b"a"), kind: Kind::File, object: String::new() };
        store.remove(remove).await.unwrap();
    }
    assert_eq!(emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn a_key_that_lacks_a_right_is_refused_by_name() {
    let emulator = emulator();
    let few = key(&emulator, &["listBuckets", "readFiles"], None, None);
    let (exit, text) = refusal(&emulator, "", few).await;
    assert_eq!(exit, Exit::Refused);
    assert!(text.contains("lacks listFiles, writeFiles"), "{text}");
    let no_buckets = key(&emulator, &["listFiles", "writeFiles"], None, None);
    let (_, text) = refusal(&emulator, "", no_buckets).await;
    assert!(text.contains("lacks listBuckets"), "{text}");
}

#[tokio::test]
async fn a_key_for_another_bucket_or_prefix_is_refused() {
    let emulator = emulator();
    emulator.create_bucket("bucket-2").unwrap();
    let all = ["listBuckets", "listFiles", "writeFiles"];
    let (exit, text) = refusal(&emulator, "", key(&emulator, &all, Some("bucket-2"), None)).await;
    assert_eq!(exit, Exit::Refused);
    assert!(text.contains("other buckets"), "{text}");
    let (exit, text) = refusal(&emulator, "mirror", key(&emulator, &all, None, Some("other/"))).await;
    assert_eq!(exit, Exit::Refused);
    assert!(text.contains("`other/`") && text.contains("`mirror/`"), "{text}");
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_its_place_named() {
    let emulator = emulator();
    let (key_id, _) = emulator.key();
    let (exit, text) = refusal(&emulator, "", (key_id, "wrong-secret".into())).await;
    assert_eq!(exit, Exit::Refused);
    assert!(text.contains("from the test"), "{text}");
    assert_eq!(emulator.counters().calls(Call::AuthorizeAccount), 1, "no key gets better by trying");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named_with_key_and_endpoint() {
    let emulator = emulator();
    let leg = B2Leg { bucket: "bucket-9".into(), ..leg(&emulator, "") };
    let store = B2Store::tuned(&leg, credentials(emulator.key()), "w", 1, tuning()).unwrap();
    let error = store.open().await.unwrap_err();
    assert_eq!(error.problem, Problem::Stop(Exit::Config));
    for part in ["bucket-9", &emulator.key().0, &emulator.endpoint()] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_key_that_is_revoked_in_the_middle_stops_the_leg() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::HideFile, FaultKind::ExpireAccountTokens);
    fixture.fault(Call::AuthorizeAccount, FaultKind::answer(401, "bad_auth_token"));
    let error = fixture.hide("a").await.unwrap_err();
    assert_eq!(error.problem, Problem::Stop(Exit::Refused));
    assert!(error.to_string().contains("from the test"), "{error}");
}

#[tokio::test]
async fn a_right_that_is_missing_later_stops_the_leg_without_a_loop() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::HideFile, FaultKind::answer(401, "unauthorized"));
    let error = fixture.hide("a").await.unwrap_err();
    assert_eq!(error.problem, Problem::Stop(Exit::Refused));
    assert_eq!((fixture.called(Call::HideFile), fixture.called(Call::AuthorizeAccount)), (1, 1));
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_tried_later() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let leg = B2Leg { bucket: BUCKET.into(), prefix: RelPath::root(), endpoint, key_files: None };
    let store = B2Store::tuned(&leg, credentials(("id".into(), "key".into())), "w", 1, tuning()).unwrap();
    let error = store.open().await.unwrap_err();
    assert_eq!((error.problem, error.outcome_unknown), (Problem::TryLater(None), false));
}

#[test]
fn an_endpoint_without_https_is_refused() {
    let endpoint = "http://api.backblazeb2.com".to_owned();
    let leg = B2Leg { bucket: BUCKET.into(), prefix: RelPath::root(), endpoint, key_files: None };
    let error =
        B2Store::tuned(&leg, credentials(("id".into(), "key".into())), "w", 1, tuning()).err().unwrap();
    assert_eq!(error.problem, Problem::Stop(Exit::Config));
}

#[tokio::test]
async fn what_is_asked_before_the_beginning_is_answered_with_an_error() {
    let emulator = emulator();
    let store = store(&emulator, "", emulator.key(), tuning());
    let error = store.newest(&path(b"a")).await.unwrap_err();
    assert_eq!(error.problem, Problem::Stop(Exit::Failed));
}
