//! Waiting for the far end: spin while that pays, then sleep for the ring *and* the kernel socket.
//!
//! Spinning is adaptive ([`rdma_core::spin`]), with one window for the process. A far end that last ran
//! on our own processor cannot answer while we spin, so then the processor is yielded at once. Where others
//! want the processor too, a yield costs their whole slice: after one that took long nobody yields for a
//! while. Who sleeps instead gets the processor back when it is woken, before those that never slept.
//! Spinning goes on: two ends that run at the same moment must find each other awake, or they wake each
//! other up for good.
//!
//! A sleep is a `ppoll` of libc (a cancellation point) on the socket and a borrowed doorbell, so
//! that end of stream, errors, signals and timeouts are the kernel's.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rdma_core::crowd::crowded_for;
use rdma_core::event::{EventContext, WaitFor, WaitRef};
use rdma_core::layout::{CPUS, ConnView};
use rdma_core::spin::{Spin, WINDOW_FIRST_NS};

use crate::conn::{Conn, conn};
use crate::control::{self, monotonic_ns};
use crate::{config, contexts, forsaken, ops, tls};

/// How a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    /// Look at the ring again.
    Again,
    /// The kernel reports these poll bits on the socket.
    Kernel(i16),
    /// The deadline has passed.
    Timeout,
    /// A signal was handled.
    Interrupted,
}

/// The present spin window in nanoseconds ([`Spin`]).
static WINDOW_NS: AtomicU32 = AtomicU32::new(WINDOW_FIRST_NS);
/// Waits for which the window was shut.
static IDLE_WAITS: AtomicU32 = AtomicU32::new(0);

/// After so long, the processor is offered to others between looks.
const YIELD_AFTER_NS: u64 = 4_000;
/// A yield that takes longer was used by somebody who does not wait for us.
const LONG_YIELD_NS: u64 = 20_000;
/// The same where the far end may have worked on our processor meanwhile.
const LONG_SHARED_YIELD_NS: u64 = 150_000;

/// Until then (monotonic nanoseconds) the processors are crowded: nobody yields.
static CROWDED_UNTIL_NS: AtomicU64 = AtomicU64::new(0);
/// How long they were last taken to be.
static CROWDED_FOR_NS: AtomicU64 = AtomicU64::new(0);
/// Looks between two readings of the clock.
const LOOKS: u32 = 32;

/// Longest sleep when the far end cannot be relied on to ring (no doorbell, forked child).
const BLIND_NS_MAX: u64 = 8_000_000;

/// A few looks without a clock: most answers of a busy far end come within them. True if ready.
/// Not worth it if the far end last ran on our own processor.
#[inline]
pub(crate) fn glance(far: u32, pace: Pace, ready: impl Fn() -> bool) -> bool {
    if config::spin_us() == 0 || is_own_cpu(far) {
        return false;
    }
    for _ in 0..LOOKS {
        if ready() {
            return true;
        }
        pause(pace as u32);
    }
    false
}

/// Whether [`glance`] or [`spin`] might look at all.
pub(crate) fn may_spin(far: u32) -> bool {
    config::spin_us() != 0
        && !(is_own_cpu(far) && monotonic_ns() < CROWDED_UNTIL_NS.load(Ordering::Relaxed))
}

/// Whether pausing makes sense: the far end runs meanwhile.
#[inline(always)]
pub(crate) fn may_pause(far: u32) -> bool {
    config::spin_us() != 0 && !is_own_cpu(far)
}

/// Passes a moment without touching shared memory.
#[inline(always)]
pub(crate) fn pause(hints: u32) {
    for _ in 0..hints {
        core::hint::spin_loop();
    }
}

/// Pauses between two looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    /// An answer is awaited: look as often as possible.
    Answer = 1,
    /// A stream comes in: every look takes the line with the tail away from the writer, so look
    /// rarely and take more at once.
    Stream = 24,
}

/// Whether `far` (a processor plus one, 0 if unknown) is the one we run on.
fn is_own_cpu(far: u32) -> bool {
    far != 0 && far == own_cpu()
}

/// The processor that this thread runs on, as the far end is told: 0 if unknown.
#[inline(always)]
pub(crate) fn own_cpu() -> u32 {
    match tls::cpu() {
        0 => 0,
        cpu => cpu + MACHINE.load(Ordering::Relaxed),
    }
}

/// The daemon has said which machine this is, of those that share memory.
pub(crate) fn set_machine(number: u32) {
    MACHINE.store(number * CPUS, Ordering::Relaxed);
}

