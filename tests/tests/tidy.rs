//! The house rules that a compiler does not check, as a test over all sources: length, heads, stray macros, unsafe
//! code, dead files, scripts without a word on their purpose.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

const FILE_LINES_MAX: usize = 599;
const FUNCTION_LINES_MAX: usize = 69;
/// Notes that lie outside the repository; in two pieces each, so that this file passes its own test.
const FOREIGN: [&str; 3] = [concat!("DESIGN", ".md"), concat!("/wo", "rk/"), concat!("shared", "/facts")];
const TEXT: [&str; 10] = ["rs", "toml", "md", "sh", "service", "timer", "conf", "rules", "py", "socket"];

#[test]
fn every_source_keeps_the_house_rules() {
    let top = top();
    let mut complaints = Vec::new();
    let sources = Modules::of_workspace(&top, &mut complaints);
    for file in files(&top) {
        let name = file.strip_prefix(&top).expect("it was found below").display().to_string();
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let script = text.starts_with("#!") && !name.ends_with(".rs");
        let mut found = Vec::new();
        if script || TEXT.iter().any(|e| file.extension().is_some_and(|x| x == *e)) {
            found.extend(check_text(&text));
        }
        if script {
            found.extend(check_script(&text));
        }
        if name.ends_with(".rs") {
            match sources.found.get(&file) {
                Some(place) => found.extend(check_source(&text, *place, name.ends_with("sys.rs"))),
                None => found.push("no module declares this file".to_owned()),
            }
        }
        complaints.extend(found.into_iter().map(|c| format!("{name}: {c}")));
    }
    assert!(sources.found.len() > 50, "the walk must have missed files: {}", sources.found.len());
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

/// All files of the repository but what builds leave behind.
fn files(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && name != ".git" && name != "target" {
                todo.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What a file is part of decides which rules count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Program,
    Test,
}

/// Every file that a target of the workspace reaches by `mod`.
struct Modules {
    found: BTreeMap<PathBuf, Place>,
}

impl Modules {
    fn of_workspace(top: &Path, complaints: &mut Vec<String>) -> Modules {
        let mut modules = Modules { found: BTreeMap::new() };
        for (path, place) in targets(top) {
            let dir = path.parent().expect("a file has a directory").to_owned();
            modules.reach(&path, &dir, place, complaints);
        }
        modules
    }

    fn reach(&mut self, file: &Path, children: &Path, place: Place, complaints: &mut Vec<String>) {
        // A file that programs and tests share counts as program.
        let known = self.found.get(file).copied();
        if known == Some(place) || known == Some(Place::Program) {
            return;
        }
        let Ok(text) = fs::read_to_string(file) else {
            complaints.push(format!("{}: declared as a module, but not there", file.display()));
            return;
        };
        self.found.insert(file.to_owned(), place);
        match syn::parse_file(&text) {
            Ok(parsed) => self.follow(&parsed.items, file, children, place, complaints),
            Err(e) => complaints.push(format!("{}: cannot be parsed: {e}", file.display())),
        }
    }

    fn follow(
        &mut self,
        items: &[syn::Item],
        file: &Path,
        children: &Path,
        place: Place,
        out: &mut Vec<String>,
    ) {
        for item in items {
            let syn::Item::Mod(module) = item else { continue };
            let place = if is_test_only(&module.attrs) { Place::Test } else { place };
            let name = module.ident.to_string();
            let below = children.join(&name);
            if let Some((_, inner)) = &module.content {
                self.follow(inner, file, &below, place, out);
                continue;
            }
            let (flat, nested) = (children.join(format!("{name}.rs")), below.join("mod.rs"));
            match path_attribute(&module.attrs) {
                Some(path) => {
                    let target = file.parent().expect("a file has a directory").join(path);
                    let dir = target.parent().expect("a file has a directory").to_owned();
                    self.reach(&target, &dir, place, out);
                }
                None if nested.exists() => self.reach(&nested, &below, place, out),
                None => self.reach(&flat, &below, place, out),
            }
        }
    }
}

/// Root files of all targets, as cargo itself names them.
fn targets(top: &Path) -> Vec<(PathBuf, Place)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(top)
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let targets = packages.iter().flat_map(|p| p["targets"].as_array().unwrap());
    targets
        .map(|target| {
            let kinds = target["kind"].as_array().unwrap();
            let test = kinds.iter().any(|k| k == "test" || k == "bench");
            let path = PathBuf::from(target["src_path"].as_str().unwrap());
            (path, if test { Place::Test } else { Place::Program })
        })
        .collect()
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            let text = list.tokens.to_string();
            text == "test" || text.starts_with("all (test") || text.starts_with("all(test")
        }
        syn::Meta::Path(path) => path.segments.last().is_some_and(|s| s.ident == "test"),
        _ => false,
    })
}

