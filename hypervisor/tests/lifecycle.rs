//! A VM's life: loaded as its device tree says, its vCPUs on and off by PSCI, its end, and all memory back.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod support;

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node as _, Property as _};
use hypervisor::config::VmConfig;
use hypervisor::devices::vpsci::VcpuPower;
use hypervisor::exit::{Next, PHYSICAL_TIMER_INTID};
use hypervisor::image::PlacementError;
use hypervisor::report::End;
use hypervisor::throttle::Throttle;
use hypervisor::traps::sysreg::VcpuSysRegs;
use hypervisor::vcpu::Wake;
use hypervisor::vm::{CpuTime, Images, StartError, Vm};
use stage2::account::MachineAccount;
use stage2::addr::{Ipa, PAGE_SIZE, PhysAddr};
use stage2::fakes::SimMachine;
use stage2::guest::{MemError, Policy};
use support::*;

const CPU_ON: u64 = 0xc400_0003;
const CPU_OFF: u64 = 0x8400_0002;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const SYSTEM_RESET2: u64 = 0xc400_0012;
const CPU_SUSPEND: u64 = 0xc400_0001;
const ENTRY: u64 = BASE + 0x12_3454;

fn answer(rig: &mut Rig, x: [u64; 4]) -> i64 {
    let next = rig.hvc(x);
    // A vCPU that has turned another on may let it run first.
    assert!(goes_on(next) || next == Next::Yield);
    rig.context().x[0] as i64
}

// Rows 8 and 9: PSCI by HVC.

#[test]
fn cpu_on_starts_a_vcpu_at_its_entry_with_the_registers_of_a_reset() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(rig.hvc_of(1, [CPU_OFF, 0, 0, 0]), Next::Yield);
    let context = rig.context().clone();
    let next = rig.hvc([CPU_ON, 1, ENTRY, 0xdead_beef_0000_0001]);
    assert_eq!((next, rig.context().x[0]), (Next::Started(1), 0));
    assert_eq!(rig.context().pc, context.pc, "HVC is done already");
    let target = rig.vcpu(1);
    let mut x = [0; 31];
    x[0] = 0xdead_beef_0000_0001;
    assert_eq!((target.context.x, target.context.pc), (x, ENTRY));
    assert_eq!(target.context.pstate, 0x3c5, "EL1h, DAIF");
    assert_eq!(target.sysregs, VcpuSysRegs::RESET);
    assert!(target.fresh && target.is_runnable());
}

#[test]
fn cpu_on_leaves_nothing_of_the_vcpu_s_earlier_life() {
    let mut rig = Rig::new(Policy::Lazy);
    let ctl = (3, 3, 14, 2, 1);
    rig.vcpu(1).context.x[3] = 1;
    rig.exit_of((0, 1), sysreg(ctl, 3, false), 0, 0);
    let pending = |rig: &Rig| {
        use hypervisor::devices::vgic::VgicFrame;
        let ispendr = rig.vms[0].vgic.read(VgicFrame::Redist(1), 0x1_0200, 4);
        ispendr >> PHYSICAL_TIMER_INTID & 1
    };
    assert_eq!(pending(&rig), 1, "its physical timer has fired");
    let target = rig.vcpu(1);
    (target.lrs.vmcr, target.lrs.ap1r[0]) = (0xff00_0002, 1 << 20);
    rig.hvc_of(1, [CPU_OFF, 0, 0, 0]);
    assert_eq!(answer(&mut rig, [CPU_ON, 1, ENTRY, 0]), 0);
    assert_eq!(pending(&rig), 0, "a timer that is off has no level");
    let target = rig.vcpu(1);
    assert_eq!(target.physical_timer, Default::default());
    // Groups off, all priorities masked, none active (IHI 0069: ICC_IGRPEN1, ICC_PMR, ICC_AP1R).
    assert_eq!((target.lrs.vmcr, target.lrs.ap1r), (0, [0; 4]));
    assert_eq!(target.lrs.count(), 4, "as the hardware has");
}

