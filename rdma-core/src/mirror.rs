//! A backend's side of a relayed connection: the far program's words, as they are heard over a link, are
//! written into the memory that the near program shares with its backend, and the near program's words
//! are told to the far backend.
//!
//! ```text
//!  near program  <== connection memory ==>  near backend  --- link ---  far backend  <==>  far program
//!                                            Mirror                      Mirror
//!     up:   the near program's ring, which the far program will read
//!     down: the far program's bytes, placed into the ring that the near program reads
//! ```
//!
//! What an end says is a [`Snapshot`]. It only ever grows, so the newest replaces all older ones, and it
//! may be told again at any time. The near ring keeps its bytes until the far *program* has read them.
//!
//! A direct connection decides between contrary wishes of its two ends by one word that both write
//! ([`crate::handshake::Route`]). Over a link that word exists twice, so one copy decides: the *reader's*. A
//! sender's switch is never shown as accepted, so a sender that wants to go back to the kernel takes its
//! switch back ([`Route::Retracted`]) and waits. The far backend then answers where the reader has left or
//! will leave the ring, and the near one [grants](EndState::grant) it: the program sends what lies behind
//! that byte once more, by the kernel, as it would if the reader had left by itself.
//!
//! A backend that takes a connection off the ring makes each sender ask, its own and, by way of the far backend, the
//! other one: who has asked waits for the answer before it ends. A sender that has ended already asks nothing, and its
//! ring is read to the end. A reader that was made to leave without that might leave bytes behind that nobody
//! sends again.
//!
//! A reader that leaves its ring by itself counts on its sender for what lies behind, but the sender may have sent its
//! last byte and be gone when it hears of that. One word decides as well, in the sender's memory: either the far
//! backend [grants](EndState::grant) first and the sender sees that before its FIN, or the sender has
//! [finished](EndState::finish). The far backend says which: [`Snapshot::CONFIRMED`], or the connection is broken. Until then
//! the reader takes no end of the kernel's stream for the end.
//!
//! Nothing that a program writes is believed further than that program's own connection.

mod bytes;
#[cfg(not(loom))]
mod carry;
mod ending;
mod hear;
mod look;
mod snapshot;

#[cfg(not(loom))]
pub use carry::Carried;
pub use look::Look;
pub use snapshot::Snapshot;

use crate::event::{WaitFor, WaitRef};
use crate::handshake::Route;
use crate::layout::{ConnView, EndState};
use crate::ring::{Consumer, Corrupt, RxCursor, TxCursor};
use crate::sync::Ordering;

/// See the module documentation.
#[derive(Debug)]
pub struct Mirror {
    view: ConnView,
    up: RxCursor,
    up_base: u64,
    down: TxCursor,
    /// End of what was placed furthest, published or not.
    placed: u64,
    said: Snapshot,
    heard: Snapshot,
    up_over: bool,
    down_over: bool,
    gone: bool,
    done: bool,
    asks: bool,
    who: WaitRef,
    /// The program wakes us when it has read.
    waits_for_space: bool,
    /// Nothing is put into the program's ring now.
    kept_empty: bool,
    cpu: u32,
}

