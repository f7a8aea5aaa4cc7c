//! Files that go up in one request, and hiding them.

use b2_emulator::version::Action;
use futures_util::future::join_all;
use reqwest::header::HeaderMap;
use shared::exit::Exit;
use tokio::net::TcpListener;

use super::*;
use crate::leg::Problem;
use crate::leg::b2::api;
use crate::leg::b2::client::Client;
use crate::leg::b2::content::Content;
use crate::leg::b2::failure::Cause;

#[tokio::test]
async fn a_small_file_arrives_with_its_hash_its_time_and_its_writer() {
    let fixture = Fixture::tuned("mirror", tuning()).await;
    let receipt = fixture.put("dir/a file+%.txt", small(b"hello")).await.unwrap();
    let version = fixture.emulator.version(&receipt.object).unwrap();
    assert_eq!(version.name, "mirror/dir/a file+%.txt");
    assert_eq!(version.content.to_bytes(), "hello");
    assert_eq!(receipt.sha1, Some(sha1(b"hello")));
    assert_eq!(version.content_sha1, version.sha1(), "verified by B2");
    let info: Vec<_> = version.info.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(info, ["longshore_writer=writer-1", "src_last_modified_millis=1700000000123"]);
    fixture.check();
}

#[tokio::test]
async fn a_file_of_no_bytes_arrives() {
    let fixture = Fixture::new().await;
    for (name, body) in [("read", small(b"")), ("unread", TestFile::new(b"").body())] {
        let receipt = fixture.put(name, body).await.unwrap();
        assert_eq!(receipt.sha1, Some(sha1(b"")));
        assert_eq!(fixture.emulator.version(&receipt.object).unwrap().size(), 0);
    }
    fixture.check();
}

#[tokio::test]
async fn a_file_that_was_not_read_before_is_hashed_and_streamed() {
    let fixture = Fixture::new().await;
    let content = content(PART_BYTES);
    let receipt = fixture.put("a", TestFile::new(&content).body()).await.unwrap();
    assert_eq!(receipt.sha1, Some(sha1(&content)));
    assert_eq!(fixture.emulator.version(&receipt.object).unwrap().content.to_bytes(), content);
    assert_eq!(fixture.called(Call::UploadFile), 1);
    fixture.check();
}

#[tokio::test]
async fn many_uploads_share_few_urls_and_never_one_at_once() {
    let fixture = Fixture::new().await;
    let names: Vec<_> = (0..60).map(|n| format!("file-{n:02}")).collect();
    let puts = names.iter().map(|name| fixture.put(name, small(name.as_bytes())));
    assert!(join_all(puts).await.iter().all(Result::is_ok));
    assert_eq!(fixture.names(), names);
    assert!(fixture.called(Call::GetUploadUrl) <= 4, "{}", fixture.called(Call::GetUploadUrl));
    fixture.check();
}

#[tokio::test]
async fn a_full_pod_is_left_for_a_new_url() {
    let fixture = Fixture::new().await;
    let full = answer(503, "service_unavailable", None);
    fixture.fault(Call::UploadFile, FaultKind::Answer(full.clone()));
    fixture.put("late", small(b"x")).await.unwrap();
    assert_eq!(fixture.called(Call::GetUploadUrl), 2);
    fixture.fault(Call::UploadFile, FaultKind::EarlyAnswer(full));
    fixture.put("early", TestFile::new(&content(900)).body()).await.unwrap();
    assert_eq!(fixture.called(Call::GetUploadUrl), 3);
    fixture.put("reuses the last one", small(b"x")).await.unwrap();
    assert_eq!(fixture.called(Call::GetUploadUrl), 3);
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn an_early_answer_to_a_long_body_is_read() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::UploadFile, FaultKind::EarlyAnswer(answer(503, "service_unavailable", None)));
    let long = vec![7; 20_000_000];
    let receipt = fixture.put("long", small(&long)).await.unwrap();
    assert_eq!(fixture.emulator.version(&receipt.object).unwrap().size(), 20_000_000);
    assert_eq!(fixture.called(Call::UploadFile), 2);
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn five_urls_are_tried_and_then_the_run_decides() {
    let fixture = Fixture::new().await;
    let full = FaultKind::answer(503, "service_unavailable");
    fixture.emulator.inject(Fault { times: 9, ..Fault::next(Call::UploadFile, full) });
    let error = fixture.put("a", small(b"x")).await.unwrap_err();
    assert_eq!((error.problem, error.outcome_unknown), (Problem::TryLater(None), false));
    assert_eq!((fixture.called(Call::UploadFile), fixture.called(Call::GetUploadUrl)), (5, 5));
}

