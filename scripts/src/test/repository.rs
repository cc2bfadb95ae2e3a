//! Rules for the files of the repository.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::repository;
use crate::process::output;

/// No file in git is larger, in bytes.
const LARGEST_FILE: u64 = 400_000;

/// Checks that git tracks no large file.
pub fn files_are_small() -> Result<()> {
    let size = |file: &PathBuf| file.symlink_metadata().map_or(0, |meta| meta.len());
    let large: Vec<String> = tracked()?
        .iter()
        .filter(|file| size(file) > LARGEST_FILE)
        .map(|file| format!("{} ({} bytes)", file.display(), size(file)))
        .collect();
    if !large.is_empty() {
        bail!(
            "larger than {LARGEST_FILE} bytes, build or fetch them instead: {}",
            large.join(", ")
        );
    }
    Ok(())
}

/// Checks the syntax of the shell scripts.
pub fn shell_scripts_parse() -> Result<()> {
    for file in tracked()? {
        let first = fs::read(&file).unwrap_or_default();
        if first.starts_with(b"#!/usr/bin/env bash\n")
            || file.extension().is_some_and(|is| is == "bash")
        {
            output(Command::new("bash").arg("-n").arg(&file))?;
        }
    }
    Ok(())
}

/// The files that git tracks and that are there.
fn tracked() -> Result<Vec<PathBuf>> {
    let root = repository();
    let list = output(
        Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(&root),
    )
    .context("git cannot list the repository's files: run the tests in a clone")?;
    Ok(list
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(|name| root.join(name))
        .filter(|file| file.exists())
        .collect())
}
