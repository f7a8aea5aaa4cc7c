//! Listing names and versions, page by page, with prefix and delimiter.
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::versions::newest;
use super::{Bucket, Model};
use crate::error::B2Error;
use crate::requests::{self, ListFiles};
use crate::version::{Action, Version};

const DEFAULT_COUNT: u64 = 100;
const COUNT_MAX: u64 = 10_000;

#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Version(Arc<Version>),
    Folder(String),
}

#[derive(Debug, Default)]
pub(crate) struct Page {
    pub entries: Vec<Entry>,
    pub next_name: Option<String>,
    /// None beside a `next_name` that is a folder.
    pub next_id: Option<String>,
}

impl Model {
    pub fn list_file_names(&self, token: &str, asked: &ListFiles) -> Result<Page, B2Error> {
        let (bucket, count) = self.check_listing(token, asked)?;
        if asked.start_file_id.is_some() {
            return Err(B2Error::bad_request("b2_list_file_names takes no startFileId"));
        }
        let page = bucket.page(asked, count, |versions| {
            newest(versions).filter(|version| version.action == Action::Upload).into_iter()
        });
        // Names go on by name alone: rclone would send an id back, which the call does not take.
        Ok(Page { next_id: None, ..page })
    }

    pub fn list_file_versions(&self, token: &str, asked: &ListFiles) -> Result<Page, B2Error> {
        let (bucket, count) = self.check_listing(token, asked)?;
        if asked.start_file_id.is_some() && asked.start_file_name.is_none() {
            return Err(B2Error::bad_request("startFileId needs startFileName"));
        }
        Ok(bucket.page(asked, count, |versions| versions.iter().rev()))
    }

    fn check_listing(&self, token: &str, asked: &ListFiles) -> Result<(&Bucket, usize), B2Error> {
        let prefix = asked.prefix.as_deref().unwrap_or_default();
        self.allow(token, "listFiles", &asked.bucket_id, Some(prefix))?;
        let count = requests::count(asked.max_file_count, DEFAULT_COUNT, COUNT_MAX)?;
        Ok((self.bucket(&asked.bucket_id)?, count))
    }
}

impl Bucket {
    /// Newest visible version of each name, in order.
    pub fn visible_files(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.files.values().filter_map(|versions| newest(versions)).filter(|v| v.action == Action::Upload)
    }

    /// All versions, markers and unfinished large files among them, in the order of b2_list_file_versions.
    pub fn all_versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.files.values().flat_map(|versions| versions.iter().rev())
    }

    /// `shown` gives what the listing shows of one name's versions.
    fn page<'a, I>(
        &'a self,
        asked: &ListFiles,
        count: usize,
        shown: impl Fn(&'a Vec<Arc<Version>>) -> I,
    ) -> Page
    where
        I: Iterator<Item = &'a Arc<Version>>,
    {
        let prefix = asked.prefix.as_deref().unwrap_or_default();
        let start = asked.start_file_name.as_deref().unwrap_or_default().max(prefix);
        let mut page = Page::default();
        let mut from = Bound::Included(start.to_owned());
        while let Some((name, versions)) = next_name(&self.files, &from).filter(|it| it.0.starts_with(prefix))
        {
            from = Bound::Excluded(name.clone());
            let mut shown = shown(versions).peekable();
            if shown.peek().is_none() {
                continue;
            }
            if let Some(folder) = folder_of(name, prefix, asked.delimiter.as_deref()) {
                if page.entries.len() == count {
                    page.next_name = Some(folder.to_owned());
                    return page;
                }
                from = Bound::Included(after_all_with_prefix(folder));
                page.entries.push(Entry::Folder(folder.to_owned()));
                continue;
            }
            let skipped_to = asked.start_file_id.as_deref().filter(|_| name == start);
            for version in shown.skip_while(|version| skipped_to.is_some_and(|id| version.file_id != id)) {
                if page.entries.len() == count {
                    page.next_name = Some(name.clone());
                    page.next_id = Some(version.file_id.clone());
                    return page;
                }
                page.entries.push(Entry::Version(version.clone()));
            }
        }
        page
    }
}

fn next_name<'a>(
    files: &'a BTreeMap<String, Vec<Arc<Version>>>,
    from: &Bound<String>,
) -> Option<(&'a String, &'a Vec<Arc<Version>>)> {
    files.range::<str, _>((from.as_ref().map(String::as_str), Bound::Unbounded)).next()
}

