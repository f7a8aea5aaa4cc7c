//! What `tracker stats` and `tracker pending` answer: from a busy tracker, from one that stands still, without one, on
//! a pipe and on a terminal; and that the counting wakes and writes nothing when nothing happens.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Mounted, World, is_root};
use rustix::process::{Pid, Signal};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use serde_json::Value;
use shared::entry::{Mask, Scope};
use shared::journal::{Class, Journal, NewDeferred};
use shared::path::RelPath;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A root on a filesystem of its own, where nobody else makes events.
fn alone() -> (World, Mounted) {
    let disk = Mounted::image("ext4");
    let world = World::new(&[]);
    let leg = format!(
        "[[leg]]\nname = \"l\"\nkind = \"dir\"\nroots = [\"a\"]\npath = \"{}\"\n",
        world.dir.path().join("mirror").display()
    );
    world.configure(&world.dir.path().join("state"), &[("a", &disk.point)], &leg);
    (world, disk)
}

/// The status file lags behind by up to a second: asked again until it says what is wanted.
fn stats_with(world: &World, wanted: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let stats = world.stats();
        if wanted(&stats) {
            return stats;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{stats:#}");
    }
}

#[test]
fn stats_say_what_kind_of_events_came_where_from_whom_and_how_long_commits_took() {
    if !is_root() {
        return;
    }
    let (mut world, disk) = alone();
    world.start();
    let dir = disk.point.join(OsStr::from_bytes(b"d\xff"));
    fs::create_dir(&dir).unwrap();
    for n in 0..20 {
        fs::write(dir.join(format!("f{n}")), "x").unwrap();
    }
    fs::remove_file(dir.join("f0")).unwrap();
    fs::rename(dir.join("f1"), dir.join("g1")).unwrap();
    world.flush();
    let committed = |fs: &Value| fs["kinds"]["rename"] == 1 && fs["buffer"]["bytes"] == 0;
    let stats = stats_with(&world, |s| committed(&s["status"]["filesystems"][0]));
    let fs = &stats["status"]["filesystems"][0];
    let kinds = &fs["kinds"];
    assert_eq!((&kinds["delete"], &kinds["directories"]), (&1.into(), &1.into()), "{kinds}");
    assert_eq!((&kinds["create"], &kinds["close_write"]), (&21.into(), &20.into()), "{kinds}");
    assert_eq!(fs["top_dirs"][0]["path_b64"], "ZP8=", "{fs}");
    assert_eq!(fs["top_processes"][0]["pid"], std::process::id(), "{fs}");
    assert!(fs["top_processes"][0]["name"].as_str().is_some_and(|name| !name.is_empty()));
    assert!(fs["commit_latency"]["p50_us"].as_u64() > Some(0), "{fs}");
    assert!(fs["rates"]["per_second_1m"].as_f64() > Some(0.1), "{fs}");
    assert!(fs["buffer"]["bytes_peak"].as_u64() > Some(500), "{fs}");
    assert!(fs["queue"]["events"].is_u64() && fs["cached_dirs"].as_u64() > Some(0), "{fs}");
    assert!(stats["status"]["rss_bytes"].as_u64() > Some(1_000_000) && stats["uptime_ns"].as_i64() > Some(0));
    let leg = &stats["journal"]["legs"][0];
    assert!(leg["known"] == false && leg["unsynced_since_ns"].is_null(), "{leg}");
    assert_eq!(leg["roots"][0]["name"], "a");
    assert_eq!(stats["journal"]["gaps"][0]["cause"], "start", "{}", stats["journal"]["gaps"]);
    let human = text(&world.ok(&["stats"]));
    assert!(human.contains("a: d\\xff") && human.contains("a: gap start is open"), "{human}");
    assert_eq!(world.stop(), 0);
}

#[test]
fn a_tracker_that_stands_still_is_told_to_hang_with_all_it_knew() {
    let (mut world, _) = World::with_root();
    world.start();
    world.signal(Signal::STOP);
    let status = world.dir.path().join("run/tracker.json");
    let mut told: Value = serde_json::from_slice(&fs::read(&status).unwrap()).unwrap();
    told["probed_boot_ns"] = 1.into();
    fs::write(&status, told.to_string()).unwrap();
    let out = world.run(&["stats"]);
    let said = text(&out.stdout);
    assert!(said.starts_with("tracker   hangs, pid"), "{said}");
    assert!(said.contains("ROOT") && said.contains("entries"), "{said}");
    world.kill();
}

#[test]
fn a_journal_that_does_not_answer_keeps_nothing_else_from_being_told() {
    let (mut world, _) = World::with_root();
    world.start();
    world.signal(Signal::STOP);
    let journal = world.dir.path().join("state/journal.db");
    fs::rename(&journal, journal.with_extension("away")).unwrap();
    // Opening it waits for somebody who writes, as opening a file on a dead disk does.
    assert!(Command::new("mkfifo").arg(&journal).status().unwrap().success());
    let out = world.run(&["stats", "--json"]);
    assert_eq!(out.status.code(), Some(75));
    assert!(text(&out.stderr).contains("does not answer"), "{}", text(&out.stderr));
    let stats: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(stats["tracker"] == "running" && stats["journal"].is_null(), "{stats}");
    world.kill();
}

#[test]
fn a_journal_that_is_none_is_named_after_what_the_tracker_itself_tells() {
    let (mut world, _) = World::with_root();
    world.start();
    assert_eq!(world.stop(), 0);
    fs::write(world.dir.path().join("state/journal.db"), "my diary\n".repeat(200)).unwrap();
    let out = world.run(&["stats"]);
    assert_eq!(out.status.code(), Some(78), "{}", text(&out.stderr));
    assert!(text(&out.stdout).starts_with("tracker   not running"));
    assert!(text(&out.stderr).contains("journal.db"), "{}", text(&out.stderr));
}

#[test]
fn asking_changes_nothing_in_the_journal() {
    let (mut world, _) = World::with_root();
    world.start();
    assert_eq!(world.stop(), 0);
    let journal = world.dir.path().join("state/journal.db");
    let before = (fs::read(&journal).unwrap(), fs::metadata(&journal).unwrap().modified().unwrap());
    for args in [&["stats"][..], &["stats", "--json"], &["pending"], &["pending", "-0"]] {
        world.run(args);
    }
    assert_eq!((fs::read(&journal).unwrap(), fs::metadata(&journal).unwrap().modified().unwrap()), before);
}

#[test]
fn pending_has_what_a_leg_put_off_and_names_that_are_not_utf_8() {
    let (mut world, root) = World::with_root();
    let mirror = world.dir.path().join("mirror");
    let leg = format!(
        "[[leg]]\nname = \"test\"\nkind = \"dir\"\nroots = [\"a\"]\npath = \"{}\"\n",
        mirror.display()
    );
    world.configure(&world.dir.path().join("state"), &[("a", &root)], &leg);
    world.start();
    world.claim();
    let odd = root.join(OsStr::from_bytes(b"n\xff\tew"));
    fs::write(odd, "x").unwrap();
    world.flush();
    let mut journal = Journal::open(&world.dir.path().join("state/journal.db")).unwrap();
    let row = NewDeferred {
        root: journal.roots().unwrap()[0].id,
        path: RelPath::parse(b"bu\xfesy").unwrap(),
        scope: Scope::SelfOnly,
        handle: None,
        seq: 1,
        mask: Mask::MODIFY,
        since_ns: 7,
        attempts: 2,
        not_before_ns: 0,
        class: Class::Busy,
        last_error: "it changed".into(),
    };
    journal.defer("test", &[row]).unwrap();
    let records = world.ok(&["pending", "--leg", "test", "-0"]);
    let records: Vec<&[u8]> = records.split(|&b| b == 0).collect();
    assert!(records.contains(&&b"a\tself\tn\xff\tew"[..]) && records.contains(&&b"a\tself\tbu\xfesy"[..]));
    assert!(!world.has("self", b"bu\xfesy"), "it is owed by that leg only");
    let lines = text(&world.ok(&["pending", "--leg", "test", "--json"]));
    let rows: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let busy = rows.iter().find(|r| r["path_b64"] == "YnX+c3k=").unwrap();
    assert_eq!(
        (&busy["deferred"], &busy["cause"], &busy["attempts"]),
        (&true.into(), &"busy".into(), &2.into())
    );
    assert!(rows.iter().any(|r| r["path_b64"] == "bv8JZXc=" && r["deferred"] == false), "{lines}");
    assert!(rows.iter().all(|r| r["path"].is_null() != r["path_b64"].is_null()), "never both: {lines}");
    assert!(text(&world.ok(&["pending", "--leg", "test"])).contains("deferred: busy"));
    let help = text(&world.ok(&["pending", "--help"]));
    let told = |word: &str| help.lines().any(|l| l.trim_start().split(' ').next() == Some(word));
    for word in rows.iter().flat_map(|r| r.as_object().unwrap().keys()) {
        assert!(told(word), "{word}: {help}");
    }
    let scopes = [Scope::SelfOnly, Scope::Subtree, Scope::Names, Scope::Handle, Scope::Full];
    assert!(scopes.iter().all(|scope| told(&scope.to_string())) && told("handle"), "{help}");
}

#[test]
fn on_a_pipe_the_watch_tells_block_after_block_until_nobody_reads() {
    let (mut world, _) = World::with_root();
    world.start();
    let mut child = world.command(&["stats", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["tracker"], "running");
    }
    drop(lines);
    assert!(child.wait().unwrap().success());
}

/// A program at a terminal of its own.
struct AtTerminal {
    master: File,
    slave: File,
    before: Termios,
    child: Child,
    seen: Vec<u8>,
}

impl AtTerminal {
    fn start(mut command: Command) -> AtTerminal {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(OsStr::from_bytes(name.as_bytes())).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let before = tcgetattr(&slave).unwrap();
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        AtTerminal { master: File::from(master), slave, before, child, seen: Vec::new() }
    }

    /// Reads until the terminal has shown this.
    fn wait_for(&mut self, needle: &str) {
        let mut bytes = [0; 4096];
        while !text(&self.seen).contains(needle) {
            let n = self.master.read(&mut bytes).unwrap();
            self.seen.extend_from_slice(&bytes[..n]);
        }
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.slave).unwrap().local_modes
    }

    /// The screen and its modes are as before, and it ended well.
    fn ended(mut self) {
        self.wait_for("\x1b[?1049l");
        assert!(self.child.wait().unwrap().success());
        assert_eq!(self.modes(), self.before.local_modes);
    }
}

