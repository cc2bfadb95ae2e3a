//! The guest's own stage 1: a GiB at `mmu::SPARE` as one block, as blocks of 2 MiB, or as pages, in any mixture.
//!
//! Its tables are ordinary pages among those that are stepped on, so a walk may meet one that is being moved.

use bare_guests::execute;
use bare_guests::pattern::Sequence;
use bare_guests::rt::mmu::{self, Memory, SPARE};
use bare_guests::rt::mte;
use bare_guests::rt::pages::PAGE;

const GIB: u64 = 1 << 30;
const BLOCK: u64 = 2 << 20;
/// Bits of an entry that hold an address.
const ADDRESS: u64 = 0xffff_ffff_f000;
const VALID: u64 = 1;

/// Whether page `page` holds a table: one in 64 could.
pub const fn is_table(page: u64) -> bool {
    page % 64 == 5
}

/// The mapping of `pages` pages from physical address `base` on.
pub struct Maps {
    base: u64,
    is_block: bool,
}

impl Maps {
    /// Maps them by blocks of 2 MiB.
    pub fn new(base: u64, pages: u64) -> Self {
        let maps = Self {
            base,
            is_block: false,
        };
        for slot in 0..pages * PAGE / BLOCK {
            let pa = base + slot * BLOCK;
            mte::write(maps.block_entry(slot), Memory::Tagged.block(pa));
        }
        mmu::map_table(maps.table(0));
        maps
    }

    /// The virtual address of page `page`.
    pub const fn address(&self, page: u64) -> u64 {
        SPARE + self.base % GIB + page * PAGE
    }

    /// Where table `number` lies.
    const fn table(&self, number: u64) -> u64 {
        self.base + (5 + 64 * number) * PAGE
    }

    /// Where the entry of level 2 for the 2 MiB `slot` lies.
    const fn block_entry(&self, slot: u64) -> u64 {
        self.table(0) + (self.base % GIB / BLOCK + slot) * 8
    }

    /// Where the entry of level 3 for `page` lies; none while a block maps it.
    fn page_entry(&self, page: u64) -> Option<u64> {
        let slot = page * PAGE / BLOCK;
        let is_split = mte::read(self.block_entry(slot)) & mmu::VALID_TABLE == mmu::VALID_TABLE;
        is_split.then(|| self.table(1 + slot) + page % 512 * 8)
    }

    /// Maps all by one block of 1 GiB, or no longer.
    fn flip_gib(&mut self) {
        self.is_block = !self.is_block;
        if self.is_block {
            mmu::map(Memory::Tagged, self.base & !(GIB - 1));
        } else {
            mmu::map_table(self.table(0));
        }
    }

    /// Maps 2 MiB by a block, or by pages at their own place.
    fn flip_slot(&self, slot: u64) {
        let (entry, table, pa) = (
            self.block_entry(slot),
            self.table(1 + slot),
            self.base + slot * BLOCK,
        );
        let is_split = self.page_entry(slot * BLOCK / PAGE).is_some();
        mte::write(entry, 0);
        execute!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb");
        if is_split {
            mte::write(entry, Memory::Tagged.block(pa));
        } else {
            for index in 0..512 {
                mte::write(table + index * 8, Memory::Tagged.page(pa + index * PAGE));
            }
            execute!("dsb ish");
            mte::write(entry, table | mmu::VALID_TABLE);
        }
        execute!("dsb ish", "isb");
    }

    /// Break-before-make of one page's entry.
    fn replace(&self, page: u64, entry: u64, new: u64) {
        mte::write(entry, mte::read(entry) & !VALID);
        let operand = self.address(page) >> 12;
        // SAFETY: drops TLB entries.
        unsafe {
            core::arch::asm!("dsb ish", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) operand, options(nostack));
        }
        mte::write(entry, new);
        execute!("dsb ish", "isb");
    }

    /// Two pages change places.
    fn swap(&self, one: u64, other: u64) {
        let (Some(a), Some(b)) = (self.page_entry(one), self.page_entry(other)) else {
            return;
        };
        if one == other || is_table(one) || is_table(other) {
            return;
        }
        let (first, second) = (mte::read(a), mte::read(b));
        self.replace(one, a, first & !ADDRESS | second & ADDRESS);
        self.replace(other, b, second & !ADDRESS | first & ADDRESS);
    }

    /// Changes one page's entry.
    fn change(&self, page: u64, new: impl Fn(u64) -> u64) {
        if let Some(entry) = self.page_entry(page).filter(|_| !is_table(page)) {
            self.replace(page, entry, new(mte::read(entry)));
        }
    }

    /// One random change among the first `front` pages; pages `one` and `other` are among them.
    pub fn step(&mut self, random: &mut Sequence, (one, other): (u64, u64)) {
        // MAIR index of Tagged and of Normal: bits 4:2 of an entry.
        let untag = (Memory::Tagged as u64 ^ Memory::Normal as u64) << 2;
        match random.below(16) {
            0 => self.flip_gib(),
            1..=2 => self.flip_slot(one * PAGE / BLOCK),
            3..=8 => self.swap(one, other),
            9..=10 => self.change(one, |entry| entry ^ untag),
            11 => self.change(one, |entry| entry & !VALID),
            _ => self.change(one, |entry| entry | VALID),
        }
    }
}
