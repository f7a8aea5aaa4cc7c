//! `tracker identify`: the stanza of a root, with the identity of the disk that is there now.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};
use shared::config::Name;
use shared::exit::Exit;
use shared::identity::Identity;

use super::{CommandError, print};
use crate::roots;

pub fn run(path: &Path, subdir: bool) -> Result<Exit, CommandError> {
    let fail = |source| CommandError::Io { op: format!("open the directory {}", path.display()), source };
    let path = std::fs::canonicalize(path).map_err(fail)?;
    let Some(text) = path.to_str() else {
        let what = path.display();
        return Err(CommandError::Usage(format!(
            "The configuration cannot hold this path, it is not UTF-8: {what}"
        )));
    };
    let open = roots::open_dir(&path).map_err(fail)?;
    if !subdir && shares_filesystem_with_parent(&open).map_err(fail)? {
        return Err(CommandError::Usage(format!(
            "{text} is no mount point, it lies on the filesystem of its parent directory. If a disk belongs there, mount it first; if the directory itself is meant, say --subdir"
        )));
    }
    let (identity, _) = Identity::of(&open)
        .map_err(|e| CommandError::Io { op: format!("identify {text}"), source: io::Error::other(e) })?;
    if identity.uuid.is_none() {
        eprintln!(
            "tracker: {text} lies on a filesystem without a UUID ({}): after it was mounted anew it cannot be told from another one",
            identity.fs
        );
    }
    print(stanza(&guess_name(&path), text, &identity).as_bytes())?;
    Ok(Exit::Ok)
}

/// Where a disk is not mounted, its empty mount point has the identity of the disk above it.
fn shares_filesystem_with_parent(dir: &OwnedFd) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(dir, "..", flags, Mode::empty())?;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = |fd: &OwnedFd| rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted);
    let (here, above) = (stat(dir)?, stat(&parent)?);
    let dev = |s: &Statx| (s.stx_dev_major, s.stx_dev_minor);
    let mount = |s: &Statx| (s.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(s.stx_mnt_id);
    let same_mount = match (mount(&here), mount(&above)) {
        (Some(here), Some(above)) => here == above,
        _ => dev(&here) == dev(&above),
    };
    // The topmost directory is its own parent.
    let topmost = (dev(&here), here.stx_ino) == (dev(&above), above.stx_ino);
    Ok(same_mount && !topmost)
}

fn stanza(name: &Name, path: &str, identity: &Identity) -> String {
    let mut fields = vec![format!("fs = {}", quote(&identity.fs))];
    fields.extend(identity.uuid.as_ref().map(|u| format!("uuid = {}", quote(u))));
    fields.extend(identity.subvolume.map(|s| format!("subvolume = {s}")));
    fields.push(format!("inode = {}", identity.inode));
    fields.extend(identity.btime_ns.map(|t| format!("btime_ns = {t}")));
    format!("[[root]]\nname = \"{name}\"\npath = {}\nidentity = {{ {} }}\n", quote(path), fields.join(", "))
}

/// A basic string of TOML.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// From the last component, as far as it can be a name.
fn guess_name(path: &Path) -> Name {
    let last = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain: String = last
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(32)
        .collect();
    Name::parse(&plain).or_else(|_| Name::parse("root")).expect("`root` is a name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::config::Config;

    #[test]
    fn the_configuration_accepts_what_identify_prints() {
        for (fs, uuid, subvolume, btime_ns) in [
            ("ext4", Some("7f5e508d-0000-4000-8000-000000000001"), None, Some(17)),
            ("btrfs", Some("7f5e508d-0000-4000-8000-000000000001"), Some(256), None),
            ("fuse", None, None, None),
        ] {
            let identity =
                Identity { fs: fs.into(), uuid: uuid.map(str::to_owned), subvolume, inode: 2, btime_ns };
            let path = "/mnt/My \"odd\\\" Disk\n";
            let text = stanza(&guess_name(Path::new(path)), path, &identity);
            let config = Config::parse(Path::new("x"), &text).unwrap();
            assert_eq!(config.roots[0].identity, Some(identity));
            assert_eq!(config.roots[0].path, Path::new(path));
        }
    }

    #[test]
    fn a_name_is_guessed_from_any_path() {
        for (path, name) in [
            ("/space", "space"),
            ("/mnt/My Disk", "my-disk"),
            ("/", "root"),
            ("/mnt/--", "root"),
            ("/ä", "root"),
        ] {
            assert_eq!(guess_name(Path::new(path)).as_str(), name, "{path}");
        }
    }
}
