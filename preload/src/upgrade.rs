//! From kernel TCP to the ring: registering, arming, switching.

use core::ffi::c_int;
use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::Ordering;
use std::os::fd::AsFd;

use rdma_core::Reason;
use rdma_core::control::{Message, Register};
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::slot::{RxState, Stage, TxState};
use rustix::fs::{Mode, OFlags, open};

use crate::conn::{Conn, SHUT_READ, SHUT_WRITE};
use crate::lifecycle::Side;
use crate::ops::{lock, options};
use crate::trace::{self, Level};
use crate::{config, control, kernel, kick, relayed, renew};

/// A data call of `bytes` bytes went through the kernel: has the connection proved worth it?
#[inline]
pub(crate) fn note(conn: &'static Conn, fd: c_int, bytes: usize) {
    let calls = conn.calls.load(Ordering::Relaxed).saturating_add(1);
    conn.calls.store(calls, Ordering::Relaxed);
    let total = conn
        .bytes
        .load(Ordering::Relaxed)
        .saturating_add(bytes as u64);
    conn.bytes.store(total, Ordering::Relaxed);
    match conn.slot().stage() {
        Stage::Candidate => {
            let (after_calls, after_bytes) = config::upgrade_after();
            if calls >= after_calls || total >= after_bytes {
                register(conn, fd);
            }
        }
        Stage::Registered => {
            control::check_mailbox();
            if !control::current().is_some_and(control::Session::is_live) {
                // Its daemon has gone without an answer; another may come.
                conn.slot().set_stage(Stage::Candidate);
            } else {
                renew::consider_registered(conn);
            }
        }
        Stage::Plain => renew::consider(conn),
        Stage::Free | Stage::Attached => {}
    }
}

/// The connection stays on TCP, for `reason`.
pub(crate) fn decline(conn: &Conn, reason: Reason) {
    if conn.slot().stage() == Stage::Registered && renew::is_put_off(conn, reason) {
        return;
    }
    conn.veto(reason);
    let slot = conn.slot();
    if matches!(slot.stage(), Stage::Attached | Stage::Plain) {
        return;
    }
    slot.set_stage(Stage::Plain);
    trace::event(Level::Warn, conn, "stays on TCP:", reason.name());
    slot.meta.reason.store(reason.code(), Ordering::Relaxed);
    if let Some(arena) = control::arena() {
        arena
            .header()
            .counters
            .declined
            .fetch_add(1, Ordering::Relaxed);
        arena.header().counters.count_reason(reason);
    }
    // What somebody asked for is no fault of the set-up.
    if reason != Reason::Revoked && config::config().is_some_and(|config| config.strict) {
        crate::init::die(&[
            b"viaduct: a peer connection was declined (",
            reason.name().as_bytes(),
            b"), and VIADUCT_STRICT is set",
        ]);
    }
}

/// Registers a candidate with the daemon. What fails for now is tried again after as many calls more.
#[cold]
pub(crate) fn register(conn: &'static Conn, fd: c_int) {
    let Some(config) = config::config() else {
        return;
    };
    if let Some(reason) = conn.vetoed().or_else(crate::retire::refusal) {
        decline(conn, reason);
        return;
    }
    control::locked(|| match try_register(conn, fd, config) {
        Ok(()) => conn.slot().set_stage(Stage::Registered),
        Err(Some(reason)) => decline(conn, reason),
        Err(None) => {
            // Not now: ask again later, ever more rarely.
            conn.calls.store(0, Ordering::Relaxed);
            conn.bytes.store(0, Ordering::Relaxed);
        }
    });
}

