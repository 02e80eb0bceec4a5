//! Holds the layout: which module may use which, and what may stand where.
//!
//! The directions are what makes the program testable: a planner that cannot reach a socket can be run a million
//! times in a second, and a refresh that knows only traits runs unchanged against a simulated fleet. Nothing in the
//! language keeps them, one careless `use` at a time undoes them. So this reads the sources as tokens, without
//! comments, strings and `#[cfg(test)]` items, and names file, line and rule.
//!
//! A new top-level module is added to [`MAY_USE`], with what it may use.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// What each top-level module may use of this crate, beside itself. `cli` and `main.rs` choose the implementations.
const MAY_USE: &[(&str, &[&str])] = &[
    ("secret", &[]),
    ("time", &[]),
    ("entropy", &[]),
    ("shown", &[]),
    ("bounded", &[]),
    ("reply", &["secret"]),
    ("client", &["record", "secret", "time"]),
    ("item", &["client", "secret"]),
    ("record", &["client", "item", "secret", "shown", "time"]),
    ("plan", &["client", "item", "record", "reply", "secret", "time"]),
    ("metrics", &["time"]),
    // Connections that nothing was asked through for a while, by either clock, are dropped.
    ("aws", &["client", "time"]),
    ("store", &["aws", "client", "item", "metrics", "record", "seal", "secret", "time"]),
    // Whom servers are believed to be, for the two that speak TLS themselves.
    ("tls", &[]),
    ("provider", &["client", "reply", "secret", "time", "tls"]),
    ("seal", &["aws", "secret", "shown", "time"]),
    // Follows references as the registration and its provider's name allow; its keeper is AWS, a file, or the environment.
    ("secrets", &["aws", "client", "entropy", "metrics", "secret", "time"]),
    ("spill", &["aws", "client", "item", "plan", "record", "reply", "seal", "secret", "store", "time"]),
    (
        "refresh",
        &[
            "client", "entropy", "item", "metrics", "plan", "provider", "record", "reply", "secret",
            "secrets", "spill", "store", "time",
        ],
    ),
    (
        "scheduler",
        &["client", "entropy", "metrics", "plan", "provider", "record", "refresh", "reply", "store", "time"],
    ),
    (
        "fleet",
        &[
            "client",
            "item",
            "metrics",
            "plan",
            "provider",
            "record",
            "refresh",
            "scheduler",
            "spill",
            "store",
            "time",
        ],
    ),
    ("registrar", &["client", "entropy", "item", "plan", "record", "secret", "store", "time"]),
    // Policies are data: what tables and keys are called, and no AWS.
    ("iam", &["item", "seal"]),
    ("maintenance", &["time"]),
    ("reader", &["client", "entropy", "item", "plan", "record", "secret", "store", "time"]),
    // Told by the store what stands in the table, and read before it: a copy knows both, and neither knows it.
    (
        "shared_cache",
        &[
            "bounded", "client", "entropy", "item", "metrics", "reader", "record", "secret", "shown",
            "store", "time", "tls",
        ],
    ),
    ("agent", &["client", "item", "metrics", "plan", "reader", "record", "secret", "store", "time"]),
    // Files with tokens: what the reader has read, on a disk. It runs commands, and gives them no secret.
    ("sink", &["bounded", "client", "entropy", "metrics", "reader", "record", "store", "time"]),
    ("ecs", &["entropy", "plan", "time"]),
    ("lambda", &["time"]),
    ("health", &["client", "ecs", "metrics", "record", "scheduler", "store", "time"]),
    // Where hostile bytes come in: called by fuzz targets and hostile tests, and by nothing of the program.
    ("entry", &["health", "provider", "reply", "store", "time"]),
    ("config", &["bounded", "client", "plan", "seal", "secret", "shown", "time"]),
    ("telemetry", &["config"]),
    ("reload", &["config", "time"]),
    ("seclusion", &[]),
    ("shutdown", &["time"]),
];
/// Modules that may use everything.
const WIRING: &[&str] = &["cli", "main"];

