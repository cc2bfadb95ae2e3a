//! The memory of one VM: its RAM, its tables, and the two faults that fill and tag them. Lock rank:
//! VM tables.
//!
//! Each operation first looks, and takes all that it needs; it may fail there, and leaves no trace.
//! Then it commits, and nothing in that part can fail.

use core::fmt;

use crate::account::{PageCounts, VmAccount, VmPeak};
use crate::addr::{Frame, Ipa, PAGE_SIZE};
use crate::block::BadTransition;
use crate::descriptor::{IPA_BITS, Leaf, MemAttr, Vmid};
use crate::frames::{NotOwned, VmId};
use crate::host::HostMemory;
pub use crate::host::Policy;
use crate::pool::TagHold;
use crate::ports::{Hardware, TableMemory};
use crate::ram::{Place, Ram};
use crate::region::TAG_RATIO;
use crate::tables::{Corrupt, Mapping, Missing, Position, Stage2Tables, Supplied, Vacant, Visit};

/// A VM to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestSpec {
    /// Who owns its memory.
    pub vm: VmId,
    /// What its TLB entries are marked with. No TLB holds any.
    pub vmid: Vmid,
    /// The first byte of its RAM.
    pub ram_base: Ipa,
    /// The length of its RAM in bytes.
    pub ram_bytes: u64,
    /// Whether the guest may use tags (HCR_EL2.ATA = 1).
    pub mte: bool,
    /// When tag storage is reserved for it.
    pub policy: Policy,
}

/// Why an operation on a VM's memory was refused. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemError {
    /// The RAM is empty, not whole 4 KiB pages, or beyond the guest physical addresses.
    BadRam {
        /// Its first byte.
        base: Ipa,
        /// Its length.
        bytes: u64,
    },
    /// A static VM on a machine that is not, or the other way round: the whole carve-out is
    /// reserved for all VMs or for none.
    StaticMismatch,
    /// A VM of this identifier has memory already.
    VmExists(VmId),
    /// No VM of this identifier has memory.
    NoSuchVm(VmId),
    /// The address is not of the VM's RAM.
    NotRam(Ipa),
    /// No frame is left.
    NoMemory,
    /// A tag access of a guest that may not use tags.
    NotMte,
    /// The tag block is in a state that does not allow it.
    Block(BadTransition),
    /// A table holds what was never written to it: the hypervisor has lost a guarantee.
    Corrupt(Corrupt),
    /// A frame was given back twice: the hypervisor has lost a guarantee.
    NotOwned(Frame),
}

impl fmt::Display for MemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRam { base, bytes } => {
                write!(
                    f,
                    "RAM at {base:#x} of {bytes:#x} bytes is empty, unaligned, or too high"
                )
            }
            Self::StaticMismatch => {
                write!(
                    f,
                    "the policy is static for the machine and all its VMs, or for none"
                )
            }
            Self::VmExists(vm) => write!(f, "VM {} exists already", vm.index()),
            Self::NoSuchVm(vm) => write!(f, "VM {} has no memory", vm.index()),
            Self::NotRam(ipa) => write!(f, "{ipa:#x} is not RAM of the VM"),
            Self::NoMemory => write!(f, "no frame is left"),
            Self::NotMte => write!(f, "a tag access of a VM without MTE"),
            Self::Block(bad) => write!(f, "{bad}"),
            Self::Corrupt(Corrupt { table, index, raw }) => {
                write!(
                    f,
                    "entry {index} of the table at {:#x} is {raw:#x}",
                    table.addr()
                )
            }
            Self::NotOwned(frame) => {
                write!(f, "the frame at {:#x} was given back twice", frame.addr())
            }
        }
    }
}

impl From<BadTransition> for MemError {
    fn from(bad: BadTransition) -> Self {
        Self::Block(bad)
    }
}

impl From<Corrupt> for MemError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

impl From<NotOwned> for MemError {
    fn from(NotOwned(frame): NotOwned) -> Self {
        Self::NotOwned(frame)
    }
}

/// What an access fault led to. In each case the guest is re-entered and repeats the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The page was never touched; it is mapped now, zeroed.
    Mapped(Frame),
    /// The page is mapped already: another vCPU was faster.
    Spurious,
}