/// `Err(None)`: not now, perhaps later.
fn try_register(
    conn: &'static Conn,
    fd: c_int,
    config: &config::Config,
) -> Result<(), Option<Reason>> {
    let slot = conn.slot();
    if !crate::holders::is_alone(conn) || control::is_absent() {
        return Err(None);
    }
    match kernel::state(fd) {
        Some(kernel::TCP_ESTABLISHED) => {}
        Some(2 | 3) => return Err(None),
        _ => return Err(Some(Reason::NotEstablished)),
    }
    if !kernel::is_tcp(fd) {
        return Err(Some(Reason::NotTcp));
    }
    if let Some(reason) = option_in_the_way(conn, fd) {
        return Err(Some(reason));
    }
    let (own, far) = kernel::addresses(fd).ok_or(Some(Reason::NotEstablished))?;
    if own == far {
        return Err(Some(Reason::SelfConnected));
    }
    let cookie = kernel::cookie(fd).ok_or(Some(Reason::Identity))?;
    if slot.meta.side.load(Ordering::Relaxed) == 0 {
        let side = if kernel::has_connected(fd).ok_or(None)? {
            Side::Connected
        } else {
            Side::Accepted
        };
        slot.meta.side.store(side as u32, Ordering::Relaxed);
    }
    let index = if conn.slot_index.load(Ordering::Relaxed) == u32::MAX {
        crate::lifecycle::move_to_own_arena(conn).ok_or(Some(Reason::SlotLimit))?
    } else {
        conn.slot_index.load(Ordering::Relaxed)
    };
    let slot = conn.slot();
    let session = control::ensure(config).map_err(|reason| match reason {
        Reason::NoDaemon if !config.strict => {
            // For now; told apart from a connection that is merely young when it closes.
            slot.meta.reason.store(reason.code(), Ordering::Relaxed);
            None
        }
        other => Some(other),
    })?;
    slot.meta.reason.store(0, Ordering::Relaxed);
    let mut path = *b"/proc/thread-self/fd/\0\0\0\0\0\0\0\0\0\0\0";
    let proc = proc_path(&mut path, fd).ok_or(Some(Reason::NoProc))?;
    let identity = open(proc, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        Some(match error {
            rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => Reason::FdLimit,
            _ => Reason::NoProc,
        })
    })?;
    record_addresses(conn, own, far);
    slot.meta.cookie.store(cookie, Ordering::Relaxed);
    slot.meta.fd.store(fd.unsigned_abs() + 1, Ordering::Relaxed);
    let (family, own_addr) = octets(own.ip());
    let register = Register {
        slot: index,
        generation: slot.meta.generation.load(Ordering::Relaxed),
        cookie,
        connects: slot.meta.connects.load(Ordering::Relaxed),
        side: u8::try_from(slot.meta.side.load(Ordering::Relaxed)).unwrap_or(1),
        family,
        own_port: own.port(),
        far_port: far.port(),
        reserved: [0; 6],
        own_addr,
        far_addr: octets(far.ip()).1,
    };
    if control::send(session, &Message::Register(register), &[identity.as_fd()]) {
        Ok(())
    } else {
        Err(None)
    }
}

/// An option that was set before the library knew the connection, or inherited from the listener.
fn option_in_the_way(conn: &Conn, fd: c_int) -> Option<Reason> {
    let is_set =
        |name| kernel::option_int(fd, libc::SOL_SOCKET, name).is_some_and(|value| value > 0);
    if kernel::has_ulp(fd) {
        return Some(Reason::SocketOption);
    }
    if kernel::is_asynchronous(fd) {
        return Some(Reason::UnseenWaiter);
    }
    if kernel::option_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).is_some_and(|value| value >= 0) {
        return Some(Reason::PeekOffset);
    }
    if is_set(libc::SO_ZEROCOPY) {
        return Some(Reason::ZeroCopy);
    }
    if is_set(libc::SO_OOBINLINE) {
        return Some(Reason::OutOfBand);
    }
    if options::TIMESTAMPS.into_iter().any(is_set) {
        return Some(Reason::SocketOption);
    }
    let inq = kernel::option_int(fd, libc::IPPROTO_TCP, options::TCP_INQ).unwrap_or(0);
    conn.slot()
        .rx
        .inq
        .store(u32::from(inq != 0), Ordering::Relaxed);
    if let Some(lowat) = kernel::option_int(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT) {
        let lowat = lowat.max(0).cast_unsigned();
        conn.slot().rx.lowat.store(lowat, Ordering::Relaxed);
    }
    None
}

