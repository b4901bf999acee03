//! The tables: epoll sets, interests, and which socket is in which.

#![expect(
    unsafe_code,
    reason = "system calls on the program's epoll descriptors"
)]

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use libc::epoll_event;
use rdma_core::Reason;
use rdma_core::slot::TxState;

use crate::conn::{CONN_NUMBERS, Conn, Numbers, conn};
use crate::fds::{self, Entry};
use crate::ops::ready::involves_ring;
use crate::{contexts, control, errno, kernel, real, tls};

/// Epoll sets with TCP sockets in them.
const SETS: usize = 1024;
/// Registrations of TCP sockets in all sets.
const INTERESTS: usize = 32_768;

/// [`Set::blind`]: some connection has more waiters than it can name.
pub(super) const ALWAYS_BLIND: u32 = u32::MAX;

const ET: u32 = 1 << 31;
const ONESHOT: u32 = 1 << 30;
pub(super) const EXCLUSIVE: u32 = 1 << 28;
/// All that the kernel lets stand beside EPOLLEXCLUSIVE: IN, OUT, ERR, HUP, WAKEUP, ET.
pub(super) const WITH_EXCLUSIVE: u32 = EXCLUSIVE | ET | 1 << 29 | 0x1d;

/// The upper half of our cookies. A program's own data in a registration that we made never stands
/// in the kernel, so it cannot be confused; the value only has to differ from the data of
/// registrations of other descriptors, which are small numbers or addresses.
const COOKIE: u64 = 0xfffe_71ad << 32;
/// Data of the event channel's registration.
const CHANNEL_COOKIE: u64 = COOKIE | 0xffff_ffff;

/// An epoll set of the program.
#[derive(Debug)]
pub(crate) struct Set {
    generation: AtomicU32,
    epfd: AtomicI32,
    refs: AtomicU32,
    context: AtomicU32,
    shared: AtomicU32,
    polled: AtomicU32,
    /// Registrations that are ours.
    pub interests: AtomicU32,
    /// Not 0: a session (index + 1) whose peers may not have the event channel's doorbell yet.
    pub blind: AtomicU32,
    /// Numbers the calls that wait, so that none reports an interest twice.
    pub calls: AtomicU32,
    /// Threads sleeping in the kernel on the set.
    pub sleepers: AtomicU32,
    busy: AtomicU32,
    /// Ready list: first and last interest, number + 1; 0 none.
    first: AtomicU32,
    last: AtomicU32,
}

/// One registration of a TCP socket in a set.
#[derive(Debug)]
pub(crate) struct Interest {
    /// Raised when freed.
    generation: AtomicU32,
    /// The kernel knows it.
    pub live: AtomicU32,
    set: AtomicU32,
    fd: AtomicI32,
    conn: AtomicU64,
    events: AtomicU32,
    data: AtomicU64,
    /// One-shot and reported: silent until modified.
    spent: AtomicU32,
    next: AtomicU32,
    pub listed: AtomicU32,
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

static SET_TABLE: [Set; SETS] = [const {
    Set {
        generation: AtomicU32::new(0),
        epfd: AtomicI32::new(0),
        refs: AtomicU32::new(0),
        context: AtomicU32::new(0),
        shared: AtomicU32::new(0),
        polled: AtomicU32::new(0),
        interests: AtomicU32::new(0),
        blind: AtomicU32::new(0),
        calls: AtomicU32::new(0),
        sleepers: AtomicU32::new(0),
        busy: AtomicU32::new(0),
        first: AtomicU32::new(0),
        last: AtomicU32::new(0),
    }
}; SETS];
static SET_NUMBERS: Numbers<SETS> = Numbers::new();

static INTEREST_TABLE: [Interest; INTERESTS] = [const {
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
        space: AtomicU32::new(0),
        told: AtomicU32::new(0),
        reported: AtomicU32::new(0),
        seen: AtomicU64::new(u64::MAX),
        asked: AtomicU32::new(0),
    }
}; INTERESTS];
static INTEREST_NUMBERS: Numbers<INTERESTS> = Numbers::new();

