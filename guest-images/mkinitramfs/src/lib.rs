//! Reproducible initramfs images from a plain manifest.
//!
//! The same manifest and the same source files give the same bytes on every machine: owner and times are zero, inode
//! numbers follow the manifest, and the compressor is part of the program. No cpio, gzip or root is needed.

mod cpio;
mod manifest;

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use flate2::{Compression, GzBuilder};

pub use cpio::{Archive, Entry, FieldTooBig, Kind};
pub use manifest::{Manifest, ManifestError, Roots, What};

/// Why an image could not be made.
#[derive(Debug)]
pub enum Error {
    /// The manifest has a line that does not hold.
    Manifest(PathBuf, ManifestError),
    /// A file could not be read or written.
    File(PathBuf, io::Error),
    /// A field of the archive would overflow.
    TooBig(PathBuf, FieldTooBig),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(path, error) => write!(f, "{}:{error}", path.display()),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::TooBig(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

/// Writes the image that `manifest` describes to `output`, whole or not at all.
///
/// # Errors
/// [`Error`] when the manifest is malformed, a source is missing or `output` cannot be written.
pub fn make(manifest: &Path, roots: &Roots, output: &Path) -> Result<(), Error> {
    let text = read(manifest)?;
    let text = String::from_utf8_lossy(&text);
    let parsed =
        Manifest::parse(&text, roots).map_err(|e| Error::Manifest(manifest.to_owned(), e))?;
    let mut archive = Archive::new();
    for item in &parsed.items {
        let entry = Entry {
            path: &item.dest,
            mode: item.mode,
            kind: load(&item.what)?,
        };
        archive
            .add(&entry)
            .map_err(|e| Error::TooBig(item.dest.clone().into(), e))?;
    }
    let image = compress(&archive.finish()).map_err(|e| Error::File(output.to_owned(), e))?;
    replace(output, &image)
}

/// Brings an item's contents into memory.
fn load(what: &What) -> Result<Kind, Error> {
    Ok(match what {
        What::Directory => Kind::Directory,
        What::File(source) => Kind::File(read(source)?),
        What::Link(target) => Kind::Link(target.clone()),
        What::CharDevice(major, minor) => Kind::CharDevice(*major, *minor),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|e| Error::File(path.to_owned(), e))
}

/// Compresses without a name or a time in the header, so that the bytes depend on the input alone.
fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

/// Puts `bytes` at `path` by renaming, so that a reader sees the old image or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| {
        // The first error is the one to report; a left-over temporary file is only litter.
        drop(fs::remove_file(&temporary));
        Error::File(path.to_owned(), e)
    })
}