fn folder_of<'a>(name: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let delimiter = delimiter.filter(|text| !text.is_empty())?;
    let at = name[prefix.len()..].find(delimiter)?;
    Some(&name[..prefix.len() + at + delimiter.len()])
}

/// A string that sorts after every name that begins with `prefix`: no name holds the largest character, which
/// is not assigned.
fn after_all_with_prefix(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, code};
    use super::*;

    fn ask(account: &Fixture) -> ListFiles {
        ListFiles { bucket_id: account.bucket.clone(), ..ListFiles::default() }
    }

    fn shown(page: &Page) -> Vec<&str> {
        let names = page.entries.iter().map(|entry| match entry {
            Entry::Version(version) => version.name.as_str(),
            Entry::Folder(folder) => folder.as_str(),
        });
        names.collect()
    }

    fn full() -> Fixture {
        let mut account = Fixture::new();
        for name in ["a/1", "a-b", "a/2", "z", "hidden", "a/deep/3", "é"] {
            account.put(name, "x");
        }
        account.hide("hidden").expect("it is visible");
        account
    }

    #[test]
    fn names_come_in_the_order_of_their_bytes_without_hidden_ones() {
        let account = full();
        let page = account.model.list_file_names(&account.token, &ask(&account)).expect("a page");
        assert_eq!(shown(&page), ["a-b", "a/1", "a/2", "a/deep/3", "z", "é"]);
        assert_eq!(page.next_name, None);
    }

    #[test]
    fn a_delimiter_folds_what_lies_below_into_folders() {
        let mut account = full();
        account.put("gone/x", "x");
        account.hide("gone/x").expect("it is visible");
        let list = |prefix: &str| {
            let delimiter = Some("/".into());
            let asked = ListFiles { delimiter, prefix: Some(prefix.into()), ..ask(&account) };
            account.model.list_file_names(&account.token, &asked).expect("a page")
        };
        assert_eq!(shown(&list("")), ["a-b", "a/", "z", "é"]);
        assert_eq!(shown(&list("a/")), ["a/1", "a/2", "a/deep/"]);
        assert_eq!(shown(&list("a")), ["a-b", "a/"]);
    }

    #[test]
    fn versions_come_newest_first_with_markers() {
        let mut account = full();
        let (first, second) = (account.put("v", "1"), account.put("v", "2"));
        let marker = account.hide("v").expect("it is visible");
        let asked = ListFiles { prefix: Some("v".into()), ..ask(&account) };
        let page = account.model.list_file_versions(&account.token, &asked).expect("a page");
        let ids: Vec<_> = page.entries.iter().map(id).collect();
        assert_eq!(ids, [&marker.file_id, &second.file_id, &first.file_id]);
    }

    fn id(entry: &Entry) -> &str {
        match entry {
            Entry::Version(version) => &version.file_id,
            Entry::Folder(folder) => folder,
        }
    }

    #[test]
    fn pages_of_any_size_add_up_to_the_whole_listing() {
        let mut account = full();
        account.put("z", "again");
        account.put("a/1", "again");
        for delimiter in [None, Some("/".to_owned())] {
            for versions in [false, true] {
                let list = |asked: &ListFiles| match versions {
                    true => account.model.list_file_versions(&account.token, asked).expect("a page"),
                    false => account.model.list_file_names(&account.token, asked).expect("a page"),
                };
                let whole = list(&ListFiles { delimiter: delimiter.clone(), ..ask(&account) });
                for size in 1..=whole.entries.len() as u64 {
                    let mut seen = Vec::new();
                    let mut asked = ListFiles {
                        delimiter: delimiter.clone(),
                        max_file_count: Some(size),
                        ..ask(&account)
                    };
                    loop {
                        let page = list(&asked);
                        seen.extend(page.entries);
                        asked.start_file_id = page.next_id; // none for names, which take none
                        asked.start_file_name = page.next_name;
                        if asked.start_file_name.is_none() {
                            break;
                        }
                    }
                    let all =
                        |entries: &[Entry]| entries.iter().map(id).map(str::to_owned).collect::<Vec<_>>();
                    assert_eq!(all(&seen), all(&whole.entries), "pages of {size}");
                }
            }
        }
    }

    #[test]
    fn a_page_holds_at_most_10000_and_0_means_the_default() {
        let account = full();
        let with = |count| ListFiles { max_file_count: Some(count), ..ask(&account) };
        assert!(account.model.list_file_names(&account.token, &with(0)).is_ok());
        assert_eq!(code(account.model.list_file_names(&account.token, &with(10_001))), "out_of_range");
    }
}
