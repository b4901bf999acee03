//! A set's event channel: the doorbell in the kernel set, by which rings end a sleep there.

#![expect(
    unsafe_code,
    reason = "epoll_ctl on the program's sets; a doorbell's descriptor"
)]

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::epoll_event;

use super::interest::{CHANNEL_COOKIE, ET};
use super::report;
use super::set::{SET_NUMBERS, SET_TABLE, Set, set_of};
use crate::{contexts, control, errno, fds, forsaken, real};

/// The set is nested in another one, or polled: somebody sleeps in the kernel until the set's descriptor
/// is readable. From now on its doorbell is always rung, and rung again while something is left.
pub(crate) fn mark_polled(epfd: c_int) {
    let Some(set) = fds::lookup(epfd).as_epoll().and_then(set_of) else {
        return;
    };
    if set.polled.swap(1, Ordering::SeqCst) == 0 {
        WATCHED_SETS.store(1, Ordering::SeqCst);
        if set.context().is_some() {
            set.register_bell(libc::EPOLL_CTL_MOD);
        } else {
            set.open_channel();
        }
    }
    set.announce_if_polled();
}

/// Before a call that may look at sets as descriptors: those that are watched say what is true now.
pub(crate) fn refresh_watched() {
    if WATCHED_SETS.load(Ordering::Relaxed) == 0 {
        return;
    }
    for set in SET_TABLE.iter().take(SET_NUMBERS.used() as usize) {
        if set.refs.load(Ordering::Relaxed) != 0 {
            set.announce_if_polled();
        }
    }
}

/// What is ours leaves all sets: nobody is there any more who would keep it from the program.
pub(super) fn withdraw_all() {
    for set in SET_TABLE.iter().take(SET_NUMBERS.used() as usize) {
        if set.refs.load(Ordering::Relaxed) == 0 {
            continue;
        }
        set.withdraw();
    }
}

/// Some set is watched as a descriptor: polled, selected or nested.
static WATCHED_SETS: AtomicU32 = AtomicU32::new(0);

impl Set {
    /// Puts the event channel into the kernel set, once; false if that cannot be done.
    pub(crate) fn open_channel(&self) -> bool {
        if self.context().is_some() {
            return true;
        }
        let Some(number) = contexts::borrow() else {
            return false;
        };
        self.context.store(u32::from(number) + 1, Ordering::Release);
        if !self.register_bell(libc::EPOLL_CTL_ADD) {
            self.context.store(0, Ordering::Release);
            contexts::give_back(number);
            return false;
        }
        true
    }

    /// Enters the doorbell into the kernel set: level-triggered if others watch the set, because it is the
    /// only thing that makes the set readable for them.
    fn register_bell(&self, op: c_int) -> bool {
        let Some(bell) = self.bell() else {
            return false;
        };
        let trigger = if self.is_watched() { 0 } else { ET };
        self.control_own(op, bell, trigger | 1)
    }

    /// Enters a descriptor of ours into the kernel set, changes what it is there for, or takes it out.
    fn control_own(&self, op: c_int, fd: c_int, events: u32) -> bool {
        let mut event = epoll_event {
            events,
            u64: CHANNEL_COOKIE,
        };
        errno::preserved(|| {
            // SAFETY: a local event.
            unsafe { real::epoll_ctl(self.epfd(), op, fd, &raw mut event) == 0 }
        })
    }

    /// In a guest: enters the line of the daemon that serves a session, whose end wakes the set as the doorbell does.
    pub(super) fn watch_line(&self, session: u32) {
        if self.line.load(Ordering::Relaxed) == session + 1 {
            return;
        }
        if let Some(line) = control::session(session).and_then(forsaken::line_of)
            // Its end alone, once.
            && self.control_own(libc::EPOLL_CTL_ADD, line, ET)
        {
            self.line.store(session + 1, Ordering::Relaxed);
        }
    }

    /// Nobody here looks at what the kernel says of the set: nothing of ours is to be in it.
    pub(super) fn withdraw(&self) {
        let session = self.line.swap(0, Ordering::Relaxed).checked_sub(1);
        let session = session.and_then(control::session);
        if let Some(line) = session.and_then(control::Session::line) {
            self.control_own(libc::EPOLL_CTL_DEL, line, 0);
        }
        if let Some(bell) = self.bell() {
            self.control_own(libc::EPOLL_CTL_DEL, bell, 0);
        }
    }

    /// Whether somebody watches the set as a descriptor.
    pub(super) fn is_watched(&self) -> bool {
        self.polled.load(Ordering::SeqCst) != 0
    }

    /// Whether `data` is that of the doorbell.
    pub(super) const fn is_bell(data: u64) -> bool {
        data == CHANNEL_COOKIE
    }

    /// Whether every peer of that session surely has the channel's doorbell.
    pub(crate) fn channel_known(&self, session: u32) -> bool {
        control::check_mailbox();
        self.context()
            .and_then(contexts::context)
            .is_some_and(|context| context.known.load(Ordering::Acquire) == session + 1)
    }

    /// Whether waits must look again by themselves, because somebody may be unable to ring.
    pub(crate) fn is_blind(&self) -> bool {
        if forsaken::is_pending() {
            return true;
        }
        let Some(session) = self.blind.load(Ordering::Relaxed).checked_sub(1) else {
            return false;
        };
        let known = self.open_channel() && self.channel_known(session);
        if known {
            self.blind.store(0, Ordering::Relaxed);
        }
        !known
    }

    /// For a set that others watch in the kernel: far ends must ring at the next event, and what is left
    /// on the list keeps the descriptor readable.
    pub(crate) fn announce_if_polled(&'static self) {
        if !self.is_watched() {
            return;
        }
        if let Some(number) = self.context() {
            for session in &control::SESSIONS {
                let events = session.events.get();
                if let Some(words) = events.and_then(|events| contexts::words(&events, number)) {
                    words.prepare_sleep();
                }
            }
        }
        report::show_readiness(self);
    }

    /// Something was put on the list by another thread than the sleeping one: ring our own doorbell.
    pub(crate) fn wake_sleepers(&'static self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.ring();
        } else {
            self.announce_if_polled();
        }
    }

    /// The doorbell.
    pub(super) fn bell(&self) -> Option<c_int> {
        self.context()
            .and_then(contexts::context)
            .and_then(contexts::Context::bell)
    }

    /// Rings our own doorbell.
    pub(super) fn ring(&self) {
        if let Some(bell) = self.bell() {
            // SAFETY: a doorbell of ours.
            let bell = unsafe { std::os::fd::BorrowedFd::borrow_raw(bell) };
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }
}