/// Modules that know stores and token endpoints by their traits alone.
const ABSTRACT: &[&str] = &[
    "agent",
    "reader",
    "fleet",
    "health",
    "maintenance",
    "plan",
    "refresh",
    "registrar",
    "scheduler",
    "sink",
];
/// The implementations behind those traits.
const CONCRETE: &[(&str, &[&str])] = &[
    (
        "store",
        &[
            "Connection",
            "DynamoStore",
            "DynamoVault",
            "Embedded",
            "MemoryStore",
            "Reading",
            "dynamo",
            "embedded",
            "memory",
            "table",
        ],
    ),
    ("provider", &["HttpEndpoint", "HttpSettings", "http", "wire"]),
];

/// What decides is pure: none of these words stands under `plan`.
const IMPURE: &[&str] = &["Clock", "async", "await", "rand", "tokio", "tracing", "Mutex", "println"];
/// Nor any path into these parts of the standard library.
const IMPURE_STD: &[&str] = &["env", "fs", "io", "net", "process", "thread"];

/// Where AWS's crates may be named.
const AWS: &[&str] = &[
    "src/aws",
    "src/provider/tls",
    "src/secrets/aws",
    // The crypto library behind rustls is of AWS's make.
    "src/tls",
    "src/spill/bucket",
    // Digests of readers' keys, and their comparison in constant time.
    "src/agent/keys",
    "src/seal/jwe",
    "src/seal/kms",
    "src/store/dynamo",
    "src/store/item",
    "src/store/table",
    "src/store/embedded",
];
/// The longest file, in lines. What grows beyond it has two subjects.
const LONGEST: usize = 700;

/// A rule that was broken, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// A word or a sign of the source; `::` counts as one sign.
#[derive(Clone, Debug)]
struct Token {
    line: usize,
    text: String,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    }
}

/// A path as it is written out, groups expanded, with the module that it stands in.
#[derive(Debug)]
struct Use {
    line: usize,
    module: Vec<String>,
    segments: Vec<String>,
}

impl Use {
    /// The path from the crate's root, if it leads into this crate.
    fn resolved(&self) -> Option<Vec<String>> {
        let mut module = self.module.clone();
        let mut rest = self.segments.as_slice();
        match rest.first()?.as_str() {
            "crate" | "perennial" => {
                module.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    module.pop();
                    rest = &rest[1..];
                }
            }
            _ => return None,
        }
        module.extend(rest.iter().cloned());
        Some(module)
    }
}

/// One source file, read.
struct Source {
    file: String,
    text: String,
    /// Without tests.
    tokens: Vec<Token>,
    uses: Vec<Use>,
    /// Modules that are declared for tests only and stand in files of their own.
    test_modules: Vec<String>,
}

impl Source {
    fn parse(file: &str, text: &str) -> Self {
        let (tokens, test_modules) = without_tests(&lex(text));
        let uses = paths(&tokens, &module_of(file));
        Self { file: file.to_owned(), text: text.to_owned(), tokens, uses, test_modules }
    }

    /// The top-level module that the file belongs to; `lib` and `main` for the roots.
    fn top(&self) -> String {
        module_of(&self.file).into_iter().next().unwrap_or_else(|| {
            Path::new(&self.file).file_stem().unwrap_or_default().to_string_lossy().into_owned()
        })
    }

    fn violation(&self, line: usize, rule: impl Into<String>) -> Violation {
        Violation { file: self.file.clone(), line, rule: rule.into() }
    }

    fn words<'a>(&'a self, what: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a Token> {
        self.tokens.iter().filter(move |token| token.is_word() && what(&token.text))
    }

    fn under(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.file.starts_with(folder))
    }
}

fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<_> = path.split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("lib" | "main" | "mod")) {
        module.pop();
    }
    module
}

