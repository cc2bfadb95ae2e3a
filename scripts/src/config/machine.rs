//! What a configuration says of the machine.

use serde::Deserialize;
use toml::Spanned;

use super::{Config, ConfigError, Overrides, Source};
use crate::board::{LEAST_MEMORY, MEMORY_STEP, PAGE, least_common_multiple};
use crate::bundle::Policy;
use crate::size::Size;

/// The memory of a machine whose configuration does not say it, in bytes.
pub const DEFAULT_MEMORY: u64 = 2 << 30;
/// The CPUs of a machine whose configuration does not say them.
pub const DEFAULT_CPUS: u32 = 2;
const MOST_MEMORY: u64 = 64 << 30;
pub(super) const MOST_CPUS: u32 = 64;

/// Regions of a machine whose configuration does not say them.
const DEFAULT_REGIONS: u32 = 1;
const MOST_REGIONS: u32 = 2;
/// `block-size` of a machine whose configuration does not say it, in bytes.
const DEFAULT_BLOCK: u32 = 4 << 10;
/// The largest block of which all borders of a machine are multiples, in bytes.
const LARGEST_BLOCK: u64 = 32 << 10;

const SIZES: &str = "a machine has 128M to 64G of memory in steps of 32M: choose such a size";
const COUNTS: &str = "a machine has 1 to 64 CPUs: choose such a number";
const REGIONS: &str =
    "a machine has 1 or 2 tag regions, or 0 if its tags are hidden: choose such a number";
const PERCENT: &str = "compact_below is a percentage, 0 to 100: choose such a number";
const BLOCKS: &str = "block_size is bytes of which 4K, 8K, 12K up to 32K is a multiple, such as \"8K\": choose such a size";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMachine {
    memory: Option<Spanned<Size>>,
    cpus: Option<Spanned<u32>>,
    policy: Option<Policy>,
    eviction_rate: Option<u32>,
    compact_below: Option<Spanned<u8>>,
    block_size: Option<Spanned<Size>>,
    regions: Option<Spanned<u32>>,
}

/// A value from the command line, or else from the file, or else the default; checked by `valid`.
struct Choice<'a, T> {
    option: (&'static str, Option<T>),
    file: Option<&'a Spanned<T>>,
    default: T,
    valid: fn(&T) -> bool,
    /// What is valid.
    text: &'static str,
}

impl<T: Copy> Choice<'_, T> {
    fn make(self, source: &Source<'_>) -> Result<T, ConfigError> {
        let (name, option) = self.option;
        let (value, error) = match (option, self.file) {
            (Some(value), _) => (value, ConfigError::new(name, self.text)),
            (None, Some(value)) => (
                *value.get_ref(),
                source.error(Some(value.span().start), self.text),
            ),
            (None, None) => return Ok(self.default),
        };
        (self.valid)(&value).then_some(value).ok_or(error)
    }
}

/// Reads and checks the machine.
pub(super) fn machine(
    source: &Source<'_>,
    raw: &RawMachine,
    overrides: Overrides,
) -> Result<Config, ConfigError> {
    let memory = Choice {
        option: ("--memory", overrides.memory_bytes.map(Size)),
        file: raw.memory.as_ref(),
        default: Size(DEFAULT_MEMORY),
        valid: |size| {
            (LEAST_MEMORY..=MOST_MEMORY).contains(&size.0) && size.0.is_multiple_of(MEMORY_STEP)
        },
        text: SIZES,
    };
    let cpus = Choice {
        option: ("--cpus", overrides.cpus),
        file: raw.cpus.as_ref(),
        default: DEFAULT_CPUS,
        valid: |cpus| (1..=MOST_CPUS).contains(cpus),
        text: COUNTS,
    };
    let regions = Choice {
        option: ("", None),
        file: raw.regions.as_ref(),
        default: DEFAULT_REGIONS,
        valid: |regions| *regions <= MOST_REGIONS,
        text: REGIONS,
    };
    let block = Choice {
        option: ("", None),
        file: raw.block_size.as_ref(),
        default: Size(DEFAULT_BLOCK.into()),
        valid: |size| block_of(size.0).is_some_and(|block| block <= LARGEST_BLOCK),
        text: BLOCKS,
    };
    Ok(Config {
        memory_bytes: memory.make(source)?.0,
        cpus: cpus.make(source)?,
        policy: overrides.policy.or(raw.policy).unwrap_or_default(),
        eviction_rate: raw.eviction_rate,
        compact_below: compact_below(raw.compact_below.as_ref(), source)?,
        regions: regions.make(source)?,
        block_bytes: u32::try_from(block.make(source)?.0).unwrap_or(DEFAULT_BLOCK),
        guests: Vec::new(),
    })
}

fn compact_below(
    percent: Option<&Spanned<u8>>,
    source: &Source<'_>,
) -> Result<Option<u8>, ConfigError> {
    match percent {
        Some(percent) if *percent.get_ref() > 100 => {
            Err(source.error(Some(percent.span().start), PERCENT))
        }
        percent => Ok(percent.map(|percent| *percent.get_ref())),
    }
}

/// The size of the blocks that a `block-size` makes.
fn block_of(bytes: u64) -> Option<u64> {
    let bytes = (1..=LARGEST_BLOCK).contains(&bytes).then_some(bytes)?;
    Some(least_common_multiple(bytes, PAGE))
}
