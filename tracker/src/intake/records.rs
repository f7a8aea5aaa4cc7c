//! The parser of what read(2) gives on a fanotify group with file identifiers (fanotify(7)). A pure function over
//! bytes: every length is checked, nothing is assumed to be aligned, record types it does not know are skipped.

use shared::entry::Handle;

/// A file handle inside the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleRef<'a> {
    pub kind: i32,
    pub bytes: &'a [u8],
}

impl<'a> From<&'a Handle> for HandleRef<'a> {
    fn from(handle: &'a Handle) -> HandleRef<'a> {
        HandleRef { kind: handle.kind, bytes: &handle.bytes }
    }
}

/// So that a table of handles can be asked without copying one: both hash alike.
impl hashbrown::Equivalent<Handle> for HandleRef<'_> {
    fn equivalent(&self, handle: &Handle) -> bool {
        *self == HandleRef::from(handle)
    }
}

impl HandleRef<'_> {
    pub fn to_handle(self) -> Handle {
        Handle { kind: self.kind, bytes: self.bytes.to_vec() }
    }
}

/// A name in a directory; the name is `.` for the directory itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    pub dir: HandleRef<'a>,
    pub name: &'a [u8],
}

/// One event with its info records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record<'a> {
    pub mask: u64,
    /// Who made the event; 0 if that process is not seen from here.
    pub pid: u32,
    pub at: Option<Named<'a>>,
    pub from: Option<Named<'a>>,
    pub to: Option<Named<'a>>,
    pub target: Option<HandleRef<'a>>,
    /// errno and how often, of a FAN_FS_ERROR.
    pub error: Option<(i32, u32)>,
}

impl Record<'_> {
    pub fn is_overflow(&self) -> bool {
        self.mask & libc::FAN_Q_OVERFLOW != 0
    }
}

/// The bytes are not what fanotify(7) says; nothing after this point can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("An event of the kernel cannot be read: {0}")]
pub struct Damaged(pub &'static str);

const METADATA_BYTES: usize = 24;
const METADATA_VERSION: u8 = 3;
const INFO_HEADER_BYTES: usize = 4;
const FSID_BYTES: usize = 8;
const HANDLE_HEADER_BYTES: usize = 8;

const INFO_FID: u8 = 1;
const INFO_DFID_NAME: u8 = 2;
const INFO_DFID: u8 = 3;
const INFO_ERROR: u8 = 5;
const INFO_OLD_DFID_NAME: u8 = 10;
const INFO_NEW_DFID_NAME: u8 = 12;

/// Walks the events of a buffer; ends at the first damaged one.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    pub fn new(buffer: &'a [u8]) -> Records<'a> {
        Records { rest: buffer }
    }

    /// Bytes that are still to be walked.
    pub fn left(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match split_event(self.rest) {
            Ok((event, rest)) => {
                self.rest = rest;
                let record = parse_event(event);
                if record.is_err() {
                    self.rest = &[];
                }
                Some(record)
            }
            Err(damaged) => {
                self.rest = &[];
                Some(Err(damaged))
            }
        }
    }
}

/// How many whole events a buffer begins with, as far as their lengths tell.
pub fn count(buffer: &[u8]) -> u64 {
    let mut rest = buffer;
    let mut events = 0;
    while let Ok((_, after)) = split_event(rest) {
        rest = after;
        events += 1;
    }
    events
}

/// The length of the whole events that fit in `limit` bytes, of the first one at least; all of what no length leads on
/// from.
pub fn prefix(buffer: &[u8], limit: usize) -> usize {
    let mut end = 0;
    while let Ok((event, _)) = split_event(&buffer[end..])
        && (end == 0 || end + event.len() <= limit)
    {
        end += event.len();
    }
    if end == 0 { buffer.len() } else { end }
}

fn split_event(buffer: &[u8]) -> Result<(&[u8], &[u8]), Damaged> {
    let len = u32_at(buffer, 0).ok_or(Damaged("it is cut short"))? as usize;
    if len < METADATA_BYTES || len > buffer.len() {
        return Err(Damaged("its length is wrong"));
    }
    Ok(buffer.split_at(len))
}

fn parse_event(event: &[u8]) -> Result<Record<'_>, Damaged> {
    if event[4] != METADATA_VERSION {
        return Err(Damaged("its version is unknown"));
    }
    if u16_at(event, 6) != Some(METADATA_BYTES as u16) {
        return Err(Damaged("its head has an unknown length"));
    }
    let mask = u64_at(event, 8).ok_or(Damaged("it has no mask"))?;
    let pid = u32_at(event, 20).unwrap_or(0);
    let mut record = Record { mask, pid, ..Record::default() };
    if record.is_overflow() {
        return Ok(record);
    }
    let mut rest = &event[METADATA_BYTES..];
    if rest.is_empty() {
        return Err(Damaged("it names nothing"));
    }
    while !rest.is_empty() {
        let len = u16_at(rest, 2).ok_or(Damaged("an info record is cut short"))? as usize;
        if len < INFO_HEADER_BYTES || len > rest.len() {
            return Err(Damaged("an info record has a wrong length"));
        }
        let (info, after) = rest.split_at(len);
        parse_info(info, &mut record)?;
        rest = after;
    }
    // Something changed, and only what is not known here says what.
    let names = [record.at, record.from, record.to];
    if record.error.is_none() && record.target.is_none() && names.iter().all(Option::is_none) {
        return Err(Damaged("it names nothing that is known"));
    }
    Ok(record)
}

