//! Address types: host physical, guest physical (IPA), and 4 KiB host frames.
//!
//! There is no conversion between host and guest addresses: only a VM's tables relate them. A
//! [`Frame`] is aligned because it cannot be built otherwise.

use alloc::vec::Vec;
use core::fmt;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page: the stage-2 granule.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// A host physical byte address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `raw`.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pa:{:#x}", self.0)
    }
}

impl fmt::LowerHex for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A guest physical byte address (an intermediate physical address). A guest's allegation until
/// [`GuestMemory`](crate::guest::GuestMemory) has looked at it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipa(u64);

impl Ipa {
    /// The address `raw`.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first byte of this address's page.
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }

    /// The address `bytes` further on, `None` past the end of the number space.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

impl fmt::Debug for Ipa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ipa:{:#x}", self.0)
    }
}

impl fmt::LowerHex for Ipa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A 4 KiB host frame, by frame number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(u64);

impl Frame {
    /// The frame of number `number`.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The frame that starts at `pa`; `None` if `pa` is not aligned to 4 KiB.
    pub const fn from_addr(pa: PhysAddr) -> Option<Self> {
        if pa.0.is_multiple_of(PAGE_SIZE) {
            Some(Self(pa.0 >> PAGE_SHIFT))
        } else {
            None
        }
    }

    /// The frame that holds the byte at `pa`.
    pub const fn containing(pa: PhysAddr) -> Self {
        Self(pa.0 >> PAGE_SHIFT)
    }

    /// The address of the frame's first byte.
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }

    /// The frame number: the address divided by 4 KiB.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The frame `frames` further on. Frame numbers have 12 bits to spare, so sums of checked
    /// ranges cannot wrap.
    pub const fn plus(self, frames: u64) -> Self {
        Self(self.0 + frames)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame:{:#x}", self.addr().0)
    }
}

/// A run of host frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRange {
    /// The first frame.
    pub start: Frame,
    /// How many frames.
    pub count: u64,
}

impl From<Frame> for FrameRange {
    fn from(frame: Frame) -> Self {
        Self::new(frame, 1)
    }
}

impl FrameRange {
    /// The run of `count` frames from `start`.
    pub const fn new(start: Frame, count: u64) -> Self {
        Self { start, count }
    }

    /// The run between two frames, empty if `end` is not above `start`.
    pub const fn between(start: Frame, end: Frame) -> Self {
        Self {
            start,
            count: end.0.saturating_sub(start.0),
        }
    }

    /// The frame after the last one.
    pub const fn end(self) -> Frame {
        Frame(self.start.0 + self.count)
    }

    /// Bytes in the run.
    pub const fn bytes(self) -> u64 {
        self.count * PAGE_SIZE
    }

    /// Whether the run holds no frame.
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Whether `frame` lies in the run.
    pub const fn contains(self, frame: Frame) -> bool {
        frame.0 >= self.start.0 && frame.0 - self.start.0 < self.count
    }

    /// The frames that both runs hold.
    pub fn intersect(self, other: Self) -> Self {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }

    /// What is left of the run below and above `hole`; both parts may be empty.
    pub fn without(self, hole: Self) -> (Self, Self) {
        (
            Self::between(self.start, self.end().min(hole.start)),
            Self::between(self.start.max(hole.end()), self.end()),
        )
    }

    /// Each frame in order.
    pub fn iter(self) -> impl Iterator<Item = Frame> {
        (self.start.0..self.start.0 + self.count).map(Frame)
    }
}

/// A range of host physical bytes that does not wrap.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PhysRange {
    base: PhysAddr,
    bytes: u64,
}

impl PhysRange {
    /// The range of `bytes` from `base`; `None` if its end is not a 64-bit number.
    pub const fn new(base: PhysAddr, bytes: u64) -> Option<Self> {
        match base.0.checked_add(bytes) {
            Some(_) => Some(Self { base, bytes }),
            None => None,
        }
    }

    /// The first byte.
    pub const fn base(self) -> PhysAddr {
        self.base
    }

