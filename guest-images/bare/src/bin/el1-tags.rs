//! Tags pages in every way the architecture has, and checks that nothing is lost, invented or mixed up.
//!
//! Pages of three kinds lie in RAM above the program: `pages=` dense ones, next to each other; `plain=` ones with data but
//! never a tag access; `sparse=` ones with one tagged granule each, 33 pages apart, so that no two share a tag block of
//! 4 KiB. All is written first and read back later, so that tags which land on the wrong place show. What it prints
//! depends on the parameters only, not on who keeps the tags, or where.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod guest {
    use bare_guests::pattern::{self, Sum};
    use bare_guests::rt::mmu;
    use bare_guests::rt::trap::{self, Outcome};
    use bare_guests::rt::{Boot, current_el, image_end, mte, psci};
    use bare_guests::{args, execute, say};

    bare_guests::entry!(main);

    const PAGE: u64 = 4096;
    const GRANULES: u64 = PAGE / mte::GRANULE;
    /// How far sparse pages are apart: one tag block of 4 KiB covers 32.
    const SPARSE_STEP: u64 = 33;
    /// Where the pages start: behind the program, the device tree, and what a 2 MiB leaf would tie together.
    const ALIGN: u64 = 2 << 20;
    /// A device tree is no longer.
    const LONGEST_TREE: u64 = 2 << 20;

    /// The first thing that was not as it must be.
    struct Wrong {
        what: &'static str,
        page: u64,
        address: u64,
        got: u64,
        want: u64,
    }

    type Checked = Result<(), Wrong>;

    fn expect(what: &'static str, page: u64, address: u64, (got, want): (u64, u64)) -> Checked {
        if got == want {
            Ok(())
        } else {
            Err(Wrong {
                what,
                page,
                address,
                got,
                want,
            })
        }
    }

    /// The ways to give a page its tags; page `n` uses way `n % 8`.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Way {
        Stg,
        St2g,
        Stzg,
        Stgp,
        Stgm,
        Stzgm,
        DcGva,
        DcGzva,
    }

    impl Way {
        const ALL: [Self; 8] = [
            Self::Stg,
            Self::St2g,
            Self::Stzg,
            Self::Stgp,
            Self::Stgm,
            Self::Stzgm,
            Self::DcGva,
            Self::DcGzva,
        ];

        fn of(page: u64) -> Self {
            Self::ALL
                .get((page % 8) as usize)
                .copied()
                .unwrap_or(Self::Stg)
        }

        /// Whether the data are zero afterwards.
        const fn zeroes(self) -> bool {
            matches!(self, Self::Stzg | Self::Stzgm | Self::DcGzva)
        }

        /// Granules that one step gives one tag.
        const fn unit(self, test: &Test) -> u64 {
            match self {
                Self::Stg | Self::Stzg | Self::Stgp | Self::Stgm => 1,
                Self::St2g => 2,
                // STZGM works on DCZID_EL0.BS, not on GMID_EL1.BS as STGM does.
                Self::Stzgm | Self::DcGva | Self::DcGzva => test.zero,
            }
        }
    }

    /// The parameters and the machine's block sizes, in granules.
    struct Test {
        seed: u64,
        pages: u64,
        plain: u64,
        sparse: u64,
        base: u64,
        multiple: u64,
        zero: u64,
    }

    impl Test {
        fn new(boot: &Boot) -> Self {
            let line = boot.bootargs();
            let mut test = Self {
                seed: args::number(line, "seed", 1),
                pages: args::number(line, "pages", 512),
                plain: args::number(line, "plain", 512),
                sparse: args::number(line, "sparse", 64),
                base: image_end().next_multiple_of(ALIGN),
                multiple: mte::multiple_bytes() / mte::GRANULE,
                zero: mte::zero_bytes() / mte::GRANULE,
            };
            if boot.tree.is_some() && boot.x0 < test.end() {
                test.base = (boot.x0 + LONGEST_TREE)
                    .max(image_end())
                    .next_multiple_of(ALIGN);
            }
            test
        }

        /// The end of the pages.
        const fn end(&self) -> u64 {
            self.address(self.all())
        }

        /// The physical address of page `page`, counted over all three kinds.
        const fn address(&self, page: u64) -> u64 {
            let dense = self.pages + self.plain;
            let slot = if page < dense {
                page
            } else {
                dense + (page - dense) * SPARSE_STEP
            };
            self.base + slot * PAGE
        }

        const fn all(&self) -> u64 {
            // One more for the tag check on a page that nobody has touched.
            self.pages + self.plain + self.sparse + 1
        }

        fn tag(&self, page: u64, granule: u64) -> u64 {
            pattern::tag(self.seed, page, granule, Way::of(page).unit(self))
        }

        fn word(&self, page: u64, offset: u64) -> u64 {
            pattern::word(self.seed, page, offset)
        }

        /// All data of a page, through pointers without tag (unchecked).
        fn write_data(&self, page: u64) {
            for offset in (0..PAGE).step_by(8) {
                mte::write(self.address(page) + offset, self.word(page, offset));
            }
        }

        /// A page that was never touched has zero data and zero tags; the tags are asked first on every other page.
        fn check_fresh(&self, page: u64) -> Checked {
            let at = self.address(page);
            if page.is_multiple_of(2) {
                self.check_no_tags(page)?;
            }
            for offset in (0..PAGE).step_by(8) {
                expect(
                    "a fresh page has data",
                    page,
                    at + offset,
                    (mte::read(at + offset), 0),
                )?;
            }
            self.check_no_tags(page)
        }

        fn check_no_tags(&self, page: u64) -> Checked {
            let at = self.address(page);
            for block in (0..PAGE).step_by((self.multiple * mte::GRANULE) as usize) {
                expect(
                    "a fresh page has tags (LDGM)",
                    page,
                    at + block,
                    (mte::ldgm(at + block), 0),
                )?;
            }
            let last = at + PAGE - mte::GRANULE;
            expect(
                "a fresh page has tags (LDG)",
                page,
                last,
                (mte::ldg(last), 0),
            )
        }

        /// Gives the page its tags, in its way.
        fn write_tags(&self, page: u64) {
            let way = Way::of(page);
            let step = if way == Way::Stgm {
                self.multiple
            } else {
                way.unit(self)
            };
            for granule in (0..GRANULES).step_by(step as usize) {
                let at = self.address(page) + granule * mte::GRANULE;
                let tag = self.tag(page, granule);
                let tagged = mte::with_tag(at, tag);
                match way {
                    Way::Stg => mte::stg(at, tagged),
                    Way::St2g => mte::st2g(at, tagged),
                    Way::Stzg => mte::stzg(at, tagged),
                    Way::Stgp => mte::stgp(tagged, 0),
                    Way::Stgm => mte::stgm(at, self.block_tags(page, granule)),
                    Way::Stzgm => mte::stzgm(at, tag),
                    Way::DcGva => mte::dc_gva(tagged, 0),
                    Way::DcGzva => mte::dc_gzva(tagged, 0),
                }
            }
        }

        /// The operand of STGM, and the result of LDGM, for the block that starts at `granule`.
        fn block_tags(&self, page: u64, granule: u64) -> u64 {
            (granule..granule + self.multiple).fold(0, |tags, one| {
                tags | self.tag(page, one) << ((one % 16) * 4)
            })
        }

        /// The tagging kept the data, or zeroed them, as its way says.
        fn check_after_tagging(&self, page: u64) -> Checked {
            let at = self.address(page);
            let zero = Way::of(page).zeroes() || Way::of(page) == Way::Stgp;
            for offset in (0..PAGE).step_by(8) {
                let want = if zero { 0 } else { self.word(page, offset) };
                expect(
                    "tagging changed data",
                    page,
                    at + offset,
                    (mte::read(at + offset), want),
                )?;
            }
            Ok(())
        }

        /// Rewrites the data through pointers with the right tags, which are checked.
        fn write_checked(&self, page: u64) -> Checked {
            let outcome = trap::attempt(|| {
                for offset in (0..PAGE).step_by(8) {
                    let tag = self.tag(page, offset / mte::GRANULE);
                    mte::write(
                        mte::with_tag(self.address(page) + offset, tag),
                        self.word(page, offset),
                    );
                }
                0
            });
            expect(
                "a store with the right tag faults",
                page,
                self.address(page),
                (syndrome(outcome), 0),
            )
        }

        /// A load and a store with a wrong tag are stopped, at the right address, and the store stores nothing.
        fn check_mismatch(&self, page: u64) -> Checked {
            let granule = pattern::mix(page) % GRANULES;
            let at = self.address(page) + granule * mte::GRANULE;
            let wrong = mte::with_tag(at, wrong_tag(self.tag(page, granule)));
            tag_fault(page, wrong, trap::attempt(|| mte::read(wrong)))?;
            let was = mte::read(at);
            tag_fault(page, wrong, trap::attempt(|| stored(wrong, !was)))?;
            expect(
                "a store with a wrong tag stores",
                page,
                at,
                (mte::read(at), was),
            )
        }

        /// Data and tags of a dense page, into the sum too.
        fn verify(&self, page: u64, sum: &mut Sum) -> Checked {
            let at = self.address(page);
            for offset in (0..PAGE).step_by(8) {
                let got = mte::read(at + offset);
                expect(
                    "data are lost",
                    page,
                    at + offset,
                    (got, self.word(page, offset)),
                )?;
                sum.add(got);
            }
            for granule in 0..GRANULES {
                let address = at + granule * mte::GRANULE;
                let got = mte::ldg(address);
                expect(
                    "a tag is lost (LDG)",
                    page,
                    address,
                    (got, self.tag(page, granule)),
                )?;
                sum.add(got);
            }
            for granule in (0..GRANULES).step_by(self.multiple as usize) {
                let address = at + granule * mte::GRANULE;
                let want = self.block_tags(page, granule);
                expect(
                    "a tag is lost (LDGM)",
                    page,
                    address,
                    (mte::ldgm(address), want),
                )?;
            }
            Ok(())
        }

        /// Cache maintenance of data and tags loses neither.
        fn maintain(&self, page: u64) {
            for offset in (0..PAGE).step_by(64) {
                let at = self.address(page) + offset;
                match page % 3 {
                    0 => mte::dc_cigdvac(at, 0),
                    1 => mte::dc_cgvac(at, 0),
                    _ => mte::dc_igdvac(at, 0),
                }
            }
            execute!("dsb sy");
        }

        /// DC ZVA of one block of a tagged page zeroes the data and keeps the tags; the data are then put back.
        fn check_zva(&self, page: u64) -> Checked {
            let at = self.address(page);
            let tag = self.tag(page, 0);
            mte::dc_zva(at, 0);
            expect("DC ZVA leaves data", page, at, (mte::read(at), 0))?;
            expect("DC ZVA changes tags", page, at, (mte::ldg(at), tag))?;
            for offset in (0..self.zero * mte::GRANULE).step_by(8) {
                mte::write(at + offset, self.word(page, offset));
            }
            Ok(())
        }

        /// One granule's tag on each page, the first touch of which is the STG.
        fn tag_sparse(&self, page: u64) {
            let granule = pattern::mix(page) % GRANULES;
            let at = self.address(page) + granule * mte::GRANULE;
            mte::stg(
                at,
                mte::with_tag(0, pattern::tag(self.seed, page, granule, 1) | 1),
            );
        }

        /// That tag, and no other, and no data.
        fn verify_sparse(&self, page: u64, sum: &mut Sum) -> Checked {
            let tagged = pattern::mix(page) % GRANULES;
            for granule in 0..GRANULES {
                let at = self.address(page) + granule * mte::GRANULE;
                let want = if granule == tagged {
                    pattern::tag(self.seed, page, granule, 1) | 1
                } else {
                    0
                };
                let got = mte::ldg(at);
                expect("a sparse page has a wrong tag", page, at, (got, want))?;
                expect("a sparse page has data", page, at, (mte::read(at), 0))?;
                sum.add(got);
            }
            Ok(())
        }

        /// The first touch of a page is a checked store with a tag: memory has tag 0, so it is stopped.
        fn check_first_touch(&self, page: u64) -> Checked {
            let at = self.address(page);
            let tagged = mte::with_tag(at, 5);
            tag_fault(page, tagged, trap::attempt(|| stored(tagged, 1)))?;
            expect("a stopped store stored", page, at, (mte::read(at), 0))?;
            expect("a stopped store tagged", page, at, (mte::ldg(at), 0))
        }

        /// All of it; the sum.
        fn run(&self) -> Result<u64, Wrong> {
            let mut sum = Sum::default();
            let (plain, sparse) = (self.pages, self.pages + self.plain);
            let last = self.all() - 1;
            for page in plain..sparse {
                self.write_data(page);
            }
            for page in 0..self.pages {
                self.check_fresh(page)?;
                self.write_data(page);
                self.write_tags(page);
                self.check_after_tagging(page)?;
                self.write_checked(page)?;
            }
            (sparse..last).for_each(|page| self.tag_sparse(page));
            self.check_first_touch(last)?;
            for page in 0..self.pages {
                self.check_mismatch(page)?;
                self.check_zva(page)?;
                self.maintain(page);
            }
            for page in 0..self.pages {
                self.verify(page, &mut sum)?;
            }
            for page in sparse..last {
                self.verify_sparse(page, &mut sum)?;
            }
            self.verify_plain(plain..sparse, &mut sum)?;
            Ok(sum.value())
        }

        /// The data of pages without tags.
        fn verify_plain(&self, pages: core::ops::Range<u64>, sum: &mut Sum) -> Checked {
            for page in pages {
                for offset in (0..PAGE).step_by(8) {
                    let at = self.address(page) + offset;
                    let got = mte::read(at);
                    expect(
                        "data of a plain page are lost",
                        page,
                        at,
                        (got, self.word(page, offset)),
                    )?;
                    sum.add(got);
                }
            }
            Ok(())
        }
    }

    /// A tag that is neither `tag` nor 0, which is unchecked.
    const fn wrong_tag(tag: u64) -> u64 {
        if tag == 15 { 7 } else { tag + 1 }
    }

    fn stored(address: u64, value: u64) -> u64 {
        mte::write(address, value);
        0
    }

    /// ESR of an exception, 0 without one.
    fn syndrome(outcome: Outcome) -> u64 {
        outcome.trap().map_or(0, |trap| trap.esr)
    }

    /// `outcome` is a synchronous tag check fault at `address`.
    fn tag_fault(page: u64, address: u64, outcome: Outcome) -> Checked {
        let low = (1 << 56) - 1;
        match outcome.trap() {
            Some(trap) if trap.is_data_abort(trap::TAG_CHECK) => expect(
                "a tag fault names another address",
                page,
                address,
                (trap.far & low, address & low),
            ),
            other => {
                let got = other.map_or(0, |trap| trap.esr);
                Err(Wrong {
                    what: "a wrong tag is not stopped",
                    page,
                    address,
                    got,
                    want: trap::TAG_CHECK,
                })
            }
        }
    }

    fn main(boot: Boot) -> ! {
        let (base, bytes) = boot.memory();
        if current_el() != 1 || mte::level() < 2 {
            say!(
                "TAGS FAIL needs EL1 with MTE: EL{} mte={}",
                current_el(),
                mte::level()
            );
            psci::system_off();
        }
        let test = Test::new(&boot);
        if test.end() > base + bytes {
            say!(
                "TAGS FAIL {} pages do not fit {bytes} bytes of memory",
                test.all()
            );
            psci::system_off();
        }
        mmu::enable();
        match test.run() {
            Ok(sum) => {
                say!(
                    "TAGS tagged={} plain={} sum={sum:#018x}",
                    test.pages + test.sparse + 1,
                    test.plain
                );
                say!("TAGS PASS");
            }
            Err(Wrong {
                what,
                page,
                address,
                got,
                want,
            }) => {
                say!(
                    "TAGS FAIL {what}: page={page} address={address:#x} got={got:#x} want={want:#x}"
                );
            }
        }
        psci::system_off()
    }
}
