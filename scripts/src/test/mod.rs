//! `scripts/test`: every check and every test, then one plain count.

mod repository;
mod tally;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::image::text_and_data;
use crate::paths::{BARE_TARGET, Cache, repository, target_dir};
use crate::process::output;
use crate::run::build::{self, cargo, cargo_with};
use crate::setup::{self, Part};
use tally::Tally;

/// text and data of tagvisor's Image are at most this many bytes.
const LARGEST_IMAGE: u64 = 288 << 10;

/// The feature with which a package's tests take long.
const LONG_TESTS: &str = "full";

/// Runs all tests; `full` adds those that take long. Returns whether all passed.
///
/// # Errors
/// The tests cannot begin: set-up fails or cargo cannot be started.
pub fn test(full: bool) -> Result<bool> {
    let cache = Cache::of_user()?;
    let parts = if full { &Part::ALL[..] } else { &Part::USUAL };
    setup::ensure(&cache, parts)?;
    let long_tests = features_named(LONG_TESTS)?;
    let mut tally = Tally::default();
    let begun = Instant::now();
    check(&mut tally, "formatting", || {
        cargo(&["fmt", "--all", "--check"])
    });
    check(&mut tally, "small files only", repository::files_are_small);
    check(
        &mut tally,
        "shell scripts parse",
        repository::shell_scripts_parse,
    );
    check(&mut tally, "clippy on the host's code", || {
        clippy(&["--workspace", "--all-targets", "--features", &long_tests])
    });
    check(&mut tally, "clippy on EL2's code", || {
        clippy(&[
            "--target",
            BARE_TARGET,
            "--package",
            "hypervisor",
            "--package",
            "bare-guests",
        ])
    });
    check(&mut tally, "documentation", documentation);
    check(&mut tally, "EL2 builds for release", || {
        build::tagvisor("el2").map(drop)
    });
    check(&mut tally, "EL2 builds with its checks", || {
        build::tagvisor(build::CHECKING_PROFILE).map(drop)
    });
    check(&mut tally, "EL2's image is small", image_is_small);
    check(&mut tally, "oracle and plugin build", || {
        build::library("carveout")
            .and_then(|_| build::library("count"))
            .map(drop)
    });
    check(&mut tally, "guests' file systems build", || {
        ["demo", "marks", "stress"]
            .iter()
            .try_for_each(|name| build::guest_image(name, cache.root()).map(drop))
    });
    cargo_tests(&mut tally, full.then_some(long_tests))?;
    println!("\n{} s in all", begun.elapsed().as_secs());
    tally.print();
    Ok(tally.is_good())
}

/// Runs one check and counts it as a test.
fn check(tally: &mut Tally, name: &str, body: impl FnOnce() -> Result<()>) {
    eprintln!("==> {name}");
    let begun = Instant::now();
    let result = body();
    let seconds = begun.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("check {name} ... ok ({seconds:.1} s)"),
        Err(error) => println!("check {name} ... FAILED ({seconds:.1} s)\n{error:#}"),
    }
    tally.add_check(name, result.is_ok());
}

fn clippy(what: &[&str]) -> Result<()> {
    cargo(&[&["clippy"], what, &["--", "-D", "warnings"]].concat())
}

/// Builds the documentation of everything, private items too, without warnings.
fn documentation() -> Result<()> {
    let what = [
        "doc",
        "--no-deps",
        "--workspace",
        "--all-features",
        "--document-private-items",
    ];
    // A link to a private item works, as these are documented.
    let flags = "-Dwarnings -Arustdoc::private-intra-doc-links";
    cargo_with(&what, &[("RUSTDOCFLAGS", flags)])
}

fn image_is_small() -> Result<()> {
    let image = build::tagvisor("el2")?;
    let bytes = text_and_data(&std::fs::read(image.with_extension(""))?)?;
    ensure!(
        bytes <= LARGEST_IMAGE,
        "text and data are {bytes} bytes, {LARGEST_IMAGE} is the limit: make it smaller"
    );
    println!("text and data: {bytes} bytes");
    Ok(())
}

/// Returns the feature `name` of each package of the workspace that has it, as cargo's `--features` takes them.
fn features_named(name: &str) -> Result<String> {
    let workspace = output(
        Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(repository()),
    )?;
    select_features(&workspace, name)
}

fn select_features(workspace: &str, name: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Workspace {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        features: HashMap<String, Vec<String>>,
    }
    let workspace: Workspace =
        serde_json::from_str(workspace).context("cargo metadata cannot be read")?;
    let with = workspace
        .packages
        .iter()
        .filter(|package| package.features.contains_key(name));
    let features: Vec<String> = with
        .map(|package| format!("{}/{name}", package.name))
        .collect();
    Ok(features.join(","))
}

/// Runs cargo's tests of the whole workspace, passing their output on and counting them; with the features `long`, all of them.
fn cargo_tests(tally: &mut Tally, long: Option<String>) -> Result<()> {
    eprintln!("==> cargo test");
    let mut command = Command::new("cargo");
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .current_dir(repository());
    command
        .env("TAGVISOR_ROOT", repository())
        .env("CARGO_TARGET_DIR", target_dir());
    if let Some(features) = long {
        // Millions of cases: optimized, with all checks.
        command.args(["--profile", "checked", "--features", &features]);
        command.env("TAGVISOR_FULL", "1");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let lines = BufReader::new(child.stdout.take().context("no pipe from cargo")?);
    for line in lines.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        tally.read(&line);
        // A reader that went away does not stop the tests; their exit code still counts.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    tally.end_of_cargo(child.wait()?.success());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_tests_are_those_of_all_packages_that_have_the_feature() {
        let workspace = r#"{"packages":[
            {"name":"a","features":{"full":[],"fakes":[]}},
            {"name":"b","features":{}},
            {"name":"c","features":{"full":["a/full"]}}]}"#;
        assert_eq!(
            select_features(workspace, LONG_TESTS).unwrap(),
            "a/full,c/full"
        );
        assert!(select_features("{", LONG_TESTS).is_err());
    }

    #[test]
    fn the_workspace_has_long_tests() {
        let features = features_named(LONG_TESTS).unwrap();
        assert!(features.contains("tagvisor-tests/full"), "{features}");
    }
}