/// Set `index`.
#[inline]
pub(super) fn set_of(index: u32) -> Option<&'static Set> {
    SET_TABLE.get(index as usize)
}

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

/// Whether kernel event data is ours at all.
#[inline]
pub(super) const fn is_cookie(data: u64) -> bool {
    data & 0xffff_ffff_0000_0000 == COOKIE
}

/// A set was created by the program.
pub(crate) fn create(epfd: c_int) {
    if epfd >= 0 && crate::config::config().is_some() {
        make_set(epfd);
    }
}

/// The set behind `epfd`, entered now if it is new to us. `None`: it is no epoll set, or there are
/// too many.
pub(crate) fn make_set(epfd: c_int) -> Option<&'static Set> {
    if let Some(index) = fds::lookup(epfd).as_epoll() {
        return set_of(index);
    }
    if !fds::fits(epfd) || !fds::lookup(epfd).is_none() {
        return None;
    }
    let number = SET_NUMBERS.take()?;
    let set = set_of(number)?;
    set.epfd.store(epfd, Ordering::Relaxed);
    set.refs.store(1, Ordering::Relaxed);
    for word in [
        &set.context,
        &set.shared,
        &set.polled,
        &set.interests,
        &set.blind,
        &set.sleepers,
        &set.first,
        &set.last,
    ] {
        word.store(0, Ordering::Relaxed);
    }
    if let Some(arena) = control::arena()
        && let Some(word) = arena.header().shared_sets.get(number as usize / 64)
    {
        word.fetch_and(!(1 << (number % 64)), Ordering::SeqCst);
    }
    fds::insert(
        epfd,
        Entry::epoll(number, set.generation.load(Ordering::Relaxed)),
    );
    Some(set)
}

/// Calls `work` for every interest that the kernel knows.
pub(super) fn each_live(mut work: impl FnMut(&'static Interest)) {
    for interest in INTEREST_TABLE.iter().take(INTEREST_NUMBERS.used() as usize) {
        if interest.live.load(Ordering::Acquire) != 0 {
            work(interest);
        }
    }
}

/// A descriptor of a set was closed.
pub(crate) fn forget_set(epfd: c_int, index: u32) {
    let Some(set) = set_of(index) else { return };
    if set.refs.fetch_sub(1, Ordering::AcqRel) > 1 {
        if set.epfd() == epfd {
            // Another descriptor of the same set serves from now on.
            fds::each(0, u32::MAX, |fd, entry| {
                if entry.as_epoll() == Some(index) {
                    set.epfd.store(fd, Ordering::Relaxed);
                }
            });
        }
        return;
    }
    for interest in INTEREST_TABLE.iter().take(INTEREST_NUMBERS.used() as usize) {
        if interest.live.load(Ordering::Relaxed) != 0
            && interest.set.load(Ordering::Relaxed) == index
        {
            drop_interest(interest);
        }
    }
    if let Some(context) = set.context() {
        contexts::give_back(context);
    }
    set.generation.fetch_add(1, Ordering::Relaxed);
    SET_NUMBERS.give(index);
}

/// Another descriptor of a set.
pub(crate) fn share_fd(index: u32) {
    if let Some(set) = set_of(index) {
        set.refs.fetch_add(1, Ordering::AcqRel);
    }
}

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

/// Some set is watched as a descriptor: polled, selected or nested.
static WATCHED_SETS: AtomicU32 = AtomicU32::new(0);

/// In a forked child: all present sets are the parent's.
pub(crate) fn after_fork() {
    for set in SET_TABLE.iter().take(SET_NUMBERS.used() as usize) {
        set.shared.store(INHERITED, Ordering::Relaxed);
        set.busy.store(0, Ordering::Relaxed);
        set.sleepers.store(0, Ordering::Relaxed);
        set.context.store(0, Ordering::Relaxed);
    }
    SET_NUMBERS.after_fork(false);
    INTEREST_NUMBERS.after_fork(false);
    CONN_NUMBERS.after_fork(false);
}

/// [`Set::shared`]: a forked child has the set, and has not used it.
const INHERITED: u32 = 1;
/// [`Set::shared`]: a forked child uses its parent's set.
const SHARED: u32 = 2;

/// A forked child uses a set of its parent's: two processes now wait on one kernel set, which no ring can
/// serve. What the child knows of goes back to the kernel, and the parent is told to do the same.
#[cold]
fn share(set: &'static Set) {
    set.shared.store(SHARED, Ordering::SeqCst);
    let index = set.index();
    if let Some(parent) = control::parent_arena()
        && let Some(word) = parent.header().shared_sets.get(index as usize / 64)
    {
        word.fetch_or(1 << (index % 64), Ordering::SeqCst);
    }
    leave_rings(set);
}

/// Sends every connection of a set back to the kernel, and gives the kernel the program's own data.
fn leave_rings(set: &'static Set) {
    each_live(|interest| {
        if !interest
            .set()
            .is_some_and(|owner| core::ptr::eq(owner, set))
        {
            return;
        }
        if let Some(conn) = interest.conn() {
            crate::lifecycle::to_kernel(conn, interest.fd(), Reason::SharedEpoll);
        }
        dissolve(set, interest);
    });
}

/// A registration becomes the program's own again, in the kernel alone.
pub(super) fn dissolve(set: &'static Set, interest: &'static Interest) {
    let mut event = interest.as_asked();
    let (epfd, fd) = (set.epfd(), interest.fd());
    errno::preserved(|| {
        // SAFETY: a local event.
        unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, fd, &raw mut event) }
    });
    drop_interest(interest);
}

