//! Waiting contexts of this process: each is a doorbell (eventfd) and a number under which every daemon
//! session has an [`EventContext`] in its event memory.
//!
//! A thread borrows a context while it sleeps; an epoll set owns one for its life. There are as many as
//! ever slept at once, whatever the number of connections.

#![expect(
    unsafe_code,
    reason = "references into event memory that is never unmapped"
)]

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use frontend_drv::descriptor::lift;
use rdma_core::event::{CONTEXT_STRIDE, CONTEXTS, EventContext, WaitFor};
use rdma_core::layout::EndWaits;
use rdma_core::mem::Region;
use rustix::event::{EventfdFlags, eventfd};

use crate::fds::{self, Entry};

const COUNT: usize = CONTEXTS as usize;

/// One context.
#[derive(Debug)]
pub(crate) struct Context {
    /// 0: none yet; else the doorbell's number plus one.
    bell: AtomicI32,
    busy: AtomicU32,
    /// The session (index + 1) under which every peer is known to have the doorbell.
    pub known: AtomicU32,
}

static TABLE: [Context; COUNT] = [const {
    Context {
        bell: AtomicI32::new(0),
        busy: AtomicU32::new(0),
        known: AtomicU32::new(0),
    }
}; COUNT];

/// Contexts made so far.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Borrows a free context, making one if needed. `None` when there are too many or the process is
/// short of descriptors.
pub(crate) fn borrow() -> Option<u16> {
    for (number, context) in TABLE.iter().enumerate() {
        if context.busy.load(Ordering::Relaxed) != 0
            || context
                .busy
                .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
        {
            continue;
        }
        if context.bell.load(Ordering::Acquire) != 0 || make(number, context) {
            return u16::try_from(number).ok();
        }
        context.busy.store(0, Ordering::Release);
        return None;
    }
    None
}

/// Gives a context back.
pub(crate) fn give_back(number: u16) {
    if let Some(context) = TABLE.get(usize::from(number)) {
        context.busy.store(0, Ordering::Release);
    }
}

/// Context `number`.
pub(crate) fn context(number: u16) -> Option<&'static Context> {
    TABLE.get(usize::from(number))
}

/// Contexts made so far: numbers below this one have doorbells.
pub(crate) fn made() -> u32 {
    MADE.load(Ordering::Acquire)
}

impl Context {
    /// The doorbell's descriptor.
    pub(crate) fn bell(&self) -> Option<RawFd> {
        match self.bell.load(Ordering::Acquire) {
            0 => None,
            fd => Some(fd - 1),
        }
    }

    /// Takes a ring of the doorbell, if there is one.
    pub(crate) fn silence(&self) {
        if let Some(fd) = self.bell() {
            let mut count = [0u8; 8];
            // SAFETY: the descriptor is ours and open while the process lives.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = rustix::io::read(fd, &mut count);
        }
    }

    /// The program wants this number for a descriptor of its own: move the doorbell.
    pub(crate) fn move_bell(&self, from: RawFd) -> bool {
        if self.bell() != Some(from) {
            return false;
        }
        // SAFETY: ours.
        let old = unsafe { BorrowedFd::borrow_raw(from) };
        if let Ok(new) = old
            .try_clone_to_owned()
            .map_err(|_| ())
            .and_then(|fd| lift(fd).map_err(|_| ()))
        {
            fds::insert(new.as_raw_fd(), Entry::INTERNAL);
            self.bell.store(new.into_raw_fd() + 1, Ordering::Release);
        }
        true
    }
}

fn make(number: usize, context: &Context) -> bool {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let Ok(bell) = eventfd(0, flags).and_then(lift) else {
        return false;
    };
    keep(&bell);
    context.known.store(0, Ordering::Relaxed);
    context
        .bell
        .store(bell.into_raw_fd() + 1, Ordering::Release);
    MADE.fetch_max(u32::try_from(number).unwrap_or(0) + 1, Ordering::AcqRel);
    crate::control::announce(u16::try_from(number).unwrap_or(0));
    true
}

/// Rings the doorbells of this process's own contexts among those who wait.
pub(crate) fn ring_own(waits: &EndWaits) {
    for what in [WaitFor::Data, WaitFor::Space] {
        waits.each(what, |who| {
            if let Some(bell) = context(who.context).and_then(Context::bell) {
                // SAFETY: ours.
                let bell = unsafe { BorrowedFd::borrow_raw(bell) };
                let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
            }
        });
    }
}

/// Protects a descriptor of ours from the program's own close loops.
pub(crate) fn keep(fd: &OwnedFd) {
    fds::insert(fd.as_raw_fd(), Entry::INTERNAL);
}

/// In a forked child: doorbells belong to the parent; make new ones.
pub(crate) fn after_fork() {
    for context in &TABLE {
        if let Some(fd) = context.bell() {
            fds::take(fd, Entry::INTERNAL);
            // SAFETY: the child's copy of a doorbell that only this module uses.
            drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
        }
        context.bell.store(0, Ordering::Relaxed);
        context.busy.store(0, Ordering::Relaxed);
        context.known.store(0, Ordering::Relaxed);
    }
    MADE.store(0, Ordering::Relaxed);
}

/// The shared words of context `number` in a process's event memory.
pub(crate) fn words(events: &Region, number: u16) -> Option<&'static EventContext> {
    events.get(usize::from(number) * CONTEXT_STRIDE)
}

/// A region that is mapped once and then read by everybody.
#[derive(Debug)]
pub(crate) struct RegionCell {
    base: AtomicU64,
    len: AtomicU64,
    /// Where it is, if it is the memory of a device, which may vanish.
    device: AtomicU64,
}

impl RegionCell {
    /// Not mapped.
    pub(crate) const fn new() -> Self {
        Self {
            base: AtomicU64::new(0),
            len: AtomicU64::new(0),
            device: AtomicU64::new(0),
        }
    }

    /// As [`RegionCell::set`], of a file that may be a device's.
    pub(crate) fn set_from(&self, region: &Region, file: &OwnedFd) {
        self.set(region);
        if frontend_drv::memory::is_of_device(file) {
            let base = self.base.load(Ordering::Relaxed);
            self.device.store(base, Ordering::Release);
        }
    }

    /// Whether an address lies in the mapped memory of a device.
    pub(crate) fn is_device_at(&self, address: usize) -> bool {
        let begin = self.device.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Relaxed);
        begin != 0 && (begin..begin + len).contains(&(address as u64))
    }

    /// Announces the mapping.
    pub(crate) fn set(&self, region: &Region) {
        self.len.store(region.len() as u64, Ordering::Relaxed);
        self.base.store(
            region.base().as_ptr().expose_provenance() as u64,
            Ordering::Release,
        );
    }

    /// Forgets the mapping.
    pub(crate) fn clear(&self) {
        self.device.store(0, Ordering::Release);
        self.base.store(0, Ordering::Release);
    }

    /// The mapping.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an address and a length of this machine"
    )]
    pub(crate) fn get(&self) -> Option<Region> {
        let base = self.base.load(Ordering::Acquire) as usize;
        let base = core::ptr::NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(base))?;
        // SAFETY: set from a mapping that is never removed.
        Some(unsafe { Region::new(base, self.len.load(Ordering::Relaxed) as usize) })
    }
}
