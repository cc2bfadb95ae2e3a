//! The bundle: one cpio archive with the configuration, the kernels and the initrds, which EL2 gets as its initrd.

pub mod command;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Deserialize;

/// How tag storage is reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Lazy where the CPU allows it, else eager.
    #[default]
    Auto,
    /// The whole carve-out stays reserved, as on today's machines.
    Static,
    /// Reserve at a guest's first access to a page.
    Eager,
    /// Reserve at a guest's first tag access to a page.
    Lazy,
}

impl Policy {
    /// Returns the name that configurations and reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Static => "static",
            Self::Eager => "eager",
            Self::Lazy => "lazy",
        }
    }
}

/// A guest as EL2 is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its name in messages and reports.
    pub name: String,
    /// An arm64 Image or a raw image.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initrd: Option<PathBuf>,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// The CPUs that its virtual CPUs may run on (bit `n`: CPU `n`); none: all.
    pub cpu_mask: Option<u64>,
    /// Whether it sees MTE.
    pub mte: bool,
    /// The most tag storage that may be reserved for it, in bytes; none: as much as all its memory needs.
    pub tag_budget: Option<u64>,
    /// How tag storage is reserved for it; `Auto`: as for the machine.
    pub policy: Policy,
    /// Its kernel command line; empty for none.
    pub cmdline: String,
    /// Random bytes for its first start, in hexadecimal; empty for none.
    pub seed: String,
    /// Whether it starts with the machine; else it is a template for the monitor.
    pub autostart: bool,
}

/// All that EL2 is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// How tag storage is reserved.
    pub policy: Policy,
    /// Pages a second that the tag faults of one guest may evict from tag storage, 0 for any number; none: EL2's default.
    pub eviction_rate: Option<u32>,
    /// A tag block is emptied in idle time if no more percent of the pages that it covers have tags, 0: none; none: EL2's default.
    pub compact_below: Option<u8>,
    /// Whether there is no terminal.
    pub batch: bool,
    /// Whether the terminal understands colours.
    pub colour: bool,
    /// What marks the line of the report; no report line without it.
    pub report_key: Option<String>,
    /// The level of EL2's own messages, if not the default.
    pub log: Option<String>,
    /// The guests, in the order of their start.
    pub guests: Vec<Guest>,
}

impl Bundle {
    /// Writes the bundle to `to`; returns its length in bytes.
    ///
    /// # Errors
    /// A kernel or an initrd cannot be read, or the bundle not be written.
    pub fn write(&self, to: &Path) -> Result<u64> {
        let (conf, images) = self.conf();
        let mut archive = Archive::create(to)?;
        archive.add("tagvisor.conf", conf.len() as u64, &mut conf.as_bytes())?;
        for (index, image) in images.iter().enumerate() {
            let mut file =
                File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
            archive.add(&format!("image-{index}"), file.metadata()?.len(), &mut file)?;
        }
        archive.finish()
    }

    /// Writes the configuration's text and lists the files that it calls `image-0`, `image-1`, ...; each once, whatever its names.
    #[must_use]
    pub fn conf(&self) -> (String, Vec<PathBuf>) {
        let mut images = Vec::new();
        let mut lines = vec![
            "tagvisor 1".to_owned(),
            format!("policy {}", self.policy.name()),
        ];
        lines.extend(
            self.eviction_rate
                .iter()
                .map(|rate| format!("eviction-rate {rate}")),
        );
        lines.extend(
            self.compact_below
                .iter()
                .map(|percent| format!("compact-below {percent}")),
        );
        lines.push(format!("batch {}", on_off(self.batch)));
        if self.colour {
            lines.push("colour on".to_owned());
        }
        lines.extend(
            self.report_key
                .iter()
                .map(|key| format!("report-key {key}")),
        );
        lines.extend(self.log.iter().map(|level| format!("log {level}")));
        for guest in &self.guests {
            guest.describe(&mut lines, &mut images);
        }
        (lines.join("\n") + "\n", images)
    }
}

