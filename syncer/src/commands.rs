//! The commands: each opens what it needs, runs, and says how it ended.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use shared::config::{Config, ConfigError, Leg, LegKind};
use shared::exit::{Exit, gravest};
use shared::files::{Durability, replace};

use crate::args::{Args, Command, ConfigCommand};
use crate::credentials::Environment;
use crate::live::{self, LiveError};
use crate::report::{Report, Trouble, bytes};
pub use crate::run::Wish;
use crate::run::{Progress, Rest, Run};
use crate::{dry, status, watch};

/// What every command has.
pub struct Context {
    pub config: Config,
    pub environment: Environment,
    pub json: bool,
    pub quiet: bool,
    /// Set by SIGTERM and SIGINT.
    pub stop: Arc<AtomicBool>,
}

/// Runs the command. Errors of the configuration are 78.
pub async fn execute(args: Args, environment: Environment, stop: Arc<AtomicBool>) -> anyhow::Result<Exit> {
    let config = match Config::load(&args.common.config) {
        Ok(config) => config,
        Err(e) => return Ok(complain(&e)),
    };
    let context = Context { config, environment, json: args.common.json, quiet: args.common.quiet, stop };
    match args.command {
        Command::Run { legs, dry_run, full, allow_deletes } => {
            run(&context, &legs, dry_run, Wish { full, allow_deletes }).await
        }
        Command::Watch { legs } => {
            let Some(legs) = select(&context.config, &legs) else { return Ok(Exit::Usage) };
            Ok(watch::watch(&context, &legs).await)
        }
        Command::Status { legs } => {
            let Some(legs) = select(&context.config, &legs) else { return Ok(Exit::Usage) };
            status::show(&context, &legs)
        }
        Command::Config { command } => config_command(&context, command),
    }
}

fn complain(e: &ConfigError) -> Exit {
    eprintln!("syncer: {e}");
    Exit::Config
}

/// The legs named, or all; `None` after a message if one does not exist.
fn select<'a>(config: &'a Config, names: &[String]) -> Option<Vec<&'a Leg>> {
    if config.legs.is_empty() {
        eprintln!("syncer: {} has no [[leg]]: nothing to sync to", config.file.display());
        return None;
    }
    if names.is_empty() {
        return Some(config.legs.iter().collect());
    }
    let mut legs = Vec::new();
    for name in names {
        let Some(leg) = config.leg(name) else {
            let known: Vec<_> = config.legs.iter().map(|l| l.name.as_str()).collect();
            eprintln!(
                "syncer: there is no leg `{name}` in {} (there is {})",
                config.file.display(),
                known.join(", ")
            );
            return None;
        };
        legs.push(leg);
    }
    Some(legs)
}

