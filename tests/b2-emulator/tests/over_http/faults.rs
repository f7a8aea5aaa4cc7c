//! Every kind of fault, as a client meets it, from the library and from the control endpoints.
use std::time::Duration;

use b2_emulator::calls::Call;
use b2_emulator::faults::{Fault, FaultAnswer, FaultKind};
use serde_json::{Value, json};

use crate::client::{Client, UploadUrl, read};

/// Long enough for any machine; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_answer_comes_instead_of_the_effect_with_its_retry_after() {
    let client = Client::new().await;
    let busy = FaultAnswer { status: 503, code: "service_unavailable".into(), retry_after_s: Some(7) };
    let rule = client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::Answer(busy)));
    let url = client.upload_url().await;
    let response = client.put(&url, "a", "text").send().await.expect("an answer");
    assert_eq!(response.headers()["Retry-After"], "7");
    assert_eq!(read(response).await.1["code"], "service_unavailable");
    assert_eq!((client.names().len(), client.emulator.counters().fault(rule)), (0, 1));
    assert_eq!(client.upload("a", "text").await.0, 200, "the next one passes");
}

#[tokio::test]
async fn a_dropped_answer_leaves_the_effect() {
    let client = Client::new().await;
    client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::DropAfterEffect));
    let url = client.upload_url().await;
    assert!(client.put(&url, "a", "text").send().await.is_err());
    assert_eq!(client.names(), ["a"]);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let client = Client::new().await;
    let answer = FaultAnswer { status: 503, code: "service_unavailable".into(), retry_after_s: None };
    client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::EarlyAnswer(answer)));
    let url = client.upload_url().await;
    // The body never ends: only an early answer, or the broken pipe after it, ends this request.
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 16]));
    let request = client.bare_put(&url, "a").header("Content-Length", 1_u64 << 40);
    let request =
        request.header("X-Bz-Content-Sha1", "do_not_verify").body(reqwest::Body::wrap_stream(endless));
    if let Ok(response) = request.send().await {
        assert_eq!(response.status(), 503);
    }
    assert_eq!(client.emulator.counters().errors["service_unavailable"], 1);
    let (status, answer) = read(client.put(&url, "a", "text").send().await.expect("an answer")).await;
    assert_eq!((status, &answer["code"]), (401, &json!("expired_auth_token")), "the URL is spent");
}

#[tokio::test]
async fn a_reset_cuts_an_upload_before_its_effect() {
    let client = Client::new().await;
    client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::ResetAfterBytes(2)));
    let url = client.upload_url().await;
    assert!(client.put(&url, "a", "text").send().await.is_err());
    assert_eq!(client.names().len(), 0);
}

#[tokio::test]
async fn a_reset_cuts_a_download_after_some_bytes() {
    let client = Client::new().await;
    client.upload("a", "0123456789").await;
    client.emulator.inject(Fault::next(Call::DownloadFileByName, FaultKind::ResetAfterBytes(4)));
    let mut response = client.download("a").send().await.expect("the head of an answer");
    assert_eq!(response.content_length(), Some(10));
    assert_eq!(response.chunk().await.expect("the first bytes").expect("not the end"), "0123");
    assert!(response.chunk().await.is_err());
    assert_eq!(
        client.download("a").send().await.expect("an answer").text().await.expect("all"),
        "0123456789"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_upload_on_a_busy_url_is_refused_and_noted() {
    let client = Client::new().await;
    let rule = client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::HoldAnswer));
    let url = client.upload_url().await;
    let first = tokio::spawn(client.put(&url, "a", "text").send());
    assert!(client.emulator.wait_until(PATIENCE, |counters| counters.fault(rule) == 1));
    assert_eq!(client.names(), ["a"], "the effect is there while the answer is held");
    let (status, answer) = read(client.put(&url, "b", "text").send().await.expect("an answer")).await;
    assert_eq!((status, &answer["code"]), (400, &json!("auth_token_limit")));
    assert_eq!(client.emulator.violations().len(), 1);
    client.emulator.release_held();
    assert_eq!(first.await.expect("no panic").expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_a_held_answer_finds_its_url_spent() {
    let client = Client::new().await;
    let rule = client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::HoldAnswer));
    let url = client.upload_url().await;
    let held = tokio::spawn(client.put(&url, "a", "text").send());
    assert!(client.emulator.wait_until(PATIENCE, |counters| counters.fault(rule) == 1));
    held.abort();
    // Until the server has seen that, the URL is busy.
    loop {
        let (_, answer) = read(client.put(&url, "b", "text").send().await.expect("an answer")).await;
        if answer["code"] != "auth_token_limit" {
            assert_eq!(answer["code"], "expired_auth_token");
            break;
        }
    }
}

