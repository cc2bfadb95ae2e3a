//! The manifest: one entry a line, `#` starts a comment.
//!
//! ```text
//! dir  MODE DEST
//! file MODE DEST SOURCE
//! link DEST TARGET
//! char MODE DEST MAJOR MINOR
//! ```
//! MODE is octal, DEST has no leading slash, SOURCE is `@root/path` with a root named on the command line.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;

/// Where sources are found: the name after `@`, and its folder.
pub type Roots = BTreeMap<String, PathBuf>;

/// A manifest, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Entries in the order of the file, parents before children.
    pub items: Vec<Item>,
}

/// One entry of a manifest.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    /// Path in the image, without a leading slash.
    pub dest: String,
    /// Permission bits.
    pub mode: u32,
    /// What stands there.
    pub what: What,
}

/// What an entry is, its contents not yet read.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A copy of this file.
    File(PathBuf),
    /// A symbolic link to this target.
    Link(String),
    /// A character device with major and minor number.
    CharDevice(u32, u32),
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Line number, from 1.
    pub line: usize,
    /// The cause.
    pub cause: Cause,
}

/// Why a line does not hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Cause {
    /// The first word is no verb of the format.
    UnknownVerb(String),
    /// The verb takes this many words.
    WrongWords {
        /// Words that the verb takes, itself included.
        wanted: usize,
        /// Words found.
        found: usize,
    },
    /// Not a number, or a mode above 7777.
    BadNumber(String),
    /// Absolute, empty, or with `.` or `..` in it.
    BadPath(String),
    /// The same path twice.
    Twice(String),
    /// The parent has no `dir` line above.
    NoParent(String),
    /// The source's root was not given.
    UnknownRoot(String),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        match &self.cause {
            Cause::UnknownVerb(verb) => write!(f, "'{verb}' is none of dir, file, link, char"),
            Cause::WrongWords { wanted, found } => {
                write!(f, "{found} words where {wanted} are needed")
            }
            Cause::BadNumber(word) => write!(
                f,
                "'{word}' is not a mode (octal, at most 7777) or device number"
            ),
            Cause::BadPath(path) => {
                write!(f, "'{path}' must be relative, without empty parts, . or ..")
            }
            Cause::Twice(path) => write!(f, "'{path}' stands here a second time: remove one"),
            Cause::NoParent(path) => {
                write!(f, "the folder of '{path}' has no dir line above: add one")
            }
            Cause::UnknownRoot(source) => write!(
                f,
                "'{source}' does not start with a root given by --root NAME=DIR"
            ),
        }
    }
}

impl Manifest {
    /// Parses and checks `text`.
    ///
    /// # Errors
    /// [`ManifestError`] naming the first line that does not hold.
    pub fn parse(text: &str, roots: &Roots) -> Result<Self, ManifestError> {
        let mut items = Vec::new();
        let mut paths = HashSet::new();
        let mut folders = HashSet::new();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line
                .split('#')
                .next()
                .unwrap_or("")
                .split_whitespace()
                .collect();
            if words.is_empty() {
                continue;
            }
            let at = |cause| ManifestError {
                line: number + 1,
                cause,
            };
            let item = parse_item(&words, roots).map_err(at)?;
            check_path(&item.dest, &folders).map_err(at)?;
            if !paths.insert(item.dest.clone()) {
                return Err(at(Cause::Twice(item.dest)));
            }
            if item.what == What::Directory {
                folders.insert(item.dest.clone());
            }
            items.push(item);
        }
        Ok(Self { items })
    }
}

fn parse_item(words: &[&str], roots: &Roots) -> Result<Item, Cause> {
    let (dest, mode, what) = match *words {
        ["dir", mode, dest] => (dest, octal(mode)?, What::Directory),
        ["file", mode, dest, source] => (dest, octal(mode)?, What::File(resolve(source, roots)?)),
        ["link", dest, target] => (dest, 0o777, What::Link(target.to_owned())),
        ["char", mode, dest, major, minor] => (
            dest,
            octal(mode)?,
            What::CharDevice(decimal(major)?, decimal(minor)?),
        ),
        _ => return Err(wrong_shape(words)),
    };
    Ok(Item {
        dest: dest.to_owned(),
        mode,
        what,
    })
}

