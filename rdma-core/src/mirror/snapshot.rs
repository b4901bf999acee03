//! What the program at one end says, as one backend tells it to the other.

/// What the program at one end says, as its backend tells the other.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Which of the others count: the sum of the constants below.
    pub flags: u32,
    /// [`Snapshot::BROKEN`]: a [`Reason`](crate::Reason) code.
    pub reason: u32,
    /// [`Snapshot::SWITCHED`]: bytes that the program had sent through the kernel.
    pub switch_at: u64,
    /// [`Snapshot::ENDED`]: bytes that it has sent by ring, and that is all.
    pub end_at: u64,
    /// [`Snapshot::LEFT`]: bytes that it has read from its ring, and that is all.
    pub left_at: u64,
}

impl Snapshot {
    /// The program looks at its ring when it receives.
    pub const ARMED: u32 = 1;
    /// The program sends by ring.
    pub const SWITCHED: u32 = 2;
    /// The program sends nothing more.
    pub const ENDED: u32 = 4;
    /// The program reads nothing more.
    pub const GONE: u32 = 8;
    /// The program, or its backend, wants to send by the kernel again.
    pub const ASKED: u32 = 16;
    /// The program's ring is left; nothing beyond `left_at` will be taken from it.
    pub const LEFT: u32 = 32;
    /// The connection is broken.
    pub const BROKEN: u32 = 64;
    /// Both directions are to leave the rings: the far program is to ask as well.
    pub const OFF: u32 = 128;
    /// The program sends once more, by the kernel, what lies behind the far program's `left_at`.
    pub const CONFIRMED: u32 = 256;
    /// TCP has told the program that the far program's stream is over.
    pub const DOUBTS: u32 = 512;
    /// The program has vanished, with bytes unread.
    pub const UNREAD: u32 = 1024;
    /// The program has let go of the memory and goes on by the kernel: both directions are off the rings, or it never
    /// took the memory, and they will be.
    pub const DONE: u32 = 2048;

    /// Whether `flag` is said.
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}