/// Notes the addresses for `viaduct status`.
pub(crate) fn record_addresses(conn: &Conn, own: SocketAddr, far: SocketAddr) {
    let meta = &conn.slot().meta;
    let words = |ip: IpAddr| {
        let (family, octets) = octets(ip);
        let mut halves = [0u64; 2];
        for (half, bytes) in halves.iter_mut().zip(octets.chunks_exact(8)) {
            *half = bytes.try_into().map_or(0, u64::from_ne_bytes);
        }
        (family, halves)
    };
    let (family, own_words) = words(own.ip());
    let (_, far_words) = words(far.ip());
    for (place, word) in meta.own_addr.iter().zip(own_words) {
        place.store(word, Ordering::Relaxed);
    }
    for (place, word) in meta.far_addr.iter().zip(far_words) {
        place.store(word, Ordering::Relaxed);
    }
    meta.ports.store(
        u32::from(own.port()) | u32::from(far.port()) << 16,
        Ordering::Relaxed,
    );
    meta.family.store(u32::from(family), Ordering::Relaxed);
}

/// Family number and 16 bytes of an address; v4-mapped addresses count as IPv4.
fn octets(ip: IpAddr) -> (u8, [u8; 16]) {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let mut out = [0u8; 16];
            out[..4].copy_from_slice(&v4.octets());
            (4, out)
        }
        IpAddr::V6(v6) => (6, v6.octets()),
    }
}