fn parse_info<'a>(info: &'a [u8], record: &mut Record<'a>) -> Result<(), Damaged> {
    let body = &info[INFO_HEADER_BYTES..];
    match info[0] {
        INFO_FID => {
            let (handle, _) = split_handle(body)?;
            // FAN_FS_ERROR without a file has an empty handle.
            if !handle.bytes.is_empty() {
                record.target = Some(handle);
            } else if record.mask & libc::FAN_FS_ERROR == 0 {
                return Err(Damaged("a file handle is empty"));
            }
        }
        INFO_DFID => record.at = Some(Named { dir: full_handle(body)?.0, name: b"." }),
        INFO_DFID_NAME => record.at = Some(parse_named(body)?),
        INFO_OLD_DFID_NAME => record.from = Some(parse_named(body)?),
        INFO_NEW_DFID_NAME => record.to = Some(parse_named(body)?),
        INFO_ERROR => {
            let errno = u32_at(body, 0).ok_or(Damaged("an error record is cut short"))?;
            let count = u32_at(body, 4).ok_or(Damaged("an error record is cut short"))?;
            record.error = Some((errno as i32, count));
        }
        _ => {}
    }
    Ok(())
}

fn parse_named(body: &[u8]) -> Result<Named<'_>, Damaged> {
    let (dir, rest) = full_handle(body)?;
    let end = rest.iter().position(|&b| b == 0).ok_or(Damaged("a name has no end"))?;
    let name = &rest[..end];
    if name.is_empty() || name.contains(&b'/') {
        return Err(Damaged("a name is none"));
    }
    Ok(Named { dir, name })
}

fn full_handle(body: &[u8]) -> Result<(HandleRef<'_>, &[u8]), Damaged> {
    let (handle, rest) = split_handle(body)?;
    if handle.bytes.is_empty() {
        return Err(Damaged("a directory handle is empty"));
    }
    Ok((handle, rest))
}

/// `fsid`, then `struct file_handle`, then what follows.
fn split_handle(body: &[u8]) -> Result<(HandleRef<'_>, &[u8]), Damaged> {
    let short = Damaged("a file handle is cut short");
    let rest = body.get(FSID_BYTES..).ok_or(short)?;
    let len = u32_at(rest, 0).ok_or(short)? as usize;
    let kind = u32_at(rest, 4).ok_or(short)? as i32;
    let rest = &rest[HANDLE_HEADER_BYTES..];
    if len > rest.len() {
        return Err(short);
    }
    let (bytes, after) = rest.split_at(len);
    Ok((HandleRef { kind, bytes }, after))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_ne_bytes(*b))
}

