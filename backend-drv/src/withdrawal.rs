//! Takes connections off the ring for programs that are idle, or that are not there any more.
//!
//! Work for [`crate::workers`]: it waits a little for locks in memory that programs can write. What is
//! done to the words themselves is [`rdma_core::withdraw`].

use std::sync::Arc;

use rdma_core::layout::{End, EndState};
use rdma_core::reason::Reason;
use rdma_core::slot::{Slot, TxState};
use rdma_core::sync::Ordering;
use rdma_core::withdraw::{self, Receiving, Sending};

use crate::carving::Place;
use crate::direction::take;
use crate::ledger::ProgramRecord;
use crate::shared::ConnectionArena;

/// Rounds until both ends of a direction agree: a switch may be accepted between the looks at them.
const ROUNDS: usize = 4;

/// A connection's slot in its program.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The program.
    pub program: Arc<ProgramRecord>,
    /// The slot.
    pub slot: u32,
    /// The slot's generation when the connection was registered.
    pub generation: u32,
}

impl Seat {
    /// The slot; `None` if it is another connection's by now.
    pub fn look(&self) -> Option<&Slot> {
        let slot = self.program.slots.slot(self.slot)?;
        (slot.meta.generation.load(Ordering::Acquire) == self.generation).then_some(slot)
    }

    /// Whether this is said to be why the connection is on TCP.
    fn is_told(&self, reason: Reason) -> bool {
        self.look()
            .is_some_and(|slot| slot.meta.reason.load(Ordering::Relaxed) == reason.code())
    }