/// `/proc/thread-self/fd/N`, terminated.
fn proc_path(buffer: &mut [u8; 32], fd: c_int) -> Option<&core::ffi::CStr> {
    const PREFIX: usize = "/proc/thread-self/fd/".len();
    let mut digits = [0u8; 10];
    let mut left = u32::try_from(fd).ok()?;
    let mut used = 0;
    loop {
        digits[used] = b'0' + u8::try_from(left % 10).ok()?;
        used += 1;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    for (place, digit) in buffer
        .get_mut(PREFIX..PREFIX + used)?
        .iter_mut()
        .zip(digits[..used].iter().rev())
    {
        *place = *digit;
    }
    core::ffi::CStr::from_bytes_until_nul(buffer).ok()
}

/// Whether the library has told the program the readiness of the descriptor.
fn was_told(conn: &Conn) -> bool {
    conn.slot().meta.delivered.load(Ordering::Relaxed) != 0
}

/// Whether the program asks for readiness of the descriptor, as far as the library has seen.
pub(crate) fn is_watched(conn: &Conn) -> bool {
    was_told(conn) || crate::ops::epoll::is_registered(conn)
}

/// Whether a call waits itself, inside the library, if it must.
fn waits(fd: c_int, dont_wait: bool) -> bool {
    !dont_wait && !kernel::is_nonblocking(fd)
}

/// Receiver: arms the direction if nothing speaks against it. Under the receive lock.
#[cold]
pub(crate) fn try_arm(conn: &'static Conn, view: &ConnView, fd: c_int, dont_wait: bool) -> bool {
    let slot = conn.slot();
    let rx = &slot.rx;
    if conn.shut() & SHUT_READ != 0
        // Another thread has let go of the memory while this one waited for the lock; or the parent has, after the
        // fork.
        || conn.view().is_none()
        || slot.stage() != Stage::Attached
        || conn.vetoed().is_some()
        || relayed::is_broken(view)
    {
        return false;
    }
    if !was_told(conn) {
        // A call that finds something may come after a wait that the library did not see, of a program whose
        // epoll calls are its own; one that finds nothing waits itself, as one before may have done. Asked in this
        // order: a program that never waits asks at each call.
        let waited = &slot.meta.waited;
        let is_shown = waited.load(Ordering::Relaxed) != 0 || kernel::readable(fd) == Some(0);
        if !is_shown || !waits(fd, dont_wait) {
            return false;
        }
        waited.store(1, Ordering::Relaxed);
    }
    if !crate::ops::epoll::may_arm(conn) || crate::ops::ready::has_uncounted_sleepers() {
        return false;
    }
    rx.set_state(RxState::Armed);
    if !rx.inside.nobody() {
        rx.set_state(RxState::Kernel);
        return false;
    }
    view.mine.state.arm();
    trace::event(Level::Info, conn, "armed", "");
    if conn.is_relayed() {
        // The far end's backend has to be told; a direct far end looks for itself.
        kick::after_publish(conn, view, WaitFor::Data);
    }
    crate::ops::epoll::on_change(conn, fd);
    true
}

/// Sender: switches the direction to the ring if the far end has armed and nothing speaks against
/// it. Under the send lock. A sender that never had to wait may have shown only where it is going to: by a
/// registration in an epoll set.
#[cold]
pub(crate) fn try_switch(conn: &'static Conn, view: &ConnView, fd: c_int, dont_wait: bool) -> bool {
    let slot = conn.slot();
    let tx = &slot.tx;
    if conn.shut() & SHUT_WRITE != 0
        // As in `try_arm`.
        || conn.view().is_none()
        || slot.stage() != Stage::Attached
        || conn.vetoed().is_some()
        || !is_watched(conn) && !waits(fd, dont_wait)
    {
        return false;
    }
    tx.set_state(TxState::Switching);
    if !tx.inside.nobody() {
        tx.set_state(TxState::Kernel);
        return false;
    }
    let connected = slot.meta.side.load(Ordering::Relaxed) == 1;
    let Some(sent) = kernel::bytes_sent(fd, connected) else {
        tx.set_state(TxState::Kernel);
        return false;
    };
    if !view.mine.state.switch(sent) {
        // The far end has left its ring meanwhile.
        tx.set_state(TxState::Returned);
        return false;
    }
    tx.set_state(TxState::Ring);
    trace::event(Level::Info, conn, "sends by ring", "");
    kernel::push(fd);
    kick::after_publish(conn, view, WaitFor::Data);
    crate::ops::epoll::on_change(conn, fd);
    true
}

/// Receiver: the far end has switched after `at` bytes; how many of them are still to be read from
/// the kernel? Under the receive lock. False: the counts contradict each other.
#[cold]
pub(crate) fn begin_draining(conn: &'static Conn, fd: c_int, at: u64) -> bool {
    let rx = &conn.slot().rx;
    let left = match kernel::left_to_read(fd, at) {
        Ok(Some(left)) => left,
        Ok(None) => return true,
        Err(()) => return false,
    };
    rx.kernel_left.store(left, Ordering::Relaxed);
    rx.set_state(if left == 0 {
        RxState::Ring
    } else {
        RxState::Draining
    });
    if left == 0 {
        crate::ops::epoll::on_change(conn, fd);
    }
    true
}

/// Receiver: notices a switch of the far end without receiving, for those who only ask what is there.
pub(crate) fn notice_switch(conn: &'static Conn, view: &ConnView, fd: c_int) {
    let rx = &conn.slot().rx;
    if rx.state() != RxState::Armed || !view.theirs.state.is_switched() {
        return;
    }
    if lock::take_rx(conn).is_err() {
        return;
    }
    let contradiction = rx.state() == RxState::Armed
        && view
            .theirs
            .state
            .accept()
            .is_some_and(|at| !begin_draining(conn, fd, at));
    lock::free(&rx.lock);
    if contradiction {
        crate::ops::recv::break_conn(conn, view, Reason::UnseenWriter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_paths_are_written_without_allocating() {
        let mut buffer = *b"/proc/thread-self/fd/\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(
            proc_path(&mut buffer, 0).unwrap(),
            c"/proc/thread-self/fd/0"
        );
        assert_eq!(
            proc_path(&mut buffer, 1_048_575).unwrap(),
            c"/proc/thread-self/fd/1048575"
        );
        assert!(proc_path(&mut buffer, -1).is_none());
    }
}
