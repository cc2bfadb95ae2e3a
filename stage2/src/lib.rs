//! Guest memory of an EL2 hypervisor that gives back the tag storage its guests do not need.
//!
//! Host memory ([`host::HostMemory`]): tag regions and their blocks, chunks of taggable DRAM,
//! frames for tables. Guest memory ([`guest::GuestMemory`]): one VM's stage-2 tables and the faults
//! on them. Nothing here touches memory, a TLB or a cache: that is behind the traits of [`ports`],
//! which EL2 and [`fakes::SimMachine`] implement. No lock is taken here either: what a call needs,
//! it is handed.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod account;
pub mod addr;
mod admission;
mod bitset;
pub mod block;
pub mod descriptor;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod frames;
pub mod guest;
pub mod host;
pub mod invariants;
mod kept;
mod lend;
pub mod memory;
mod migrate;
mod pieces;
mod placement;
pub mod pool;
pub mod ports;
mod ram;
pub mod region;
pub mod tables;
