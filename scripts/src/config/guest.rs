//! What a configuration says of one guest.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::bundle::{Guest, Policy};
use crate::image::{IMAGE_HEADER_BYTES, Kernel, kernel_kind};
use crate::size::{Size, show_size};

/// A guest's memory comes in these steps.
const GUEST_STEP: u64 = 2 << 20;
/// The longest kernel command line that Linux takes on arm64, in bytes.
const LONGEST_CMDLINE: usize = 2047;
/// What a guest needs beside kernel and initrd: its DTB and a stack, in bytes.
const GUEST_EXTRA: u64 = 2 << 20;
/// What the guests' address space of 36 bits holds from its RAM's start on, in bytes.
const MOST_GUEST_MEMORY: u64 = 63 << 30;
const MOST_VCPUS: u32 = 8;
/// Bytes of memory whose tags take one byte.
const TAG_RATIO: u64 = 32;
/// Tag budgets come in these steps.
const BUDGET_STEP: u64 = 4 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVm {
    pub(super) name: Spanned<String>,
    kernel: Spanned<PathBuf>,
    initrd: Option<Spanned<PathBuf>>,
    cmdline: Option<Spanned<String>>,
    pub(super) memory: Spanned<Size>,
    vcpus: Option<Spanned<u32>>,
    cpus: Option<Spanned<Vec<u32>>>,
    #[serde(default = "yes")]
    mte: bool,
    tag_budget: Option<Spanned<Size>>,
    policy: Option<Spanned<Policy>>,
    #[serde(default = "yes")]
    autostart: bool,
}

const fn yes() -> bool {
    true
}

/// Reads and checks a guest, after `others`, of a machine of so many CPUs.
pub(super) fn guest(
    source: &Source<'_>,
    vm: &RawVm,
    others: &[Guest],
    cpus: u32,
) -> Result<Guest, ConfigError> {
    let name = vm.name.get_ref();
    check_name(name, others).map_err(|text| source.error(Some(vm.name.span().start), text))?;
    let (kernel, initrd) = files(source, vm)?;
    let vcpus = vm.vcpus.as_ref().map_or(1, |vcpus| *vcpus.get_ref());
    if !(1..=MOST_VCPUS).contains(&vcpus) {
        let at = vm.vcpus.as_ref().map(|vcpus| vcpus.span().start);
        return Err(source.error(at, "a guest has 1 to 8 vCPUs: choose such a number"));
    }
    let cmdline = vm
        .cmdline
        .as_ref()
        .map(|cmdline| (cmdline.get_ref().trim().to_owned(), cmdline.span().start));
    if let Some((text, at)) = &cmdline {
        check_cmdline(text).map_err(|text| source.error(Some(*at), text))?;
    }
    Ok(Guest {
        name: name.clone(),
        kernel,
        initrd,
        memory_bytes: vm.memory.get_ref().0,
        vcpus,
        cpu_mask: cpu_mask(source, vm, cpus)?,
        mte: vm.mte,
        tag_budget: tag_budget(source, vm)?,
        policy: Policy::Auto,
        cmdline: cmdline.map(|(text, _)| text).unwrap_or_default(),
        seed: String::new(),
        autostart: vm.autostart,
    })
}

/// Reads kernel and initrd, and checks that the guest's memory takes them.
fn files(source: &Source<'_>, vm: &RawVm) -> Result<(PathBuf, Option<PathBuf>), ConfigError> {
    let kernel = source.resolve(vm.kernel.get_ref());
    let mut bytes =
        check_kernel(&kernel).map_err(|text| source.error(Some(vm.kernel.span().start), text))?;
    let mut initrd = None;
    if let Some(said) = &vm.initrd {
        let file = source.resolve(said.get_ref());
        bytes += file_bytes(&file)
            .map_err(|text| source.error(Some(said.span().start), format!("initrd {text}")))?;
        initrd = Some(file);
    }
    check_memory(vm.memory.get_ref().0, bytes)
        .map_err(|text| source.error(Some(vm.memory.span().start), text))?;
    Ok((kernel, initrd))
}

/// The most tag storage that a guest can take, in bytes: its budget.
pub(super) fn most_tags(guest: &Guest) -> u64 {
    match guest.tag_budget {
        _ if !guest.mte => 0,
        Some(bytes) => bytes,
        None => tags_of(guest.memory_bytes),
    }
}

/// The tags of so much memory, in whole budget steps.
const fn tags_of(memory: u64) -> u64 {
    (memory / TAG_RATIO).next_multiple_of(BUDGET_STEP)
}

/// Reads the CPUs, of a machine of so many, that a guest's virtual CPUs may run on.
fn cpu_mask(source: &Source<'_>, vm: &RawVm, cpus: u32) -> Result<Option<u64>, ConfigError> {
    let Some(said) = &vm.cpus else {
        return Ok(None);
    };
    let name = vm.name.get_ref();
    let mut mask = 0;
    for &cpu in said.get_ref() {
        if cpu >= cpus {
            let text = format!(
                "guest {name} is to run on CPU {cpu}, the machine has CPUs 0 to {}: choose among these",
                cpus - 1
            );
            return Err(source.error(Some(said.span().start), text));
        }
        mask |= 1 << cpu;
    }
    if mask == 0 {
        let text = format!("guest {name} is to run on no CPU: name one or leave cpus out");
        return Err(source.error(Some(said.span().start), text));
    }
    Ok(Some(mask))
}

