//! Whole images: the same input gives the same bytes, and a failure leaves no image behind.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is the failure")]

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use mkinitramfs::{Roots, make};

fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = scratch("same");
    fs::write(dir.join("init"), "#!/bin/sh\n").unwrap();
    fs::write(
        dir.join("manifest"),
        "dir 755 dev\nfile 755 init @src/init\n",
    )
    .unwrap();
    let roots = Roots::from([("src".to_owned(), dir.clone())]);
    make(&dir.join("manifest"), &roots, &dir.join("one")).unwrap();
    fs::write(dir.join("init"), "#!/bin/sh\n").unwrap(); // a newer time, the same contents
    make(&dir.join("manifest"), &roots, &dir.join("two")).unwrap();
    let one = fs::read(dir.join("one")).unwrap();
    assert_eq!(one, fs::read(dir.join("two")).unwrap());
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(one.as_slice())
        .read_to_end(&mut archive)
        .unwrap();
    assert!(archive.starts_with(b"070701"));
}

#[test]
fn a_missing_source_is_named_and_leaves_no_image() {
    let dir = scratch("missing");
    fs::write(dir.join("manifest"), "file 755 init @src/init\n").unwrap();
    let roots = Roots::from([("src".to_owned(), dir.clone())]);
    let error = make(&dir.join("manifest"), &roots, &dir.join("image")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&dir.join("init").display().to_string()),
        "{error}"
    );
    assert!(!dir.join("image").exists());
}
