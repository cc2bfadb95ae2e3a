//! Tag instructions where no tags are.

use bare_guests::rt::console::UART;
use bare_guests::rt::mmu::Memory;
use bare_guests::rt::mte;

use super::checks::{Checks, done, done_or_external};
use super::memory::{NOTHING, scratch};

type Operation = fn(u64, u64);

const OPERATIONS: [(&str, Operation); 9] = [
    ("STG", mte::stg),
    ("ST2G", mte::st2g),
    ("STZG", mte::stzg),
    ("STGP", mte::stgp),
    ("STGM", mte::stgm),
    ("STZGM", mte::stzgm),
    ("DC GVA", mte::dc_gva),
    ("DC GZVA", mte::dc_gzva),
    ("DC CIGDVAC", mte::dc_cigdvac),
];

/// On devices and where nothing is: ignored or aborted.
fn nowhere(checks: &mut Checks, end: u64) {
    for (name, operation) in OPERATIONS {
        for pa in [UART + 0x1000 - 0x100, NOTHING, end] {
            for memory in [Memory::Tagged, Memory::Normal, Memory::Device] {
                let address = memory.at(pa);
                let attempt = || {
                    operation(mte::with_tag(address, 3), mte::with_tag(0, 3));
                    0
                };
                checks.attempt(name, attempt, done_or_external);
            }
        }
    }
    for pa in [UART, NOTHING, end] {
        checks.attempt("LDG", || mte::ldg(Memory::Tagged.at(pa)), done_or_external);
        checks.attempt(
            "LDGM",
            || mte::ldgm(Memory::Tagged.at(pa)),
            done_or_external,
        );
        let checked = mte::with_tag(Memory::Tagged.at(pa), 9);
        checks.attempt(
            "a checked load",
            || mte::read(checked),
            |got| done_or_external(got) || got.trap().is_some_and(|trap| trap.is_data_abort(0x11)),
        );
    }
}

/// Tags reach memory through a Tagged mapping only.
fn mappings(checks: &mut Checks) {
    let pa = scratch();
    let tagged = Memory::Tagged.at(pa);
    mte::stg(tagged, mte::with_tag(0, 6));
    checks.equal("a tag is stored", mte::ldg(tagged), 6);
    for memory in [Memory::Normal, Memory::NonCacheable, Memory::Device] {
        let address = memory.at(pa);
        let store = || {
            mte::stg(address, mte::with_tag(0, 9));
            0
        };
        checks.attempt("STG through an untagged mapping", store, done);
        checks.attempt(
            "LDG through an untagged mapping",
            || mte::ldg(address),
            done,
        );
        checks.equal("the tag is as it was", mte::ldg(tagged), 6);
    }
    mte::stg(tagged, 0);
    checks.equal("the tag is zero again", mte::ldg(tagged), 0);
}

/// A guest that is not shown MTE: tags do not exist for it, whatever it executes.
fn hidden(checks: &mut Checks) {
    let address = scratch();
    for (name, operation) in OPERATIONS {
        let attempt = || {
            operation(mte::with_tag(address, 3), mte::with_tag(0, 3));
            0
        };
        checks.attempt(name, attempt, |got| done(got) || got.is_undefined());
    }
    checks.attempt(
        "LDG without MTE",
        || mte::ldg(address),
        |got| got.is_undefined() || got.value() == Some(0),
    );
}

/// All of it.
pub fn run(checks: &mut Checks, (base, bytes): (u64, u64)) {
    if mte::level() >= 2 {
        mappings(checks);
        nowhere(checks, base + bytes);
    } else {
        hidden(checks);
    }
}
