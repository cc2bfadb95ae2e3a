//! The first instructions: Linux `Image` header, checks of what the boot loader left, the early map, relocation, caches and
//! MMU on. No Rust runs before that (atomics need cacheable memory). Then the same for a CPU that firmware starts for us.
//!
//! Boot protocol: Linux arm64 `booting.rst` (x0 = physical address of the DTB, MMU off); entered as an ELF (x0 without a DTB)
//! the DTB is looked for at the image's address rounded down to 1 GiB, where QEMU puts it.

use core::arch::global_asm;
use core::mem::offset_of;

use super::secondary::Start;

/// Where a message goes before any DTB has named a UART: the PL011 of QEMU's virt machine.
pub const FALLBACK_UART: u64 = 0x0900_0000;

/// MAIR_EL2: 0 Device-nGnRE, 1 Normal write-back, 2 Normal write-back Tagged (DDI 0487, D24.2.118).
pub const MAIR: u64 = 0x00f0_ff04;

/// TCR_EL2 less PS: 48-bit VA (T0SZ = 16), write-back inner-shareable walks, 4 KiB granule, RES1 bits 31 and 23.
pub const TCR: u64 = (1 << 31) | (1 << 23) | (3 << 12) | (1 << 10) | (1 << 8) | 16;

/// SCTLR_EL2: RES1 bits (29, 28, 23, 22, 18, 16, 11, 5, 4) and M, C, SA, I.
pub const SCTLR: u64 = 0x30c5_0830 | 1 | (1 << 2) | (1 << 3) | (1 << 12);

/// A 2 MiB block: AF, inner shareable, AttrIndx 1, AP\[1\] RES1, valid.
const EARLY_BLOCK: u64 = (1 << 10) | (3 << 8) | (1 << 6) | (1 << 2) | 1;

/// 4 KiB pages for the early map: level 0, two of level 1, four of level 2, one spare.
const EARLY_TABLES: usize = 8;

