//! One random step, and everything it saw added to the sum.

use core::fmt;

use bare_guests::pattern::{Sequence, Sum, mix};
use bare_guests::rt::mmu::Memory;
use bare_guests::rt::mte;
use bare_guests::rt::pages::PAGE;
use bare_guests::rt::trap::{self, Outcome};
use bare_guests::{execute, read_sys, write_sys};

use super::access::{self, ATOMICS, LOADS, Operation, STORES};
use super::maps::{Maps, is_table};

/// How many pages most steps are about: the newest ones.
const NEWEST: u64 = 64;
/// SCTLR_EL1.TCF, two bits.
const TCF_SHIFT: u64 = 40;

/// Tag instructions of an address and an operand.
const TAG_OPERATIONS: [fn(u64, u64); 12] = [
    mte::stg,
    mte::st2g,
    mte::stzg,
    mte::stz2g,
    mte::stgp,
    mte::stgm,
    mte::stzgm,
    mte::dc_gva,
    mte::dc_gzva,
    mte::stg,
    mte::st2g,
    mte::stgm,
];

/// Cache maintenance, and zeroing that keeps tags.
const MAINTENANCE: [fn(u64, u64); 5] = [
    mte::dc_zva,
    mte::dc_civac,
    mte::dc_cigdvac,
    mte::dc_cgvac,
    mte::dc_igdvac,
];

/// What a program of random steps is at.
pub struct Steps {
    random: Sequence,
    sum: Sum,
    maps: Maps,
    base: u64,
    pages: u64,
    /// Pages that are in play.
    front: u64,
    faults: u64,
    asynchronous: u64,
    tagged: u64,
}

/// The sum and the counts.
pub struct Told(u64, [u64; 3]);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(sum, [faults, asynchronous, tagged]) = self;
        write!(
            f,
            "faults={faults} async={asynchronous} tagops={tagged} sum={sum:#018x}"
        )
    }
}

fn pick<T: Copy>(among: &[T], number: u64) -> Option<T> {
    among.get((number % among.len() as u64) as usize).copied()
}

impl Steps {
    /// Starts on `pages` pages from physical address `base` on, which nobody has touched.
    pub fn new(seed: u64, base: u64, pages: u64) -> Self {
        write_sys!("S3_0_C1_C0_6", 0x0001); // GCR_EL1: no RRND, so that IRG repeats; tag 0 excluded
        write_sys!("S3_0_C1_C0_5", (mix(seed) & 0xffff | 1) << 8); // RGSR_EL1.SEED
        Self {
            random: Sequence::new(seed),
            sum: Sum::default(),
            maps: Maps::new(base, pages),
            base,
            pages,
            front: NEWEST,
            faults: 0,
            asynchronous: 0,
            tagged: 0,
        }
    }

    /// The state in one line.
    pub fn told(&self) -> Told {
        Told(
            self.sum.value(),
            [self.faults, self.asynchronous, self.tagged],
        )
    }

    fn add(&mut self, value: u64) {
        self.sum.add(mix(value));
    }

