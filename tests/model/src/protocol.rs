//! What EL2 does at a fault, as scripts of visible steps.
//!
//! A handler waits for the lock of `Memory`, looks at everything anew ([`Protocol::plans`]), and follows the
//! script of its [`Plan`] until the lock is released; guests on other CPUs run between any two steps. A
//! seeded [`Bug`] is looked up at the place of the rule that it breaks.

use crate::bug::Bug;
use crate::machine::{Access, BLOCKS, Block, Frame, Leaf, PAGES, Page, Vm, Who, coverage, storage};

/// What a tag block is used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockState {
    /// Nothing yet; firmware may have left dirty tag lines.
    Unswept,
    /// Nothing.
    Free,
    /// Data of a page.
    Lent,
    /// Data of a page that is on its way out.
    Evicting,
    /// Tags of so many frames.
    Reserved {
        /// Frames with tag access, and operations under way.
        users: u8,
    },
    /// Nothing any more; tags are being scrubbed.
    Scrubbing,
}

/// What a CPU comes to EL2 for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// An access to a page that has no frame.
    Fault(Page),
    /// The first tag access to a page.
    TagFault(Page),
    /// A page that the guest needs no more.
    Release(Page),
    /// A page that has not been used for long.
    Demote(Page),
    /// A page whose block has few users.
    Compact(Page),
    /// The VM's end; another begins with the same VMID.
    Reset(Vm),
}

/// How the wanted block becomes reserved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Open {
    /// It is already.
    Already,
    /// It holds nothing.
    Vacant,
    /// It holds a page that has to go elsewhere first.
    Evict {
        /// Which page.
        page: Page,
        /// Where to.
        to: Frame,
    },
}

/// What a handler found to do. The lock keeps it true.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Plan {
    /// Give a page a frame.
    Populate {
        /// Which page.
        page: Page,
        /// Which frame.
        to: Frame,
        /// Blocks (bits) never used so far.
        unswept: u8,
    },
    /// Give a page tag access.
    Tag {
        /// Which page.
        page: Page,
        /// Its frame.
        from: Frame,
        /// The frame that it is to have.
        to: Frame,
        /// The page that is there now, to be swapped with it.
        swap: Option<Page>,
        /// How its block becomes reserved.
        open: Open,
        /// Blocks (bits) never used so far.
        unswept: u8,
        /// No frame is found for what has to move: an injected failure.
        refused: bool,
    },
    /// Take a page's frame.
    Release {
        /// Which page.
        page: Page,
        /// Its entry.
        leaf: Leaf,
        /// Whether it is the last user of its block.
        last: bool,
    },
    /// Take a page's tag access, if its tags are all zero.
    Demote {
        /// Which page.
        page: Page,
        /// Its frame.
        from: Frame,
        /// Whether it is the last user of its block.
        last: bool,
        /// Whether the scan found tags.
        tags_found: bool,
    },
    /// Move a page with its tags to another reserved block.
    Compact {
        /// Which page.
        page: Page,
        /// Its frame.
        from: Frame,
        /// The frame that it is to have.
        to: Frame,
        /// Whether it is the last user of its block.
        last: bool,
    },
    /// Take all frames of a VM.
    Reset {
        /// Which VM.
        vm: Vm,
        /// The entries of all pages.
        leaves: [Option<Leaf>; PAGES],
    },
}

/// One step of a handler, that others can see or be in the way of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Take the lock of a VM ([`Bug::LockPerVm`] only).
    Lock(Vm),
    /// Release what was taken by [`Step::Lock`].
    UnlockOther(Vm),
    /// Release the lock, and enter the guest.
    Unlock,
    /// Change the state of a block.
    Block(Block, BlockState),
    /// One more user.
    AddUser(Block),
    /// One user less; the last leaves it [`BlockState::Scrubbing`].
    DropUser(Block),
    /// Remember which frame a page has.
    Own(Page, Option<Frame>),
    /// Write an entry.
    Write(Page, Option<Leaf>),
    /// DSB.
    Dsb,
    /// Load VTTBR_EL2.
    Vttbr(Vm),
    /// TLBI IPAS2E1IS.
    TlbiStage2(Page),
    /// TLBI VMALLE1IS.
    TlbiCombined,
    /// TLBI VMALLS12E1IS.
    TlbiVm,
    /// TLBI VALE2IS; DSB ISH.
    TlbiRepeat,
    /// Zero a frame.
    Zero(Frame),
    /// Copy data.
    Copy(Frame, Frame),
    /// Zero the tags of a frame.
    ZeroTags(Frame),
    /// Copy the tags of a frame.
    CopyTags(Frame, Frame),
    /// DC CIVAC on a block.
    CleanData(Block),
    /// DC CIGVAC on a frame.
    CleanTags(Frame),
    /// LDGM over a frame: the plan remembers whether tags were found.
    Scan(Frame),
    /// The guest gave up what the page held.
    Forget(Page),
    /// Another VM uses the VMID from now on.
    Restart(Vm),
}

