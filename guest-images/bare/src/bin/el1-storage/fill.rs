//! A guest that uses all its memory for data and knows nothing of tags: the one whose pages are evicted.

use bare_guests::rt::pages::Wrong;
use bare_guests::say;

use super::{Found, Job};

/// An eighth of the pages is rewritten in each round: the version of `page` after round `round`.
const fn version(page: u64, round: u64) -> u64 {
    (round + page % 8) / 8
}

/// Writes, verifies, rewrites.
pub fn run(job: &Job) -> Result<Found, Wrong> {
    let pages = &job.pages;
    let mut found = Found::default();
    for page in 0..pages.count {
        pages.write(page, version(page, 0));
    }
    say!("WRITTEN pages={}", pages.count);
    job.wait();
    for round in 1..=job.number("rounds", 4) {
        for page in 0..pages.count {
            let (old, new) = (version(page, round - 1), version(page, round));
            pages.check(page, old)?;
            if old != new {
                pages.write(page, new);
            }
            pages.add_to(page, &mut found.sum);
        }
        say!("ROUND {round} verified");
        found.done = round;
    }
    Ok(found)
}
