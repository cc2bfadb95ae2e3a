//! `mkinitramfs MANIFEST OUTPUT --root NAME=DIR...`: writes a reproducible initramfs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mkinitramfs::{Roots, make};

const USAGE: &str = "usage: mkinitramfs MANIFEST OUTPUT [--root NAME=DIR]...";

fn main() -> ExitCode {
    let Some((files, roots)) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let [manifest, output] = &files;
    match make(Path::new(manifest), &roots, Path::new(output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mkinitramfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<([String; 2], Roots)> {
    let mut files = Vec::new();
    let mut roots = Roots::new();
    while let Some(arg) = args.next() {
        if arg == "--root" {
            let root = args.next()?;
            let (name, dir) = root.split_once('=')?;
            roots.insert(name.to_owned(), PathBuf::from(dir));
        } else {
            files.push(arg);
        }
    }
    Some((files.try_into().ok()?, roots))
}
