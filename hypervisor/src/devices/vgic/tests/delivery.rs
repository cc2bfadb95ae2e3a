//! From a line, an SGI or a register to the guest and back, case by case.

use super::super::list::*;
use super::*;

/// Sends to a target list: Aff1, list of Aff0, INTID.
const fn sgi(aff1: u64, list: u64, intid: u64) -> u64 {
    aff1 << 16 | list | intid << 24
}

fn pending_sgis(vgic: &Vgic, vcpu: usize) -> u64 {
    vgic.read(VgicFrame::Redist(vcpu), SGI_BASE + ISPENDR, 4) & 0xffff
}

#[test]
fn an_sgi_reaches_its_list_and_nobody_else() {
    let mut vgic = running(20);
    vgic.send_sgi(0, sgi(0, 0b1010, 5));
    vgic.send_sgi(0, sgi(1, 0b0001, 6));
    for vcpu in 0..20 {
        let expected = match vcpu {
            1 | 3 => 1 << 5,
            16 => 1 << 6,
            _ => 0,
        };
        assert_eq!(pending_sgis(&vgic, vcpu), expected, "vCPU {vcpu}");
    }
    assert_eq!(vgic.take_kicks(), 1 << 1 | 1 << 3 | 1 << 16);
}

#[test]
fn an_sgi_to_all_but_self_leaves_out_the_sender() {
    let mut vgic = running(4);
    vgic.send_sgi(2, 1 << 40 | sgi(7, 0xffff, 9));
    let got: Vec<_> = (0..4).map(|vcpu| pending_sgis(&vgic, vcpu)).collect();
    assert_eq!(got, [1 << 9, 1 << 9, 0, 1 << 9]);
}

#[test]
fn an_sgi_to_oneself_is_delivered() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    vgic.send_sgi(0, sgi(0, 1, 0));
    cpu.settle(&mut vgic);
    assert_eq!(cpu.acknowledge(), Some((0, 0xa0)));
}

#[test]
fn an_sgi_to_an_affinity_nobody_has_goes_nowhere() {
    let mut vgic = running(2);
    let bad = [
        sgi(0, 0xfffc, 1),           // Aff0 2 to 15
        sgi(1, 1, 1),                // Aff1
        1 << 32 | sgi(0, 1, 1),      // Aff2
        1 << 48 | sgi(0, 1, 1),      // Aff3
        1 << 44 | sgi(0, 0xffff, 1), // RS: Aff0 16 to 31
        sgi(0, 0, 1),                // nobody
    ];
    for sgir in bad {
        vgic.send_sgi(0, sgir);
        assert_eq!(vgic.take_kicks(), 0, "{sgir:#x}");
    }
}

#[test]
fn an_sgi_in_the_other_group_is_not_forwarded() {
    let mut vgic = running(1);
    vgic.send_sgi_in_group(0, sgi(0, 1, 3), SgiGroup::Group0);
    assert_eq!(pending_sgis(&vgic, 0), 0);
    vgic.write(VgicFrame::Redist(0), SGI_BASE + IGROUPR, 4, !(1 << 3));
    vgic.send_sgi(0, sgi(0, 1, 3));
    assert_eq!(pending_sgis(&vgic, 0), 0);
    vgic.send_sgi_in_group(0, sgi(0, 1, 3), SgiGroup::Group0);
    assert_eq!(pending_sgis(&vgic, 0), 1 << 3);
    let mut cpu = Cpu::new(0, 4);
    cpu.update(&mut vgic);
    assert_eq!(cpu.resident()[0].1 & GROUP1, 0, "a group 0 list register");
}

#[test]
fn a_level_interrupt_that_stays_high_comes_again_and_again() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    vgic.set_spi_level(33, true);
    for _ in 0..3 {
        cpu.settle(&mut vgic);
        assert_eq!(cpu.acknowledge(), Some((33, 0xa0)));
        assert!(!cpu.wants_maintenance());
        cpu.end(33);
        assert!(cpu.wants_maintenance(), "its line must be looked at");
    }
    vgic.set_spi_level(33, false);
    cpu.settle(&mut vgic);
    assert_eq!(cpu.acknowledge(), None);
}

