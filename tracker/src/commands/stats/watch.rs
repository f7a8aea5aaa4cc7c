//! `tracker stats --watch`: the figures again and again, on a terminal in one place, on a pipe one after the other.

use std::io::{self, IsTerminal as _, Stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use shared::exit::Exit;

use super::super::{CommandError, put};

/// The status file is written at most once a second.
const REFRESH: Duration = Duration::from_secs(2);
/// Another screen without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";
/// Where the size of a terminal is not told.
const SIZE: (usize, usize) = (80, 24);
/// `q`, Ctrl-C and Ctrl-D, which are bytes like others while every key is read by itself.
const ENDING: [u8; 4] = [b'q', b'Q', 3, 4];

/// Until the reader goes away.
pub fn on_pipe(mut block: impl FnMut() -> Result<Vec<u8>, CommandError>) -> Result<Exit, CommandError> {
    while put(&block()?)? {
        std::thread::sleep(REFRESH);
    }
    Ok(Exit::Ok)
}

/// Until `q`, Ctrl-C or a signal; the terminal is as before then.
pub fn on_terminal(
    mut page: impl FnMut((usize, usize)) -> Result<String, CommandError>,
) -> Result<Exit, CommandError> {
    let over = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&over)).map_err(io_error("listen for signals"))?;
    }
    let stdin = io::stdin();
    let before = if stdin.is_terminal() { Some(read_each_key(&stdin)?) } else { None };
    let mut show = || -> Result<(), CommandError> {
        put(ENTER)?;
        while !over.load(Ordering::Relaxed) {
            if !put(&frame(&page(size())?))? || ended_by_key(before.is_some().then_some(&stdin))? {
                break;
            }
        }
        Ok(())
    };
    let shown = show();
    let left = put(LEAVE);
    if let Some(before) = before {
        tcsetattr(&stdin, OptionalActions::Now, &before).map_err(terminal_error)?;
    }
    shown.and(left).map(|_| Exit::Ok)
}

fn io_error(op: &'static str) -> impl Fn(io::Error) -> CommandError {
    move |source| CommandError::Io { op: op.to_owned(), source }
}

fn terminal_error(errno: Errno) -> CommandError {
    io_error("set up the terminal")(errno.into())
}

/// Without waiting for the end of a line, and without showing it. Returns how it was.
fn read_each_key(stdin: &Stdin) -> Result<Termios, CommandError> {
    let before = tcgetattr(stdin).map_err(terminal_error)?;
    let mut each = before.clone();
    each.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
    each.special_codes[SpecialCodeIndex::VMIN] = 1;
    each.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(stdin, OptionalActions::Now, &each).map_err(terminal_error)?;
    Ok(before)
}

/// Columns and rows.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 1 => (size.ws_col.into(), usize::from(size.ws_row) - 1),
        _ => SIZE,
    }
}

/// Over what stood there: each line to its end, and what is below the last.
fn frame(page: &str) -> Vec<u8> {
    let mut out = b"\x1b[H".to_vec();
    for line in page.lines() {
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\x1b[K\r\n");
    }
    out.extend_from_slice(b"\x1b[J");
    out
}

/// Waits for the next refresh. True if somebody asked for the end, or the terminal is gone.
fn ended_by_key(stdin: Option<&Stdin>) -> Result<bool, CommandError> {
    let refresh = Timespec { tv_sec: REFRESH.as_secs() as i64, tv_nsec: 0 };
    let mut fds: Vec<PollFd<'_>> = stdin.iter().map(|s| PollFd::new(*s, PollFlags::IN)).collect();
    match poll(&mut fds, Some(&refresh)) {
        // A signal: whoever asks next sees it.
        Ok(0) | Err(Errno::INTR) => return Ok(false),
        Ok(_) => {}
        Err(e) => return Err(terminal_error(e)),
    }
    let mut keys = [0; 64];
    let Some(stdin) = stdin else { return Ok(false) };
    match rustix::io::read(stdin, &mut keys) {
        Ok(0) | Err(Errno::IO) => Ok(true),
        Ok(n) => Ok(is_ending(&keys[..n])),
        Err(Errno::INTR | Errno::AGAIN) => Ok(false),
        Err(e) => Err(terminal_error(e)),
    }
}

/// Keys that send a sequence (arrows) begin with Escape and are no wish.
fn is_ending(keys: &[u8]) -> bool {
    keys.first() != Some(&0x1b) && keys.iter().any(|key| ENDING.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_covers_the_one_before() {
        assert_eq!(frame("a\nbb\n"), b"\x1b[Ha\x1b[K\r\nbb\x1b[K\r\n\x1b[J");
    }

    #[test]
    fn only_the_keys_that_mean_it_end_the_watch() {
        for (keys, ends) in
            [(&b"q"[..], true), (b"\x03", true), (b"xq", true), (b"x", false), (b"\x1bOQ", false)]
        {
            assert_eq!(is_ending(keys), ends, "{keys:?}");
        }
    }
}