impl Set {
    /// Whether the set is known to be the kernel's alone.
    pub(super) fn is_given_up(&self) -> bool {
        self.shared.load(Ordering::Relaxed) == SHARED
    }
}

/// Whether the set is the kernel's alone because two processes use it; notices that they begin to.
#[inline]
pub(super) fn is_kernels_alone(set: &'static Set) -> bool {
    match set.shared.load(Ordering::Relaxed) {
        SHARED => return true,
        INHERITED => share(set),
        // A child of ours has begun to use it.
        _ if set.is_shared() => {
            set.shared.store(SHARED, Ordering::SeqCst);
            leave_rings(set);
        }
        _ => return false,
    }
    true
}

impl Set {
    fn index(&self) -> u32 {
        let offset = core::ptr::from_ref(self).addr() - SET_TABLE.as_ptr().addr();
        u32::try_from(offset / size_of::<Self>()).unwrap_or(u32::MAX)
    }

    /// The program's descriptor.
    pub(crate) fn epfd(&self) -> c_int {
        self.epfd.load(Ordering::Relaxed)
    }

    /// Whether the set is waited on in ways that we do not serve.
    pub(crate) fn is_shared(&self) -> bool {
        let index = self.index();
        self.shared.load(Ordering::Relaxed) != 0
            || control::arena()
                .and_then(|arena| arena.header().shared_sets.get(index as usize / 64))
                .is_some_and(|word| word.load(Ordering::Relaxed) >> (index % 64) & 1 != 0)
    }

