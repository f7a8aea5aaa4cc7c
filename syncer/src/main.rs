//! The `syncer` program: parses, runs, and ends with the promised exit code.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;
use shared::exit::Exit;
use syncer::args::Args;
use syncer::commands;
use syncer::credentials::{self, Environment};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Before any thread starts, so that no child inherits a key.
    let environment = Environment::take();
    let args = Args::parse();
    start_logging(&args);
    if let Err(e) = credentials::keep_from_dumps() {
        tracing::warn!("Core dumps stay possible: {e}");
    }
    match run(args, environment) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(e) => {
            eprintln!("syncer: {e:#}");
            ExitCode::from(Exit::Failed.code())
        }
    }
}

fn run(args: Args, environment: Environment) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let exit = runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        stop_on_signals(stop.clone())?;
        commands::execute(args, environment, stop).await
    });
    // A read that hangs on a dying disk must not keep the process.
    runtime.shutdown_background();
    exit
}

fn stop_on_signals(stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

fn start_logging(args: &Args) {
    let level = match (args.common.quiet, args.common.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("syncer={level},shared={level}")));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    log.with_ansi(std::io::stderr().is_terminal()).init();
}
