//! The tracker killed over and over under a storm on two filesystems, at random moments and at each of its kill points,
//! while one leg reads what it has at any time; and the two checks that nothing was lost: every event is covered by a
//! row, and the mirrors made from the rows are the trees.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shared::clock::{Clock as _, SystemClock};
use shared::entry::{Mask, Scope};
use shared::exit::Exit;
use shared::journal::Journal;
use shared::limits;
use tempfile::TempDir;

use crate::compare::{Depth, differences, facts};
use crate::mount::LoopFs;
use crate::programs::{call, killable, program, text};
use crate::storm::{Gone, Item, Storm, TOKEN_EVENTS};
use crate::supervisor::Supervisor;

/// The places at which the tracker kills itself, with how often it passes them before.
pub const POINTS: [(&str, u32); 7] = [
    ("marked", 3),
    ("read", 2),
    ("published", 2),
    ("translating", 40),
    ("transaction", 1),
    ("committed", 1),
    ("recovering", 4),
];

/// One tree on each.
const FILESYSTEMS: [&str; 2] = ["ext4", "btrfs"];
/// The leg that runs while nothing changes, and the one that runs at any time.
const LEGS: [&str; 2] = ["quiet", "restless"];
/// Lines of the history that tell of more than single paths.
const RESCANS: [&str; 3] = ["gap", "full-pass", "collapse"];
/// Processes of the storm.
const PROCESSES: u64 = 4;
/// Events that may be queued before the tracker must have read them: well below the kernel's default bound, whose
/// overflow would be a gap.
const QUEUE_EVENTS: usize = 10_000;
/// Tokens for each process and kill.
const TOKENS: usize = 12;
const CYCLE_EVENTS: usize = TOKENS * TOKEN_EVENTS * PROCESSES as usize;
/// Kills between two looks at everything.
const LOOK_INTERVAL: u64 = 25;
/// Longest random life of the tracker.
const LIFE_MAX_US: u64 = 80_000;
/// How long it may take to reach a kill point.
const POINT_PATIENCE: Duration = Duration::from_secs(30);

pub struct Plan {
    pub kills: u64,
    pub seed: u64,
    /// A part of the tracker that is switched off, and the only point to kill it at: then changes must be lost.
    pub control: Option<(&'static str, &'static str)>,
    /// The program that makes the storm.
    pub worker: PathBuf,
}

/// What a campaign found.
#[derive(Debug, Default)]
pub struct Figures {
    pub kills: u64,
    pub at_points: u64,
    pub items: u64,
    /// Reads that were cut short, and how many of them had left something.
    pub torn: u64,
    pub torn_with_data: u64,
    pub committed_not_reset: u64,
    pub recovered_events: u64,
    /// Items without a row that covers them.
    pub missing: Vec<String>,
    /// Gap rows after the first start.
    pub gaps: Vec<String>,
    /// Runs of the restless leg.
    pub runs: u64,
    /// Differences of the final mirrors.
    pub different: Vec<String>,
    pub seconds: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills ({} at kill points) in {:.0} s, {} items, {} reads cut short ({} with data), {} commits without reset, {} events recovered, {} runs meanwhile; {} missing, {} rescans, {} differences of the mirrors",
            self.kills,
            self.at_points,
            self.seconds,
            self.items,
            self.torn,
            self.torn_with_data,
            self.committed_not_reset,
            self.recovered_events,
            self.runs,
            self.missing.len(),
            self.gaps.len(),
            self.different.len()
        )
    }
}

struct Campaign {
    plan: Plan,
    random: StdRng,
    dir: TempDir,
    trees: Vec<PathBuf>,
    tracker: Supervisor,
    storm: Storm,
    /// A run of the restless leg.
    running: Option<Child>,
    figures: Figures,
    /// Events that the tracker may not have read yet.
    unread: usize,
    turn: usize,
    rows: HashMap<String, Mask>,
    removed: HashSet<String>,
    seen_seq: u64,
    /// When whatever the first start brings was done.
    began_ns: i64,
    gone: HashMap<u64, Gone>,
    _filesystems: Vec<LoopFs>,
}

