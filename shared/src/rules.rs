//! Which paths are left out: gitignore syntax, compiled once per root.

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::path::RelPath;

/// The static path rules of a root. Both tracker and syncer ask them, with the same text.
#[derive(Debug, Clone)]
pub struct Rules {
    matcher: Gitignore,
    text: String,
}

#[derive(Debug, thiserror::Error)]
#[error("The exclude pattern {pattern:?} cannot be used: {message}")]
pub struct RuleError {
    pub pattern: String,
    pub message: String,
}

impl Rules {
    pub fn new(patterns: &[String]) -> Result<Rules, RuleError> {
        let mut builder = GitignoreBuilder::new("");
        for pattern in patterns {
            let error = |e: ignore::Error| RuleError { pattern: pattern.clone(), message: e.to_string() };
            if pattern.contains('\n') {
                return Err(RuleError { pattern: pattern.clone(), message: "it contains a newline".into() });
            }
            builder.add_line(None, pattern).map_err(error)?;
        }
        let error = |e: ignore::Error| RuleError { pattern: String::new(), message: e.to_string() };
        Ok(Rules { matcher: builder.build().map_err(error)?, text: patterns.join("\n") })
    }

    /// The canonical text: two sets of rules with equal text decide alike.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True if nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.matcher.is_empty()
    }

    /// True if the path is left out; asked of a path in a directory that is not.
    pub fn excludes_within(&self, path: &RelPath, is_dir: bool) -> bool {
        !path.is_root() && self.matcher.matched(path.as_path(), is_dir).is_ignore()
    }

    /// True if the path, or a directory above it, is left out. The root itself never is.
    pub fn excludes(&self, path: &RelPath, is_dir: bool) -> bool {
        if path.is_root() || self.matcher.is_empty() {
            return false;
        }
        // As git does: below a directory that is left out, nothing can be taken in again.
        let mut dir = path.parent();
        while let Some(above) = dir.filter(|d| !d.is_root()) {
            if self.matcher.matched(above.as_path(), true).is_ignore() {
                return true;
            }
            dir = above.parent();
        }
        self.excludes_within(path, is_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(patterns: &[&str]) -> Rules {
        Rules::new(&patterns.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
    }

    fn excluded(rules: &Rules, path: &[u8]) -> bool {
        rules.excludes(&RelPath::parse(path).unwrap(), false)
    }

    #[test]
    fn patterns_are_gitignore_patterns() {
        let rules = rules(&["_ops/logs/**", "*.tmp", "/top", "!keep.tmp", "cache/"]);
        assert!(excluded(&rules, b"_ops/logs/a/b"));
        assert!(excluded(&rules, b"deep/x.tmp"));
        assert!(excluded(&rules, b"top"));
        assert!(!excluded(&rules, b"deep/top"));
        assert!(!excluded(&rules, b"deep/keep.tmp"));
        assert!(excluded(&rules, b"deep/cache/file"));
        assert!(!excluded(&rules, b"deep/cache"), "the pattern asks for a directory");
    }

    #[test]
    fn nothing_below_a_directory_that_is_left_out_is_taken_in_again() {
        let rules = rules(&["cache/", "!cache/keep"]);
        assert!(excluded(&rules, b"cache/keep"));
    }

    #[test]
    fn names_that_are_not_utf8_are_matched_too() {
        assert!(excluded(&rules(&["*.tmp"]), b"bad\xff.tmp"));
    }

    #[test]
    fn without_patterns_nothing_is_left_out() {
        assert!(!excluded(&rules(&[]), b"anything"));
        assert!(!rules(&["*"]).excludes(&RelPath::root(), true));
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_named() {
        let error = Rules::new(&["a[z-a]".to_string()]).unwrap_err();
        assert!(error.to_string().contains("a[z-a]"), "{error}");
    }
}