/// Cuts a source into words and signs. Comments are dropped; a string or a character becomes one sign.
fn lex(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let length = token_length(&chars[at..]);
        let piece: String = chars[at..at + length].iter().collect();
        let comment = piece.starts_with("//") || piece.starts_with("/*");
        if !comment && !piece.trim().is_empty() {
            let literal = piece.ends_with('"') || piece.ends_with('#') && length > 1 || piece.ends_with('\'');
            tokens.push(Token { line, text: if literal { "\"".to_owned() } else { piece.clone() } });
        }
        line += piece.matches('\n').count();
        at += length;
    }
    tokens
}

fn token_length(rest: &[char]) -> usize {
    let starts = |text: &str| text.chars().enumerate().all(|(n, c)| rest.get(n) == Some(&c));
    let until = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |position| from + position + end.len())
    };
    if starts("//") {
        return rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
    }
    if starts("/*") {
        return block_comment_length(rest);
    }
    if starts("::") {
        return 2;
    }
    if let Some(length) = raw_string_length(rest, &until) {
        return length;
    }
    match rest[0] {
        '"' => string_length(rest),
        'b' | 'c' if rest.get(1) == Some(&'"') => 1 + string_length(&rest[1..]),
        '\'' => char_length(rest, &until),
        c if c.is_alphanumeric() || c == '_' => {
            rest.iter().position(|c| !c.is_alphanumeric() && *c != '_').unwrap_or(rest.len())
        }
        _ => 1,
    }
}

fn block_comment_length(rest: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < rest.len() {
        match (rest[at], rest.get(at + 1)) {
            ('/', Some('*')) => (at, depth) = (at + 2, depth + 1),
            ('*', Some('/')) => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn raw_string_length(rest: &[char], until: &dyn Fn(usize, &str) -> usize) -> Option<usize> {
    let prefix = rest.iter().take_while(|c| matches!(c, 'b' | 'c')).count().min(1);
    let hashes = rest.get(prefix + 1..)?.iter().take_while(|c| **c == '#').count();
    let raw = rest.get(prefix) == Some(&'r') && rest.get(prefix + 1 + hashes) == Some(&'"');
    raw.then(|| until(prefix + hashes + 2, &format!("\"{}", "#".repeat(hashes))))
}

fn string_length(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// A character, or the tick of a lifetime.
fn char_length(rest: &[char], until: &dyn Fn(usize, &str) -> usize) -> usize {
    match (rest.get(1), rest.get(2)) {
        (Some('\\'), _) => until(3, "'"),
        (_, Some('\'')) => 3,
        _ => 1,
    }
}

/// Takes out whatever stands under `#[cfg(test)]`. Also names the modules so declared that have a file of their own.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        let Some(end) = test_attribute_end(&tokens[at..]) else {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        };
        let item = &tokens[at + end..];
        let length = item_length(item);
        let words: Vec<_> = item[..length].iter().map(|token| token.text.as_str()).collect();
        if let [.., "mod", name, ";"] = words.as_slice() {
            modules.push((*name).to_owned());
        }
        at += end + length;
    }
    (kept, modules)
}

/// Where an attribute `#[cfg(...)]` ends that asks for tests, if one begins here.
fn test_attribute_end(tokens: &[Token]) -> Option<usize> {
    let head: Vec<_> = tokens.iter().take(3).map(|token| token.text.as_str()).collect();
    if head != ["#", "[", "cfg"] {
        return None;
    }
    let end = closing(&tokens[1..], "[", "]")? + 2;
    let has = |word: &str| tokens[..end].iter().any(|token| token.text == word);
    (has("test") && !has("not")).then_some(end)
}

/// The index of the sign that closes the first one that opens.
fn closing(tokens: &[Token], open: &str, close: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        if token.text == open {
            depth += 1;
        } else if token.text == close {
            depth -= 1;
            if depth == 0 {
                return Some(index);
            }
        }
    }
    None
}

/// An item ends with its first `;` outside brackets, or with the braces that open first.
fn item_length(tokens: &[Token]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            ";" if depth == 0 => return at + 1,
            "{" if depth == 0 => {
                return closing(&tokens[at..], "{", "}").map_or(tokens.len(), |end| at + end + 1);
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Every path of at least two segments, groups expanded.
fn paths(tokens: &[Token], file_module: &[String]) -> Vec<Use> {
    let modules = inline_modules(tokens);
    let mut uses = Vec::new();
    for at in 0..tokens.len() {
        let begins = tokens[at].is_word()
            && tokens.get(at + 1).is_some_and(|next| next.text == "::")
            && (at == 0 || tokens[at - 1].text != "::");
        if begins {
            let module: Vec<_> = file_module.iter().chain(&modules[at]).cloned().collect();
            let mut found = Vec::new();
            path_tree(tokens, at, &[], &mut found);
            uses.extend(found.into_iter().map(|(line, segments)| Use {
                line,
                module: module.clone(),
                segments,
            }));
        }
    }
    uses
}

/// For each token, the modules with bodies that it stands in.
fn inline_modules(tokens: &[Token]) -> Vec<Vec<String>> {
    let (mut open, mut result) = (Vec::<Option<String>>::new(), Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => {
                let named = at >= 2 && tokens[at - 2].text == "mod";
                open.push(named.then(|| tokens[at - 1].text.clone()));
            }
            "}" => drop(open.pop()),
            _ => {}
        }
        result.push(open.iter().flatten().cloned().collect());
    }
    result
}

/// Reads one path, or a group of them, and returns where it ends.
fn path_tree(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        if token.text == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token.text != "}") {
                at = match tokens[at].text.as_str() {
                    "," => at + 1,
                    _ => path_tree(tokens, at, &path, found).max(at + 1),
                };
            }
            return at + 1;
        }
        if !token.is_word() && token.text != "*" {
            break;
        }
        path.push(token.text.clone());
        let line = token.line;
        at += 1;
        if tokens.get(at).is_none_or(|next| next.text != "::") {
            found.push((line, path));
            let renamed = tokens.get(at).is_some_and(|next| next.text == "as");
            return if renamed { at + 2 } else { at };
        }
        at += 1;
    }
    let line = tokens.get(at).map_or(0, |token| token.line);
    found.push((line, path));
    at
}

