//! How processes at the far ends are woken, and descriptors of ours by their numbers.

#![expect(unsafe_code, reason = "raw descriptors of our own in static tables")]

use core::sync::atomic::Ordering;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use frontend_drv::descriptor::lift;

use super::peers::{PEERS, Peer};
use crate::fds::{self, Entry};

/// How a context of a far process is woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bell {
    /// By a write to this eventfd.
    Event(RawFd),
    /// By a store of this value to the device's doorbell register.
    Register(u32),
}

impl Peer {
    /// The doorbell of one of its contexts.
    #[inline]
    pub(crate) fn bell(&self, context: u16) -> Option<Bell> {
        match self
            .bells
            .get(usize::from(context))?
            .load(Ordering::Acquire)
        {
            0 => None,
            value @ i32::MIN..0 => Some(Bell::Register(!value.cast_unsigned())),
            fd => Some(Bell::Event(fd - 1)),
        }
    }

    /// Stores what rings a context of a process in another virtual machine.
    pub(in crate::control) fn set_register(&self, context: u32, value: u32) {
        let Some(place) = self.bells.get(context as usize) else {
            return;
        };
        // The highest bit of `value` is not set.
        let old = place.swap((!value).cast_signed(), Ordering::AcqRel);
        if old > 0 {
            close_bell(old - 1);
        }
    }

    /// Stores a doorbell.
    pub(in crate::control) fn set_bell(&self, context: u32, bell: OwnedFd) {
        let Some(place) = self.bells.get(context as usize) else {
            return;
        };
        fds::insert(bell.as_raw_fd(), Entry::INTERNAL);
        let old = place.swap(bell.into_raw_fd() + 1, Ordering::AcqRel);
        if old > 0 {
            close_bell(old - 1);
        }
    }
}

/// The program wants this number for a descriptor of its own: a peer's doorbell moves.
pub(in crate::control) fn make_way_for_bell(fd: RawFd) {
    for bell in PEERS.iter().flat_map(|peer| &peer.bells) {
        if bell.load(Ordering::Relaxed) == fd + 1 {
            // SAFETY: ours.
            let new = unsafe { BorrowedFd::borrow_raw(fd) }
                .try_clone_to_owned()
                .ok()
                .and_then(|new| lift(new).ok());
            let new = new.map_or(0, |new| {
                fds::insert(new.as_raw_fd(), Entry::INTERNAL);
                new.into_raw_fd() + 1
            });
            bell.store(new, Ordering::Release);
        }
    }
}

/// A descriptor of ours, by number.
pub(in crate::control) fn borrow(fd: u32) -> BorrowedFd<'static> {
    // SAFETY: a number that this library opened and keeps open.
    unsafe { BorrowedFd::borrow_raw(RawFd::try_from(fd).unwrap_or(RawFd::MAX)) }
}

pub(super) fn close_bell(fd: RawFd) {
    if fds::take(fd, Entry::INTERNAL) {
        // SAFETY: our own descriptor, taken out of the table just now.
        drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    }
}