async fn run(context: &Context, names: &[String], dry_run: bool, wish: Wish) -> anyhow::Result<Exit> {
    let Some(legs) = select(&context.config, names) else { return Ok(Exit::Usage) };
    let mut exits = Vec::new();
    for leg in legs {
        let report =
            if dry_run { dry::run(context, leg, wish).await } else { run_leg(context, leg, wish).await };
        print(context, &report)?;
        exits.push(report.exit);
        if context.stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(gravest(exits))
}

/// One run of one leg, with its lock, its progress bar and its marker. What keeps it from starting is a report too.
async fn run_leg(context: &Context, leg: &Leg, wish: Wish) -> Report {
    let report = run_leg_with(context, leg, wish, None).await;
    write_marker(context, leg, &report);
    report
}

/// The same, with what it does between its rounds if it is to go on.
pub async fn run_leg_with(
    context: &Context,
    leg: &Leg,
    wish: Wish,
    rest: Option<Box<dyn Rest + '_>>,
) -> Report {
    let progress = Arc::new(Progress::default());
    let opened = live::lock_leg(&context.config, leg).and_then(|lock| {
        let (config, stop) = (&context.config, context.stop.clone());
        let catalog = live::catalog_path(config, leg);
        Ok((lock, live::parts(config, leg, &context.environment, progress.clone(), stop, &catalog)?))
    });
    let (_lock, mut parts) = match opened {
        Ok(opened) => opened,
        Err(e) => return refused(leg, &e),
    };
    parts.wish = wish;
    let bar = if rest.is_none() { show_progress(context, leg, progress) } else { None };
    let report = Run::new(parts, rest).run().await;
    if let Some(bar) = bar {
        bar.abort();
    }
    report
}

/// The report of a run that could not begin.
pub fn refused(leg: &Leg, e: &LiveError) -> Report {
    let mut report =
        Report::begin(leg.name.as_str(), shared::clock::Clock::wall_ns(&shared::clock::SystemClock));
    report.exit = e.exit();
    report.outcomes = vec![e.exit()];
    report.troubles.push(Trouble::of_run(e.to_string()));
    report
}

/// Another run's marker is left alone by one that found it under way.
pub fn write_marker(context: &Context, leg: &Leg, report: &Report) {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let roots = leg.roots.iter().filter_map(|r| context.config.root(&r.root));
    let source = roots.map(|r| r.path.display().to_string()).collect::<Vec<_>>().join(" ");
    let marker = report.marker(&host, &source, &destination(leg));
    let path = live::marker_path(&context.config, leg);
    if report.run == 0 && report.exit == Exit::TryLater {
        return;
    }
    if let Err(e) = replace(&path, format!("{marker:#}\n").as_bytes(), Durability::Synced) {
        tracing::error!("{e}");
    }
}

pub fn destination(leg: &Leg) -> String {
    match &leg.kind {
        LegKind::B2(b2) if b2.prefix.is_root() => format!("b2:{}", b2.bucket),
        LegKind::B2(b2) => format!("b2:{}/{}", b2.bucket, b2.prefix),
        LegKind::Dir(dir) => dir.path.display().to_string(),
    }
}

/// A line on the terminal while the run goes on; nothing anywhere else.
fn show_progress(
    context: &Context,
    leg: &Leg,
    progress: Arc<Progress>,
) -> Option<tokio::task::JoinHandle<()>> {
    if context.quiet || context.json || !std::io::stderr().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template("{prefix}: {spinner} {msg} [{elapsed}]").ok()?;
    let bar = ProgressBar::new_spinner().with_style(style).with_prefix(leg.name.to_string());
    Some(tokio::spawn(async move {
        let clear = ClearOnDrop(bar);
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (files, sent) = (get(&progress.files), get(&progress.bytes));
            let rate = sent as f64 / clear.0.elapsed().as_secs_f64().max(0.1);
            clear.0.set_message(format!(
                "{files} files, {} sent ({}/s), {} removed",
                bytes(sent),
                bytes(rate as u64),
                get(&progress.removed)
            ));
            clear.0.tick();
        }
    }))
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The report on standard output: one JSON object, or text. Success is silent with `--quiet`.
pub fn print(context: &Context, report: &Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if context.json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
    } else if report.exit != Exit::Ok {
        eprint!("{}", report.text());
    } else if !context.quiet {
        write!(out, "{}", report.text())?;
    }
    Ok(())
}

fn config_command(context: &Context, command: ConfigCommand) -> anyhow::Result<Exit> {
    let config = &context.config;
    match command {
        ConfigCommand::Check => {
            if !context.quiet {
                let (roots, legs) = (config.roots.len(), config.legs.len());
                println!("{}: good, {roots} roots and {legs} legs", config.file.display());
            }
        }
        ConfigCommand::Show => {
            println!("state_dir = {}", config.state_dir.display());
            println!("runtime_dir = {}", config.runtime_dir.display());
            for root in &config.roots {
                let identity =
                    root.identity.as_ref().map_or("not bound to a disk".into(), ToString::to_string);
                println!("root {}: {} ({identity})", root.name, root.path.display());
            }
            for leg in &config.legs {
                println!(
                    "leg {}: {} to {}, {} transfers",
                    leg.name,
                    roots_of(leg),
                    destination(leg),
                    leg.transfers
                );
            }
        }
    }
    Ok(Exit::Ok)
}

fn roots_of(leg: &Leg) -> String {
    let name = |r: &shared::config::LegRoot| match r.prefix.is_root() {
        true => r.root.to_string(),
        false => format!("{} under {}", r.root, r.prefix),
    };
    leg.roots.iter().map(name).collect::<Vec<_>>().join(", ")
}