/// A module uses only what [`MAY_USE`] allows it, and only `main.rs` uses `cli`.
fn directions(source: &Source) -> Vec<Violation> {
    let top = source.top();
    if top == "lib" || WIRING.contains(&top.as_str()) {
        return Vec::new();
    }
    let Some((_, allowed)) = MAY_USE.iter().find(|(module, _)| *module == top) else {
        let rule = format!("module `{top}` is not in MAY_USE of tests/architecture.rs: say what it may use");
        return vec![source.violation(1, rule)];
    };
    let targets = source.uses.iter().filter_map(|path| Some((path.line, path.resolved()?.first()?.clone())));
    targets
        .filter(|(_, target)| *target != top && target.starts_with(char::is_lowercase))
        .filter(|(_, target)| !allowed.contains(&target.as_str()))
        .map(|(line, target)| source.violation(line, format!("`{top}` must not use `{target}`")))
        .collect()
}

/// Who knows a trait does not know what stands behind it.
fn traits_only(source: &Source) -> Vec<Violation> {
    let top = source.top();
    if !ABSTRACT.contains(&top.as_str()) {
        return Vec::new();
    }
    let concrete = |path: &Use| {
        let resolved = path.resolved()?;
        let (module, name) = (resolved.first()?, resolved.get(1)?);
        let (_, names) = CONCRETE.iter().find(|(of, _)| of == module)?;
        names.contains(&name.as_str()).then(|| format!("{module}::{name}"))
    };
    let named = source.uses.iter().filter_map(|path| Some((path.line, concrete(path)?)));
    named
        .map(|(line, name)| {
            source.violation(line, format!("`{top}` knows traits only, and `{name}` is an implementation"))
        })
        .collect()
}