impl Guest {
    /// Adds its part of the configuration's text, and its files to those that there are.
    fn describe(&self, lines: &mut Vec<String>, images: &mut Vec<PathBuf>) {
        lines.push(format!("vm {}", self.name));
        lines.push(format!("kernel image-{}", index_of(images, &self.kernel)));
        if let Some(initrd) = &self.initrd {
            lines.push(format!("initrd image-{}", index_of(images, initrd)));
        }
        lines.push(format!("memory {}", self.memory_bytes));
        lines.push(format!("vcpus {}", self.vcpus));
        if let Some(mask) = self.cpu_mask {
            lines.push(format!("cpu-mask {mask}"));
        }
        lines.push(format!("mte {}", on_off(self.mte)));
        if let Some(bytes) = self.tag_budget {
            lines.push(format!("tag-budget {bytes}"));
        }
        if self.policy != Policy::Auto {
            lines.push(format!("policy {}", self.policy.name()));
        }
        if !self.autostart {
            lines.push("autostart off".to_owned());
        }
        if !self.seed.is_empty() {
            lines.push(format!("seed {}", self.seed));
        }
        if !self.cmdline.is_empty() {
            lines.push(format!("cmdline {}", self.cmdline));
        }
    }
}

const fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn index_of(images: &mut Vec<PathBuf>, image: &Path) -> usize {
    images
        .iter()
        .position(|known| known == image || is_same(known, image))
        .unwrap_or_else(|| {
            images.push(image.to_path_buf());
            images.len() - 1
        })
}

/// Whether two files hold the same; what cannot be read is no other's like, and said when it is added.
fn is_same(one: &Path, other: &Path) -> bool {
    let open = |path: &Path| Some((File::open(path).ok()?, path.metadata().ok()?.len()));
    let (Some((one, bytes)), Some((other, length))) = (open(one), open(other)) else {
        return false;
    };
    let (one, other) = (BufReader::new(one).bytes(), BufReader::new(other).bytes());
    bytes == length
        && one
            .zip(other)
            .all(|(a, b)| matches!((a, b), (Ok(a), Ok(b)) if a == b))
}

/// A cpio archive in the "newc" format under way.
#[derive(Debug)]
pub struct Archive {
    out: BufWriter<File>,
    written: u64,
    entries: u32,
}

