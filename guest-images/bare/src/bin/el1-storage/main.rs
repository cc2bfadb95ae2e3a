//! Guests for whom tag storage is lent, reserved, evicted and moved: each knows what its data and tags must be.
//!
//! `mode=` on the command line says what it does. All modes know `seed=N`, `pages=N` (all that fit), `stride=N` (from one
//! page to the next, in pages: 1), `bytes=N` (data bytes written to a page: 4096), `begin=MS` before anything is touched,
//! `wait=MS` before tags are used and `hold=MS` at the end. The last line is `RESULT ok` or `RESULT bad` and what was found.
//!
//! | mode | does |
//! |---|---|
//! | `tag` | writes all pages, then tags `permille=N` of them, chosen and ordered at random (`order=linear`: the first ones, in order); verifies all, `rounds=N` times; with `busy=N` also N pages after each one that is tagged; with `early=1` tags come before data, page by page |
//! | `fill` | writes all pages and verifies them `rounds=N` times, changing an eighth of them each time; uses no tags |
//! | `bench` | writes all pages, then tags each once (`order=linear`, `order=reverse` or at random), mark 0x70 before each and 0x71 at the end |
//! | `fresh` | touches all pages once, mark 0x72 before and 0x73 after |
//! | `reset` | all pages must be zero; tags and dirties them, says `DIRTY`, and ends as it is told by a key: `r` or `o` |
//! | `code` | runs code that it rewrites in pages that get tags; with two vCPUs one only runs it |
//! | `atomics` | two vCPUs count in pages with exclusives and atomics while one of them tags the pages |

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[path = "."]
mod guest {
    mod atomics;
    mod bench;
    mod code;
    mod fill;
    mod reset;
    mod tagger;

    use bare_guests::pattern::Sum;
    use bare_guests::rt::pages::{PAGE, Pages, Wrong};
    use bare_guests::rt::{Boot, clock, current_el, mmu, mte, psci};
    use bare_guests::{args, say};

    bare_guests::entry!(main);

    /// Where the pages start is a multiple of this: a 2 MiB leaf.
    const ALIGN: u64 = 2 << 20;

    /// What is to be done.
    pub struct Job {
        /// The command line.
        pub line: &'static str,
        /// Where.
        pub pages: Pages,
    }

    /// What was found.
    #[derive(Default)]
    pub struct Found {
        /// Pages that have got tags.
        pub tagged: u64,
        /// A checksum of what depends on the seed.
        pub sum: Sum,
        /// How much was done, in what the mode counts.
        pub done: u64,
    }

    impl Job {
        fn new(boot: &Boot) -> Self {
            let line = boot.bootargs();
            let align = args::number(line, "align", ALIGN);
            let (base, end) = boot.free(align.next_power_of_two().max(PAGE));
            let stride = args::number(line, "stride", 1).max(1);
            let fit = end.saturating_sub(base) / (PAGE * stride);
            let pages = Pages {
                seed: args::number(line, "seed", 1),
                base,
                count: args::number(line, "pages", fit).min(fit),
                stride,
                bytes: args::number(line, "bytes", PAGE),
            };
            Self { line, pages }
        }

        /// A number of the command line.
        pub fn number(&self, key: &str, default: u64) -> u64 {
            args::number(self.line, key, default)
        }

        /// Whether the command line says `key=value`.
        pub fn is(&self, key: &str, value: &str) -> bool {
            args::text(self.line, key) == Some(value)
        }

        /// Sleeps as long as `wait=` says.
        pub fn wait(&self) {
            clock::sleep(self.number("wait", 0));
        }

        fn run(&self) -> Result<Found, Wrong> {
            match args::text(self.line, "mode").unwrap_or_default() {
                "tag" => tagger::run(self),
                "fill" => fill::run(self),
                "bench" => bench::tag(self),
                "fresh" => bench::fresh(self),
                "reset" => reset::run(self),
                "code" => code::run(self),
                "atomics" => atomics::run(self),
                other => {
                    say!("no mode {other}: see el1-storage");
                    psci::system_off()
                }
            }
        }
    }

    fn main(boot: Boot) -> ! {
        let job = Job::new(&boot);
        let (pages, el) = (job.pages.count, current_el());
        say!("STORAGE mte={} pages={pages} {}", mte::level(), job.line);
        if el != 1 || pages == 0 {
            say!("RESULT bad needs EL1 and room for pages: EL{el}");
            psci::system_off();
        }
        mmu::enable();
        if mte::level() >= 2 {
            mte::set_checks(false);
        }
        clock::sleep(job.number("begin", 0));
        match job.run() {
            Ok(Found { tagged, sum, done }) => {
                clock::sleep(job.number("hold", 0));
                say!(
                    "RESULT ok pages={pages} tagged={tagged} done={done} sum={:#018x}",
                    sum.value()
                );
            }
            Err(wrong) => say!("RESULT bad {wrong}"),
        }
        psci::system_off()
    }
}
