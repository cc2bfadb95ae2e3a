//! Parameters of a program: `key=value` words of the kernel command line.

/// The value of `key` in `line`; none if the word is missing.
pub fn text<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The decimal number of `key` in `line`; `default` if it is missing or no number.
pub fn number(line: &str, key: &str, default: u64) -> u64 {
    text(line, key)
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_whole_word_before_the_equals_sign() {
        let line = "mypages=3 pages=12 end=reset";
        assert_eq!(number(line, "pages", 1), 12);
        assert_eq!(text(line, "end"), Some("reset"));
        assert_eq!(text(line, "page"), None);
        assert_eq!(number(line, "seed", 9), 9);
    }
}