fn tag_budget(source: &Source<'_>, vm: &RawVm) -> Result<Option<u64>, ConfigError> {
    let Some(said) = &vm.tag_budget else {
        return Ok(None);
    };
    let (name, bytes, memory) = (vm.name.get_ref(), said.get_ref().0, vm.memory.get_ref().0);
    let most = tags_of(memory);
    let text = if !vm.mte && bytes > 0 {
        format!("guest {name} has a tag_budget and mte = false, so no tags: remove one of the two")
    } else if !bytes.is_multiple_of(BUDGET_STEP) {
        format!("the tag_budget of guest {name} is not a multiple of 4K: round it up")
    } else if vm.mte && bytes > most {
        format!(
            "the tag_budget of guest {name} is {}, the tags of all its {} take {}: lower it or leave it out",
            show_size(bytes),
            show_size(memory),
            show_size(most)
        )
    } else {
        return Ok(Some(bytes));
    };
    Err(source.error(Some(said.span().start), text))
}

/// Reads a guest's policy on a machine of policy `machine`: a carve-out is reserved for all guests for good, or for none.
pub(super) fn policy(
    source: &Source<'_>,
    vm: &RawVm,
    machine: Policy,
) -> Result<Policy, ConfigError> {
    let Some(said) = &vm.policy else {
        return Ok(Policy::Auto);
    };
    let (name, own) = (vm.name.get_ref(), *said.get_ref());
    let text = match (own, machine) {
        (Policy::Auto, _) | (Policy::Static, Policy::Static) => return Ok(own),
        (Policy::Static, of_machine) => format!(
            "guest {name} has policy static, the machine {}, but static is for all or none: \
             remove this line or set policy = \"static\" under [machine]",
            of_machine.name()
        ),
        (_, Policy::Static) => format!(
            "guest {name} has policy {}, the machine static, but static is for all or none: \
             remove this line or set another policy under [machine]",
            own.name()
        ),
        _ => return Ok(own),
    };
    Err(source.error(Some(said.span().start), text))
}

fn check_name(name: &str, before: &[Guest]) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) || name == "tagvisor" {
        return Err(format!(
            "`{name}` cannot be a guest's name: use 1 to 32 letters, digits, - _ . and not `tagvisor`"
        ));
    }
    if before.iter().any(|guest| guest.name == name) {
        return Err(format!(
            "two guests are named `{name}`: give each its own name"
        ));
    }
    Ok(())
}

/// Checks that a file can be a guest's kernel; returns the memory that it takes in bytes.
///
/// # Errors
/// It cannot be read or is in a form that no loader here takes; says which form and how to convert it.
fn check_kernel(file: &Path) -> Result<u64, String> {
    let bytes = file_bytes(file).map_err(|text| format!("kernel {text}"))?;
    let mut header = Vec::new();
    let opened = File::open(file).and_then(|file| {
        file.take(IMAGE_HEADER_BYTES as u64)
            .read_to_end(&mut header)
    });
    opened.map_err(|error| format!("kernel {} cannot be read ({error})", file.display()))?;
    let shown = file.display();
    let wrong = |is: &str, remedy: &str| {
        Err(format!(
            "kernel {shown} is {is}, tagvisor takes an arm64 Image or a raw image: {remedy}"
        ))
    };
    match kernel_kind(&header) {
        Kernel::Image { memory_bytes } => Ok(bytes.max(memory_bytes)),
        Kernel::Raw if header.starts_with(&[0x1f, 0x8b]) => {
            wrong("compressed with gzip", "unpack it with gunzip")
        }
        Kernel::Raw if header.starts_with(b"\x28\xb5\x2f\xfd") => {
            wrong("compressed with zstd", "unpack it with unzstd")
        }
        Kernel::Raw if header.starts_with(b"\xfd7zXZ") => {
            wrong("compressed with xz", "unpack it with unxz")
        }
        Kernel::Raw if header.starts_with(b"\x7fELF") => {
            wrong("an ELF", "make it flat with objcopy -O binary")
        }
        Kernel::Raw if header.starts_with(b"MZ") => wrong(
            "an EFI program (compressed, or of another architecture)",
            "use the uncompressed Image of an arm64 build",
        ),
        Kernel::Raw => Ok(bytes),
    }
}

fn file_bytes(file: &Path) -> Result<u64, String> {
    let shown = file.display();
    let meta = fs::metadata(file)
        .map_err(|error| format!("{shown} cannot be read ({error}): check the path"))?;
    if !meta.is_file() {
        return Err(format!("{shown} is not a file: check the path"));
    }
    if meta.len() == 0 {
        return Err(format!("{shown} is empty: build it again"));
    }
    Ok(meta.len())
}

fn check_memory(memory: u64, loaded: u64) -> Result<(), String> {
    if memory == 0 || !memory.is_multiple_of(GUEST_STEP) {
        return Err(format!(
            "a guest's memory is a multiple of 2M, not {}: round it up",
            show_size(memory)
        ));
    }
    if memory > MOST_GUEST_MEMORY {
        return Err(format!(
            "a guest has at most 63G of memory, not {}: lower it",
            show_size(memory)
        ));
    }
    let needed = (loaded + GUEST_EXTRA).next_multiple_of(GUEST_STEP);
    if memory < needed {
        let (has, needs) = (show_size(memory), show_size(needed));
        return Err(format!(
            "the guest has {has}, its kernel and initrd alone need {needs}: give it more"
        ));
    }
    Ok(())
}

fn check_cmdline(text: &str) -> Result<(), String> {
    if text.len() > LONGEST_CMDLINE {
        return Err(format!(
            "the command line has {} bytes, Linux takes 2047: shorten it",
            text.len()
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(
            "the command line has a line break or another control character: write it on one line"
                .to_owned(),
        );
    }
    Ok(())
}
