//! The states of a direction and of a connection, as words of a slot.

/// States of a sending direction, in [`TxSlot::state`](super::TxSlot::state).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum TxState {
    /// Bytes go to the kernel socket.
    Kernel = 0,
    /// Counting; only seen by others while the lock is held.
    Switching = 1,
    /// Bytes go to the ring.
    Ring = 2,
    /// Ended: the kernel answers (EPIPE, RST).
    Done = 3,
    /// The far end left its ring: bytes from `resend` on are sent once more, by the kernel.
    Returning = 4,
    /// Back in the kernel for good.
    Returned = 5,
}

/// States of a receiving direction, in [`RxSlot::state`](super::RxSlot::state).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RxState {
    /// Bytes come from the kernel socket; the ring is not looked at.
    Kernel = 0,
    /// Armed: bytes still come from the kernel, and the far end may switch at any time.
    Armed = 1,
    /// The far end switched; `kernel_left` bytes are still to be read from the kernel.
    Draining = 2,
    /// Bytes come from the ring.
    Ring = 3,
    /// The ring's stream has been read to its end: the kernel answers (EOF, errors).
    Done = 4,
    /// Back in the kernel for good.
    Returned = 5,
}

/// Where a connection stands, in [`SlotMeta::stage`](super::SlotMeta::stage).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Stage {
    /// Not in use.
    Free = 0,
    /// A peer's connection on TCP that has not yet proved worth registering.
    Candidate = 1,
    /// Registered; waiting for the far end.
    Registered = 2,
    /// Connection memory is attached.
    Attached = 3,
    /// Plain TCP for good; see `reason`.
    Plain = 4,
}

macro_rules! state_word {
    ($enum:ty, $($value:ident),+) => {
        impl $enum {
            /// The state behind a word; unknown values read as the first state.
            #[inline(always)]
            pub const fn from_word(word: u32) -> Self {
                $(if word == Self::$value as u32 { return Self::$value; })+
                Self::FIRST
            }
        }
    };
}
impl TxState {
    const FIRST: Self = Self::Kernel;
}
impl RxState {
    const FIRST: Self = Self::Kernel;
}
impl Stage {
    const FIRST: Self = Self::Free;
}
state_word!(TxState, Ring, Kernel, Switching, Done, Returning, Returned);
state_word!(RxState, Ring, Kernel, Armed, Draining, Done, Returned);
state_word!(Stage, Free, Candidate, Registered, Attached, Plain);
