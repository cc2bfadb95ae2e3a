//! Where the tags of main RAM lie in main RAM: the last 1/32.

use std::fmt;

/// A 4-bit tag for each 16 bytes: one byte of tags for 32 bytes of data.
const DATA_PER_TAG_BYTE: u64 = 32;
/// What `mmap` can map: tags of 128 KiB of data.
const PAGE: u64 = 4096;

/// The part of main RAM that holds its tags.
#[derive(Debug, PartialEq, Eq)]
pub struct TagRam {
    /// Its first byte, from the start of main RAM.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why a machine's RAM cannot hold its tags.
#[derive(Debug, PartialEq, Eq)]
pub enum BadSize {
    /// The tag RAM is not 1/32 of main RAM: not all of RAM is the one memory backend.
    NotOneBackend {
        /// Bytes of main RAM.
        main: u64,
        /// Bytes of tag RAM.
        tags: u64,
    },
    /// The tags do not start on a page.
    Unaligned {
        /// Bytes of main RAM.
        main: u64,
    },
}

impl TagRam {
    /// Places the `tags` bytes of QEMU's tag RAM in `main` bytes of main RAM.
    ///
    /// # Errors
    /// When the two sizes do not fit each other, or the place is not aligned to a page.
    pub fn of(main: u64, tags: u64) -> Result<Self, BadSize> {
        if main == 0 || main / DATA_PER_TAG_BYTE != tags {
            return Err(BadSize::NotOneBackend { main, tags });
        }
        if !main.is_multiple_of(DATA_PER_TAG_BYTE * PAGE) {
            return Err(BadSize::Unaligned { main });
        }
        Ok(Self {
            offset: main - tags,
            bytes: tags,
        })
    }
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOneBackend { main, tags } => write!(
                f,
                "memory region mem has {main} bytes but the tag RAM has {tags}, not 1/32 of them: \
                 one memory backend must be all of RAM (size=S equal to -m)"
            ),
            Self::Unaligned { main } => {
                write!(
                    f,
                    "RAM of {main} bytes: the size must be a multiple of 128 KiB"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_the_last_thirty_second_of_ram() {
        assert_eq!(
            TagRam::of(2 << 30, 64 << 20),
            Ok(TagRam {
                offset: (2 << 30) - (64 << 20),
                bytes: 64 << 20
            })
        );
    }

    #[test]
    fn tag_ram_of_another_size_is_refused() {
        assert_eq!(
            TagRam::of(2 << 30, 32 << 20),
            Err(BadSize::NotOneBackend {
                main: 2 << 30,
                tags: 32 << 20
            })
        );
        assert_eq!(
            TagRam::of(0, 0),
            Err(BadSize::NotOneBackend { main: 0, tags: 0 })
        );
    }

    #[test]
    fn ram_whose_tags_start_inside_a_page_is_refused() {
        let main = (1 << 30) + 4096;
        assert_eq!(
            TagRam::of(main, main / 32),
            Err(BadSize::Unaligned { main })
        );
    }
}