    /// The set's waiting context.
    pub(crate) fn context(&self) -> Option<u16> {
        u16::try_from(self.context.load(Ordering::Acquire).checked_sub(1)?).ok()
    }

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
        let mut event = epoll_event {
            events: trigger | 1,
            u64: CHANNEL_COOKIE,
        };
        errno::preserved(|| {
            // SAFETY: a local event.
            unsafe { real::epoll_ctl(self.epfd(), op, bell, &raw mut event) == 0 }
        })
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
        let Some(session) = self.blind.load(Ordering::Relaxed).checked_sub(1) else {
            return false;
        };
        let known = self.open_channel() && self.channel_known(session);
        if known {
            self.blind.store(0, Ordering::Relaxed);
        }
        !known
    }

    /// Runs `work` alone; `None` in a signal handler that interrupted the owner.
    fn locked<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let me = tls::token();
        loop {
            match self
                .busy
                .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(owner) if owner == me => return None,
                Err(_) => rustix::thread::sched_yield(),
            }
        }
        let result = work();
        self.busy.store(0, Ordering::Release);
        Some(result)
    }

    /// Puts an interest at the end of the ready list, unless it is there.
    pub(crate) fn push(&self, interest: &'static Interest) {
        self.locked(|| {
            if interest.listed.swap(1, Ordering::Relaxed) != 0 {
                return;
            }
            interest.next.store(0, Ordering::Relaxed);
            let number = interest.number() + 1;
            match self.last.swap(number, Ordering::Relaxed).checked_sub(1) {
                Some(last) => {
                    if let Some(last) = INTEREST_TABLE.get(last as usize) {
                        last.next.store(number, Ordering::Relaxed);
                    }
                }
                None => self.first.store(number, Ordering::Relaxed),
            }
        });
    }

    /// Takes the first interest off the ready list.
    pub(crate) fn pop(&self) -> Option<&'static Interest> {
        self.locked(|| {
            let first = self.first.load(Ordering::Relaxed).checked_sub(1)?;
            let interest = INTEREST_TABLE.get(first as usize)?;
            let next = interest.next.load(Ordering::Relaxed);
            self.first.store(next, Ordering::Relaxed);
            if next == 0 {
                self.last.store(0, Ordering::Relaxed);
            }
            interest.listed.store(0, Ordering::Relaxed);
            Some(interest)
        })
        .flatten()
    }

    /// Whether the ready list is empty.
    pub(crate) fn is_quiet(&self) -> bool {
        self.first.load(Ordering::Relaxed) == 0
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
        super::report::show_readiness(self);
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
    fn bind(&'static self, conn: &Conn) -> bool {
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

/// The interests of a connection.
pub(super) fn interests_of(conn: &Conn) -> impl Iterator<Item = &'static Interest> {
    conn.sets
        .iter()
        .filter_map(|place| interest(place.load(Ordering::Acquire).checked_sub(1)?))
}

/// The interest of `fd` in `set`.
pub(super) fn find(set: &Set, fd: c_int) -> Option<(u32, &'static Interest)> {
    let index = set.index();
    let fits = |interest: &&'static Interest| {
        interest.set.load(Ordering::Relaxed) == index && interest.fd() == fd
    };
    let entry = fds::lookup(fd);
    let found = match (entry.as_conn(), entry.as_watched()) {
        (Some(number), _) => interests_of(conn(number)).find(fits)?,
        (None, Some(first)) => watched_interests(fd, first).find(fits)?,
        (None, None) => return None,
    };
    Some((found.number(), found))
}

/// A new interest, bound to the connection if the socket has one. `None`: no room.
pub(super) fn new_interest(
    set: &Set,
    fd: c_int,
    asked: epoll_event,
) -> Option<(u32, &'static Interest)> {
    let number = INTEREST_NUMBERS.take()?;
    let interest = INTEREST_TABLE.get(number as usize)?;
    interest.set.store(set.index(), Ordering::Relaxed);
    interest.fd.store(fd, Ordering::Relaxed);
    interest.conn.store(0, Ordering::Relaxed);
    // Of an earlier registration, perhaps by a call of the same number in another set.
    interest.reported.store(0, Ordering::Relaxed);
    interest.seen.store(u64::MAX, Ordering::Relaxed);
    interest.ask(asked);
    let entry = fds::lookup(fd);
    if let Some(index) = entry.as_conn() {
        if !interest.bind(conn(index)) {
            INTEREST_NUMBERS.give(number);
            return None;
        }
    } else if entry.as_watched().is_some() {
        SEVERAL.store(1, Ordering::Relaxed);
    } else {
        fds::insert(fd, Entry::watched(number));
    }
    Some((number, interest))
}

