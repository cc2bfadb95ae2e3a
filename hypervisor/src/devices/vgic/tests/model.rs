//! The GIC once more, without list registers, queues or anything clever, and both side by side on random input.

use super::super::list::{VMCR_ENG0, VMCR_ENG1};
use super::*;
use proptest::prelude::*;

const VCPUS: usize = 3;
/// A few of each kind; 27 is the timer, backed by a physical interrupt.
const INTIDS: [u16; 11] = [0, 1, 2, 16, 17, 27, 32, 33, 34, 35, 36];
const TIMER: u16 = 27;
const PRIORITIES: [u8; 5] = [0x20, 0x80, 0xa0, 0xa8, 0xf0];

#[derive(Clone, Copy)]
struct ModelIrq {
    enabled: bool,
    group1: bool,
    edge: bool,
    line: bool,
    latch: bool,
    active: bool,
    hardware: bool,
    priority: u8,
    /// Where it goes, and who has it active.
    target: Option<usize>,
    owner: Option<usize>,
}

impl ModelIrq {
    fn pending(&self) -> bool {
        self.latch || !self.edge && self.line
    }

    /// The physical interrupt is ours as long as this one is pending by it, or active.
    fn settle_hardware(&mut self) {
        self.hardware &= self.latch || self.active;
    }
}

struct Model {
    groups: [bool; 2],
    /// By virtual CPU and position in [`INTIDS`]; SPIs are those of virtual CPU 0.
    irqs: Vec<Vec<ModelIrq>>,
}

impl Model {
    fn new() -> Self {
        let bank = |vcpu| {
            let irq = |&intid: &u16| ModelIrq {
                enabled: false,
                group1: true,
                edge: intid < 16,
                line: false,
                latch: false,
                active: false,
                hardware: false,
                priority: 0,
                target: Some(if intid < 32 { vcpu } else { 0 }),
                owner: None,
            };
            INTIDS.iter().map(irq).collect()
        };
        Self {
            groups: [false; 2],
            irqs: (0..VCPUS).map(bank).collect(),
        }
    }

    fn irq(&mut self, vcpu: usize, intid: u16) -> &mut ModelIrq {
        let bank = if intid < 32 { vcpu } else { 0 };
        let at = INTIDS.iter().position(|&other| other == intid).unwrap();
        &mut self.irqs[bank][at]
    }

