//! A bare load generator: how many small uploads a second the emulator takes.
//!
//! Requests are laid out beforehand and written straight to sockets, so that the client costs little.
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Instant;

use b2_emulator::Emulator;
use b2_emulator::calls::Call;
use b2_emulator::options::Options;
use clap::Parser;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 8)]
    connections: usize,
    #[arg(long, default_value_t = 25_000)]
    uploads_per_connection: usize,
    #[arg(long, default_value_t = 4096)]
    body_bytes: usize,
}

/// One keep-alive connection.
struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments = Arguments::parse();
    let emulator = Emulator::start(Options::default())?;
    let bucket = emulator.create_bucket("bucket-1")?;
    let address: SocketAddr = emulator.endpoint().trim_start_matches("http://").parse()?;
    let (id, key) = emulator.key();
    let mut api = Connection::open(address)?;
    let basic = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("{id}:{key}"));
    let authorized = api.call("b2_authorize_account", &format!("Basic {basic}"), &json!({}))?;
    let token = authorized["authorizationToken"].as_str().ok_or("no token")?.to_owned();

    let mut lanes = Vec::new();
    for lane in 0..arguments.connections {
        let url = api.call("b2_get_upload_url", &token, &json!({ "bucketId": bucket }))?;
        lanes.push((Connection::open(address)?, requests(&arguments, &url, lane)?));
    }
    let started = Instant::now();
    thread::scope(|scope| {
        let send = |(mut connection, requests): (Connection, Vec<Vec<u8>>)| {
            requests.iter().try_for_each(|request| connection.exchange(request).map(drop))
        };
        let threads: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(move || send(lane))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a lane panicked")?)
    })?;
    let seconds = started.elapsed().as_secs_f64();

    let uploads = emulator.counters().calls(Call::UploadFile);
    let stored = emulator.files("bucket-1").len();
    assert_eq!((stored as u64, emulator.violations()), (uploads, Vec::new()));
    let rate = uploads as f64 / seconds;
    let (connections, bytes) = (arguments.connections, arguments.body_bytes);
    println!(
        "{uploads} uploads of {bytes} bytes, {connections} connections: {seconds:.2} s, {rate:.0} uploads/s"
    );
    Ok(())
}

fn requests(arguments: &Arguments, url: &Value, lane: usize) -> Result<Vec<Vec<u8>>, &'static str> {
    let path = url["uploadUrl"].as_str().and_then(|url| url.splitn(4, '/').nth(3)).ok_or("no URL")?;
    let token = url["authorizationToken"].as_str().ok_or("no token")?;
    let body = vec![b'x'; arguments.body_bytes];
    let sha1: String = Sha1::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let request = |number: usize| {
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: b2\r\nAuthorization: {token}\r\nContent-Type: b2/x-auto\r\n\
             X-Bz-File-Name: lane{lane}/dir{}/file{number}\r\nX-Bz-Content-Sha1: {sha1}\r\n\
             X-Bz-Info-src_last_modified_millis: 1700000000123\r\nContent-Length: {}\r\n\r\n",
            number / 100,
            body.len(),
        );
        [head.as_bytes(), &body].concat()
    };
    Ok((0..arguments.uploads_per_connection).map(request).collect())
}

impl Connection {
    fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: vec![0; 1 << 16] })
    }

    fn call(
        &mut self,
        call: &str,
        authorization: &str,
        params: &Value,
    ) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let body = params.to_string();
        let request = format!(
            "POST /b2api/v2/{call} HTTP/1.1\r\nHost: b2\r\nAuthorization: {authorization}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len(),
        );
        Ok(serde_json::from_slice(self.exchange(request.as_bytes())?)?)
    }

    /// The body of the answer, which must be a 200.
    fn exchange(&mut self, request: &[u8]) -> Result<&[u8], Box<dyn Error + Send + Sync>> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        loop {
            let count = self.stream.read(&mut self.read[filled..])?;
            if count == 0 {
                return Err("the server closed the connection".into());
            }
            filled += count;
            if let Some((start, end)) = body_range(&self.read[..filled]) {
                if !self.read.starts_with(b"HTTP/1.1 200") {
                    return Err(String::from_utf8_lossy(&self.read[..filled]).into());
                }
                if end <= filled {
                    return Ok(&self.read[start..end]);
                }
            }
        }
    }
}

/// None while the head is incomplete.
fn body_range(answer: &[u8]) -> Option<(usize, usize)> {
    const LENGTH: &[u8] = b"content-length: ";
    let start = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let at = answer[..start].windows(LENGTH.len()).position(|window| window == LENGTH)? + LENGTH.len();
    let digits: String =
        answer[at..].iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_digit).collect();
    Some((start, start + digits.parse::<usize>().ok()?))
}