/// What tells our processors from those of other machines.
static MACHINE: AtomicU32 = AtomicU32::new(0);

/// The processor on which the far end last sent, plus one; 0 if unknown.
#[inline]
pub(crate) fn far_cpu(view: &ConnView) -> u32 {
    view.rx_words.cpu.load(Ordering::Relaxed)
}

/// Spins until `ready` or the window ends; true if ready. `far` is the far end's processor plus one, 0
/// if unknown or if there are several.
pub(crate) fn spin(far: u32, pace: Pace, ready: impl Fn() -> bool) -> bool {
    let cap = config::spin_us().saturating_mul(1000);
    if cap == 0 {
        return false;
    }
    let shared = is_own_cpu(far);
    let window = WINDOW_NS.load(Ordering::Relaxed);
    let wait = if window == 0 {
        IDLE_WAITS.fetch_add(1, Ordering::Relaxed)
    } else {
        0
    };
    let Some(spin) = Spin::new(window, wait, cap) else {
        return false;
    };
    let start = monotonic_ns();
    let crowded = start < CROWDED_UNTIL_NS.load(Ordering::Relaxed);
    if crowded && shared {
        return false;
    }
    let long = if shared {
        LONG_SHARED_YIELD_NS
    } else {
        LONG_YIELD_NS
    };
    let mut elapsed = 0;
    while elapsed < u64::from(spin.ns) {
        if shared || elapsed > YIELD_AFTER_NS && !crowded {
            rustix::thread::sched_yield();
            let now = monotonic_ns();
            if now - start > elapsed + long {
                note_crowd(now);
                return ready();
            }
        }
        for _ in 0..LOOKS {
            if ready() {
                WINDOW_NS.store(spin.won(cap), Ordering::Relaxed);
                return true;
            }
            if shared {
                break;
            }
            pause(pace as u32);
        }
        elapsed = monotonic_ns() - start;
    }
    WINDOW_NS.store(spin.lost(), Ordering::Relaxed);
    false
}

/// A yield took long.
#[cold]
fn note_crowd(now: u64) {
    let last = CROWDED_FOR_NS.load(Ordering::Relaxed);
    let quiet = now.saturating_sub(CROWDED_UNTIL_NS.load(Ordering::Relaxed));
    let next = crowded_for(last, quiet);
    CROWDED_FOR_NS.store(next, Ordering::Relaxed);
    CROWDED_UNTIL_NS.store(now + next, Ordering::Relaxed);
}

/// A context in which a thread sleeps, entered into whatever it waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleeper {
    /// Borrowed context.
    pub number: u16,
}

impl Sleeper {
    /// Borrows a context for the calling thread.
    pub(crate) fn borrow() -> Option<Self> {
        contexts::borrow().map(|number| Self { number })
    }

    /// The reference under which the far end of `conn` reaches this sleeper, and whether it surely
    /// has the doorbell.
    pub(crate) fn reference(&self, conn: &Conn) -> Option<(WaitRef, bool)> {
        let session = control::session(conn.session.load(Ordering::Relaxed))?;
        if session.is_inherited() {
            return None;
        }
        let process = session.process.load(Ordering::Acquire);
        if process == 0 {
            return None;
        }
        let known = contexts::context(self.number)?
            .known
            .load(Ordering::Acquire)
            == session.index() + 1
            && !forsaken::is_pending();
        Some((
            WaitRef {
                process,
                context: self.number,
                bit: None,
            },
            known,
        ))
    }

    /// The shared words of the context in the session of `conn`.
    pub(crate) fn words(&self, conn: &Conn) -> Option<&'static EventContext> {
        let session = control::session(conn.session.load(Ordering::Relaxed))?;
        contexts::words(&session.events.get()?, self.number)
    }

    /// The doorbell.
    pub(crate) fn bell(&self) -> c_int {
        contexts::context(self.number)
            .and_then(contexts::Context::bell)
            .unwrap_or(-1)
    }
}

