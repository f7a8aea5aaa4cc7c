//! A storm of file operations by several processes, each with a log of what it did: the ground truth of which events
//! there were. Every name is unique, so that a row of the journal can be held against the operation it is for.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shared::entry::Mask;

/// Events that one token stands for, at most but for one operation.
pub const TOKEN_EVENTS: usize = 64;
/// Files and directories that one process keeps, about.
const FILES_KEPT: usize = 300;
const DIRS_KEPT: usize = 40;

/// One event kind of one name, in a directory that may be gone by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub name: String,
    pub mask: Mask,
    pub dir: u64,
}

/// A directory was removed, by this name, from that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    pub name: String,
    pub parent: u64,
}

/// A directory, by a number that stays when it is renamed.
struct Dir {
    id: u64,
    name: String,
    parent: u64,
    path: PathBuf,
}

/// One process of the storm.
struct Worker {
    random: StdRng,
    prefix: String,
    made: u64,
    dirs: Vec<Dir>,
    /// (directory, name)
    files: Vec<(u64, String)>,
    log: BufWriter<File>,
    events: usize,
}

/// The process itself: for each byte on standard input some operations, then a byte on standard output.
pub fn work(top: &Path, number: u64, seed: u64, log: &Path) {
    let log = BufWriter::new(OpenOptions::new().create(true).append(true).open(log).unwrap());
    // The top is a directory that all processes share; its number is 0.
    let dir = Dir { id: 0, name: String::new(), parent: 0, path: top.to_owned() };
    let mut worker = Worker {
        random: StdRng::seed_from_u64(seed),
        prefix: format!("w{number}"),
        made: number << 40,
        dirs: vec![dir],
        files: Vec::new(),
        log,
        events: 0,
    };
    for token in std::io::stdin().lock().bytes() {
        token.unwrap();
        worker.events = 0;
        while worker.events < TOKEN_EVENTS {
            worker.step();
        }
        worker.log.flush().unwrap();
        std::io::stdout().write_all(b".").unwrap();
        std::io::stdout().flush().unwrap();
    }
}

impl Worker {
    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("{}-{}", self.prefix, self.made & 0xff_ffff_ffff)
    }

    fn item(&mut self, dir: u64, name: &str, mask: Mask) {
        self.events += mask.bits().count_ones() as usize;
        writeln!(self.log, "+ {} {dir} {name}", mask.bits()).unwrap();
    }

    fn dir(&self, id: u64) -> &Dir {
        self.dirs.iter().find(|d| d.id == id).unwrap()
    }

    fn path(&self, dir: u64, name: &str) -> PathBuf {
        self.dir(dir).path.join(name)
    }

    fn some_dir(&mut self) -> u64 {
        let at = self.random.random_range(0..self.dirs.len());
        self.dirs[at].id
    }

    fn some_file(&mut self) -> usize {
        self.random.random_range(0..self.files.len())
    }

    fn step(&mut self) {
        let full = self.files.len() >= FILES_KEPT;
        match self.random.random_range(0..100) {
            0..40 if !full => self.make_file(),
            40..55 if !self.files.is_empty() => self.append(),
            55..65 if !self.files.is_empty() => self.rename_file(),
            65..68 if self.dirs.len() > 1 => self.rename_dir(),
            68..80 if !self.files.is_empty() => self.remove_file(),
            80..84 if self.dirs.len() < DIRS_KEPT => self.make_dir(),
            84..87 if self.dirs.len() > 1 => self.remove_tree(),
            87..92 if !full => self.make_link(),
            92..100 if !self.files.is_empty() => self.change_mode(),
            _ if full => self.remove_file(),
            _ => self.make_file(),
        }
    }

    fn make_file(&mut self) {
        let (dir, name) = (self.some_dir(), self.fresh());
        fs::write(self.path(dir, &name), &name).unwrap();
        self.item(dir, &name, Mask::CREATE | Mask::MODIFY | Mask::CLOSE_WRITE);
        self.files.push((dir, name));
    }

    fn append(&mut self) {
        let at = self.some_file();
        let (dir, name) = self.files[at].clone();
        let path = self.path(dir, &name);
        if fs::symlink_metadata(&path).unwrap().is_symlink() {
            return;
        }
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
        self.item(dir, &name, Mask::MODIFY | Mask::CLOSE_WRITE);
    }

    fn rename_file(&mut self) {
        let (at, to, new) = (self.some_file(), self.some_dir(), self.fresh());
        let (dir, name) = self.files.swap_remove(at);
        fs::rename(self.path(dir, &name), self.path(to, &new)).unwrap();
        self.item(dir, &name, Mask::RENAME);
        self.item(to, &new, Mask::RENAME);
        self.files.push((to, new));
    }

    fn remove_file(&mut self) {
        let at = self.some_file();
        let (dir, name) = self.files.swap_remove(at);
        fs::remove_file(self.path(dir, &name)).unwrap();
        self.item(dir, &name, Mask::DELETE);
    }

    fn make_link(&mut self) {
        let (dir, name) = (self.some_dir(), self.fresh());
        symlink("nowhere", self.path(dir, &name)).unwrap();
        self.item(dir, &name, Mask::CREATE);
        self.files.push((dir, name));
    }

    fn change_mode(&mut self) {
        let at = self.some_file();
        let (dir, name) = self.files[at].clone();
        let path = self.path(dir, &name);
        if fs::symlink_metadata(&path).unwrap().is_symlink() {
            return;
        }
        let mode = 0o600 | (self.made as u32 & 0o77);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        self.item(dir, &name, Mask::ATTRIB);
    }

    fn make_dir(&mut self) {
        let (parent, name) = (self.some_dir(), self.fresh());
        let path = self.path(parent, &name);
        fs::create_dir(&path).unwrap();
        self.item(parent, &name, Mask::CREATE);
        self.dirs.push(Dir { id: self.made, name, parent, path });
    }

    /// True for a directory below another, or itself.
    fn is_in(&self, id: u64, above: u64) -> bool {
        id == above || (id != 0 && self.is_in(self.dir(id).parent, above))
    }

    fn rename_dir(&mut self) {
        let at = self.random.random_range(1..self.dirs.len());
        let (id, from) = (self.dirs[at].id, self.dirs[at].parent);
        let (to, new) = (self.some_dir(), self.fresh());
        if self.is_in(to, id) {
            return;
        }
        let (old_path, new_path) = (self.dirs[at].path.clone(), self.path(to, &new));
        fs::rename(&old_path, &new_path).unwrap();
        let old = std::mem::replace(&mut self.dirs[at].name, new.clone());
        self.dirs[at].parent = to;
        for dir in &mut self.dirs {
            if let Ok(below) = dir.path.strip_prefix(&old_path) {
                dir.path = new_path.join(below);
            }
        }
        self.item(from, &old, Mask::RENAME);
        self.item(to, &new, Mask::RENAME);
    }

    /// `rm -r`
    fn remove_tree(&mut self) {
        let at = self.random.random_range(1..self.dirs.len());
        let top = self.dirs[at].id;
        let mut doomed: Vec<u64> = self.dirs.iter().map(|d| d.id).filter(|&d| self.is_in(d, top)).collect();
        if doomed.len() > 8 {
            return;
        }
        for (dir, name) in self.files.clone() {
            if doomed.contains(&dir) {
                fs::remove_file(self.path(dir, &name)).unwrap();
                self.item(dir, &name, Mask::DELETE);
            }
        }
        self.files.retain(|(dir, _)| !doomed.contains(dir));
        // The deepest first.
        doomed.sort_by_key(|&id| std::cmp::Reverse(self.dir(id).path.components().count()));
        for id in doomed {
            let at = self.dirs.iter().position(|d| d.id == id).unwrap();
            let dir = self.dirs.remove(at);
            fs::remove_dir(&dir.path).unwrap();
            self.item(dir.parent, &dir.name, Mask::DELETE);
            writeln!(self.log, "- {id} {} {}", dir.parent, dir.name).unwrap();
        }
    }
}

