//! The ports of `stage2` on real hardware: table memory, TLB, caches of data and tags, frames.
//!
//! Frames are reached through EL2's linear map: data through the Untagged view (VA = PA), tags through the Tagged one
//! (S15: EL2 copies untagged). Each operation here is one step of an order that `stage2` decides.

use aarch64_cpu::asm::barrier::{ISH, ISHST, SY, dsb, isb};
use aarch64_cpu::registers::{Readable, VTTBR_EL2, Writeable};
use core::arch::global_asm;

use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE};
use stage2::descriptor::Vmid;
use stage2::ports::{FrameCopy, TableMemory, TagCache, Tlb};

use super::cpu::El2;
use super::linear::TAGGED_ALIAS;
use super::regs::instruction;

unsafe extern "C" {
    fn zero_frame(frame: *mut u8, zva_bytes: u64);
    fn copy_bytes(to: *mut u8, from: *const u8, bytes: usize);
    fn zero_frame_tags(tagged: *mut u8, step: u64);
    fn frame_tags(tagged: *const u8, step: u64) -> u64;
    fn probe_first_tag(tagged: *mut u8) -> u64;
}

/// Returns where `frame` is in EL2's data view.
pub(super) fn data_view(frame: Frame) -> *mut u8 {
    frame.addr().get() as *mut u8
}

fn tag_view(frame: Frame) -> *mut u8 {
    (frame.addr().get() + TAGGED_ALIAS) as *mut u8
}

/// Copies `bytes` into `frame` from byte `offset` on; what does not fit is left out.
pub(super) fn write_frame(frame: Frame, offset: usize, bytes: &[u8]) {
    let room = (PAGE_SIZE as usize).saturating_sub(offset);
    let length = bytes.len().min(room);
    // SAFETY: `offset + length` is within the frame, which is mapped DRAM that no Rust object lies in: frames are handed to
    // guests by `stage2`'s ownership table, which excludes all that EL2 itself uses.
    unsafe { copy_bytes(data_view(frame).add(offset), bytes.as_ptr(), length) };
}

/// Writes a tag to the first granule of `frame`, reads it back, and zeroes it.
pub(super) fn probe_tag(frame: Frame) -> bool {
    // SAFETY: the Tagged view of a taggable frame is mapped, and no guest runs yet.
    unsafe { probe_first_tag(tag_view(frame)) == 6 }
}

impl TableMemory for El2 {
    fn read(&self, table: Frame, index: usize) -> u64 {
        // SAFETY: a table frame is mapped DRAM owned by `stage2`'s tables; the index is cut to the 512 entries of a frame.
        unsafe {
            data_view(table)
                .cast::<u64>()
                .add(index & 511)
                .read_volatile()
        }
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        // SAFETY: as for `read`; entries are aligned and written whole, as the walker expects.
        unsafe {
            data_view(table)
                .cast::<u64>()
                .add(index & 511)
                .write_volatile(raw)
        };
    }

    fn clear(&mut self, table: Frame) {
        self.zero(table);
        dsb(ISHST);
    }
}

impl El2 {
    /// Runs `invalidate` with the VM of `vmid` and `root` in VTTBR_EL2, which TLBIs act on.
    fn with_vm(&self, vmid: Vmid, root: Frame, invalidate: impl FnOnce()) {
        let own = VTTBR_EL2.get();
        let victim = stage2::descriptor::vttbr(root, vmid);
        if own != victim {
            VTTBR_EL2.set(victim);
            isb(SY);
        }
        invalidate();
        if self.repeat_tlbi {
            // CVE-2025-10263: a store translated by the dying entry may land after the first DSB.
            instruction!("tlbi vale2is, xzr");
            dsb(ISH);
        }
        if own != victim {
            VTTBR_EL2.set(own);
        }
        isb(SY);
    }

    /// Applies `operation` (a cache maintenance instruction by VA) to each line of `frames` in the given view.
    pub(super) fn each_line(frames: FrameRange, view: u64, step: u64, operation: impl Fn(u64)) {
        let mut at = frames.start.addr().get() + view;
        let end = at + frames.bytes();
        while at < end {
            operation(at);
            at += step;
        }
    }
}

impl Tlb for El2 {
    fn invalidate_page(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        dsb(ISHST);
        self.with_vm(vmid, root, || {
            instruction!("tlbi ipas2e1is", ipa.get() >> 12);
            dsb(ISH);
            instruction!("tlbi vmalle1is");
            dsb(ISH);
        });
    }

