//! Calls by number: `syscall` and `prctl`.
//!
//! A program that calls a socket function by number through libc's `syscall` means the same as by name. Of
//! the rest only those matter that end what the library can do in the process, seccomp and io_uring, and requests to the
//! kernel's older asynchronous I/O.

use core::ffi::{c_int, c_long, c_ulong};
use core::ptr::with_exposed_provenance_mut as pointer;

use libc::timespec;

use super::{data, fd as descriptors, numbers, process, ready, socket, submitted};
use crate::ops::ready::{from_timespec as of_timespec, to_timespec};
use crate::{control, fds, lifecycle, probe, real, retire};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

export! {
    unsafe fn syscall(
        number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize,
    ) -> c_long {
        // SAFETY: see the top of the file.
        let by_name = unsafe { by_name(number, [a, b, c, d, e, f]) };
        if let Some(result) = by_name {
            return result;
        }
        // SAFETY: see the top of the file.
        unsafe { real::syscall(number, a, b, c, d, e, f) }
    }

    unsafe fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int {
        if option == libc::PR_SET_SECCOMP {
            retire::before_seccomp();
        }
        // SAFETY: see the top of the file.
        unsafe { real::prctl(option, a, b, c, d) }
    }
}

const SECCOMP_SET_MODE_STRICT: usize = 0;
const SECCOMP_SET_MODE_FILTER: usize = 1;

