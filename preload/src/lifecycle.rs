//! Descriptors and connections: birth, duplication, closing, fork.

use core::ffi::c_int;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicU32, Ordering};

use rdma_core::Reason;
use rdma_core::control::{Message, SlotRef};
use rdma_core::policy::Verdict;
use rdma_core::ring::Consumer;
use rdma_core::slot::{RxState, SLOTS, Slot, Stage};

use crate::conn::{CONN_NUMBERS, Conn, Numbers, SHUT_READ, SHUT_WRITE, conn};
use crate::fds::{self, Entry};
use crate::ops::file::relay;
use crate::ops::{epoll, lock, send};
use crate::{
    config, contexts, control, downgrade, errno, faults, holders, kernel, kick, pins, tls, upgrade,
};

/// Free slots of this process's arena.
static SLOT_NUMBERS: Numbers<{ SLOTS as usize }> = Numbers::new();

/// Which side of the handshake a socket was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// It called connect.
    Connected = 1,
    /// It was accepted.
    Accepted = 2,
    /// Somebody else made the connection; the kernel's counts tell later.
    Unknown = 0,
}

/// A connection was made (or, for a non-blocking connect, begun): if its far end is a peer, it becomes
/// a candidate.
pub(crate) fn adopt(fd: c_int, far: SocketAddr, side: Side, nonblocking: bool) {
    let Some(config) = config::config() else {
        return;
    };
    let entry = fds::lookup(fd);
    if entry.as_conn().is_some() {
        if side == Side::Connected {
            // The second connect of a non-blocking socket, or a reconnect.
            if let Some(index) = entry.as_conn() {
                conn(index)
                    .slot()
                    .meta
                    .connects
                    .fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        // A close that we did not see: the number is another socket's now.
        forget_stale(fd);
    }
    // A port in the list is the service's: the far end's for who connects, our own for who accepts.
    let judged = if side == Side::Accepted && config.policy.has_ports() {
        let own = kernel::addresses(fd).map_or(0, |(own, _)| own.port());
        SocketAddr::new(far.ip(), own)
    } else {
        far
    };
    match config.policy.judge(judged) {
        Verdict::Peer(_) => {}
        Verdict::Plain(reason, _) => {
            if let Some(arena) = control::arena() {
                arena.header().counters.count_reason(reason);
            }
            if fds::fits(fd) && fds::lookup(fd).is_none() {
                fds::insert(fd, Entry::PLAIN);
            }
            return;
        }
    }
    errno::preserved(|| make_candidate(fd, side, nonblocking));
}

/// A descriptor came from elsewhere (inherited over exec, received from another process): if it is a
/// connection to a peer, it becomes a candidate.
pub(crate) fn adopt_unknown(fd: c_int) {
    let Some(config) = config::config() else {
        return;
    };
    errno::preserved(|| {
        let is_tcp =
            kernel::option_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP);
        if !is_tcp
            || fds::lookup(fd).as_conn().is_some()
            || kernel::state(fd) != Some(kernel::TCP_ESTABLISHED)
        {
            return;
        }
        let Some((own, far)) = kernel::addresses(fd) else {
            return;
        };
        // A port in the list is the service's, and which end that is we do not know.
        let service = SocketAddr::new(far.ip(), own.port());
        let is_peer = |judged| matches!(config.policy.judge(judged), Verdict::Peer(_));
        if is_peer(far) && (!config.policy.has_ports() || is_peer(service)) {
            make_candidate(fd, Side::Unknown, kernel::is_nonblocking(fd));
        }
    });
}

/// What was inherited over exec, as far as a program that starts another one hands descriptors on.
pub(crate) fn adopt_inherited() {
    for fd in 0..INHERITED {
        adopt_unknown(fd);
    }
}

/// Descriptors looked at when the program starts.
const INHERITED: c_int = 16;

fn make_candidate(fd: c_int, side: Side, nonblocking: bool) {
    // What was accepted has a connection; whether it is TCP's is asked when it registers.
    if !fds::fits(fd)
        || side == Side::Connected
            && kernel::option_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)
                != Some(libc::IPPROTO_TCP)
    {
        return;
    }
    let Some(arena) = control::make_arena() else {
        return;
    };
    let Some((index, slot)) = new_slot(&arena) else {
        arena.header().counters.count_reason(Reason::SlotLimit);
        return;
    };
    let Some(number) = CONN_NUMBERS.take() else {
        SLOT_NUMBERS.give(index);
        return;
    };
    let conn = conn(number);
    holders::begin(slot);
    slot.meta.side.store(side as u32, Ordering::Relaxed);
    slot.meta.connects.store(1, Ordering::Relaxed);
    slot.meta
        .nonblocking
        .store(u32::from(nonblocking), Ordering::Relaxed);
    slot.set_stage(Stage::Candidate);
    conn.begin(slot, index);
    control::bind_slot(index, Some(number));
    if side == Side::Connected {
        kick::went_by_kernel();
    }
    // Before anybody finds the connection and touches what the program gives.
    faults::install();
    KNOWN.store(1, Ordering::Release);
    if let Some(first) = fds::insert(fd, conn.entry()).as_watched() {
        epoll::adopt_watched(fd, first, conn);
    }
    // Who accepts may fork for it: that end registers at its first data call, in whichever process
    // makes it.
    if side == Side::Connected && config::upgrade_after().0 == 0 {
        upgrade::register(conn, fd);
    }
}