#[tokio::test]
async fn a_refused_url_call_counts_as_one_of_the_five_attempts() {
    let fixture = Fixture::new().await;
    let full = FaultKind::answer(503, "service_unavailable");
    fixture.emulator.inject(Fault { times: 99, ..Fault::next(Call::GetUploadUrl, full) });
    let error = fixture.put("a", small(b"x")).await.unwrap_err();
    assert_eq!(error.problem, Problem::TryLater(None));
    assert_eq!((fixture.called(Call::UploadFile), fixture.called(Call::GetUploadUrl)), (0, 5));
}

#[tokio::test]
async fn an_expired_upload_url_is_replaced() {
    let fixture = Fixture::new().await;
    fixture.put("a", small(b"1")).await.unwrap();
    fixture.emulator.expire_upload_urls();
    fixture.put("a", small(b"2")).await.unwrap();
    assert_eq!((fixture.called(Call::UploadFile), fixture.called(Call::GetUploadUrl)), (3, 2));
    assert_eq!(fixture.called(Call::AuthorizeAccount), 1);
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn an_expired_account_token_is_renewed_once_for_all_who_find_it_expired() {
    let fixture = Fixture::new().await;
    let names: Vec<_> = (0..20).map(|n| format!("file-{n:02}")).collect();
    join_all(names.iter().map(|name| fixture.put(name, small(b"x")))).await;
    fixture.emulator.expire_account_tokens();
    let hidden = join_all(names.iter().map(|name| fixture.hide(name))).await;
    assert!(hidden.iter().all(Result::is_ok));
    assert_eq!(fixture.names(), [""; 0]);
    assert_eq!(fixture.called(Call::AuthorizeAccount), 2);
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_outcome_unknown_and_nothing_is_sent_twice() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::UploadFile, FaultKind::DropAfterEffect);
    let error = fixture.put("a", small(b"x")).await.unwrap_err();
    assert_eq!((error.problem, error.outcome_unknown), (Problem::TryLater(None), true));
    let newest = fixture.store.newest(&path(b"a")).await.unwrap().unwrap();
    assert_eq!((newest.sha1, newest.writer.as_deref()), (Some(sha1(b"x")), Some("writer-1")));
    assert_eq!(fixture.called(Call::UploadFile), 1);

    fixture.fault(Call::UploadFile, FaultKind::LateCompletion);
    let error = fixture.put("b", small(b"x")).await.unwrap_err();
    assert!(error.outcome_unknown);
    assert_eq!(fixture.store.newest(&path(b"b")).await.unwrap(), None);
    fixture.emulator.complete_late();
    assert!(fixture.store.newest(&path(b"b")).await.unwrap().is_some());

    fixture.fault(Call::HideFile, FaultKind::DropAfterEffect);
    let error = fixture.hide("a").await.unwrap_err();
    assert!(error.outcome_unknown, "{error}");
    assert_eq!(fixture.called(Call::HideFile), 1);
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn an_answer_that_does_not_come_leaves_the_outcome_unknown() {
    let fixture = Fixture::tuned("", Tuning { answer: Duration::from_millis(500), ..tuning() }).await;
    fixture.fault(Call::UploadFile, FaultKind::HoldAnswer);
    let error = fixture.put("a", small(b"x")).await.unwrap_err();
    assert_eq!((error.problem, error.outcome_unknown), (Problem::TryLater(None), true));
    fixture.emulator.release_held();
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_last_byte_is_simply_tried_again() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::UploadFile, FaultKind::ResetAfterBytes(100_000));
    let receipt = fixture.put("a", small(&vec![1; 30_000_000])).await.unwrap();
    assert_eq!(fixture.emulator.version(&receipt.object).unwrap().size(), 30_000_000);
    assert_eq!((fixture.called(Call::UploadFile), fixture.called(Call::GetUploadUrl)), (2, 2));
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn a_body_that_does_not_move_is_given_up_and_has_no_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let tuning = Tuning { stall: Duration::from_millis(200), ..tuning() };
    let client = Client::new(&endpoint, credentials(("id".into(), "key".into())), 1, tuning).unwrap();
    let url = api::UploadUrl { upload_url: endpoint, authorization_token: "token".into() };
    // More than all buffers of a connection on which nobody reads.
    let content = Content::Memory(vec![0; 100_000_000].into());
    let headers = HeaderMap::new();
    let sent = client.send::<api::Done>(api::Call::UploadFile, &url, &headers, &content).await;
    let failure = sent.err().unwrap();
    assert!(matches!(&failure.cause, Cause::NotSent(why) if why.contains("nothing moved")), "{failure}");
    assert!(!failure.outcome_unknown());
}