#[test]
fn cpu_on_refuses_what_is_not_a_vcpu_that_is_off_and_an_entry_in_ram() {
    let mut rig = Rig::new(Policy::Lazy);
    let table = [
        ([CPU_ON, 0, ENTRY, 0], -4, "itself"),
        ([CPU_ON, 1, ENTRY, 0], -4, "a vCPU that is on"),
        ([CPU_ON, 2, ENTRY, 0], -2, "no vCPU"),
        ([CPU_ON, 0x100, ENTRY, 0], -2, "no vCPU"),
        ([CPU_ON, 1 << 31, ENTRY, 0], -2, "MPIDR_EL1 with RES1"),
        ([CPU_ON, u64::MAX, ENTRY, 0], -2, "no affinity"),
    ];
    for (x, code, what) in table {
        assert_eq!(answer(&mut rig, x), code, "{what}");
    }
    rig.hvc_of(1, [CPU_OFF, 0, 0, 0]);
    for entry in [
        0,
        ENTRY + 1,
        ENTRY + 2,
        BASE - 4,
        BASE + 8 * MIB,
        u64::MAX - 3,
    ] {
        assert_eq!(answer(&mut rig, [CPU_ON, 1, entry, 0]), -9, "{entry:#x}");
    }
    assert_eq!(rig.vcpu(1).power, VcpuPower::Off);
    let last = BASE + 8 * MIB - 4;
    assert_eq!(answer(&mut rig, [CPU_ON, 1, last, 0]), 0);
    assert_eq!(answer(&mut rig, [CPU_ON, 1, last, 0]), -5, "on its way");
    assert_eq!(answer(&mut rig, [AFFINITY_INFO, 1, 0, 0]), 2);
    rig.enter(1);
    assert_eq!(answer(&mut rig, [CPU_ON, 1, last, 0]), -4);
    assert_eq!(answer(&mut rig, [AFFINITY_INFO, 1, 0, 0]), 0);
}

#[test]
fn a_32_bit_caller_s_arguments_are_32_bits_wide() {
    let mut rig = Rig::new(Policy::Lazy);
    rig.hvc_of(1, [CPU_OFF, 0, 0, 0]);
    let high = 0xffff_ffff_0000_0000;
    let id = CPU_ON & !(1 << 30);
    assert_eq!(
        answer(&mut rig, [high | id, high | 1, high | ENTRY, high | 5]),
        0
    );
    assert_eq!(
        (rig.vcpu(1).context.pc, rig.vcpu(1).context.x[0]),
        (ENTRY, 5)
    );
}

#[test]
fn affinity_info_follows_on_and_off() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(answer(&mut rig, [AFFINITY_INFO, 1, 0, 0]), 0);
    rig.hvc_of(1, [CPU_OFF, 0, 0, 0]);
    assert_eq!(answer(&mut rig, [AFFINITY_INFO, 1, 0, 0]), 1);
    assert_eq!(
        answer(&mut rig, [AFFINITY_INFO, 0, 1, 0]),
        0,
        "a cluster of which one is on"
    );
    assert_eq!(answer(&mut rig, [AFFINITY_INFO, 7, 0, 0]), -2);
    assert_eq!(answer(&mut rig, [AFFINITY_INFO, 0, 4, 0]), -2);
}

#[test]
fn the_last_cpu_off_ends_the_vm_and_not_the_others() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(rig.hvc([CPU_OFF, 0, 0, 0]), Next::Yield);
    assert!(!rig.vcpu(0).is_runnable());
    assert!(rig.vcpu(1).is_runnable());
    assert_eq!(rig.hvc_of(1, [CPU_OFF, 0, 0, 0]), Next::End(End::Off));
    assert!(rig.vms[1].vcpus[0].is_runnable());
}

#[test]
fn system_off_and_reset_end_the_vm_from_any_vcpu() {
    for (x, end) in [
        ([SYSTEM_OFF, 0, 0, 0], End::Off),
        ([SYSTEM_RESET, 0, 0, 0], End::Reset),
        ([SYSTEM_RESET2, 0, 0, 0], End::Reset),
    ] {
        let mut rig = Rig::new(Policy::Lazy);
        assert_eq!(rig.hvc_of(1, x), Next::End(end));
    }
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(answer(&mut rig, [SYSTEM_RESET2, 1 << 31, 0, 0]), -2);
}