/// Needs root.
pub fn run(plan: Plan) -> Figures {
    println!("seed {}", plan.seed);
    // Built before the time counts.
    killable();
    program("syncer");
    let began = Instant::now();
    let mut campaign = Campaign::new(plan);
    campaign.first_start();
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped)).unwrap();
    }
    while campaign.figures.kills < campaign.plan.kills && !stopped.load(Ordering::Relaxed) {
        campaign.cycle();
        if campaign.figures.kills.is_multiple_of(LOOK_INTERVAL) {
            campaign.look();
        }
    }
    campaign.look();
    campaign.last_runs();
    campaign.read_history();
    campaign.figures.different = campaign.mirror_differences();
    campaign.count_recoveries();
    campaign.figures.seconds = began.elapsed().as_secs_f64();
    std::mem::take(&mut campaign.figures)
}

impl Campaign {
    fn new(plan: Plan) -> Campaign {
        let dir = tempfile::tempdir().unwrap();
        let filesystems = FILESYSTEMS.map(|kind| LoopFs::new(kind).unwrap());
        let trees = filesystems.each_ref().map(|fs| fs.path().join("tree"));
        let mirrors = LEGS.map(|leg| dir.path().join(leg));
        for dir in trees.iter().chain(&mirrors) {
            fs::create_dir(dir).unwrap();
        }
        let config = dir.path().join("longshore.toml");
        fs::write(&config, configuration(dir.path(), &trees)).unwrap();
        let tops = trees.each_ref().map(PathBuf::as_path);
        Campaign {
            random: StdRng::seed_from_u64(plan.seed),
            tracker: Supervisor::new(&killable(), &config),
            storm: Storm::new(&plan.worker, &tops, dir.path(), PROCESSES, plan.seed),
            plan,
            dir,
            trees: trees.to_vec(),
            running: None,
            figures: Figures::default(),
            unread: 0,
            turn: 0,
            rows: HashMap::new(),
            removed: HashSet::new(),
            seen_seq: 0,
            began_ns: 0,
            gone: HashMap::new(),
            _filesystems: filesystems.into(),
        }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("longshore.toml")
    }

    fn first_start(&mut self) {
        if let Some((part, _)) = self.plan.control {
            self.tracker.env = vec![("LONGSHORE_WITHOUT", part.to_owned())];
        }
        self.tracker.start();
        // The gap of the first start is worked off before there is anything that it could make up for.
        LEGS.iter().for_each(|leg| self.sync(leg));
        self.seen_seq = self.journal().head_and_floor().unwrap().0;
        self.began_ns = SystemClock.wall_ns();
        self.tracker.kill();
    }

    fn sync(&self, leg: &str) {
        let output = call("syncer", &self.config(), &["run", "--leg", leg]);
        assert_eq!(output.status.code(), Some(0), "{}\n{}", text(&output), self.tracker.log());
    }

    /// Claims and acks at any moment of the tracker's life. What it saw of a file that went on changing is of no
    /// interest: later entries or what it owes must make up for it.
    fn restless_run(&mut self) {
        if let Some(mut child) = self.running.take_if(|child| child.try_wait().unwrap().is_some()) {
            self.check_run(&mut child);
        }
        if self.running.is_none() {
            let said = File::create(self.said()).unwrap();
            let mut command = Command::new(program("syncer"));
            command.arg("--config").arg(self.config()).args(["run", "--leg", LEGS[1]]);
            command.stdout(said.try_clone().unwrap()).stderr(said);
            self.running = Some(command.spawn().unwrap());
        }
    }

    /// What the restless leg says.
    fn said(&self) -> PathBuf {
        self.dir.path().join("restless.log")
    }