#[test]
fn a_level_interrupt_whose_line_falls_in_its_handler_costs_no_maintenance() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    vgic.set_spi_level(33, true);
    cpu.settle(&mut vgic);
    cpu.acknowledge().unwrap();
    vgic.set_spi_level(33, false);
    assert!(vgic.is_stale(0));
    assert_eq!(vgic.take_kicks(), 0, "nothing urgent");
    cpu.settle(&mut vgic);
    cpu.end(33);
    assert!(!cpu.wants_maintenance());
    cpu.update(&mut vgic);
    assert!(!read_bit(&vgic, 0, ISACTIVER, 33));
}

#[test]
fn a_line_that_falls_before_the_guest_looks_takes_the_interrupt_back() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    vgic.set_spi_level(33, true);
    cpu.settle(&mut vgic);
    assert_eq!(cpu.resident().len(), 1);
    vgic.set_spi_level(33, false);
    cpu.settle(&mut vgic);
    assert_eq!(cpu.acknowledge(), None);
}

#[test]
fn an_edge_that_comes_while_the_first_is_active_is_not_lost() {
    let mut vgic = running(1);
    set_edge(&mut vgic, 0, 40, true);
    let mut cpu = Cpu::new(0, 4);
    vgic.set_spi_level(40, true);
    cpu.settle(&mut vgic);
    cpu.acknowledge().unwrap();
    vgic.set_spi_level(40, false);
    vgic.set_spi_level(40, true);
    assert_eq!(vgic.take_kicks(), 1, "even if the guest never exits");
    cpu.settle(&mut vgic);
    assert_eq!(cpu.acknowledge(), None, "still active");
    cpu.end(40);
    assert_eq!(cpu.acknowledge(), Some((40, 0xa0)));
    cpu.end(40);
    cpu.update(&mut vgic);
    assert_eq!(cpu.acknowledge(), None);
}

#[test]
fn the_guests_deactivation_deactivates_the_timers_interrupt() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    for tick in 1..4 {
        vgic.raise_hw_ppi(0, 27, 30);
        cpu.settle(&mut vgic);
        assert!(vgic.is_hw_ppi_held(0, 27));
        assert_eq!(cpu.acknowledge(), Some((27, 0xa0)));
        cpu.end(27);
        assert!(!cpu.wants_maintenance(), "a tick costs one exit");
        assert_eq!(cpu.deactivated, vec![30; tick]);
        cpu.sync(&mut vgic);
        assert!(!vgic.is_hw_ppi_held(0, 27));
        assert_eq!(vgic.take_deactivations(0), 0);
    }
}

#[test]
fn the_short_way_for_a_tick_is_open_only_while_nothing_changed() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    assert!(!cpu.rearm(&vgic, 27), "never raised");
    vgic.raise_hw_ppi(0, 27, 27);
    cpu.settle(&mut vgic);
    assert!(!cpu.rearm(&vgic, 27), "not acknowledged");
    cpu.acknowledge().unwrap();
    assert!(!cpu.rearm(&vgic, 27), "not ended");
    cpu.end(27);
    assert!(cpu.rearm(&vgic, 27));
    assert_eq!(cpu.acknowledge(), Some((27, 0xa0)));
    cpu.end(27);
    assert!(!cpu.rearm(&vgic, 26), "another one");
    write_bit(&mut vgic, 0, ICENABLER, 27);
    assert!(!cpu.rearm(&vgic, 27), "disabled meanwhile");
    cpu.settle(&mut vgic);
    assert!(!vgic.is_hw_ppi_held(0, 27) && !cpu.rearm(&vgic, 27));
}

#[test]
fn a_physical_interrupt_the_guest_will_not_end_is_left_to_us() {
    type Clear = fn(&mut Vgic);
    let clear: [(&str, Clear); 2] = [
        ("ICPENDR", |vgic| write_bit(vgic, 0, ICPENDR, 27)),
        ("cancel", |vgic| vgic.cancel_hw_ppi(0, 27)),
    ];
    for (what, clear) in clear {
        for resident in [false, true] {
            let mut vgic = running(1);
            let mut cpu = Cpu::new(0, 4);
            vgic.raise_hw_ppi(0, 27, 27);
            if resident {
                cpu.update(&mut vgic);
            }
            clear(&mut vgic);
            cpu.update(&mut vgic);
            assert_eq!(cpu.acknowledge(), None, "{what}");
            assert_eq!(vgic.take_deactivations(0), 1 << 27, "{what}");
            assert_eq!(vgic.take_deactivations(0), 0);
            assert!(!vgic.is_hw_ppi_held(0, 27));
        }
    }
}

