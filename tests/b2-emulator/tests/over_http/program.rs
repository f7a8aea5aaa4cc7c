//! The program around the library.
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

#[tokio::test]
async fn the_program_prints_its_endpoint_serves_and_ends_on_sigterm() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_b2-emulator"))
        .args(["--bucket", "bucket-1", "--key-id", "id", "--key", "key", "--recommended-part-size", "7"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    let stdout = program.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let endpoint =
        serde_json::from_str::<Value>(&line).expect("JSON")["endpoint"].as_str().map(str::to_owned);
    let url = format!("{}/b2api/v2/b2_authorize_account", endpoint.expect("a string"));
    let answer =
        reqwest::Client::new().get(url).basic_auth("id", Some("key")).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["recommendedPartSize"], 7);
    let killed = Command::new("kill").arg(program.id().to_string()).status().expect("kill is there");
    assert!(killed.success());
    assert!(program.wait().expect("it ends").success());
}