#[cfg(test)]
mod peer;

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn handle_bytes(kind: i32, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![7; FSID_BYTES];
        out.extend((bytes.len() as u32).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(bytes);
        out
    }

    pub fn info(kind: u8, body: &[u8]) -> Vec<u8> {
        let len = (INFO_HEADER_BYTES + body.len()).next_multiple_of(4);
        let mut out = vec![kind, 0];
        out.extend((len as u16).to_ne_bytes());
        out.extend(body);
        out.resize(len, 0);
        out
    }

    pub fn named(kind: u8, dir: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = handle_bytes(1, dir);
        body.extend(name);
        body.push(0);
        info(kind, &body)
    }

    pub fn event(mask: u64, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut out = ((METADATA_BYTES + infos.len()) as u32).to_ne_bytes().to_vec();
        out.extend([METADATA_VERSION, 0]);
        out.extend((METADATA_BYTES as u16).to_ne_bytes());
        out.extend(mask.to_ne_bytes());
        out.extend((-1i32).to_ne_bytes());
        out.extend(17i32.to_ne_bytes());
        out.extend(infos);
        out
    }

    fn create() -> Vec<u8> {
        let infos =
            [named(INFO_DFID_NAME, b"dirhandl", b"file"), info(INFO_FID, &handle_bytes(1, b"filehand"))];
        event(libc::FAN_CREATE, &infos)
    }

    fn all(buffer: &[u8]) -> Vec<Result<Record<'_>, Damaged>> {
        Records::new(buffer).collect()
    }

    #[test]
    fn a_creation_names_its_directory_its_name_and_its_target() {
        let buffer = create();
        let record = all(&buffer)[0].unwrap();
        assert_eq!((record.mask, record.pid), (libc::FAN_CREATE, 17));
        assert_eq!(record.at.unwrap().name, b"file");
        assert_eq!(record.at.unwrap().dir, HandleRef { kind: 1, bytes: b"dirhandl" });
        assert_eq!(record.target.unwrap().bytes, b"filehand");
    }

    #[test]
    fn a_rename_has_two_names() {
        let infos = [named(INFO_OLD_DFID_NAME, b"a", b"x"), named(INFO_NEW_DFID_NAME, b"b", b"y\n\xff")];
        let buffer = event(libc::FAN_RENAME, &infos);
        let record = all(&buffer)[0].unwrap();
        assert_eq!(record.from.unwrap().name, b"x");
        assert_eq!(record.to.unwrap().name, b"y\n\xff");
    }

    #[test]
    fn an_overflow_names_nothing_and_is_whole() {
        let buffer = [event(libc::FAN_Q_OVERFLOW, &[]), create()].concat();
        let records = all(&buffer);
        assert!(records[0].unwrap().is_overflow());
        assert!(records[1].is_ok());
    }

    #[test]
    fn a_directory_without_a_name_is_itself() {
        let buffer = event(libc::FAN_ATTRIB, &[info(INFO_DFID, &handle_bytes(1, b"d"))]);
        assert_eq!(all(&buffer)[0].unwrap().at.unwrap().name, b".");
    }

    #[test]
    fn an_error_of_the_filesystem_may_have_no_file() {
        let error = [5i32.to_ne_bytes(), 3i32.to_ne_bytes()].concat();
        let infos = [info(INFO_ERROR, &error), info(INFO_FID, &handle_bytes(255, b""))];
        let buffer = event(libc::FAN_FS_ERROR, &infos);
        let record = all(&buffer)[0].unwrap();
        assert_eq!((record.error, record.target), (Some((5, 3)), None));
    }

    #[test]
    fn an_unknown_record_type_is_skipped() {
        let buffer = event(libc::FAN_MODIFY, &[info(99, b"whatever"), named(INFO_DFID_NAME, b"d", b"n")]);
        assert_eq!(all(&buffer)[0].unwrap().at.unwrap().name, b"n");
    }

    #[test]
    fn what_is_cut_short_or_wrong_is_damaged_and_ends_the_walk() {
        let good = create();
        for cut in 1..good.len() {
            assert!(all(&good[..cut])[0].is_err(), "{cut} bytes");
        }
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            bad
        };
        for (what, bad) in [
            ("a version", with(4, &[2])),
            ("a head length", with(6, &16u16.to_ne_bytes())),
            ("an event length below its head", with(0, &23u32.to_ne_bytes())),
            ("an info length of zero", with(26, &0u16.to_ne_bytes())),
            ("an info length beyond the event", with(26, &999u16.to_ne_bytes())),
            ("a handle length beyond its record", with(36, &999u32.to_ne_bytes())),
            ("an empty directory handle", with(36, &0u32.to_ne_bytes())),
        ] {
            let records = [bad, create()].concat();
            assert_eq!(all(&records).len(), 1, "{what}");
            assert!(all(&records)[0].is_err(), "{what}");
        }
        assert!(all(&event(libc::FAN_MODIFY, &[]))[0].is_err(), "an event that names nothing");
        let unknown = event(libc::FAN_MODIFY, &[info(99, b"whatever")]);
        assert!(all(&unknown)[0].is_err(), "an event whose names are not understood");
        assert!(all(&event(libc::FAN_MODIFY, &[named(INFO_DFID_NAME, b"d", b"")]))[0].is_err());
    }

    #[test]
    fn the_count_is_that_of_the_walk() {
        let buffer = [create(), create(), event(libc::FAN_Q_OVERFLOW, &[])].concat();
        assert_eq!(count(&buffer), 3);
        assert_eq!(count(&buffer[..buffer.len() - 1]), 2);
    }

    #[test]
    fn a_prefix_is_of_whole_events_and_never_empty() {
        let one = create().len();
        let buffer = [create(), create(), create()].concat();
        for (limit, expected) in
            [(0, one), (one, one), (2 * one - 1, one), (2 * one, 2 * one), (9 * one, 3 * one)]
        {
            assert_eq!(prefix(&buffer, limit), expected, "{limit}");
        }
        let broken = [create(), vec![0; 8]].concat();
        assert_eq!(prefix(&broken, one), one);
        assert_eq!(prefix(&broken[one..], one), 8, "what is broken is left to the walk");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            Records::new(&bytes).for_each(drop);
        }

        #[test]
        fn a_flipped_byte_never_panics_nor_reads_beyond_its_event(at in 0usize..200, value: u8) {
            let mut buffer = [create(), create()].concat();
            let at = at % buffer.len();
            buffer[at] = value;
            prop_assert!(Records::new(&buffer).count() <= 3);
        }
    }
}