/// What a tag fault led to. In each case the guest is re-entered and repeats the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagOutcome {
    /// The page has tag access now, and its tags are 0.
    Tagged,
    /// The page had tag access: the guest used an older TLB entry, which is dropped now.
    Spurious,
    /// The page is not mapped: a translation fault will follow.
    Unmapped,
}

/// When a page of the VM gets tag access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TagUse {
    Never,
    AtAccess,
    AtTagAccess,
}

/// The memory of one VM.
#[derive(Debug)]
pub struct GuestMemory {
    spec: GuestSpec,
    tag_use: TagUse,
    tables: Stage2Tables,
    ram: Ram,
    tagged: u64,
    no_tag_access: u64,
    reserved: u64,
    tag_faults: u64,
    peak: VmPeak,
}

impl GuestMemory {
    /// The memory of a new VM, nothing of it mapped. Needs one frame, for the root table.
    pub fn new(
        host: &mut HostMemory,
        hw: &mut impl Hardware,
        spec: GuestSpec,
    ) -> Result<Self, MemError> {
        let GuestSpec {
            ram_base: base,
            ram_bytes: bytes,
            ..
        } = spec;
        let aligned = base.get() % PAGE_SIZE == 0 && bytes % PAGE_SIZE == 0 && bytes != 0;
        let end = base
            .checked_add(bytes)
            .filter(|end| end.get() <= 1 << IPA_BITS);
        if !aligned || end.is_none() {
            return Err(MemError::BadRam { base, bytes });
        }
        if (spec.policy == Policy::Static) != (host.policy() == Policy::Static) {
            return Err(MemError::StaticMismatch);
        }
        let tag_use = match (spec.mte, spec.policy) {
            (false, _) => TagUse::Never,
            (true, Policy::Lazy) => TagUse::AtTagAccess,
            (true, Policy::Eager | Policy::Static) => TagUse::AtAccess,
        };
        let ram = Ram::new(spec).ok_or(MemError::NoMemory)?;
        let root = host.alloc_table_page().ok_or(MemError::NoMemory)?;
        host.guest_metadata += ram.metadata_bytes();
        Ok(Self {
            spec,
            tag_use,
            tables: Stage2Tables::new(hw, root, spec.vmid),
            ram,
            tagged: 0,
            no_tag_access: 0,
            reserved: 0,
            tag_faults: 0,
            peak: VmPeak::default(),
        })
    }

    /// What the VM was made from.
    pub const fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    /// The VM's tables.
    pub const fn tables(&self) -> &Stage2Tables {
        &self.tables
    }

    /// Whether a page mapped as `leaf` can use its tags.
    pub fn has_tag_access(&self, leaf: Leaf) -> bool {
        self.tag_use.tagged(leaf)
    }

    /// The frame behind a guest address, if the guest has touched its page.
    pub fn translate(&self, memory: &impl TableMemory, ipa: Ipa) -> Option<Frame> {
        Some(self.leaf(memory, ipa)?.frame)
    }

    /// The leaf behind a guest address, if the guest has touched its page.
    pub fn leaf(&self, memory: &impl TableMemory, ipa: Ipa) -> Option<Leaf> {
        self.tables.lookup(memory, ipa)
    }

    /// Which host memory is behind its RAM.
    pub(crate) const fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Touches a page in the guest's name, as a loader does: mapped if it was not. Counts as an
    /// access.
    pub fn populate(
        &mut self,
        host: &mut HostMemory,
        hw: &mut impl Hardware,
        ipa: Ipa,
    ) -> Result<Frame, MemError> {
        match self.access_fault(host, hw, ipa)? {
            Access::Mapped(frame) => Ok(frame),
            Access::Spurious => self.translate(hw, ipa).ok_or(MemError::NotRam(ipa)),
        }
    }

