//! The fileInfo of an object: what rclone and Backblaze's command line tool write and read, and who wrote it.

use std::collections::BTreeMap;

use super::super::Sha1;
use super::names::{NAME_BYTES_MAX, hex};

pub(super) type FileInfo = BTreeMap<String, String>;

/// Milliseconds since 1970, in decimal: the key that Backblaze recommends.
const MTIME: &str = "src_last_modified_millis";
/// Of the whole content; B2 itself keeps no SHA-1 of a large file.
const LARGE_SHA1: &str = "large_file_sha1";
/// The writer id of the catalog that the object was uploaded from.
const WRITER: &str = "longshore_writer";

const WRITER_BYTES_MAX: usize = 256;
/// Name and file info together as headers, by Backblaze's page on file information. (In a bucket with Object Lock or
/// encryption it is 2,048; B2 then refuses the odd long name.)
const HEADER_BYTES_MAX: usize = 7000;
/// Each byte may become three, and the rest of the values and lines is well below 500.
const _: () = assert!(3 * (NAME_BYTES_MAX + WRITER_BYTES_MAX) + 500 <= HEADER_BYTES_MAX);

/// `large`: of a large file, its SHA-1.
pub(super) fn file_info(mtime_ns: i64, large: Option<&Sha1>, writer: &str) -> FileInfo {
    debug_assert!(writer.len() <= WRITER_BYTES_MAX);
    let mut info = FileInfo::from([
        (MTIME.into(), mtime_ns.div_euclid(1_000_000).to_string()),
        (WRITER.into(), writer.into()),
    ]);
    info.extend(large.map(|sha1| (LARGE_SHA1.into(), hex(sha1))));
    info
}

pub(super) fn mtime_ns(info: &FileInfo) -> Option<i64> {
    info.get(MTIME)?.parse::<i64>().ok()?.checked_mul(1_000_000)
}

pub(super) fn writer(info: &FileInfo) -> Option<String> {
    info.get(WRITER).cloned()
}

/// B2's own hash of the content, or what the uploader of a large file said. One that B2 calls unverified is none.
pub(super) fn sha1(content_sha1: Option<&str>, info: &FileInfo) -> Option<Sha1> {
    content_sha1.and_then(parse_sha1).or_else(|| parse_sha1(info.get(LARGE_SHA1)?))
}

fn parse_sha1(text: &str) -> Option<Sha1> {
    if text.len() != 40 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut sha1 = [0; 20];
    for (byte, digits) in sha1.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(sha1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down_to_the_millisecond_also_before_1970() {
        let millis = |mtime_ns| file_info(mtime_ns, None, "w")[MTIME].clone();
        assert_eq!(millis(1_700_000_000_123_999_999), "1700000000123");
        assert_eq!(millis(0), "0");
        assert_eq!(millis(-1), "-1");
        assert_eq!(millis(-1_000_000), "-1");
        assert_eq!(millis(-1_000_001), "-2");
        assert_eq!(mtime_ns(&file_info(-1_000_001, None, "w")), Some(-2_000_000));
    }

    #[test]
    fn only_a_large_file_carries_its_hash() {
        assert_eq!(file_info(0, None, "w1").keys().collect::<Vec<_>>(), [WRITER, MTIME]);
        let info = file_info(0, Some(&[0xab; 20]), "w1");
        assert_eq!(info[LARGE_SHA1], "ab".repeat(20));
        assert_eq!(writer(&info).as_deref(), Some("w1"));
    }

    #[test]
    fn a_hash_is_taken_from_b2_or_from_the_uploader_of_a_large_file() {
        let info = file_info(0, Some(&[1; 20]), "w");
        assert_eq!(sha1(Some(&"0A".repeat(20)), &FileInfo::new()), Some([10; 20]));
        assert_eq!(sha1(Some("none"), &info), Some([1; 20]));
        assert_eq!(sha1(None, &info), Some([1; 20]));
        for no_hash in ["none", "", &"zz".repeat(20), &format!("unverified:{}", "00".repeat(20))] {
            assert_eq!(sha1(Some(no_hash), &FileInfo::new()), None, "{no_hash}");
        }
    }

    #[test]
    fn a_time_that_is_no_number_is_none() {
        let info = |text: &str| FileInfo::from([(MTIME.to_owned(), text.to_owned())]);
        assert_eq!(mtime_ns(&info("noon")), None);
        assert_eq!(mtime_ns(&info("9223372036854775807")), None);
        assert_eq!(mtime_ns(&FileInfo::new()), None);
    }
}