global_asm!(
    r#"
    .section .head.text, "ax"
    .globl _head
_head:
    b       _start
    .long   0
    .quad   0                       // text_offset
    .quad   _image_size
    .quad   0xa                     // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0
    // Until the vectors are set: a synchronous exception of EL2 (x0 may point nowhere) comes to VBAR_EL2 = _head + 0x200.
    .org    0x200
    b       early_fault

    .text
_start:
    msr     daifset, #15
    msr     spsel, #1
    mov     x19, x0
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    wrong_el
    mrs     x0, sctlr_el2
    tbnz    x0, #0, mmu_is_on
    mov     x0, #(1 << 31)          // RW: EL1 is AArch64; E2H, TGE and all traps off
    msr     hcr_el2, x0
    isb
    mrs     x0, hcr_el2
    tbnz    x0, #34, e2h_is_fixed
    adrp    x0, _head
    msr     vbar_el2, x0
    isb

    // The DTB: x0; if that is 0, the start of the GiB this image lies in. 0 if there is none.
    movz    w2, #0x0dd0
    movk    w2, #0xedfe, lsl #16
    cbnz    x19, 1f
    adrp    x19, _head
    and     x19, x19, #~((1 << 30) - 1)
1:  tst     x19, #7
    csel    x19, x19, xzr, eq
    cbz     x19, 2f
    ldr     w1, [x19]
    cmp     w1, w2
    csel    x19, x19, xzr, eq
2:
    // Early identity map: the image's and the DTB's 2 MiB blocks, write-back.
    adrp    x20, early_tables
    add     x21, x20, #({tables} * 4096)
    mov     x0, x20
3:  stp     xzr, xzr, [x0], #16
    cmp     x0, x21
    b.lo    3b
    mov     x22, x20                // level 0
    add     x20, x20, #4096         // next free page
    adrp    x23, _image_start
    adrp    x24, _image_end
4:  mov     x0, x23
    bl      map_early_block
    add     x23, x23, #(1 << 21)
    and     x23, x23, #~((1 << 21) - 1)
    cmp     x23, x24
    b.lo    4b
    cbz     x19, 5f
    mov     x0, x19
    bl      map_early_block
    ldr     w1, [x19, #4]           // totalsize, big endian; 2 MiB at the most is believed
    rev     w1, w1
    mov     w2, #(1 << 21)
    cmp     w1, w2
    csel    w1, w1, w2, lo
    mov     w2, #{header}           // a header at the least
    cmp     w1, w2
    csel    w1, w1, w2, hi
    add     x0, x19, x1
    sub     x0, x0, #1
    bl      map_early_block
5:
    // Lines of these pages that were cached before the stores above are stale.
    adrp    x0, early_tables
6:  dc      ivac, x0
    add     x0, x0, #16
    cmp     x0, x21
    b.lo    6b
    dsb     sy

    mov     x0, x22
    bl      enable_mmu

    // .bss, then relocation: RELA (R_AARCH64_RELATIVE) and RELR, both against the load address.
    adrp    x0, _bss_start
    adrp    x1, _bss_end
7:  cmp     x0, x1
    b.hs    8f
    stp     xzr, xzr, [x0], #16
    b       7b
8:  adrp    x23, _head
    adrp    x0, _rela_start
    add     x0, x0, :lo12:_rela_start
    adrp    x1, _rela_end
    add     x1, x1, :lo12:_rela_end
9:  cmp     x0, x1
    b.hs    10f
    ldp     x2, x3, [x0]
    ldr     x4, [x0, #16]
    add     x0, x0, #24
    cmp     w3, #1027               // R_AARCH64_RELATIVE
    b.ne    9b
    add     x4, x4, x23
    str     x4, [x23, x2]
    b       9b
10: adrp    x0, _relr_start
    add     x0, x0, :lo12:_relr_start
    adrp    x1, _relr_end
    add     x1, x1, :lo12:_relr_end
    // Even entry: an address, relocated. Odd entry: a bitmap of the 63 words behind it.
11: cmp     x0, x1
    b.hs    15f
    ldr     x2, [x0], #8
    tbnz    x2, #0, 12f
    add     x4, x23, x2
    ldr     x3, [x4]
    add     x3, x3, x23
    str     x3, [x4], #8
    b       11b
12: mov     x5, x4
13: lsr     x2, x2, #1
    cbz     x2, 14f
    tbz     x2, #0, 131f
    ldr     x3, [x5]
    add     x3, x3, x23
    str     x3, [x5]
131:add     x5, x5, #8
    b       13b
14: add     x4, x4, #(63 * 8)
    b       11b
15:
    adrp    x0, _boot_stack_top
    mov     sp, x0
    adrp    x0, _emergency_stack_top
    msr     tpidr_el2, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el2, x0
    isb
    mov     x0, x19
    mov     x1, x23
    mov     x29, xzr
    mov     x30, xzr
    bl      {start}
    b       park

// x0 = level 0: MMU and caches on. Uses x0 to x3.
enable_mmu:
    ldr     x1, ={mair}
    msr     mair_el2, x1
    ldr     x1, ={tcr}
    mrs     x2, id_aa64mmfr0_el1
    and     x2, x2, #15
    mov     x3, #5                  // 48 bits at the most
    cmp     x2, x3
    csel    x2, x2, x3, lo
    orr     x1, x1, x2, lsl #16
    msr     tcr_el2, x1
    msr     ttbr0_el2, x0
    tlbi    alle2
    tlbi    alle1                   // entries that an earlier owner of EL2 left under our VMIDs
    ic      iallu
    dsb     nsh
    isb
    ldr     x1, ={sctlr}
    msr     sctlr_el2, x1
    isb
    ret

// Where firmware starts another CPU: x0 = its `Start`, in memory; MMU off.
    .globl  secondary_entry
secondary_entry:
    msr     daifset, #15
    msr     spsel, #1
    mov     x19, x0
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    park
    mov     x0, #(1 << 31)          // RW, as above
    msr     hcr_el2, x0
    isb
    mrs     x0, hcr_el2
    tbnz    x0, #34, leave
    ldr     x0, [x19, #{root}]
    bl      enable_mmu
    // The stacks are for one CPU: for the first that comes, and comes in time.
    add     x0, x19, #{claim}
    mov     w1, #{claimed}
1:  ldaxr   w2, [x0]
    cbnz    w2, leave
    stlxr   w2, w1, [x0]
    cbnz    w2, 1b
    ldr     x0, [x19, #{stack}]
    mov     sp, x0
    ldr     x0, [x19, #{fault_stack}]
    msr     tpidr_el2, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el2, x0
    isb
    mov     x0, x19
    mov     x29, xzr
    mov     x30, xzr
    bl      {secondary}
leave:
    movz    w0, #0x8400, lsl #16    // PSCI CPU_OFF
    movk    w0, #2
    smc     #0
    b       park

// x0 = an address: maps its 2 MiB block. Uses x0 to x5; x20 = next free page, x22 = level 0.
map_early_block:
    and     x0, x0, #~((1 << 21) - 1)
    mov     x2, x22
    ubfx    x3, x0, #39, #9
    ldr     x4, [x2, x3, lsl #3]
    cbnz    x4, 1f
    orr     x4, x20, #3
    str     x4, [x2, x3, lsl #3]
    add     x20, x20, #4096
1:  and     x2, x4, #0x0000fffffffff000
    ubfx    x3, x0, #30, #9
    ldr     x4, [x2, x3, lsl #3]
    cbnz    x4, 2f
    orr     x4, x20, #3
    str     x4, [x2, x3, lsl #3]
    add     x20, x20, #4096
2:  and     x2, x4, #0x0000fffffffff000
    ubfx    x3, x0, #21, #9
    ldr     x4, ={block}
    orr     x4, x4, x0
    str     x4, [x2, x3, lsl #3]
    ret

wrong_el:
    adr     x0, 1f
    b       complain
1:  .asciz  "[tagvisor] FATAL entered below or above EL2: start it at EL2 (QEMU: -M virt,virtualization=on)\r\n"
    .balign 4
mmu_is_on:
    adr     x0, 1f
    b       complain
1:  .asciz  "[tagvisor] FATAL entered with the MMU on: boot it as a Linux Image (MMU off), not as an EFI program\r\n"
    .balign 4
e2h_is_fixed:
    adr     x0, 1f
    b       complain
1:  .asciz  "[tagvisor] FATAL this CPU fixes HCR_EL2.E2H to 1: tagvisor needs FEAT_E2H0\r\n"
    .balign 4
early_fault:
    adr     x0, 1f
    b       complain
1:  .asciz  "[tagvisor] FATAL exception before the MMU was on: x0 must be the device tree's address, or 0\r\n"
    .balign 4
complain:
    mov     x1, #{uart}
1:  ldrb    w2, [x0], #1
    cbz     w2, park
    str     w2, [x1]
    b       1b
    .globl  park
park:
    wfi
    b       park

    .section .early_tables, "aw", %nobits
    .balign 4096
early_tables:
    .space  {tables} * 4096
    .text
"#,
    tables = const EARLY_TABLES,
    header = const platform::fdt::HEADER_BYTES,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    block = const EARLY_BLOCK,
    uart = const FALLBACK_UART,
    start = sym super::rust_entry,
    secondary = sym super::secondary::secondary_rust_entry,
    root = const offset_of!(Start, root),
    stack = const offset_of!(Start, stack),
    fault_stack = const offset_of!(Start, fault_stack),
    claim = const offset_of!(Start, claim),
    claimed = const super::secondary::CLAIMED,
);