    /// Handles a stage-2 translation fault.
    pub fn access_fault<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        ipa: Ipa,
    ) -> Result<Access, MemError> {
        let ipa = self.ram.page(ipa)?;
        let gap = match self.tables.walk(hw, ipa)? {
            Position::Mapped(_) | Position::Busy => return Ok(Access::Spurious),
            Position::Vacant(vacant) => Gap::Page(vacant),
            Position::Missing(missing) => Gap::supply(missing, host)?,
        };
        let (place, hold) = match place_and_hold(&mut self.ram, host, hw, (ipa, self.tag_use)) {
            Ok(taken) => taken,
            Err(cause) => return Err(gap.give_back(host, cause)),
        };

        let frame = place.frame;
        self.ram.adopt(place);
        hw.zero(frame);
        match hold {
            Some(hold) => {
                let opened = hold.opened();
                let zeroed = hold.zero_tags(hw);
                gap.fill(host, hw).make(hw, Mapping::Tagged(zeroed));
                self.count_tagged(opened);
            }
            None => {
                // Another vCPU must not see the page before the zeroes.
                hw.synchronize();
                gap.fill(host, hw).make(hw, self.tag_use.untagged(frame));
                self.no_tag_access += 1;
            }
        }
        Ok(Access::Mapped(frame))
    }

    /// Handles a tag access fault: the guest used the tags of a page that has none yet.
    pub fn tag_fault<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        ipa: Ipa,
    ) -> Result<TagOutcome, MemError> {
        if self.tag_use == TagUse::Never {
            return Err(MemError::NotMte);
        }
        let ipa = self.ram.page(ipa)?;
        let mapped = match self.tables.walk(hw, ipa)? {
            Position::Mapped(mapped) => mapped,
            Position::Busy => return Ok(TagOutcome::Spurious),
            Position::Vacant(_) | Position::Missing(_) => return Ok(TagOutcome::Unmapped),
        };
        if mapped.leaf().attr == MemAttr::WriteBack {
            mapped.refresh(hw);
            return Ok(TagOutcome::Spurious);
        }
        let hold = host.blocks.hold(hw, mapped.leaf().frame)?;

        let opened = hold.opened();
        let broken = mapped.break_leaf(hw);
        let zeroed = hold.zero_tags(hw);
        broken.vacant().make(hw, Mapping::Tagged(zeroed));
        self.no_tag_access -= 1;
        self.tag_faults += 1;
        self.count_tagged(opened);
        Ok(TagOutcome::Tagged)
    }

    /// Takes all RAM away from the guest, as a reset does: each page is zero, and untouched,
    /// afterwards. The VM keeps its chunks and its root table.
    ///
    /// # Errors
    /// Only a guarantee that was lost before; all that can be released has been.
    pub fn reset<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
    ) -> Result<(), MemError> {
        host.before_release();
        host.leaf_tables -= u64::from(self.tables.leaf_tables());
        let mut result = Ok(());
        let tag_use = self.tag_use;
        let detached = self.tables.detach(hw);
        detached.visit(hw, |hw, item| {
            let freed = match item {
                Visit::Page(_, leaf) if tag_use.tagged(leaf) => host
                    .blocks
                    .drop_user(hw, leaf.frame)
                    .map(drop)
                    .map_err(MemError::from),
                Visit::Page(..) | Visit::Busy(_) => Ok(()),
                Visit::Table(table) => host.free_table_page(table).map_err(MemError::from),
                Visit::Corrupt(corrupt) => Err(corrupt.into()),
            };
            result = result.and(freed);
        });
        (self.tagged, self.no_tag_access, self.reserved) = (0, 0, 0);
        result
    }

    /// Gives back all that the VM has. Its VMID may be used again.
    ///
    /// # Errors
    /// Only a guarantee that was lost before; all that can be released has been.
    pub fn destroy(
        mut self,
        host: &mut HostMemory,
        hw: &mut impl Hardware,
    ) -> Result<(), MemError> {
        let reset = self.reset(host, hw);
        host.guest_metadata -= self.ram.metadata_bytes();
        let chunks = self.ram.release(host);
        let root = host
            .free_table_page(self.tables.root())
            .map_err(MemError::from);
        reset.and(chunks).and(root)
    }

    /// The VM's figures now. Constant time.
    pub fn account(&self) -> VmAccount {
        let memory = self.spec.ram_bytes;
        let static_cost = memory / TAG_RATIO;
        let is_static = self.spec.policy == Policy::Static;
        let reserved = if is_static {
            static_cost
        } else {
            self.reserved
        };
        let touched = self.tagged + self.no_tag_access;
        VmAccount {
            memory,
            resident: touched * PAGE_SIZE,
            pages: PageCounts {
                untouched: memory / PAGE_SIZE - touched,
                no_tag_access: self.no_tag_access,
                tagged: self.tagged,
            },
            reserved,
            static_cost,
            reclaimed: static_cost as i64 - reserved as i64,
            tag_faults: self.tag_faults,
            peak: VmPeak {
                reserved: reserved.max(self.peak.reserved),
                ..self.peak
            },
            ..VmAccount::default()
        }
    }

    fn count_tagged(&mut self, opened: u64) {
        self.tagged += 1;
        self.reserved += opened;
        self.peak.tagged_pages = self.peak.tagged_pages.max(self.tagged);
        self.peak.reserved = self.peak.reserved.max(self.reserved);
    }
}

