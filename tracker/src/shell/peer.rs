//! Who is at the other end of the control socket, and whether that user may ask.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

mod sys;

/// The kernel's word on a peer, from the moment it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    groups: Vec<u32>,
}

impl Peer {
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        let peer = rustix::net::sockopt::socket_peercred(stream)?;
        let mut groups = sys::peer_groups(stream.as_fd())?;
        groups.push(peer.gid.as_raw());
        Ok(Peer { uid: peer.uid.as_raw(), groups })
    }
}

/// Who may ask: root, the tracker's own user, and the group of the state directory.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    own_uid: u32,
    group: u32,
}

impl Door {
    pub fn of(state_dir: &Path) -> io::Result<Door> {
        let group = std::fs::metadata(state_dir)?.gid();
        Ok(Door { own_uid: rustix::process::geteuid().as_raw(), group })
    }

    pub fn admits(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own_uid || peer.groups.contains(&self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_own_user_and_the_group_are_admitted_and_nobody_else() {
        let door = Door { own_uid: 900, group: 901 };
        let admits = |uid, groups: &[u32]| door.admits(&Peer { uid, groups: groups.to_vec() });
        assert!(admits(0, &[]) && admits(900, &[5]) && admits(7, &[7, 901]));
        assert!(!admits(7, &[7, 900]) && !admits(901, &[]));
    }

    #[test]
    fn the_kernel_names_the_peer_and_its_groups() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(peer.groups.contains(&rustix::process::getegid().as_raw()));
    }
}