/// The place of a step in a script: counts the steps before it.
struct Script {
    wanted: u8,
    next: u8,
    found: Option<Step>,
}

impl Script {
    fn add(&mut self, step: Step) {
        if self.next == self.wanted {
            self.found = Some(step);
        }
        self.next += 1;
    }

    fn all(&mut self, steps: impl IntoIterator<Item = Step>) {
        steps.into_iter().for_each(|step| self.add(step));
    }
}

/// The protocol, with at most one bug.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// The VMs, CPUs and pages.
    pub who: Who,
    /// What is wrong with it.
    pub bug: Option<Bug>,
}

const fn leaf(frame: Frame, access: Access) -> Option<Leaf> {
    Some(Leaf { frame, access })
}

const fn is_set(blocks: u8, block: Block) -> bool {
    blocks & 1 << block != 0
}

impl Protocol {
    /// Whether this bug is in.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The step at `at` of what a handler does for `plan` on a CPU that runs `own`.
    pub fn step(&self, plan: &Plan, own: Vm, at: u8) -> Step {
        let mut script = Script {
            wanted: at,
            next: 0,
            found: None,
        };
        self.write(&mut script, plan, own);
        script.found.unwrap_or(Step::Unlock)
    }

    fn write(&self, s: &mut Script, plan: &Plan, own: Vm) {
        match *plan {
            Plan::Populate { page, to, unswept } => self.populate(s, page, to, unswept),
            Plan::Tag { refused: true, .. } => self.refuse(s, plan, own),
            Plan::Tag { .. } => self.tag(s, plan, own),
            Plan::Release { page, leaf, last } => {
                if self.has(Bug::ReleaseBeforeBreak) {
                    self.give_back(s, leaf, last);
                    self.break_leaf(s, page, own);
                    s.add(Step::Forget(page));
                } else {
                    self.break_leaf(s, page, own);
                    s.add(Step::Forget(page));
                    self.give_back(s, leaf, last);
                }
                s.add(Step::Own(page, None));
            }
            Plan::Demote {
                page,
                from,
                last,
                tags_found,
            } => {
                let scan = !self.has(Bug::DemotionLosesTags);
                let early = self.has(Bug::ScanBeforeBreak);
                s.all((scan && early).then_some(Step::Scan(from)));
                self.break_leaf(s, page, own);
                s.all((scan && !early).then_some(Step::Scan(from)));
                if tags_found {
                    make(s, page, from, Access::Tags);
                } else {
                    self.drop_user(s, from, last);
                    make(s, page, from, Access::Data);
                }
            }
            Plan::Compact {
                page,
                from,
                to,
                last,
            } => {
                s.all(to.block().map(Step::AddUser));
                self.break_leaf(s, page, own);
                s.add(Step::Copy(from, to));
                s.add(match self.has(Bug::CompactionLosesTags) {
                    true => Step::ZeroTags(to),
                    false => Step::CopyTags(from, to),
                });
                s.all([Step::Own(page, Some(to)), Step::Dsb]);
                make(s, page, to, Access::Tags);
                self.drop_user(s, from, last);
            }
            Plan::Reset { vm, ref leaves } => self.reset(s, vm, leaves, own),
        }
        s.add(Step::Unlock);
    }

    /// Stage-2 translation fault: mark Lent, zero, wait, make.
    fn populate(&self, s: &mut Script, page: Page, to: Frame, unswept: u8) {
        self.lend(s, to, unswept);
        s.add(Step::Own(page, Some(to)));
        if !self.has(Bug::NoZero) {
            s.add(Step::Zero(to));
        }
        self.wait_for_contents(s);
        make(s, page, to, Access::Data);
    }