#[test]
fn on_a_terminal_the_watch_ends_with_q_with_ctrl_c_and_with_a_signal_and_leaves_it_as_it_was() {
    let (mut world, _) = World::with_root();
    world.start();
    let end_by_key = |key: &'static [u8]| move |t: &mut AtTerminal| t.master.write_all(key).unwrap();
    let by_signal = |t: &mut AtTerminal| {
        rustix::process::kill_process(Pid::from_child(&t.child), Signal::TERM).unwrap();
    };
    let ends: [&dyn Fn(&mut AtTerminal); 3] = [&end_by_key(b"q"), &end_by_key(b"\x03"), &by_signal];
    for end in ends {
        let mut terminal = AtTerminal::start(world.command(&["stats", "--watch"]));
        terminal.wait_for("running, pid");
        assert!(
            !terminal.modes().contains(LocalModes::ECHO) && !terminal.modes().contains(LocalModes::ICANON)
        );
        end(&mut terminal);
        terminal.ended();
    }
    assert_eq!(world.stop(), 0);
}

#[test]
fn there_is_colour_on_a_terminal_unless_it_is_not_wanted() {
    let (world, _) = World::with_root();
    for (no_color, coloured) in [("", true), ("1", false)] {
        let mut command = world.command(&["stats"]);
        command.env("NO_COLOR", no_color);
        let mut terminal = AtTerminal::start(command);
        terminal.wait_for("not running");
        assert_eq!(text(&terminal.seen).contains("\x1b[31m"), coloured);
        assert_eq!(terminal.child.wait().unwrap().code(), Some(75));
    }
    assert!(!text(&world.run(&["stats"]).stdout).contains('\x1b'), "on a pipe never");
}

