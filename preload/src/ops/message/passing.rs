//! Descriptors that programs pass to each other in messages (SCM_RIGHTS).

#![expect(unsafe_code, reason = "control data of the program's messages")]

use core::ffi::c_int;

use libc::msghdr;

use super::{CONTROL_MAX, is_there};
use crate::{config, lifecycle, probe};

/// Whether descriptors are to be looked at before a message is sent. As long as nothing of ours is known they are
/// looked at after that: only then may a header be touched, of which the kernel has found that it can be read.
pub(super) fn is_before() -> bool {
    lifecycle::any_known()
}

/// Descriptors that are passed to another process stay on TCP.
///
/// # Safety
/// Nobody changes the header, if it is one; see [`is_before`].
pub(super) unsafe fn note_passed(msg: *const msghdr) {
    if config::config().is_none() {
        return;
    }
    // SAFETY: any bytes are a header of numbers and addresses.
    let Some(header) = (unsafe { probe::read(msg) }) else {
        return;
    };
    if header.msg_controllen <= CONTROL_MAX && is_there(header.msg_control, header.msg_controllen) {
        // SAFETY: the control data was found readable.
        lifecycle::passed_on(|found| unsafe { each_descriptor(&header, found) });
    }
}

/// Gives each descriptor that stands in a message (SCM_RIGHTS) to `found`.
///
/// # Safety
/// The control data can be read.
unsafe fn each_descriptor(header: &msghdr, mut found: impl FnMut(c_int)) {
    if header.msg_control.is_null() {
        return;
    }
    let end = header.msg_control.addr() + header.msg_controllen;
    let header = core::ptr::from_ref(header);
    // SAFETY: by contract.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !at.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers inside the control data.
        let part = unsafe { &*at };
        if part.cmsg_level == libc::SOL_SOCKET && part.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: only computes a length.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(at) };
            let room = end.saturating_sub(data.addr());
            let fds = part.cmsg_len.saturating_sub(overhead).min(room) / size_of::<c_int>();
            for i in 0..fds {
                // SAFETY: i is inside the part's data.
                let bytes = unsafe { data.add(i * size_of::<c_int>()).cast::<[u8; 4]>().read() };
                found(c_int::from_ne_bytes(bytes));
            }
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(header, at) };
    }
}

/// Descriptors that came from another process, in a message that the kernel has just written.
///
/// # Safety
/// `msg` points to a header.
pub(super) unsafe fn note_received(msg: *const msghdr) {
    if config::config().is_none() {
        return;
    }
    // SAFETY: by contract.
    let header = unsafe { msg.read() };
    // SAFETY: the kernel has just written the control data.
    unsafe {
        each_descriptor(&header, |fd| {
            lifecycle::received(fd);
        });
    };
}
