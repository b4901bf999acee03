//! A whole send call beyond the fast path: looks and waits until nothing is left.

#![expect(unsafe_code, reason = "raises SIGPIPE as the kernel would")]

use core::ffi::c_int;

use libc::{MSG_DONTWAIT, MSG_FASTOPEN, MSG_NOSIGNAL, MSG_OOB, MSG_ZEROCOPY};
use rdma_core::Reason;
use rdma_core::slot::TxState;

use super::Step;
use super::block::block;
use super::by_kernel::{rest_to_kernel, to_kept, to_kernel};
use super::look::step;
use crate::conn::Conn;
use crate::fds::Entry;
use crate::ops::lock;
use crate::ops::recv::{self, STALE};
use crate::pins::Call;
use crate::user::Buffers;
use crate::{errno, forsaken, lifecycle, real, renew, tls};

#[cold]
#[inline(never)]
pub(super) fn slow(
    fd: c_int,
    entry: Entry,
    conn: &'static Conn,
    buffers: &mut Buffers,
    flags: c_int,
    native: &dyn Fn() -> isize,
) -> isize {
    if let Some(result) = unservable(conn, fd, buffers, flags, native) {
        return result;
    }
    if buffers.is_refused(fd) {
        return errno::fail(libc::EFAULT);
    }
    let mut call = Call::new(fd, entry);
    let sent = deliver(conn, fd, buffers, flags, &mut call, native);
    call.end(conn);
    sent
}

/// Sends until nothing is left, or no more can be sent.
fn deliver(
    conn: &'static Conn,
    named: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    call: &mut Call,
    native: &dyn Fn() -> isize,
) -> isize {
    let dont_wait = flags & MSG_DONTWAIT != 0;
    let mut slept = false;
    let interrupts = tls::interrupts();
    loop {
        let Some(fd) = call.descriptor(conn) else {
            // Closed by another thread. After a wait the number may name something else by now.
            return match buffers.done() {
                0 if slept => errno::fail(libc::EBADF),
                0 => native(),
                _ => count(buffers),
            };
        };
        match step(conn, fd, buffers, dont_wait) {
            // The kernel says what happens to the rest at the program's next call.
            Step::Native if buffers.done() > 0 => {
                if conn.slot().tx.state() == TxState::Returned {
                    rest_to_kernel(conn, fd, buffers, flags);
                }
                return count(buffers);
            }
            // A signal that came between the sleep and the kernel's own.
            Step::Native if slept && tls::interrupts() != interrupts => {
                return errno::fail(libc::EINTR);
            }
            Step::Native if fd != named => return to_kept(conn, fd, buffers, flags),
            Step::Native => {
                forsaken::look(false);
                renew::let_go(conn);
                match to_kernel(conn, fd, !dont_wait, native) {
                    Some(result) => return result,
                    None => continue,
                }
            }
            Step::Moved if buffers.left() == 0 => return count(buffers),
            Step::Moved => continue,
            // A bad address is said again by the next call that gives it.
            Step::Error(libc::EFAULT) if buffers.done() > 0 => return count(buffers),
            Step::Error(error) if buffers.done() > 0 => {
                conn.defer_error(error);
                return count(buffers);
            }
            Step::Error(error) => {
                if error == libc::EPIPE && flags & MSG_NOSIGNAL == 0 {
                    raise_sigpipe();
                }
                return errno::fail(error);
            }
            Step::Full | Step::KernelFull => {}
        }
        call.begun = buffers.done() > 0;
        match block(conn, fd, dont_wait, buffers.left(), call) {
            Ok(()) => slept = true,
            Err(STALE) if buffers.done() == 0 => return native(),
            Err(_) if buffers.done() > 0 => return count(buffers),
            Err(error) => return errno::fail(error),
        }
    }
}

/// In the calling thread, as the kernel does: it looks as if the process had sent it by kill.
pub(in crate::ops) fn raise_sigpipe() {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    let told = SentBySelf {
        signal: libc::SIGPIPE,
        error: 0,
        code: SI_USER,
        pad: 0,
        process,
        user: rustix::process::getuid().as_raw(),
        rest: [0; 26],
    };
    errno::preserved(|| {
        // SAFETY: a siginfo of the process's own.
        let rc = unsafe {
            real::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                process.unsigned_abs() as usize,
                rustix::thread::gettid()
                    .as_raw_nonzero()
                    .get()
                    .unsigned_abs() as usize,
                libc::SIGPIPE.unsigned_abs() as usize,
                (&raw const told).addr(),
                0,
                0,
            )
        };
        if rc != 0 {
            // Not allowed here (seccomp).
            // SAFETY: no memory.
            unsafe { libc::raise(libc::SIGPIPE) };
        }
    });
}

/// How a signal was sent: by kill, or by the kernel for the process.
const SI_USER: c_int = 0;

/// siginfo_t of such a signal.
#[repr(C)]
struct SentBySelf {
    signal: c_int,
    error: c_int,
    code: c_int,
    pad: c_int,
    process: c_int,
    user: u32,
    rest: [u32; 26],
}
const _: () = assert!(size_of::<SentBySelf>() == size_of::<libc::siginfo_t>());

fn count(buffers: &Buffers) -> isize {
    isize::try_from(buffers.done()).unwrap_or(isize::MAX)
}

/// Calls that never go to a ring: a connect that sends, out-of-band data, zero-copy, nothing to send.
fn unservable(
    conn: &'static Conn,
    fd: c_int,
    buffers: &Buffers,
    flags: c_int,
    native: &dyn Fn() -> isize,
) -> Option<isize> {
    if flags & MSG_FASTOPEN != 0 {
        // The kernel refuses to connect what is connected, and sends nothing.
        return Some(native());
    }
    if flags & (MSG_OOB | MSG_ZEROCOPY) != 0 {
        // The urgent mark and the notification are the kernel's: the stream goes back there first.
        let reason = if flags & MSG_OOB != 0 {
            Reason::OutOfBand
        } else {
            Reason::ZeroCopy
        };
        if lock::is_inside(conn) {
            // In a signal handler that has interrupted a send: no look is possible now.
            return Some(errno::fail(libc::EINTR));
        }
        lifecycle::to_kernel(conn, fd, reason);
        return Some(native());
    }
    if buffers.left() == 0 {
        // The kernel still reports errors for an empty send, and so do we.
        if let Some(view) = conn.view() {
            recv::ask_kernel(conn, view, fd);
        }
        let error = conn.take_error();
        if error != 0 {
            return Some(errno::fail(error));
        }
        return Some(native());
    }
    None
}
