//! Interests: what the program asked for of one TCP socket in one set, and what the kernel is asked.

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use libc::epoll_event;
use rdma_core::slot::TxState;

use super::set::{Set, set_of};
use crate::conn::{Conn, Numbers, conn};
use crate::ops::ready::involves_ring;

/// Registrations of TCP sockets in all sets.
const INTERESTS: usize = 32_768;

pub(super) const ET: u32 = 1 << 31;
const ONESHOT: u32 = 1 << 30;
pub(super) const EXCLUSIVE: u32 = 1 << 28;
/// All that the kernel lets stand beside EPOLLEXCLUSIVE: IN, OUT, ERR, HUP, WAKEUP, ET.
pub(super) const WITH_EXCLUSIVE: u32 = EXCLUSIVE | ET | 1 << 29 | 0x1d;

/// The upper half of our cookies. A program's own data in a registration that we made never stands
/// in the kernel, so it cannot be confused; the value only has to differ from the data of
/// registrations of other descriptors, which are small numbers or addresses.
const COOKIE: u64 = 0xfffe_71ad << 32;
/// Data of the event channel's registration.
pub(super) const CHANNEL_COOKIE: u64 = COOKIE | 0xffff_ffff;

/// One registration of a TCP socket in a set.
#[derive(Debug)]
pub(crate) struct Interest {
    /// Raised when freed.
    pub(super) generation: AtomicU32,
    /// The kernel knows it.
    pub live: AtomicU32,
    pub(super) set: AtomicU32,
    pub(super) fd: AtomicI32,
    pub(super) conn: AtomicU64,
    events: AtomicU32,
    data: AtomicU64,
    /// One-shot and reported: silent until modified.
    spent: AtomicU32,
    pub(super) next: AtomicU32,
    pub listed: AtomicU32,
    /// On the ready list because of a doorbell's bit alone, which says that there may be something new.
    pub(super) by_bit: AtomicU32,
    /// The far end has been asked to ring when there is space.
    pub space: AtomicU32,
    /// Bits of the last edge that was reported.
    pub told: AtomicU32,
    /// The waiting call that reported it last.
    pub reported: AtomicU32,
    /// What the far end had to say when it was last looked at.
    pub seen: AtomicU64,
    /// What the kernel was last asked.
    asked: AtomicU32,
}

pub(super) static INTEREST_TABLE: [Interest; INTERESTS] = [const {
    Interest {
        generation: AtomicU32::new(0),
        live: AtomicU32::new(0),
        set: AtomicU32::new(0),
        fd: AtomicI32::new(0),
        conn: AtomicU64::new(0),
        events: AtomicU32::new(0),
        data: AtomicU64::new(0),
        spent: AtomicU32::new(0),
        next: AtomicU32::new(0),
        listed: AtomicU32::new(0),
        by_bit: AtomicU32::new(0),
        space: AtomicU32::new(0),
        told: AtomicU32::new(0),
        reported: AtomicU32::new(0),
        seen: AtomicU64::new(u64::MAX),
        asked: AtomicU32::new(0),
    }
}; INTERESTS];
pub(super) static INTEREST_NUMBERS: Numbers<INTERESTS> = Numbers::new();

/// Interest `number`.
#[inline]
pub(super) fn interest(number: u32) -> Option<&'static Interest> {
    INTEREST_TABLE
        .get(number as usize)
        .filter(|interest| interest.live.load(Ordering::Acquire) != 0)
}

/// What stands in the kernel for interest `number`: a generation tells a stale event apart.
pub(super) fn cookie(number: u32) -> u64 {
    let generation = INTEREST_TABLE
        .get(number as usize)
        .map_or(0, |i| i.generation.load(Ordering::Relaxed));
    COOKIE | u64::from(generation & 0xffff) << 16 | u64::from(number & 0xffff)
}

/// The interest's number behind a cookie, if it is one and still valid.
pub(super) fn number_of_cookie(data: u64) -> Option<u32> {
    if !is_cookie(data) || data == CHANNEL_COOKIE {
        return None;
    }
    let number = u32::try_from(data & 0xffff).ok()?;
    (cookie(number) == data).then_some(number)
}

/// The interest behind a kernel event's data, if the data is ours.
pub(super) fn interest_of_cookie(data: u64) -> Option<&'static Interest> {
    interest(number_of_cookie(data)?)
}

/// Whether kernel event data is ours at all.
#[inline]
pub(super) const fn is_cookie(data: u64) -> bool {
    data & 0xffff_ffff_0000_0000 == COOKIE
}