/// AWS's crates and anyhow each have their corner.
fn foreign_crates(source: &Source) -> Vec<Violation> {
    let aws = source
        .words(|word| word.starts_with("aws_"))
        .filter(|_| !source.under(AWS))
        .map(|token| source.violation(token.line, format!("`{}` is named in {AWS:?} only", token.text)));
    let anyhow = source
        .words(|word| word == "anyhow")
        .filter(|_| !source.under(&["src/cli", "src/main.rs"]))
        .map(|token| {
            source.violation(token.line, "anyhow is for src/cli and src/main.rs: use a thiserror enum")
        });
    aws.chain(anyhow).collect()
}

/// Clocks are read in one file, the environment in one module, and nothing is unsafe.
fn world(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for path in &source.uses {
        let tail: Vec<_> = path.segments.iter().map(String::as_str).collect();
        match tail.as_slice() {
            [.., "SystemTime" | "Instant", "now"] if source.file != "src/time.rs" => {
                violations
                    .push(source.violation(path.line, "clocks are read in src/time.rs only: use Clock"));
            }
            [.., "env", "var" | "var_os" | "vars" | "vars_os" | "*"] if source.top() != "config" => {
                violations.push(source.violation(path.line, "the environment is read in src/config only"));
            }
            _ => {}
        }
    }
    let unsafe_words = source.words(|word| word == "unsafe");
    violations.extend(unsafe_words.map(|token| source.violation(token.line, "nothing is unsafe")));
    violations
}

/// What decides neither awaits, nor logs, nor reads a clock, nor draws a number, nor touches the machine.
fn purity(source: &Source) -> Vec<Violation> {
    if source.top() != "plan" {
        return Vec::new();
    }
    let words = source
        .words(|word| IMPURE.contains(&word))
        .map(|token| source.violation(token.line, format!("`plan` is pure: no `{}`", token.text)));
    let std = source.uses.iter().filter_map(|path| match path.segments.as_slice() {
        [root, part, ..] if root == "std" && IMPURE_STD.contains(&part.as_str()) => {
            Some(source.violation(path.line, format!("`plan` is pure: no `std::{part}`")))
        }
        _ => None,
    });
    words.chain(std).collect()
}

/// A file says what it is for, is not endless, and names no function `get_`.
fn form(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    if !source.text.starts_with("//! ") {
        violations.push(source.violation(1, "begins with a module header: `//! what it is for`"));
    }
    let lines = source.text.lines().count();
    if lines > LONGEST {
        violations.push(source.violation(lines, format!("has {lines} lines, {LONGEST} at most: split it")));
    }
    let functions = source.tokens.windows(2).filter(|pair| pair[0].text == "fn");
    violations.extend(functions.filter(|pair| pair[1].text.starts_with("get_")).map(|pair| {
        let rule = format!("`{}`: a getter is named for what it gives, without `get_`", pair[1].text);
        source.violation(pair[1].line, rule)
    }));
    violations
}

