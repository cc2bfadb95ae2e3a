//! What is counted: first touches and first tag accesses between marks for the counting plugin.

use bare_guests::rt::mte;
use bare_guests::rt::pages::Wrong;
use bare_guests::{mark, say};

use super::{Found, Job};

/// Marks each first tag access of a page: one STG.
fn touch(address: u64) {
    mark!("0x70");
    mte::stg(address, mte::with_tag(address, 1));
}

/// Writes pages, then tags each once.
pub fn tag(job: &Job) -> Result<Found, Wrong> {
    let pages = &job.pages;
    let mut found = Found::default();
    for page in 0..pages.count {
        pages.write(page, 0);
    }
    say!("WRITTEN pages={}", pages.count);
    job.wait();
    if job.is("order", "linear") {
        (0..pages.count).for_each(|page| touch(pages.address(page)));
    } else if job.is("order", "reverse") {
        (0..pages.count)
            .rev()
            .for_each(|page| touch(pages.address(page)));
    } else {
        pages.shuffled().for_each(|page| touch(pages.address(page)));
    }
    mark!("0x71");
    found.tagged = pages.count;
    for page in 0..pages.count {
        pages.check(page, 0)?;
        pages.add_to(page, &mut found.sum);
        found.done += u64::from(mte::ldg(pages.address(page)) == 1);
    }
    Ok(found)
}

/// Touches fresh pages.
pub fn fresh(job: &Job) -> Result<Found, Wrong> {
    let pages = &job.pages;
    job.wait();
    mark!("0x72");
    for page in 0..pages.count {
        mte::write(pages.address(page), page);
    }
    mark!("0x73");
    Ok(Found {
        done: pages.count,
        ..Found::default()
    })
}