    fn invalidate_vm(&mut self, vmid: Vmid, root: Frame) {
        dsb(ISHST);
        self.with_vm(vmid, root, || {
            instruction!("tlbi vmalls12e1is");
            dsb(ISH);
        });
    }

    fn publish(&mut self) {
        dsb(ISHST);
        isb(SY);
    }
}

impl TagCache for El2 {
    fn clean_invalidate_data(&mut self, frames: FrameRange) {
        Self::each_line(frames, 0, self.data_line, |at| instruction!("dc civac", at));
    }

    fn clean_invalidate_tags(&mut self, frames: FrameRange) {
        // DC CIGVAC, by its encoding: the assembler knows the name only with MTE.
        Self::each_line(frames, TAGGED_ALIAS, self.tag_line, |at| {
            instruction!("sys #3, c7, c14, #3", at)
        });
    }

    fn zero_tags(&mut self, frame: Frame) {
        // SAFETY: the Tagged view of a taggable frame is mapped; STGM writes tags only, and those of a whole frame.
        unsafe { zero_frame_tags(tag_view(frame), self.tag_step) };
    }

    fn tags_are_zero(&mut self, frame: Frame) -> bool {
        // SAFETY: as above; LDGM reads.
        unsafe { frame_tags(tag_view(frame), self.tag_step) == 0 }
    }

    fn synchronize(&mut self) {
        dsb(SY);
    }
}

impl FrameCopy for El2 {
    fn zero(&mut self, frame: Frame) {
        // SAFETY: the frame is mapped DRAM and nobody's Rust object; DC ZVA's block size divides a page.
        unsafe { zero_frame(data_view(frame), self.zva_bytes) };
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        // SAFETY: both frames are mapped DRAM and nobody's Rust objects; different frames do not overlap.
        unsafe { copy_bytes(data_view(to), data_view(from), PAGE_SIZE as usize) };
    }
}

global_asm!(
    r#"
    .arch_extension memtag
    .text
    // x0 = frame, x1 = bytes of DC ZVA, or 0 where it is prohibited
zero_frame:
    add     x2, x0, #4096
    cbz     x1, 2f
1:  dc      zva, x0
    add     x0, x0, x1
    cmp     x0, x2
    b.lo    1b
    ret
2:  stp     xzr, xzr, [x0], #16
    cmp     x0, x2
    b.lo    2b
    ret
    .globl  zero_frame

    // x0 = to, x1 = from, x2 = bytes
    .globl  copy_bytes
copy_bytes:
    subs    x2, x2, #64
    b.lo    2f
1:  ldp     x4, x5, [x1]
    ldp     x6, x7, [x1, #16]
    ldp     x8, x9, [x1, #32]
    ldp     x10, x11, [x1, #48]
    stp     x4, x5, [x0]
    stp     x6, x7, [x0, #16]
    stp     x8, x9, [x0, #32]
    stp     x10, x11, [x0, #48]
    add     x1, x1, #64
    add     x0, x0, #64
    subs    x2, x2, #64
    b.hs    1b
2:  adds    x2, x2, #64
    b.eq    4f
3:  ldrb    w4, [x1], #1
    strb    w4, [x0], #1
    subs    x2, x2, #1
    b.ne    3b
4:  ret

    // x0 = Tagged view of a frame, x1 = bytes whose tags one STGM writes
    .globl  zero_frame_tags
zero_frame_tags:
    add     x2, x0, #4096
1:  stgm    xzr, [x0]
    add     x0, x0, x1
    cmp     x0, x2
    b.lo    1b
    ret

    // x0 = Tagged view of a frame, x1 = bytes whose tags one LDGM reads; returns all tags or'ed
    .globl  frame_tags
frame_tags:
    add     x2, x0, #4096
    mov     x3, xzr
1:  ldgm    x4, [x0]
    orr     x3, x3, x4
    add     x0, x0, x1
    cmp     x0, x2
    b.lo    1b
    mov     x0, x3
    ret

    // x0 = Tagged view of a granule; returns the tag read back after writing 6
    .globl  probe_first_tag
probe_first_tag:
    orr     x1, x0, #(6 << 56)
    stg     x1, [x0]
    mov     x2, x0
    ldg     x2, [x0]
    stg     x0, [x0]
    ubfx    x0, x2, #56, #4
    ret
    .arch_extension nomemtag
"#
);