#[test]
fn what_is_owed_to_the_physical_gic_is_told_to_the_cpu_that_owes_it() {
    let mut vgic = running(2);
    let mut cpu = Cpu::new(1, 4);
    write_bit(&mut vgic, 1, ICENABLER, 27);
    vgic.raise_hw_ppi(1, 27, 27);
    cpu.update(&mut vgic);
    vgic.take_kicks();
    write_bit(&mut vgic, 1, ICPENDR, 27);
    assert!(vgic.is_stale(1), "it is in no list register");
    assert_eq!(vgic.take_kicks(), 1 << 1);
    assert_eq!(vgic.take_deactivations(1), 1 << 27);
}

#[test]
fn clearing_the_active_state_by_register_deactivates_the_physical_interrupt() {
    let mut vgic = running(2);
    let mut cpu = Cpu::new(0, 4);
    vgic.raise_hw_ppi(0, 27, 27);
    cpu.update(&mut vgic);
    cpu.acknowledge().unwrap();
    vgic.take_kicks();
    write_bit(&mut vgic, 0, ICACTIVER, 27);
    assert_eq!(vgic.take_kicks(), 1, "it is in a list register");
    cpu.update(&mut vgic);
    assert_eq!(vgic.take_deactivations(0), 1 << 27);
    assert!(cpu.resident().is_empty());
}

#[test]
fn a_timer_latched_again_by_software_is_delivered_twice_and_deactivated_once() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    vgic.raise_hw_ppi(0, 27, 27);
    cpu.update(&mut vgic);
    cpu.acknowledge().unwrap();
    write_bit(&mut vgic, 0, ISPENDR, 27);
    cpu.settle(&mut vgic);
    cpu.end(27);
    assert_eq!(cpu.acknowledge(), Some((27, 0xa0)));
    cpu.end(27);
    cpu.settle(&mut vgic);
    assert!(cpu.deactivated.is_empty());
    assert_eq!(vgic.take_deactivations(0), 1 << 27);
}

#[test]
fn a_tick_that_comes_before_the_last_one_is_synced_stays_backed() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    vgic.raise_hw_ppi(0, 27, 27);
    cpu.update(&mut vgic);
    cpu.acknowledge().unwrap();
    cpu.end(27);
    vgic.raise_hw_ppi(0, 27, 27);
    cpu.settle(&mut vgic);
    assert_eq!(vgic.take_deactivations(0), 0);
    assert_eq!(cpu.acknowledge(), Some((27, 0xa0)));
    cpu.end(27);
    assert_eq!(cpu.deactivated, [27, 27]);
    cpu.sync(&mut vgic);
    assert!(!vgic.is_hw_ppi_held(0, 27));
}

#[test]
fn more_pending_than_list_registers_are_delivered_by_priority() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    for intid in 32..52 {
        set_edge(&mut vgic, 0, intid, true);
        set_priority(&mut vgic, 0, intid, 0xf0 - (intid as u8 - 32) * 8);
        vgic.set_spi_level(intid, true);
    }
    cpu.settle(&mut vgic);
    let order = core::iter::from_fn(|| {
        let (intid, _) = cpu.acknowledge()?;
        cpu.settle(&mut vgic);
        cpu.end(intid);
        cpu.settle(&mut vgic);
        Some(intid)
    });
    assert_eq!(
        order.collect::<Vec<_>>(),
        (32..52).rev().collect::<Vec<_>>()
    );
}

#[test]
fn a_better_interrupt_displaces_a_pending_one_from_full_list_registers() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 2);
    vgic.set_spi_level(32, true);
    vgic.set_spi_level(33, true);
    cpu.settle(&mut vgic);
    set_priority(&mut vgic, 0, 40, 0x20);
    vgic.set_spi_level(40, true);
    cpu.settle(&mut vgic);
    assert_eq!(cpu.acknowledge(), Some((40, 0x20)));
}

