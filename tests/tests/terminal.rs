//! `scripts/run` without `--batch`: the terminal is a guest's console.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tagvisor_tests::{Finished, Guest, Scenario, Terminal};

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
            terminal.expect("ECHO ready\r\n")?;
            terminal.write("one two\r")?;
            terminal.expect("ECHO one two\r\n")?;
            terminal.write("reset\r")?;
            terminal.expect("ECHO ready\r\n")?;
            terminal.write("three\r")?;
            terminal.expect("ECHO three\r\n")?;
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
            terminal.expect("ECHO ready\r\n")?;
            terminal.write("off\r")?;
            terminal.expect("this is now the console of vm=second")?;
            terminal.write("hello\r")?;
            terminal.expect("ECHO hello\r\n")?;
            terminal.write("off\r")
        })
        .unwrap();
    assert_code(&finished, 0);
}

#[test]
fn the_escape_key_reports_and_leaves() {
    let finished = Scenario::of(echo("first"))
        .interact(|terminal| {
            terminal.expect("ECHO ready\r\n")?;
            terminal.write("\x1dr")?;
            terminal.expect("[tagvisor] tag storage under policy")?;
            terminal.write("still here\r")?;
            terminal.expect("ECHO still here\r\n")?;
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

/// Types a command to the monitor.
fn command(terminal: &mut Terminal, text: &str) -> anyhow::Result<()> {
    terminal.write(&format!("{text}\r"))
}

#[test]
fn vms_come_and_go_by_the_monitor_while_another_runs() {
    let finished = Scenario::of(echo("first"))
        .and(echo("spare").template())
        .interact(|terminal| {
            terminal.expect("ECHO ready\r\n")?;
            terminal.write("\x1dm")?;
            terminal.expect("tagvisor> ")?;
            command(terminal, "vm li\t")?;
            terminal.expect("running")?;
            terminal.expect("template")?;
            command(terminal, "vm create spare")?;
            terminal.expect("vm=spare started")?;
            terminal.expect("ECHO ready\r\n")?;
            command(terminal, "vm create spare")?;
            terminal.expect("there is a VM called spare")?;
            command(terminal, "vm create spare other")?;
            terminal.expect("vm=other started")?;
            terminal.expect("ECHO ready\r\n")?;
            command(terminal, "vm pause spare")?;
            command(terminal, "attach first")?;
            terminal.expect("this is now the console of vm=first")?;
            terminal.write("are you there\r")?;
            terminal.expect("ECHO are you there\r\n")?;
            terminal.write("\x1dm")?;
            command(terminal, "attach spare")?;
            terminal.expect("this is now the console of vm=spare")?;
            terminal.write("hello\r")?;
            terminal.write("\x1dm")?;
            command(terminal, "vm list")?;
            terminal.expect("paused")?;
            assert!(!terminal.screen().contains("ECHO hello"), "it is paused");
            command(terminal, "vm resume spare")?;
            terminal.expect("ECHO hello\r\n")?;
            command(terminal, "vm reset spare")?;
            terminal.expect("vm=spare restarts")?;
            terminal.expect("ECHO ready\r\n")?;
            command(terminal, "vm pause spare")?;
            command(terminal, "vm destroy spare")?;
            terminal.expect("vm=spare ended: stopped")?;
            command(terminal, "vm stop spare")?;
            terminal.expect("no VM is called spare")?;
            command(terminal, "vm stop other")?;
            terminal.expect("vm=other ended: stopped")?;
            command(terminal, "vm create spare")?;
            terminal.expect("vm=spare started")?;
            terminal.expect("ECHO ready\r\n")?;
            command(terminal, "vm start other")?;
            terminal.expect("vm=other restarts")?;
            terminal.expect("ECHO ready\r\n")?;
            terminal.write("\x03")?;
            terminal.write("\x1dm")?;
            command(terminal, "quit")?;
            terminal.expect("vm=first ended: stopped")
        })
        .unwrap();
    assert_code(&finished, 0);
    assert!(
        finished.output.contains(" 0 broken"),
        "{}",
        finished.transcript()
    );
}

/// A number in the last line of the screen that starts with `name`.
fn figure(screen: &str, name: &str, index: usize) -> u64 {
    let mut rows = screen.lines().rev();
    let row = rows.find_map(|row| row.strip_prefix(name)).unwrap();
    let figure = row.split_whitespace().nth(index).unwrap();
    figure.parse().unwrap()
}

#[test]
fn the_monitor_tells_of_memory_and_stays_when_all_have_ended() {
    let finished = Scenario::of(echo("only"))
        .interact(|terminal| {
            terminal.expect("ECHO ready\r\n")?;
            terminal.write("\x1dm")?;
            command(terminal, "blocks")?;
            terminal.expect("region 0: ")?;
            terminal.expect("................")?;
            command(terminal, "trace only")?;
            command(terminal, "stats")?;
            terminal.expect("cpu ms stolen ms")?;
            terminal.expect("injected")?;
            terminal.expect("only ")?;
            command(terminal, "log loud")?;
            terminal.expect("is not")?;
            // It runs, alone: what it has had of its CPU is told all the same.
            assert!(figure(&terminal.screen(), "only ", 0) > 0);
            command(terminal, "help")?;
            terminal.expect("vm budget VM SIZE")?;
            command(terminal, "attach only")?;
            terminal.write("hello\r")?;
            terminal.expect("ECHO hello\r\n")?;
            terminal.write("\x1dm")?;
            command(terminal, "trace only")?;
            terminal.expect("vcpu=0 pc=0x")?;
            command(terminal, "vm stop only")?;
            terminal.expect("vm=only ended: stopped")?;
            command(terminal, "memory")?;
            terminal.expect("tag storage under policy")?;
            command(terminal, "vm start only")?;
            terminal.expect("ECHO ready\r\n")?;
            command(terminal, "vm destroy only")?;
            terminal.expect("vm=only ended: stopped")?;
            command(terminal, "vm list")?;
            terminal.expect("template")?;
            command(terminal, "quit")
        })
        .unwrap();
    assert_code(&finished, 0);
}

#[test]
fn a_guest_cannot_forge_a_line_or_steer_the_terminal() {
    let finished = Scenario::of(echo("liar"))
        .interact(|terminal| {
            terminal.expect("ECHO ready\r\n")?;
            // ESC is 27 to the guest too: it echoes what it is sent.
            terminal.write("\x1b[2J\x1b[9D[tagvisor] INFO a lie\r")?;
            terminal.expect("INFO a lie\r\n")?;
            terminal.write("\x1dq")
        })
        .unwrap();
    assert_code(&finished, 0);
    assert!(
        !finished.output.contains("\x1b[2J"),
        "{}",
        finished.transcript()
    );
    assert!(
        !finished.output.contains("\x1b[9D"),
        "{}",
        finished.transcript()
    );
}