/// The sources under `src`, without those that are modules for tests.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    files.sort();
    let parsed: Vec<_> = files
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).expect("a source file is readable text");
            let file = path.strip_prefix(root).expect("it was found there").to_string_lossy().into_owned();
            Source::parse(&file, &text)
        })
        .collect();
    let for_tests: BTreeSet<_> = parsed.iter().flat_map(test_files).collect();
    parsed.into_iter().filter(|source| !for_tests.contains(&source.file)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder of the sources is readable") {
        let path = entry.expect("its entries are readable").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn test_files(source: &Source) -> Vec<String> {
    let mut folder = module_of(&source.file);
    folder.insert(0, "src".to_owned());
    let folder = folder.join("/");
    source.test_modules.iter().map(|name| format!("{folder}/{name}.rs")).collect()
}

/// # Panics
/// When a source breaks the rule, with every place where it does.
fn hold(rule: impl Fn(&Source) -> Vec<Violation>) {
    let sources = sources();
    assert!(
        sources.iter().any(|source| source.file == "src/plan/lease.rs"),
        "the sources were not found: nothing was checked"
    );
    let violations: BTreeSet<_> = sources.iter().flat_map(&rule).collect();
    let list: Vec<_> = violations.iter().map(ToString::to_string).collect();
    assert!(list.is_empty(), "the architecture is broken in {} places:\n{}", list.len(), list.join("\n"));
}

#[test]
fn modules_use_each_other_in_the_agreed_directions() {
    hold(directions);
}

#[test]
fn the_flow_knows_traits_and_not_what_stands_behind_them() {
    hold(traits_only);
}

#[test]
fn aws_and_anyhow_keep_to_their_corners() {
    hold(foreign_crates);
}

#[test]
fn clocks_and_environment_are_read_in_one_place_each() {
    hold(world);
}

#[test]
fn what_decides_is_pure() {
    hold(purity);
}

#[test]
fn files_have_headers_and_an_end() {
    hold(form);
}

/// The rules, shown what they must refuse: a check that cannot fail is none.
mod rules {
    use super::*;

    fn broken(file: &str, text: &str) -> Vec<String> {
        let source = Source::parse(file, text);
        let rules = [directions, traits_only, foreign_crates, world, purity];
        rules.iter().flat_map(|rule| rule(&source)).map(|violation| violation.to_string()).collect()
    }

    #[test]
    fn every_way_of_writing_a_forbidden_path_is_seen() {
        let rule = "src/plan/lease.rs:2: `plan` must not use `store`";
        for text in [
            "\nuse crate::store::Store;",
            "\nuse crate::{store::Store};",
            "\nuse crate::{client::ClientId, store::{self, Store}};",
            "\nuse crate::store as s;",
            "\nfn f() -> crate::store::Applied {}",
            "\npub(crate) use super::super::store::Store;",
            "\nmod inner { use super::super::super::store::View; }",
            "use crate::{\nstore::*};",
        ] {
            assert!(broken("src/plan/lease.rs", text).iter().any(|found| found == rule), "{text}");
        }
    }

    #[test]
    fn what_is_allowed_is_let_through() {
        for (file, text) in [
            ("src/plan/lease.rs", "use crate::{client::ClientId, item::Change};\nuse super::policy::Timing;"),
            ("src/plan/lease.rs", "// use crate::store::Store;\n/* crate::store /* nested */ crate::cli */"),
            (
                "src/plan/lease.rs",
                "const A: &str = \"crate::store::Store\"; const B: &str = r#\"crate::cli::x\"#;",
            ),
            (
                "src/plan/lease.rs",
                "#[cfg(test)]\nmod tests { use crate::store::Store; fn f() { let x = '{'; } }",
            ),
            ("src/plan/lease.rs", "#[cfg(test)] use crate::store::Store;\nfn f<'a>(x: &'a str) {}"),
            ("src/plan.rs", "#[cfg(test)]\nfn f(x: [u8; 3]) { crate::store::x() }"),
            ("src/plan.rs", "mod inner { use super::lease::Lease; }"),
            ("src/main.rs", "use perennial::cli::run;"),
            ("src/cli/mod.rs", "use crate::store::DynamoStore; use anyhow::Context;"),
            ("src/store/dynamo/render.rs", "use aws_sdk_dynamodb::Client;"),
            ("src/time.rs", "use std::time::SystemTime; fn f() { SystemTime::now(); }"),
            ("src/config/sources.rs", "fn f() { std::env::var(\"X\"); }"),
        ] {
            assert_eq!(broken(file, text), Vec::<String>::new(), "{file}: {text}");
        }
    }

    #[test]
    fn code_that_merely_mentions_tests_is_still_judged() {
        let after = "#[cfg(test)]\nmod tests { mod deep {} }\nuse crate::store::Store;";
        assert_eq!(broken("src/plan/lease.rs", after), ["src/plan/lease.rs:3: `plan` must not use `store`"]);
        let not = "#[cfg(not(test))]\nuse crate::store::Store;";
        assert_eq!(broken("src/plan/lease.rs", not).len(), 1);
    }

    #[test]
    fn each_rule_can_fail() {
        for (file, text, rule) in [
            ("src/store/memory.rs", "use crate::plan::lease;", "`store` must not use `plan`"),
            ("src/refresh.rs", "use crate::config::Config;", "`refresh` must not use `config`"),
            ("src/fleet.rs", "use crate::cli::run;", "`fleet` must not use `cli`"),
            ("src/novel.rs", "", "not in MAY_USE"),
            (
                "src/refresh.rs",
                "use crate::store::{Applied, DynamoStore};",
                "`store::DynamoStore` is an implementation",
            ),
            (
                "src/scheduler.rs",
                "use crate::provider::HttpEndpoint;",
                "`provider::HttpEndpoint` is an implementation",
            ),
            ("src/store/memory.rs", "use aws_sdk_dynamodb::Client;", "`aws_sdk_dynamodb` is named in"),
            ("src/store.rs", "fn f() { aws_config::load() }", "`aws_config` is named in"),
            ("src/record.rs", "fn f() -> anyhow::Result<()> {}", "anyhow is for"),
            ("src/record.rs", "fn f() { anyhow!(\"x\") }", "anyhow is for"),
            ("src/refresh.rs", "fn f() { std::time::Instant::now(); }", "clocks are read in"),
            ("src/refresh.rs", "fn f() { SystemTime::now(); }", "clocks are read in"),
            ("src/cli/get.rs", "use std::env; fn f() { env::var(\"X\"); }", "the environment is read in"),
            ("src/cli/get.rs", "use std::env::{args, var_os};", "the environment is read in"),
            ("src/time.rs", "fn f() { unsafe { g() } }", "nothing is unsafe"),
            ("src/plan/lease.rs", "async fn f() {}", "no `async`"),
            ("src/plan/lease.rs", "fn f(x: X) { x.await }", "no `await`"),
            ("src/plan.rs", "use tracing::info;", "no `tracing`"),
            ("src/plan/backoff.rs", "fn f() { rand::random() }", "no `rand`"),
            ("src/plan/backoff.rs", "use crate::time::{Clock, Moment};", "no `Clock`"),
            ("src/plan/backoff.rs", "use std::{fs, fmt};", "no `std::fs`"),
        ] {
            let found = broken(file, text);
            assert!(found.iter().any(|message| message.contains(rule)), "{file}: {text}: {found:?}");
        }
    }

    #[test]
    fn a_file_without_header_without_end_or_with_getters_is_named() {
        let long = format!("//! Long.\n{}", "\n".repeat(LONGEST));
        for (text, rule) in [
            ("fn main() {}", "module header"),
            ("// not a header\n//! too late", "module header"),
            (long.as_str(), "lines, 700 at most"),
            ("//! Header.\npub fn get_token() {}", "`get_token`"),
        ] {
            let found = form(&Source::parse("src/record.rs", text));
            assert!(found.len() == 1 && found[0].rule.contains(rule), "{text:.40}: {found:?}");
        }
    }

    #[test]
    fn a_violation_names_its_file_and_line() {
        let found = broken("src/plan/lease.rs", "\n\n\nasync fn f() {}");
        assert_eq!(found, ["src/plan/lease.rs:4: `plan` is pure: no `async`"]);
    }

    #[test]
    fn modules_for_tests_in_files_of_their_own_are_found() {
        let source = Source::parse("src/plan.rs", "#[cfg(test)]\npub(crate) mod testing;\npub mod lease;");
        assert_eq!(test_files(&source), ["src/plan/testing.rs"]);
    }
}