fn wrong_shape(words: &[&str]) -> Cause {
    let verb = words.first().copied().unwrap_or_default();
    let wanted = match verb {
        "dir" | "link" => 3,
        "file" => 4,
        "char" => 5,
        _ => return Cause::UnknownVerb(verb.to_owned()),
    };
    Cause::WrongWords {
        wanted,
        found: words.len(),
    }
}

fn octal(word: &str) -> Result<u32, Cause> {
    match u32::from_str_radix(word, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(Cause::BadNumber(word.to_owned())),
    }
}

fn decimal(word: &str) -> Result<u32, Cause> {
    word.parse().map_err(|_| Cause::BadNumber(word.to_owned()))
}

fn resolve(source: &str, roots: &Roots) -> Result<PathBuf, Cause> {
    let found = source
        .strip_prefix('@')
        .and_then(|rest| rest.split_once('/'));
    found
        .and_then(|(root, path)| Some(roots.get(root)?.join(path)))
        .ok_or_else(|| Cause::UnknownRoot(source.to_owned()))
}

fn check_path(dest: &str, folders: &HashSet<String>) -> Result<(), Cause> {
    if dest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Cause::BadPath(dest.to_owned()));
    }
    match dest.rsplit_once('/') {
        Some((parent, _)) if !folders.contains(parent) => Err(Cause::NoParent(dest.to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots() -> Roots {
        Roots::from([("out".to_owned(), PathBuf::from("/build"))])
    }

    fn cause(text: &str) -> (usize, Cause) {
        let error = Manifest::parse(text, &roots()).unwrap_err();
        (error.line, error.cause)
    }

    #[test]
    fn every_verb_is_understood() {
        let text = "# a comment\ndir 755 bin  # another\n\nfile 755 bin/a @out/a\nlink bin/b a\nchar 600 c 5 1\n";
        let items = Manifest::parse(text, &roots()).unwrap().items;
        let what: Vec<_> = items
            .into_iter()
            .map(|i| (i.dest, i.mode, i.what))
            .collect();
        let expected = [
            ("bin".to_owned(), 0o755, What::Directory),
            ("bin/a".to_owned(), 0o755, What::File("/build/a".into())),
            ("bin/b".to_owned(), 0o777, What::Link("a".to_owned())),
            ("c".to_owned(), 0o600, What::CharDevice(5, 1)),
        ];
        assert_eq!(what, expected);
    }

    #[test]
    fn a_line_that_does_not_hold_is_named_with_its_cause() {
        let table = [
            (
                "dir 755 a\nfifo 644 b",
                2,
                Cause::UnknownVerb("fifo".into()),
            ),
            (
                "file 644 a",
                1,
                Cause::WrongWords {
                    wanted: 4,
                    found: 3,
                },
            ),
            ("dir 789 a", 1, Cause::BadNumber("789".into())),
            ("dir 10000 a", 1, Cause::BadNumber("10000".into())),
            ("char 600 a 5 x", 1, Cause::BadNumber("x".into())),
            ("dir 755 /a", 1, Cause::BadPath("/a".into())),
            ("dir 755 a\ndir 755 a/..", 2, Cause::BadPath("a/..".into())),
            ("link a b\nlink a c", 2, Cause::Twice("a".into())),
            ("dir 755 a\nlink b/c x", 2, Cause::NoParent("b/c".into())),
            (
                "file 644 a @other/a",
                1,
                Cause::UnknownRoot("@other/a".into()),
            ),
            (
                "file 644 a /etc/passwd",
                1,
                Cause::UnknownRoot("/etc/passwd".into()),
            ),
        ];
        for (text, line, expected) in table {
            assert_eq!(cause(text), (line, expected), "{text}");
        }
    }
}
