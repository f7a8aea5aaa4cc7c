//! Bringing things into being in a directory: made whole under a temporary name, then renamed to their own.

use std::sync::atomic::Ordering;

use shared::path::RelPath;
use syncer::leg::{Body, Problem, Put, Receipt, StoreError, What};
use syncer::tree::{Kind, Stat};

use super::{SimDir, failed, is_state, missed, object, state, trash_failed};
use crate::fate::Fault;
use crate::store::Content;
use crate::store::content::{check_unchanged, read_for_dir};
use crate::store::directory::{Miss, Node};
use crate::store::seen::Request;

const WRITE: &str = "write";
const ATTRIBUTES: &str = "set the attributes of";

impl SimDir {
    pub(super) async fn carry_out(&self, request: &mut Request, put: &Put) -> Result<Receipt, StoreError> {
        match &put.what {
            What::Dir => self.put_dir(request, put),
            What::Attributes => self.put_attributes(request, put),
            What::HardLink { to } => self.put_hard_link(request, put, to).await,
            What::File(body) => {
                let temp = self.begin_replacing(put)?;
                let made = self.make_file(put, body, &temp).await;
                self.replace(request, put, &temp, made).await
            }
            What::Symlink { target } => {
                let temp = self.begin_replacing(put)?;
                let node = |now| Node { target: target.clone(), ..Node::new(Kind::Symlink, 0o777, now) };
                let made = self.make_other(put, &temp, node);
                self.replace(request, put, &temp, made).await
            }
            What::Special => {
                let temp = self.begin_replacing(put)?;
                let kind = put.stat.kind;
                if matches!(kind, Kind::File | Kind::Dir | Kind::Symlink) {
                    let message = format!("a {kind} is not a special file");
                    return Err(StoreError::new("make", &put.dest, Problem::Unfit, message));
                }
                let node = |now| Node { rdev: put.stat.rdev, ..Node::new(kind, 0o600, now) };
                let made = self.make_other(put, &temp, node);
                self.replace(request, put, &temp, made).await
            }
        }
    }

    fn put_dir(&self, request: &mut Request, put: &Put) -> Result<Receipt, StoreError> {
        if !put.dest.is_root() {
            self.spot(&put.dest, true)?;
            request.before_effect(None);
            let node = |now| Node::new(Kind::Dir, 0o700, now);
            let made = self.change_for_good(|d, now| d.make(&put.dest, node(now), now));
            if let Ok(Ok(stat)) = self.ask(|d| d.look(&put.dest).map(|(stat, _)| stat)) {
                request.took_effect(&object(&stat));
            }
            match made {
                Ok(_) | Err(libc::EEXIST) => {}
                Err(e) => return Err(failed("make", &put.dest, e)),
            }
        }
        let object = object(&self.look("make", &put.dest)?);
        Ok(Receipt { object, sha1: None })
    }

    fn put_attributes(&self, request: &mut Request, put: &Put) -> Result<Receipt, StoreError> {
        let standing = self.look(ATTRIBUTES, &put.dest)?.kind;
        if standing != put.stat.kind {
            let message = format!("a {standing} is there, a {} is expected", put.stat.kind);
            return Err(StoreError::new(ATTRIBUTES, &put.dest, Problem::InTheWay, message));
        }
        request.before_effect(None);
        let object = object(&self.apply(put, &put.dest)?);
        request.took_effect(&object);
        Ok(Receipt { object, sha1: None })
    }

    async fn put_hard_link(
        &self,
        request: &mut Request,
        put: &Put,
        to: &RelPath,
    ) -> Result<Receipt, StoreError> {
        const OP: &str = "link to";
        let target = self.look(OP, to)?;
        if target.kind.is_dir() {
            return Err(StoreError::new(OP, to, Problem::InTheWay, "it is a directory"));
        }
        let standing = self.spot(&put.dest, false)?;
        if standing.is_some_and(|stat| stat.ino == target.ino) {
            return Ok(Receipt { object: object(&target), sha1: None });
        }
        let temp = self.begin_replacing(put)?;
        let linked = self.change(|d, now| d.link(to, &temp, now)).map_err(|e| failed(OP, to, e));
        self.replace(request, put, &temp, linked.map(|()| None)).await
    }

    /// The name under which the new version is made.
    fn begin_replacing(&self, put: &Put) -> Result<RelPath, StoreError> {
        self.spot(&put.dest, false)?;
        self.check_room()?;
        let count = self.temp_count.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{:x}-{count}", self.setup.run, self.setup.clock.boot_ns());
        Ok(state("tmp").child(name.as_bytes()).expect("digits make a name"))
    }

