//! A fault of EL2 itself: made by changing instructions in a copy of its ELF, for the image has no door to it.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Folder, Guest, Run, Scenario, patch, tagvisor_elf};

/// Where EL2 goes at a guest's first exit.
const EXIT: &str = "guest_exit";

/// Runs a guest under a tagvisor whose instructions at `symbol` are `code`.
fn run_with(symbol: &str, code: &[u32]) -> Run {
    let folder = Folder::new().unwrap();
    let file = folder.path().join("broken");
    let mut elf = std::fs::read(tagvisor_elf().unwrap()).unwrap();
    patch(&mut elf, symbol, code).unwrap();
    std::fs::write(&file, elf).unwrap();
    Scenario::of(Guest::bare("el1-hello").unwrap())
        .with(&["--el2", file.to_str().unwrap()])
        .within(30)
        .run()
        .unwrap()
}

/// EL2 said why it stopped, with its registers, once, and stopped by itself.
fn assert_panicked(run: &Run, class: &str) {
    assert_eq!(run.finished.code, Some(4), "{}", run.transcript());
    let lines: Vec<&str> = run
        .finished
        .output
        .lines()
        .map(str::trim_end)
        .skip_while(|line| !line.starts_with("[tagvisor] PANIC"))
        .collect();
    let text = lines.join("\n");
    assert_eq!(text.matches("PANIC").count(), 1, "{}", run.transcript());
    for register in [
        "pc 0x", "sp 0x", "spsr 0x", "far 0x", "x0  0x", "x29 0x", "x30 0x",
    ] {
        assert!(
            text.contains(register),
            "no {register}: {}",
            run.transcript()
        );
    }
    assert!(
        text.contains(&format!("esr {class}")),
        "{}",
        run.transcript()
    );
    assert!(run.report.is_null(), "{}", run.transcript());
}

#[test]
fn an_undefined_instruction_at_el2_is_told_and_stops_the_machine() {
    assert_panicked(&run_with(EXIT, &[0]), "0x0002000000");
}

#[test]
fn a_stack_that_overflows_meets_its_guard_page() {
    // 1: str xzr, [sp, #-16]!; b 1b
    let run = run_with(EXIT, &[0xf81f_0fff, 0x17ff_ffff]);
    // A data abort from EL2, translation fault at level 3, by a write.
    assert_panicked(&run, "0x0096000047");
}

#[test]
fn el2_does_not_write_its_own_code() {
    // adr x0, .; str x0, [x0]
    let run = run_with(EXIT, &[0x1000_0000, 0xf900_0000]);
    // A data abort from EL2, permission fault at level 3, by a write.
    assert_panicked(&run, "0x009600004f");
}