    /// Says why the connection is on TCP, if nothing is said yet.
    pub(crate) fn tell(&self, reason: Reason) {
        if let Some(slot) = self.look() {
            let _ = slot.meta.reason.compare_exchange(
                0,
                reason.code(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
}

/// Which connection, and how.
#[derive(Clone, Debug)]
pub struct Withdrawal {
    /// Its memory.
    pub arena: Arc<ConnectionArena>,
    /// Where.
    pub place: Place,
    /// Its slots; `None` where the end has let go.
    pub seats: [Option<Seat>; 2],
    /// The end whose program is not there any more; `None`: both ends are taken off.
    pub vanished: Option<End>,
    /// What the programs are told.
    pub reason: Reason,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Withdrawn {
    /// The connection is off the ring.
    Off {
        /// Something was changed.
        changed: bool,
        /// Ends that have yet to send once more what their far end left in the ring.
        behind: [bool; 2],
        /// Somebody has yet to read what was sent by ring.
        reading: bool,
    },
    /// A lock was not to be had.
    Busy,
    /// Bytes are lost.
    Lost,
}

impl Withdrawn {
    const NOTHING: Self = Self::Off {
        changed: false,
        behind: [false; 2],
        reading: false,
    };
}

impl Withdrawal {
    /// Does it.
    pub fn perform(&self) -> Withdrawn {
        let state = |end| Some(&self.arena.end(self.place.offset, end)?.state);
        let (Some(zero), Some(one)) = (state(End::Zero), state(End::One)) else {
            return Withdrawn::NOTHING;
        };
        if zero.broken().is_some() || one.broken().is_some() {
            return Withdrawn::NOTHING;
        }
        match self.vanished {
            None => self.revoke([zero, one]),
            Some(End::Zero) => self.leave(End::Zero, zero, one),
            Some(End::One) => self.leave(End::One, one, zero),
        }
    }

    fn seat(&self, end: End) -> Option<&Seat> {
        self.seats.get(end.index())?.as_ref()
    }

    fn states(&self) -> [Option<(u32, u32)>; 2] {
        [End::Zero, End::One].map(|end| {
            let slot = self.seat(end)?.look()?;
            Some((slot.tx.state() as u32, slot.rx.state() as u32))
        })
    }

    fn revoke(&self, states: [&EndState; 2]) -> Withdrawn {
        // The programs themselves may be following an earlier one meanwhile.
        let is_first = !self
            .seats
            .iter()
            .flatten()
            .all(|seat| seat.is_told(Reason::Revoked));
        let before = self.states();
        if self.reason == Reason::Drained {
            // Whoever finds itself off the ring is to know at once that it may let go.
            self.tell_seats();
        }
        let [zero, one] = states;
        let mut behind = [false; 2];
        let mut reading = false;
        for _ in 0..ROUNDS {
            let mut again = false;
            reading = false;
            for (end, own, far) in [(End::Zero, zero, one), (End::One, one, zero)] {
                let Some((sending, receiving)) = self.stop(end, own, far) else {
                    return Withdrawn::Busy;
                };
                again |= sending == Sending::Unaccepted || receiving == Receiving::Engaged;
                reading |= receiving == Receiving::Reading;
                if let Some(behind) = behind.get_mut(end.index()) {
                    *behind = sending == Sending::Behind;
                }
            }
            if !again {
                let changed = is_first && before != self.states();
                if changed {
                    self.tell_seats();
                }
                return Withdrawn::Off {
                    changed,
                    behind,
                    reading,
                };
            }
        }
        let _ = reading;
        Withdrawn::Busy
    }

    fn tell_seats(&self) {
        for seat in self.seats.iter().flatten() {
            seat.tell(self.reason);
        }
    }

    /// Stops the direction that `end`, which says `own`, sends. `None`: a lock is held.
    fn stop(&self, end: End, own: &EndState, far: &EndState) -> Option<(Sending, Receiving)> {
        let mut sending = Sending::Off;
        if let Some(slot) = self.seat(end).and_then(Seat::look) {
            let _held = take(&slot.tx.lock)?;
            if self.seat(end).and_then(Seat::look).is_some() {
                sending = withdraw::stop_sending(&slot.tx, own);
            }
        }
        let mut receiving = Receiving::Off;
        if let Some(slot) = self.seat(end.far()).and_then(Seat::look) {
            let _held = take(&slot.rx.lock)?;
            if self.seat(end.far()).and_then(Seat::look).is_some() {
                receiving = withdraw::stop_receiving(&slot.rx, far, own);
            }
        }
        Some((sending, receiving))
    }

    /// Leaves the ring for `end`, whose program is not there any more.
    fn leave(&self, end: End, own: &EndState, far: &EndState) -> Withdrawn {
        let Some(slot) = self.seat(end).and_then(Seat::look) else {
            return Withdrawn::Lost;
        };
        let before = self.states();
        {
            let Some(_held) = take(&slot.tx.lock) else {
                return Withdrawn::Busy;
            };
            if !self.is_sending_settled(slot, own, far) {
                return Withdrawn::Lost;
            }
        }
        {
            let Some(_held) = take(&slot.rx.lock) else {
                return Withdrawn::Busy;
            };
            let sent = self
                .arena
                .published(self.place.offset, self.place.ring_log2, end.far());
            if !withdraw::leave_receiving(&slot.rx, own, far, sent.unwrap_or(u64::MAX)) {
                return Withdrawn::Lost;
            }
        }
        let changed = before != self.states();
        if changed && let Some(survivor) = self.seat(end.far()) {
            survivor.tell(Reason::Exec);
        }
        let mut behind = [false; 2];
        if let Some(behind) = behind.get_mut(end.far().index()) {
            *behind = true;
        }
        Withdrawn::Off {
            changed,
            behind,
            reading: false,
        }
    }

    /// Takes the sending direction off the ring, if that is possible without sending anything.
    fn is_sending_settled(&self, slot: &Slot, own: &EndState, far: &EndState) -> bool {
        let tx = &slot.tx;
        for _ in 0..ROUNDS {
            match withdraw::stop_sending(tx, own) {
                Sending::Off => return true,
                Sending::Unaccepted if tx.cursor().tail != 0 => return false,
                // Nothing was sent by ring, so nothing is lost by taking the switch back.
                Sending::Unaccepted => {
                    if own.cancel() {
                        tx.set_state(TxState::Returned);
                        return true;
                    }
                }
                Sending::Behind => {
                    let capacity = 1 << self.place.ring_log2;
                    let rest = withdraw::begin_resending(tx, own, far, capacity);
                    return rest.filter(withdraw::Rest::is_empty).is_some_and(|rest| {
                        withdraw::note_resent(tx, &rest, 0);
                        true
                    });
                }
            }
        }
        false
    }
}