impl TagUse {
    fn tagged(self, leaf: Leaf) -> bool {
        self != Self::Never && leaf.attr == MemAttr::WriteBack
    }

    const fn untagged(self, frame: Frame) -> Mapping {
        match self {
            Self::Never => Mapping::WithoutMte(frame),
            Self::AtAccess | Self::AtTagAccess => Mapping::NoTagAccess(frame),
        }
    }
}

/// Takes a frame for a page, and storage for its tags if it is to have tag access at once.
fn place_and_hold(
    ram: &mut Ram,
    host: &mut HostMemory,
    hw: &mut impl Hardware,
    (ipa, tag_use): (Ipa, TagUse),
) -> Result<(Place, Option<TagHold>), MemError> {
    let place = ram.place(host, ipa).ok_or(MemError::NoMemory)?;
    if tag_use != TagUse::AtAccess {
        return Ok((place, None));
    }
    match host.blocks.hold(hw, place.frame) {
        Ok(hold) => Ok((place, Some(hold))),
        Err(bad) => Err(ram.give_back(host, place, bad.into())),
    }
}

/// The way from the root to a page that is not mapped, with all that it needs.
enum Gap<'t> {
    Page(Vacant<'t>),
    Tables(Supplied<'t>),
}

impl<'t> Gap<'t> {
    fn supply(missing: Missing<'t>, host: &mut HostMemory) -> Result<Self, MemError> {
        match missing.supply(|| host.alloc_table_page()) {
            Ok(supplied) => Ok(Self::Tables(supplied)),
            Err(taken) => Err(free_tables(host, taken, MemError::NoMemory)),
        }
    }

    fn give_back(self, host: &mut HostMemory, cause: MemError) -> MemError {
        match self {
            Self::Page(_) => cause,
            Self::Tables(supplied) => free_tables(host, supplied.into_frames(), cause),
        }
    }

    fn fill(self, host: &mut HostMemory, hw: &mut impl Hardware) -> Vacant<'t> {
        match self {
            Self::Page(vacant) => vacant,
            Self::Tables(supplied) => {
                host.leaf_tables += 1;
                supplied.install(hw)
            }
        }
    }
}