#[test]
fn nested_interrupts_deeper_than_the_list_registers_end_in_order() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 2);
    let mut nest = Vec::new();
    for intid in 32..40 {
        set_edge(&mut vgic, 0, intid, true);
        set_priority(&mut vgic, 0, intid, 0xf0 - (intid as u8 - 32) * 0x10);
        vgic.set_spi_level(intid, true);
        cpu.settle(&mut vgic);
        assert_eq!(cpu.acknowledge().unwrap().0, intid);
        cpu.settle(&mut vgic);
        nest.push(intid);
    }
    while let Some(intid) = nest.pop() {
        cpu.end(intid);
        cpu.update(&mut vgic);
        assert!(!read_bit(&vgic, 0, ISACTIVER, intid), "{intid}");
        for &outer in &nest {
            assert!(
                read_bit(&vgic, 0, ISACTIVER, outer),
                "{outer} within {intid}"
            );
        }
    }
}

#[test]
fn threaded_handlers_do_not_keep_the_timer_out() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 2);
    cpu.set_eoi_mode(true);
    for intid in 32..40 {
        vgic.set_spi_level(intid, true);
        cpu.settle(&mut vgic);
        assert_eq!(cpu.acknowledge().unwrap().0, intid);
        cpu.end(intid);
        cpu.settle(&mut vgic);
    }
    vgic.raise_hw_ppi(0, 27, 27);
    cpu.settle(&mut vgic);
    assert_eq!(cpu.acknowledge(), Some((27, 0xa0)));
    // Deactivation in any order goes to the right one.
    for intid in [35, 32, 39, 33, 34, 38, 37, 36] {
        vgic.set_spi_level(intid, false);
        cpu.settle(&mut vgic);
        cpu.deactivate_separately(&mut vgic, intid);
        cpu.update(&mut vgic);
        assert!(!read_bit(&vgic, 0, ISACTIVER, intid));
    }
    assert!(read_bit(&vgic, 0, ISACTIVER, 27));
}

#[test]
fn an_active_spi_stays_with_its_vcpu_when_it_is_rerouted() {
    let mut vgic = running(2);
    let (mut zero, mut one) = (Cpu::new(0, 4), Cpu::new(1, 4));
    set_edge(&mut vgic, 0, 40, true);
    vgic.set_spi_level(40, true);
    zero.settle(&mut vgic);
    zero.acknowledge().unwrap();
    vgic.write(DIST, IROUTER + 8 * 40, 8, 1);
    vgic.set_spi_level(40, false);
    vgic.set_spi_level(40, true);
    zero.settle(&mut vgic);
    one.settle(&mut vgic);
    assert_eq!(one.acknowledge(), None, "still active on the other");
    zero.end(40);
    zero.update(&mut vgic);
    one.settle(&mut vgic);
    assert_eq!(zero.acknowledge(), None);
    assert_eq!(one.acknowledge(), Some((40, 0xa0)));
}

#[test]
fn a_pending_spi_moves_with_its_route() {
    let mut vgic = running(2);
    let (mut zero, mut one) = (Cpu::new(0, 4), Cpu::new(1, 4));
    vgic.set_spi_level(40, true);
    zero.settle(&mut vgic);
    vgic.take_kicks();
    vgic.write(DIST, IROUTER + 8 * 40, 8, 1);
    assert_eq!(
        vgic.take_kicks(),
        1,
        "it must leave the list register first"
    );
    zero.settle(&mut vgic);
    assert_eq!(vgic.take_kicks(), 1 << 1);
    one.settle(&mut vgic);
    assert_eq!(
        (zero.acknowledge(), one.acknowledge()),
        (None, Some((40, 0xa0)))
    );
}

#[test]
fn an_spi_routed_to_nobody_waits_in_the_distributor() {
    let mut vgic = running(2);
    let mut cpu = Cpu::new(1, 4);
    vgic.write(DIST, IROUTER + 8 * 40, 8, 0x5_0000);
    vgic.take_kicks();
    vgic.set_spi_level(40, true);
    assert_eq!(vgic.take_kicks(), 0);
    assert!(read_bit(&vgic, 0, ISPENDR, 40));
    vgic.write(DIST, IROUTER + 8 * 40, 8, 1);
    cpu.settle(&mut vgic);
    assert_eq!(cpu.acknowledge(), Some((40, 0xa0)));
}