#[test]
fn cpu_suspend_waits_like_wfi_and_returns_success() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(rig.hvc([CPU_SUSPEND, 0, 0, 0]), Next::Yield);
    assert_eq!((rig.context().x[0], rig.context().pc), (0, PC));
    assert_eq!(
        rig.vcpu(0).waiting,
        Some(Wake {
            at: None,
            by_interrupt: true
        })
    );
    for (x, code) in [
        ([CPU_SUSPEND, 1 << 20, 0, 0], -2),
        ([CPU_SUSPEND, 1 << 16, 3, 0], -9),
    ] {
        let mut rig = Rig::new(Policy::Lazy);
        assert_eq!(answer(&mut rig, x), code);
        assert_eq!(rig.vcpu(0).waiting, None);
    }
}

// Loading.

fn property(fdt: &[u8], path: &str, name: &str) -> Option<Vec<u8>> {
    let fdt = Fdt::new(fdt).unwrap();
    let node = fdt.find_node(path).unwrap_or_else(|| panic!("no {path}"));
    let found = node.property(name);
    found.map(|property| property.value().to_vec())
}

fn number(fdt: &[u8], path: &str, name: &str, at: usize) -> u64 {
    let value = property(fdt, path, name).unwrap();
    u64::from_be_bytes(value[8 * at..8 * at + 8].try_into().unwrap())
}

/// A kernel and no initrd.
fn images(kernel: &[u8]) -> Images<'_> {
    Images {
        kernel: file(kernel, KERNEL),
        initrd: None,
    }
}

/// The device tree that X0 of the boot vCPU points to, as the guest finds it.
fn device_tree(rig: &Rig) -> Vec<u8> {
    let at = rig.vms[0].vcpus[0].context.x[0];
    let header = rig.ram(0, at, 8);
    assert_eq!(header[..4], [0xd0, 0x0d, 0xfe, 0xed]);
    let bytes = u32::from_be_bytes(header[4..].try_into().unwrap());
    rig.ram(0, at, bytes.into())
}

fn load(rig: &mut Rig, config: VmConfig, images: Images<'_>) -> Result<(), StartError> {
    let mut vm = Vm::new(0, config, &rig.board, &mut rig.memory, &mut rig.cpu)?;
    let result = vm.load(images, &[7; 32], &mut rig.memory, &mut rig.cpu);
    rig.vms = vec![vm];
    rig.check();
    result
}

#[test]
fn everything_is_where_the_device_tree_says() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::empty(policy);
        let initrd: Vec<u8> = (0..9000_u32).map(|index| (index >> 3) as u8).collect();
        for (at, &byte) in (INITRD..).zip(&initrd) {
            rig.cpu.sim.set_byte(PhysAddr::new(at), byte);
        }
        let kernel = kernel();
        let images = Images {
            kernel: file(&kernel, KERNEL),
            initrd: Some(file(&initrd, INITRD)),
        };
        let config = VmConfig {
            cmdline: "root=/dev/ram0  quiet".into(),
            ..config("a", 16 * MIB, 3)
        };
        load(&mut rig, config, images).unwrap();

        let fdt = device_tree(&rig);
        let memory = [0, 1].map(|at| number(&fdt, "/memory@40000000", "reg", at));
        assert_eq!(memory, [BASE, 16 * MIB]);
        let [start, end] =
            ["linux,initrd-start", "linux,initrd-end"].map(|name| number(&fdt, "/chosen", name, 0));
        assert_eq!(rig.read(start, end - start), initrd);
        let bootargs = property(&fdt, "/chosen", "bootargs").unwrap();
        assert_eq!(bootargs, b"root=/dev/ram0  quiet\0");
        assert_eq!(property(&fdt, "/chosen", "rng-seed"), Some(vec![7; 32]));
        for cpu in 0..3 {
            let reg = property(&fdt, &format!("/cpus/cpu@{cpu}"), "reg").unwrap();
            let mpidr = Vm::mpidr(cpu);
            assert_eq!(
                u32::from_be_bytes(reg.try_into().unwrap()),
                mpidr as u32 & 0xff_ffff
            );
        }
        assert_eq!(
            Fdt::new(&fdt).unwrap().find_node("/cpus/cpu@3").map(drop),
            None
        );

        let boot = &rig.vms[0].vcpus[0].context;
        let (entry, dtb) = (boot.pc, boot.x[0]);
        assert_eq!((boot.x[1..].iter().max(), boot.pstate), (Some(&0), 0x3c5));
        assert_eq!(rig.read(entry, kernel.len() as u64), kernel);
        // booting.rst: the DTB on 8 bytes, within 2 MiB of RAM of its own.
        assert!(dtb % 8 == 0 && end <= dtb && dtb + 2 * MIB <= BASE + 16 * MIB);
        let powers: Vec<_> = rig.vms[0].vcpus.iter().map(|vcpu| vcpu.power).collect();
        assert_eq!(powers, [VcpuPower::On, VcpuPower::Off, VcpuPower::Off]);
    }
}