    /// Returns the interrupts that would be signalled to `vcpu` but for its running priority.
    fn signalled(&mut self, vcpu: usize, vmcr: u64) -> Vec<(u8, u16)> {
        let mask = (vmcr >> 24) as u8;
        let groups = [vmcr & VMCR_ENG0 != 0, vmcr & VMCR_ENG1 != 0];
        let mut found = Vec::new();
        for intid in INTIDS {
            let enabled = self.groups;
            let irq = *self.irq(vcpu, intid);
            let group = usize::from(irq.group1);
            if irq.target == Some(vcpu)
                && irq.pending()
                && irq.enabled
                && !irq.active
                && enabled[group]
                && groups[group]
                && irq.priority < mask
            {
                found.push((irq.priority, intid));
            }
        }
        found
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(usize, u64, u16),
    Group(usize, u16, bool),
    Priority(usize, u16, u8),
    Edge(usize, u16, bool),
    Route(u16, u64),
    Control(u8),
    Level(usize, u16, bool),
    Timer(usize),
    CancelTimer(usize),
    Sgi(usize, u64, SgiGroup),
    EoiMode(usize, bool),
    Mask(usize, u8),
    Acknowledge(usize),
    End(usize),
    Deactivate(usize, usize),
    Exit(usize),
}

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    let vcpu = || 0..VCPUS;
    let intid = || prop::sample::select(&INTIDS[..]);
    let base = prop::sample::select(vec![
        ISENABLER, ISENABLER, ISENABLER, ICENABLER, ISPENDR, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER,
    ]);
    prop_oneof![
        4 => (vcpu(), base, intid()).prop_map(|(v, b, i)| Write(v, b, i)),
        1 => (vcpu(), intid(), prop::bool::weighted(0.8)).prop_map(|(v, i, g)| Group(v, i, g)),
        2 => (vcpu(), intid(), prop::sample::select(&PRIORITIES[..])).prop_map(|(v, i, p)| Priority(v, i, p)),
        1 => (vcpu(), intid(), any::<bool>()).prop_map(|(v, i, e)| Edge(v, i, e)),
        1 => (32..37_u16, prop::sample::select(vec![0, 1, 2, 3, 0x100])).prop_map(|(i, a)| Route(i, a)),
        1 => prop::sample::select(vec![3_u8, 3, 3, 2, 1, 0]).prop_map(Control),
        6 => (vcpu(), intid(), any::<bool>()).prop_map(|(v, i, l)| Level(v, i, l)),
        3 => vcpu().prop_map(Timer),
        1 => vcpu().prop_map(CancelTimer),
        // By list, range and cluster, of which there is one, or to all but self.
        3 => (vcpu(), 0..3_u64, 0..8_u64, prop::sample::select(vec![0, 0, 0, 0, 1 << 16, 1 << 44, 1 << 40]), prop::bool::weighted(0.2))
            .prop_map(|(v, i, list, to, group0)| {
                let group = if group0 { SgiGroup::Group0 } else { SgiGroup::Group1 };
                Sgi(v, i << 24 | list | to, group)
            }),
        1 => (vcpu(), any::<bool>()).prop_map(|(v, one)| EoiMode(v, one)),
        1 => (vcpu(), prop::sample::select(vec![0xf8_u8, 0xf8, 0xa8, 0])).prop_map(|(v, m)| Mask(v, m)),
        10 => vcpu().prop_map(Acknowledge),
        8 => vcpu().prop_map(End),
        4 => (vcpu(), 0..8_usize).prop_map(|(v, n)| Deactivate(v, n)),
        1 => vcpu().prop_map(Exit),
    ]
}

/// Both, and the guests' handlers that run on them.
struct Both {
    model: Model,
    vgic: Vgic,
    cpus: Vec<Cpu>,
    /// What each guest has acknowledged and not ended, and ended and not deactivated (EOImode 1).
    handling: Vec<Vec<u16>>,
    dropped: Vec<Vec<u16>>,
    /// The physical timer interrupt of each is active.
    physical: [bool; VCPUS],
}

