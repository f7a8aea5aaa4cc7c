//! The form of requests and answers, and the requests that no correct client makes.
use b2_emulator::calls::Call;
use reqwest::Body;
use serde_json::json;

use crate::client::{Client, UploadUrl, read, sha1};

#[tokio::test]
async fn authorize_account_has_the_shape_of_each_version() {
    let client = Client::new().await;
    let endpoint = json!(client.emulator.endpoint());
    for version in [1, 2] {
        let answer = client.authorize(version).await;
        assert_eq!(answer["apiUrl"], endpoint);
        assert_eq!(answer["allowed"]["bucketId"], json!(null));
    }
    let v3 = &client.authorize(3).await["apiInfo"]["storageApi"];
    assert_eq!((&v3["downloadUrl"], &v3["absoluteMinimumPartSize"]), (&endpoint, &json!(5)));
    assert!(v3["capabilities"].is_array());
    let v4 = &client.authorize(4).await["apiInfo"]["storageApi"];
    assert_eq!(v4["allowed"]["buckets"], json!(null));
    assert!(v4["allowed"]["capabilities"].is_array());
}

#[tokio::test]
async fn a_wrong_key_is_answered_as_in_a_recorded_answer() {
    let client = Client::new().await;
    let url = format!("{}/b2api/v4/b2_authorize_account", client.emulator.endpoint());
    let response = client.http.get(url).basic_auth("x", Some("y")).send().await.expect("an answer");
    assert_eq!(response.headers()["WWW-Authenticate"], "BASIC realm=\"authorize_account\"");
    assert_eq!(
        read(response).await,
        (401, json!({ "status": 401, "code": "bad_auth_token", "message": "" }))
    );
}