struct Process {
    child: Child,
    tokens: ChildStdin,
    log: BufReader<File>,
}

/// All processes of a storm.
pub struct Storm {
    processes: Vec<Process>,
    /// Tokens that were worked off.
    done: Arc<(Mutex<u64>, Condvar)>,
    given: u64,
}

impl Storm {
    /// `worker` is a program that runs [`work`] with the arguments `worker TOP NUMBER SEED LOG`. The processes take
    /// turns at the tops.
    pub fn new(worker: &Path, tops: &[&Path], logs: &Path, processes: u64, seed: u64) -> Storm {
        let mut storm = Storm { processes: Vec::new(), done: Arc::default(), given: 0 };
        for (number, top) in (1..=processes).zip(tops.iter().cycle()) {
            let log = logs.join(format!("storm-{number}.log"));
            File::create(&log).unwrap();
            let mut child = Command::new(worker)
                .arg("worker")
                .arg(top)
                .args([number.to_string(), (seed + number).to_string()])
                .arg(&log)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut answers = child.stdout.take().unwrap();
            let done = Arc::clone(&storm.done);
            std::thread::spawn(move || {
                let mut byte = [0];
                while answers.read(&mut byte).is_ok_and(|n| n > 0) {
                    *done.0.lock().unwrap() += 1;
                    done.1.notify_all();
                }
            });
            let tokens = child.stdin.take().unwrap();
            storm.processes.push(Process { child, tokens, log: BufReader::new(File::open(&log).unwrap()) });
        }
        storm
    }

    /// Lets every process make about this many times [`TOKEN_EVENTS`] events.
    pub fn go_on(&mut self, tokens: usize) {
        for process in &mut self.processes {
            process.tokens.write_all(&vec![b'.'; tokens]).unwrap();
            self.given += tokens as u64;
        }
    }

    /// True if all that was asked for is done.
    pub fn is_resting(&self) -> bool {
        *self.done.0.lock().unwrap() == self.given
    }

    /// Waits until all that was asked for is done.
    pub fn rest(&mut self) {
        let (done, moved) = &*self.done;
        let mut count = done.lock().unwrap();
        while *count < self.given {
            for process in &mut self.processes {
                assert!(process.child.try_wait().unwrap().is_none(), "a process of the storm ended");
            }
            count = moved.wait_timeout(count, std::time::Duration::from_secs(1)).unwrap().0;
        }
    }

    /// What was done since the last call, while the storm rests.
    pub fn take_log(&mut self) -> (Vec<Item>, Vec<(u64, Gone)>) {
        let (mut items, mut gone) = (Vec::new(), Vec::new());
        for process in &mut self.processes {
            let mut line = String::new();
            while process.log.read_line(&mut line).unwrap() > 0 {
                let fields: Vec<&str> = line.trim_end().splitn(4, ' ').collect();
                let number = |at: usize| fields[at].parse::<u64>().unwrap();
                let name = fields[3].to_owned();
                if fields[0] == "+" {
                    let mask = Mask::from_bits_retain(number(1) as u32);
                    items.push(Item { name, mask, dir: number(2) });
                } else {
                    gone.push((number(1), Gone { name, parent: number(2) }));
                }
                line.clear();
            }
        }
        (items, gone)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}
