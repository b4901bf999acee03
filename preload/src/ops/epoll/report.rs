//! The ready list's interests: which of them are ready, and reporting them.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::epoll_event;
use rdma_core::slot::{RxState, TxState};

use super::connection::{catch_up, had_space, want_space};
use super::events::Events;
use super::interest::Interest;
use super::news::{news, take_pending};
use super::set::Set;
use crate::conn::{Conn, NO_FINAL};
use crate::ops::ready::{self, involves_ring};
use crate::{contexts, kernel, relayed};

/// For a set that is watched as a descriptor: its doorbell, which makes it readable, stands exactly as
/// long as something would be reported.
pub(super) fn show_readiness(set: &'static Set) {
    let Some(bell) = set.bell() else { return };
    let rung = kernel::poll_now(bell, libc::POLLIN) != 0;
    if rung == keep_ready(set) {
        return;
    }
    if !rung {
        set.ring();
        return;
    }
    if let Some(context) = set.context().and_then(contexts::context) {
        context.silence();
    }
    // What came before the silence is not announced again.
    if keep_ready(set) {
        set.ring();
    }
}

/// Takes what is not ready off the list; true if something is left.
fn keep_ready(set: &'static Set) -> bool {
    take_pending(set);
    let mut first: Option<&'static Interest> = None;
    while let Some((interest, by_bit)) = set.pop() {
        if first.is_some_and(|first| core::ptr::eq(first, interest)) {
            set.push(interest);
            break;
        }
        let Some(conn) = interest.conn() else {
            continue;
        };
        if interest.live.load(Ordering::Acquire) == 0 {
            continue;
        }
        catch_up(interest, conn);
        let ready = bits(conn, interest.fd());
        if ready & OUT == 0 {
            want_space(conn);
        }
        let wanted = ready & interest.wanted();
        let missed = ready & OUT != 0 && interest.space.load(Ordering::Relaxed) != 0;
        let old = by_bit && !missed && interest.seen.load(Ordering::Relaxed) == news(conn);
        if wanted != 0 && !(old && is_told(interest, wanted)) {
            set.push(interest);
            first = first.or(Some(interest));
        }
    }
    first.is_some()
}

/// Reports ready interests behind the first `count` events, up to `most` events; level-triggered ones go
/// to the end of the list again, and none is reported twice by one `call`. The number of events now in
/// `out`; `None` if the first could not be written.
pub(super) fn collect(
    set: &'static Set,
    call: u32,
    out: &Events,
    mut count: usize,
    most: usize,
) -> Option<usize> {
    let mut turned: Option<&'static Interest> = None;
    while count < most {
        let Some((interest, by_bit)) = set.pop() else {
            break;
        };
        if interest.live.load(Ordering::Acquire) == 0 {
            continue;
        }
        if interest.reported.load(Ordering::Relaxed) == call {
            set.push_for(interest, by_bit);
            if turned.is_some_and(|first| core::ptr::eq(first, interest)) {
                // Once around.
                break;
            }
            turned = turned.or(Some(interest));
            continue;
        }
        match report(set, call, (interest, by_bit), out, count) {
            Some(true) => count += 1,
            Some(false) => {}
            None => return (count > 0).then_some(count),
        }
    }
    Some(count)
}

/// Reports an interest as event `at`, if it is ready; `None` if the event could not be written. With it, whether it is
/// looked at for a doorbell's bit alone.
pub(super) fn report(
    set: &'static Set,
    call: u32,
    (interest, by_bit): (&'static Interest, bool),
    out: &Events,
    at: usize,
) -> Option<bool> {
    let Some(conn) = interest.conn() else {
        return Some(false);
    };
    if catch_up(interest, conn) {
        // On the list again, or the kernel reports it from now on.
        return Some(false);
    }
    let (ready, news) = look(conn, interest);
    let old = interest.seen.swap(news, Ordering::Relaxed) == news;
    let missed = if ready & OUT != 0 {
        had_space(interest, conn)
    } else {
        want_space(conn);
        false
    };
    let bits = ready & interest.wanted();
    if bits == 0 || by_bit && old && !missed && is_told(interest, bits) {
        return Some(false);
    }
    let event = epoll_event {
        events: bits,
        u64: interest.data(),
    };
    if !out.put(at, event) {
        // It stays ready, as in the kernel.
        set.push(interest);
        return None;
    }
    interest.reported.store(call, Ordering::Relaxed);
    interest.told.store(bits, Ordering::Relaxed);
    conn.slot().meta.delivered.store(1, Ordering::Relaxed);
    if !interest.spend() && !interest.is_edge() {
        set.push(interest);
    }
    Some(true)
}

/// Looks this often for readiness that nothing has changed meanwhile.
const LOOKS: u32 = 4;

/// What is ready, and what of the far end it is due to: what comes later is a new edge, and what is counted here is none.
fn look(conn: &Conn, interest: &Interest) -> (u32, u64) {
    let mut before = news(conn);
    for _ in 1..LOOKS {
        let ready = bits(conn, interest.fd());
        if !interest.is_edge() {
            return (ready, before);
        }
        let after = news(conn);
        if before == after {
            return (ready, before);
        }
        before = after;
    }
    (bits(conn, interest.fd()), before)
}

/// Whether the interest wants edges, and those of `bits` have been told. A far end sets a doorbell's bit before it shows
/// what is new, and again after that; where nothing is new, neither is an edge.
fn is_told(interest: &Interest, bits: u32) -> bool {
    interest.is_edge() && bits & !interest.told.load(Ordering::Relaxed) == 0
}

/// Whether both directions are on rings and nothing announces that the kernel has something to say.
fn is_quiet_in_kernel(conn: &Conn) -> bool {
    let slot = conn.slot();
    slot.rx.state() == RxState::Ring
        && slot.tx.state() == TxState::Ring
        && conn.final_tail.load(Ordering::Relaxed) == NO_FINAL
        && conn.shut() == 0
        && conn.view().is_some_and(|view| {
            view.theirs.state.ended_at().is_none()
                && view.theirs.state.returned_at().is_none()
                && !view.theirs.state.is_reader_gone()
        })
}

/// Whether the kernel's word on the far end waits for a backend's, which will be an edge of its own.
pub(super) fn is_put_off(conn: &Conn, events: u32) -> bool {
    let slot = conn.slot();
    let over = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();
    events & over != 0
        && slot.rx.state() == RxState::Ring
        && slot.tx.state() != TxState::Kernel
        && conn
            .view()
            .is_some_and(|view| relayed::is_early(conn, view))
}

/// EPOLLOUT.
const OUT: u32 = 4;

/// Present readiness as epoll bits.
fn bits(conn: &Conn, fd: c_int) -> u32 {
    let kernel = if is_quiet_in_kernel(conn) {
        // Edges keep this current: nothing but the end of stream and errors can still happen there.
        let bits = conn.kernel_bits.load(Ordering::Relaxed) & 0xffff;
        u16::try_from(bits).unwrap_or(0).cast_signed()
    } else {
        ready::kernel_now(fd)
    };
    let merged = if involves_ring(conn) {
        ready::merge(conn, fd, kernel)
    } else {
        kernel
    };
    u32::from(merged.cast_unsigned())
}