/// Whether this process ever had a connection of which the library took note.
#[inline]
pub(crate) fn any_known() -> bool {
    KNOWN.load(Ordering::Acquire) != 0
}

/// From now on the library has never heard of any connection.
pub(crate) fn know_nothing() {
    KNOWN.store(0, Ordering::Relaxed);
}

static KNOWN: AtomicU32 = AtomicU32::new(0);

fn new_slot(arena: &rdma_core::slot::ArenaView) -> Option<(u32, &'static Slot)> {
    let index = SLOT_NUMBERS.take()?;
    let slot = arena.slot(index)?;
    arena
        .header()
        .slots_used
        .fetch_max(index + 1, Ordering::Relaxed);
    slot.reset();
    Some((index, slot))
}

/// A forked child is the only holder left of a connection that its parent made: from now on the
/// connection lives in the child's own arena. `None`: no slot free.
pub(crate) fn move_to_own_arena(conn: &'static Conn) -> Option<u32> {
    let arena = control_arena_locked()?;
    let old = conn.slot();
    let (index, slot) = new_slot(&arena)?;
    let (from, to) = (&old.meta, &slot.meta);
    for (from, to) in [
        (&from.side, &to.side),
        (&from.nonblocking, &to.nonblocking),
        (&from.delivered, &to.delivered),
        (&from.connects, &to.connects),
        (&from.shut, &to.shut),
    ] {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    holders::begin(slot);
    slot.rx
        .inq
        .store(old.rx.inq.load(Ordering::Relaxed), Ordering::Relaxed);
    slot.rx
        .lowat
        .store(old.rx.lowat.load(Ordering::Relaxed), Ordering::Relaxed);
    slot.rx
        .tcp_bytes
        .store(old.rx.tcp_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    slot.tx
        .tcp_bytes
        .store(old.tx.tcp_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    slot.set_stage(Stage::Candidate);
    conn.move_slot(slot, index);
    control::bind_slot(index, Some(conn.index()));
    Some(index)
}

/// The arena, also when the caller holds the control lock.
fn control_arena_locked() -> Option<rdma_core::slot::ArenaView> {
    control::arena().or_else(control::make_arena_locked)
}

/// A descriptor was duplicated by dup, dup2, dup3 or fcntl.
pub(crate) fn duplicated(old: c_int, new: c_int) {
    let entry = fds::lookup(old);
    if entry.is_none() && fds::lookup(new).is_none() || !is_own_memory() {
        return;
    }
    if let Some(index) = entry.as_conn() {
        conn(index).refs.fetch_add(1, Ordering::AcqRel);
        if !fds::fits(new) {
            // We would not see it used: no ring for this connection.
            conn(index).veto(Reason::FdLimit);
            return;
        }
        fds::insert(new, entry);
    } else if let Some(index) = entry.as_epoll() {
        epoll::share_fd(index);
        fds::insert(new, entry);
    } else if fds::lookup(new).is_internal() {
        // The kernel gave us a number that we thought was ours: ours was closed behind our back.
        fds::replace(new, Entry::NONE);
    } else if !fds::lookup(new).is_none() {
        forget_stale(new);
    }
}

/// A number that the kernel has just handed out cannot still be what we think: a close was missed.
#[inline]
pub(crate) fn created(fd: c_int) {
    if fd >= 0 && !fds::lookup(fd).is_none() && is_own_memory() {
        forget_stale(fd);
    }
}

/// Before a sleep on a connection: the number may name another file by now, because of a close that no
/// hook saw. True if it did; the connection is forgotten then.
pub(crate) fn is_stale(conn: &Conn, fd: c_int) -> bool {
    let known = conn.slot().meta.cookie.load(Ordering::Relaxed);
    if known == 0 || kernel::cookie(fd) == Some(known) {
        return false;
    }
    errno::preserved(|| created(fd));
    true
}

#[cold]
fn forget_stale(fd: c_int) {
    let entry = fds::lookup(fd);
    if entry.is_internal() {
        fds::replace(fd, Entry::NONE);
        return;
    }
    if let Some(closing) = take_out(fd, None, false) {
        closing.finish();
    }
}

/// What remains to be done after a descriptor has really been closed.
#[must_use]
pub(crate) struct Closing {
    conn: Option<&'static Conn>,
}

/// Before the kernel closes `fd`: takes it out of the table and, if it was the last descriptor of the
/// last process, ends the connection. `None`: nothing of ours.
pub(crate) fn begin_close(fd: c_int) -> Option<Closing> {
    pins::sweep();
    take_out(fd, Some(fd), true)
}

/// As [`begin_close`]; `socket` is the descriptor if it still names the connection's socket. `lives_on`: the
/// socket itself may go on for those who are blocked on it.
fn take_out(fd: c_int, socket: Option<c_int>, lives_on: bool) -> Option<Closing> {
    let entry = fds::lookup(fd);
    if entry.is_none() || entry.is_internal() || !fds::take(fd, entry) {
        return None;
    }
    if let Some(index) = entry.as_epoll() {
        epoll::forget_set(fd, index);
        return None;
    }
    if let Some(first) = entry.as_watched() {
        epoll::forget_watched(fd, first);
        return None;
    }
    let conn = conn(entry.as_conn()?);
    let kept = pins::others(conn);
    if kept {
        pins::keep(conn, fd, lives_on && socket.is_some());
        // They sleep on the number, which may soon be another file's.
        if let Some(view) = conn.view() {
            contexts::ring_own(&view.mine.waits);
        }
    }
    let last = conn.refs.fetch_sub(1, Ordering::AcqRel) == 1;
    if kept {
        // They may all be gone already.
        pins::settle(conn);
    }
    if !last {
        return None;
    }
    errno::preserved(|| last_descriptor(conn, socket));
    Some(Closing { conn: Some(conn) })
}

/// Closes `kept`, a duplicate for threads which are not blocked any more, by `close`.
pub(crate) fn close_kept(conn: &'static Conn, kept: c_int, close: impl FnOnce()) {
    errno::preserved(|| {
        let last = conn.refs.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            last_descriptor(conn, Some(kept));
        }
        close();
        if last {
            Closing { conn: Some(conn) }.finish();
        }
    });
}

/// The last descriptor of this process.
fn last_descriptor(conn: &'static Conn, socket: Option<c_int>) {
    let slot = conn.slot();
    epoll::forget_conn(conn, socket);
    if !holders::leave(slot) {
        return;
    }
    let by_others = slot.meta.strangers.load(Ordering::Acquire) > 0
        || conn.spawns.load(Ordering::Relaxed) != spawned();
    if let (Some(fd), true) = (socket, by_others) {
        // A program without the library may hold the socket, and goes on with it.
        downgrade::leave_ring(conn, fd, Reason::Exec);
    } else if let Some(view) = conn.view() {
        let rx = &slot.rx;
        let locked = lock::take_rx(conn).is_ok();
        // Before the end is said: who hears of that sends nothing more by ring, as TCP takes what comes
        // after a FIN for a reset, and not for unread bytes.
        view.mine.state.leave();
        let mut cursor = rx.cursor();
        // What its sender took back before we saw the switch came by the kernel.
        let unread = matches!(
            rx.state(),
            RxState::Ring | RxState::Armed | RxState::Draining
        ) && view.theirs.state.is_switched()
            && Consumer::of(view).refresh(&mut cursor).unwrap_or(0) > 0;
        if locked {
            lock::free(&rx.lock);
        }
        send::end(conn, socket);
        kick::wake_all(conn, view);
        // Threads of our own that sleep on the connection must not touch its memory later.
        contexts::ring_own(&view.mine.waits);
        if let Some(fd) = socket.filter(|_| unread) {
            kernel::reset_on_close(fd);
        }
    }
    count(conn);
}

/// Adds what the connection did to the process's counters.
fn count(conn: &Conn) {
    let Some(arena) = control::arena() else {
        return;
    };
    let counters = &arena.header().counters;
    let slot = conn.slot();
    for (total, part) in [
        (&counters.ring_tx_bytes, slot.tx.cursor().tail),
        (&counters.ring_rx_bytes, slot.rx.cursor().head),
        (
            &counters.tcp_tx_bytes,
            slot.tx.tcp_bytes.load(Ordering::Relaxed),
        ),
        (
            &counters.tcp_rx_bytes,
            slot.rx.tcp_bytes.load(Ordering::Relaxed),
        ),
        (
            &counters.wakeups_sent,
            slot.tx.kicks.load(Ordering::Relaxed),
        ),
        (&counters.sleeps, slot.rx.sleeps.load(Ordering::Relaxed)),
    ] {
        if part != 0 {
            total.fetch_add(part, Ordering::Relaxed);
        }
    }
    let never = match slot.stage() {
        Stage::Candidate => {
            let known = slot.meta.reason.load(Ordering::Relaxed);
            Some(Reason::from_code(known).unwrap_or(Reason::Young))
        }
        Stage::Registered => Some(Reason::Unpaired),
        // Paired, but vetoed before anything went over the ring.
        Stage::Attached if slot.tx.cursor().tail == 0 && slot.rx.cursor().head == 0 => {
            let told = slot.meta.reason.load(Ordering::Relaxed);
            conn.vetoed().or_else(|| Reason::from_code(told))
        }
        Stage::Free | Stage::Attached | Stage::Plain => None,
    };
    if let Some(reason) = never {
        counters.declined.fetch_add(1, Ordering::Relaxed);
        counters.count_reason(reason);
    }
}

impl Closing {
    /// After the kernel has closed the descriptor.
    pub(crate) fn finish(self) {
        let Some(conn) = self.conn else { return };
        let slot = conn.slot();
        let index = conn.slot_index.load(Ordering::Relaxed);
        let stage = slot.stage();
        let last = slot.meta.holders.load(Ordering::Acquire) == 0;
        if last && matches!(stage, Stage::Registered | Stage::Attached) {
            unregister(conn, slot, index);
        }
        // From here on nobody finds the connection through a descriptor; wait for those who did.
        conn.generation.fetch_add(1, Ordering::AcqRel);
        if lock::take_tx(conn).is_ok() {
            lock::free(&slot.tx.lock);
        }
        if lock::take_rx(conn).is_ok() {
            lock::free(&slot.rx.lock);
        }
        conn.detach();
        if last && index != u32::MAX {
            control::bind_slot(index, None);
            slot.set_stage(Stage::Free);
            SLOT_NUMBERS.give(index);
        }
        CONN_NUMBERS.give(conn.index());
    }
}

fn unregister(conn: &Conn, slot: &Slot, index: u32) {
    let session = match slot.stage() {
        Stage::Attached => control::session(conn.session.load(Ordering::Relaxed)),
        _ => control::current(),
    };
    // The daemon keeps the memory until it hears of this.
    tell(session, &Message::Unregister(slot_ref(conn, slot, index)));
}

/// The connection has left its ring: its far end may be idle with bytes that it must send once more.
pub(crate) fn tell_retracted(conn: &Conn) {
    let slot = conn.slot();
    let session = control::session(conn.session.load(Ordering::Relaxed));
    let slot = slot_ref(conn, slot, conn.slot_index.load(Ordering::Relaxed));
    tell(session, &Message::Retracted(slot));
}

/// How the daemon calls the connection.
fn slot_ref(conn: &Conn, slot: &Slot, index: u32) -> SlotRef {
    SlotRef {
        slot: if index == u32::MAX {
            conn.inherited_slot()
        } else {
            index
        },
        generation: slot.meta.generation.load(Ordering::Relaxed),
    }
}

/// Tells the daemon; if it is behind, waits a little.
fn tell(session: Option<&control::Session>, message: &Message<'_>) {
    let Some(session) = session else { return };
    for _ in 0..TELL_TRIES {
        if control::send(session, message, &[]) || !session.is_live() {
            break;
        }
        session.wait_for_room();
    }
}

/// Tries of 10 ms each to tell a busy daemon something.
const TELL_TRIES: u32 = 20;

/// shutdown(2), before the kernel's.
pub(crate) fn before_shutdown(fd: c_int, how: c_int) {
    let Some(index) = fds::lookup(fd).as_conn() else {
        return;
    };
    let conn = conn(index);
    if how == libc::SHUT_WR || how == libc::SHUT_RDWR {
        conn.shut_down(SHUT_WRITE);
        errno::preserved(|| send::end(conn, Some(fd)));
    }
    if how == libc::SHUT_RD || how == libc::SHUT_RDWR {
        conn.shut_down(SHUT_READ);
    }
    // Linux answers what comes after both directions are shut with RST: the far end leaves its ring,
    // and the kernel sees to it.
    if conn.shut() == SHUT_READ | SHUT_WRITE
        && let Some(view) = conn.view()
    {
        view.mine.state.leave();
        kick::wake_all(conn, view);
    }
}

/// shutdown(2), after the kernel's, and whatever that said: to the kernel it is an edge.
pub(crate) fn after_shutdown(fd: c_int) {
    if let Some(index) = fds::lookup(fd).as_conn() {
        kick::went_by_kernel();
        errno::preserved(|| epoll::post_edge(conn(index)));
    }
}

/// connect(AF_UNSPEC), before the kernel's: the connection is dissolved, the descriptor stays.
pub(crate) fn before_dissolve(fd: c_int) -> Option<Closing> {
    fds::lookup(fd).as_conn()?;
    take_out(fd, Some(fd), false)
}

/// Before fork: every connection gets one holder more, so that the parent's close in the meantime is
/// not the last.
pub(crate) fn before_fork() {
    each_conn(|conn| holders::expect_one(conn.slot()));
}

/// The fork failed.
pub(crate) fn fork_failed() {
    each_conn(|conn| holders::nobody_came(conn.slot()));
}

fn each_conn(work: impl Fn(&'static Conn)) {
    for number in 0..CONN_NUMBERS.used() {
        let conn = conn(number);
        if conn.refs.load(Ordering::Relaxed) > 0 {
            work(conn);
        }
    }
}

/// In a forked child: what belongs to the parent is left alone.
pub(crate) extern "C" fn in_forked_child() {
    OWN_PID.store(0, Ordering::Relaxed);
    tls::after_fork();
    crate::retire::after_fork();
    faults::after_fork();
    CONN_NUMBERS.after_fork(false);
    SLOT_NUMBERS.after_fork(true);
    control::after_fork();
    kick::after_fork();
    contexts::after_fork();
    relay::after_fork();
    epoll::after_fork();
    pins::after_fork();
    each_conn(|conn| {
        conn.inherit();
        holders::enter(conn.slot());
    });
    pins::sweep();
}

/// A descriptor is passed to another process, which may not have the library: its connection stays on
/// TCP or goes back there.
pub(crate) fn passed_on(fd: c_int) {
    leave_to_others(fd, Reason::FdPassed);
}

/// A descriptor is wrapped into a stdio stream, whose reads and writes we do not see.
pub(crate) fn to_stdio(fd: c_int) {
    leave_to_others(fd, Reason::Stdio);
}

fn leave_to_others(fd: c_int, reason: Reason) {
    let Some(index) = fds::lookup(fd).as_conn() else {
        return;
    };
    to_kernel(conn(index), fd, reason);
}

/// The connection must be the kernel's from now on, for `reason`.
#[cold]
pub(crate) fn to_kernel(conn: &'static Conn, fd: c_int, reason: Reason) {
    errno::preserved(|| {
        withdraw(conn, reason);
        downgrade::leave_ring(conn, fd, reason);
    });
}

/// A registration that nobody has answered is taken back.
fn withdraw(conn: &'static Conn, reason: Reason) {
    let slot = conn.slot();
    if slot.stage() == Stage::Registered {
        unregister(conn, slot, conn.slot_index.load(Ordering::Relaxed));
    }
    if matches!(slot.stage(), Stage::Registered | Stage::Candidate) {
        upgrade::decline(conn, reason);
    }
}

/// The program wants the number of one of our own descriptors: ours moves.
pub(crate) fn make_way(fd: c_int) {
    errno::preserved(|| {
        let moved = (0..contexts::made()).any(|number| {
            u16::try_from(number)
                .ok()
                .and_then(contexts::context)
                .is_some_and(|context| context.move_bell(fd))
        });
        if !moved && !pins::make_way(fd) && !relay::make_way(fd) {
            control::make_way(fd);
        }
        fds::replace(fd, Entry::NONE);
    });
}

/// Whether this process's memory is its own: false in a vfork child, which must not change it.
pub(crate) fn is_own_memory() -> bool {
    let pid = rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    match OWN_PID.load(Ordering::Relaxed) {
        0 => {
            OWN_PID.store(pid, Ordering::Relaxed);
            true
        }
        own => own == pid,
    }
}

static OWN_PID: AtomicU32 = AtomicU32::new(0);

/// The process exits in an orderly way, and closes its connections thereby. Those that other threads are
/// blocked on it holds no more, so that the close of whoever shares them by fork is the last.
pub(crate) extern "C" fn at_exit() {
    if !any_known() || !is_own_memory() {
        return;
    }
    fds::each(0, u32::MAX, |fd, entry| {
        let Some(conn) = entry.as_conn().map(conn) else {
            return;
        };
        if !pins::others(conn) {
            // The kernel closes the descriptors, and the daemon sees the process leave.
            let _ = take_out(fd, Some(fd), false);
        } else if let Some(view) = conn.view() {
            // What a far end left in its ring goes with the rest of what the kernel still has to send.
            downgrade::service(conn, view, fd);
        }
    });
    each_conn(|conn| {
        conn.refs.store(0, Ordering::Relaxed);
        holders::leave(conn.slot());
    });
}

/// Another program is started by a call that duplicates all descriptors and that shows us nothing of what
/// becomes of them: posix_spawn, vfork, system, popen.
pub(crate) extern "C" fn spawning() {
    if any_known() {
        SPAWNED.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often that has happened.
pub(crate) fn spawned() -> u32 {
    SPAWNED.load(Ordering::Relaxed)
}

static SPAWNED: AtomicU32 = AtomicU32::new(0);

/// Before exec: the new program knows nothing of rings. What it inherits goes back to the kernel, unless
/// other processes go on with it and it merely stays open in the new program: a descriptor beyond
/// standard error that nobody takes the trouble to close.
///
/// Connections whose descriptors exec closes lose a holder.
pub(crate) fn before_exec() {
    if !any_known() || !is_own_memory() {
        return;
    }
    errno::preserved(|| {
        fds::each(0, u32::MAX, |fd, entry| {
            if let Some(index) = entry.as_conn() {
                let kept = !kernel::is_close_on_exec(fd);
                let meta = &conn(index).exec;
                meta.fetch_or(KNOWN_TO_EXEC, Ordering::Relaxed);
                if kept {
                    meta.fetch_or(KEPT_BY_EXEC, Ordering::Relaxed);
                }
                if kept && fd <= 2 {
                    meta.fetch_or(USED_BY_EXEC, Ordering::Relaxed);
                }
            }
        });
        fds::each(0, u32::MAX, |fd, entry| {
            if let Some(index) = entry.as_conn() {
                give_to_program(conn(index), fd);
            }
        });
    });
}

/// Bits of [`Conn::exec`]: it has a descriptor; one that exec keeps; one that the new program will use; it
/// was left to the new program, among others or alone.
const KNOWN_TO_EXEC: u32 = 1;
const KEPT_BY_EXEC: u32 = 2;
const USED_BY_EXEC: u32 = 4;
const LEFT_TO_EXEC: u32 = 8;
const LEFT_A_STRANGER: u32 = 16;

fn give_to_program(conn: &'static Conn, fd: c_int) {
    let slot = conn.slot();
    let bits = conn.exec.load(Ordering::Relaxed);
    if bits & KNOWN_TO_EXEC == 0 || bits & LEFT_TO_EXEC != 0 {
        return;
    }
    let shared = !holders::is_alone(conn);
    if bits & KEPT_BY_EXEC != 0 && (!shared || bits & USED_BY_EXEC != 0 || conn.view().is_none()) {
        to_kernel(conn, fd, Reason::Exec);
    }
    if !shared {
        if bits & KEPT_BY_EXEC != 0 {
            forget_before_exec(conn);
        }
        // Alone, and closed by exec: as if the process ended.
        return;
    }
    let mut left = LEFT_TO_EXEC;
    if bits & KEPT_BY_EXEC != 0 {
        // The last of the others who closes it leaves it to the new program.
        slot.meta.strangers.fetch_add(1, Ordering::AcqRel);
        left |= LEFT_A_STRANGER;
    }
    conn.exec.fetch_or(left, Ordering::Relaxed);
    holders::leave(slot);
}

/// The exec failed: the program goes on, with what is left of its connections.
pub(crate) fn exec_failed() {
    if !any_known() || !is_own_memory() {
        return;
    }
    fds::each(0, u32::MAX, |_, entry| {
        let Some(index) = entry.as_conn() else { return };
        let conn = conn(index);
        let bits = conn.exec.swap(0, Ordering::Relaxed);
        if bits & LEFT_A_STRANGER != 0 {
            conn.slot().meta.strangers.fetch_sub(1, Ordering::AcqRel);
        }
        if bits & LEFT_TO_EXEC != 0 {
            holders::expect_one(conn.slot());
            holders::enter(conn.slot());
        }
    });
}

/// This process has nothing to do with the connection any more, which is the kernel's.
pub(crate) fn forget(conn: &'static Conn) {
    if holders::is_alone(conn) {
        forget_before_exec(conn);
    }
}

/// The daemon must not take the end of this program for the end of a connection that lives on.
fn forget_before_exec(conn: &'static Conn) {
    let slot = conn.slot();
    let left = conn
        .view()
        .is_some_and(|view| view.mine.state.broken().is_none());
    if left && slot.stage() == Stage::Attached {
        unregister(conn, slot, conn.slot_index.load(Ordering::Relaxed));
        conn.detach();
        slot.set_stage(Stage::Plain);
    }
}
