//! `scripts/run` without `--batch`: the terminal is a guest's console.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tagvisor_tests::{Finished, Guest, Scenario};

fn echo(name: &str) -> Guest {
    Guest::bare("el1-neighbour")
        .unwrap()
        .named(name)
        .cmdline("mode=echo")
}

fn assert_code(finished: &Finished, code: i32) {
    assert_eq!(finished.code, Some(code), "{}", finished.transcript());
}

#[test]
fn what_is_typed_reaches_the_guest_and_a_reset_restarts_it() {
    let finished = Scenario::of(echo("first"))
        .interact(|terminal| {
            terminal.expect("ECHO ready\n")?;
            terminal.write("one two\r")?;
            terminal.expect("ECHO one two\n")?;
            terminal.write("reset\r")?;
            terminal.expect("ECHO ready\n")?;
            terminal.write("three\r")?;
            terminal.expect("ECHO three\n")?;
            terminal.write("off\r")
        })
        .unwrap();
    assert_code(&finished, 0);
}

#[test]
fn the_console_goes_to_the_next_vm_when_its_own_ends() {
    let finished = Scenario::of(echo("first"))
        .and(echo("second"))
        .interact(|terminal| {
            terminal.expect("ECHO ready\n")?;
            terminal.write("off\r")?;
            terminal.expect("this is now the console of vm=second")?;
            terminal.write("hello\r")?;
            terminal.expect("ECHO hello\n")?;
            terminal.write("off\r")
        })
        .unwrap();
    assert_code(&finished, 0);
}

#[test]
fn the_escape_key_reports_and_leaves() {
    let finished = Scenario::of(echo("first"))
        .interact(|terminal| {
            terminal.expect("ECHO ready\n")?;
            terminal.write("\x1dr")?;
            terminal.expect("[tagvisor] tag storage under policy")?;
            terminal.write("still here\r")?;
            terminal.expect("ECHO still here\n")?;
            terminal.write("\x1dq")?;
            terminal.expect("vm=first ended: stopped")
        })
        .unwrap();
    assert_code(&finished, 0);
}

#[test]
fn a_guest_that_resets_in_a_loop_starts_once_a_second() {
    let looping = Guest::bare("el1-hello").unwrap().named("loop");
    let mut took = Duration::ZERO;
    let finished = Scenario::of(looping.cmdline("end=reset"))
        .interact(|terminal| {
            terminal.expect("HELLO memory")?;
            let first = Instant::now();
            for _ in 0..2 {
                terminal.expect("vm=loop restarts")?;
                terminal.expect("HELLO memory")?;
            }
            took = first.elapsed();
            terminal.write("\x1dq")?;
            terminal.expect("vm=loop ended: stopped")
        })
        .unwrap();
    assert_code(&finished, 0);
    // A slow host makes it longer, nothing makes it shorter: starts are a second of the machine's time apart.
    assert!(took > Duration::from_millis(1500), "{took:?}");
}
