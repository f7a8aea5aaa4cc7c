//! Proves that the simulation can see: plants one mistake after the other into a copy of the sources, and simulates
//! until each is found.
#![allow(clippy::unwrap_used, reason = "a harness: a panic is how it fails")]

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use clap::Parser;
use simulation::oracle::Invariant;
use simulation::planted::{Copy, Plant, Told, catalogue, top};

/// Plants each mistake of the catalogue into a copy of the sources, and simulates until it is found. Fails if one is
/// not, or if the plain sources fail.
#[derive(Parser)]
struct Args {
    /// Only plants with this in their name
    #[arg(long)]
    only: Option<String>,
    /// Worlds to be tried at most for each plant
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Seconds that these worlds may take together; more is an end without a word
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Say which there are, and do nothing
    #[arg(long)]
    list: bool,
}

/// What came of the worlds.
enum Outcome {
    /// After so many worlds, by an invariant, with its message.
    Found(u64, Invariant, String),
    NotFound,
    /// It does not compile, or the simulation ended without telling.
    Failed(String),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let plants = catalogue().unwrap();
    let wanted = |plant: &&Plant| args.only.as_ref().is_none_or(|part| plant.name.contains(part.as_str()));
    let plants: Vec<&Plant> = plants.iter().filter(wanted).collect();
    if args.list {
        plants.iter().for_each(|plant| println!("{}", described(plant)));
        return ExitCode::SUCCESS;
    }
    let scratch = top().join("target/planted");
    let copy = Copy::make(&top(), &scratch.join("sources")).unwrap();
    let garden = Garden { copy, build: scratch.join("build"), args };
    // The other half of the proof: what is found later was not there before.
    if !matches!(garden.say("nothing is planted", "none", Garden::simulate), Outcome::NotFound) {
        eprintln!("The plain sources must pass the same worlds.");
        return ExitCode::from(2);
    }
    let missed: Vec<&str> =
        plants.iter().filter(|plant| !garden.finds(plant)).map(|p| p.name.as_str()).collect();
    println!("{} of {} found", plants.len() - missed.len(), plants.len());
    missed.iter().for_each(|name| println!("not found: {name}"));
    ExitCode::from(u8::from(!missed.is_empty()))
}

fn described(plant: &Plant) -> String {
    let not_yet = plant.absent.as_ref().map(|feature| format!(" (not yet: {feature})")).unwrap_or_default();
    format!("{}{not_yet}\n    {}\n    {}", plant.name, plant.why, plant.invariant)
}

/// The copy of the sources, and where it is built.
struct Garden {
    copy: Copy,
    build: PathBuf,
    args: Args,
}

impl Garden {
    /// True as well for what cannot be planted yet.
    fn finds(&self, plant: &Plant) -> bool {
        if let Some(feature) = &plant.absent {
            println!("{} | not yet: {feature}", plant.name);
            return true;
        }
        let before = self.copy.plant(plant).unwrap();
        let outcome = self.say(&plant.name, &plant.invariant.to_string(), Garden::simulate);
        self.copy.restore(&before).unwrap();
        matches!(outcome, Outcome::Found(..))
    }

    /// One line of the table.
    fn say(&self, name: &str, expected: &str, look: impl Fn(&Garden) -> Outcome) -> Outcome {
        let begun = Instant::now();
        print!("{name} | {expected} | ");
        std::io::stdout().flush().unwrap();
        let outcome = look(self);
        let seconds = begun.elapsed().as_secs();
        match &outcome {
            Outcome::Found(seeds, by, message) => println!("{by} | {seeds} seeds | {seconds} s | {message}"),
            Outcome::NotFound => println!("nothing | {} seeds | {seconds} s", self.args.seeds),
            Outcome::Failed(why) => println!("no answer | {seconds} s\n{why}"),
        }
        outcome
    }

    /// Builds what is in the copy, and lives through its worlds.
    fn simulate(&self) -> Outcome {
        let built = Command::new("cargo")
            .args([
                "build",
                "--quiet",
                "--locked",
                "--profile",
                "planted",
                "-p",
                "simulation",
                "--bin",
                "simulate",
            ])
            .current_dir(self.copy.top())
            .env("CARGO_TARGET_DIR", &self.build)
            // A mistake may leave behind what nobody uses.
            .env("RUSTFLAGS", "--cap-lints=allow")
            .output()
            .unwrap();
        if !built.status.success() {
            return Outcome::Failed(String::from_utf8_lossy(&built.stderr).into_owned());
        }
        let told = match self.run(&self.build.join("planted/simulate")) {
            Ok(output) => Told::parse(&output).ok_or(output),
            Err(why) => Err(why),
        };
        match told {
            Err(why) => Outcome::Failed(why),
            Ok(told) => match told.failures.into_iter().next() {
                Some(first) => Outcome::Found(told.worlds, first.invariant, first.message),
                None => Outcome::NotFound,
            },
        }
    }

    /// What the simulation says. A mistake may keep it from ending: then it is killed.
    fn run(&self, program: &Path) -> Result<String, String> {
        let seeds = format!("0..{}", self.args.seeds);
        let mut child = Command::new(program)
            .args(["--seeds", &seeds, "--stop-at-first", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (done, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = stdout.read_to_end(&mut text).map(|_| text);
            // Nobody listens once the time is over.
            let _ = done.send(read);
        });
        let read = output.recv_timeout(Duration::from_secs(self.args.seconds));
        if matches!(read, Err(RecvTimeoutError::Timeout)) {
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        match read {
            Ok(Ok(text)) => Ok(String::from_utf8_lossy(&text).into_owned()),
            _ => Err(format!("it did not end within {} s: {status}", self.args.seconds)),
        }
    }
}