impl Both {
    fn new(list_registers: usize, eoi_mode1: bool) -> Self {
        let cpu = |vcpu| {
            let mut cpu = Cpu::new(vcpu, list_registers);
            cpu.set_eoi_mode(eoi_mode1);
            cpu
        };
        let mut both = Self {
            model: Model::new(),
            vgic: Vgic::new(VCPUS, 64).unwrap(),
            cpus: (0..VCPUS).map(cpu).collect(),
            handling: vec![Vec::new(); VCPUS],
            dropped: vec![Vec::new(); VCPUS],
            physical: [false; VCPUS],
        };
        both.apply(Op::Control(3));
        for vcpu in 0..VCPUS {
            for intid in INTIDS {
                both.apply(Op::Write(vcpu, ISENABLER, intid));
                both.apply(Op::Priority(vcpu, intid, 0xa0));
            }
        }
        both
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write(vcpu, base, intid) => self.write(vcpu, base, intid),
            Op::Group(vcpu, intid, group1) => self.group(vcpu, intid, group1),
            // What changing the priority of an active interrupt does is up to the implementation.
            Op::Priority(_, intid, _) if self.is_busy(intid) => {}
            Op::Priority(vcpu, intid, priority) => {
                self.model.irq(vcpu, intid).priority = priority;
                set_priority(&mut self.vgic, vcpu, intid, priority);
            }
            Op::Edge(vcpu, intid, edge) => {
                if intid >= 16 {
                    self.model.irq(vcpu, intid).edge = edge;
                }
                set_edge(&mut self.vgic, vcpu, intid, edge);
            }
            Op::Route(intid, affinity) => {
                let target = vcpu_with_affinity(affinity, VCPUS);
                self.model.irq(0, intid).target = target;
                self.vgic
                    .write(DIST, IROUTER + u64::from(intid) * 8, 8, affinity);
            }
            Op::Control(enables) => {
                self.model.groups = [enables & 1 != 0, enables & 2 != 0];
                self.vgic.write(DIST, 0, 4, enables.into());
            }
            Op::Level(vcpu, intid, level) => self.level(vcpu, intid, level),
            Op::Timer(vcpu) => self.timer(vcpu),
            Op::CancelTimer(vcpu) => {
                let irq = self.model.irq(vcpu, TIMER);
                if irq.hardware {
                    irq.latch = false;
                    irq.settle_hardware();
                }
                self.vgic.cancel_hw_ppi(vcpu, TIMER);
            }
            Op::Sgi(vcpu, sgir, group) => self.sgi(vcpu, sgir, group),
            // What is between its two ends is ended in the mode in which it began.
            Op::EoiMode(vcpu, _) if !self.dropped[vcpu].is_empty() => {}
            Op::EoiMode(vcpu, one) => self.cpus[vcpu].set_eoi_mode(one),
            Op::Mask(vcpu, mask) => self.cpus[vcpu].set_mask(mask),
            Op::Acknowledge(vcpu) => self.acknowledge(vcpu),
            Op::End(vcpu) => self.end(vcpu),
            Op::Deactivate(vcpu, nth) => self.deactivate(vcpu, nth),
            Op::Exit(vcpu) => self.cpus[vcpu].update(&mut self.vgic),
        }
    }

    /// Says whether a guest is between acknowledging and deactivating the interrupt.
    fn is_busy(&self, intid: u16) -> bool {
        let mut lists = self.handling.iter().chain(&self.dropped);
        lists.any(|list| list.contains(&intid))
    }

    fn write(&mut self, vcpu: usize, base: u64, intid: u16) {
        // By hand, guests touch the active state only of what is not being handled (for save and restore).
        if base >= ISACTIVER && self.is_busy(intid) {
            return;
        }
        let irq = self.model.irq(vcpu, intid);
        match base {
            ISENABLER => irq.enabled = true,
            ICENABLER => irq.enabled = false,
            ISPENDR => irq.latch = true,
            ICPENDR => irq.latch = false,
            ISACTIVER if !irq.active => {
                irq.active = true;
                irq.owner = irq.target;
            }
            ISACTIVER => {}
            _ => irq.active = false,
        }
        irq.settle_hardware();
        write_bit(&mut self.vgic, vcpu, base, intid);
    }

    fn group(&mut self, vcpu: usize, intid: u16, group1: bool) {
        self.model.irq(vcpu, intid).group1 = group1;
        let (frame, offset, shift) = bit_of(vcpu, IGROUPR, intid);
        let others = self.vgic.read(frame, offset, 4) & !(1 << shift);
        self.vgic
            .write(frame, offset, 4, others | u64::from(group1) << shift);
    }

    fn level(&mut self, vcpu: usize, intid: u16, level: bool) {
        if intid < 16 || intid == TIMER {
            return;
        }
        let irq = self.model.irq(vcpu, intid);
        irq.latch |= irq.edge && level && !irq.line;
        irq.line = level;
        if intid < 32 {
            self.vgic.set_ppi_level(vcpu, intid, level);
        } else {
            self.vgic.set_spi_level(intid, level);
        }
    }

    /// The physical interrupt cannot fire again while it is active.
    fn timer(&mut self, vcpu: usize) {
        if self.physical[vcpu] {
            return;
        }
        self.physical[vcpu] = true;
        let irq = self.model.irq(vcpu, TIMER);
        (irq.latch, irq.hardware) = (true, true);
        if !self.cpus[vcpu].rearm(&self.vgic, TIMER) {
            self.vgic.raise_hw_ppi(vcpu, TIMER, TIMER);
        }
    }

    fn sgi(&mut self, from: usize, sgir: u64, group: SgiGroup) {
        for vcpu in 0..VCPUS {
            let listed = sgir >> vcpu & 1 != 0 && sgir >> 44 & 0xf == 0 && sgir >> 16 & 0xff == 0;
            let all = sgir >> 40 & 1 != 0;
            let irq = self.model.irq(vcpu, (sgir >> 24 & 0xf) as u16);
            let reached = if all { vcpu != from } else { listed };
            irq.latch |= reached && irq.group1 == (group == SgiGroup::Group1);
        }
        self.vgic.send_sgi_in_group(from, sgir, group);
    }

    fn acknowledge(&mut self, vcpu: usize) {
        let cpu = &mut self.cpus[vcpu];
        let (vmcr, running) = (cpu.lrs.vmcr, cpu.running());
        let signalled = self.model.signalled(vcpu, vmcr);
        let best = signalled.iter().map(|&(priority, _)| priority).min();
        let best = best.filter(|&priority| priority < running);
        let got = cpu.acknowledge();
        assert_eq!(got.map(|(_, priority)| priority), best, "of {signalled:x?}");
        let Some((intid, priority)) = got else {
            return;
        };
        assert!(signalled.contains(&(priority, intid)), "{intid}");
        let irq = self.model.irq(vcpu, intid);
        (irq.latch, irq.active, irq.owner) = (false, true, Some(vcpu));
        self.handling[vcpu].push(intid);
    }

    fn end(&mut self, vcpu: usize) {
        let Some(intid) = self.handling[vcpu].pop() else {
            return;
        };
        self.cpus[vcpu].end(intid);
        if self.cpus[vcpu].eoi_mode1() {
            self.dropped[vcpu].push(intid);
        } else {
            self.model_deactivate(vcpu, intid);
        }
    }

    fn deactivate(&mut self, vcpu: usize, nth: usize) {
        if nth < self.dropped[vcpu].len() {
            let intid = self.dropped[vcpu].remove(nth);
            self.cpus[vcpu].deactivate_separately(&mut self.vgic, intid);
            self.model_deactivate(vcpu, intid);
        }
    }

    fn model_deactivate(&mut self, vcpu: usize, intid: u16) {
        let irq = self.model.irq(vcpu, intid);
        irq.active = false;
        irq.settle_hardware();
    }

    /// Lets every CPU come to its next entry, as kicks and maintenance interrupts make it.
    fn settle(&mut self) {
        // Taking an interrupt from one list register may be what another CPU waits for.
        for _ in 0..2 {
            for cpu in &mut self.cpus {
                cpu.settle(&mut self.vgic);
                for physical in cpu.deactivated.drain(..) {
                    assert_eq!(physical, TIMER);
                    self.physical[cpu.vcpu] = false;
                }
                match self.vgic.take_deactivations(cpu.vcpu) {
                    0 => {}
                    ppis => {
                        assert_eq!(ppis, 1 << TIMER);
                        self.physical[cpu.vcpu] = false;
                    }
                }
            }
        }
    }

    fn compare(&mut self) {
        for vcpu in 0..VCPUS {
            self.cpus[vcpu].update(&mut self.vgic);
        }
        self.settle();
        for vcpu in 0..VCPUS {
            for intid in INTIDS {
                let irq = *self.model.irq(vcpu, intid);
                let bit = |base| read_bit(&self.vgic, vcpu, base, intid);
                assert_eq!(bit(ISENABLER), irq.enabled, "enabled {intid}");
                assert_eq!(bit(ICPENDR), irq.pending(), "pending {intid} of {vcpu}");
                assert_eq!(bit(ISACTIVER), irq.active, "active {intid} of {vcpu}");
                assert_eq!(bit(IGROUPR), irq.group1, "group {intid}");
                // What a set register shows, its clear register shows.
                for (set, clear) in [
                    (ISENABLER, ICENABLER),
                    (ISPENDR, ICPENDR),
                    (ISACTIVER, ICACTIVER),
                ] {
                    assert_eq!(bit(set), bit(clear), "{set:#x} {intid}");
                }
            }
            let vmcr = self.cpus[vcpu].lrs.vmcr;
            let waiting = !self.model.signalled(vcpu, vmcr).is_empty();
            assert_eq!(self.vgic.has_pending(vcpu), waiting, "WFI of {vcpu}");
            let hardware = self.model.irq(vcpu, TIMER).hardware;
            assert_eq!(
                self.vgic.is_hw_ppi_held(vcpu, TIMER),
                hardware,
                "timer of {vcpu}"
            );
            assert_eq!(self.physical[vcpu], hardware, "physical timer of {vcpu}");
        }
    }
}