#[tokio::test]
async fn an_upload_comes_back_in_listings_and_downloads() {
    let client = Client::new().await;
    let url = client.upload_url().await;
    let request = client.put(&url, "a/%C3%BC%20x", "0123456789");
    let request = request.header("X-Bz-Info-Src_Last_Modified_Millis", "1700000000123");
    let (status, stored) = read(request.send().await.expect("an answer")).await;
    assert_eq!((status, &stored["action"], &stored["fileName"]), (200, &json!("upload"), &json!("a/ü x")));
    assert_eq!(stored["fileInfo"], json!({ "src_last_modified_millis": "1700000000123" }));

    let params = json!({ "bucketId": client.bucket, "startFileName": null, "prefix": "a/" });
    let v1 = read(client.post(1, "b2_list_file_names", &params).send().await.expect("an answer")).await.1;
    assert_eq!((&v1["files"][0]["size"], &v1["files"][0]["contentLength"]), (&json!(10), &json!(null)));
    let v4 = client.call("b2_list_file_names", params).await.1;
    assert_eq!((&v4["files"][0]["contentLength"], &v4["nextFileName"]), (&json!(10), &json!(null)));
    assert_eq!(v4["files"][0]["fileId"], stored["fileId"]);

    let ranged = client.download("a/%C3%BC+x").header("Range", "bytes=2-4").send().await.expect("an answer");
    assert_eq!(ranged.status(), 206);
    assert_eq!(ranged.headers()["Content-Range"], "bytes 2-4/10");
    assert_eq!(ranged.headers()["X-Bz-Content-Sha1"], sha1("0123456789").as_str());
    assert_eq!(ranged.headers()["X-Bz-File-Name"], "a/%C3%BC%20x");
    assert_eq!(ranged.headers()["X-Bz-Info-src_last_modified_millis"], "1700000000123");
    assert_eq!(ranged.text().await.expect("text"), "234");

    let name_url =
        format!("{}/file/bucket-1/a/%C3%BC%20x?Authorization={}", client.emulator.endpoint(), client.token);
    let head = client.http.head(name_url).send().await.expect("an answer");
    assert_eq!(
        (head.status().as_u16(), &head.headers()["Content-Length"]),
        (200, &"10".parse().expect("a value"))
    );
    assert_eq!(client.emulator.counters().calls(Call::HeadFileByName), 1);
    let unsatisfiable = client.download("a/%C3%BC%20x").header("Range", "bytes=10-").send().await;
    assert_eq!(read(unsatisfiable.expect("an answer")).await.1["code"], "range_not_satisfiable");
    assert_eq!(client.emulator.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn the_sha1_may_stand_at_the_end_or_be_waived() {
    let client = Client::new().await;
    let url = client.upload_url().await;
    let body = format!("text{}", sha1("text"));
    let at_end = client.bare_put(&url, "end").header("X-Bz-Content-Sha1", "hex_digits_at_end").body(body);
    let stored = read(at_end.send().await.expect("an answer")).await.1;
    assert_eq!((&stored["contentLength"], &stored["contentSha1"]), (&json!(4), &json!(sha1("text"))));
    let waived = client.bare_put(&url, "none").header("X-Bz-Content-Sha1", "do_not_verify").body("text");
    let stored = read(waived.send().await.expect("an answer")).await.1;
    assert_eq!(stored["contentSha1"], format!("unverified:{}", sha1("text")));
    let short = client.bare_put(&url, "short").header("X-Bz-Content-Sha1", "hex_digits_at_end").body("abc");
    assert_eq!(read(short.send().await.expect("an answer")).await.0, 400);
}

#[tokio::test]
async fn a_wrong_sha1_is_an_error_and_spends_the_url_but_is_no_violation() {
    let client = Client::new().await;
    let url = client.upload_url().await;
    let wrong = client.bare_put(&url, "a").header("X-Bz-Content-Sha1", sha1("other")).body("text");
    let response = wrong.send().await.expect("an answer");
    assert_eq!(response.headers()["Connection"], "close");
    assert_eq!(read(response).await.1["message"], "Sha1 did not match data received");
    let again = read(client.put(&url, "a", "text").send().await.expect("an answer")).await;
    assert_eq!((again.0, &again.1["code"]), (401, &json!("expired_auth_token")));
    assert_eq!(client.emulator.violations(), Vec::<String>::new());
    assert_eq!(client.emulator.counters().errors["bad_request"], 1);
}

#[tokio::test]
async fn what_no_correct_client_sends_is_refused_and_noted() {
    let client = Client::new().await;
    let violations = |count: usize| assert_eq!(client.emulator.violations().len(), count);
    assert_eq!(client.call("b2_delete_everything", json!({})).await.0, 400);
    violations(1);
    assert_eq!(client.call("b2_hide_file", json!({ "bucketId": client.bucket })).await.0, 400);
    violations(2);
    let typo = json!({ "bucketId": client.bucket, "prefx": "a" });
    assert_eq!(client.call("b2_list_file_names", typo).await.0, 400);
    violations(3);

    let no_sha1 = client.bare_put(&client.upload_url().await, "a").body("text").send().await;
    assert_eq!(read(no_sha1.expect("an answer")).await.0, 400);
    violations(4);
    let forbidden = client.put(&client.upload_url().await, "a", "text").header("Expires", "0").send().await;
    assert_eq!(read(forbidden.expect("an answer")).await.0, 400);
    violations(5);
    // A body of unknown length goes out in chunks.
    let chunks = Body::wrap_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("text")]));
    let request = client.bare_put(&client.upload_url().await, "a").header("X-Bz-Content-Sha1", sha1("text"));
    assert_eq!(read(request.body(chunks).send().await.expect("an answer")).await.0, 400);
    violations(6);
    assert_eq!(client.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_serves_only_its_own_upload_url() {
    let client = Client::new().await;
    let (one, other) = (client.upload_url().await, client.upload_url().await);
    let mixed = UploadUrl { url: one.url, token: other.token };
    let (status, answer) = read(client.put(&mixed, "a", "text").send().await.expect("an answer")).await;
    assert_eq!((status, &answer["code"]), (401, &json!("bad_auth_token")));
}

#[tokio::test]
async fn a_call_may_be_a_get_with_a_query() {
    let client = Client::new().await;
    client.upload("a", "1").await;
    client.upload("b", "2").await;
    let (endpoint, bucket) = (client.emulator.endpoint(), &client.bucket);
    let url = format!("{endpoint}/b2api/v4/b2_list_file_names?bucketId={bucket}&maxFileCount=1");
    let answer = client.http.get(url).header("Authorization", &client.token).send().await.expect("an answer");
    let (status, page) = read(answer).await;
    assert_eq!(
        (status, &page["files"][0]["fileName"], &page["nextFileName"]),
        (200, &json!("a"), &json!("b"))
    );
}

#[tokio::test]
async fn a_listing_is_billed_by_the_thousand() {
    let client = Client::new().await;
    let url = client.upload_url().await;
    for number in 0..1001 {
        let answer = client.put(&url, &format!("f{number}"), "").send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    client.emulator.reset();
    client.call("b2_list_file_names", json!({ "bucketId": client.bucket, "maxFileCount": 1000 })).await;
    assert_eq!(client.emulator.counters().class_c, 1);
    client.call("b2_list_file_versions", json!({ "bucketId": client.bucket, "maxFileCount": 10_000 })).await;
    assert_eq!(client.emulator.counters().class_c, 3);
}

#[tokio::test]
async fn a_large_file_is_started_filled_finished_and_then_told_by_get_file_info() {
    let client = Client::new().await;
    let params = json!({ "bucketId": client.bucket, "fileName": "big", "contentType": "b2/x-auto" });
    let started = client.call("b2_start_large_file", params).await.1;
    assert_eq!((&started["action"], &started["contentSha1"]), (&json!("start"), &json!("none")));
    let file = json!({ "fileId": started["fileId"] });
    let url = UploadUrl::from(&client.call("b2_get_upload_part_url", file.clone()).await.1);
    let mut sha1s = Vec::new();
    for (number, body) in [(1, "first"), (2, "2nd")] {
        let request = client.http.post(&url.url).header("Authorization", &url.token).body(body);
        let request = request.header("X-Bz-Part-Number", number).header("X-Bz-Content-Sha1", sha1(body));
        let part = read(request.send().await.expect("an answer")).await.1;
        assert_eq!((&part["partNumber"], &part["fileId"]), (&json!(number), &started["fileId"]));
        sha1s.push(part["contentSha1"].clone());
    }
    let parts = client.call("b2_list_parts", file.clone()).await.1;
    assert_eq!((&parts["parts"][1]["contentLength"], &parts["nextPartNumber"]), (&json!(3), &json!(null)));
    assert_eq!(client.call("b2_get_file_info", file.clone()).await.0, 404);
    let finish = json!({ "fileId": started["fileId"], "partSha1Array": sha1s });
    assert_eq!(client.call("b2_finish_large_file", finish).await.0, 200);
    let told = client.call("b2_get_file_info", file).await.1;
    assert_eq!((&told["contentLength"], &told["contentSha1"]), (&json!(8), &json!("none")));
    assert_eq!(client.emulator.files("bucket-1")[0].sha1(), sha1("first2nd"));
}
