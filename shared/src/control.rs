//! The tracker's control socket: one JSON object per line each way, one request per connection.
//! Both sides are here, so that they cannot drift apart.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::path::RelPath;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Answer once everything that happened before is committed.
    Flush,
    /// Commit these paths as entries; all or none.
    Add { paths: Vec<AddedPath> },
    /// Have the kernel tell of something harmless at each root, and say where it did.
    Canary,
    /// Answer with a line each time new entries were committed (at most a few a second), until either side hangs
    /// up.
    Watch,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedPath {
    pub root: String,
    #[serde(flatten)]
    pub path: RelPath,
    pub subtree: bool,
}

/// What came of one root's canary, and how the root was found meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub root: String,
    pub state: String,
    pub state_reason: String,
    /// Empty if nothing watches it.
    pub source: String,
    /// The kernel told of it in time; `None` where its source has no canary.
    pub heard: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// Done; the newest seq committed.
    Done { head: u64 },
    /// Of the roots whose filesystem answered in time.
    Canaries { roots: Vec<Canary> },
    /// New entries were committed.
    Changed { head: u64 },
    /// Not done, and why.
    Refused {
        message: String,
        /// The same request may be granted later.
        #[serde(default)]
        retry: bool,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("The tracker does not answer at {}: {source}. Is longshore-tracker running?", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("The socket of the tracker {} is not for this user: root, the tracker's user and the group of its state directory may ask", socket.display())]
    Forbidden { socket: PathBuf },
    #[error("The tracker did not answer at {} within {} s", socket.display(), waited.as_secs())]
    TimedOut { socket: PathBuf, waited: Duration },
    #[error("The tracker at {} broke off: {source}", socket.display())]
    BrokenOff { socket: PathBuf, source: io::Error },
    #[error("The tracker refused: {message}")]
    Refused { message: String, retry: bool },
}

/// An open connection after its request was sent.
pub struct Connection {
    reader: BufReader<UnixStream>,
    socket: PathBuf,
    timeout: Option<Duration>,
}

/// Sends a request. With a timeout, each answer must come within it.
pub fn connect(
    socket: &Path,
    request: &Request,
    timeout: Option<Duration>,
) -> Result<Connection, ControlError> {
    let unreachable = |source| ControlError::Unreachable { socket: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ControlError::Forbidden { socket: socket.to_owned() },
        _ => unreachable(source),
    })?;
    stream.set_read_timeout(timeout).map_err(unreachable)?;
    stream.set_write_timeout(Some(limits::FLUSH_TIMEOUT)).map_err(unreachable)?;
    match write_line(&stream, request) {
        // It may have answered without a look at the request: too many at once.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(source) => return Err(ControlError::BrokenOff { socket: socket.to_owned(), source }),
        Ok(()) => {}
    }
    Ok(Connection { reader: BufReader::new(stream), socket: socket.to_owned(), timeout })
}

impl Connection {
    /// The next answer; a refusal is an error.
    pub fn answer(&mut self) -> Result<Answer, ControlError> {
        let broken = |source| ControlError::BrokenOff { socket: self.socket.clone(), source };
        match read_line(&mut self.reader) {
            Ok(Answer::Refused { message, retry }) => Err(ControlError::Refused { message, retry }),
            Ok(answer) => Ok(answer),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(ControlError::TimedOut {
                    socket: self.socket.clone(),
                    waited: self.timeout.unwrap_or_default(),
                })
            }
            Err(e) => Err(broken(e)),
        }
    }
}

/// One request, one answer: the newest seq committed.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> Result<u64, ControlError> {
    match connect(socket, request, Some(timeout))?.answer()? {
        Answer::Done { head } | Answer::Changed { head } => Ok(head),
        other => Err(unexpected(socket, &other)),
    }
}

/// The canaries of all roots whose filesystem answers in time.
pub fn ask_canaries(socket: &Path) -> Result<Vec<Canary>, ControlError> {
    // The tracker itself gives up first, and then names who did not answer.
    let timeout = limits::CANARY_TIMEOUT * 2;
    match connect(socket, &Request::Canary, Some(timeout))?.answer()? {
        Answer::Canaries { roots } => Ok(roots),
        other => Err(unexpected(socket, &other)),
    }
}

fn unexpected(socket: &Path, answer: &Answer) -> ControlError {
    let source = io::Error::new(io::ErrorKind::InvalidData, format!("it answered {answer:?}"));
    ControlError::BrokenOff { socket: socket.to_owned(), source }
}

/// The server's side of [`connect`]: the whole request must come within this time.
pub fn read_request(stream: &UnixStream, within: Duration) -> io::Result<Request> {
    read_line(&mut BufReader::new(Until { stream, end: Instant::now() + within }))
}

/// Reads until a moment, however little comes at once: the socket's own time-out begins anew with each byte.
struct Until<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl io::Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

pub fn write_line<T: Serialize>(mut stream: &UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read_line<T: for<'de> Deserialize<'de>, R: io::Read>(reader: &mut BufReader<R>) -> io::Result<T> {
    let mut line = Vec::new();
    let read = reader.take(limits::CONTROL_MESSAGE_BYTES as u64).read_until(b'\n', &mut line)?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_socket_whatever_its_path() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = Request::Add {
            paths: vec![
                AddedPath { root: "space".into(), path: RelPath::parse(b"a\nb").unwrap(), subtree: false },
                AddedPath { root: "space".into(), path: RelPath::parse(b"bad\xff").unwrap(), subtree: true },
            ],
        };
        write_line(&ours, &request).unwrap();
        assert_eq!(read_request(&theirs, Duration::from_secs(60)).unwrap(), request);
    }

    #[test]
    fn a_request_that_never_ends_is_given_up_however_steadily_it_comes() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let drip = std::thread::spawn(move || while ours.write_all(b" ").is_ok() {});
        let error = read_request(&theirs, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        drop(theirs);
        drip.join().unwrap();
    }

    #[test]
    fn a_refusal_of_an_older_tracker_is_final() {
        let old = r#"{"answer":"refused","message":"no"}"#;
        let answer: Answer = serde_json::from_str(old).unwrap();
        assert_eq!(answer, Answer::Refused { message: "no".into(), retry: false });
    }

    #[test]
    fn a_tracker_that_is_not_there_is_named() {
        let error = ask(Path::new("/nonexistent/sock"), &Request::Flush, Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/sock"), "{error}");
    }
}
