//! Some pages get tags, in whatever order; data and tags of all are verified again and again.

use bare_guests::pattern::{self, Sequence, Sum};
use bare_guests::rt::mte;
use bare_guests::rt::pages::{Checked, Pages, Wrong};
use bare_guests::{execute, say};

use super::{Found, Job};

/// Which pages get tags.
#[derive(Clone, Copy)]
pub struct Choice {
    pages: Pages,
    permille: u64,
    linear: bool,
}

impl Choice {
    /// As the command line says.
    pub fn of(job: &Job) -> Self {
        Self {
            pages: job.pages,
            permille: job.number("permille", 100),
            linear: job.is("order", "linear"),
        }
    }

    /// Whether `page` gets tags: of each thousand pages about, or in order exactly, so many.
    pub fn has(&self, page: u64) -> bool {
        if self.linear {
            page < self.pages.count * self.permille / 1000
        } else {
            pattern::mix(self.pages.seed.wrapping_mul(3) ^ page) % 1000 < self.permille
        }
    }

    /// The pages that get tags, in the order in which they do.
    pub fn each(&self, mut body: impl FnMut(u64) -> Checked) -> Result<u64, Wrong> {
        let mut count = 0;
        let mut one = |page| {
            if !self.has(page) {
                return Ok(());
            }
            count += 1;
            body(page)
        };
        if self.linear {
            (0..self.pages.count).try_for_each(&mut one)?;
        } else {
            self.pages.shuffled().try_for_each(&mut one)?;
        }
        Ok(count)
    }

    /// The first tag access to a page, which keeps its data, and then a tag for each granule.
    pub fn tag(&self, page: u64) -> Checked {
        // The first access may be a tag-checked one.
        mte::set_checks(true);
        let first = self.pages.first_tag_access(page);
        mte::set_checks(false);
        first?;
        self.pages.tag(page);
        Ok(())
    }
}

/// Data of all pages, tags of those that have been given some.
fn verify(choice: &Choice, sum: &mut Sum) -> Checked {
    for page in 0..choice.pages.count {
        choice.pages.check(page, 0)?;
        if choice.has(page) {
            choice.pages.check_tags(page)?;
        }
        choice.pages.add_to(page, sum);
    }
    Ok(())
}

/// Does what must not happen to the page that `spoil=` or `spoiltag=` names: a test of the test.
fn spoil(job: &Job) {
    let none = job.pages.count;
    let (data, tag) = (job.number("spoil", none), job.number("spoiltag", none));
    if data < none {
        let at = job.pages.address(data);
        mte::write(at, !mte::read(at));
    }
    if tag < none {
        let at = job.pages.address(tag);
        mte::stg(at, mte::with_tag(0, mte::ldg(at) + 1));
    }
}

/// All of it.
pub fn run(job: &Job) -> Result<Found, Wrong> {
    let (pages, choice) = (&job.pages, Choice::of(job));
    let mut found = Found::default();
    let early = job.number("early", 0) != 0;
    for page in 0..pages.count {
        if early && choice.has(page) {
            choice.tag(page)?;
            found.tagged += 1;
        }
        pages.write(page, 0);
        // Of guests that write at the same time none gets all tag storage: in counted time QEMU's CPUs take turns, and one ends here.
        execute!("yield");
    }
    say!("WRITTEN pages={}", pages.count);
    job.wait();
    if early {
        verify(&choice, &mut found.sum)?;
        return Ok(found);
    }
    let (busy, mut random) = (job.number("busy", 0), Sequence::new(pages.seed));
    found.tagged = choice.each(|page| {
        choice.tag(page)?;
        pages.check(page, 0)?;
        (0..busy).try_for_each(|_| pages.check(random.below(pages.count), 0))
    })?;
    say!("TAGGED pages={}", found.tagged);
    spoil(job);
    for _ in 0..job.number("rounds", 1) {
        verify(&choice, &mut found.sum)?;
        found.done += 1;
    }
    Ok(found)
}
