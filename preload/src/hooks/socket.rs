//! Connections: socket, connect, accept, shutdown, options.

use core::ffi::{c_int, c_ulong, c_void};

use libc::{sockaddr, sockaddr_storage, socklen_t};

use crate::lifecycle::{self, Side};
use crate::ops::options;
use crate::{config, errno, fds, kernel, probe, real};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

redhook::hook! {
    unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int => viaduct_socket {
        // SAFETY: no pointers.
        let fd = unsafe { real::socket(domain, kind, protocol) };
        lifecycle::created(fd);
        lifecycle::born(fd);
        fd
    }
}

redhook::hook! {
    unsafe fn shutdown(fd: c_int, how: c_int) -> c_int => viaduct_shutdown {
        if !lifecycle::before_shutdown(fd, how) {
            return 0;
        }
        // SAFETY: no pointers.
        let rc = unsafe { real::shutdown(fd, how) };
        lifecycle::after_shutdown(fd);
        rc
    }
}

redhook::hook! {
    unsafe fn setsockopt(
        fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t
    ) -> c_int => viaduct_setsockopt {
        // SAFETY: see the top of the file.
        unsafe { options::set(fd, level, name, value, len) }
    }
}

redhook::hook! {
    unsafe fn getsockopt(
        fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t
    ) -> c_int => viaduct_getsockopt {
        // SAFETY: see the top of the file.
        unsafe { options::get(fd, level, name, value, len) }
    }
}

export! {
    unsafe fn connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::connect(fd, addr, len) };
        if config::config().is_none() {
            return native();
        }
        if fds::lookup(fd).as_conn().is_some() && kernel::is_unspecified(addr, len) {
            let closing = lifecycle::before_dissolve(fd);
            let rc = native();
            if let Some(closing) = closing {
                errno::preserved(|| closing.finish());
            }
            return rc;
        }
        let rc = native();
        let begun = rc == 0 || matches!(errno::get(), libc::EINPROGRESS | libc::EINTR | libc::EALREADY);
        // SAFETY: see the top of the file.
        if begun && let Some(far) = unsafe { kernel::address_of(addr, len) } {
            lifecycle::adopt(fd, far, Side::Connected, rc != 0);
        }
        rc
    }

    unsafe fn accept(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
        // SAFETY: see the top of the file.
        let native = |addr, len| unsafe { real::accept(fd, addr, len) };
        accepted(addr, len, 0, native)
    }

    unsafe fn accept4(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
        // SAFETY: see the top of the file.
        let native = |addr, len| unsafe { real::accept4(fd, addr, len, flags) };
        accepted(addr, len, flags, native)
    }

    unsafe fn ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { options::ioctl(fd, request, arg) }
    }
}

redhook::hook! {
    unsafe fn sockatmark(fd: c_int) -> c_int => viaduct_sockatmark {
        let mut is_there: c_int = 0;
        // SAFETY: the request writes one int.
        let rc = unsafe { options::ioctl(fd, kernel::SIOCATMARK, (&raw mut is_there).expose_provenance()) };
        if rc < 0 { rc } else { is_there }
    }
}

/// accept with the far address, which costs nothing when we ask for it in the same call.
#[inline]
fn accepted(
    addr: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
    native: impl Fn(*mut sockaddr, *mut socklen_t) -> c_int,
) -> c_int {
    if config::config().is_none() {
        return native(addr, len);
    }
    // SAFETY: zero is a valid sockaddr_storage.
    let mut storage: sockaddr_storage = unsafe { core::mem::zeroed() };
    let mut full = socklen_t::try_from(size_of::<sockaddr_storage>()).unwrap_or(128);
    if addr.is_null() {
        let fd = native((&raw mut storage).cast(), &raw mut full);
        adopt_accepted(fd, &storage, flags);
        return fd;
    }
    // The kernel checks the program's buffer itself; the address is read back from it if it fits. As
    // long as nothing catches faults, we do not look how large it is.
    let room = if lifecycle::any_known() {
        // SAFETY: any bytes are a length.
        unsafe { probe::read(len) }.unwrap_or(0)
    } else {
        0
    };
    let fd = native(addr, len);
    if fd < 0 {
        return fd;
    }
    lifecycle::created(fd);
    let whole = if room as usize >= size_of::<libc::sockaddr_in>() {
        // SAFETY: the kernel has just written how long the address is, cut or not.
        Some(unsafe { len.read_unaligned() }).filter(|whole| *whole <= room)
    } else {
        None
    };
    let far = match whole {
        // SAFETY: the kernel has just written an address of this length there.
        Some(whole) => unsafe { kernel::address_of(addr, whole) },
        None => kernel::far_address(fd),
    };
    if let Some(far) = far {
        lifecycle::adopt(fd, far, Side::Accepted, flags & libc::SOCK_NONBLOCK != 0);
    }
    fd
}

fn adopt_accepted(fd: c_int, storage: &sockaddr_storage, flags: c_int) {
    if fd < 0 {
        return;
    }
    lifecycle::created(fd);
    if let Some(far) = kernel::address(storage) {
        lifecycle::adopt(fd, far, Side::Accepted, flags & libc::SOCK_NONBLOCK != 0);
    }
}
