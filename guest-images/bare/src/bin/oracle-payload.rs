//! Proves the carve-out oracle at EL2, both ways: tags written are data in the carve-out, data written there are tags.
//!
//! Tags of the granule pair at physical address X lie in the byte at carve-out + (X - RAM base) / 32, the even granule's in
//! the low four bits.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod payload {
    use bare_guests::pattern::Sequence;
    use bare_guests::rt::mmu::{self, Memory};
    use bare_guests::rt::{Boot, RAM_BASE, current_el, image_end, mte, psci};
    use bare_guests::say;

    bare_guests::entry!(main);

    const PAGE: u64 = 4096;
    /// Pages that are tried each way, beside the first and the last.
    const PAGES: u64 = 64;

    /// The first difference.
    struct Wrong {
        what: &'static str,
        address: u64,
        got: u64,
        want: u64,
    }

    /// RAM whose last 1/32 holds the tags.
    struct Ram {
        carve_out: u64,
    }

    impl Ram {
        /// Where the tags of the pair of granules at `pa` lie.
        const fn tags_of(&self, pa: u64) -> u64 {
            self.carve_out + (pa - RAM_BASE) / 32
        }

        /// Tags written to the page at `pa` are found as data.
        fn tags_become_data(&self, pa: u64, random: &mut Sequence) -> Result<(), Wrong> {
            for pair in (0..PAGE).step_by(32) {
                let (even, odd) = (random.below(16), random.below(16));
                let at = Memory::Tagged.at(pa + pair);
                mte::stg(at, mte::with_tag(0, even));
                mte::stg(at + mte::GRANULE, mte::with_tag(0, odd));
                mte::dc_cigdvac(at, 0);
                let (want, address) = (even | odd << 4, self.tags_of(pa + pair));
                let got = read_byte(address);
                if got != want {
                    return Err(Wrong {
                        what: "tags are not in the carve-out",
                        address,
                        got,
                        want,
                    });
                }
            }
            Ok(())
        }

        /// Data written over the tags of the page at `pa` are found as tags.
        fn data_become_tags(&self, pa: u64, random: &mut Sequence) -> Result<(), Wrong> {
            for half in (0..PAGE).step_by(256) {
                let value = random.next();
                let carve_out = Memory::Normal.at(self.tags_of(pa + half));
                mte::write(carve_out, value);
                mte::dc_civac(carve_out, 0);
                for granule in 0..16 {
                    let address = pa + half + granule * mte::GRANULE;
                    let (got, want) = (
                        mte::ldg(Memory::Tagged.at(address)),
                        value >> (granule * 4) & 0xf,
                    );
                    if got != want {
                        return Err(Wrong {
                            what: "carve-out data are not the tags",
                            address,
                            got,
                            want,
                        });
                    }
                }
            }
            Ok(())
        }

        fn try_all(&self) -> Result<u64, Wrong> {
            let mut random = Sequence::new(1);
            let first = image_end().next_multiple_of(PAGE);
            let last = self.carve_out - PAGE;
            let pages = (last - first) / PAGE;
            for step in 0..PAGES + 2 {
                let page = match step {
                    0 => 0,
                    1 => pages,
                    _ => random.below(pages),
                };
                self.tags_become_data(first + page * PAGE, &mut random)?;
                self.data_become_tags(first + page * PAGE, &mut random)?;
            }
            Ok(PAGES + 2)
        }
    }

    fn read_byte(pa: u64) -> u64 {
        mte::read(Memory::Normal.at(pa & !7)) >> ((pa & 7) * 8) & 0xff
    }

    fn main(boot: Boot) -> ! {
        let (_, bytes) = boot.memory();
        if current_el() != 2 || bytes == 0 || mte::level() < 2 {
            say!(
                "ORACLE FAIL needs EL2, MTE and a device tree: EL{} mte={} memory={bytes}",
                current_el(),
                mte::level()
            );
            psci::system_off();
        }
        mmu::enable();
        let ram = Ram {
            carve_out: RAM_BASE + bytes - bytes / 32,
        };
        match ram.try_all() {
            Ok(pages) => say!("ORACLE PASS pages={pages}"),
            Err(Wrong {
                what,
                address,
                got,
                want,
            }) => {
                say!("ORACLE FAIL {what}: address={address:#x} got={got:#x} want={want:#x}");
            }
        }
        psci::system_off()
    }
}
