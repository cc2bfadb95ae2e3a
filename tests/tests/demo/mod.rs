//! What the tests of Linux share: the demo, and what is true of it under each policy.

use serde_json::Value;
use tagvisor_tests::{Folder, Guest, Run, Scenario};

const BLOCK: u64 = 4096;
/// PROT_MTE pages of the demo.
const PAGES: u64 = 4096;
/// What a kernel may tag for itself, in pages.
const KERNELS_OWN: u64 = 8;

/// One VM of the demo's, called `debian`, alone on 2 GiB and two CPUs, with these options of `scripts/run`.
pub fn demo(options: &[&str]) -> Run {
    let debian = Guest::linux("demo").unwrap().named("debian");
    let scenario = Scenario::of(debian).with(&["--cpus", "2"]);
    scenario.with(options).run().unwrap()
}

/// All VMs powered themselves off, EL2 kept its promises, and all memory is back.
pub fn assert_good(run: &Run) {
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    let vms = run.report.pointer("/vms").unwrap().as_array().unwrap();
    assert!(!vms.is_empty(), "{}", run.transcript());
    assert!(
        vms.iter().all(|vm| vm.get("end") == Some(&"off".into())),
        "{}",
        run.transcript()
    );
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    assert!(run.figure("/invariants/checked") > 0);
    if run.text("/policy") != "static" {
        let left = run.figure("/final/reserved_bytes");
        assert_eq!(left, 0, "{}", run.transcript());
    }
}

/// Guest `name` has seen `features` in its /proc/cpuinfo, and that its tags work.
pub fn assert_demo(run: &Run, name: &str, features: &str) {
    assert_eq!(
        run.guest_line(name, "/proc/cpuinfo:"),
        format!("/proc/cpuinfo: {features}"),
        "{}",
        run.transcript()
    );
    let result = run.guest_line(name, "TAGDEMO");
    assert!(
        result.starts_with("TAGDEMO pages=4096 bad=0 mismatch=segv_mteserr"),
        "{}",
        run.transcript()
    );
    assert!(result.ends_with(" result=ok"), "{}", run.transcript());
    assert_eq!(run.guest_line(name, "GUEST-RESULT"), "GUEST-RESULT ok");
}

/// Of VM `index`, the pages that the demo and its kernel tag are tagged, and no others.
pub fn assert_tagged(run: &Run, index: usize) -> u64 {
    let tagged = run.figure(&format!("/vms/{index}/pages/tagged"));
    assert!(
        (PAGES..=PAGES + KERNELS_OWN).contains(&tagged),
        "{}",
        run.transcript()
    );
    tagged
}

/// Each page with tags has its block, and few blocks have fewer than 32 of them.
pub fn assert_lazy(run: &Run) {
    assert_good(run);
    assert_demo(run, "debian", "mte mte3");
    assert_eq!(run.text("/policy"), "lazy");
    let tagged = assert_tagged(run, 0);
    assert_eq!(run.figure("/vms/0/tag_faults"), tagged);
    let (reserved, needed) = (run.figure("/reserved_bytes"), tagged.div_ceil(32) * BLOCK);
    assert!(
        (needed..=2 * needed).contains(&reserved) && reserved.is_multiple_of(BLOCK),
        "{reserved} reserved, {needed} needed: {}",
        run.transcript()
    );
    assert_eq!(run.figure("/vms/0/reserved_bytes"), reserved);
    assert_eq!(run.figure("/vms/0/peak/reserved_bytes"), reserved);
    let efficiency = run
        .report
        .pointer("/efficiency")
        .and_then(Value::as_f64)
        .unwrap();
    assert!(efficiency >= 0.95, "{}", run.transcript());
}

/// Each page of the guest has its block.
pub fn assert_eager(run: &Run, features: &str) {
    assert_good(run);
    assert_demo(run, "debian", features);
    assert_eq!(run.text("/policy"), "eager");
    let resident = run.figure("/vms/0/resident_bytes");
    assert!(resident > PAGES * 4096, "{}", run.transcript());
    assert_eq!(
        run.figure("/vms/0/pages/tagged") * 4096,
        resident,
        "{}",
        run.transcript()
    );
    let reserved = run.figure("/reserved_bytes");
    assert!(reserved >= resident / 32, "{}", run.transcript());
    assert!(reserved < run.figure("/vms/0/static_cost_bytes"));
    assert_eq!(run.figure("/vms/0/tag_faults"), 0);
}

/// All that a guest might tag has its block from the start.
pub fn assert_static(run: &Run) {
    assert_good(run);
    assert_demo(run, "debian", "mte mte3");
    assert_eq!(run.text("/policy"), "static");
    assert_eq!(run.figure("/reclaimed_bytes"), 0, "{}", run.transcript());
    assert_eq!(run.figure("/vms/0/tag_faults"), 0);
}

/// Runs the demo with its instructions counted; the file of counts too.
pub fn counted() -> (Run, String) {
    let folder = Folder::new().unwrap();
    let file = folder.path().join("count");
    let run = demo(&["--policy", "lazy", "--count", file.to_str().unwrap()]);
    (run, std::fs::read_to_string(&file).unwrap_or_default())
}

/// Runs the guest `marks` with `cmdline`, counted; the counts, an event in each line.
pub fn marks(cmdline: &str) -> String {
    let folder = Folder::new().unwrap();
    let file = folder.path().join("count");
    let guest = Guest::linux("marks").unwrap().and_cmdline(cmdline);
    let run = Scenario::of(guest)
        .with(&["--count", file.to_str().unwrap()])
        .run()
        .unwrap();
    assert_good(&run);
    assert_eq!(
        run.guest_line("linux", "MTE RESULT"),
        "MTE RESULT ok",
        "{}",
        run.transcript()
    );
    std::fs::read_to_string(&file).unwrap_or_default()
}

/// The events of `counts`, each with its count of EL2; the count never falls.
pub fn events(counts: &str) -> Vec<(&str, u64)> {
    let events: Vec<(&str, u64)> = counts
        .lines()
        .map(|line| {
            let (event, rest) = line.split_once(' ').unwrap();
            let mut words = rest.split(' ');
            let el2 = words.find_map(|word| word.strip_prefix("el2="));
            (event, el2.unwrap().parse().unwrap())
        })
        .collect();
    assert!(events.is_sorted_by_key(|&(_, el2)| el2), "{counts}");
    events
}

/// How many CPUs the demo in guest `name` has found.
pub fn cpus(run: &Run, name: &str) -> String {
    let line = run.guest_line(name, "demo guest:");
    let words: Vec<&str> = line.split(", ").collect();
    words.get(1).copied().unwrap_or_default().to_owned()
}
