//! A bucket as plain data: every version of every name, for the one who compares in the end.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::seen::Call;
use super::{Content, Shared, Watch, lock};

#[derive(Debug)]
pub struct Bucket {
    id: String,
    /// By name in the order of its bytes; the versions of a name oldest first.
    names: BTreeMap<String, Vec<Version>>,
    late: Vec<Late>,
    serial: u64,
    /// Small, so that pages matter; the real client asks for 10,000.
    pub page_files: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub id: String,
    pub at_ns: i64,
    /// `None` for a hide marker.
    pub object: Option<Object>,
}

/// What an upload brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub content: Content,
    pub mtime_ms: Option<i64>,
    pub writer: Option<String>,
}

impl Object {
    /// As rclone or `b2 sync` leave it for the file of that time.
    pub fn by_rclone(bytes: impl Into<Bytes>, mtime_ns: i64) -> Object {
        let mtime_ms = Some(mtime_ns.div_euclid(1_000_000));
        Object { content: Content::of(bytes), mtime_ms, writer: None }
    }

    /// Put there through Backblaze's page: without a time.
    pub fn by_hand(bytes: impl Into<Bytes>) -> Object {
        Object { content: Content::of(bytes), mtime_ms: None, writer: None }
    }

    pub fn by_writer(bytes: impl Into<Bytes>, mtime_ns: i64, writer: &str) -> Object {
        Object { writer: Some(writer.to_owned()), ..Object::by_rclone(bytes, mtime_ns) }
    }
}

/// A request whose answer was lost, and whose effect is still to come.
#[derive(Debug)]
pub(super) struct Late {
    pub name: String,
    /// `None` hides.
    pub object: Option<Object>,
    pub call: Call,
}

impl Bucket {
    pub fn new(id: &str) -> Bucket {
        Bucket { id: id.to_owned(), names: BTreeMap::new(), late: Vec::new(), serial: 0, page_files: 1_000 }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Somebody deletes it, and makes another one of the same name: empty, and of another id.
    pub fn recreate(&mut self, id: &str) {
        *self = Bucket { page_files: self.page_files, ..Bucket::new(id) };
    }

    /// The visible version of each name, in order.
    pub fn visible(&self) -> impl Iterator<Item = (&str, &Version, &Object)> {
        self.names.iter().filter_map(|(name, versions)| {
            let version = versions.last()?;
            Some((name.as_str(), version, version.object.as_ref()?))
        })
    }

    /// What is visible under a name.
    pub fn at(&self, name: &str) -> Option<(&Version, &Object)> {
        let version = self.names.get(name)?.last()?;
        Some((version, version.object.as_ref()?))
    }

    /// All names that ever had a version, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// All there ever was under a name, oldest first, but for what somebody deleted for good.
    pub fn versions(&self, name: &str) -> &[Version] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// Uploads always make a new version, also of equal content. Returns its id.
    pub fn upload(&mut self, name: &str, object: Object, at_ns: i64) -> String {
        self.add(name, Some(object), at_ns)
    }

    /// False if nothing is visible there: then B2 makes no marker.
    pub fn hide(&mut self, name: &str, at_ns: i64) -> bool {
        let stands = self.at(name).is_some();
        if stands {
            self.add(name, None, at_ns);
        }
        stands
    }

    /// Takes the newest version of a name away for good, as `rclone --b2-hard-delete` does: the one before it is the
    /// newest again. False if there is none.
    pub fn delete_newest(&mut self, name: &str) -> bool {
        let Some(versions) = self.names.get_mut(name) else { return false };
        let gone = versions.pop().is_some();
        if versions.is_empty() {
            self.names.remove(name);
        }
        gone
    }

    fn add(&mut self, name: &str, object: Option<Object>, at_ns: i64) -> String {
        self.serial += 1;
        let id = format!("4_z{}_f{:08x}", self.id, self.serial);
        let version = Version { id: id.clone(), at_ns, object };
        match self.names.get_mut(name) {
            Some(versions) => versions.push(version),
            None => drop(self.names.insert(name.to_owned(), vec![version])),
        }
        id
    }

    /// Visible names from `start` on, and the one that the next page begins with.
    pub(super) fn page(
        &self,
        prefix: &str,
        start: Option<&str>,
        max: usize,
    ) -> (Vec<(&str, &Version, &Object)>, Option<String>) {
        let start = start.unwrap_or_default().max(prefix);
        let names = self.names.range::<str, _>((Bound::Included(start), Bound::Unbounded));
        let mut found = Vec::new();
        for (name, versions) in names.take_while(|(name, _)| name.starts_with(prefix)) {
            let Some((version, Some(object))) = versions.last().map(|v| (v, v.object.as_ref())) else {
                continue;
            };
            if found.len() == max {
                return (found, Some(name.clone()));
            }
            found.push((name.as_str(), version, object));
        }
        (found, None)
    }

    pub(super) fn put_aside(&mut self, late: Late) {
        self.late.push(late);
    }

    /// Requests that may still come true.
    pub fn late_count(&self) -> usize {
        self.late.len()
    }

    /// They never come true.
    pub fn drop_late(&mut self) {
        self.late.clear();
    }

    fn complete(&mut self, late: Late, at_ns: i64) -> (Call, String) {
        let Late { name, object, call } = late;
        let id = match object {
            Some(object) => self.add(&name, Some(object), at_ns),
            None => {
                self.hide(&name, at_ns);
                String::new()
            }
        };
        (call, id)
    }
}

/// One of the requests that were put aside takes effect now: it makes the newest version. False if there is none.
pub fn complete_late(
    bucket: &Shared<Bucket>,
    watch: &Watch,
    at_ns: i64,
    pick: impl FnOnce(u64) -> u64,
) -> bool {
    let mut locked = lock(bucket);
    let count = locked.late.len();
    if count == 0 {
        return false;
    }
    let chosen = pick(count as u64) as usize;
    let late = locked.late.remove(chosen);
    let (call, object) = locked.complete(late, at_ns);
    drop(locked);
    watch.late(&call, object);
    true
}