fn path_attribute(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}

/// What counts for every text.
fn check_text(text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(i, line)| FOREIGN.iter().filter(|f| line.contains(**f)).map(move |f| (i, f)))
        .map(|(i, foreign)| format!("line {}: names `{foreign}`, which readers do not have", i + 1))
        .collect()
}

/// A script says right after its first line what it is for.
fn check_script(text: &str) -> Option<String> {
    let second = text.lines().nth(1).unwrap_or_default();
    let words = second.strip_prefix("# ").map_or(0, |comment| comment.split_whitespace().count());
    (words < 4).then(|| "the second line must be a comment that says what the script is for".to_owned())
}

fn check_source(text: &str, place: Place, sys: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    if !text.starts_with("//!") {
        complaints.push("must begin with `//!` and what the file is for".to_owned());
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        complaints.push(format!("{lines} lines, at most {FILE_LINES_MAX} are allowed"));
    }
    let (Ok(tokens), Ok(file)) = (text.parse::<TokenStream>(), syn::parse_file(text)) else {
        complaints.push("cannot be parsed".to_owned());
        return complaints;
    };
    check_tokens(tokens, sys, &mut complaints);
    if place == Place::Program {
        Functions { complaints: &mut complaints }.visit_file(&file);
    }
    complaints
}

/// Tokens, and not the tree: what stands inside a macro call counts too.
fn check_tokens(tokens: TokenStream, sys: bool, complaints: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let punct = |i: usize, c: char| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.as_char() == c);
    for (i, token) in tokens.iter().enumerate() {
        let line = token.span().start().line;
        match token {
            TokenTree::Ident(ident) if (ident == "dbg" || ident == "todo") && punct(i + 1, '!') => {
                complaints.push(format!("line {line}: `{ident}!`"));
            }
            TokenTree::Ident(ident) if ident == "unsafe" && !sys => {
                complaints.push(format!("line {line}: unsafe code outside of a file named sys.rs"));
            }
            TokenTree::Group(group) => {
                let inner = group.stream();
                if group.delimiter() == Delimiter::Bracket && i > 0 && punct(i - 1, '#') && ignores(&inner) {
                    complaints.push(format!("line {line}: an ignored test is a test that nobody runs"));
                }
                check_tokens(inner, sys, complaints);
            }
            _ => {}
        }
    }
}

fn ignores(attribute: &TokenStream) -> bool {
    let words: Vec<String> = attribute.clone().into_iter().map(|t| t.to_string()).collect();
    match words.first().map(String::as_str) {
        Some("ignore") => true,
        Some("cfg_attr") => words.iter().any(|w| w.contains("ignore")),
        _ => false,
    }
}

/// Length of the functions that are no tests.
struct Functions<'a> {
    complaints: &'a mut Vec<String>,
}

