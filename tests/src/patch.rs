//! ELF files with a few instructions changed: the way to make EL2 fail without a door for it in the image.

use anyhow::{Context, Result, ensure};

const SYMBOL_TABLE: u32 = 2;
const LOAD: u32 = 1;

/// Overwrites the instructions of the 64-bit little-endian ELF `elf` from the symbol `name` on with `code`.
///
/// # Errors
/// It is no such ELF, it has no such symbol, or the symbol is in no segment of the file.
pub fn patch(elf: &mut [u8], name: &str, code: &[u32]) -> Result<()> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "no 64-bit ELF");
    let address = symbol(elf, name)?.with_context(|| format!("no symbol {name}"))?;
    let at = offset(elf, address)?.with_context(|| format!("{name} is in no segment"))?;
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    elf.get_mut(at..at + bytes.len())
        .context("a segment is outside the file")?
        .copy_from_slice(&bytes);
    Ok(())
}

/// The value of symbol `name`.
fn symbol(elf: &[u8], name: &str) -> Result<Option<u64>> {
    let (sections, bytes, count) = (
        number(elf, 40, 8)?,
        number(elf, 58, 2)?,
        number(elf, 60, 2)?,
    );
    for section in (0..count).map(|index| sections + index * bytes) {
        if number(elf, section + 4, 4)? != u64::from(SYMBOL_TABLE) {
            continue;
        }
        let names = number(
            elf,
            sections + number(elf, section + 40, 4)? * bytes + 24,
            8,
        )?;
        let (from, length) = (number(elf, section + 24, 8)?, number(elf, section + 32, 8)?);
        for at in (from..from + length).step_by(24) {
            let start = usize::try_from(names + number(elf, at, 4)?)?;
            let called = elf.get(start..).unwrap_or_default();
            if called.split(|&byte| byte == 0).next() == Some(name.as_bytes()) {
                return number(elf, at + 8, 8).map(Some);
            }
        }
    }
    Ok(None)
}

/// Where the byte at `address` lies in the file.
fn offset(elf: &[u8], address: u64) -> Result<Option<usize>> {
    let (segments, bytes, count) = (
        number(elf, 32, 8)?,
        number(elf, 54, 2)?,
        number(elf, 56, 2)?,
    );
    for segment in (0..count).map(|index| segments + index * bytes) {
        let base = number(elf, segment + 16, 8)?;
        let is_in = (base..base + number(elf, segment + 32, 8)?).contains(&address);
        if number(elf, segment, 4)? == u64::from(LOAD) && is_in {
            return Ok(Some(usize::try_from(
                number(elf, segment + 8, 8)? + address - base,
            )?));
        }
    }
    Ok(None)
}

/// The little-endian number of `bytes` bytes at `at`.
fn number(elf: &[u8], at: u64, bytes: usize) -> Result<u64> {
    let at = usize::try_from(at)?;
    let field = elf
        .get(at..at.saturating_add(bytes))
        .context("the ELF is too short")?;
    Ok(field
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_symbol_or_a_broken_elf_is_an_error() {
        let mut elf = tagvisor_tool::image::stub(0x1000, 0, 0);
        let error = patch(&mut elf, "nowhere", &[0]).unwrap_err().to_string();
        assert_eq!(error, "no symbol nowhere");
        assert!(patch(&mut elf[..50], "nowhere", &[0]).is_err());
        assert!(patch(&mut [], "nowhere", &[0]).is_err());
    }
}
