//! The tree of the comparison: many small files in directories of a hundred, and five of 20 MB.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

/// Random bytes and spread times from a fixed seed, so that each run of the bench has the same tree.
pub fn plant(top: &Path, dirs: usize) -> anyhow::Result<usize> {
    let mut random = StdRng::seed_from_u64(42);
    let mut files = 0;
    let mut content = vec![0; 20_000_000];
    let mut file = |path: &Path, size: usize, random: &mut StdRng| -> anyhow::Result<()> {
        random.fill_bytes(&mut content[..size]);
        fs::write(path, &content[..size])?;
        let age = Duration::from_millis(random.random_range(0..100_000_000_000));
        File::options()
            .write(true)
            .open(path)?
            .set_modified(SystemTime::now() - Duration::from_secs(3600) - age)?;
        Ok(())
    };
    for d in 0..dirs {
        let dir = top.join(format!("d{d:04}"));
        fs::create_dir(&dir)?;
        for f in 0..100 {
            let size = random.random_range(1_000..8_000);
            file(&dir.join(format!("f{f:03}.bin")), size, &mut random)?;
            files += 1;
        }
    }
    for b in 0..5 {
        file(&top.join(format!("big{b}.bin")), 20_000_000, &mut random)?;
        files += 1;
    }
    Ok(files)
}
