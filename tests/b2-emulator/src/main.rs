//! The emulator as a program: prints where it listens as one line of JSON and serves until SIGTERM.
use std::net::SocketAddr;
use std::process::ExitCode;

use b2_emulator::Emulator;
use b2_emulator::options::{Limits, Options};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Backblaze B2's native API in memory")]
struct Arguments {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A bucket to begin with; may be repeated
    #[arg(long)]
    bucket: Vec<String>,
    #[arg(long, default_value_t = Options::default().key_id)]
    key_id: String,
    #[arg(long, default_value_t = Options::default().key)]
    key: String,
    #[arg(long, default_value_t = Limits::default().recommended_part_size)]
    recommended_part_size: u64,
    #[arg(long, default_value_t = Limits::default().absolute_minimum_part_size)]
    minimum_part_size: u64,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "b2-emulator: {error}{}",
                error.source().map_or(String::new(), |why| format!(": {why}"))
            );
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let limits = Limits {
        recommended_part_size: arguments.recommended_part_size,
        absolute_minimum_part_size: arguments.minimum_part_size,
        ..Limits::default()
    };
    let (key_id, key) = (arguments.key_id, arguments.key);
    let options = Options { listen: arguments.listen, key_id, key, limits, ..Options::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        // Listening for the signal first: who reads the line below may send it at once.
        let mut terminate = signal(SignalKind::terminate())?;
        let emulator = Emulator::start(options)?;
        for bucket in &arguments.bucket {
            emulator.create_bucket(bucket)?;
        }
        println!("{}", serde_json::json!({ "endpoint": emulator.endpoint() }));
        terminate.recv().await;
        Ok(())
    })
}
