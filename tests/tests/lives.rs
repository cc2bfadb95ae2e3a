//! VMs are created, stopped, reset, paused and destroyed by the monitor, again and again while another runs, and at the end
//! nothing is missing: 60 times, a thousand times in full.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use anyhow::Result;
use serde_json::Value;
use tagvisor_tests::{Folder, Guest, Scenario, Terminal};

const STEPS: u64 = if cfg!(feature = "full") { 1000 } else { 60 };
/// One tags, one has no tags, one waits for its terminal.
const TEMPLATES: [&str; 3] = ["tags", "plain", "waits"];

/// What a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Gone,
    Runs,
    Paused,
    Over,
}

/// What may be done with a VM in that state: the command, what is shown when it is done, and what the VM is then.
const COMMANDS: [(State, &str, &str, State); 10] = [
    (State::Gone, "create", "vm=NAME started", State::Runs),
    (State::Runs, "stop", "vm=NAME ended: stopped", State::Over),
    (State::Runs, "reset", "vm=NAME restarts", State::Runs),
    (State::Runs, "pause", "", State::Paused),
    (
        State::Runs,
        "destroy",
        "vm=NAME ended: stopped",
        State::Gone,
    ),
    (State::Paused, "resume", "", State::Runs),
    (State::Paused, "stop", "vm=NAME ended: stopped", State::Over),
    (
        State::Paused,
        "destroy",
        "vm=NAME ended: stopped",
        State::Gone,
    ),
    (State::Over, "start", "vm=NAME restarts", State::Runs),
    (State::Over, "destroy", "", State::Gone),
];

fn storage(name: &str, memory: &str, cmdline: &str) -> Guest {
    let guest = Guest::bare("el1-storage").unwrap().named(name);
    guest.memory(memory).cmdline(cmdline)
}

/// Does what may be done, in an order that looks random, then destroys all.
fn live(terminal: &mut Terminal, steps: u64) -> Result<()> {
    let mut states = TEMPLATES.map(|name| (name, State::Gone));
    let mut random = 1_u64;
    for step in 0..steps {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (name, state) = &mut states[(random >> 33) as usize % TEMPLATES.len()];
        let able: Vec<_> = COMMANDS.iter().filter(|(from, ..)| from == state).collect();
        let (_, verb, shown, next) = able[(random >> 40) as usize % able.len()];
        act(terminal, step, verb, name, shown)?;
        *state = *next;
    }
    for (name, state) in states {
        let shown = match state {
            State::Gone => continue,
            State::Over => "",
            State::Runs | State::Paused => "vm=NAME ended: stopped",
        };
        act(terminal, steps, "destroy", name, shown)?;
    }
    Ok(())
}

/// Types a command and waits until it is done: what is typed after it is shown after it.
fn act(terminal: &mut Terminal, step: u64, verb: &str, name: &str, shown: &str) -> Result<()> {
    terminal.write(&format!("vm {verb} {name}\r"))?;
    if !shown.is_empty() {
        terminal.expect(&shown.replace("NAME", name))?;
    }
    terminal.write(&format!("step{step}\r"))?;
    terminal.expect(&format!("step{step}"))
}

#[test]
fn vms_live_and_die_by_the_monitor_and_nothing_is_lost() {
    let folder = Folder::new().unwrap();
    let report = folder.path().join("report.json");
    let steady = storage(
        "steady",
        "48M",
        "mode=tag permille=300 bytes=512 rounds=1000000",
    );
    let tags = storage(
        "tags",
        "24M",
        "mode=tag permille=400 bytes=512 busy=2 rounds=1000000",
    );
    let plain = storage("plain", "40M", "mode=fill bytes=512 rounds=1000000").without_mte();
    let waits = Guest::bare("el1-neighbour").unwrap().named("waits");
    let finished = Scenario::of(steady)
        .and(tags.template())
        .and(plain.template())
        .and(waits.cmdline("mode=echo").template())
        .with(&["--memory", "256M", "--cpus", "2", "--policy", "lazy"])
        .with(&["--report", report.to_str().unwrap()])
        .within(900)
        .interact(|terminal| {
            terminal.expect("vm=steady started")?;
            terminal.write("\x1dm")?;
            terminal.expect("tagvisor> ")?;
            live(terminal, STEPS)?;
            terminal.write("quit\r")?;
            terminal.expect("vm=steady ended: stopped")
        })
        .unwrap();
    let said = finished.transcript();
    assert_eq!(finished.code, Some(0), "{said}");
    assert!(!finished.output.contains("RESULT"), "{said}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    let figure = |path| report.pointer(path).and_then(Value::as_u64).unwrap();
    assert!(figure("/invariants/checked") > 0);
    for path in [
        "/invariants/broken",
        "/final/lent_bytes",
        "/final/reserved_bytes",
    ] {
        assert_eq!(figure(path), 0, "{path}: {said}");
    }
}