/// The call by its name, if it concerns something of ours.
///
/// # Safety
/// As the system call itself.
#[inline]
unsafe fn by_name(number: c_long, args: [usize; 6]) -> Option<c_long> {
    let [a, b, c, ..] = args;
    match number {
        libc::SYS_seccomp if matches!(a, SECCOMP_SET_MODE_STRICT | SECCOMP_SET_MODE_FILTER) => {
            retire::before_seccomp();
            None
        }
        libc::SYS_prctl if a == int(libc::PR_SET_SECCOMP) => {
            retire::before_seccomp();
            None
        }
        libc::SYS_unshare if number_of(a) & libc::CLONE_FILES != 0 => {
            retire::before_private_descriptors();
            None
        }
        libc::SYS_io_uring_setup => {
            retire::before_io_uring();
            None
        }
        libc::SYS_io_submit => {
            submitted::of_context(pointer(a), b.cast_signed() as c_long, pointer(c));
            None
        }
        libc::SYS_pidfd_getfd if lifecycle::any_known() => {
            let (process, target) = (number_of(a), number_of(b));
            // SAFETY: no pointers.
            Some(unsafe { numbers::viaduct_pidfd_getfd(process, target, word(c)) }.into())
        }
        libc::SYS_close_range if lifecycle::any_known() => {
            // SAFETY: no pointers.
            Some(unsafe { descriptors::close_range(word(a), word(b), number_of(c)) }.into())
        }
        libc::SYS_poll if lifecycle::any_known() => {
            // SAFETY: see the top of the file.
            Some(unsafe { ready::poll(pointer(a), b as c_ulong, number_of(c)) }.into())
        }
        libc::SYS_select | libc::SYS_ppoll | libc::SYS_pselect6 if lifecycle::any_known() => {
            // SAFETY: by contract.
            unsafe { waiting(number, args) }
        }
        libc::SYS_execve => {
            // SAFETY: by contract.
            let rc = unsafe { process::execve(pointer(a), pointer(b), pointer(c)) };
            Some(rc.into())
        }
        libc::SYS_execveat => {
            let [_, _, _, env, flags, _] = args;
            // SAFETY: by contract.
            let rc = unsafe {
                process::execveat(
                    number_of(a),
                    pointer(b),
                    pointer(c),
                    pointer(env),
                    number_of(flags),
                )
            };
            Some(rc.into())
        }
        libc::SYS_socket => {
            // SAFETY: no pointers.
            let fd = unsafe { socket::viaduct_socket(number_of(a), number_of(b), number_of(c)) };
            Some(fd.into())
        }
        // They may carry descriptors, whatever they are called on.
        libc::SYS_sendmsg | libc::SYS_sendmmsg | libc::SYS_recvmsg | libc::SYS_recvmmsg => {
            // SAFETY: by contract.
            unsafe { on_descriptor(number, args) }
        }
        // Of sockets that are no connections yet as well.
        libc::SYS_dup | libc::SYS_dup2 | libc::SYS_dup3 => {
            // SAFETY: by contract.
            unsafe { on_descriptor(number, args) }
        }
        libc::SYS_fcntl if matches!(number_of(b), libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => {
            // SAFETY: by contract.
            unsafe { on_descriptor(number, args) }
        }
        // SAFETY: no arguments.
        libc::SYS_fork => Some(unsafe { process::fork() }.into()),
        // SAFETY: by contract.
        _ if !fds::lookup(number_of(a)).is_none() => unsafe { on_descriptor(number, args) },
        libc::SYS_splice if !fds::lookup(number_of(c)).is_none() => {
            // SAFETY: by contract.
            unsafe { on_descriptor(number, args) }
        }
        libc::SYS_sendfile if !fds::lookup(number_of(b)).is_none() => {
            // SAFETY: by contract.
            unsafe { on_descriptor(number, args) }
        }
        _ => None,
    }
}

/// A call that has a descriptor of ours among its arguments, nearly always as the first.
///
/// # Safety
/// As the system call itself.
#[cold]
unsafe fn on_descriptor(number: c_long, args: [usize; 6]) -> Option<c_long> {
    let [a, b, c, d, e, f] = args;
    let fd = number_of(a);
    let long = |result: isize| Some(result as c_long);
    let wide = |result: c_int| Some(c_long::from(result));
    // SAFETY: see the top of the file; holds for each call.
    unsafe {
        match number {
            libc::SYS_read => long(data::read(fd, pointer(b), c)),
            libc::SYS_write => long(data::write(fd, pointer(b), c)),
            libc::SYS_readv => long(data::readv(fd, pointer(b), number_of(c))),
            libc::SYS_writev => long(data::writev(fd, pointer(b), number_of(c))),
            libc::SYS_preadv2 => long(data::preadv2(
                fd,
                pointer(b),
                number_of(c),
                d.cast_signed() as i64,
                number_of(f),
            )),
            libc::SYS_pwritev2 => long(data::pwritev2(
                fd,
                pointer(b),
                number_of(c),
                d.cast_signed() as i64,
                number_of(f),
            )),
            libc::SYS_recvfrom => long(data::recvfrom(
                fd,
                pointer(b),
                c,
                number_of(d),
                pointer(e),
                pointer(f),
            )),
            libc::SYS_sendto => long(data::sendto(
                fd,
                pointer(b),
                c,
                number_of(d),
                pointer(e),
                word(f),
            )),
            libc::SYS_recvmsg => long(data::recvmsg(fd, pointer(b), number_of(c))),
            libc::SYS_sendmsg => long(data::sendmsg(fd, pointer(b), number_of(c))),
            libc::SYS_recvmmsg => wide(data::recvmmsg(
                fd,
                pointer(b),
                word(c),
                number_of(d),
                pointer(e),
            )),
            libc::SYS_sendmmsg => wide(data::sendmmsg(fd, pointer(b), word(c), number_of(d))),
            libc::SYS_sendfile => long(data::sendfile(fd, number_of(b), pointer(c), d)),
            libc::SYS_splice => long(data::splice(
                fd,
                pointer(b),
                number_of(c),
                pointer(d),
                e,
                word(f),
            )),
            libc::SYS_ioctl => wide(socket::ioctl(fd, b as c_ulong, c)),
            libc::SYS_close => wide(descriptors::close(fd)),
            libc::SYS_fcntl => wide(descriptors::fcntl(fd, number_of(b), c)),
            libc::SYS_connect => wide(socket::connect(fd, pointer(b), word(c))),
            libc::SYS_shutdown => wide(socket::viaduct_shutdown(fd, number_of(b))),
            libc::SYS_dup => wide(descriptors::viaduct_dup(fd)),
            libc::SYS_dup2 => wide(descriptors::viaduct_dup2(fd, number_of(b))),
            libc::SYS_dup3 => wide(descriptors::viaduct_dup3(fd, number_of(b), number_of(c))),
            libc::SYS_epoll_wait => wide(ready::epoll_wait(
                fd,
                pointer(b),
                number_of(c),
                number_of(d),
            )),
            libc::SYS_epoll_pwait if is_mask(e, f) => wide(ready::epoll_pwait(
                fd,
                pointer(b),
                number_of(c),
                number_of(d),
                pointer(e),
            )),
            libc::SYS_epoll_pwait2 if is_mask(e, f) => wide(ready::epoll_pwait2(
                fd,
                pointer(b),
                number_of(c),
                pointer(d),
                pointer(e),
            )),
            libc::SYS_setsockopt => wide(socket::viaduct_setsockopt(
                fd,
                number_of(b),
                number_of(c),
                pointer(d),
                word(e),
            )),
            libc::SYS_getsockopt => wide(socket::viaduct_getsockopt(
                fd,
                number_of(b),
                number_of(c),
                pointer(d),
                pointer(e),
            )),
            libc::SYS_epoll_ctl => wide(ready::viaduct_epoll_ctl(
                fd,
                number_of(b),
                number_of(c),
                pointer(d),
            )),
            _ => None,
        }
    }
}

/// select, ppoll and pselect6. The kernel's own tell the time that is left, libc's functions of these names
/// do not (but for select).
///
/// # Safety
/// As the system call itself.
#[cold]
unsafe fn waiting(number: c_long, args: [usize; 6]) -> Option<c_long> {
    let [a, b, c, d, e, f] = args;
    match number {
        libc::SYS_select => {
            // SAFETY: by contract.
            let rc = unsafe {
                ready::select(number_of(a), pointer(b), pointer(c), pointer(d), pointer(e))
            };
            Some(rc.into())
        }
        libc::SYS_ppoll if is_mask(d, e) => time_left(pointer(c), || {
            // SAFETY: by contract.
            unsafe { ready::ppoll(pointer(a), b as c_ulong, pointer(c), pointer(d)) }
        }),
        libc::SYS_pselect6 => {
            let mut mask = [0, MASK_BYTES];
            if f != 0 {
                // SAFETY: any bytes are an address and a length.
                mask = unsafe { probe::read(pointer::<[usize; 2]>(f)) }?;
            }
            if !is_mask(mask[0], mask[1]) {
                return None;
            }
            time_left(pointer(e), || {
                let sets = [pointer(b), pointer(c), pointer(d)];
                // SAFETY: by contract.
                unsafe {
                    ready::pselect(
                        number_of(a),
                        sets[0],
                        sets[1],
                        sets[2],
                        pointer(e),
                        pointer(mask[0]),
                    )
                }
            })
        }
        _ => None,
    }
}

/// Makes a call that waits for `time`, and takes off what has passed.
fn time_left(time: *mut timespec, call: impl Fn() -> c_int) -> Option<c_long> {
    if time.is_null() {
        return Some(call().into());
    }
    // SAFETY: any bytes are a time.
    let asked = unsafe { probe::read(time) }.and_then(of_timespec);
    let began = control::monotonic_ns();
    let rc = call();
    if let Some(asked) = asked {
        let left = to_timespec(asked.saturating_sub(control::monotonic_ns() - began));
        // SAFETY: the program's time, which the kernel overwrites.
        unsafe { probe::write(time, left) };
    }
    Some(rc.into())
}

/// Bytes of the kernel's signal masks.
const MASK_BYTES: usize = 8;

/// Whether the kernel takes a signal mask of this length.
const fn is_mask(mask: usize, bytes: usize) -> bool {
    mask == 0 || bytes == MASK_BYTES
}

/// The low half of an argument, as the kernel takes it.
const fn number_of(argument: usize) -> c_int {
    word(argument).cast_signed()
}

#[expect(clippy::cast_possible_truncation, reason = "the kernel does the same")]
const fn word(argument: usize) -> u32 {
    argument as u32
}

const fn int(value: c_int) -> usize {
    value.cast_unsigned() as usize
}
