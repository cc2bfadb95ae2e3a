//! The ports of `stage2` on real hardware: table memory, TLB, caches of data and tags, frames.
//!
//! Frames are reached through EL2's linear map: data through the Untagged view (VA = PA), tags through the Tagged one
//! (S15: EL2 copies untagged). Each operation here is one step of an order that `stage2` decides.

use aarch64_cpu::asm::barrier::{ISH, ISHST, SY, dsb, isb};
use aarch64_cpu::registers::{Readable, VTTBR_EL2, Writeable};
use core::arch::global_asm;

use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use stage2::descriptor::{TABLE_ENTRIES, Vmid};
use stage2::ports::{FrameCopy, TableMemory, TagCache, Tlb};

use super::cpu::El2;
use super::linear::TAGGED_ALIAS;
use super::regs::instruction;

unsafe extern "C" {
    fn dc_civac(at: u64, end: u64, step: u64);
    fn dc_cigvac(at: u64, end: u64, step: u64);
    fn dc_cvau(at: u64, end: u64, step: u64);
    fn ic_ivau(at: u64, end: u64, step: u64);
    fn dc_zva(at: u64, end: u64, step: u64);
    fn zero_words(at: u64, end: u64);
    fn copy_bytes(to: *mut u8, from: *const u8, bytes: usize);
    fn exchange_frames(one: *mut u8, other: *mut u8);
    fn zero_frame_tags(tagged: *mut u8, step: u64);
    fn copy_frame_tags(to: *mut u8, from: *const u8, step: u64);
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

/// Returns where `frames` begin and end in a view that lies `view` above physical addresses.
const fn lines(frames: FrameRange, view: u64) -> (u64, u64) {
    let at = frames.start.addr().get() + view;
    (at, at + frames.bytes())
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

    fn fill(&mut self, table: Frame, first: u64, step: u64) {
        let entries = data_view(table).cast::<u64>();
        for index in 0..TABLE_ENTRIES {
            // SAFETY: a table frame is mapped DRAM owned by `stage2`'s tables, of `TABLE_ENTRIES` entries.
            unsafe {
                entries
                    .add(index)
                    .write_volatile(first + index as u64 * step)
            };
        }
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

    fn invalidate_block(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        self.invalidate_page(vmid, root, ipa);
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
        let (at, end) = lines(frames, 0);
        // SAFETY: frames are mapped DRAM; cleaning and invalidating changes nothing that Rust sees.
        unsafe { dc_civac(at, end, self.data_line) };
    }

    fn clean_invalidate_tags(&mut self, frames: FrameRange) {
        let (at, end) = lines(frames, TAGGED_ALIAS);
        // SAFETY: the Tagged view of tagged memory is mapped; as above.
        unsafe { dc_cigvac(at, end, self.tag_line) };
    }

    fn zero_tags(&mut self, frame: Frame) {
        // SAFETY: the Tagged view of a taggable frame is mapped; STGM writes tags only, and those of a whole frame.
        unsafe { zero_frame_tags(tag_view(frame), self.tag_step) };
    }

    fn copy_tags(&mut self, from: Frame, to: Frame) {
        // SAFETY: as above, for both frames.
        unsafe { copy_frame_tags(tag_view(to), tag_view(from), self.tag_step) };
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
    fn zero_frames(&mut self, frames: FrameRange) {
        let (at, end) = lines(frames, 0);
        // SAFETY: the frames are mapped DRAM and nobody's Rust object; DC ZVA's block size divides a page.
        unsafe {
            match self.zva_bytes {
                0 => zero_words(at, end),
                step => dc_zva(at, end, step),
            }
        }
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        // SAFETY: both frames are mapped DRAM and nobody's Rust objects; different frames do not overlap.
        unsafe { copy_bytes(data_view(to), data_view(from), PAGE_SIZE as usize) };
    }

    fn copy_image(&mut self, from: PhysAddr, to: PhysAddr, bytes: u64) {
        // SAFETY: the bytes are of the bundle, which was found to be mapped and never changes; the frames are as above.
        unsafe { copy_bytes(to.get() as *mut u8, from.get() as *const u8, bytes as usize) };
    }

    fn exchange(&mut self, one: Frame, other: Frame) {
        // SAFETY: as above.
        unsafe { exchange_frames(data_view(one), data_view(other)) };
    }

    fn sync_code(&mut self, frames: FrameRange) {
        let (at, end) = lines(frames, 0);
        if !self.idc {
            // SAFETY: the frames are mapped DRAM; cleaning changes nothing that Rust sees.
            unsafe { dc_cvau(at, end, self.data_line) };
        }
        dsb(ISH);
        if !self.dic {
            if self.pipt && frames.count == 1 {
                // SAFETY: as above; invalidated instructions are fetched again.
                unsafe { ic_ivau(at, end, self.instruction_line) };
            } else {
                // The guest's addresses, under which a line may lie, are not known, or there are too many.
                instruction!("ic ialluis");
            }
            dsb(ISH);
        }
        isb(SY);
    }
}

global_asm!(
    r#"
    .arch_extension memtag
    .text

    // A function that applies an instruction to each line of whole frames: x0 = first line, x1 = end, x2 = bytes of a
    // line, a power of 2. Lines of up to 128 bytes cost 2 instructions each, and 2 for 32 of them.
    .macro  each_line name:req, operation:vararg
    .globl  \name
\name:
    cmp     x0, x1
    b.hs    3f
    cmp     x2, #128
    b.hi    2f
1:  .rept   32
    \operation, x0
    add     x0, x0, x2
    .endr
    cmp     x0, x1
    b.lo    1b
    ret
2:  \operation, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    2b
3:  ret
    .endm

    each_line dc_civac, dc civac
    // DC CIGVAC, by its encoding: the assembler knows the name only with MTE.
    each_line dc_cigvac, sys #3, c7, c14, #3
    each_line dc_cvau, dc cvau
    each_line ic_ivau, ic ivau
    each_line dc_zva, dc zva
    .purgem each_line

    // x0 = first byte, x1 = end of whole frames
    .globl  zero_words
zero_words:
    cmp     x0, x1
    b.hs    2f
1:  stp     xzr, xzr, [x0], #64
    stp     xzr, xzr, [x0, #-48]
    stp     xzr, xzr, [x0, #-32]
    stp     xzr, xzr, [x0, #-16]
    cmp     x0, x1
    b.lo    1b
2:  ret

    // x0 = to, x1 = from, x2 = bytes
    .globl  copy_bytes
copy_bytes:
    subs    x2, x2, #128
    b.lo    2f
1:  .rept   2
    ldp     x4, x5, [x1], #64
    ldp     x6, x7, [x1, #-48]
    ldp     x8, x9, [x1, #-32]
    ldp     x10, x11, [x1, #-16]
    stp     x4, x5, [x0], #64
    stp     x6, x7, [x0, #-48]
    stp     x8, x9, [x0, #-32]
    stp     x10, x11, [x0, #-16]
    .endr
    subs    x2, x2, #128
    b.hs    1b
2:  adds    x2, x2, #128
    b.eq    4f
3:  ldrb    w4, [x1], #1
    strb    w4, [x0], #1
    subs    x2, x2, #1
    b.ne    3b
4:  ret

    // x0, x1 = two frames
    .globl  exchange_frames
exchange_frames:
    ldp     x2, x3, [x0]
    ldp     x4, x5, [x0, #16]
    ldp     x6, x7, [x0, #32]
    ldp     x8, x9, [x0, #48]
    ldp     x10, x11, [x1]
    ldp     x12, x13, [x1, #16]
    ldp     x14, x15, [x1, #32]
    ldp     x16, x17, [x1, #48]
    stp     x2, x3, [x1], #64
    stp     x4, x5, [x1, #-48]
    stp     x6, x7, [x1, #-32]
    stp     x8, x9, [x1, #-16]
    stp     x10, x11, [x0], #64
    stp     x12, x13, [x0, #-48]
    stp     x14, x15, [x0, #-32]
    stp     x16, x17, [x0, #-16]
    tst     x0, #0xfff
    b.ne    exchange_frames
    ret

    // x0 = Tagged view of a frame, x1 = bytes whose tags one STGM writes: at most 256
    .globl  zero_frame_tags
zero_frame_tags:
    .rept   16
    stgm    xzr, [x0]
    add     x0, x0, x1
    .endr
    tst     x0, #0xfff
    b.ne    zero_frame_tags
    ret

    // x0, x1 = Tagged views of the frame written and of the one read, x2 = bytes whose tags one LDGM reads: at most 256
    .globl  copy_frame_tags
copy_frame_tags:
    .rept   8
    ldgm    x3, [x1]
    stgm    x3, [x0]
    add     x0, x0, x2
    add     x1, x1, x2
    .endr
    tst     x0, #0xfff
    b.ne    copy_frame_tags
    ret

    // x0 = Tagged view of a frame, x1 = bytes whose tags one LDGM reads: at most 256; returns 0 if all tags are 0
    .globl  frame_tags
frame_tags:
    mov     x3, xzr
1:  .rept   4
    ldgm    x4, [x0]
    orr     x3, x3, x4
    add     x0, x0, x1
    .endr
    cbnz    x3, 2f
    tst     x0, #0xfff
    b.ne    1b
2:  mov     x0, x3
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
