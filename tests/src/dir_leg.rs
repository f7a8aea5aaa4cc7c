//! A world with a leg `copy` on a directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::compare::{Depth, assert_equal};
use crate::world::World;

pub const LEG: &str = r#"
[[leg]]
name = "copy"
kind = "dir"
roots = ["space"]
path = "{dir}/copy"
guard = { deletes = 5 }
"#;

/// A world with an empty destination.
pub fn world() -> World {
    world_with("")
}

/// `more` are further lines of the root's table.
pub fn world_with(more: &str) -> World {
    let world = World::with_root(more, LEG);
    fs::create_dir(world.path("copy")).unwrap();
    world
}

/// A small tree with one of each kind.
pub fn fill(world: &World) {
    let top = world.source();
    fs::create_dir_all(top.join("a/b/empty")).unwrap();
    fs::write(top.join("a/file"), "content").unwrap();
    fs::write(top.join("a-sibling"), "").unwrap();
    fs::write(top.join("a/b/secret"), "x".repeat(100_000)).unwrap();
    fs::set_permissions(top.join("a/b/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("../nowhere", top.join("a/link")).unwrap();
    fs::hard_link(top.join("a/file"), top.join("z-other-name")).unwrap();
}

/// A filled world that was mirrored.
pub fn mirrored() -> World {
    let world = world();
    fill(&world);
    world.run("copy");
    same(&world);
    world
}

/// Gives a file or a directory a modification time long ago.
pub fn age(path: &Path) {
    let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    fs::File::open(path).unwrap().set_modified(past).unwrap();
}

pub fn same(world: &World) {
    same_at(world, "copy");
}

/// The source, and what was made of it there.
pub fn same_at(world: &World, name: &str) {
    let depth = if crate::is_root() { Depth::All } else { Depth::Unprivileged };
    assert_equal(&world.source(), &world.path(name), depth);
}
