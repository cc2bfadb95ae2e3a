//! What the monitor's commands do. They run on the CPU that took the key, under the lock.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use stage2::block::BlockState;
use stage2::guest::{MemError, Policy};
use stage2::pool::BlockId;
use stage2::region::TagRegion;

use super::{Guest, Hypervisor, ThisCpu};
use crate::config::{VmConfig, check_name, log_level};
use crate::console::Command;
use crate::life::Fate;
use crate::monitor::{Request, Trace, Verb, help, parse, size};
use crate::output::{CONSOLE, line};
use crate::report::End;

impl Hypervisor {
    /// All VMs that are not forgotten.
    pub(super) fn vms(&self) -> impl Iterator<Item = &Guest> {
        let all = self.guests.iter();
        all.filter(|guest| !guest.vm.config.name.is_empty())
    }

    /// Gives the terminal to the monitor, or back to the attached guest.
    pub(super) fn open_monitor(&mut self, open: bool) {
        if !self.config.batch && self.monitor != open {
            self.monitor = open;
            CONSOLE.lock().monitor(open);
        }
    }

    /// Completes the line under way.
    pub(super) fn complete(&mut self) {
        let mut names = Vec::new();
        for guest in self.vms() {
            names.push(&*guest.vm.config.name);
        }
        for template in &self.config.vms {
            if self.find(&template.name).is_none() {
                names.push(&*template.name);
            }
        }
        CONSOLE.lock().complete(&names);
    }

    /// Does what a line says, and asks for the next.
    pub(super) fn take_line(&mut self, text: &[u8], cpu: &mut ThisCpu) {
        match parse(text) {
            Ok(request) => self.execute(request, cpu),
            Err([]) => {}
            Err(first) => print_help(first),
        }
        if self.monitor {
            CONSOLE.lock().enter();
        }
    }

    fn execute(&mut self, request: Request<'_>, cpu: &mut ThisCpu) {
        let (verb, [name, other]) = (request.verb, request.args);
        match verb {
            Verb::List => self.list(),
            Verb::Stats => {
                self.charge_all();
                self.stats();
            }
            Verb::Memory => self.print_report(),
            Verb::Blocks => self.print_blocks(),
            Verb::Help => print_help(b""),
            Verb::Quit => self.obey(Command::Quit, cpu),
            Verb::Log => match log_level(name) {
                Ok(level) => log::set_max_level(level),
                Err(problem) => line(format_args!("{problem}")),
            },
            Verb::Create => self.create(name, other, cpu),
            Verb::Trace if name.is_empty() => {
                for guest in &mut self.guests {
                    guest.trace = None;
                }
            }
            _ => match self.find(name) {
                Some(index) => self.execute_on(verb, index, other, cpu),
                None => line(format_args!("no VM is called {name}: `vm list`")),
            },
        }
    }

