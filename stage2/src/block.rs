//! The states of a tag block, as one pure function.
//!
//! ```text
//! Unswept --Sweep--> Free --Lend--> Lent --BeginEvict--> Evicting --Reserve--> Reserved
//!                     ^ ^            | ^                  |   (drained)         |  ^  AddUser
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
    /// Holds nothing that anybody needs; no dirty tag line of its coverage exists.
    Free,
    /// Holds data.
    Lent {
        /// Frames of the block that hold data: at least 1.
        frames: u32,
    },
    /// Its data is being moved elsewhere.
    Evicting {
        /// Frames of the block that still hold data; at 0 the block is drained.
        frames: u32,
    },
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
            Self::Lent { frames } => return write!(f, "lent for {frames} frames"),
            Self::Evicting { frames } => return write!(f, "being evicted, {frames} frames left"),
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
    /// One of its frames begins to hold data.
    Lend,
    /// The data of one of its frames was freed, or has moved elsewhere.
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
            (Free, Lend) => Lent { frames: 1 },
            (Lent { frames }, Lend) if frames < MAX_USERS => Lent { frames: frames + 1 },
            (Lent { frames: 1 }, Return) => Free,
            (Lent { frames }, Return) if frames > 1 => Lent { frames: frames - 1 },
            (Lent { frames }, BeginEvict) => Evicting { frames },
            (Evicting { frames }, Return) if frames > 0 => Evicting { frames: frames - 1 },
            (Evicting { frames: 0 }, AbortEvict) => Free,
            (Evicting { frames }, AbortEvict) => Lent { frames },
            (Free | Evicting { frames: 0 }, Reserve) => Reserved { users: 1 },
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
            Self::Lent { frames } => 2 << 29 | (frames & MAX_USERS),
            Self::Evicting { frames } => 3 << 29 | (frames & MAX_USERS),
            Self::Reserved { users } => 4 << 29 | (users & MAX_USERS),
            Self::Scrubbing => 5 << 29,
            Self::Offline => 6 << 29,
        }
    }

    pub(crate) const fn unpack(bits: u32) -> Self {
        let count = bits & MAX_USERS;
        match bits >> 29 {
            0 => Self::Unswept,
            1 => Self::Free,
            2 => Self::Lent { frames: count },
            3 => Self::Evicting { frames: count },
            4 => Self::Reserved { users: count },
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

    const STATES: [BlockState; 12] = [
        Unswept,
        Free,
        Lent { frames: 1 },
        Lent { frames: 2 },
        Evicting { frames: 0 },
        Evicting { frames: 1 },
        Evicting { frames: 2 },
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
        let (lent, evicting) = (
            |frames| Some(Lent { frames }),
            |frames| Some(Evicting { frames }),
        );
        let (free, user) = (Some(Free), |users| Some(Reserved { users }));
        #[rustfmt::skip]
        let table: [[Option<BlockState>; 9]; 12] = [
            // Sweep, Lend,   Return,      BeginEvict,  AbortEvict, Reserve, AddUser, DropUser,            FinishScrub
            [free,    None,    None,        None,        None,       None,    None,    None,                None], // Unswept
            [None,    lent(1), None,        None,        None,       user(1), None,    None,                None], // Free
            [None,    lent(2), free,        evicting(1), None,       None,    None,    None,                None], // Lent 1
            [None,    lent(3), lent(1),     evicting(2), None,       None,    None,    None,                None], // Lent 2
            [None,    None,    None,        None,        free,       user(1), None,    None,                None], // Evicting 0
            [None,    None,    evicting(0), None,        lent(1),    None,    None,    None,                None], // Evicting 1
            [None,    None,    evicting(1), None,        lent(2),    None,    None,    None,                None], // Evicting 2
            [None,    None,    None,        None,        None,       None,    user(2), Some(Scrubbing),     None], // 1 user
            [None,    None,    None,        None,        None,       None,    user(3), user(1),             None], // 2 users
            [None,    None,    None,        None,        None,       None,    None,    user(MAX_USERS - 1), None], // full
            [None,    None,    None,        None,        None,       None,    None,    None,                free], // Scrubbing
            [None,    None,    None,        None,        None,       None,    None,    None,                None], // Offline
        ];
        for (row, from) in table.into_iter().zip(STATES) {
            for (to, event) in row.into_iter().zip(EVENTS) {
                let expected = to.ok_or(BadTransition { from, event });
                assert_eq!(from.after(event), expected, "{from:?} {event:?}");
            }
        }
        let zero = Reserved { users: 0 };
        assert!(zero.after(DropUser).is_err(), "a count never goes below 0");
        let zero = Lent { frames: 0 };
        assert!(zero.after(Return).is_err(), "a count never goes below 0");
    }

    #[test]
    fn a_state_survives_packing_and_a_zeroed_table_is_unswept() {
        for state in STATES {
            assert_eq!(BlockState::unpack(state.pack()), state);
        }
        assert_eq!(BlockState::unpack(0), Unswept);
    }
}
