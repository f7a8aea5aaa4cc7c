//! First upload and runs without changes: Longshore, rclone and Backblaze's command line against one emulator in this
//! process, each into a bucket of its own.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use b2_emulator::Emulator;
use b2_emulator::options::Options;
use tests::programs::{Daemon, program};

use crate::measure::{Cost, run};
use crate::tree;

struct Bench {
    dir: tempfile::TempDir,
    source: PathBuf,
    b2: Emulator,
}

pub fn compare(dirs: usize, alone: bool) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    fs::create_dir(&source)?;
    let files = tree::plant(&source, dirs)?;
    let b2 = Emulator::start(Options::default()).context("the emulator")?;
    let bench = Bench { dir, source, b2 };
    println!("{files} files\n");
    println!("| run | wall s | client CPU s | CPU ms per file | peak RSS MB | calls | A/B/C |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    bench.longshore(files)?;
    if !alone {
        bench.b2_cli(files)?;
        bench.rclone(files)?;
    }
    let violations = bench.b2.violations();
    anyhow::ensure!(violations.is_empty(), "the emulator saw what B2 would refuse: {violations:?}");
    Ok(())
}

impl Bench {
    fn row(
        &self,
        name: &str,
        files: usize,
        command: &[&str],
        env: &[(String, String)],
    ) -> anyhow::Result<()> {
        self.b2.reset();
        let Cost { wall_s, cpu_s, rss_mb } = run(command, env)?;
        let counters = self.b2.counters();
        let calls: Vec<String> = counters
            .calls
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(call, n)| format!("{} {n}", call.name()))
            .collect();
        println!(
            "| {name} | {wall_s:.2} | {cpu_s:.2} | {:.3} | {rss_mb:.0} | {} | {}/{}/{} |",
            cpu_s * 1000.0 / files as f64,
            calls.join(", "),
            counters.class_a,
            counters.class_b,
            counters.class_c
        );
        Ok(())
    }

    fn longshore(&self, files: usize) -> anyhow::Result<()> {
        let config = configure(self.dir.path(), &self.source, &self.b2, "longshore")?;
        let daemon = Daemon::start(&config);
        let syncer = program("syncer").display().to_string();
        let config = config.display().to_string();
        let command = [syncer.as_str(), "--quiet", "--config", config.as_str(), "run"];
        self.row("syncer, first upload", files, &command, &[])?;
        self.row("syncer, no change", files, &command, &[])?;
        self.row("syncer, no change, again", files, &command, &[])?;
        drop(daemon);
        Ok(())
    }

    fn rclone(&self, files: usize) -> anyhow::Result<()> {
        let Some(rclone) = find("LONGSHORE_RCLONE", "rclone") else {
            println!("| rclone is not installed | | | | | | |");
            return Ok(());
        };
        self.b2.create_bucket("rclone").context("a bucket")?;
        let (id, key) = self.b2.key();
        let env = [
            ("RCLONE_CONFIG", "/dev/null".to_string()),
            ("RCLONE_CONFIG_B_TYPE", "b2".into()),
            ("RCLONE_CONFIG_B_ACCOUNT", id),
            ("RCLONE_CONFIG_B_KEY", key),
            ("RCLONE_CONFIG_B_ENDPOINT", self.b2.endpoint()),
        ]
        .map(|(k, v)| (k.to_string(), v));
        let (rclone, source) = (rclone.display().to_string(), self.source.display().to_string());
        let first = [rclone.as_str(), "sync", "--transfers", "32", source.as_str(), "b:rclone"];
        let fast = [rclone.as_str(), "sync", "--fast-list", source.as_str(), "b:rclone"];
        self.row("rclone sync --transfers 32, first upload", files, &first, &env)?;
        self.row("rclone sync, no change", files, &first, &env)?;
        self.row("rclone sync --fast-list, no change", files, &fast, &env)
    }

    fn b2_cli(&self, files: usize) -> anyhow::Result<()> {
        let Some(b2) = find("LONGSHORE_B2_CLI", "b2") else {
            println!("| the b2 command line is not installed | | | | | | |");
            return Ok(());
        };
        self.b2.create_bucket("cli-of-backblaze").context("a bucket")?;
        let (id, key) = self.b2.key();
        let account = self.dir.path().join("b2-account").display().to_string();
        let env = [
            ("B2_ENVIRONMENT", self.b2.endpoint()),
            ("B2_APPLICATION_KEY_ID", id),
            ("B2_APPLICATION_KEY", key),
            ("B2_ACCOUNT_INFO", account),
        ]
        .map(|(k, v)| (k.to_string(), v));
        let (b2, source) = (b2.display().to_string(), self.source.display().to_string());
        let command = [b2.as_str(), "sync", "--no-progress", source.as_str(), "b2://cli-of-backblaze"];
        self.row("b2 sync, first upload", files, &command, &env)?;
        self.row("b2 sync, no change", files, &command, &env)
    }
}

/// A configuration with one root and one leg, all below `base`.
pub fn configure(base: &Path, source: &Path, b2: &Emulator, bucket: &str) -> anyhow::Result<PathBuf> {
    b2.create_bucket(bucket).context("a bucket")?;
    let (id, key) = b2.key();
    for (name, secret) in [("key-id", id), ("key", key)] {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(base.join(name))?;
        std::io::Write::write_all(&mut file, secret.as_bytes())?;
    }
    let path = base.join("longshore.toml");
    let (base, source, endpoint) = (base.display(), source.display(), b2.endpoint());
    fs::write(
        &path,
        format!(
            "state_dir = \"{base}/state\"\nruntime_dir = \"{base}/run\"\n[[root]]\nname = \"space\"\npath = \"{source}\"\n\
                 [[leg]]\nname = \"b2\"\nkind = \"b2\"\nroots = [\"space\"]\nbucket = \"{bucket}\"\nendpoint = \"{endpoint}\"\n\
                 key_id_file = \"{base}/key-id\"\nkey_file = \"{base}/key\"\n"
        ),
    )?;
    Ok(path)
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path: &PathBuf| Path::exists(path))
}
