//! Taking and freeing a direction's lock, also from a holder that was killed.

use core::sync::atomic::Ordering;
use core::time::Duration;

use rdma_core::Reason;
use rdma_core::handshake::Route;
use rdma_core::slot::{DirectionLock, RxState, TxState};
use rdma_core::sync::barrier_after_rmw;
use rustix::thread::futex;

use crate::conn::{Conn, conn};
use crate::{control, errno, holders, lifecycle, tls};

/// The calling thread holds the lock already: a signal handler interrupted its own operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Nested;

/// Looks before a sleep.
const LOOKS: u32 = 100;

/// Longest sleep on a lock; a holder keeps it for one copy.
const SLEEP: Duration = Duration::from_millis(10);

/// Takes the lock of the direction that this end sends, waiting for other holders.
///
/// # Errors
/// [`Nested`]: waiting would last for ever.
#[inline]
pub(crate) fn take_tx(conn: &Conn) -> Result<(), Nested> {
    take(&conn.slot().tx.lock, conn, mend_tx)
}

/// As [`take_tx`], of the direction that it receives.
///
/// # Errors
/// As [`take_tx`].
#[inline]
pub(crate) fn take_rx(conn: &Conn) -> Result<(), Nested> {
    take(&conn.slot().rx.lock, conn, mend_rx)
}

/// Takes both locks if both are free, and does not wait. The only place that holds both.
pub(crate) fn try_both(conn: &Conn) -> bool {
    let (tx, rx) = (&conn.slot().tx.lock, &conn.slot().rx.lock);
    if tx.try_lock(tls::token()).is_err() {
        return false;
    }
    if rx.try_lock(tls::token()).is_err() {
        free(tx);
        return false;
    }
    true
}

#[inline]
fn take(lock: &DirectionLock, conn: &Conn, mend: fn(&Conn)) -> Result<(), Nested> {
    if let Err(owner) = lock.try_lock(tls::token()) {
        wait(lock, owner, conn, mend)?;
    }
    Ok(())
}

#[cold]
fn wait(lock: &DirectionLock, mut owner: u32, conn: &Conn, mend: fn(&Conn)) -> Result<(), Nested> {
    let me = tls::token();
    let mut sleeps = 0;
    loop {
        if owner == me {
            return Err(Nested);
        }
        if owner == DirectionLock::ABANDONED && lock.seize(owner, me) {
            mend(conn);
            return Ok(());
        }
        for _ in 0..LOOKS {
            match lock.try_lock(me) {
                Ok(()) => return Ok(()),
                Err(now) => owner = now,
            }
            core::hint::spin_loop();
        }
        if sleeps >= PATIENCE && is_dead(owner, conn) && lock.seize(owner, me) {
            mend(conn);
            return Ok(());
        }
        sleeps += 1;
        if let Some(word) = lock.contend() {
            let timeout = futex::Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(SLEEP.subsec_nanos()),
            };
            let _ = futex::wait(lock.word(), futex::Flags::empty(), word, Some(&timeout));
        }
    }
}

/// Sleeps before a holder is suspected to be dead.
const PATIENCE: u32 = 5;

/// Whether nobody frees the lock any more. A number that was given out anew looks alive, and the wait goes on
/// until that thread ends as well.
fn is_dead(owner: u32, conn: &Conn) -> bool {
    if owner == DirectionLock::DAEMON {
        control::has_hung_up(conn)
    } else {
        holders::is_dead(owner)
    }
}

/// The holder of the sending direction was killed: makes its state whole.
///
/// What it copied and did not publish was not sent. The ring's beginning is moved by two stores.
fn mend_tx(conn: &Conn) {
    let tx = &conn.slot().tx;
    let Some(view) = conn.view() else { return };
    if tx.state() == TxState::Switching {
        let switched = view.mine.state.route() != Route::Kernel;
        tx.set_state(if switched {
            TxState::Ring
        } else {
            TxState::Kernel
        });
    }
    match tx.state() {
        // A daemon that died in between.
        TxState::Ring if view.mine.state.route() == Route::Returned => {
            tx.set_state(TxState::Returned);
        }
        TxState::Ring => {
            let mut cursor = tx.cursor();
            let base = view.tx_words.base.load(Ordering::Acquire);
            if base <= cursor.tail {
                cursor.base = base;
                tx.set_cursor(&cursor);
            }
        }
        // It may have sent more than it noted.
        TxState::Returning => super::recv::break_conn(conn, view, Reason::HolderDied),
        TxState::Kernel | TxState::Switching | TxState::Done | TxState::Returned => {}
    }
}

/// As [`mend_tx`]: what it took from the ring and did not publish can be read again. What it took from the
/// kernel is gone, as it would be without us, and must be counted anew.
fn mend_rx(conn: &Conn) {
    let rx = &conn.slot().rx;
    match rx.state() {
        RxState::Draining => rx.set_state(RxState::Armed),
        // A daemon that died in between.
        RxState::Armed
            if conn.view().is_some_and(|view| {
                view.mine.state.is_reader_gone() && view.theirs.state.route() == Route::Retracted
            }) =>
        {
            rx.set_state(RxState::Returned);
        }
        _ => {}
    }
}

/// Frees the lock. A full barrier.
#[inline(always)]
pub(crate) fn free(lock: &DirectionLock) {
    if lock.unlock() {
        wake(lock);
    }
    barrier_after_rmw();
}

#[cold]
fn wake(lock: &DirectionLock) {
    let _ = futex::wake(lock.word(), futex::Flags::empty(), u32::MAX >> 1);
    if let Some(number) = tls::deferred() {
        let conn = conn(number);
        if !is_inside(conn) {
            tls::defer(None);
            errno::preserved(|| lifecycle::after_copy(conn));
        }
    }
}

/// Whether a signal handler runs that has interrupted the calling thread in an operation on the connection: the
/// thread holds one of its locks, and what it was about to publish is not published.
pub(crate) fn is_inside(conn: &Conn) -> bool {
    let me = tls::token();
    let slot = conn.slot();
    slot.tx.lock.is_held_by(me) || slot.rx.lock.is_held_by(me)
}

/// From such a handler: [`lifecycle::after_copy`] is called when the operation frees its lock. That is not looked for
/// where the lock is freed, but where its sleepers are woken. False: another connection waits for the same.
pub(crate) fn defer(conn: &Conn) -> bool {
    if tls::deferred().is_some_and(|number| number != conn.index()) {
        return false;
    }
    tls::defer(Some(conn.index()));
    let me = tls::token();
    let slot = conn.slot();
    for lock in [&slot.tx.lock, &slot.rx.lock] {
        if lock.is_held_by(me) {
            lock.contend();
        }
    }
    true
}

/// The thread leaves whatever it is in by longjmp: locks that it holds, because a signal handler that has interrupted
/// an operation does it, are abandoned. A jump that stays inside such a handler cannot be told from that.
pub(crate) extern "C" fn jumping() {
    let Some(me) = tls::known_token() else { return };
    lifecycle::each_conn(|conn| {
        let slot = conn.slot();
        for lock in [&slot.tx.lock, &slot.rx.lock] {
            if lock.is_held_by(me) {
                lock.seize(me, DirectionLock::ABANDONED);
            }
        }
    });
}