#[test]
fn an_image_is_copied_when_the_guest_gets_to_it_and_again_after_a_reset() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::new(policy);
        let entry = BASE + 0x8_0000;
        let is_mapped = |rig: &Rig| {
            rig.memory_of(0)
                .translate(&rig.cpu, Ipa::new(entry))
                .is_some()
        };
        for _ in 0..2 {
            assert!(!is_mapped(&rig), "{policy:?}");
            assert_eq!(rig.run(entry + 1, SimMachine::load), (1, 1), "{policy:?}");
            assert!(is_mapped(&rig));
            // Behind its last byte there are zeroes.
            let mut expected = kernel();
            expected.resize(2 * PAGE_SIZE as usize, 0);
            assert_eq!(rig.read(entry, 2 * PAGE_SIZE), expected, "{policy:?}");
            rig.run(entry, |sim, guest, ipa| sim.store(guest, ipa, 0xaa));

            let kernel = kernel();
            let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
            vm.reset(&rig.board, memory, cpu).unwrap();
            vm.load(images(&kernel), &[], memory, cpu).unwrap();
            rig.mapped = None;
            rig.check();
        }
    }
}

#[test]
fn a_vm_without_initrd_has_none_in_its_device_tree() {
    let mut rig = Rig::empty(Policy::Lazy);
    let kernel = kernel();
    let images = images(&kernel);
    load(&mut rig, config("a", 8 * MIB, 1), images).unwrap();
    let fdt = device_tree(&rig);
    assert_eq!(property(&fdt, "/chosen", "linux,initrd-start"), None);
}

#[test]
fn what_cannot_start_is_refused_with_the_reason_and_costs_nothing() {
    let mut rig = Rig::empty(Policy::Lazy);
    let ledger = rig.ledger();
    let kernel = kernel();
    let huge = vec![0; 20 * MIB as usize];
    let images = |kernel, initrd| Images {
        kernel: file(kernel, KERNEL),
        initrd: Some(file(initrd, INITRD)),
    };
    let table: [(VmConfig, Images<'_>, &str); 5] = [
        (
            config("a", 2 * MIB, 1),
            images(&kernel, &[]),
            "give it more memory",
        ),
        (config("a", 8 * MIB, 1), images(&[], &[]), "kernel is empty"),
        (
            config("a", 32 * MIB, 1),
            images(&huge, &huge[..11 * MIB as usize]),
            "give it more memory",
        ),
        (
            config("a", 64 * MIB, 1),
            images(&kernel, &[]),
            "lower memory of some VM",
        ),
        (
            VmConfig {
                cmdline: "a\0b".into(),
                ..config("a", 8 * MIB, 1)
            },
            images(&kernel, &[]),
            "NUL",
        ),
    ];
    for (config, images, reason) in table {
        let error = load(&mut rig, config, images).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        // One that is not even admitted has nothing to end.
        let is_admitted = !matches!(error, StartError::Memory(_));
        assert_eq!(rig.vms.len(), usize::from(is_admitted), "{reason}");
        if let Some(mut vm) = rig.vms.pop() {
            vm.finish(End::Refused, &mut rig.memory, &mut rig.cpu)
                .unwrap();
        }
        assert_eq!(rig.ledger(), ledger, "{reason}");
    }
}

#[test]
fn a_vm_whose_images_find_no_memory_is_refused_and_gives_back_what_it_had() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::empty(policy);
        rig.start(config("other", 8 * MIB, 1));
        let ledger = rig.ledger();
        let kernel = kernel();
        let images = images(&kernel);
        // It is admitted, so this takes a machine that breaks its promise: at each allocation in turn.
        let mut refusals = 0;
        loop {
            let small = config("small", 8 * MIB, 1);
            let mut vm = Vm::new(1, small, &rig.board, &mut rig.memory, &mut rig.cpu).unwrap();
            rig.memory.host_mut().refuse_after(Some(refusals));
            let loaded = vm.load(images, &[], &mut rig.memory, &mut rig.cpu);
            // Its end needs no memory.
            vm.finish(End::Refused, &mut rig.memory, &mut rig.cpu)
                .unwrap();
            rig.memory.host_mut().refuse_after(None);
            rig.check();
            assert_eq!(rig.ledger(), ledger, "{policy:?} {refusals}");
            let Err(error) = loaded else { break };
            assert!(error.to_string().contains("no memory left"), "{error}");
            refusals += 1;
        }
        assert!(refusals > 0, "{policy:?}");
    }
}