    /// Adds a result, or the syndrome and the faulting address.
    fn fold(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done(value) => self.add(value),
            Outcome::Trapped(trap) => {
                self.faults += 1;
                self.add(trap.esr);
                self.add(trap.far.wrapping_sub(self.maps.address(0)));
            }
        }
    }

    /// A page in play, mostly a new one, that holds no table.
    fn page(&mut self) -> u64 {
        let old = self.random.below(4) == 0;
        let page = if old {
            self.random.below(self.front)
        } else {
            self.front - 1 - self.random.below(NEWEST)
        };
        page ^ u64::from(is_table(page))
    }

    /// Whether the program uses no tags of `page`: a third of the pages.
    const fn is_plain(page: u64) -> bool {
        mix(page).is_multiple_of(3)
    }

    /// An address in a page, aligned to `align`, at least 64 bytes before its end.
    fn place(&mut self, page: u64, align: u64) -> u64 {
        self.maps.address(page) + (self.random.below(PAGE - 64) & !(align - 1))
    }

    /// The address with a tag: most often that of the memory, else a random one or none.
    fn pointer(&mut self, page: u64, address: u64) -> u64 {
        let choice = self.random.below(8);
        if Self::is_plain(page) || choice == 0 {
            return address;
        }
        let tag = match choice {
            1..=2 => self.random.below(16),
            _ => trap::attempt(|| mte::ldg(address)).value().unwrap_or(0),
        };
        mte::with_tag(address, tag)
    }

    /// One operation through a pointer with a tag, sometimes without checks (PSTATE.TCO).
    fn operate(&mut self, operation: Option<Operation>, align: u64) {
        let (Some(operation), page) = (operation, self.page()) else {
            return;
        };
        let address = self.place(page, align);
        let (pointer, value) = (self.pointer(page, address), self.random.next());
        let unchecked = value.is_multiple_of(16);
        if unchecked {
            mte::set_checks(false);
        }
        let outcome = trap::attempt(|| operation(pointer, value));
        if unchecked {
            mte::set_checks(true);
        }
        self.fold(outcome);
    }

    /// One tag instruction.
    fn tag(&mut self, operation: Option<fn(u64, u64)>) {
        let page = self.page();
        let Some(operation) = operation.filter(|_| !Self::is_plain(page)) else {
            return self.operate(Some(access::copy_from_next), 16);
        };
        let address = self.place(page, 64);
        let tag = self.random.below(16);
        let outcome = trap::attempt(|| {
            // STGM and STZGM take tags of any kind as operand, the others that of bits 59:56.
            operation(mte::with_tag(address, tag), mix(address ^ tag));
            0
        });
        self.tagged += 1;
        self.fold(outcome);
    }

    /// Reads one tag, or those of a block.
    fn read_tags(&mut self, many: bool) {
        let page = self.page();
        if Self::is_plain(page) {
            return;
        }
        let address = self.place(page, 256);
        let outcome = trap::attempt(|| {
            if many {
                mte::ldgm(address)
            } else {
                mte::ldg(address)
            }
        });
        self.fold(outcome);
    }

    /// An exclusive exchange; its first half must not fault, or the loop would not end.
    fn exclusive(&mut self) {
        let page = self.page();
        let address = self.place(page, 8);
        let (pointer, value) = (self.pointer(page, address), self.random.next());
        let first = trap::attempt(|| mte::read(pointer));
        self.fold(first);
        if first.trap().is_none() {
            let outcome = trap::attempt(|| access::exclusive(pointer, value));
            self.fold(outcome);
        }
    }

    fn maintain(&mut self, operation: Option<fn(u64, u64)>) {
        let page = self.page();
        let address = self.place(page, 64);
        let outcome = trap::attempt(|| {
            if let Some(operation) = operation {
                operation(address, 0);
            }
            0
        });
        self.fold(outcome);
    }

    fn code(&mut self) {
        let page = self.page();
        let (address, value) = (self.place(page, 64), self.random.next());
        let outcome = trap::attempt(|| access::run_code(address, value));
        self.fold(outcome);
    }

    fn arithmetic(&mut self) {
        let (address, value) = (self.maps.address(0), self.random.next());
        let result = access::arithmetic(address, value);
        self.add(result.wrapping_sub(address));
    }

    /// Reads and clears what asynchronous checks have found (TFSR_EL1), and chooses how to check from now on.
    fn mode(&mut self) {
        execute!("dsb ish", "isb");
        let found = read_sys!("S3_0_C5_C6_0");
        write_sys!("S3_0_C5_C6_0", 0);
        self.asynchronous += found & 1;
        self.add(found);
        // Asymmetric checking needs FEAT_MTE3.
        let modes = if mte::level() >= 3 { 3 } else { 2 };
        let mode = match self.random.below(6) {
            choice @ 0..=1 => (choice + 2).min(modes),
            _ => 1,
        };
        let sctlr = read_sys!("SCTLR_EL1") & !(3 << TCF_SHIFT);
        write_sys!("SCTLR_EL1", sctlr | mode << TCF_SHIFT);
    }

    fn map(&mut self) {
        let pages = (self.page(), self.page());
        self.maps.step(&mut self.random, pages);
    }

    /// Step `number` of `of`.
    pub fn step(&mut self, number: u64, of: u64) {
        self.front = NEWEST + (self.pages - NEWEST) * number / of;
        let choice = self.random.next();
        let which = choice >> 32;
        match choice % 256 {
            0..80 => self.operate(pick(&LOADS, which), 1),
            80..140 => self.operate(pick(&STORES, which), 1),
            140..180 => self.tag(pick(&TAG_OPERATIONS, which)),
            180..200 => self.read_tags(which.is_multiple_of(2)),
            200..216 => self.operate(pick(&ATOMICS, which), 8),
            216..224 => self.exclusive(),
            224..236 => self.maintain(pick(&MAINTENANCE, which)),
            236..242 => self.operate(Some(access::copy_from_next), 16),
            242..246 => self.arithmetic(),
            246..250 => self.mode(),
            250..253 => self.code(),
            _ => self.map(),
        }
    }

    /// Adds all data and all tags, through the identity map.
    pub fn finish(&mut self) {
        mte::set_checks(false);
        let multiple = mte::multiple_bytes() as usize;
        for page in (0..self.front).filter(|&page| !is_table(page)) {
            let at = Memory::Tagged.at(self.base + page * PAGE);
            for offset in (0..PAGE).step_by(8) {
                self.sum.add(mte::read(at + offset));
            }
            for offset in (0..PAGE).step_by(multiple) {
                self.sum.add(mte::ldgm(at + offset));
            }
        }
        mte::set_checks(true);
    }
}
