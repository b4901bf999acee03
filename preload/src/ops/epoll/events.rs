//! The program's array of events, and the kernel's events in it.

#![expect(unsafe_code, reason = "the program's array of events")]

use core::sync::atomic::Ordering;

use libc::epoll_event;
use rdma_core::slot::{RxState, TxState};

use super::connection::catch_up;
use super::interest::{interest_of_cookie, is_cookie};
use super::report::{is_put_off, report};
use super::set::Set;
use crate::ops::ready::involves_ring;
use crate::{contexts, probe};

/// The program's array of events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    pub(super) at: *mut epoll_event,
    pub(super) room: usize,
}

impl Events {
    /// Writes event `index`; false if that cannot be done.
    pub(super) fn put(&self, index: usize, event: epoll_event) -> bool {
        // SAFETY: the program gave the array to be overwritten (contract of `wait`).
        index < self.room && unsafe { probe::write(self.at.wrapping_add(index), event) }
    }

    /// Event `index`, which the kernel has just written.
    fn told(&self, index: usize) -> Option<epoll_event> {
        // SAFETY: the kernel found it writable (packed on x86-64, so read unaligned).
        (index < self.room).then(|| unsafe { self.at.wrapping_add(index).read_unaligned() })
    }

    /// Exchanges events `from..middle` with `middle..end`.
    pub(super) fn turn(&self, from: usize, middle: usize, end: usize) {
        let reverse = |from: usize, end: usize| {
            for i in 0..(end - from) / 2 {
                let (low, high) = (from + i, end - 1 - i);
                if let (Some(first), Some(last)) = (self.told(low), self.told(high)) {
                    self.put_back(low, last);
                    self.put_back(high, first);
                }
            }
        };
        if from < middle && middle < end {
            reverse(from, middle);
            reverse(middle, end);
            reverse(from, end);
        }
    }

    /// Takes doorbells out of what the kernel has just written; how many events are left.
    pub(super) fn leave_out_bells(&self) -> usize {
        let mut kept = 0;
        for event in (0..self.room).filter_map(|index| self.told(index)) {
            if !Set::is_bell(event.u64) {
                self.put_back(kept, event);
                kept += 1;
            }
        }
        kept
    }

    /// As [`Events::put`] where the kernel has just written: events only move forward.
    fn put_back(&self, index: usize, event: epoll_event) {
        if index < self.room {
            // SAFETY: as in `told`.
            unsafe { self.at.wrapping_add(index).write_unaligned(event) };
        }
    }
}

/// What the end of a line is told by.
const ENDS: u32 = (libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();

/// What [`translate`] has found.
pub(super) struct Translated {
    /// Events that are now in the program's array,
    pub(super) count: usize,
    /// and how many of them stood before the doorbell's.
    pub(super) rung: Option<usize>,
    /// The line of a guest's daemon has ended.
    pub(super) hung_up: bool,
}

/// Gives the kernel's events, which stand in `out[from..from + told]`, the program's data; what those of
/// connections on rings tell is computed.
pub(super) fn translate(
    set: &'static Set,
    call: u32,
    out: &Events,
    from: usize,
    told: usize,
) -> Translated {
    let mut count = from;
    let mut rung = None;
    let mut hung_up = false;
    for i in from..from + told {
        let Some(event) = out.told(i) else {
            break;
        };
        let data = event.u64;
        if is_cookie(data) {
            if Set::is_bell(data) {
                rung = Some(count);
                // A doorbell never does.
                hung_up |= event.events & ENDS != 0;
                if set.is_watched()
                    && let Some(context) = set.context().and_then(contexts::context)
                {
                    // Level-triggered: it would end every sleep at once.
                    context.silence();
                }
            }
            let Some(interest) = interest_of_cookie(data) else {
                continue;
            };
            if let Some(conn) = interest.conn() {
                if catch_up(interest, conn) && !involves_ring(conn) {
                    continue;
                }
                if involves_ring(conn) {
                    conn.kernel_bits.store(event.events, Ordering::Relaxed);
                    // The kernel's edge of an end that was reported when the far end announced it, or of
                    // what this very call has reported already.
                    let slot = conn.slot();
                    if is_put_off(conn, event.events) {
                        continue;
                    }
                    let announced = conn
                        .view()
                        .is_some_and(|view| view.theirs.state.ended_at().is_some())
                        && slot.rx.state() == RxState::Ring
                        && slot.tx.state() != TxState::Kernel;
                    let reported = interest.reported.load(Ordering::Relaxed) == call;
                    let told = interest.told.load(Ordering::Relaxed);
                    let known = interest.is_edge()
                        && (announced || reported)
                        && event.events & interest.wanted() & !told == 0;
                    if known || interest.live.load(Ordering::Acquire) == 0 {
                        continue;
                    }
                    if reported || interest.listed.load(Ordering::Relaxed) != 0 {
                        set.push(interest);
                        continue;
                    }
                    // In its place, so that the kernel's order is kept.
                    if report(set, call, (interest, false), out, count) == Some(true) {
                        count += 1;
                    }
                    continue;
                }
                conn.slot().meta.delivered.store(1, Ordering::Relaxed);
            }
            if interest.reported.swap(call, Ordering::Relaxed) == call {
                continue;
            }
            // An edge of the time before a ring was involved may carry more than was asked for.
            let events = event.events & interest.wanted();
            if events == 0 {
                continue;
            }
            interest.spend();
            let data = interest.data();
            out.put_back(count, epoll_event { events, u64: data });
        } else {
            out.put_back(count, event);
        }
        count += 1;
    }
    Translated {
        count,
        rung,
        hung_up,
    }
}