    fn check_run(&mut self, child: &mut Child) {
        let code = child.wait().unwrap().code();
        let said = fs::read_to_string(self.said()).unwrap();
        // Without a tracker it deletes nothing.
        let usual = [Exit::Ok, Exit::Partial, Exit::Unproven, Exit::TryLater]
            .map(|exit| Some(i32::from(exit.code())));
        assert!(usual.contains(&code), "a run ended with {code:?}\n{}\n{}", said, self.tracker.log());
        self.figures.runs += 1;
        // What it owes of more than single paths would make up for what was lost.
        let owed = self.journal().owed_gaps(LEGS[1]).unwrap();
        self.figures.gaps.extend(owed.iter().map(|owed| format!("the restless leg owes {owed:?}")));
    }

    /// Of the restless leg, with nothing in its way.
    fn last_runs(&mut self) {
        if let Some(mut child) = self.running.take() {
            self.check_run(&mut child);
        }
        self.tracker.start();
        self.sync(LEGS[1]);
        self.tracker.kill();
    }

    fn journal(&self) -> Journal {
        Journal::open(&self.dir.path().join("state/journal.db")).unwrap()
    }

    /// One life of the tracker.
    fn cycle(&mut self) {
        self.restless_run();
        if self.unread + CYCLE_EVENTS > QUEUE_EVENTS {
            self.tracker.start();
            self.flush();
        } else {
            let point = self.next_point();
            self.with_kill(point);
            self.tracker.spawn();
            self.with_kill(None);
            if let Some((name, _)) = point {
                self.storm.go_on(TOKENS);
                self.unread += CYCLE_EVENTS;
                self.die_at(name);
                return;
            }
        }
        self.storm.go_on(TOKENS);
        self.unread += CYCLE_EVENTS;
        // The moment is what is random here.
        std::thread::sleep(Duration::from_micros(self.random.random_range(0..LIFE_MAX_US)));
        self.tracker.kill();
        self.figures.kills += 1;
    }

    /// Each of the points in its turn, and a random moment between two of them.
    fn next_point(&mut self) -> Option<(&'static str, u32)> {
        if let Some((_, only)) = self.plan.control {
            return POINTS.iter().find(|(name, _)| *name == only).copied();
        }
        self.turn += 1;
        if self.turn.is_multiple_of(2) {
            return None;
        }
        let (name, max) = POINTS[self.turn / 2 % POINTS.len()];
        Some((name, self.random.random_range(1..=max)))
    }

    fn with_kill(&mut self, point: Option<(&str, u32)>) {
        self.tracker.env.retain(|(key, _)| *key != "LONGSHORE_KILL");
        if let Some((name, times)) = point {
            self.tracker.env.push(("LONGSHORE_KILL", format!("{name}:{times}")));
        }
    }

