//! A world with a leg `b2` on a bucket of the emulator.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::time::{Duration, SystemTime};

use b2_emulator::Emulator;
use b2_emulator::calls::Call;
use b2_emulator::options::{Limits, Options};

use crate::world::World;

pub const BUCKET: &str = "mirror-test";

pub struct B2World {
    pub world: World,
    pub b2: Emulator,
}

/// A world with an emulator that has the bucket, and a leg `b2` on it.
pub fn b2_world() -> B2World {
    let limits =
        Limits { absolute_minimum_part_size: 100_000, recommended_part_size: 1_000_000, ..Limits::default() };
    let b2 = Emulator::start(Options { limits, ..Options::default() }).unwrap();
    b2.create_bucket(BUCKET).unwrap();
    let (id, key) = b2.key();
    B2World { world: leg_on(&b2, &id, &key, BUCKET), b2 }
}

/// The leg's table.
pub fn leg(b2: &Emulator, bucket: &str) -> String {
    let endpoint = b2.endpoint();
    format!(
        "[[leg]]\nname = \"b2\"\nkind = \"b2\"\nroots = [\"space\"]\nbucket = \"{bucket}\"\nendpoint = \"{endpoint}\"\n\
         key_id_file = \"{{dir}}/key-id\"\nkey_file = \"{{dir}}/key\"\n"
    )
}

/// A world with a leg on a bucket, and the key in files.
pub fn leg_on(b2: &Emulator, id: &str, key: &str, bucket: &str) -> World {
    let world = World::new(&leg(b2, bucket));
    for (name, secret) in [("key-id", id), ("key", key)] {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(world.path(name))
            .unwrap();
        std::io::Write::write_all(&mut file, secret.as_bytes()).unwrap();
    }
    world
}

/// Files with times far enough in the past to be settled.
pub fn fill(world: &World) {
    let top = world.source();
    fs::create_dir_all(top.join("a/b/empty")).unwrap();
    for (name, size) in [("a/file", 10), ("a/b/more", 5_000), ("zero", 0), ("big", 3_500_000)] {
        let content: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
        fs::write(top.join(name), content).unwrap();
        let past = SystemTime::UNIX_EPOCH + Duration::from_millis(1_600_000_000_123);
        fs::File::options().write(true).open(top.join(name)).unwrap().set_modified(past).unwrap();
    }
    symlink("a/file", top.join("link")).unwrap();
}

impl B2World {
    /// Every visible object is what the file of its name is, and every regular file has one.
    pub fn assert_mirrored(&self) {
        let mut names = Vec::new();
        for (path, fact) in crate::compare::facts(&self.world.source()) {
            let (Some(sha1), Ok(name)) = (fact.sha1, String::from_utf8(path)) else { continue };
            let files = self.b2.files(BUCKET);
            let object = files.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{name} is missing"));
            let bytes = object.content.to_bytes();
            assert_eq!(<[u8; 20]>::from(<sha1::Sha1 as sha1::Digest>::digest(&bytes)), sha1, "{name}");
            assert_eq!(
                object.info["src_last_modified_millis"],
                fact.mtime_ns.div_euclid(1_000_000).to_string(),
                "{name}"
            );
            names.push(name);
        }
        assert_eq!(self.b2.files(BUCKET).len(), names.len());
        assert_eq!(self.b2.violations(), Vec::<String>::new());
    }

    /// What the visible object of that name holds.
    pub fn content(&self, name: &str) -> Option<String> {
        let files = self.b2.files(BUCKET);
        let object = files.iter().find(|f| f.name == name)?;
        Some(String::from_utf8(object.content.to_bytes().to_vec()).unwrap())
    }

    pub fn uploads(&self) -> u64 {
        let counters = self.b2.counters();
        counters.calls(Call::UploadFile) + counters.calls(Call::FinishLargeFile)
    }
}