#[test]
fn disabling_withdraws_what_is_pending_but_not_what_is_active() {
    let ways: [fn(&mut Vgic); 2] = [
        |vgic| write_bit(vgic, 0, ICENABLER, 40),
        |vgic| vgic.write(DIST, 0, 4, 0),
    ];
    for disable in ways {
        let mut vgic = running(1);
        let mut cpu = Cpu::new(0, 4);
        vgic.set_spi_level(40, true);
        cpu.settle(&mut vgic);
        disable(&mut vgic);
        cpu.settle(&mut vgic);
        assert_eq!(cpu.acknowledge(), None);
        assert!(read_bit(&vgic, 0, ISPENDR, 40), "still pending");

        let mut vgic = running(1);
        let mut cpu = Cpu::new(0, 4);
        vgic.set_spi_level(40, true);
        cpu.settle(&mut vgic);
        cpu.acknowledge().unwrap();
        disable(&mut vgic);
        cpu.update(&mut vgic);
        assert!(read_bit(&vgic, 0, ISACTIVER, 40));
        assert_eq!(cpu.resident().len(), 1, "the guest must find it to end it");
    }
}

#[test]
fn wfi_ends_for_what_would_be_signalled() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    let check = |vgic: &mut Vgic, cpu: &mut Cpu, expected, why| {
        cpu.sync(vgic);
        assert_eq!(vgic.has_pending(0), expected, "{why}, in the queue");
        cpu.enter(vgic);
        assert_eq!(vgic.has_pending(0), expected, "{why}, resident");
    };
    check(&mut vgic, &mut cpu, false, "nothing");
    vgic.set_spi_level(40, true);
    check(&mut vgic, &mut cpu, true, "pending and enabled");
    cpu.set_mask(0xa0);
    check(&mut vgic, &mut cpu, false, "masked by ICC_PMR");
    cpu.set_mask(0xf0);
    write_bit(&mut vgic, 0, ICENABLER, 40);
    check(&mut vgic, &mut cpu, false, "disabled");
    write_bit(&mut vgic, 0, ISENABLER, 40);
    cpu.lrs.vmcr &= !VMCR_ENG1;
    check(&mut vgic, &mut cpu, false, "its group is off");
    cpu.lrs.vmcr |= VMCR_ENG1;
    check(&mut vgic, &mut cpu, true, "on again");
    cpu.acknowledge().unwrap();
    check(&mut vgic, &mut cpu, false, "active");
}

#[test]
fn nothing_need_be_touched_while_nothing_changes() {
    let mut vgic = running(2);
    let mut cpu = Cpu::new(0, 4);
    cpu.update(&mut vgic);
    assert!(!vgic.is_stale(0));
    vgic.set_spi_level(33, false);
    write_bit(&mut vgic, 1, ISPENDR, 3);
    vgic.send_sgi(0, sgi(0, 0b10, 4));
    assert!(!vgic.is_stale(0), "all that is for vCPU 1");
    let before = cpu.lrs.clone();
    vgic.flush(0, &mut cpu.lrs);
    assert_eq!((before.lr, before.hcr), (cpu.lrs.lr, cpu.lrs.hcr));
}

#[test]
fn list_registers_that_fall_free_are_cleared_in_the_cpu() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 4);
    for intid in 40..43 {
        vgic.set_spi_level(intid, true);
    }
    cpu.settle(&mut vgic);
    assert_eq!((cpu.lrs.used, cpu.lrs.to_load), (3, 3));
    vgic.set_spi_level(40, false);
    vgic.set_spi_level(41, false);
    cpu.settle(&mut vgic);
    assert_eq!((cpu.lrs.used, cpu.lrs.to_load), (1, 3));
    assert_eq!(cpu.lrs.lr[1..], [0; 15]);
}

#[test]
fn one_list_register_is_enough_to_go_on() {
    let mut vgic = running(1);
    let mut cpu = Cpu::new(0, 1);
    for intid in 40..44 {
        set_edge(&mut vgic, 0, intid, true);
        vgic.set_spi_level(intid, true);
    }
    for _ in 0..4 {
        cpu.update(&mut vgic);
        let (intid, _) = cpu.acknowledge().unwrap();
        cpu.settle(&mut vgic);
        cpu.end(intid);
    }
    cpu.update(&mut vgic);
    assert_eq!(cpu.acknowledge(), None);
}