/// Sleeps until the far end rings, the kernel reports one of `events` (or an error), the deadline
/// (monotonic nanoseconds) passes or a signal is handled. `ready` is asked once more after the
/// sleeper has been announced.
pub(crate) fn sleep(
    conn: &'static Conn,
    view: &ConnView,
    fd: c_int,
    what: WaitFor,
    events: i16,
    deadline: Option<u64>,
    ready: impl Fn() -> bool,
) -> Woken {
    clean_up();
    forsaken::look(false);
    conn.slot().rx.sleeps.fetch_add(1, Ordering::Relaxed);
    let sleeper = Sleeper::borrow();
    let reference = sleeper.and_then(|sleeper| sleeper.reference(conn).map(|r| (sleeper, r)));
    let (entered, blind) = match reference {
        Some((sleeper, (who, known))) => {
            remember(conn, sleeper.number, what);
            let entered = view.mine.waits.enter(what, who);
            ((entered).then_some((sleeper, who)), !known || !entered)
        }
        None => (None, true),
    };
    let words = entered.and_then(|(sleeper, _)| sleeper.words(conn));
    if let Some(words) = words {
        words.prepare_sleep();
    }
    let (woken, hung_up) = if ready() {
        (Woken::Again, false)
    } else {
        poll_both(
            fd,
            events,
            entered.map(|(sleeper, _)| sleeper),
            deadline,
            blind,
        )
    };
    // A signal handler that waited itself may have cleaned up after us.
    if reference.is_none() || forget(conn, sleeper, what) {
        if let Some(words) = words {
            words.finish_sleep();
        }
        if let Some((_, who)) = entered {
            view.mine.waits.leave(what, who);
        }
        if let Some(sleeper) = sleeper {
            contexts::give_back(sleeper.number);
        }
    }
    forsaken::look(hung_up);
    woken
}

/// How the sleep ended, and whether the line of a guest's daemon has hung up.
fn poll_both(
    fd: c_int,
    events: i16,
    sleeper: Option<Sleeper>,
    deadline: Option<u64>,
    blind: bool,
) -> (Woken, bool) {
    let bell = sleeper.map_or(-1, |sleeper| sleeper.bell());
    let line = forsaken::entry();
    let blind = blind || forsaken::is_pending();
    let left = deadline.map(|deadline| deadline.saturating_sub(monotonic_ns()));
    let slice = left.map_or(BLIND_NS_MAX, |left| left.min(BLIND_NS_MAX));
    let mut cut = blind && left != Some(slice);
    let mut entries = [
        libc::pollfd {
            fd,
            events,
            revents: 0,
        },
        libc::pollfd {
            fd: bell,
            events: libc::POLLIN,
            revents: 0,
        },
        line,
    ];
    let mut rc = ops::ready::kernel_poll(&mut entries, if blind { Some(slice) } else { left });
    if rc.is_err_and(|error| error != libc::EINTR) {
        // RLIMIT_NOFILE lets fewer entries in, or none.
        cut = left != Some(slice);
        rc = ops::ready::kernel_poll(&mut entries[..1], Some(slice))
            .or_else(|_| ops::ready::kernel_poll(&mut [], Some(slice)));
    }
    let [socket, doorbell, line] = entries;
    if doorbell.revents != 0
        && let Some(context) = sleeper.and_then(|sleeper| contexts::context(sleeper.number))
    {
        context.silence();
    }
    let woken = match rc {
        Err(_) => Woken::Interrupted,
        Ok(0) if cut => Woken::Again,
        Ok(0) => Woken::Timeout,
        Ok(_) if socket.revents != 0 => Woken::Kernel(socket.revents),
        Ok(_) => Woken::Again,
    };
    (woken, line.revents != 0)
}

fn token(conn: &Conn, number: u16, what: WaitFor) -> u64 {
    1 << 63
        | u64::from(conn.index()) << 32
        | u64::from(number) << 1
        | u64::from(what == WaitFor::Space)
}

fn remember(conn: &Conn, number: u16, what: WaitFor) {
    tls::swap_unfinished(token(conn, number, what));
}

/// True if the wait is still ours to clean up.
fn forget(conn: &Conn, sleeper: Option<Sleeper>, what: WaitFor) -> bool {
    let Some(sleeper) = sleeper else { return true };
    let mine = token(conn, sleeper.number, what);
    let found = tls::swap_unfinished(0);
    found == mine
}

/// Cleans up after a wait that this thread left by siglongjmp, or that it interrupted.
fn clean_up() {
    let left = tls::swap_unfinished(0);
    if left == 0 {
        return;
    }
    let number = u16::try_from(left >> 1 & 0xffff).unwrap_or(0);
    let owner = conn(u32::try_from(left >> 32 & 0x0fff_ffff).unwrap_or(0));
    let what = if left & 1 == 0 {
        WaitFor::Data
    } else {
        WaitFor::Space
    };
    let sleeper = Sleeper { number };
    if let (Some((who, _)), Some(view)) = (sleeper.reference(owner), owner.view()) {
        view.mine.waits.leave(what, who);
        if let Some(words) = sleeper.words(owner) {
            words.finish_sleep();
        }
    }
    contexts::give_back(number);
}