#[tokio::test]
async fn a_late_effect_comes_when_told() {
    let client = Client::new().await;
    client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::LateCompletion));
    let url = client.upload_url().await;
    assert!(client.put(&url, "a", "first").send().await.is_err());
    assert_eq!(client.names().len(), 0);
    client.upload("a", "second").await;
    assert_eq!(client.emulator.complete_late(), 1);
    let versions = client.emulator.versions("bucket-1");
    assert_eq!(versions.len(), 2);
    assert_eq!(versions[0].content.to_bytes(), "first", "the late one is now the newest");
}

#[tokio::test]
async fn tokens_expire_on_demand() {
    let client = Client::new().await;
    client.emulator.inject(Fault::next(Call::ListFileNames, FaultKind::ExpireAccountTokens));
    let rule = client.emulator.inject(Fault::next(Call::UploadFile, FaultKind::ExpireUploadUrls));
    let url = client.upload_url().await;
    let (status, answer) = read(client.put(&url, "a", "text").send().await.expect("an answer")).await;
    assert_eq!((status, &answer["code"]), (401, &json!("expired_auth_token")));
    assert_eq!(client.emulator.counters().fault(rule), 1);
    assert_eq!(client.upload("a", "text").await.0, 200, "a new URL is good");
    let (status, answer) = client.call("b2_list_file_names", json!({ "bucketId": client.bucket })).await;
    assert_eq!((status, &answer["code"]), (401, &json!("expired_auth_token")));
    assert_eq!(client.authorize(4).await["accountId"], "b2e0acc00001", "a new token can be had");
}

#[tokio::test]
async fn a_lost_answer_to_finish_is_found_by_get_file_info() {
    let client = Client::new().await;
    let params = json!({ "bucketId": client.bucket, "fileName": "big", "contentType": "text/plain" });
    let file = json!({ "fileId": client.call("b2_start_large_file", params).await.1["fileId"] });
    let url = UploadUrl::from(&client.call("b2_get_upload_part_url", file.clone()).await.1);
    let sha1 = crate::client::sha1("part!");
    for number in [1, 2] {
        let request = client.put(&url, "unused", "part!").header("X-Bz-Part-Number", number);
        assert_eq!(request.send().await.expect("an answer").status(), 200);
    }
    let finish = json!({ "fileId": file["fileId"], "partSha1Array": [sha1, sha1] });
    client.emulator.inject(Fault {
        name_prefix: Some("big".into()),
        ..Fault::next(Call::FinishLargeFile, FaultKind::DropAfterEffect)
    });
    assert!(client.post(4, "b2_finish_large_file", &finish).send().await.is_err());
    assert_eq!(client.call("b2_finish_large_file", finish).await.0, 400);
    assert_eq!(client.call("b2_get_file_info", file).await.1["action"], "upload");
}

#[tokio::test]
async fn another_process_can_drive_it_by_the_control_endpoints() {
    let client = Client::new().await;
    let url = |verb: &str| format!("{}/_control/{verb}", client.emulator.endpoint());
    let post = async |verb: &str, body: Value| {
        read(client.http.post(url(verb)).json(&body).send().await.expect("an answer")).await
    };
    let get = async |verb: &str| read(client.http.get(url(verb)).send().await.expect("an answer")).await.1;

    let rule = json!({ "call": "b2_upload_file", "kind": "late_completion" });
    let (status, answer) = post("faults", rule).await;
    assert_eq!((status, &answer["id"]), (200, &json!(1)));
    let upload = client.upload_url().await;
    assert!(client.put(&upload, "a", "text").send().await.is_err());
    assert_eq!(post("complete", json!({})).await.1["completed"], 1);
    assert_eq!(client.names(), ["a"]);

    assert_eq!(post("faults", json!({ "kind": "no_such_kind" })).await.0, 400);
    client.call("b2_no_such_call", json!({})).await;
    assert_eq!(get("violations").await.as_array().map(Vec::len), Some(1));
    let counters = get("counters").await;
    assert_eq!((&counters["calls"]["b2_upload_file"], &counters["faults"]["1"]), (&json!(1), &json!(1)));
    post("reset", json!({})).await;
    assert_eq!(get("violations").await, json!([]));
    assert_eq!(get("counters").await["calls"], json!({}));
    assert_eq!(client.names(), ["a"], "files stay");
}
