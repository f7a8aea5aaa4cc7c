//! `tracker flush`.

use shared::config::Config;
use shared::control::{self, Request};
use shared::exit::Exit;
use shared::limits;

use super::{CommandError, print};

pub fn run(config: &Config, verbose: bool) -> Result<Exit, CommandError> {
    let head = control::ask(&config.control_path(), &Request::Flush, limits::FLUSH_TIMEOUT)
        .map_err(CommandError::Control)?;
    if verbose {
        print(format!("{head}\n").as_bytes())?;
    }
    Ok(Exit::Ok)
}