/// Frees what was taken for an operation that is refused; returns why it is refused.
fn free_tables(
    host: &mut HostMemory,
    tables: impl IntoIterator<Item = Frame>,
    cause: MemError,
) -> MemError {
    let freed = tables
        .into_iter()
        .try_for_each(|table| host.free_table_page(table));
    freed.map_or_else(MemError::from, |()| cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::block::{BlockEvent, BlockState};
    use crate::fakes::SimMachine;
    use crate::frames::PIECE_FRAMES;
    use crate::host::Layout;
    use crate::invariants;
    use crate::pool::BlockId;
    use crate::region::{Dram, MemoryMap, TagRegion, TagRegionDesc};

    const MIB: u64 = 1 << 20;
    const BASE: Ipa = Ipa::new(0x4000_0000);

    /// A machine of one 6 MiB chunk, as its blocks of 12 KiB want, and a VM on it.
    fn machine(policy: Policy) -> (HostMemory, SimMachine, GuestMemory) {
        let desc = TagRegionDesc {
            tags_base: PhysAddr::new(6 * MIB),
            tags_bytes: 6 * MIB / 32,
            tagged_base: PhysAddr::new(0),
            tagged_bytes: 6 * MIB,
            block_size: 0x3000,
        };
        let range = |base, bytes| PhysRange::new(PhysAddr::new(base), bytes).unwrap();
        let dram = vec![
            Dram {
                range: range(0, 7 * MIB),
                taggable: true,
            },
            Dram {
                range: range(8 * MIB, 64 * 1024),
                taggable: false,
            },
        ];
        let memory = MemoryMap {
            dram,
            occupied: vec![],
        };
        let regions = vec![TagRegion::new(&desc, &memory, &[]).unwrap()];
        let mut host = HostMemory::new(Layout {
            memory,
            regions,
            policy,
        })
        .unwrap();
        let mut sim = SimMachine::new(vec![desc], vec![]);
        let spec = GuestSpec {
            vm: VmId::new(7).unwrap(),
            vmid: Vmid(7),
            ram_base: BASE,
            ram_bytes: 4 * MIB,
            mte: true,
            policy,
        };
        let guest = GuestMemory::new(&mut host, &mut sim, spec).unwrap();
        sim.take_log();
        (host, sim, guest)
    }

    #[test]
    fn a_fault_whose_block_cannot_be_reserved_is_refused_without_a_trace() {
        let (mut host, mut sim, mut guest) = machine(Policy::Eager);
        let block = BlockId {
            region: 0,
            index: 0,
        };
        host.blocks.force(block, BlockState::Lent);
        let before = (host.account(), guest.account());
        let bad = BadTransition {
            from: BlockState::Lent,
            event: BlockEvent::Reserve,
        };
        let refused = guest.access_fault(&mut host, &mut sim, BASE);
        assert_eq!(refused, Err(MemError::Block(bad)));
        assert_eq!((host.account(), guest.account()), before);
        assert_eq!(sim.take_log(), []);
        host.blocks.force(block, BlockState::Free);
        assert!(guest.access_fault(&mut host, &mut sim, BASE).is_ok());
    }

    #[test]
    fn a_tag_fault_whose_block_cannot_be_reserved_leaves_the_page_mapped() {
        let (mut host, mut sim, mut guest) = machine(Policy::Lazy);
        guest.populate(&mut host, &mut sim, BASE).unwrap();
        let block = BlockId {
            region: 0,
            index: 0,
        };
        host.blocks.force(block, BlockState::Lent);
        let before = (host.account(), guest.account(), guest.leaf(&sim, BASE));
        sim.take_log();
        assert!(guest.tag_fault(&mut host, &mut sim, BASE).is_err());
        assert_eq!(
            (host.account(), guest.account(), guest.leaf(&sim, BASE)),
            before
        );
        assert_eq!(sim.take_log(), []);
    }

    #[test]
    fn a_chunk_of_several_pieces_fills_several_places_and_goes_back_once() {
        let (mut host, mut sim, mut guest) = machine(Policy::Lazy);
        let fresh = host.account().ledger;
        let far = Ipa::new(BASE.get() + 2 * MIB);
        let first = guest.populate(&mut host, &mut sim, BASE).unwrap();
        let second = guest.populate(&mut host, &mut sim, far).unwrap();
        assert_eq!(
            second,
            first.plus(PIECE_FRAMES),
            "the next piece of the same chunk"
        );
        assert_eq!(host.account().ledger.owned, 6 * MIB);
        invariants::check(&host, [&guest], &mut sim).unwrap();
        guest.destroy(&mut host, &mut sim).unwrap();
        let after = host.account().ledger;
        assert_eq!((after.owned, after.tables), (0, 0));
        assert_eq!(after.sum(), fresh.sum());
    }

    #[test]
    fn a_page_between_break_and_make_is_left_to_who_broke_it() {
        let (mut host, mut sim, mut guest) = machine(Policy::Lazy);
        guest.populate(&mut host, &mut sim, BASE).unwrap();
        let Ok(Position::Mapped(mapped)) = guest.tables.walk(&sim, BASE) else {
            panic!()
        };
        let was = mapped.break_leaf(&mut sim).was();
        sim.take_log();
        assert_eq!(
            guest.access_fault(&mut host, &mut sim, BASE),
            Ok(Access::Spurious)
        );
        assert_eq!(
            guest.tag_fault(&mut host, &mut sim, BASE),
            Ok(TagOutcome::Spurious)
        );
        assert_eq!(guest.translate(&sim, BASE), None);
        assert_eq!(sim.take_log(), [], "above all, its frame is not zeroed");
        assert_eq!(was.attr, MemAttr::NoTagAccess);
    }
}
