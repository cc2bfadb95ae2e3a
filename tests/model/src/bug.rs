//! The bugs that can be seeded, one at a time.

/// A mistake in the protocol. Each is looked up where the rule that it breaks is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bug {
    // TLBs.
    /// A broken entry is not invalidated.
    NoTlbi,
    /// TLBIs without IS: other CPUs keep the entry.
    LocalTlbi,
    /// TLBIs with our own VMID loaded instead of the victim's.
    TlbiUnderOwnVmid,
    /// IPAS2E1IS alone: combined entries stay.
    OnlyStage2Tlbi,
    /// VMALLE1IS alone: entries of stage 2 stay.
    OnlyCombinedTlbi,
    /// TLBI before the invalid entry is published.
    NoDsbBeforeTlbi,
    /// What was translated by the entry is not waited for.
    NoDsbAfterTlbi,
    /// The erratum's repeated TLBI is left out.
    SingleTlbiWithErratum,
    /// A valid entry replaces a valid one.
    NoBreak,
    /// A VM ends and its VMID is used again without a TLBI.
    VmidReusedWithoutTlbi,
    /// A VM's blocks are given back before its TLBI.
    ResetGivesBackBeforeTlbi,

    // Order of steps.
    /// Data is copied while the guest can still write it.
    CopyBeforeBreak,
    /// The entry gets tag access before the block is reserved.
    MakeBeforeReserve,
    /// The tags of a fresh page are not zeroed.
    NoTagClear,
    /// The tags are zeroed when the guest can use them already.
    TagClearAfterMake,
    /// The entry is made before what it shows was waited for.
    MakeBeforeVisible,
    /// The block is given back, then the entry broken.
    ReleaseBeforeBreak,

    // Caches and contents.
    /// Data lines of a block stay when it is reserved.
    NoDataMaintenanceOnReserve,
    /// Tag lines of the coverage stay when its block is reserved.
    NoTagMaintenanceOnReserve,
    /// Tag lines go out together with the data lines, no DSB between.
    NoDsbBetweenMaintenance,
    /// Tag lines stay when a block is given back.
    NoTagMaintenanceOnRelease,
    /// A block is given back with tags in it.
    NoScrub,
    /// A block is zeroed in the caches only.
    ScrubNotToPoc,
    /// A page is given what its frame held before.
    NoZero,

    // Which frame.
    /// A block is lent as firmware left it.
    LendUnswept,
    /// A block that holds tags is lent.
    LendReserved,
    /// A page in tag storage gets tag access where it is.
    StorageMappedTagged,
    /// A block is reserved with the page that is in it left there.
    NoEviction,
    /// The page is moved within the block that it is in the way of.
    EvictionInsideBlock,

    // Moves.
    /// The other page of a swap stays mapped meanwhile.
    SwapWithoutBreak,
    /// An evicted page's new frame is zeroed, not filled.
    ZeroInsteadOfCopy,
    /// The tags of the frame that the page left are zeroed, not those of its new one.
    TagsOfOldFrameCleared,
    /// Compaction leaves the tags behind.
    CompactionLosesTags,
    /// Demotion does not look at the tags.
    DemotionLosesTags,
    /// Demotion looks at the tags while the guest can still write them.
    ScanBeforeBreak,

    // What was seen before the lock was taken.
    /// A page that the guest's walk found invalid is vacant, even if only broken for a move.
    BusyTakenForVacant,
    /// A frame that was free when the fault was taken is given without a second look.
    FrameChosenBeforeLock,
    /// A tag access fault does what seemed right when it was taken.
    NoRevalidation,

    // Counting.
    /// A reserved block does not count another user.
    UserNotCounted,
    /// A user leaves twice.
    UserDroppedTwice,
    /// A refused fault keeps its user of the block.
    HoldKeptOnRefusal,
    /// The destination of an eviction is looked for when its page is broken already.
    AllocationAfterBreak,

    // Locks.
    /// A lock per VM, one's own held while the other's page is evicted.
    LockPerVm,
    /// The lock goes to any CPU that waits.
    UnfairLock,
    /// What to do is found under the lock, and done under the lock taken anew, if still right.
    RetryOutsideLock,
}

impl Bug {
    /// All bugs, in the order of their declaration.
    pub const ALL: [Self; 45] = [
        Self::NoTlbi,
        Self::LocalTlbi,
        Self::TlbiUnderOwnVmid,
        Self::OnlyStage2Tlbi,
        Self::OnlyCombinedTlbi,
        Self::NoDsbBeforeTlbi,
        Self::NoDsbAfterTlbi,
        Self::SingleTlbiWithErratum,
        Self::NoBreak,
        Self::VmidReusedWithoutTlbi,
        Self::ResetGivesBackBeforeTlbi,
        Self::CopyBeforeBreak,
        Self::MakeBeforeReserve,
        Self::NoTagClear,
        Self::TagClearAfterMake,
        Self::MakeBeforeVisible,
        Self::ReleaseBeforeBreak,
        Self::NoDataMaintenanceOnReserve,
        Self::NoTagMaintenanceOnReserve,
        Self::NoDsbBetweenMaintenance,
        Self::NoTagMaintenanceOnRelease,
        Self::NoScrub,
        Self::ScrubNotToPoc,
        Self::NoZero,
        Self::LendUnswept,
        Self::LendReserved,
        Self::StorageMappedTagged,
        Self::NoEviction,
        Self::EvictionInsideBlock,
        Self::SwapWithoutBreak,
        Self::ZeroInsteadOfCopy,
        Self::TagsOfOldFrameCleared,
        Self::CompactionLosesTags,
        Self::DemotionLosesTags,
        Self::ScanBeforeBreak,
        Self::BusyTakenForVacant,
        Self::FrameChosenBeforeLock,
        Self::NoRevalidation,
        Self::UserNotCounted,
        Self::UserDroppedTwice,
        Self::HoldKeptOnRefusal,
        Self::AllocationAfterBreak,
        Self::LockPerVm,
        Self::UnfairLock,
        Self::RetryOutsideLock,
    ];
}