impl Functions<'_> {
    fn measure(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let first = signature.span().start().line;
        let lines = body.span().end().line - first + 1;
        if lines > FUNCTION_LINES_MAX {
            let name = &signature.ident;
            self.complaints.push(format!(
                "line {first}: `{name}` has {lines} lines, at most {FUNCTION_LINES_MAX} are allowed"
            ));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test_only(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test_only(&item.attrs) {
            self.measure(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test_only(&item.attrs) {
            self.measure(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.measure(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

// The checker itself.

fn complaints(text: &str) -> String {
    check_source(text, Place::Program, false).join("\n")
}

fn long_function(head: &str) -> String {
    format!("//! A head.\n{head}fn long() {{\n{}}}\n", "    let _ = \"}\";\n".repeat(FUNCTION_LINES_MAX - 1))
}

#[test]
fn a_good_source_passes() {
    let text = "//! A head.\n// dbg!(1), todo!(), unsafe\nfn f() { let _ = \"unsafe dbg!(\"; }\n";
    assert_eq!(complaints(text), "");
}

#[test]
fn a_planted_violation_is_found() {
    for (text, needle) in [
        ("fn f() {}\n", "must begin with `//!`"),
        ("//! A head.\nfn f() { dbg!(1); }\n", "line 2: `dbg!`"),
        ("//! A head.\nfn f() { vec![todo!()]; }\n", "line 2: `todo!`"),
        ("//! A head.\nfn f() { unsafe {} }\n", "line 2: unsafe code"),
        ("//! A head.\n#[test]\n#[ignore = \"slow\"]\nfn f() {}\n", "line 3: an ignored test"),
        ("//! A head.\n#[test]\n#[cfg_attr(miri, ignore)]\nfn f() {}\n", "line 3: an ignored test"),
        (&format!("//! A head.\n{}", "// x\n".repeat(FILE_LINES_MAX)), "600 lines, at most 599"),
        (&long_function(""), "`long` has 70 lines, at most 69"),
        ("//! A head.\nfn f( {}\n", "cannot be parsed"),
    ] {
        assert!(complaints(text).contains(needle), "{text}: {:?}", complaints(text));
    }
}

#[test]
fn tests_may_be_long_and_sys_may_be_unsafe() {
    assert_eq!(complaints(&long_function("#[test]\n")), "");
    assert_eq!(check_source(&long_function(""), Place::Test, false), Vec::<String>::new());
    assert_eq!(
        check_source("//! A head.\nfn f() { unsafe {} }\n", Place::Program, true),
        Vec::<String>::new()
    );
}

#[test]
fn texts_and_scripts_are_looked_at() {
    assert_eq!(check_text(&format!("one\nsee {}\n", FOREIGN[0])).len(), 1);
    assert!(check_script("#!/bin/sh\nset -e\n").is_some());
    assert!(check_script("#!/bin/sh\n# Says what it is for.\n").is_none());
}

#[test]
fn a_file_that_nobody_declares_is_missed_and_a_declared_one_reached() {
    let dir = std::env::temp_dir().join(format!("tidy-{}", std::process::id()));
    fs::create_dir_all(dir.join("a")).unwrap();
    for (name, text) in [
        ("lib.rs", "mod a;\n#[cfg(test)]\nmod t;\nmod inline { mod deep; }\n"),
        ("a.rs", "mod b;\n"),
        ("a/b.rs", ""),
        ("t.rs", ""),
        ("dead.rs", ""),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let (mut modules, mut out) = (Modules { found: BTreeMap::new() }, Vec::new());
    modules.reach(&dir.join("lib.rs"), &dir, Place::Program, &mut out);
    fs::remove_dir_all(&dir).unwrap();
    let reached: BTreeSet<&Path> = modules.found.keys().map(|p| p.strip_prefix(&dir).unwrap()).collect();
    assert_eq!(reached, ["a.rs", "a/b.rs", "lib.rs", "t.rs"].map(Path::new).into());
    assert_eq!(modules.found[&dir.join("t.rs")], Place::Test);
    assert!(out.len() == 1 && out[0].contains("inline/deep.rs"), "{out:?}");
}
