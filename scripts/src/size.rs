//! Sizes of memory as people write them: `512M`, `2G`, or bytes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};

/// What a size looks like, for error messages.
pub const SIZE_FORM: &str = "a size such as \"512M\" or \"2G\"";

/// Reads a size: a number, and K, M or G for its unit (bytes without one).
///
/// # Errors
/// It is no such number, or too big for 64 bits.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number = digits
        .parse::<u64>()
        .ok()
        .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("`{text}` is not {SIZE_FORM}"))
}

/// Writes a size with the largest unit that divides it.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let unit = [(30, "G"), (20, "M"), (10, "K")]
        .into_iter()
        .find(|(shift, _)| bytes.is_multiple_of(1 << shift));
    match unit {
        Some((shift, name)) if bytes > 0 => format!("{}{name}", bytes >> shift),
        _ => bytes.to_string(),
    }
}

/// A size in a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(
    /// Bytes.
    pub u64,
);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct AnySize;
        impl Visitor<'_> for AnySize {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE_FORM)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).map(Size).map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::custom(format!("`{bytes}` is not {SIZE_FORM}")))
            }
        }
        from.deserialize_any(AnySize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("512m"), Ok(512 << 20));
        assert_eq!(parse_size("64K"), Ok(64 << 10));
        assert_eq!(parse_size("4096"), Ok(4096));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "2 G",
            "-1M",
            "+1M",
            "1.5G",
            "2GB",
            "99999999999G",
            "zwei",
        ] {
            assert!(
                parse_size(text).unwrap_err().contains("such as \"512M\""),
                "{text}"
            );
        }
    }

    #[test]
    fn a_size_is_shown_in_its_largest_whole_unit() {
        assert_eq!(
            [2 << 30, 512 << 20, 1536 << 20, 4097].map(show_size),
            ["2G", "512M", "1536M", "4097"]
        );
    }
}