    /// The length in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The byte after the last one.
    pub const fn end(self) -> PhysAddr {
        PhysAddr(self.base.0 + self.bytes)
    }

    /// Whether the two ranges share a byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.base.max(other.base) < self.end().min(other.end())
    }

    /// The frames that lie wholly inside.
    pub const fn inner_frames(self) -> FrameRange {
        let start = self.base.0.div_ceil(PAGE_SIZE);
        FrameRange::between(Frame(start), Frame::containing(self.end()))
    }

    /// The frames that hold at least one byte of the range.
    pub const fn outer_frames(self) -> FrameRange {
        if self.bytes == 0 {
            return FrameRange::new(Frame::containing(self.base), 0);
        }
        let end = self.end().0.div_ceil(PAGE_SIZE);
        FrameRange::between(Frame::containing(self.base), Frame(end))
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.base.0, self.end().0)
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The least common multiple, `None` if it is no 64-bit number or if a factor is 0.
pub const fn lcm(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    if x == 0 || a == 0 || b == 0 {
        None
    } else {
        (a / x).checked_mul(b)
    }
}

/// A table of `count` entries, `None` if the heap has no room: its size comes from a device tree or
/// a configuration, and a large one must not end the hypervisor.
pub(crate) fn try_filled<T: Clone>(entry: T, count: u64) -> Option<Vec<T>> {
    let count = usize::try_from(count).ok()?;
    let mut table = Vec::new();
    table.try_reserve_exact(count).ok()?;
    table.resize(count, entry);
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, bytes: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(base), bytes).unwrap()
    }

    #[test]
    fn a_frame_is_built_only_from_an_aligned_address() {
        assert_eq!(Frame::from_addr(PhysAddr::new(0x1001)), None);
        let frame = Frame::from_addr(PhysAddr::new(0x4000_1000)).unwrap();
        assert_eq!(frame.addr().get(), 0x4000_1000);
        assert_eq!(Frame::containing(PhysAddr::new(0x4000_1fff)), frame);
    }

    #[test]
    fn a_range_that_wraps_is_not_built() {
        assert!(PhysRange::new(PhysAddr::new(u64::MAX), 1).is_none());
        assert!(PhysRange::new(PhysAddr::new(u64::MAX), 0).is_some());
        assert!(Ipa::new(u64::MAX).checked_add(1).is_none());
    }

    #[test]
    fn frames_are_rounded_in_for_what_we_own_and_out_for_what_we_must_not_touch() {
        let bytes = range(0x1800, 0x2000);
        assert_eq!(bytes.inner_frames(), FrameRange::new(Frame(2), 1));
        assert_eq!(bytes.outer_frames(), FrameRange::new(Frame(1), 3));
        assert_eq!(range(0x1800, 0x10).inner_frames().count, 0);
        assert_eq!(range(0x1800, 0).outer_frames().count, 0);
        assert_eq!(range(u64::MAX - 0xfff, 0xfff).outer_frames().count, 1);
    }

    #[test]
    fn a_hole_splits_a_run_in_two() {
        let run = FrameRange::new(Frame(10), 10);
        let (low, high) = run.without(FrameRange::new(Frame(12), 3));
        assert_eq!(
            (low, high),
            (FrameRange::new(Frame(10), 2), FrameRange::new(Frame(15), 5))
        );
        let (low, high) = run.without(FrameRange::new(Frame(0), 100));
        assert!(low.is_empty() && high.is_empty());
        let (low, high) = run.without(FrameRange::new(Frame(30), 1));
        assert_eq!((low.count, high.count), (10, 0));
    }

    #[test]
    fn lcm_of_a_page_and_any_block_size() {
        assert_eq!(lcm(4096, 1), Some(4096));
        assert_eq!(lcm(4096, 16), Some(4096));
        assert_eq!(lcm(4096, 0x3000), Some(0x3000));
        assert_eq!(lcm(4096, 4097), Some(4096 * 4097));
        assert_eq!(lcm(4096, 0), None);
        assert_eq!(lcm(u64::MAX, u64::MAX - 1), None);
    }
}