    /// Tag access fault: the block, then break, move, zero the tags, wait, make.
    fn tag(&self, s: &mut Script, plan: &Plan, own: Vm) {
        let &Plan::Tag {
            page,
            from,
            to,
            swap,
            open,
            unswept,
            ..
        } = plan
        else {
            return;
        };
        let early = self.has(Bug::MakeBeforeReserve);
        if !early {
            self.reserve(s, to, open, unswept, own);
        }
        // An eviction of this very page brought it to its frame.
        let from = match open {
            Open::Evict { page: victim, to } if victim == page => to,
            _ => from,
        };
        let moves = from != to;
        let copy = |s: &mut Script| {
            if swap.is_some() {
                s.add(Step::Copy(to, Frame::U));
            }
            if moves {
                s.add(Step::Copy(from, to));
            }
            if swap.is_some() {
                s.add(Step::Copy(Frame::U, from));
            }
        };
        if self.has(Bug::CopyBeforeBreak) {
            copy(s);
        }
        if !self.has(Bug::NoBreak) {
            self.break_leaf(s, page, own);
        }
        if let Some(other) = swap
            && !self.has(Bug::SwapWithoutBreak)
        {
            self.break_leaf(s, other, own);
        }
        if !self.has(Bug::CopyBeforeBreak) {
            copy(s);
        }
        let cleared = match self.has(Bug::TagsOfOldFrameCleared) {
            true => from,
            false => to,
        };
        let late_clear = self.has(Bug::TagClearAfterMake);
        let clear = (!self.has(Bug::NoTagClear)).then_some(Step::ZeroTags(cleared));
        s.all(clear.filter(|_| !late_clear));
        s.add(Step::Own(page, Some(to)));
        s.all(swap.map(|other| Step::Own(other, Some(from))));
        self.wait_for_contents(s);
        make(s, page, to, Access::Tags);
        s.all(clear.filter(|_| late_clear));
        if let Some(other) = swap {
            make(s, other, from, Access::Data);
        } else if moves && let Some(left) = from.storage() {
            s.add(Step::Block(left, BlockState::Free));
        }
        if early {
            self.reserve(s, to, open, unswept, own);
        }
    }

    /// A tag access fault for which something cannot be had. All that may fail comes first, so
    /// there is nothing to undo.
    fn refuse(&self, s: &mut Script, plan: &Plan, own: Vm) {
        let &Plan::Tag { to, open, .. } = plan else {
            return;
        };
        if self.has(Bug::HoldKeptOnRefusal) && open == Open::Already {
            s.all(to.block().map(Step::AddUser));
        }
        if self.has(Bug::AllocationAfterBreak)
            && let (Open::Evict { page, .. }, Some(block)) = (open, to.block())
        {
            s.add(Step::Block(block, BlockState::Evicting));
            self.break_leaf(s, page, own);
        }
    }

    /// Makes the block of `to` storage of its tags, with one more user.
    fn reserve(&self, s: &mut Script, to: Frame, open: Open, unswept: u8, own: Vm) {
        let Some(block) = to.block() else {
            return; // a bug mapped tag storage
        };
        if open == Open::Already {
            if !self.has(Bug::UserNotCounted) {
                s.add(Step::AddUser(block));
            }
            return;
        }
        self.sweep(s, block, unswept);
        if let Open::Evict { page, to } = open
            && !self.has(Bug::NoEviction)
        {
            s.add(Step::Block(block, BlockState::Evicting));
            self.evict(s, page, storage(block), to, unswept, own);
        }
        if !self.has(Bug::NoDataMaintenanceOnReserve) {
            s.add(Step::CleanData(block));
        }
        if !self.has(Bug::NoDsbBetweenMaintenance) {
            s.add(Step::Dsb);
        }
        if !self.has(Bug::NoTagMaintenanceOnReserve) {
            s.all(coverage(block).iter().copied().map(Step::CleanTags));
        }
        s.add(Step::Dsb);
        s.add(Step::Block(block, BlockState::Reserved { users: 1 }));
    }

