//! `tracker config check` and `show`.

use std::fmt::Write as _;

use shared::config::{Config, LegKind};
use shared::exit::Exit;

use super::{CommandError, print};
use crate::args::ConfigCommand;

pub fn run(config: &Config, what: ConfigCommand) -> Result<Exit, CommandError> {
    if what == ConfigCommand::Show {
        print(show(config).as_bytes())?;
    }
    Ok(Exit::Ok)
}

fn show(config: &Config) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(out, "{name:<13} {value}").expect("writing to a string cannot fail");
    };
    line("file", config.file.display().to_string());
    line("state_dir", config.state_dir.display().to_string());
    line("runtime_dir", config.runtime_dir.display().to_string());
    line("max_entries", config.max_entries.to_string());
    for root in &config.roots {
        line("root", format!("{} at {}", root.name, root.path.display()));
        let identity = root.identity.as_ref().map_or("not configured".to_owned(), ToString::to_string);
        line("  identity", identity);
        for pattern in root.rules.text().lines() {
            line("  exclude", pattern.to_owned());
        }
    }
    for leg in &config.legs {
        let to = match &leg.kind {
            LegKind::B2(b2) => format!("b2 bucket {}", b2.bucket),
            LegKind::Dir(dir) => format!("directory {}", dir.path.display()),
        };
        line("leg", format!("{} to {to}", leg.name));
        for root in &leg.roots {
            line("  root", format!("{} under prefix \"{}\"", root.root, root.prefix.as_path().display()));
        }
    }
    out
}