#[tokio::test]
async fn a_cap_stops_the_leg_and_says_what_to_do() {
    for (call, code) in [(Call::UploadFile, "cap_exceeded"), (Call::GetUploadUrl, "storage_cap_exceeded")] {
        let fixture = Fixture::new().await;
        fixture.fault(call, FaultKind::answer(403, code));
        let error = fixture.put("a", small(b"x")).await.unwrap_err();
        assert_eq!(error.problem, Problem::Stop(Exit::Refused));
        assert!(error.to_string().contains("raise it"), "{error}");
        assert_eq!(fixture.called(call), 1);
    }
}

#[tokio::test]
async fn a_name_or_request_that_b2_refuses_is_unfit() {
    let fixture = Fixture::new().await;
    fixture.fault(Call::UploadFile, FaultKind::answer(400, "bad_request"));
    let error = fixture.put("a", small(b"x")).await.unwrap_err();
    assert_eq!(error.problem, Problem::Unfit);
    assert_eq!(fixture.called(Call::UploadFile), 1);
}

#[tokio::test]
async fn a_long_wait_that_b2_asks_for_reaches_the_run() {
    let fixture = Fixture::new().await;
    let too_many = answer(429, "too_many_requests", Some(300));
    fixture.fault(Call::UploadFile, FaultKind::Answer(too_many));
    let error = fixture.put("a", small(b"x")).await.unwrap_err();
    assert_eq!(error.problem, Problem::TryLater(Some(Duration::from_secs(300))));
    fixture.fault(Call::HideFile, FaultKind::Answer(answer(429, "too_many_requests", Some(0))));
    fixture.hide("a").await.unwrap();
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_busy_and_not_stored() {
    let fixture = Fixture::new().await;
    let content = content(900);
    let bodies = [
        TestFile { moved_after: 1, ..TestFile::new(&content) },
        // After the hash was made.
        TestFile { moved_after: 901, ..TestFile::new(&content) },
        // Without a trace in its times: B2 refuses the bytes.
        TestFile { rewritten_after: 900, ..TestFile::new(&content) },
        // It is shorter now.
        TestFile { content: content[..800].to_vec(), ..TestFile::new(&content) },
    ];
    for file in bodies {
        let error = fixture.put("a", file.body()).await.unwrap_err();
        assert_eq!((error.problem, error.outcome_unknown), (Problem::Busy, false), "{}", error.message);
    }
    assert!(fixture.emulator.versions(BUCKET).is_empty());
    assert_eq!(fixture.emulator.violations(), [""; 0]);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_unreadable() {
    let fixture = Fixture::new().await;
    for broken_after in [0, 1000] {
        let file = TestFile { broken_after, ..TestFile::new(&content(900)) };
        let error = fixture.put("a", file.body()).await.unwrap_err();
        assert_eq!(error.problem, Problem::Unreadable);
        assert!(error.to_string().contains("bad sector"), "{error}");
    }
    assert!(fixture.emulator.versions(BUCKET).is_empty());
}

#[tokio::test]
async fn hiding_twice_or_what_never_was_is_success() {
    let fixture = Fixture::new().await;
    fixture.put("a", small(b"x")).await.unwrap();
    fixture.hide("a").await.unwrap();
    assert_eq!(fixture.names(), [""; 0]);
    fixture.hide("a").await.unwrap();
    fixture.hide("never").await.unwrap();
    let actions: Vec<_> = fixture.emulator.versions(BUCKET).iter().map(|version| version.action).collect();
    assert_eq!(actions, [Action::Hide, Action::Upload], "the content is still there");
    fixture.check();
}

#[tokio::test]
async fn only_the_content_of_files_is_taken() {
    let fixture = Fixture::new().await;
    let error = fixture.store.put(Put { what: What::Dir, ..put(path(b"d"), small(b"")) }).await.unwrap_err();
    assert_eq!(error.problem, Problem::Unfit);
    assert!(!fixture.store.holds().holds(Kind::Dir) && fixture.store.holds().holds(Kind::File));
}

#[tokio::test]
async fn a_name_that_b2_cannot_hold_is_stored_apart_and_found_there() {
    let fixture = Fixture::new().await;
    let dest = path(&[0xff; 255]);
    fixture.store.put(put(dest.clone(), small(b"x"))).await.unwrap();
    assert!(fixture.names()[0].starts_with(".longshore/names/"), "{:?}", fixture.names());
    assert_eq!(fixture.store.uploaded_apart(), 1);
    let newest = fixture.store.newest(&dest).await.unwrap().unwrap();
    assert_eq!(newest.dest, Some(dest));
}