proptest! {
    /// Whatever happens, guests see what the model says, with few list registers as with many.
    #[test]
    fn guests_see_the_reference_model(
        ops in prop::collection::vec(op(), 1..120), list_registers in 1..5_usize, eoi_mode1: bool
    ) {
        let mut both = Both::new(list_registers, eoi_mode1);
        for op in ops {
            both.settle();
            both.apply(op);
            if matches!(op, Op::Write(..) | Op::End(_) | Op::Exit(_)) {
                both.settle();
                both.compare();
            }
        }
        both.settle();
        both.compare();
    }

    /// With exits at any time, late or never, no edge is lost: in the end every interrupt was acknowledged after it
    /// was last raised.
    #[test]
    fn no_edge_is_lost_however_late_the_exits(
        ops in prop::collection::vec((0..VCPUS, 0..6_u8, 0..5_u16), 1..200), list_registers in 2..4_usize
    ) {
        let mut vgic = running(VCPUS);
        let mut cpus: Vec<_> = (0..VCPUS).map(|vcpu| Cpu::new(vcpu, list_registers)).collect();
        let mut raised = [false; 5];
        let mut handling = vec![Vec::new(); VCPUS];
        for intid in 32..37 {
            set_edge(&mut vgic, 0, intid, true);
            set_priority(&mut vgic, 0, intid, PRIORITIES[usize::from(intid - 32)]);
            vgic.write(DIST, IROUTER + u64::from(intid) * 8, 8, u64::from(intid) % 3);
        }
        let step = |vgic: &mut Vgic, cpu: &mut Cpu, handling: &mut Vec<u16>, raised: &mut [bool; 5]| {
            if let Some((intid, _)) = cpu.acknowledge() {
                raised[usize::from(intid - 32)] = false;
                handling.push(intid);
            } else if let Some(intid) = handling.pop() {
                cpu.end(intid);
            }
            if cpu.wants_maintenance() {
                cpu.update(vgic);
            }
        };
        for (vcpu, what, spi) in ops {
            let cpu = &mut cpus[vcpu];
            match what {
                0 | 1 => {
                    vgic.set_spi_level(32 + spi, false);
                    vgic.set_spi_level(32 + spi, true);
                    raised[usize::from(spi)] = true;
                }
                2 => vgic.write(DIST, IROUTER + u64::from(32 + spi) * 8, 8, vcpu as u64),
                3 => cpu.update(&mut vgic),
                _ => step(&mut vgic, cpu, &mut handling[vcpu], &mut raised),
            }
        }
        for _ in 0..40 {
            for (cpu, handling) in cpus.iter_mut().zip(&mut handling) {
                cpu.settle(&mut vgic);
                step(&mut vgic, cpu, handling, &mut raised);
            }
        }
        for cpu in &mut cpus {
            cpu.update(&mut vgic);
        }
        prop_assert_eq!(raised, [false; 5]);
        prop_assert!(handling.iter().all(Vec::is_empty));
        prop_assert!((0..VCPUS).all(|vcpu| !vgic.has_pending(vcpu)));
    }
}