    /// Moves the data of another page, perhaps another VM's, out of a block.
    fn evict(&self, s: &mut Script, page: Page, from: Frame, to: Frame, unswept: u8, own: Vm) {
        let owner = self.who.owner(page);
        let to = match self.has(Bug::EvictionInsideBlock) {
            true => from,
            false => to,
        };
        let locks = self.has(Bug::LockPerVm) && owner != own;
        s.all(locks.then_some(Step::Lock(owner)));
        self.lend(s, to, unswept);
        self.break_leaf(s, page, own);
        s.add(match self.has(Bug::ZeroInsteadOfCopy) {
            true => Step::Zero(to),
            false => Step::Copy(from, to),
        });
        s.add(Step::Own(page, Some(to)));
        self.wait_for_contents(s);
        make(s, page, to, Access::Data);
        s.all(locks.then_some(Step::UnlockOther(owner)));
    }

    /// Takes a Free block for data, if `frame` is one.
    fn lend(&self, s: &mut Script, frame: Frame, unswept: u8) {
        if let Some(block) = frame.storage() {
            if !self.has(Bug::LendUnswept) {
                self.sweep(s, block, unswept);
            }
            s.add(Step::Block(block, BlockState::Lent));
        }
    }

    /// First use: what a boot stage left goes.
    fn sweep(&self, s: &mut Script, block: Block, unswept: u8) {
        if is_set(unswept, block) {
            self.scrub(s, block);
        }
    }

    fn scrub(&self, s: &mut Script, block: Block) {
        if !self.has(Bug::NoTagMaintenanceOnRelease) {
            s.all(coverage(block).iter().copied().map(Step::CleanTags));
            s.add(Step::Dsb);
        }
        if !self.has(Bug::NoScrub) {
            s.add(Step::Zero(storage(block)));
            if !self.has(Bug::ScrubNotToPoc) {
                s.add(Step::CleanData(block));
            }
            s.add(Step::Dsb);
        }
        s.add(Step::Block(block, BlockState::Free));
    }

    /// Gives back what a page used, which nobody can reach any more.
    fn give_back(&self, s: &mut Script, leaf: Leaf, last: bool) {
        match leaf.access {
            Access::Tags => self.drop_user(s, leaf.frame, last),
            Access::Data => s.all(
                leaf.frame
                    .storage()
                    .map(|block| Step::Block(block, BlockState::Free)),
            ),
        }
    }

    /// A frame's tags go while their block is still reserved; the last user leaves it scrubbed.
    fn drop_user(&self, s: &mut Script, frame: Frame, last: bool) {
        let Some(block) = frame.block() else {
            return; // a bug mapped tag storage
        };
        if !self.has(Bug::NoTagMaintenanceOnRelease) {
            s.all([Step::CleanTags(frame), Step::Dsb]);
        }
        s.add(Step::DropUser(block));
        if self.has(Bug::UserDroppedTwice) && !last {
            s.add(Step::DropUser(block));
        }
        if last {
            self.scrub(s, block);
        }
    }

    fn reset(&self, s: &mut Script, vm: Vm, leaves: &[Option<Leaf>; PAGES], own: Vm) {
        let pages = || {
            self.who
                .pages_of(vm)
                .filter_map(|page| Some((page, leaves[page as usize]?)))
        };
        let all_back = |s: &mut Script| {
            for (page, leaf) in pages() {
                let mut later = pages().filter(|&(other, _)| other > page);
                let last = later.all(|(_, other)| {
                    other.access == Access::Data || other.frame.block() != leaf.frame.block()
                });
                self.give_back(s, leaf, last);
            }
        };
        let early = self.has(Bug::ResetGivesBackBeforeTlbi);
        s.all(pages().map(|(page, _)| Step::Write(page, None)));
        s.add(Step::Dsb);
        if early {
            all_back(s);
        }
        if !self.has(Bug::VmidReusedWithoutTlbi) {
            s.all([Step::Vttbr(vm), Step::TlbiVm, Step::Dsb]);
            self.repeat_for_erratum(s);
            s.add(Step::Vttbr(own));
        }
        s.all(pages().map(|(page, _)| Step::Forget(page)));
        if !early {
            all_back(s);
        }
        s.all(pages().map(|(page, _)| Step::Own(page, None)));
        s.add(Step::Restart(vm));
    }

