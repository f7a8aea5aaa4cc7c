//! What happens in a world, as text: its shape, then a line for each step, with what chance decided within it. A world
//! that failed is kept so, and goes the same way again.

use std::io;

use serde::{Deserialize, Serialize};

use crate::fate::Fault;
use crate::shape::Shape;

/// One step of a world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What the step draws beyond what is written within it.
    pub seed: u64,
    #[serde(flatten)]
    pub step: Step,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<Within>,
}

/// What happened at a pass of a program, or at a question for a fault, counted from the line's beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Within {
    pub at: u32,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Somebody changes a file.
    Do(Op),
    /// The tracker takes so many turns.
    Turns(u32),
    /// Counted by the questions for this fault.
    Fault(Fault),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    Do {
        op: Op,
    },
    /// The tracker takes so many turns, with all its threads.
    Turns {
        count: u32,
    },
    /// Time goes by, in milliseconds; the tracker probes when it is due.
    Wait {
        ms: u64,
    },
    /// Legs run at the same time, by their places in the shape.
    Run {
        legs: Vec<usize>,
        #[serde(default)]
        full: bool,
        /// So many deletes are allowed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        allow: Option<u64>,
    },
    StartTracker,
    StopTracker,
    KillTracker,
    /// The machine goes down in order and comes up again.
    Reboot,
    PowerCut,
    /// Of the wall clock, in seconds.
    ClockJump {
        s: i64,
    },
    Disk {
        disk: usize,
        change: DiskChange,
    },
    Database {
        /// 0 is the journal; else a leg's catalog, by its place from 1 on.
        which: usize,
        change: DatabaseChange,
    },
    /// Somebody else changes what stands at a leg's destination.
    Foreign {
        leg: usize,
        path: String,
        change: ForeignChange,
    },
    /// Requests that were cut off come true after all.
    LateCompletions {
        leg: usize,
    },
    /// Other exclude rules for a root; with `reload`, the tracker is restarted with them.
    Rules {
        root: usize,
        exclude: Vec<String>,
        reload: bool,
    },
    /// The state disk is full, or has room again.
    StateDisk {
        full: bool,
    },
    /// What must hold at this moment is checked.
    Check,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskChange {
    Umount,
    LazyUmount,
    Mount,
    /// It is pulled out while it is mounted.
    Vanish,
    /// It is plugged in again, under another number, and mounted.
    Return,
    /// Another disk is mounted at its place.
    Swap,
    /// A copy of it as it was when it was last synced is mounted in its place.
    Clone,
    ReadOnly,
    ReadWrite,
    /// Its writes so far are on the platter.
    Sync,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatabaseChange {
    Lose,
    /// A copy is put aside.
    Save,
    /// The copy put aside last is put back.
    Restore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForeignChange {
    Put,
    Remove,
    /// As rclone would have uploaded the local file.
    Copy,
}

/// What somebody does to the files of the machine, by paths of the machine. Names are bytes: each character stands for
/// the byte of its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum Op {
    Create {
        path: String,
        content: String,
    },
    Mkdir {
        path: String,
    },
    /// Overwrites from `at` on.
    Write {
        path: String,
        at: u64,
        content: String,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Exchange {
        a: String,
        b: String,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    RemoveAll {
        path: String,
    },
    Symlink {
        target: String,
        path: String,
    },
    Fifo {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    /// Sets the time of the content, in nanoseconds since 1970.
    Touch {
        path: String,
        mtime_ns: i64,
    },
    Xattr {
        path: String,
        value: String,
    },
    /// Opens a file for writing, and keeps it open.
    Open {
        path: String,
        fd: u8,
    },
    WriteOpen {
        fd: u8,
        content: String,
    },
    Close {
        fd: u8,
    },
    /// A file without a name is written and then linked.
    Tmpfile {
        path: String,
        content: String,
    },
    /// A store through a live mapping of an open file: no event tells of it before the file is closed.
    Map {
        fd: u8,
        content: String,
    },
    /// Linux native AIO on an open file: no event tells of it before the file is closed.
    Aio {
        fd: u8,
        content: String,
    },
}

/// A whole world.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub shape: Shape,
    pub lines: Vec<Line>,
}

impl Script {
    pub fn to_text(&self) -> String {
        let line = |value: serde_json::Result<String>| value.expect("plain data") + "\n";
        let mut text = line(serde_json::to_string(&self.shape));
        self.lines.iter().for_each(|l| text += &line(serde_json::to_string(l)));
        text
    }

    /// Lines that begin with `#` say something to people.
    pub fn parse(text: &str) -> io::Result<Script> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)?;
        let shape = serde_json::from_str(first)?;
        let lines = lines.map(|line| Ok(serde_json::from_str(line)?)).collect::<io::Result<_>>()?;
        Ok(Script { shape, lines })
    }
}

/// The bytes of a name or content in a script.
pub fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| c as u32 as u8).collect()
}

/// Bytes as a script spells them.
pub fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_script_is_read_as_it_was_written() {
        let write = Op::Write { path: text(b"/a\n\xff"), at: 3, content: text(&[0, 255, b'"']) };
        let lines = vec![
            Line { seed: 1, step: Step::Do { op: write.clone() }, within: Vec::new() },
            Line {
                seed: 2,
                step: Step::Run { legs: vec![0, 1], full: false, allow: Some(3) },
                within: vec![
                    Within { at: 4, what: What::Do(write) },
                    Within { at: 1, what: What::Fault(Fault::Kill) },
                ],
            },
            Line {
                seed: 3,
                step: Step::Disk { disk: 0, change: DiskChange::LazyUmount },
                within: Vec::new(),
            },
        ];
        let script = Script { shape: Shape::drawn(&mut Random::new(1)), lines };
        assert_eq!(Script::parse(&script.to_text()).unwrap(), script);
        assert_eq!(Script::parse(&format!("# found by chance\n{}", script.to_text())).unwrap(), script);
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes(&text(&all)), all);
    }
}