    /// Waits until the tracker has killed itself. A point inside the recovery may not be passed often enough.
    fn die_at(&mut self, name: &str) {
        let began = Instant::now();
        let ready = self.tracker.is_ready();
        if ready && name == "recovering" {
            self.tracker.kill();
        } else {
            while !self.tracker.has_ended() {
                assert!(began.elapsed() < POINT_PATIENCE, "{name} is never reached:\n{}", self.tracker.log());
                if self.storm.is_resting() {
                    self.storm.go_on(1);
                    self.unread += TOKEN_EVENTS * PROCESSES as usize;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            self.tracker.wait();
            self.figures.at_points += 1;
        }
        self.figures.kills += 1;
    }

    fn flush(&mut self) {
        self.tracker.flush();
        self.unread = 0;
    }

    /// The storm rests, everything is committed: all that was done must be covered, and a leg takes it over.
    fn look(&mut self) {
        self.storm.rest();
        self.tracker.start();
        self.flush();
        self.read_rows();
        let (items, gone) = self.storm.take_log();
        self.gone.extend(gone);
        self.figures.items += items.len() as u64;
        let missing = items.iter().filter(|item| !self.is_covered(item)).map(|item| format!("{item:?}"));
        let missing: Vec<String> = missing.collect();
        self.figures.missing.extend(missing);
        self.sync(LEGS[0]);
        // A leg has claimed them: they cover nothing that comes.
        self.rows.clear();
        self.removed.clear();
        self.tracker.kill();
        self.figures.kills += 1;
    }

    fn read_rows(&mut self) {
        let journal = self.journal();
        loop {
            let rows = journal.read(self.seen_seq, i64::MAX as u64, 50_000).unwrap();
            let Some(last) = rows.last() else { return };
            self.seen_seq = last.seq;
            for row in rows {
                let path = String::from_utf8_lossy(row.path.as_bytes()).into_owned();
                if row.cause.is_gap() {
                    self.figures.gaps.push(format!("{} {path:?}", row.cause));
                    continue;
                }
                let name = path.rsplit('/').next().unwrap_or_default().to_owned();
                if row.scope == Scope::Subtree && row.mask.contains(Mask::DELETE) {
                    self.removed.insert(name.clone());
                }
                *self.rows.entry(name).or_default() |= row.mask;
            }
        }
    }

    /// Gaps that left no row of their own, because the filesystem told what changed, and passes of a leg over all.
    fn read_history(&mut self) {
        let rows = self.journal().history(limits::HISTORY_ROWS_MAX as usize).unwrap().into_iter();
        let rescans = rows.filter(|row| row.at_ns > self.began_ns && RESCANS.contains(&row.kind.as_str()));
        self.figures.gaps.extend(rescans.map(|row| format!("{}: {}", row.kind, row.text)));
    }

    /// A row of its own name with all its kinds; or its directory is gone, and a row says so.
    fn is_covered(&self, item: &Item) -> bool {
        self.rows.get(&item.name).is_some_and(|mask| mask.contains(item.mask)) || self.is_removed(item.dir)
    }

    fn is_removed(&self, dir: u64) -> bool {
        let Some(gone) = self.gone.get(&dir) else { return false };
        self.removed.contains(&gone.name) || self.is_removed(gone.parent)
    }

    fn mirror_differences(&self) -> Vec<String> {
        let mirrors = LEGS.iter().map(|leg| self.dir.path().join(leg));
        let pairs = mirrors.flat_map(|mirror| {
            self.trees.iter().zip(FILESYSTEMS).map(move |(tree, name)| (tree, mirror.join(name)))
        });
        pairs.flat_map(|(tree, mirror)| differences(&facts(tree), &facts(&mirror), Depth::All)).collect()
    }

    fn count_recoveries(&mut self) {
        let log = self.tracker.log();
        for line in log.lines().filter(|line| line.contains(": adopted, ")) {
            let number = |after: &str| {
                let rest = &line[line.find(after)? + after.len()..];
                rest.split(' ').next()?.parse::<u64>().ok()
            };
            self.figures.recovered_events += number("adopted, ").unwrap_or(0);
            if line.contains("cut short") {
                self.figures.torn += 1;
                self.figures.torn_with_data +=
                    u64::from(number("not committed, ").is_some_and(|bytes| bytes > 0));
            }
            self.figures.committed_not_reset += u64::from(line.contains("committed and not reset"));
        }
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn configuration(dir: &Path, trees: &[PathBuf]) -> String {
    let dir = dir.display();
    let mut text = format!("state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n");
    for (tree, name) in trees.iter().zip(FILESYSTEMS) {
        text += &format!("[[root]]\nname = \"{name}\"\npath = \"{}\"\n", tree.display());
    }
    let roots = FILESYSTEMS.map(|name| format!("{{ root = \"{name}\", prefix = \"{name}\" }}")).join(", ");
    for leg in LEGS {
        text += &format!(
            "[[leg]]\nname = \"{leg}\"\nkind = \"dir\"\nroots = [{roots}]\npath = \"{dir}/{leg}\"\n\
             guard = {{ deletes = 1000000000, delete_percent = 100.0 }}\n"
        );
    }
    text
}
