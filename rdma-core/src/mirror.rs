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

use crate::event::{WaitFor, WaitRef};
use crate::handshake::Route;
use crate::layout::{ConnView, EndState};
use crate::mem::RingBytes;
use crate::reason::Reason;
use crate::ring::{Consumer, Corrupt, OutOfRing, Producer, RxCursor, TxCursor};
use crate::sync::{Ordering, full_barrier};

/// What the program at one end says, as its backend tells the other.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Which of the others count: the sum of the constants below.
    pub flags: u32,
    /// [`Snapshot::BROKEN`]: a [`Reason`] code.
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

/// What a look at the program's words has found.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Look {
    /// The program's ring holds bytes up to here.
    pub produced: u64,
    /// The program has read its own ring up to here.
    pub consumed: u64,
    /// Somebody at the program may have to be woken.
    pub wake: bool,
    /// The program's bytes are not wanted any more.
    pub up_over: bool,
}

/// What [`Mirror::carry_to`] has done.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Carried {
    /// So many bytes are at the other end now.
    pub bytes: u64,
    /// There are more of them, and there is room for them.
    pub more: bool,
}

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

    fn own(&self) -> &'static EndState {
        &self.view.mine.state
    }

    fn program(&self) -> &'static EndState {
        &self.view.theirs.state
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

    /// Looks at the program's words.
    ///
    /// # Errors
    /// They make no sense; the connection is to be [broken](Mirror::break_with).
    pub fn look(&mut self) -> Result<Look, Corrupt> {
        let mut wake = false;
        let program = self.program();
        // Ends before the tail, as for any reader.
        let ended = program.ended_at();
        let is_closed = program.is_closed();
        wake |= self.look_up(program)?;
        Producer::of(&self.view).refresh(&mut self.down)?;
        self.mind_space()?;
        self.look_down(program)?;
        if self.gone || ended.is_some() {
            let end = ended.unwrap_or(self.up.tail);
            // What was written after the last byte that is wanted was not looked at.
            if end > self.up.tail && !self.up_over {
                return Err(self.nonsense(end));
            }
            self.say(Snapshot::ENDED);
            self.said.end_at = end;
        }
        if self.gone || is_closed {
            self.say(Snapshot::GONE);
        }
        if self.done {
            self.say(Snapshot::DONE);
        }
        if self.up_over && self.own().is_granted() {
            self.say(Snapshot::CONFIRMED);
        }
        if program.is_doubting() {
            self.say(Snapshot::DOUBTS);
        }
        if let Some(reason) = program.broken() {
            self.say(Snapshot::BROKEN);
            self.said.reason = reason.code();
        }
        wake |= self.settle();
        Ok(Look {
            produced: if self.up_over {
                self.up.head
            } else {
                self.up.tail
            },
            consumed: self.down.head,
            wake,
            up_over: self.up_over,
        })
    }

    /// The direction that the program sends.
    fn look_up(&mut self, program: &EndState) -> Result<bool, Corrupt> {
        if self.up_over {
            return Ok(false);
        }
        if self.asks {
            Self::make_ask(program);
        }
        let route = program.route();
        let is_switched = matches!(route, Route::Switched | Route::Retracted | Route::Finished);
        if is_switched && !self.said.has(Snapshot::SWITCHED) {
            if route == Route::Retracted {
                // Nobody was told of a switch, so nobody has read anything.
                let _ = self.own().grant(program, 0);
                self.up_over = true;
                if self.asks {
                    self.say(Snapshot::ASKED);
                }
                return Ok(true);
            }
            self.say(Snapshot::SWITCHED);
            self.said.switch_at = program.switch_at.load(Ordering::Relaxed);
        }
        Consumer::of(&self.view).refresh(&mut self.up)?;
        self.up_base = self.view.rx_words.base.load(Ordering::Relaxed);
        if self.up_base > self.up.head {
            return Err(Corrupt::Base {
                base: self.up_base,
                head: self.up.head,
            });
        }
        if route == Route::Retracted {
            self.say(Snapshot::ASKED);
        }
        Ok(false)
    }

    /// Makes the program ask to send by the kernel again, unless it has ended.
    fn make_ask(program: &EndState) {
        if program.ended_at().is_none() && program.cancel() && program.ended_at().is_some() {
            // Too late: it need not have seen that it is to wait. If it has, it sees this.
            program.resume_switch();
        }
        // True or false: there is nothing to do for a sender that never was on the ring.
        let _ = program.retract_never_switched();
    }

    /// The direction that the program receives.
    fn look_down(&mut self, program: &EndState) -> Result<(), Corrupt> {
        if program.is_armed() {
            self.say(Snapshot::ARMED);
        }
        if self.own().route() == Route::Retracted && !self.said.has(Snapshot::LEFT) {
            let at = self.own().retracted_at(program).unwrap_or(0);
            if at > self.down.tail {
                return Err(self.nonsense(at));
            }
            self.leave_at(at);
        }
        Ok(())
    }

    /// What the program reads is noticed whenever bytes for it come. Only if much lies unread, so that the far
    /// program might wait for space, the program has to wake us.
    fn mind_space(&mut self) -> Result<(), Corrupt> {
        let unread = self.down.used();
        let entries = &self.view.mine.waits;
        if !self.waits_for_space && unread >= self.capacity() / 4 {
            self.waits_for_space = entries.enter(WaitFor::Space, self.who);
            Producer::of(&self.view).refresh(&mut self.down)?;
        } else if self.waits_for_space && unread < self.capacity() / 8 {
            entries.leave(WaitFor::Space, self.who);
            self.waits_for_space = false;
        }
        Ok(())
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

    /// The far backend has told what its program says. What waits for bytes that are still under way happens
    /// when they are there.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn hear(&mut self, snapshot: Snapshot) -> Result<Look, Corrupt> {
        self.heard = snapshot;
        if snapshot.has(Snapshot::OFF) {
            self.asks = true;
        }
        let (own, program) = (self.own(), self.program());
        let mut wake = false;
        if snapshot.has(Snapshot::ARMED) && !own.is_armed() {
            own.arm();
            wake = true;
        }
        if snapshot.has(Snapshot::SWITCHED) && own.route() == Route::Kernel && !self.down_over {
            wake |= own.switch(snapshot.switch_at);
        }
        if snapshot.has(Snapshot::LEFT) && !self.up_over {
            if snapshot.left_at < self.up.head || snapshot.left_at > self.up.tail {
                return Err(self.nonsense(snapshot.left_at));
            }
            self.up_over = true;
            wake = true;
            // Whoever is gone sends nothing again.
            let is_minded = !self.gone && own.grant(program, snapshot.left_at);
            if is_minded || self.end_of_up(program) <= snapshot.left_at {
                self.say(Snapshot::CONFIRMED);
            } else {
                self.break_with(Reason::FarEnd);
            }
        }
        if snapshot.has(Snapshot::CONFIRMED) && !own.is_confirmed() {
            own.confirm();
            wake = true;
        }
        if snapshot.has(Snapshot::GONE) && !own.is_closed() {
            if snapshot.has(Snapshot::UNREAD) {
                own.leave_unread();
            } else {
                own.leave();
            }
            wake = true;
        }
        let concerns = !self.is_off() || self.awaits_confirmation();
        if snapshot.has(Snapshot::BROKEN) && own.broken().is_none() && concerns {
            let reason = Reason::from_code(snapshot.reason).unwrap_or(Reason::FarEnd);
            own.break_with(reason);
            wake = true;
        }
        let look = self.look()?;
        Ok(Look {
            wake: look.wake | wake,
            ..look
        })
    }

    /// Where the stream that the program sends by ring ends, as far as is known.
    fn end_of_up(&mut self, program: &EndState) -> u64 {
        if let Some(end) = program.ended_at() {
            return end;
        }
        // Nonsense is found by the next look.
        let _ = Consumer::of(&self.view).refresh(&mut self.up);
        self.up.tail
    }

    /// Whether the program has left its ring by itself, and nobody has said whether it gets what lies behind.
    fn awaits_confirmation(&self) -> bool {
        let own = self.own();
        own.route() == Route::Retracted && !own.is_confirmed()
    }

    /// What depends on how many bytes the program has been given.
    fn settle(&mut self) -> bool {
        let (own, program) = (self.own(), self.program());
        let mut wake = false;
        if self.heard.has(Snapshot::ENDED)
            && own.ended_at().is_none()
            && (self.down.tail == self.heard.end_at || self.down_over)
        {
            own.end(self.heard.end_at.max(self.down.tail));
            wake = true;
        }
        if self.heard.has(Snapshot::ASKED) && !self.down_over {
            let at = self.down.tail;
            let settled = match own.route() {
                // Nothing was ever switched: it never will be.
                Route::Kernel => own.retract_never_switched().then_some(0),
                Route::Switched => own.cancel().then_some(0),
                Route::Accepted => own.give_back(at).then_some(at),
                Route::Returned => Some(at),
                // The program was faster.
                Route::Retracted => own.retracted_at(program).filter(|left| *left <= at),
                // Nobody finishes here.
                Route::Finished => None,
            };
            if let Some(at) = settled {
                self.leave_at(at);
                wake = true;
            }
        }
        wake
    }

    /// Takes bytes of the far program; `edge` is what [`Mirror::arrived`] was last told. Bytes that nobody
    /// wants any more are dropped without a word.
    ///
    /// # Errors
    /// They would not lie in the free part of the ring.
    pub fn place(&mut self, position: u64, bytes: &[u8]) -> Result<(), OutOfRing> {
        if self.down_over {
            return Ok(());
        }
        let ring = Producer::of(&self.view);
        let end = position.checked_add(bytes.len() as u64).ok_or(OutOfRing)?;
        let fresh = self.placed == self.down.tail;
        if fresh || end.saturating_sub(self.down.head) > ring.capacity() {
            // The program may have read meanwhile.
            let _ = ring.refresh(&mut self.down);
        }
        let is_empty = fresh && self.down.head == self.down.tail;
        ring.place(&mut self.down, position, bytes, is_empty)?;
        self.placed = self.placed.max(end);
        Ok(())
    }

    /// If the program has read all that was put into its ring: puts nothing there from now on, so that somebody else can
    /// give its memory back, until [`Mirror::may_fill`]. False: there is something.
    #[must_use]
    pub fn keep_empty(&mut self) -> bool {
        // Nonsense is found by the next look.
        let _ = Producer::of(&self.view).refresh(&mut self.down);
        self.kept_empty = self.down.used() == 0 && self.placed == self.down.tail;
        self.kept_empty
    }

    /// Bytes may be put into the program's ring again.
    pub const fn may_fill(&mut self) {
        self.kept_empty = false;
    }

    /// Whether nothing may be [placed](Mirror::place) now.
    pub const fn is_kept_empty(&self) -> bool {
        self.kept_empty
    }

    /// Copies bytes of the program's ring that `far`, the mirror at the other end of the same connection, does not
    /// have yet, at most `max`, into the ring of its program, which may read them from now on. The two programs are
    /// on one host; nothing else may be [placed](Mirror::place) at `far`.
    ///
    /// # Errors
    /// The words of one of the two programs make no sense. Its [look](Mirror::look) finds that as well.
    #[cfg(not(loom))]
    pub fn carry_to(&mut self, far: &mut Self, max: u64) -> Result<Carried, Corrupt> {
        if self.up_over || far.down_over || far.kept_empty {
            return Ok(Carried::default());
        }
        let source = Consumer::of(&self.view);
        source.refresh(&mut self.up)?;
        let at = far.down.tail;
        // While a byte is unread the base stays where it is, and that byte was acquired.
        let base = self.view.rx_words.base.load(Ordering::Relaxed);
        if base > at || at < self.up.head {
            return Err(Corrupt::Base { base, head: at });
        }
        let there = self.up.tail.saturating_sub(at);
        let sink = Producer::of(&far.view);
        let mut room = sink.free(&far.down);
        if there > 0 && (room < there || far.down.used() > 0) {
            room = sink.refresh(&mut far.down)?;
        }
        let bytes = there.min(room).min(max);
        if bytes == 0 {
            return Ok(Carried::default());
        }
        let index = |position: u64| usize::try_from(position - base).unwrap_or(0);
        let len = usize::try_from(bytes).unwrap_or(0);
        if sink
            .write_across(&mut far.down, &self.view.rx_data, index(at), len)
            .is_err()
        {
            return Ok(Carried::default());
        }
        far.placed = far.down.tail;
        far.show();
        Ok(Carried {
            bytes,
            more: there.min(room) > bytes,
        })
    }

    /// Whether [`Mirror::carry_to`] has something to do, as far as was looked.
    pub const fn has_for(&self, far: &Self) -> bool {
        !self.up_over
            && !far.down_over
            && !far.kept_empty
            && self.up.tail > far.down.tail
            && far.down.used() < far.view.tx_data.capacity() as u64
    }

    /// The backend runs on this processor, plus one; 0: nobody knows. The program waits in another way if it is
    /// its own.
    pub const fn runs_on(&mut self, cpu: u32) {
        self.cpu = cpu;
    }

    /// All bytes up to `edge` have been placed: the program may read them. True: it may have to be woken.
    pub fn arrived(&mut self, edge: u64) -> bool {
        if self.down_over || edge <= self.down.tail || edge > self.placed {
            return false;
        }
        self.down.tail = edge;
        self.show();
        true
    }

    /// Lets the program read what lies before the tail.
    fn show(&mut self) {
        let ring = Producer::of(&self.view);
        ring.publish(&self.down, self.up.head, self.cpu);
        full_barrier();
        self.settle();
    }

    /// The far program has read our program's bytes up to `head`. True: whoever waits for space is to be
    /// woken.
    pub fn consumed(&mut self, head: u64) -> bool {
        if head <= self.up.head || head > self.up.tail {
            return false;
        }
        self.up.head = head;
        let ring = Consumer::of(&self.view);
        ring.publish(&self.up);
        full_barrier();
        // As any reader does: not at the first free byte, and whatever we knew of the tail. Nonsense in it is
        // found by the next look.
        ring.refresh(&mut self.up)
            .map_or(true, |used| used <= ring.capacity() / 2)
    }

    /// Where the bytes of the program's ring stand, and the index of `position` among them. They are there if
    /// `position` lies between what was consumed and what was produced.
    pub fn up_data(&self, position: u64) -> (&RingBytes, usize) {
        let distance = position.wrapping_sub(self.up_base) & (self.capacity() - 1);
        let index = usize::try_from(distance).unwrap_or(0);
        (&self.view.rx_data, index)
    }

    /// The program has vanished: what it has sent is sent, and nobody reads any more.
    pub fn depart(&mut self) {
        if self.gone {
            return;
        }
        self.gone = true;
        // One that has closed its end by itself has told the kernel of unread bytes.
        if !self.down_over && !self.program().is_closed() {
            // Nonsense is found by the next look.
            let _ = Producer::of(&self.view).refresh(&mut self.down);
            if self.down.used() > 0 {
                self.say(Snapshot::UNREAD);
            }
        }
    }

    /// Whether TCP has told the far program that ours is done, and ours has not said so: it may have vanished.
    pub const fn is_doubted(&self) -> bool {
        self.heard.has(Snapshot::DOUBTS)
            && !self
                .said
                .has(Snapshot::ENDED | Snapshot::BROKEN | Snapshot::DONE)
    }

    /// The program has let go of the memory. If both directions have left the rings, it goes on by the kernel, and so
    /// does the far one, whose ring may not be read to its end yet: nothing is said of an end. If it never took the
    /// memory, both go on by the kernel, which alone knows how it ends. Else the program is gone.
    pub fn let_go(&mut self) {
        if self.up_over && self.down_over {
            self.done = true;
        } else if self.is_untaken() {
            self.ask_to_leave();
            self.done = true;
        } else {
            self.depart();
        }
    }

    /// Whether the program has not said anything here, not even that it will: it was not told of the memory, or had
    /// given it up when it was.
    fn is_untaken(&self) -> bool {
        let program = self.program();
        !program.is_armed()
            && program.route() == Route::Kernel
            && program.ended_at().is_none()
            && !program.is_closed()
            && program.broken().is_none()
    }

    /// Both directions are to leave the ring.
    pub const fn ask_to_leave(&mut self) {
        self.asks = true;
        self.said.flags |= Snapshot::OFF;
    }

    /// Whether the program has no way yet to send by the ring, and was given nothing that was: both programs can do
    /// without the ring.
    pub fn is_unused(&self) -> bool {
        let (own, program) = (self.own(), self.program());
        !own.is_armed() && own.route() == Route::Kernel && program.route() == Route::Kernel
    }

    /// Breaks the connection for the near program, and tells the far one. A connection that is off the rings goes on
    /// without us.
    pub fn break_with(&mut self, reason: Reason) {
        if !self.is_off() {
            self.own().break_with(reason);
        }
        self.say(Snapshot::BROKEN);
        self.said.reason = reason.code();
    }

    /// Whether nothing of either direction has to be carried any more.
    pub fn is_off(&self) -> bool {
        let read = self.said.has(Snapshot::ENDED) && self.up.head == self.said.end_at;
        (self.up_over || read) && (self.down_over || self.own().ended_at().is_some())
    }

    /// Whether nothing is left to be done: both programs are gone or have ended, and each has what the other
    /// sent.
    pub fn is_over(&self) -> bool {
        let over = |snapshot: &Snapshot| snapshot.has(Snapshot::GONE | Snapshot::DONE);
        over(&self.said) && over(&self.heard)
            || self.said.has(Snapshot::BROKEN)
            || self.heard.has(Snapshot::BROKEN)
    }

    /// The waiters of the program; the far backend's words are checked by whoever uses them.
    pub const fn waits(&self) -> &'static crate::layout::EndWaits {
        &self.view.theirs.waits
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
