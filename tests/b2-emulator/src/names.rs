//! B2's rules for file names, file info, bucket names and SHA-1 digits, and its percent-encoding.
use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::B2Error;

const FILE_NAME_BYTES_MAX: usize = 1024;
/// Of the encoded header lines of name and file info together, by Backblaze's page on file information.
const HEADER_BYTES_MAX: usize = 7000;
const INFO_KEY_BYTES_MAX: usize = 50;

/// What stays as it is in a URL or header; "/" among it, by Backblaze's page on string encoding.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'_')
    .remove(b'-')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

/// None if the bytes are not UTF-8. "+" is a space, as in Backblaze's page on string encoding.
pub(crate) fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(|decoded| decoded.into_owned())
}

/// The rules on "/" stand in Backblaze's older page on files and in its SDK; the current page is silent.
pub(crate) fn check_file_name(name: &str) -> Result<(), B2Error> {
    let refuse = |why: &str| Err(B2Error::bad_request(format!("File name {why}")));
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > FILE_NAME_BYTES_MAX {
        return refuse("is longer than 1024 bytes");
    }
    if name.bytes().any(|byte| byte < 32 || byte == 127) {
        return refuse("contains a control character");
    }
    if name.starts_with('/') || name.ends_with('/') || name.contains("//") {
        return refuse("must not start with '/', end with '/', or contain '//'");
    }
    Ok(())
}

pub(crate) fn check_info(name: &str, info: &BTreeMap<String, String>) -> Result<(), B2Error> {
    let mut header_bytes = "X-Bz-File-Name: \r\n".len() + encode(name).len();
    for (key, value) in info {
        check_info_key(key)?;
        if key == "src_last_modified_millis" && value.parse::<i64>().is_err() {
            return Err(B2Error::bad_request("src_last_modified_millis must be a number"));
        }
        header_bytes += "X-Bz-Info-: \r\n".len() + key.len() + encode(value).len();
    }
    if header_bytes > HEADER_BYTES_MAX {
        return Err(B2Error::bad_request(format!(
            "File name and file info take {header_bytes} bytes of headers"
        )));
    }
    Ok(())
}

fn check_info_key(key: &str) -> Result<(), B2Error> {
    const RESERVED: [&str; 5] = [
        "b2-content-disposition",
        "b2-content-language",
        "b2-content-encoding",
        "b2-cache-control",
        "b2-expires",
    ];
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.`~!#$%^&*'|+".contains(&byte);
    if key.is_empty() || key.len() > INFO_KEY_BYTES_MAX || !key.bytes().all(allowed) {
        return Err(B2Error::bad_request(format!("Bad file info key: {key}")));
    }
    if key.starts_with("b2-") && !RESERVED.contains(&key) {
        return Err(B2Error::bad_request(format!("File info keys with b2- are reserved: {key}")));
    }
    Ok(())
}

pub(crate) fn check_bucket_name(name: &str) -> Result<(), B2Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !(6..=63).contains(&name.len()) || name.starts_with("b2-") || !name.bytes().all(allowed) {
        return Err(B2Error::new(400, "invalid_bucket_name", format!("Invalid bucket name: {name}")));
    }
    Ok(())
}

pub(crate) fn is_sha1(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_of_1_to_1024_bytes_without_control_characters_are_accepted() {
        for good in ["a", "dir/file", "back\\slash", "#x", " lead", "ünï/码", &"x".repeat(1024)] {
            assert_eq!(check_file_name(good), Ok(()), "{good:?}");
        }
        for bad in ["", "/a", "a/", "a//b", "new\nline", "del\x7f", &"x".repeat(1025)] {
            assert!(check_file_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn encoding_keeps_slashes_and_decoding_turns_plus_into_space() {
        let name = "a/b c+d%e\\f#ü";
        assert_eq!(encode(name), "a/b%20c%2Bd%25e%5Cf%23%C3%BC");
        assert_eq!(decode(&encode(name)).as_deref(), Some(name));
        assert_eq!(decode("a+b").as_deref(), Some("a b"));
        assert_eq!(decode("%ff"), None);
    }

    #[test]
    fn file_info_is_limited_in_keys_and_in_bytes_of_headers() {
        let info = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(check_info("n", &info("large_file_sha1", "x")), Ok(()));
        assert_eq!(check_info("n", &info("b2-expires", "x")), Ok(()));
        assert!(check_info("n", &info("b2-other", "x")).is_err());
        assert!(check_info("n", &info("with space", "x")).is_err());
        assert!(check_info("n", &info(&"k".repeat(51), "x")).is_err());
        assert!(check_info("n", &info("src_last_modified_millis", "noon")).is_err());
        assert_eq!(check_info("n", &info("k", &"v".repeat(6900))), Ok(()));
        assert!(check_info("n", &info("k", &"v".repeat(7000))).is_err());
        assert!(check_info("n", &info("k", &"%".repeat(2500))).is_err(), "counted as encoded");
    }

    #[test]
    fn bucket_names_are_6_to_63_letters_digits_and_dashes() {
        assert_eq!(check_bucket_name("bucket-1"), Ok(()));
        for bad in ["short", "b2-mine", "with_underscore", &"x".repeat(64)] {
            assert!(check_bucket_name(bad).is_err(), "{bad}");
        }
    }
}