    async fn make_file(&self, put: &Put, body: &Body, temp: &RelPath) -> Result<Option<Content>, StoreError> {
        let unsent = |(problem, message)| StoreError::new("read", &put.dest, problem, message);
        let known = body.small.as_ref().map_or(body.file.stat().size, |(bytes, _)| bytes.len() as u64);
        self.make_other(put, temp, |now| Node::new(Kind::File, 0o600, now))?;
        if known != put.stat.size {
            return Err(unsent((Problem::Busy, "its size changed before it was read".to_owned())));
        }
        let content = match &body.small {
            Some((bytes, sha1)) => Content::hashed(bytes.clone(), *sha1),
            None => read_for_dir(&*self.fate, &body.file, put.stat.size).await.map_err(unsent)?,
        };
        let written = content.clone();
        self.change(|d, now| d.write(temp, written, now)).map_err(|e| failed(WRITE, &put.dest, e))?;
        self.apply(put, temp)?;
        if body.small.is_none() {
            let busy = || (Problem::Busy, "it changed while it was read".to_owned());
            check_unchanged(&*body.file, busy).map_err(unsent)?;
        }
        Ok(Some(content))
    }

    fn make_other(
        &self,
        put: &Put,
        temp: &RelPath,
        node: impl FnOnce(i64) -> Node,
    ) -> Result<Option<Content>, StoreError> {
        self.change(|d, now| d.make(temp, node(now), now)).map_err(|e| failed(WRITE, &put.dest, e))?;
        if put.stat.kind != Kind::File {
            self.apply(put, temp)?;
        }
        Ok(None)
    }

    /// Puts what was made in place of what stands at the name, which goes to the trash.
    async fn replace(
        &self,
        request: &mut Request,
        put: &Put,
        temp: &RelPath,
        made: Result<Option<Content>, StoreError>,
    ) -> Result<Receipt, StoreError> {
        let placed = match made {
            Ok(content) => self.put_in_place(request, put, temp, content).await,
            Err(error) => Err(error),
        };
        if placed.is_err() {
            // Nothing to be done about a second error; the next run cleans up.
            let _ = self.change(|d, now| d.remove(temp, now));
        }
        placed
    }

    async fn put_in_place(
        &self,
        request: &mut Request,
        put: &Put,
        temp: &RelPath,
        content: Option<Content>,
    ) -> Result<Receipt, StoreError> {
        let object = object(&self.look(WRITE, temp)?);
        self.pass("a new version is to be put in place").await;
        let standing = self.spot(&put.dest, false)?;
        if standing.is_some() && !is_state(&put.dest) {
            self.link_to_trash(&put.dest).map_err(|e| trash_failed(WRITE, &put.dest, e))?;
            self.pass("the old version is in the trash").await;
        }
        let sha1 = content.map(|content| content.sha1);
        request.before_effect(sha1);
        let renamed = self.change_for_good(|d, now| d.rename(temp, &put.dest, now));
        if renamed.is_ok() || self.ask(|d| d.look(temp).is_err()) == Ok(true) {
            request.took_effect(&object);
        }
        renamed.map_err(|e| failed(WRITE, &put.dest, e))?;
        Ok(Receipt { object, sha1 })
    }

    /// What stands at `dest`; an error unless it is of the sort that may come.
    fn spot(&self, dest: &RelPath, dir: bool) -> Result<Option<Stat>, StoreError> {
        let op = WRITE;
        let in_the_way = |message: &str| StoreError::new(op, dest, Problem::InTheWay, message);
        let Some(parent) = dest.parent() else {
            return Err(in_the_way("it is the destination itself"));
        };
        if is_state(dest) {
            self.make_dirs(&parent).map_err(|(at, e)| failed(op, &at, e))?;
        }
        match self.ask(|d| d.look(dest).map(|(stat, _)| stat)).map_err(|e| failed(op, dest, e))? {
            Ok(stat) if stat.kind.is_dir() == dir => Ok(Some(stat)),
            Ok(stat) => Err(in_the_way(&format!("a {} is there", stat.kind))),
            Err(Miss::Absent { at }) if at == *dest => Ok(None),
            Err(miss) => Err(missed(op, miss)),
        }
    }

    /// Sets owner, mode, attributes and times of what stands at `at`.
    fn apply(&self, put: &Put, at: &RelPath) -> Result<Stat, StoreError> {
        let (want, all) = (&put.stat, !self.fate.strikes(Fault::DirNoOwners));
        let set = self.change(|d, _| {
            d.set(at, |node| {
                let owned = (node.uid, node.gid) == (want.uid, want.gid);
                let mut mode = want.mode;
                if all {
                    (node.uid, node.gid) = (want.uid, want.gid);
                } else if !owned && !want.kind.is_dir() {
                    mode &= !0o6000;
                }
                if want.kind != Kind::Symlink {
                    node.mode = mode;
                    if all {
                        node.xattrs.clone_from(&put.xattrs);
                    }
                }
                node.mtime_ns = want.mtime_ns;
            })
        });
        self.unset_count.fetch_add(u64::from(!all), Ordering::Relaxed);
        set.map_err(|e| failed(ATTRIBUTES, &put.dest, e))
    }
}