#[test]
fn no_vm_takes_a_vmid_that_there_is_not_or_ram_that_stage_2_does_not_reach() {
    let mut rig = Rig::empty(Policy::Lazy);
    for index in [
        usize::from(u16::MAX),
        usize::from(u16::MAX) - 1,
        1 << 16,
        usize::MAX,
    ] {
        let config = config("a", 8 * MIB, 1);
        let made = Vm::new(index, config, &rig.board, &mut rig.memory, &mut rig.cpu);
        assert_eq!(made.map(drop), Err(StartError::TooMany));
    }
    for memory in [0, 4097, 64 << 30, !0xfff] {
        let config = config("a", memory, 1);
        let made = Vm::new(0, config, &rig.board, &mut rig.memory, &mut rig.cpu);
        let refused = matches!(made, Err(StartError::Memory(MemError::BadRam { .. })));
        assert!(refused, "{memory:#x}");
    }
    let made = Vm::new(
        0,
        config("a", 8 * MIB, 0),
        &rig.board,
        &mut rig.memory,
        &mut rig.cpu,
    );
    assert!(matches!(made, Err(StartError::Gic(_))));
    assert_eq!(rig.ledger().owned + rig.ledger().tables, 0);
    assert!(matches!(
        hypervisor::image::place(&[], 0, 0),
        Err(PlacementError::Empty)
    ));
}

// The end: rows 9 and 47.

/// A VM's part of the report, to compare.
fn figures(info: &hypervisor::report::VmInfo) -> String {
    format!("{info:?}")
}

/// Touches pages and tags all over VM 0's RAM.
fn use_memory(rig: &mut Rig) {
    for page in (0..5 * MIB).step_by(0x2_3000) {
        rig.run(BASE + page, |sim, guest, ipa| sim.store(guest, ipa, 0xaa));
        if page % 0x4_6000 == 0 {
            rig.run(BASE + page, |sim, guest, ipa| sim.stg(guest, ipa, 0xa));
        }
    }
}

#[test]
fn a_vm_that_ends_gives_all_back_however_often() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::empty(policy);
        let before = rig.ledger();
        let mut after_first = None;
        for _ in 0..if is_full() { 100 } else { 5 } {
            rig.start(config("a", 8 * MIB, 2));
            use_memory(&mut rig);
            let during = rig.info(0);
            let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
            vm.finish(End::Off, memory, cpu).unwrap();
            rig.mapped = None;
            rig.check();
            assert_eq!(rig.ledger(), before, "{policy:?}");
            // The first one's metadata are kept for the next, which needs no more.
            let account = rig.memory.account();
            assert_eq!(account, *after_first.get_or_insert(account), "{policy:?}");
            // Its report stays, and ending it again changes nothing.
            let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
            let end = Some(End::Off);
            let expected = hypervisor::report::VmInfo { end, ..during };
            assert_eq!(figures(&vm.info(memory)), figures(&expected));
            vm.finish(End::Crashed, memory, cpu).unwrap();
            assert_eq!(vm.info(memory).end, end);
            assert!(vm.vcpus.iter().all(|vcpu| !vcpu.is_runnable()));
            rig.vms.clear();
            rig.cpu.stage1.clear();
        }
    }
}