    /// Entry invalid; wait; the victim's VMID; both kinds of entries; wait.
    fn break_leaf(&self, s: &mut Script, page: Page, own: Vm) {
        s.add(Step::Write(page, None));
        if !self.has(Bug::NoDsbBeforeTlbi) {
            s.add(Step::Dsb);
        }
        if self.has(Bug::NoTlbi) {
            return;
        }
        let vmid = match self.has(Bug::TlbiUnderOwnVmid) {
            true => own,
            false => self.who.owner(page),
        };
        s.add(Step::Vttbr(vmid));
        let wait = !self.has(Bug::NoDsbAfterTlbi);
        if !self.has(Bug::OnlyCombinedTlbi) {
            s.add(Step::TlbiStage2(page));
            s.all(wait.then_some(Step::Dsb));
        }
        if !self.has(Bug::OnlyStage2Tlbi) {
            s.add(Step::TlbiCombined);
            s.all(wait.then_some(Step::Dsb));
        }
        self.repeat_for_erratum(s);
        s.add(Step::Vttbr(own));
    }

    fn repeat_for_erratum(&self, s: &mut Script) {
        if self.who.erratum && !self.has(Bug::SingleTlbiWithErratum) {
            s.add(Step::TlbiRepeat);
        }
    }

    /// What was written for a page is seen by all before its entry is.
    fn wait_for_contents(&self, s: &mut Script) {
        if !self.has(Bug::MakeBeforeVisible) {
            s.add(Step::Dsb);
        }
    }

    // What there is to do.

    /// What can be done for `cause` now, one of these. None: the guest is entered again.
    pub fn plans(&self, table: &Tables, cause: Cause, homes: &Homes) -> Vec<Plan> {
        match cause {
            Cause::Fault(page) => self.plans_to_populate(table, page, homes),
            Cause::TagFault(page) => self.plans_to_tag(table, page, homes),
            Cause::Release(page) => table
                .entry(page)
                .map(|leaf| Plan::Release {
                    page,
                    leaf,
                    last: table.is_last_user(leaf),
                })
                .into_iter()
                .collect(),
            Cause::Demote(page) => table
                .tagged(page)
                .map(|from| Plan::Demote {
                    page,
                    from,
                    last: table.is_last_user_of(from),
                    tags_found: false,
                })
                .into_iter()
                .collect(),
            Cause::Compact(page) => self.plans_to_compact(table, page, homes),
            Cause::Reset(vm) => vec![Plan::Reset {
                vm,
                leaves: table.leaves,
            }],
        }
    }

    fn plans_to_populate(&self, table: &Tables, page: Page, homes: &Homes) -> Vec<Plan> {
        if table.owned[page as usize].is_some() {
            return Vec::new();
        }
        let frames = homes.of(self.who.owner(page)).filter(|&frame| {
            let lent = frame.storage().is_none_or(|block| {
                table.is_lendable(block)
                    || self.has(Bug::LendReserved)
                        && matches!(table.blocks[block as usize], BlockState::Reserved { .. })
            });
            table.is_free(frame) && lent
        });
        frames
            .map(|to| Plan::Populate {
                page,
                to,
                unswept: table.unswept(),
            })
            .collect()
    }

    fn plans_to_tag(&self, table: &Tables, page: Page, homes: &Homes) -> Vec<Plan> {
        let Some(Leaf {
            frame: from,
            access: Access::Data,
        }) = table.entry(page)
        else {
            return Vec::new(); // unmapped, or tagged by another CPU meanwhile
        };
        let mut plans = Vec::new();
        let plan = |to, swap, open, refused| Plan::Tag {
            page,
            from,
            to,
            swap,
            open,
            unswept: table.unswept(),
            refused,
        };
        if self.has(Bug::StorageMappedTagged) && from.storage().is_some() {
            return vec![plan(from, None, Open::Already, false)];
        }
        let vm = self.who.owner(page);
        let stays = from.block().is_some_and(|block| table.is_reserved(block));
        for to in homes.of(vm) {
            let Some(block) = to.block() else { continue };
            if stays && to != from {
                continue; // nothing moves where its own block is reserved
            }
            let swap = match table.owner(to) {
                Some(owner) if owner != page => Some(owner),
                _ => None,
            };
            if let Some(other) = swap
                && (self.who.owner(other) != vm
                    || table.tagged(other).is_some()
                    || !table.is_free(Frame::U)
                    || from == storage(block))
            {
                continue;
            }
            if homes.failures {
                let open = self.opens(table, page, to, swap, homes).next();
                plans.extend(open.map(|open| plan(to, swap, open, true)));
            }
            plans.extend(
                self.opens(table, page, to, swap, homes)
                    .map(|open| plan(to, swap, open, false)),
            );
        }
        plans
    }