/// The sum of a number over all threads (proc_pid_status(5)).
fn of_threads(pid: u32, key: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| number(&task.unwrap().path().join("status"), key)).sum()
}

fn number(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {text}"));
    line.trim().parse().unwrap()
}

#[test]
fn an_idle_tracker_wakes_for_its_probes_only_and_writes_to_no_disk() {
    if !is_root() {
        return;
    }
    let (mut world, _disk) = alone();
    let run = world.dir.path().join("run");
    fs::create_dir(&run).unwrap();
    let memory = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&run).status().unwrap();
    assert!(memory.success());
    let _run = common::Bind(run.clone());
    // A probe at half the time that the watchdog gives.
    world.env.push(("WATCHDOG_USEC", "400000"));
    world.start();
    world.flush();
    let probed = || -> i64 {
        let status: Value = serde_json::from_slice(&fs::read(run.join("tracker.json")).unwrap()).unwrap();
        status["probed_boot_ns"].as_i64().unwrap()
    };
    let pid = world.pid();
    let probe = || {
        let before = probed();
        while probed() == before {
            std::thread::yield_now();
        }
    };
    probe();
    let io = |key| number(Path::new(&format!("/proc/{pid}/io")), key);
    let measure = || (of_threads(pid, "voluntary_ctxt_switches:"), io("write_bytes:"), io("wchar:"));
    let before = measure();
    (0..5).for_each(|_| probe());
    let after = measure();
    let wakes = after.0 - before.0;
    assert!((5..=60).contains(&wakes), "{wakes} wake-ups for five probes");
    assert_eq!(after.1, before.1, "bytes written to a disk");
    assert!(after.2 > before.2, "the status is written, in memory");
    assert_eq!(world.stop(), 0);
}

#[test]
fn the_tracker_runs_since_before_its_first_work() {
    let (mut world, _) = World::with_root();
    world.start();
    let told = stats_with(&world, |s| s["status"].is_object())["status"]["started_ns"].as_i64().unwrap();
    let journal = rusqlite::Connection::open(world.dir.path().join("state/journal.db")).unwrap();
    let session: i64 = journal.query_row("SELECT started_ns FROM session", [], |r| r.get(0)).unwrap();
    assert!(told <= session, "CPU time of the start is set against the time of the start: {told}, {session}");
}