#[test]
fn a_vm_that_leaves_part_by_part_is_counted_until_all_of_it_is_gone() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::empty(policy);
        let before = rig.ledger();
        // Two of it are more than there is.
        let large = || config("large", 40 * MIB, 1);
        rig.start(large());
        use_memory(&mut rig);
        let id = rig.vms[0].id;
        let figures_at_end = rig.info(0);
        rig.vms[0].close(End::Stopped, &rig.memory);
        rig.mapped = None;
        let (mut parts, mut facts) = (0, 0);
        while let Some(checked) = rig.memory.release(&mut rig.cpu, id) {
            (parts, facts) = (parts + 1, facts + checked.unwrap());
            rig.check();
            let (memory, cpu, board) = (&mut rig.memory, &mut rig.cpu, &rig.board);
            let refused = Vm::new(1, large(), board, memory, cpu).unwrap_err();
            assert!(refused.to_string().contains("lower"), "{refused}");
        }
        assert!(parts > 2 && facts > 0, "{policy:?}: {parts}, {facts}");
        assert_eq!(rig.memory.vm_account(id).unwrap().resident, 0);
        let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
        vm.finish(End::Off, memory, cpu).unwrap();
        assert_eq!(rig.ledger(), before, "{policy:?}");
        let end = Some(End::Stopped);
        let expected = hypervisor::report::VmInfo {
            end,
            ..figures_at_end
        };
        assert_eq!(figures(&rig.info(0)), figures(&expected));
        rig.start(large());
    }
}

#[test]
fn a_vm_that_is_ended_while_it_leaves_for_a_reset_has_the_figures_of_its_life() {
    let mut rig = Rig::new(Policy::Lazy);
    use_memory(&mut rig);
    let (id, before) = (rig.vms[0].id, rig.info(0));
    assert!(before.resident_bytes > 0 && before.pages.tagged > 0);
    rig.vms[0].keep_figures(&rig.memory);
    while rig.memory.release(&mut rig.cpu, id).is_some() {
        assert_eq!(figures(&rig.info(0)), figures(&before), "while it leaves");
    }
    // Somebody has said stop meanwhile.
    let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
    vm.reason = Some("somebody says so".into());
    vm.finish(End::Stopped, memory, cpu).unwrap();
    let expected = hypervisor::report::VmInfo {
        end: Some(End::Stopped),
        reason: Some("somebody says so".into()),
        ..before
    };
    assert_eq!(figures(&rig.info(0)), figures(&expected));
}

#[test]
fn a_vm_that_starts_anew_has_new_figures_and_one_that_cannot_those_of_its_life() {
    let mut rig = Rig::new(Policy::Lazy);
    use_memory(&mut rig);
    let before = rig.info(0);
    let kernel = kernel();
    let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
    vm.keep_figures(memory);
    vm.reset(&rig.board, memory, cpu).unwrap();
    assert!(vm.load(images(&[]), &[], memory, cpu).is_err());
    assert_eq!(figures(&vm.info(memory)), figures(&before));
    vm.load(images(&kernel), &[], memory, cpu).unwrap();
    let info = vm.info(memory);
    assert!(info.resident_bytes < before.resident_bytes && info.pages.tagged == 0);
}

#[test]
fn a_reset_vm_is_as_new_and_its_neighbour_untouched() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::new(policy);
        let (fresh, account) = (rig.info(0), rig.memory.account());
        let neighbour = format!("{:?}", (&rig.vms[1].vcpus, rig.info(1)));
        let mut metadata = None;
        for _ in 0..3 {
            use_memory(&mut rig);
            rig.exit(0x01 << 26 | IL, 0, 0);
            let mut throttle = Throttle::new(1, 1000);
            throttle.spend(1000);
            assert_eq!(throttle.leave(rig.now), 0);
            rig.vms[0].throttle = throttle;
            let kernel = kernel();
            let images = images(&kernel);
            let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
            vm.reset(&rig.board, memory, cpu).unwrap();
            vm.load(images, &[7; 32], memory, cpu).unwrap();
            rig.mapped = None;
            rig.check();

            let vm = &rig.vms[0];
            let leave = vm.throttle.clone().leave(rig.now);
            assert_eq!(
                leave,
                u64::MAX,
                "evictions of a former life are not charged to it"
            );
            let info = vm.info(&rig.memory);
            assert_eq!(format!("{:?}", info.pages), format!("{:?}", fresh.pages));
            assert_eq!(info.reserved_bytes, fresh.reserved_bytes);
            // It keeps its chunks, and no more: the rest is as at its start.
            let now = rig.memory.account();
            let rest = |of: MachineAccount| (of.reserved, of.tables, of.reclaimed);
            assert_eq!(rest(now), rest(account), "{policy:?}");
            // The metadata that its first life took are kept for the next, which needs no more.
            assert_eq!(now.metadata, *metadata.get_or_insert(now.metadata));
            assert_eq!(now.ledger.sum(), now.discovered);
            let boot = &vm.vcpus[0];
            assert_eq!((boot.context.pc, boot.waiting), (BASE + 0x8_0000, None));
            assert!(boot.fresh && boot.is_runnable() && vm.vcpus[1].power == VcpuPower::Off);
            assert_eq!(format!("{:?}", (&rig.vms[1].vcpus, rig.info(1))), neighbour);
            // In 2 MiB with images, and in 2 MiB without.
            for page in [BASE + 0x4_6000, BASE + 0x23_0000] {
                let (data, _) = rig.run(page, SimMachine::load);
                let (tag, _) = rig.run(page, SimMachine::ldg);
                assert_eq!((data, tag), (0, 0), "{policy:?} {page:#x}");
            }
        }
    }
}

