//! What the operations cost that hypervisors are compared by, in instructions at EL2: Linux boots, and sleeps, and wakes itself.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Folder, Guest, Run, Scenario};

/// How often an operation is done between its two marks.
const TIMES: u64 = 2000;
const TIMER: &str = "mark-0x69";
const DONE: &str = "mark-0x7f";

/// EL2's instructions so far at each event, in the order of the events.
struct Counts {
    run: Run,
    events: Vec<(String, u64)>,
}

impl Counts {
    /// Runs Linux with as many CPUs as vCPUs.
    fn of(vcpus: u32, work: &str) -> Self {
        let folder = Folder::new().unwrap();
        let file = folder.path().join("count");
        let cmdline = format!(
            "console=ttyAMA0 earlycon=pl011,0x9000000 nokaslr panic=-1 work={work} n={TIMES}"
        );
        let guest = Guest::linux("marks")
            .unwrap()
            .memory("256M")
            .vcpus(vcpus)
            .cmdline(&cmdline);
        let cpus = vcpus.to_string();
        let options = ["--cpus", &cpus, "--count", file.to_str().unwrap()];
        let run = Scenario::of(guest)
            .with(&options)
            .within(900)
            .run()
            .unwrap();
        assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
        let text = std::fs::read_to_string(&file).unwrap();
        let event = |line: &str| {
            let mut words = line.split(' ');
            let name = words.next()?.to_owned();
            let el2 = words.find_map(|word| word.strip_prefix("el2="))?;
            Some((name, el2.parse().ok()?))
        };
        Self {
            run,
            events: text.lines().filter_map(event).collect(),
        }
    }

    fn at<'a>(&'a self, mark: &'a str) -> impl Iterator<Item = u64> + 'a {
        let found = self.events.iter().filter(move |(name, _)| name == mark);
        found.map(|(_, count)| *count)
    }

    fn assert_each(&self, what: &str, mark: &str, most: u64) {
        let mut marks = self.at(mark);
        let (Some(begin), Some(end), None) = (marks.next(), marks.next(), marks.next()) else {
            panic!("no two marks {mark}: {}", self.run.transcript());
        };
        let each = (end - begin).div_ceil(TIMES);
        println!("{what}: {each} EL2 instructions, at most {most}");
        assert!(
            each <= most,
            "{what}: {each} EL2 instructions, more than {most}"
        );
    }

    /// The boot workload: Linux up, 16 MiB tagged and checked.
    fn assert_boot(&self, most: u64) {
        let tagged = self.run.guest_line("linux", "MTE RESULT");
        assert_eq!(tagged, "MTE RESULT ok", "{}", self.run.transcript());
        let done = self.at(DONE).last().unwrap();
        println!("boot: {done} EL2 instructions, at most {most}");
        assert!(
            done <= most,
            "boot: {done} EL2 instructions, more than {most}"
        );
    }
}

#[test]
fn a_boot_with_one_vcpu() {
    Counts::of(1, "boot").assert_boot(50_000_000);
}

#[test]
fn a_boot_with_two_vcpus() {
    Counts::of(2, "boot").assert_boot(90_000_000);
}

#[test]
fn a_system_call_a_timer_tick_and_a_byte_of_the_uart() {
    let counts = Counts::of(1, "bench");
    counts.assert_each("a null system call", "mark-0x64", 1);
    counts.assert_each("a sleep of 100 us", TIMER, 400);
    counts.assert_each("a byte of the UART", "mark-0x6b", 700);
}

#[test]
fn a_ping_pong_across_cpus() {
    let counts = Counts::of(2, "bench");
    counts.assert_each("a sleep of 100 us", TIMER, 400);
    counts.assert_each("a ping-pong across CPUs", "mark-0x6a", 5000);
}
