//! The GIC's virtual CPU interface (ICH_*_EL2, IHI 0069 chapter 12.4): moves [`ListRegisters`] into hardware and back.

use super::regs::{read_reg, write_reg};
use crate::devices::vgic::ListRegisters;
use aarch64_cpu::asm::barrier::{SY, isb};

macro_rules! list_registers {
    ($action:ident) => {
        $action! {
            0 "S3_4_C12_C12_0", 1 "S3_4_C12_C12_1", 2 "S3_4_C12_C12_2", 3 "S3_4_C12_C12_3",
            4 "S3_4_C12_C12_4", 5 "S3_4_C12_C12_5", 6 "S3_4_C12_C12_6", 7 "S3_4_C12_C12_7",
            8 "S3_4_C12_C13_0", 9 "S3_4_C12_C13_1", 10 "S3_4_C12_C13_2", 11 "S3_4_C12_C13_3",
            12 "S3_4_C12_C13_4", 13 "S3_4_C12_C13_5", 14 "S3_4_C12_C13_6", 15 "S3_4_C12_C13_7"
        }
    };
}

/// Reads list register `index`; 0 if there is no such register.
fn read_list_register(index: usize) -> u64 {
    macro_rules! read {
        ($($index:literal $register:literal),*) => { match index { $($index => read_reg!($register),)* _ => 0 } };
    }
    list_registers!(read)
}

/// Writes list register `index`.
fn write_list_register(index: usize, value: u64) {
    macro_rules! write {
        ($($index:literal $register:literal),*) => { match index { $($index => write_reg!($register, value),)* _ => () } };
    }
    list_registers!(write);
}

/// Number of list registers and of active priority registers per group.
#[derive(Clone, Copy, Debug)]
pub struct VirtualInterface {
    /// ICH_VTR_EL2.ListRegs + 1.
    pub list_registers: usize,
    /// 1, 2 or 4, by ICH_VTR_EL2.PREbits.
    priority_registers: usize,
}

impl VirtualInterface {
    /// Enables the system registers of the GIC for EL2 and EL1, and reads what the interface has.
    #[must_use]
    pub fn enable() -> Self {
        // Enable, DIB, DFB, SRE.
        write_reg!("S3_4_C12_C9_5", 0xf);
        isb(SY);
        let vtr = read_reg!("S3_4_C12_C11_1");
        let priority_registers = match (vtr >> 26) & 7 {
            6 => 4,
            5 => 2,
            _ => 1,
        };
        Self {
            list_registers: (vtr & 0x1f) as usize + 1,
            priority_registers,
        }
    }

    /// Returns what both this and another CPU's interface have.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            list_registers: self.list_registers.min(other.list_registers),
            priority_registers: self.priority_registers.min(other.priority_registers),
        }
    }

    /// Takes ICC_SRE_EL1 away from guests, after the CPU interface has been set up: there is one for all, and where it is writable
    /// a guest could turn the system registers off for the others.
    pub fn deny_sre(self) {
        const SRE_DFB_DIB: u64 = 0x7;
        write_reg!("S3_0_C12_C12_5", SRE_DFB_DIB);
        write_reg!("S3_4_C12_C9_5", SRE_DFB_DIB);
        isb(SY);
    }

    /// Loads all of a vCPU that did not run last on this CPU.
    pub fn restore(self, lrs: &ListRegisters) {
        write_reg!("S3_4_C12_C11_7", lrs.vmcr);
        for (index, (group0, group1)) in lrs
            .ap0r
            .iter()
            .zip(&lrs.ap1r)
            .take(self.priority_registers)
            .enumerate()
        {
            write_priorities(index, *group0, *group1);
        }
        for (index, value) in lrs.lr.iter().take(self.list_registers).enumerate() {
            write_list_register(index, *value);
        }
        write_reg!("S3_4_C12_C11_0", lrs.hcr);
    }

    /// Stores all of the vCPU that ran last; the interface is off afterwards.
    pub fn save(self, lrs: &mut ListRegisters) {
        self.store(lrs);
        for (index, (group0, group1)) in lrs
            .ap0r
            .iter_mut()
            .zip(&mut lrs.ap1r)
            .take(self.priority_registers)
            .enumerate()
        {
            (*group0, *group1) = read_priorities(index);
        }
        write_reg!("S3_4_C12_C11_0", 0);
    }

    /// Signals the interrupt of list register `slot` again if the guest is done with it; says whether it did.
    #[must_use]
    pub fn rearm(self, slot: usize) -> bool {
        let again = ListRegisters::rearm(read_list_register(slot));
        if let Some(value) = again {
            write_list_register(slot, value);
        }
        again.is_some()
    }

    /// Loads what a flush changed.
    pub fn load(self, lrs: &ListRegisters) {
        for (index, value) in lrs.loadable().iter().enumerate() {
            write_list_register(index, *value);
        }
        write_reg!("S3_4_C12_C11_0", lrs.hcr);
    }

    /// Stores what the guest may have changed.
    pub fn store(self, lrs: &mut ListRegisters) {
        lrs.hcr = read_reg!("S3_4_C12_C11_0");
        lrs.vmcr = read_reg!("S3_4_C12_C11_7");
        for (index, value) in lrs.in_use().iter_mut().enumerate() {
            *value = read_list_register(index);
        }
    }
}

macro_rules! priority_registers {
    ($action:ident) => {
        $action! {
            0 "S3_4_C12_C8_0" "S3_4_C12_C9_0", 1 "S3_4_C12_C8_1" "S3_4_C12_C9_1",
            2 "S3_4_C12_C8_2" "S3_4_C12_C9_2", 3 "S3_4_C12_C8_3" "S3_4_C12_C9_3"
        }
    };
}

fn read_priorities(index: usize) -> (u64, u64) {
    macro_rules! read {
        ($($index:literal $group0:literal $group1:literal),*) => {
            match index { $($index => (read_reg!($group0), read_reg!($group1)),)* _ => (0, 0) }
        };
    }
    priority_registers!(read)
}

fn write_priorities(index: usize, group0: u64, group1: u64) {
    macro_rules! write {
        ($($index:literal $group0:literal $group1:literal),*) => {
            match index { $($index => { write_reg!($group0, group0); write_reg!($group1, group1); })* _ => () }
        };
    }
    priority_registers!(write);
}