#[test]
fn a_vm_s_time_on_cpus_is_told_in_nanoseconds_and_not_forgotten_by_a_reset() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(rig.board.frequency, 1_000_000);
    rig.vms[0].time = CpuTime {
        ran: 3_500_000,
        stolen: 250,
    };
    let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
    vm.reset(&rig.board, memory, cpu).unwrap();
    let info = rig.info(0);
    assert_eq!((info.cpu_ns, info.stolen_ns), (3_500_000_000, 250_000));
    let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
    vm.finish(End::Off, memory, cpu).unwrap();
    assert_eq!(rig.info(0).cpu_ns, info.cpu_ns);
}

#[test]
fn a_thousand_lives_with_resets_and_raised_budgets_leave_no_trace_beside_a_vm_that_stays() {
    let kernel = kernel();
    let mut rig = Rig::new(Policy::Lazy);
    let (memory, cpu) = (&mut rig.memory, &mut rig.cpu);
    rig.vms[0].finish(End::Off, memory, cpu).unwrap();
    let (before, stays) = (memory.account().ledger, figures(&rig.vms[1].info(memory)));
    for life in 0..1000 {
        let (memory, cpu) = (&mut rig.memory, &mut rig.cpu);
        let shape = VmConfig {
            tag_budget: Some(life % 3 * PAGE_SIZE),
            mte: life % 7 != 0,
            ..config("life", (4 + life % 5 * 2) * MIB, 1 + life as usize % 2)
        };
        let mut vm = Vm::new(0, shape, &rig.board, memory, cpu).unwrap();
        for start in 0..1 + life % 3 {
            if start > 0 {
                vm.reset(&rig.board, memory, cpu).unwrap();
            }
            vm.load(images(&kernel), &[], memory, cpu).unwrap();
            if vm.shape.mte {
                memory
                    .set_budget(vm.id, (3 + life % 5) * PAGE_SIZE)
                    .unwrap();
            }
            for page in 0..10 + life % 30 {
                let ipa = Ipa::new(BASE + (page * 7 + life) % 512 * PAGE_SIZE);
                memory.populate(cpu, vm.id, ipa).unwrap();
                if vm.shape.mte {
                    memory.tag_fault(cpu, vm.id, ipa, u64::MAX).unwrap();
                }
            }
        }
        if life % 50 == 0 {
            rig.check();
        }
        let (memory, cpu) = (&mut rig.memory, &mut rig.cpu);
        vm.finish(End::Stopped, memory, cpu).unwrap();
        assert_eq!(memory.account().ledger, before, "life {life}");
        assert_eq!(figures(&rig.vms[1].info(memory)), stays, "life {life}");
    }
    assert_eq!(rig.cpu.sim.broken_rules(), []);
}

#[test]
fn an_exit_of_a_vm_that_has_ended_changes_nothing() {
    let mut rig = Rig::new(Policy::Lazy);
    let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
    vm.finish(End::Off, memory, cpu).unwrap();
    let account = rig.memory.account();
    assert_eq!(rig.exit(TRANSLATION, BASE, BASE), Next::Yield);
    assert_eq!(rig.exit(TAG_ACCESS, BASE, 0), Next::Resume);
    assert_eq!(rig.memory.account(), account);
    let kernel = kernel();
    let images = images(&kernel);
    let (vm, memory, cpu) = (&mut rig.vms[0], &mut rig.memory, &mut rig.cpu);
    let loaded = vm.load(images, &[], memory, cpu);
    assert!(matches!(
        loaded,
        Err(StartError::Memory(MemError::NoSuchVm(_)))
    ));
}