impl Archive {
    /// Begins an archive.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(to: &Path) -> Result<Self> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        Ok(Self {
            out: BufWriter::new(file),
            written: 0,
            entries: 0,
        })
    }

    /// Adds a regular file of `bytes` bytes.
    ///
    /// # Errors
    /// The file is 4 GiB or more, is not as long as said, or the archive cannot be written.
    pub fn add(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> Result<()> {
        ensure!(
            u32::try_from(bytes).is_ok(),
            "{name} is {bytes} bytes: a bundle takes files below 4 GiB"
        );
        self.header(name, bytes)?;
        let copied = io::copy(&mut content.take(bytes), &mut self.out)?;
        ensure!(copied == bytes, "{name} changed while it was read");
        self.written += copied;
        self.pad()
    }

    /// Ends the archive; returns its length in bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<u64> {
        self.header("TRAILER!!!", 0)?;
        self.out
            .flush()
            .context("cannot write the bundle: is the disk full?")?;
        Ok(self.written)
    }

    fn header(&mut self, name: &str, bytes: u64) -> Result<()> {
        self.entries += 1;
        let name_bytes = name.len() as u64 + 1;
        // inode, mode, uid, gid, links, time, size, device (4 fields), length of the name, checksum
        let fields = [
            u64::from(self.entries),
            0o100_644,
            0,
            0,
            1,
            0,
            bytes,
            0,
            0,
            0,
            0,
            name_bytes,
            0,
        ];
        let mut header = String::from("070701");
        header.extend(fields.iter().map(|field| format!("{field:08x}")));
        header += name;
        header.push('\0');
        self.out.write_all(header.as_bytes())?;
        self.written += header.len() as u64;
        self.pad()
    }

    fn pad(&mut self) -> Result<()> {
        let zeros = self.written.next_multiple_of(4) - self.written;
        self.out.write_all(&[0; 3][..zeros as usize])?;
        self.written += zeros;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn guest(name: &str, kernel: &Path) -> Guest {
        Guest {
            name: name.to_owned(),
            kernel: kernel.to_path_buf(),
            initrd: None,
            memory_bytes: 512 << 20,
            vcpus: 1,
            cpu_mask: None,
            mte: true,
            tag_budget: None,
            policy: Policy::Auto,
            cmdline: String::new(),
            seed: String::new(),
            autostart: true,
        }
    }

    #[test]
    fn the_configuration_names_each_image_once() {
        let mut second = guest("b", Path::new("/k"));
        second.initrd = Some("/i".into());
        second.mte = false;
        second.tag_budget = Some(8192);
        second.policy = Policy::Eager;
        second.autostart = false;
        second.cmdline = "console=ttyAMA0 quiet".to_owned();
        let bundle = Bundle {
            batch: true,
            colour: true,
            eviction_rate: Some(100),
            compact_below: Some(40),
            report_key: Some("9f86".to_owned()),
            guests: vec![guest("a", Path::new("/k")), second],
            ..Bundle::default()
        };
        let (conf, images) = bundle.conf();
        assert_eq!(images, [PathBuf::from("/k"), PathBuf::from("/i")]);
        assert_eq!(
            conf,
            "tagvisor 1\npolicy auto\neviction-rate 100\ncompact-below 40\nbatch on\ncolour on\nreport-key 9f86\n\
             vm a\nkernel image-0\nmemory 536870912\nvcpus 1\nmte on\n\
             vm b\nkernel image-0\ninitrd image-1\nmemory 536870912\nvcpus 1\nmte off\n\
             tag-budget 8192\npolicy eager\nautostart off\ncmdline console=ttyAMA0 quiet\n"
        );
    }

    #[test]
    fn files_with_the_same_bytes_are_stored_once() {
        let dir = crate::run::scratch::Scratch::new().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let kernels = [
            file("a", b"12345"),
            file("copy", b"12345"),
            file("other", b"12346"),
            file("longer", b"123456"),
            file("start", b"1234"),
        ];
        let bundle = Bundle {
            guests: kernels.iter().map(|kernel| guest("a", kernel)).collect(),
            ..Bundle::default()
        };
        let (conf, images) = bundle.conf();
        let [first, _, other, longer, start] = kernels.clone();
        assert_eq!(images, [first, other, longer, start]);
        let named: Vec<&str> = conf
            .lines()
            .filter(|line| line.starts_with("kernel "))
            .collect();
        let numbers = [0, 0, 1, 2, 3].map(|number| format!("kernel image-{number}"));
        assert_eq!(named, numbers);
    }

    #[test]
    fn the_archive_is_newc_with_aligned_contents_and_a_trailer() {
        let dir = crate::run::scratch::Scratch::new().unwrap();
        let (kernel, to) = (dir.path().join("kernel"), dir.path().join("bundle"));
        std::fs::write(&kernel, b"12345").unwrap();
        let bundle = Bundle {
            guests: vec![guest("a", &kernel)],
            ..Bundle::default()
        };
        let length = bundle.write(&to).unwrap();
        let bytes = std::fs::read(&to).unwrap();
        assert_eq!((bytes.len() as u64, bytes.len() % 4), (length, 0));
        assert!(bytes.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&bytes);
        let at = |needle: &str| text.find(needle).unwrap();
        assert!(at("tagvisor.conf\0") < at("image-0\0") && at("image-0\0") < at("TRAILER!!!\0"));
        assert_eq!(at("12345") % 4, 0);
    }

    #[test]
    fn cpio_reads_what_was_written() {
        let Some(cpio) = crate::process::find_program("cpio") else {
            return;
        };
        let dir = crate::run::scratch::Scratch::new().unwrap();
        let to = dir.path().join("bundle");
        Bundle::default().write(&to).unwrap();
        let list = Command::new(cpio)
            .arg("-it")
            .stdin(File::open(&to).unwrap())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&list.stdout), "tagvisor.conf\n");
    }
}