/// From now on events that carry the interest's cookie are understood.
pub(super) fn go_live(set: &Set, interest: &Interest) {
    set.interests.fetch_add(1, Ordering::Relaxed);
    interest.live.store(1, Ordering::Release);
}

/// Frees an interest. On the ready list it stays until it is popped and found dead.
pub(super) fn drop_interest(interest: &'static Interest) {
    if let Some(conn) = interest.conn() {
        for place in &conn.sets {
            let _ = place.compare_exchange(
                interest.number() + 1,
                0,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }
    fds::take(interest.fd(), Entry::watched(interest.number()));
    if interest.live.swap(0, Ordering::AcqRel) != 0
        && let Some(set) = interest.set()
    {
        set.interests.fetch_sub(1, Ordering::Relaxed);
        set.locked(|| unlist(set, interest));
    }
    interest.generation.fetch_add(1, Ordering::Relaxed);
    INTEREST_NUMBERS.give(interest.number());
}

/// Takes an interest out of the middle of the ready list; under the set's lock.
fn unlist(set: &Set, interest: &Interest) {
    if interest.listed.swap(0, Ordering::Relaxed) == 0 {
        return;
    }
    let target = interest.number() + 1;
    let next = interest.next.load(Ordering::Relaxed);
    let mut before = 0;
    let mut at = set.first.load(Ordering::Relaxed);
    while at != 0 && at != target {
        before = at;
        at = INTEREST_TABLE
            .get(at as usize - 1)
            .map_or(0, |i| i.next.load(Ordering::Relaxed));
    }
    if at == 0 {
        return;
    }
    match INTEREST_TABLE.get((before as usize).wrapping_sub(1)) {
        Some(previous) if before != 0 => previous.next.store(next, Ordering::Relaxed),
        _ => set.first.store(next, Ordering::Relaxed),
    }
    if set.last.load(Ordering::Relaxed) == target {
        set.last.store(before, Ordering::Relaxed);
    }
}

/// Whether `fd` is a TCP socket that may be connected later (or listens).
pub(super) fn is_unconnected_tcp(fd: c_int, entry: Entry) -> bool {
    entry.is_none()
        && fds::fits(fd)
        && kernel::option_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP)
}

/// Interests of a socket that is no connection: the first stands in its entry, others (in further
/// sets) are looked for only if there are any.
fn watched_interests(fd: c_int, first: u32) -> impl Iterator<Item = &'static Interest> {
    let several = SEVERAL.load(Ordering::Relaxed) != 0;
    let used = if several {
        INTEREST_NUMBERS.used() as usize
    } else {
        0
    };
    let others = INTEREST_TABLE
        .iter()
        .take(used)
        .filter(move |other| other.number() != first);
    interest(first)
        .into_iter()
        .chain(others.filter(|other| other.live.load(Ordering::Relaxed) != 0))
        .filter(move |found| found.fd() == fd && found.conn.load(Ordering::Relaxed) == 0)
}

/// Some unconnected socket stands in more than one set.
static SEVERAL: AtomicU32 = AtomicU32::new(0);

/// A watched socket has become a connection: its interests are the connection's.
pub(crate) fn adopt_watched(fd: c_int, first: u32, conn: &Conn) {
    for found in watched_interests(fd, first) {
        if !found.bind(conn) {
            conn.veto(Reason::Waiters);
        }
    }
}

/// A watched socket was closed without ever being a connection.
pub(crate) fn forget_watched(fd: c_int, first: u32) {
    for found in watched_interests(fd, first) {
        drop_interest(found);
    }
}
