//! What a reset leaves of data and tags: nothing.

use bare_guests::rt::pages::Wrong;
use bare_guests::rt::{console, gic, mte, psci};
use bare_guests::say;

use super::tagger::Choice;
use super::{Found, Job};

/// Looks at all pages, dirties them, and waits for a key.
pub fn run(job: &Job) -> Result<Found, Wrong> {
    let (pages, choice) = (&job.pages, Choice::of(job));
    let mut found = Found::default();
    for page in 0..pages.count {
        pages.check_zero(page)?;
        if choice.has(page) && mte::level() >= 2 {
            pages.check_no_tags(page)?;
        }
        pages.write(page, 0);
    }
    if mte::level() >= 2 {
        found.tagged = choice.each(|page| {
            pages.tag(page);
            pages.check_tags(page)
        })?;
    }
    gic::enable();
    console::listen();
    say!("DIRTY pages={} tagged={}", pages.count, found.tagged);
    if console::receive() == b'r' {
        psci::system_reset();
    }
    Ok(found)
}
