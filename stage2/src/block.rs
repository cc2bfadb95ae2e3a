//! The states of a tag block, as one pure function.
//!
//! ```text
//! Unswept --Sweep--> Free --Lend--> Lent --BeginEvict--> Evicting --Reserve--> Reserved
//!                     ^ ^            | ^                  |                     |  ^  AddUser
//!                     | +---Return---+ +----AbortEvict----+            DropUser |  |  DropUser
//!                     +--FinishScrub-- Scrubbing <----(the last user)-----------+--+
//! Free --Reserve--> Reserved                                    Offline: never leaves
//! ```

use core::fmt;

/// The most users a block can have: what fits beside the state's code in 32 bits.
pub const MAX_USERS: u32 = (1 << 29) - 1;

/// What a tag block is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockState {
    /// Holds nothing, but a boot stage may have left dirty tag lines of its coverage.
    Unswept,
    /// Holds nothing; scrubbed.
    Free,
    /// Holds data.
    Lent,
    /// Its data is being moved elsewhere.
    Evicting,
    /// Holds the tags of its coverage.
    Reserved {
        /// Frames of the coverage with tag access, and holds of operations under way: at least 1.
        users: u32,
    },
    /// Has lost its last user, and still holds old tags.
    Scrubbing,
    /// Holds tags for ever: the block or its coverage is not all ours.
    Offline,
}

impl fmt::Display for BlockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unswept => "unswept",
            Self::Free => "free",
            Self::Lent => "lent",
            Self::Evicting => "being evicted",
            Self::Reserved { users } => return write!(f, "reserved for {users} users"),
            Self::Scrubbing => "being scrubbed",
            Self::Offline => "offline",
        })
    }
}

/// What happens to a tag block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockEvent {
    /// Tag lines of the coverage are out of the caches and the block is scrubbed, for the first
    /// time.
    Sweep,
    /// Begin to hold data.
    Lend,
    /// The last data was freed.
    Return,
    /// Begin to move the data out.
    BeginEvict,
    /// The data found no destination.
    AbortEvict,
    /// Begin to hold tags, for one user; the block is empty and maintained.
    Reserve,
    /// One more user.
    AddUser,
    /// One user less.
    DropUser,
    /// Maintained and scrubbed after the last user.
    FinishScrub,
}

/// An event that must not happen in a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadTransition {
    /// The state.
    pub from: BlockState,
    /// The event.
    pub event: BlockEvent,
}

impl fmt::Display for BadTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a tag block that is {} got {:?}", self.from, self.event)
    }
}

impl BlockState {
    /// The state after `event`.
    pub const fn after(self, event: BlockEvent) -> Result<Self, BadTransition> {
        use BlockEvent::*;
        use BlockState::*;
        Ok(match (self, event) {
            (Unswept, Sweep) => Free,
            (Free, Lend) => Lent,
            (Lent, Return) => Free,
            (Lent, BeginEvict) => Evicting,
            (Evicting, AbortEvict) => Lent,
            (Free | Evicting, Reserve) => Reserved { users: 1 },
            (Reserved { users }, AddUser) if users < MAX_USERS => Reserved { users: users + 1 },
            (Reserved { users: 1 }, DropUser) => Scrubbing,
            (Reserved { users }, DropUser) if users > 1 => Reserved { users: users - 1 },
            (Scrubbing, FinishScrub) => Free,
            (from, event) => return Err(BadTransition { from, event }),
        })
    }

    /// The state in 32 bits; [`Unswept`](Self::Unswept) is 0, so a zeroed table is a fresh one.
    pub(crate) const fn pack(self) -> u32 {
        match self {
            Self::Unswept => 0,
            Self::Free => 1 << 29,
            Self::Lent => 2 << 29,
            Self::Evicting => 3 << 29,
            Self::Reserved { users } => 4 << 29 | (users & MAX_USERS),
            Self::Scrubbing => 5 << 29,
            Self::Offline => 6 << 29,
        }
    }

    pub(crate) const fn unpack(bits: u32) -> Self {
        match bits >> 29 {
            0 => Self::Unswept,
            1 => Self::Free,
            2 => Self::Lent,
            3 => Self::Evicting,
            4 => Self::Reserved {
                users: bits & MAX_USERS,
            },
            5 => Self::Scrubbing,
            _ => Self::Offline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BlockEvent::*;
    use super::BlockState::*;
    use super::*;

    const STATES: [BlockState; 9] = [
        Unswept,
        Free,
        Lent,
        Evicting,
        Reserved { users: 1 },
        Reserved { users: 2 },
        Reserved { users: MAX_USERS },
        Scrubbing,
        Offline,
    ];
    const EVENTS: [BlockEvent; 9] = [
        Sweep,
        Lend,
        Return,
        BeginEvict,
        AbortEvict,
        Reserve,
        AddUser,
        DropUser,
        FinishScrub,
    ];

    #[test]
    fn every_state_meets_every_event() {
        let one = Some(Reserved { users: 1 });
        #[rustfmt::skip]
        let table: [[Option<BlockState>; 9]; 9] = [
            // Sweep,    Lend,       Return,     BeginEvict,     AbortEvict, Reserve, AddUser,
            // DropUser, FinishScrub
            [Some(Free), None,       None,       None,           None,       None,    None,    None,     None], // Unswept
            [None,       Some(Lent), None,       None,           None,       one,     None,    None,     None], // Free
            [None,       None,       Some(Free), Some(Evicting), None,       None,    None,    None,     None], // Lent
            [None,       None,       None,       None,           Some(Lent), one,     None,    None,     None], // Evicting
            [None, None, None, None, None, None, Some(Reserved { users: 2 }), Some(Scrubbing), None], // 1 user
            [None, None, None, None, None, None, Some(Reserved { users: 3 }), one, None],             // 2 users
            [None, None, None, None, None, None, None, Some(Reserved { users: MAX_USERS - 1 }), None], // full
            [None,       None,       None,       None,           None,       None,    None,    None,     Some(Free)], // Scrubbing
            [None,       None,       None,       None,           None,       None,    None,    None,     None], // Offline
        ];
        for (row, from) in table.into_iter().zip(STATES) {
            for (to, event) in row.into_iter().zip(EVENTS) {
                let expected = to.ok_or(BadTransition { from, event });
                assert_eq!(from.after(event), expected, "{from:?} {event:?}");
            }
        }
        let zero = Reserved { users: 0 };
        assert!(zero.after(DropUser).is_err(), "a count never goes below 0");
    }

    #[test]
    fn a_state_survives_packing_and_a_zeroed_table_is_unswept() {
        for state in STATES {
            assert_eq!(BlockState::unpack(state.pack()), state);
        }
        assert_eq!(BlockState::unpack(0), Unswept);
    }
}