impl Mirror {
    /// The backend's side of `view`, which is the connection as the backend's end sees it. `waits`: how the
    /// program wakes the backend.
    ///
    /// The memory may have been in use before: after a restart of the backend, positions are taken from it
    /// as far as they make sense.
    ///
    /// # Errors
    /// They make none.
    pub fn new(view: ConnView, waits: WaitRef) -> Result<Self, Corrupt> {
        let entries = &view.mine.waits;
        // A backend before us may have left its own, or died between an entry and its count.
        entries.clear();
        entries.enter(WaitFor::Data, waits);
        let published = view.tx_words.tail.load(Ordering::Acquire);
        let mut mirror = Self {
            up: RxCursor {
                head: view.mine.consumer.head.load(Ordering::Acquire),
                tail: 0,
            },
            up_base: 0,
            down: TxCursor {
                tail: published,
                head: 0,
                base: view.tx_words.base.load(Ordering::Acquire),
            },
            placed: published,
            said: Snapshot::default(),
            heard: Snapshot::default(),
            up_over: view.theirs.state.route() == Route::Retracted && view.mine.state.is_granted(),
            down_over: view.mine.state.route() >= Route::Returned,
            gone: false,
            done: false,
            asks: false,
            who: waits,
            waits_for_space: false,
            kept_empty: false,
            cpu: 0,
            view,
        };
        mirror.up.tail = mirror.up.head;
        let head = view.theirs.consumer.head.load(Ordering::Acquire);
        if mirror.down.base > head || head > published {
            return Err(Corrupt::Head {
                head,
                seen: mirror.down.base,
                tail: published,
            });
        }
        mirror.down.head = head;
        Ok(mirror)
    }

    /// As [`Mirror::new`], after a restart of the backend. What the far backend may have heard of the program
    /// before is told again.
    ///
    /// # Errors
    /// As there.
    pub fn resumed(view: ConnView, waits: WaitRef) -> Result<Self, Corrupt> {
        let mut mirror = Self::new(view, waits)?;
        let program = mirror.program();
        if !mirror.up_over
            && matches!(
                program.route(),
                Route::Switched | Route::Retracted | Route::Finished
            )
        {
            // Even if the far backend has not heard of it: it says then that nothing was read.
            mirror.say(Snapshot::SWITCHED);
            mirror.said.switch_at = program.switch_at.load(Ordering::Relaxed);
        }
        if mirror.down_over && mirror.own().route() == Route::Returned {
            let at = mirror.own().returned_at().unwrap_or(0);
            if at > mirror.down.tail {
                return Err(mirror.nonsense(at));
            }
            mirror.leave_at(at);
        }
        Ok(mirror)
    }

    /// Bytes that each ring holds.
    pub fn capacity(&self) -> u64 {
        Consumer::of(&self.view).capacity()
    }

    /// What the program has said so far.
    pub const fn said(&self) -> Snapshot {
        self.said
    }

    /// Where the two directions stand: bytes of the program's ring that the far program has read, and bytes
    /// that the program was given.
    pub const fn positions(&self) -> (u64, u64) {
        (self.up.head, self.down.tail)
    }

    /// How many bytes of the far program's there are, and how many the program has read.
    pub const fn taken(&self) -> (u64, u64) {
        (self.down.tail, self.down.head)
    }

    /// Whether the far backend may have been given the program's bytes up to `received`, and its program have
    /// read them up to `consumed`. Call after a [look](Mirror::look).
    pub const fn may_have_sent(&self, received: u64, consumed: u64) -> bool {
        self.up_over || self.up.head <= consumed && consumed <= received && received <= self.up.tail
    }

    /// The backend runs on this processor, plus one; 0: nobody knows. The program waits in another way if it is
    /// its own.
    pub const fn runs_on(&mut self, cpu: u32) {
        self.cpu = cpu;
    }

    /// The waiters of the program; the far backend's words are checked by whoever uses them.
    pub const fn waits(&self) -> &'static crate::layout::EndWaits {
        &self.view.theirs.waits
    }

    fn own(&self) -> &'static EndState {
        &self.view.mine.state
    }

    fn program(&self) -> &'static EndState {
        &self.view.theirs.state
    }

    fn leave_at(&mut self, at: u64) {
        self.down_over = true;
        self.say(Snapshot::LEFT);
        self.said.left_at = at;
    }

    const fn nonsense(&self, tail: u64) -> Corrupt {
        Corrupt::Tail {
            tail,
            seen: self.up.tail,
            head: self.up.head,
            capacity: 0,
        }
    }

    const fn say(&mut self, flag: u32) {
        self.said.flags |= flag;
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