    /// Does what is about one VM.
    fn execute_on(&mut self, verb: Verb, index: usize, argument: &str, cpu: &mut ThisCpu) {
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        let (live, over) = (guest.life.is_live(), guest.life.is_over());
        match verb {
            Verb::Start if over => self.revive(index, cpu),
            Verb::Destroy if over => self.forget(index),
            Verb::Destroy => {
                guest.doomed = true;
                self.stop(index, Fate::End(End::Stopped), cpu);
            }
            Verb::Budget => self.set_budget(index, argument),
            Verb::Trace => match &guest.trace {
                Some(trace) => trace.lines(line),
                None => guest.trace = Some(Box::new(Trace::default())),
            },
            Verb::Stop if live => self.stop(index, Fate::End(End::Stopped), cpu),
            Verb::Reset if live => self.stop(index, Fate::Restart, cpu),
            Verb::Pause if live => self.pause(index, cpu),
            Verb::Resume if live => self.resume(index, cpu),
            Verb::Attach if live => {
                self.open_monitor(false);
                self.attach(index);
            }
            _ => line(format_args!("it is {}", guest.life.name())),
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        let mut all = self.guests.iter();
        all.position(|guest| guest.vm.config.name == name)
    }

    fn create(&mut self, template: &str, name: &str, cpu: &mut ThisCpu) {
        let name = if name.is_empty() { template } else { name };
        let mut templates = self.config.vms.iter();
        let known = templates.position(|vm| vm.name == template);
        let Some((known, mut config)) =
            known.and_then(|known| Some((known, self.config.instance_of(known)?)))
        else {
            return line(format_args!("no template is called {template}: `vm list`"));
        };
        if self.find(name).is_some() {
            return line(format_args!(
                "there is a VM called {name}: give it another name"
            ));
        }
        config.name = name.into();
        match check_name(name) {
            Ok(()) => drop(self.start_vm(known, &config, cpu)),
            Err(problem) => line(format_args!("{problem}")),
        }
    }

    /// Forgets a VM that has ended: its place is free.
    pub(super) fn forget(&mut self, index: usize) {
        if let Some(Guest { vm, trace, .. }) = self.guests.get_mut(index) {
            (vm.vcpus, *trace) = (Vec::new(), None);
            vm.config.name.clear();
        }
    }

    fn set_budget(&mut self, index: usize, text: &str) {
        let Some(Guest { vm, life, .. }) = self.guests.get_mut(index) else {
            return;
        };
        let Some(wanted) = size(text) else {
            return line(format_args!("{text} is no size"));
        };
        let before = vm.config.tag_budget.replace(wanted);
        let budget = vm.config.tag_budget_bytes();
        let set = match self.memory.policy() {
            Policy::Static => Err(MemError::NotMte),
            _ if life.is_over() => Ok(()),
            _ => self.memory.set_budget(vm.id, budget),
        };
        match set {
            Ok(()) => line(format_args!(
                "tag_budget of {}: {} KiB",
                vm.config.name,
                budget >> 10
            )),
            Err(error) => {
                vm.config.tag_budget = before;
                line(format_args!("{error}"));
            }
        }
    }

    fn list(&self) {
        for Guest { vm, life, .. } in self.vms() {
            print_vm(&vm.config, life.name());
        }
        for template in &self.config.vms {
            if self.find(&template.name).is_none() {
                print_vm(template, "template");
            }
        }
    }

    fn stats(&self) {
        line(format_args!(
            "{:16}    cpu ms stolen ms     exits       irq      page       tag      mmio    sysreg      call      wait  injected     moves  evicting   evicted",
            ""
        ));
        for Guest { vm, .. } in self.vms() {
            let info = vm.info(&self.memory);
            let exits = &info.exits;
            let mut text = String::new();
            for figure in [
                info.cpu_ns / 1_000_000,
                info.stolen_ns / 1_000_000,
                exits.total,
                exits.irq,
                exits.page,
                exits.tag,
                exits.mmio,
                exits.sysreg,
                exits.call,
                exits.wait,
                exits.injected,
                info.moves,
                info.evictions_caused,
                info.evictions_suffered,
            ] {
                let _ = write!(text, " {figure:9}");
            }
            line(format_args!("{:16}{text}", info.name));
        }
    }

    fn print_blocks(&self) {
        let blocks = self.memory.host().blocks();
        for (region, geometry) in (0..).zip(blocks.regions()) {
            print_region(region, geometry, |index| {
                match blocks.state(BlockId { region, index }) {
                    BlockState::Offline => 0,
                    BlockState::Unswept | BlockState::Free => 1,
                    BlockState::Lent { .. } | BlockState::Evicting { .. } => 2,
                    BlockState::Reserved { .. } | BlockState::Scrubbing => 3,
                }
            });
        }
    }
}

fn print_help(first: &[u8]) {
    let mut none = true;
    for (pattern, what) in help(first) {
        line(format_args!("{pattern:26} {what}"));
        none = false;
    }
    if none {
        line(format_args!("no such command: `help` lists all"));
    }
}

fn print_vm(config: &VmConfig, state: &str) {
    line(format_args!(
        "{:32} {state:9} vcpus={} memory={} MiB tag_budget={} KiB",
        config.name,
        config.vcpus,
        config.memory >> 20,
        config.tag_budget_bytes() >> 10
    ));
}

/// Prints a map of a region, at most 16 lines of 64 characters: each stands for a run of blocks, and tells the state that ranks
/// highest among some of them.
fn print_region(region: u16, geometry: &TagRegion, state: impl Fn(u32) -> u8) {
    const COLUMNS: u32 = 64;
    const ROWS: u32 = 16;
    /// So many of a run are looked at.
    const LOOKS: u32 = 32;
    let count = geometry.blocks();
    let run = count.div_ceil(COLUMNS * ROWS).max(1);
    let step = run.div_ceil(LOOKS);
    line(format_args!(
        "region {region}: {count} blocks of {} KiB, {run} to a character: # some hold tags, o data, . free, x all offline",
        geometry.block_bytes() >> 10
    ));
    let (mut text, mut rank, mut index) = (String::new(), 0, 0);
    while index < count {
        rank = rank.max(state(index));
        let next = index + step;
        if next / run != index / run || next >= count {
            text.push(match rank {
                0 => 'x',
                1 => '.',
                2 => 'o',
                _ => '#',
            });
            rank = 0;
        }
        index = next;
        if text.len() >= COLUMNS as usize || index >= count {
            line(format_args!("{text}"));
            text.clear();
        }
    }
}
