//! The tracker's control socket: one JSON object per line each way, one request per connection.
//! Both sides are here, so that they cannot drift apart.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// Done; the newest seq committed.
    Done { head: u64 },
    /// New entries were committed.
    Changed { head: u64 },
    /// Not done, and why.
    Refused { message: String },
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("The tracker does not answer at {}: {source}. Is longshore-tracker running?", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("The tracker did not answer at {} within {} s", socket.display(), waited.as_secs())]
    TimedOut { socket: PathBuf, waited: Duration },
    #[error("The tracker at {} broke off: {source}", socket.display())]
    BrokenOff { socket: PathBuf, source: io::Error },
    #[error("The tracker refused: {message}")]
    Refused { message: String },
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
    let stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_read_timeout(timeout).map_err(unreachable)?;
    stream.set_write_timeout(Some(limits::FLUSH_TIMEOUT)).map_err(unreachable)?;
    write_line(&stream, request)
        .map_err(|source| ControlError::BrokenOff { socket: socket.to_owned(), source })?;
    Ok(Connection { reader: BufReader::new(stream), socket: socket.to_owned(), timeout })
}

impl Connection {
    /// The next answer; a refusal is an error.
    pub fn answer(&mut self) -> Result<Answer, ControlError> {
        let broken = |source| ControlError::BrokenOff { socket: self.socket.clone(), source };
        match read_line(&mut self.reader) {
            Ok(Answer::Refused { message }) => Err(ControlError::Refused { message }),
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

    /// For a caller that waits on several things.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.timeout = timeout;
        self.reader.get_ref().set_read_timeout(timeout)
    }
}

/// One request, one answer: the newest seq committed.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> Result<u64, ControlError> {
    match connect(socket, request, Some(timeout))?.answer()? {
        Answer::Done { head } | Answer::Changed { head } => Ok(head),
        Answer::Refused { message } => Err(ControlError::Refused { message }),
    }
}

/// The server's side of [`connect`].
pub fn read_request(stream: &UnixStream) -> io::Result<Request> {
    read_line(&mut BufReader::new(stream))
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
        assert_eq!(read_request(&theirs).unwrap(), request);
    }

    #[test]
    fn a_tracker_that_is_not_there_is_named() {
        let error = ask(Path::new("/nonexistent/sock"), &Request::Flush, Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/sock"), "{error}");
    }
}