    /// How the block of `to` can become reserved for `page`.
    fn opens(
        &self,
        table: &Tables,
        page: Page,
        to: Frame,
        swap: Option<Page>,
        homes: &Homes,
    ) -> impl Iterator<Item = Open> {
        let block = to.block().unwrap_or_default();
        let victim = table.owner(storage(block));
        let simple = match table.blocks[block as usize] {
            BlockState::Reserved { .. } => Some(Open::Already),
            BlockState::Free | BlockState::Unswept => Some(Open::Vacant),
            _ => None,
        };
        let victim = victim.filter(|_| simple.is_none());
        let destinations = Frame::ALL.into_iter().filter(move |&frame| {
            let Some(victim) = victim else { return false };
            if victim == page {
                return frame == to;
            }
            let room = frame == Frame::U && swap.is_none()
                || homes.has(self.who.owner(victim), frame) && frame != to;
            let lent = frame
                .storage()
                .is_none_or(|other| other != block && table.is_lendable(other));
            room && lent && table.is_free(frame)
        });
        let evictions: Vec<_> = destinations
            .filter_map(|to| Some(Open::Evict { page: victim?, to }))
            .collect();
        simple.into_iter().chain(evictions)
    }

    fn plans_to_compact(&self, table: &Tables, page: Page, homes: &Homes) -> Vec<Plan> {
        let Some(from) = table.tagged(page) else {
            return Vec::new();
        };
        let targets = homes.of(self.who.owner(page)).filter(|&to| {
            to.block().is_some_and(|block| table.is_reserved(block))
                && to.block() != from.block()
                && table.is_free(to)
        });
        targets
            .map(|to| Plan::Compact {
                page,
                from,
                to,
                last: table.is_last_user_of(from),
            })
            .collect()
    }
}

fn make(s: &mut Script, page: Page, frame: Frame, access: Access) {
    s.all([Step::Write(page, leaf(frame, access)), Step::Dsb]);
}

/// Which frames a VM's pages may have, and what may fail.
#[derive(Clone, Copy, Debug)]
pub struct Homes {
    /// By VM.
    pub frames: [&'static [Frame]; 2],
    /// Whether allocations may fail.
    pub failures: bool,
}

impl Homes {
    fn of(&self, vm: Vm) -> impl Iterator<Item = Frame> + use<> {
        self.frames[vm as usize].iter().copied()
    }

    fn has(&self, vm: Vm, frame: Frame) -> bool {
        self.frames[vm as usize].contains(&frame)
    }
}

/// EL2's tables, as a handler reads them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tables {
    /// The entry of each page.
    pub leaves: [Option<Leaf>; PAGES],
    /// The frame of each page; one that is being moved has one, and no entry.
    pub owned: [Option<Frame>; PAGES],
    /// The block table.
    pub blocks: [BlockState; BLOCKS],
}

impl Tables {
    fn entry(&self, page: Page) -> Option<Leaf> {
        self.leaves[page as usize]
    }

    fn tagged(&self, page: Page) -> Option<Frame> {
        let leaf = self.entry(page)?;
        (leaf.access == Access::Tags).then_some(leaf.frame)
    }

    fn owner(&self, frame: Frame) -> Option<Page> {
        let owner = self.owned.iter().position(|&owned| owned == Some(frame))?;
        Some(owner as Page)
    }

    fn is_free(&self, frame: Frame) -> bool {
        self.owner(frame).is_none()
    }

    const fn is_reserved(&self, block: Block) -> bool {
        matches!(self.blocks[block as usize], BlockState::Reserved { .. })
    }

    const fn is_lendable(&self, block: Block) -> bool {
        matches!(
            self.blocks[block as usize],
            BlockState::Free | BlockState::Unswept
        )
    }

    fn unswept(&self) -> u8 {
        (0..BLOCKS)
            .filter(|&block| self.blocks[block] == BlockState::Unswept)
            .fold(0, |all, block| all | 1 << block)
    }

    fn is_last_user(&self, leaf: Leaf) -> bool {
        leaf.access == Access::Tags && self.is_last_user_of(leaf.frame)
    }

    fn is_last_user_of(&self, frame: Frame) -> bool {
        frame
            .block()
            .is_some_and(|block| self.blocks[block as usize] == BlockState::Reserved { users: 1 })
    }
}
