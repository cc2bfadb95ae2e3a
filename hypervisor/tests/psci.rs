//! Power states of a VM's vCPUs against a model, whoever calls what, and whoever comes first.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod support;

use hypervisor::devices::vpsci::VcpuPower;
use hypervisor::exit::Next;
use hypervisor::report::End;
use proptest::prelude::*;
use stage2::guest::Policy;
use support::*;

const VCPUS: usize = 4;
const CPU_ON: u64 = 0xc400_0003;
const CPU_OFF: u64 = 0x8400_0002;
const AFFINITY_INFO: u64 = 0xc400_0004;
const ENTRY: u64 = BASE + 0x1000;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Who calls, whom for, by SMC64 or SMC32, with an entry that is in RAM or not.
    On(usize, u64, bool, bool),
    Off(usize),
    Info(usize, u64),
    /// A CPU takes the vCPU and enters it.
    Enter(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = || 0..VCPUS;
    prop_oneof![
        4 => (vcpu(), 0..VCPUS as u64 + 1, any::<bool>(), prop::bool::weighted(0.9)).prop_map(|(v, t, w, good)| Op::On(v, t, w, good)),
        2 => vcpu().prop_map(Op::Off),
        2 => (vcpu(), 0..VCPUS as u64 + 1).prop_map(|(v, t)| Op::Info(v, t)),
        3 => vcpu().prop_map(Op::Enter),
    ]
}

/// What PSCI says of each vCPU (DEN0022, 5.1.4, 5.1.6 and 6.6).
struct Model([VcpuPower; VCPUS]);

impl Model {
    fn cpu_on(&mut self, target: u64, entry_is_good: bool) -> i64 {
        let Some(power) = self.0.get_mut(target as usize) else {
            return -2;
        };
        match power {
            _ if !entry_is_good => -9,
            VcpuPower::On => -4,
            VcpuPower::OnPending => -5,
            VcpuPower::Off => {
                *power = VcpuPower::OnPending;
                0
            }
        }
    }

    fn affinity_info(&self, target: u64) -> i64 {
        match self.0.get(target as usize) {
            Some(VcpuPower::On) => 0,
            Some(VcpuPower::Off) => 1,
            Some(VcpuPower::OnPending) => 2,
            None => -2,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if is_full() { 400 } else { 12 }))]
    /// Of several that turn one vCPU on, one succeeds; all are told what is the case at that moment.
    #[test]
    fn power_states_follow_the_model_whoever_comes_first(ops in prop::collection::vec(op(), 1..60)) {
        let mut rig = Rig::empty(Policy::Lazy);
        rig.start(config("a", 8 * MIB, VCPUS));
        rig.enter(0);
        let mut model = Model([VcpuPower::On, VcpuPower::Off, VcpuPower::Off, VcpuPower::Off]);
        for (context, op) in (0xc0de_0000_u64..).zip(ops) {
            let caller = match op {
                Op::On(vcpu, ..) | Op::Off(vcpu) | Op::Info(vcpu, _) => vcpu,
                Op::Enter(vcpu) => {
                    if model.0[vcpu] == VcpuPower::OnPending {
                        model.0[vcpu] = VcpuPower::On;
                        rig.enter(vcpu);
                    }
                    continue;
                }
            };
            if model.0[caller] != VcpuPower::On {
                continue;
            }
            match op {
                Op::On(_, target, wide, good) => {
                    let expected = model.cpu_on(target, good);
                    let id = if wide { CPU_ON } else { CPU_ON & !(1 << 30) };
                    let next = rig.hvc_of(caller, [id, target, if good { ENTRY } else { 0x0900_0000 }, context]);
                    let answer = rig.vcpu(caller).context.x[0] as i64;
                    prop_assert_eq!(answer, expected, "{:?}", op);
                    if expected == 0 {
                        let target = target as usize;
                        prop_assert_eq!(next, Next::Started(target));
                        let started = &rig.vcpu(target).context;
                        prop_assert_eq!((started.pc, started.x[0]), (ENTRY, context));
                        prop_assert!(started.x[1..].iter().all(|&x| x == 0), "a reset");
                    }
                }
                Op::Info(_, target) => {
                    rig.hvc_of(caller, [AFFINITY_INFO, target, 0, 0]);
                    prop_assert_eq!(rig.vcpu(caller).context.x[0] as i64, model.affinity_info(target));
                }
                Op::Off(_) => {
                    model.0[caller] = VcpuPower::Off;
                    let last = model.0.iter().all(|&power| power == VcpuPower::Off);
                    let next = rig.hvc_of(caller, [CPU_OFF, 0, 0, 0]);
                    prop_assert_eq!(next, if last { Next::End(End::Off) } else { Next::Yield });
                    if last {
                        return Ok(());
                    }
                }
                Op::Enter(_) => {}
            }
        }
    }
}