/// Calls `work` for every interest that the kernel knows.
pub(super) fn each_live(mut work: impl FnMut(&'static Interest)) {
    for interest in INTEREST_TABLE.iter().take(INTEREST_NUMBERS.used() as usize) {
        if interest.live.load(Ordering::Acquire) != 0 {
            work(interest);
        }
    }
}

impl Interest {
    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        let offset = core::ptr::from_ref(self).addr() - INTEREST_TABLE.as_ptr().addr();
        u32::try_from(offset / size_of::<Self>()).unwrap_or(u32::MAX)
    }

    /// The descriptor that the program registered.
    pub(crate) fn fd(&self) -> c_int {
        self.fd.load(Ordering::Relaxed)
    }

    /// The set it belongs to.
    pub(crate) fn set(&self) -> Option<&'static Set> {
        set_of(self.set.load(Ordering::Relaxed))
    }

    /// The connection, once there is one.
    pub(crate) fn conn(&self) -> Option<&'static Conn> {
        let word = self.conn.load(Ordering::Acquire);
        let conn = conn(u32::try_from(word & 0xffff_ffff).ok()?.checked_sub(1)?);
        (u64::from(conn.generation.load(Ordering::Relaxed)) == word >> 32).then_some(conn)
    }

    /// The program's data.
    pub(crate) fn data(&self) -> u64 {
        self.data.load(Ordering::Relaxed)
    }

    /// The events to report now: none after a one-shot report.
    pub(crate) fn wanted(&self) -> u32 {
        if self.spent.load(Ordering::Relaxed) != 0 {
            return 0;
        }
        (self.events.load(Ordering::Relaxed) & !(ET | ONESHOT | EXCLUSIVE | 1 << 29)) | 0x18
    }

    /// Whether the program registered with EPOLLEXCLUSIVE.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.events.load(Ordering::Relaxed) & EXCLUSIVE != 0
    }

    /// Whether the program asked for POLLOUT.
    pub(crate) fn asks_for_space(&self) -> bool {
        self.events.load(Ordering::Relaxed) & 4 != 0
    }

    /// Whether the program asked for anything that the kernel tells of arriving bytes: POLLIN and its
    /// synonyms, POLLPRI.
    pub(crate) fn asks_for_data(&self) -> bool {
        self.events.load(Ordering::Relaxed) & 0xc3 != 0
    }

    /// Whether reports end with the first.
    pub(crate) fn is_edge(&self) -> bool {
        self.events.load(Ordering::Relaxed) & ET != 0
    }

    /// Silences a one-shot interest after its report.
    pub(crate) fn spend(&self) -> bool {
        let one_shot = self.events.load(Ordering::Relaxed) & ONESHOT != 0;
        if one_shot {
            self.spent.store(1, Ordering::Relaxed);
        }
        one_shot
    }

    /// The program asks for other events, or again.
    pub(super) fn ask(&self, asked: epoll_event) {
        self.events.store(asked.events, Ordering::Relaxed);
        self.data.store(asked.u64, Ordering::Relaxed);
        self.spent.store(0, Ordering::Relaxed);
        self.told.store(0, Ordering::Relaxed);
    }

    /// The registration as the program made it; without events after a one-shot report.
    pub(super) fn as_asked(&self) -> epoll_event {
        let mut events = self.events.load(Ordering::Relaxed);
        if self.spent.load(Ordering::Relaxed) != 0 {
            events &= ET | ONESHOT | EXCLUSIVE;
        }
        epoll_event {
            events,
            u64: self.data(),
        }
    }

    /// The registration as it must stand in the kernel now; the caller puts it there.
    pub(super) fn as_needed(&self) -> epoll_event {
        let events = self.kernel_events(self.conn());
        self.asked.store(events, Ordering::Relaxed);
        epoll_event {
            events,
            u64: cookie(self.number()),
        }
    }

    /// Whether the kernel holds something else than it must: the states of the interest's connection were
    /// changed by the daemon, or by another process that shares it.
    pub(super) fn is_outdated(&self, conn: &Conn) -> bool {
        self.asked.load(Ordering::Relaxed) != self.kernel_events(Some(conn))
    }

    /// What the kernel is asked: the program's own wish on TCP; once a ring is involved, edges of
    /// what only the kernel knows.
    fn kernel_events(&self, conn: Option<&Conn>) -> u32 {
        let asked = self.events.load(Ordering::Relaxed);
        let Some(conn) = conn.filter(|conn| involves_ring(conn)) else {
            return asked;
        };
        let mut events = asked & !(ONESHOT | EXCLUSIVE) | ET | libc::EPOLLRDHUP.cast_unsigned();
        if conn.slot().tx.state() == TxState::Returning {
            events |= libc::EPOLLOUT.cast_unsigned();
        }
        if conn.slot().tx.state() == TxState::Ring {
            events &= !(libc::EPOLLOUT.cast_unsigned() | 0x100 | 0x200);
        }
        events
    }

    /// Counts a connection as the one behind the socket.
    pub(super) fn bind(&'static self, conn: &Conn) -> bool {
        let number = self.number() + 1;
        for place in &conn.sets {
            if place
                .compare_exchange(0, number, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                let word = u64::from(conn.generation.load(Ordering::Relaxed)) << 32
                    | u64::from(conn.index() + 1);
                self.conn.store(word, Ordering::Release);
                return true;
            }
        }
        false
    }
}
