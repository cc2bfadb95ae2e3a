//! Pages with known data and known tags, which are written and later compared.

use core::fmt;

use super::mte;
use super::trap::{self, Outcome};
use crate::pattern::{self, Sum};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes whose 16 tags are one 64-bit number.
const SIXTEEN: u64 = 16 * mte::GRANULE;
/// From one word of a page to the next; odd, so that no two are equal.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The first thing that was not as it must be.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    /// What.
    pub what: &'static str,
    /// The page's number.
    pub page: u64,
    /// Where.
    pub address: u64,
    /// What was found.
    pub got: u64,
    /// What must be there.
    pub want: u64,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            page,
            address,
            got,
            want,
        } = self;
        write!(
            f,
            "{what}: page={page} address={address:#x} got={got:#x} want={want:#x}"
        )
    }
}

/// Nothing, or the first mistake.
pub type Checked = Result<(), Wrong>;

/// A row of pages; what each holds follows from the seed, its number and its version.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// What the contents depend on.
    pub seed: u64,
    /// The address of page 0.
    pub base: u64,
    /// How many they are.
    pub count: u64,
    /// From one page to the next, in pages.
    pub stride: u64,
    /// How many bytes of a page are written, spread over it in words of eight.
    pub bytes: u64,
}

impl Pages {
    /// The address of page `page`.
    pub const fn address(&self, page: u64) -> u64 {
        self.base + page * self.stride * PAGE
    }

    /// The end of the last page.
    pub const fn end(&self) -> u64 {
        self.base + self.count * self.stride * PAGE
    }

    fn wrong(
        &self,
        what: &'static str,
        page: u64,
        address: u64,
        (got, want): (u64, u64),
    ) -> Checked {
        if got == want {
            return Ok(());
        }
        Err(Wrong {
            what,
            page,
            address,
            got,
            want,
        })
    }

    const fn first_word(&self, page: u64, version: u64) -> u64 {
        pattern::mix(self.seed ^ pattern::mix(page << 20 | version))
    }

    /// From one written word to the next, in bytes.
    fn gap(&self) -> usize {
        (PAGE / (self.bytes / 8).clamp(1, PAGE / 8)) as usize
    }

    /// Writes the data of version `version` of a page, through pointers without tag.
    pub fn write(&self, page: u64, version: u64) {
        let (base, mut word) = (self.address(page), self.first_word(page, version));
        for offset in (0..PAGE).step_by(self.gap()) {
            mte::write(base + offset, word);
            word = word.wrapping_add(STEP);
        }
    }

    /// Compares the data of a page with version `version`.
    pub fn check(&self, page: u64, version: u64) -> Checked {
        let (base, mut word) = (self.address(page), self.first_word(page, version));
        for offset in (0..PAGE).step_by(self.gap()) {
            let got = mte::read(base + offset);
            self.wrong("data are lost", page, base + offset, (got, word))?;
            word = word.wrapping_add(STEP);
        }
        Ok(())
    }

    /// Compares all data of a page with 0.
    pub fn check_zero(&self, page: u64) -> Checked {
        let base = self.address(page);
        for at in (base..base + PAGE).step_by(8) {
            self.wrong("a fresh page has data", page, at, (mte::read(at), 0))?;
        }
        Ok(())
    }

    /// The tags of the 16 granules from `offset` (bytes, a multiple of 256) on, as STGM takes them.
    pub const fn tags(&self, page: u64, offset: u64) -> u64 {
        pattern::mix(!self.seed ^ pattern::mix(page << 12 | offset))
    }

    /// The tag of the granule at `offset` (bytes).
    pub const fn tag_at(&self, page: u64, offset: u64) -> u64 {
        self.tags(page, offset & !(SIXTEEN - 1)) >> (offset % SIXTEEN / mte::GRANULE * 4) & 0xf
    }

    /// Gives each granule its tag.
    pub fn tag(&self, page: u64) {
        let step = mte::multiple_bytes() as usize;
        for sixteen in (0..PAGE).step_by(SIXTEEN as usize) {
            let tags = self.tags(page, sixteen);
            for offset in (sixteen..sixteen + SIXTEEN).step_by(step) {
                mte::stgm(self.address(page) + offset, tags);
            }
        }
    }

    /// Compares all tags.
    pub fn check_tags(&self, page: u64) -> Checked {
        self.compare_tags("a tag is lost", page, |sixteen| self.tags(page, sixteen))
    }

    /// Compares all tags with 0.
    pub fn check_no_tags(&self, page: u64) -> Checked {
        self.compare_tags("a fresh page has tags", page, |_| 0)
    }

    fn compare_tags(&self, what: &'static str, page: u64, want: impl Fn(u64) -> u64) -> Checked {
        let bytes = mte::multiple_bytes();
        let granules = bytes / mte::GRANULE;
        let mask = u64::MAX >> (64 - 4 * granules);
        for offset in (0..PAGE).step_by(bytes as usize) {
            let at = self.address(page) + offset;
            let place = offset % SIXTEEN / mte::GRANULE * 4;
            let want = want(offset & !(SIXTEEN - 1)) & mask << place;
            self.wrong(what, page, at, (mte::ldgm(at), want))?;
        }
        Ok(())
    }

    /// The first tag access to a page, in a way that depends on its number: no tag must be set before, and data stay.
    pub fn first_tag_access(&self, page: u64) -> Checked {
        let granule = (pattern::mix(page) % (PAGE / mte::GRANULE)) & !1;
        let at = self.address(page) + granule * mte::GRANULE;
        let tagged = mte::with_tag(at, 5);
        match page % 8 {
            0 => mte::stg(at, at),
            1 => self.wrong("a fresh page has a tag", page, at, (mte::ldg(at), 0))?,
            2 => mte::st2g(at, at),
            3 => self.tag(page),
            4 => self.tag_checked(page, at, trap::attempt(|| mte::read(tagged)))?,
            5 => mte::dc_gva(at, 0),
            6 => {
                let store = || {
                    mte::write(tagged, 0);
                    0
                };
                self.tag_checked(page, at, trap::attempt(store))?;
            }
            _ => {}
        }
        if page % 8 == 3 {
            return Ok(());
        }
        self.check_no_tags(page)
    }

    /// `outcome` is a tag check fault: the access had a tag, and memory has none. Without checks there is none.
    fn tag_checked(&self, page: u64, at: u64, outcome: Outcome) -> Checked {
        let status = outcome.trap().map_or(0, |trap| trap.status());
        self.wrong(
            "a wrong tag is not stopped",
            page,
            at,
            (status, trap::TAG_CHECK),
        )
    }

    /// Adds a page's first data word to `sum`.
    pub fn add_to(&self, page: u64, sum: &mut Sum) {
        sum.add(mte::read(self.address(page)));
    }

    /// All numbers of pages, in an order that looks random.
    pub fn shuffled(&self) -> impl Iterator<Item = u64> + use<> {
        pattern::shuffled(self.seed, self.count)
    }
}
