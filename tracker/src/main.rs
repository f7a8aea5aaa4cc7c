//! The `tracker` program: parses, runs one command, turns its outcome into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use shared::exit::Exit;
use tracker::args::Args;
use tracker::commands;

pub fn main() -> ExitCode {
    let args = Args::parse();
    commands::init_logging(&args.common);
    let exit = match commands::run(args) {
        Ok(exit) => exit,
        Err(error) => {
            let exit = error.downcast_ref::<commands::CommandError>().map_or(Exit::Failed, |e| e.exit());
            eprintln!("tracker: {}", paragraph(&error));
            exit
        }
    };
    ExitCode::from(exit.code())
}

/// The whole chain; what a message says already is not said twice.
fn paragraph(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
