//! A small client of the emulator, for the tests of this directory.
use b2_emulator::Emulator;
use b2_emulator::options::{Limits, Options};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

pub struct Client {
    pub emulator: Emulator,
    pub http: reqwest::Client,
    pub token: String,
    pub bucket: String,
}

#[derive(Clone)]
pub struct UploadUrl {
    pub url: String,
    pub token: String,
}

impl Client {
    pub async fn new() -> Self {
        let limits = Limits { absolute_minimum_part_size: 5, ..Limits::default() };
        let emulator = Emulator::start(Options { limits, ..Options::default() }).expect("a free port");
        let bucket = emulator.create_bucket("bucket-1").expect("a free name");
        let mut client = Self { emulator, http: reqwest::Client::new(), token: String::new(), bucket };
        client.token = client.authorize(4).await["authorizationToken"].as_str().expect("a token").into();
        client
    }

    pub async fn authorize(&self, version: u8) -> Value {
        let (id, key) = self.emulator.key();
        let url = format!("{}/b2api/v{version}/b2_authorize_account", self.emulator.endpoint());
        let response = self.http.get(url).basic_auth(id, Some(key)).send().await.expect("an answer");
        response.json().await.expect("JSON")
    }

    pub fn post(&self, version: u8, call: &str, params: &Value) -> RequestBuilder {
        let url = format!("{}/b2api/v{version}/{call}", self.emulator.endpoint());
        self.http.post(url).header("Authorization", &self.token).json(params)
    }

    pub async fn call(&self, call: &str, params: Value) -> (u16, Value) {
        read(self.post(4, call, &params).send().await.expect("an answer")).await
    }

    pub async fn upload_url(&self) -> UploadUrl {
        let answer = self.call("b2_get_upload_url", json!({ "bucketId": self.bucket })).await.1;
        UploadUrl::from(&answer)
    }

    /// On a URL of its own.
    pub async fn upload(&self, name: &str, body: &str) -> (u16, Value) {
        let url = self.upload_url().await;
        read(self.put(&url, name, body).send().await.expect("an answer")).await
    }

    pub fn put(&self, url: &UploadUrl, name: &str, body: &str) -> RequestBuilder {
        let request = self.bare_put(url, name).header("X-Bz-Content-Sha1", sha1(body));
        // reqwest leaves it out when a body is empty, and B2 requires it.
        request.header("Content-Length", body.len()).body(body.to_owned())
    }

    /// Without body and SHA-1.
    pub fn bare_put(&self, url: &UploadUrl, name: &str) -> RequestBuilder {
        let request = self.http.post(&url.url).header("Authorization", &url.token);
        request.header("X-Bz-File-Name", name).header("Content-Type", "b2/x-auto")
    }

    pub fn download(&self, name: &str) -> RequestBuilder {
        let url = format!("{}/file/bucket-1/{name}", self.emulator.endpoint());
        self.http.get(url).header("Authorization", &self.token)
    }

    pub fn names(&self) -> Vec<String> {
        self.emulator.files("bucket-1").iter().map(|file| file.name.clone()).collect()
    }
}

impl From<&Value> for UploadUrl {
    fn from(answer: &Value) -> Self {
        let text = |field: &str| answer[field].as_str().expect("a string").to_owned();
        Self { url: text("uploadUrl"), token: text("authorizationToken") }
    }
}

pub async fn read(response: Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

pub fn sha1(body: &str) -> String {
    Sha1::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}
